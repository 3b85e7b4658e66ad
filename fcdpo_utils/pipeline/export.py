"""What a finished run gives to others: `report.html`, and in `export/` adapter, merged weights, preferences, problems.

Reads the artifacts and completion records of a run, however it was run, and its manifest where `fcdpo run` made it.
"""

import base64
import re
import shutil
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fcdpo_utils import store
from fcdpo_utils.fingerprint import ROOT, files_of
from fcdpo_utils.pipeline import baselines, manifest, publish
from fcdpo_utils.pipeline.stage import format_seconds, record_path
from fcdpo_utils.problems import load_problems, save_problems
from fcdpo_utils.settings import Settings
from fcdpo_utils.views import viewer
from fcdpo_utils.weights import ADAPTER_FILE, known

_FIGURES = ("accuracy.png", "outcomes_*.png", "levels_*.png", "training_curves.png", "chat.png")


def render(path: Path, template: str = "report.html.j2", **values: Any) -> Path:
    """Write a file from one of the templates beside this module; in HTML and XML all text is escaped."""
    markup, trimmed = ".html" in template or ".xml" in template, {"trim_blocks": True, "lstrip_blocks": True}
    options = {"autoescape": markup, "keep_trailing_newline": not markup, "undefined": StrictUndefined, **trimmed}
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), **options)
    environment.filters |= {"percent": lambda share: f"{100 * share:.1f} %", "duration": format_seconds}
    store.write(path, environment.get_template(template).render(values))
    return path


def report(run: Path) -> Path:
    """Write `report.html`, self-contained, readable in light and dark, wide and narrow; returns its path. Its viewer of
    chains is also a page of its own, `chains.html`.

    Raises StoreError where the run is not finished. A run of notebooks by hand has no manifest that its files could be
    checked against; the page says so.
    """
    metrics, made = store.read_json(store.require(run / "metrics.json", "05")), manifest.load(run)
    baselines.require_whole(run, "report")
    names = [spec.name for spec in manifest.STAGES]
    records = {name: store.read_json(store.require(record_path(run, name), name[:2])) for name in names}
    figures = [path for pattern in _FIGURES for path in sorted(run.glob(pattern))]
    images = {path.stem: base64.b64encode(path.read_bytes()).decode() for path in figures}
    settings = manifest.recorded_settings(run, names[-1]).model_dump(mode="json")
    held_out = viewer.of_run(run)
    store.write(run / "chains.html", viewer.page(*held_out))
    shown = {"settings": settings, "images": images, "viewer": viewer.fragment(*held_out)}
    return render(run / "report.html", metrics=metrics, manifest=made, records=records, **shown)


def export(run: Path, merged: bool = False, inspect: bool = False) -> list[Path]:
    """Write `export/adapter`, `export/dataset` and, if asked, `export/merged`, `export/inspect`; returns the folders.

    Raises StoreError where the run is not finished, ValueError where the student cannot be loaded.
    """
    metrics = store.read_json(store.require(run / "metrics.json", "05"))
    facts = {"metrics": metrics, **_facts(run)}
    adapter = store.require(run / "adapter" / ADAPTER_FILE, "04").parent
    folders = [run / "export" / name for name in ("adapter", "dataset", *(["merged"] if merged else []))]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    shutil.copy2(adapter / ADAPTER_FILE, folders[0])
    config = store.read_json(adapter / "adapter_config.json")  # it names a folder of this machine
    store.write_json(folders[0] / "adapter_config.json", config | {"base_model_name_or_path": facts["base"]})
    for name in ("augmented", "original"):
        shutil.copy2(store.require(run / f"preferences_{name}.jsonl", "03"), folders[1])
    if merged:
        _merge(facts["settings"], adapter, folders[2])
    for folder in folders:
        template = "dataset_card.md.j2" if folder.name == "dataset" else "model_card.md.j2"
        render(folder / "README.md", template, merged=folder.name == "merged", **facts)
    return [*folders, _inspect(run, run / "export" / "inspect")] if inspect else folders


def _inspect(run_dir: Path, folder: Path) -> Path:
    """The held-out problems as tasks of Inspect, with those modules of this package that run and judge a chain."""
    settings = manifest.recorded_settings(run_dir, manifest.STAGES[-1].name)
    own = {given.file: f"task_{name}.py" for name, given in settings.tasks.items() if given.file}
    shutil.rmtree(folder, ignore_errors=True)
    for path in files_of("fcdpo_utils", "fcdpo_utils.teachers.tool_calls"):
        (folder / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, folder / path.relative_to(ROOT))
    for file, name in own.items():
        shutil.copy2(file, folder / name)
    save_problems(folder / "problems.jsonl", load_problems(store.require(run_dir / "problems.jsonl", "01"), "test"))
    render(folder / "fcdpo_tasks.py", "inspect_tasks.py.j2", own=own.values(), settings=settings)
    return folder


def _facts(run_dir: Path) -> dict[str, Any]:
    """What the cards say besides results: of each setting, what the stage was run with that used it."""
    teacher, data = (manifest.recorded_settings(run_dir, stage) for stage in ("02", "03"))
    made = {"teacher": teacher.teacher, "tasks": data.tasks, "preferences": data.preferences}
    settings = manifest.recorded_settings(run_dir, "04").model_copy(update=made)
    student = known(settings.student.source)
    licence = student["licence"].lower() if student else ""
    return {
        "address": publish.address(),
        "settings": settings,
        "base": student["source"] if student else public_name(settings.student.source),
        "licence": licence if licence in ("apache-2.0", "mit") else "other",  # as the hub writes them
        "teacher": [public_name(name) for name in (settings.teacher.model, settings.teacher.adapter) if name],
    }


def public_name(source: str) -> str:
    """The name of a model for others: a hub id, or the last part of a path."""
    hub_id = re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", source) and not Path(source).exists()
    return source if hub_id else Path(source).name


def _merge(settings: Settings, adapter: Path, folder: Path) -> None:
    """The whole student in bf16, adapter included, as transformers, vLLM and llama.cpp's converter read it."""
    from fcdpo_utils.students import load_student

    student = settings.student.model_copy(update={"four_bit": False, "dtype": "bfloat16"})
    model, tokenizer = load_student(student, adapter)
    # each file is copied in memory before it is written: a 7B model and its copy would not fit beside each other
    model.merge_and_unload().save_pretrained(folder, max_shard_size="2GB")
    tokenizer.save_pretrained(folder)

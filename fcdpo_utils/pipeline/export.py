"""What a finished run gives to others: adapter, merged weights and preference data, each with a card, in `export/`.

Reads the artifacts of a run and nothing else; pushes to the hub only where it is told to.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from fcdpo_utils import store
from fcdpo_utils.pipeline import manifest
from fcdpo_utils.profiles import Settings
from fcdpo_utils.students import STUDENTS

TEMPLATES = Path(__file__).parent
_DATA = ("preferences_augmented.jsonl", "preferences_original.jsonl")


def export(run_dir: Path, merged: bool = False) -> list[Path]:
    """Write `export/adapter`, `export/dataset` and, if asked, `export/merged`; returns the folders.

    Raises StoreError where the run is not finished, ValueError where the student cannot be loaded.
    """
    metrics = store.read_json(store.require(run_dir / "metrics.json", "05"))
    adapter = store.require(run_dir / "adapter" / "adapter_model.safetensors", "04").parent
    settings = Settings.model_validate(manifest.load(run_dir)["settings"])
    facts = {"metrics": metrics, "settings": settings, "base": _hub_name(settings), "licence": _licence(settings)}
    folders = [run_dir / "export" / name for name in ("adapter", "dataset", *(["merged"] if merged else []))]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    shutil.copy2(adapter / "adapter_model.safetensors", folders[0])
    config = store.read_json(adapter / "adapter_config.json")  # it names a folder of this machine
    store.write_json(folders[0] / "adapter_config.json", config | {"base_model_name_or_path": facts["base"]})
    for name in _DATA:
        shutil.copy2(store.require(run_dir / name, "03"), folders[1])
    if merged:
        _merge(settings, adapter, folders[2])
    for folder in folders:
        kind = "dataset" if folder.name == "dataset" else "model"
        store.write(folder / "README.md", _card(kind, folder.name == "merged", facts))
    return folders


def _merge(settings: Settings, adapter: Path, folder: Path) -> None:
    """The whole student in bf16, adapter included, as transformers, vLLM and llama.cpp's converter read it."""
    from fcdpo_utils.models import ModelError, load_student, quiet  # slow to import, and only this needs it

    try:
        student = settings.student.model_copy(update={"four_bit": False, "dtype": "bfloat16"})
        model, tokenizer = load_student(student, adapter)
    except ModelError as error:
        raise ValueError(str(error)) from None
    with quiet():
        # each file is copied in memory before it is written: a 7B model and its copy would not fit beside each other
        model.merge_and_unload().save_pretrained(folder, max_shard_size="2GB")
    tokenizer.save_pretrained(folder)


def _hub_name(settings: Settings) -> str:
    """The base model's name on the hub; a folder keeps its own name."""
    return STUDENTS["smollm2-135m"].source if settings.student.source == "embedded" else settings.student.source


def _licence(settings: Settings) -> str:
    """The licence of a known base model, as the hub writes it; "other" for the rest."""
    known = {student.source: student.licence for student in STUDENTS.values()}
    licence = known.get(_hub_name(settings), "other").lower()
    return licence if licence in ("apache-2.0", "mit") else "other"


def _card(kind: str, merged: bool, facts: dict) -> str:
    options = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    environment = Environment(undefined=StrictUndefined, **options)
    template = environment.from_string((TEMPLATES / f"{kind}_card.md.j2").read_text(encoding="utf-8"))
    return template.render(merged=merged, **facts)


def push(folders: list[Path], name: str) -> list[str]:
    """Upload what `export` wrote, as `name`, `name-merged` and the data set `name-preferences`; returns the addresses.

    Raises ValueError with one line where the hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api, addresses = HfApi(), []
    suffixes = {"adapter": "", "merged": "-merged", "dataset": "-preferences"}
    for folder in folders:
        kind = "dataset" if folder.name == "dataset" else "model"
        try:
            address = api.create_repo(name + suffixes[folder.name], repo_type=kind, exist_ok=True)
            api.upload_folder(repo_id=name + suffixes[folder.name], repo_type=kind, folder_path=folder)
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise ValueError(f"cannot push {folder.name} to the hub: {str(error).splitlines()[0]}") from None
        addresses.append(str(address))
    return addresses

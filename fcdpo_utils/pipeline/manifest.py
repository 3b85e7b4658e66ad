"""`manifest.json`: what a run was made of and what it made; and whether a stage of it is still up to date.

A stage is up to date when its notebook, the package's code, the settings and inputs it depends on, and its outputs
are what they were when it last succeeded. Knows contents by their SHA-256 and nothing of what they mean.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcdpo_utils import store
from fcdpo_utils.profiles import Settings
from fcdpo_utils.provenance import ROOT, code_digest, commit, machine, package_versions, weights_state
from fcdpo_utils.stage import record_path

NAME = "manifest.json"
NOTEBOOKS = ROOT / "notebooks"


@dataclass(frozen=True)
class StageSpec:
    """One notebook: the groups of settings it depends on, the artifacts it reads and those it makes (globs).

    `needs`: the stages before a further one, by number.
    """

    name: str
    settings: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    needs: tuple[str, ...] = ()


STAGES = (
    StageSpec("01_function_definition", ("seed", "tasks"), (), ("problems.jsonl",)),
    StageSpec("02_teacher_chains", ("seed", "tasks", "limits", "teacher"), ("problems.jsonl",), ("chains.jsonl",)),
    StageSpec(
        "03_preference_data",
        ("tasks", "preferences"),
        ("problems.jsonl", "chains.jsonl"),
        ("completions.jsonl", "blocks.jsonl", "pairs_*.jsonl", "preferences_*.jsonl"),
    ),
    StageSpec(
        "04_student_training",
        ("seed", "tasks", "preferences", "student", "training"),
        ("problems.jsonl", "completions.jsonl", "blocks.jsonl", "preferences_*.jsonl"),
        ("adapter/adapter_*", "training.json", "training_curve.csv", "training_curves.png"),
    ),
    StageSpec(
        "05_evaluation_and_plots",
        ("profile", "seed", "tasks", "limits", "student", "evaluation"),
        ("problems.jsonl", "completions.jsonl", "adapter/adapter_*", "training.json"),
        (
            "chains_before.jsonl",
            "chains_after.jsonl",
            "metrics.json",
            "accuracy.png",
            "outcomes_*.png",
            "levels_*.png",
        ),
    ),
)

FURTHER = (  # beyond the pipeline: run by number, and then the stages that they need come first
    StageSpec(
        "06_ablations",
        ("seed", "tasks", "limits", "preferences", "student", "training", "evaluation", "ablations"),
        ("problems.jsonl", "chains.jsonl"),
        ("ablations.json", "ablations_*.png", "ablations/*/training.json", "ablations/*/chains.jsonl"),
        needs=("01", "02"),
    ),
    StageSpec(
        "07_generalisation",
        ("seed", "tasks", "limits", "student", "evaluation", "generalisation"),
        ("problems.jsonl", "adapter/adapter_*", "metrics.json"),
        ("generalisation.json", "generalisation*.png", "generalisation/*.jsonl"),
        needs=("01", "02", "03", "04", "05"),
    ),
    StageSpec(
        "08_rounds",
        tuple("seed tasks limits preferences student training evaluation generalisation rounds".split()),
        ("problems.jsonl", "chains.jsonl", "adapter/adapter_*"),
        ("rounds.json", "rounds*.png", "rounds/*/chains.jsonl", "rounds/*/adapter/adapter_*", "rounds/*.jsonl"),
        needs=("01", "02", "03", "04"),
    ),
)


def head(settings: Settings) -> dict[str, Any]:
    """What a run is made of: everything in a manifest but its stages."""
    version = commit()
    return {
        "commit": version.removesuffix("-dirty"),
        "dirty": version.endswith("-dirty"),
        "profile": settings.profile,
        "seed": settings.seed,
        "settings": settings.model_dump(mode="json"),
        "python": platform.python_version(),
        "packages": package_versions(),
        "machine": machine(),
    }


def load(run_dir: Path) -> dict[str, Any]:
    """The manifest of a run; empty where there is none or a kill left none that reads."""
    try:
        value = json.loads((run_dir / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def save(run_dir: Path, manifest: dict[str, Any]) -> None:
    store.write_json(run_dir / NAME, manifest)


def digests(run_dir: Path, patterns: Iterable[str]) -> dict[str, str]:
    """SHA-256 of every file in `run_dir` that matches, by its name there."""
    paths = sorted({path for pattern in patterns for path in run_dir.glob(pattern) if path.is_file()})
    return {path.relative_to(run_dir).as_posix(): store.file_digest(path) for path in paths}


def executed(spec: StageSpec) -> str:
    """The executed notebook, relative to the run directory."""
    return f"notebooks/{spec.name}.ipynb"


def fingerprint(spec: StageSpec, settings: Settings, run_dir: Path) -> dict[str, Any]:
    """What a stage depends on, part by part, so that a change can be named."""
    notebook = json.loads((NOTEBOOKS / f"{spec.name}.ipynb").read_text(encoding="utf-8"))
    values = settings.model_dump(mode="json")
    parts = {
        "notebook": store.digest(*(source_of(cell) for cell in notebook["cells"])),
        "code": code_digest(),
        **{f"settings of {name}": setting_digest(values[name]) for name in spec.settings},
        **{f"input {name}": value for name, value in digests(run_dir, spec.inputs).items()},
    }
    if spec.name == STAGES[0].name or "rounds" in spec.settings:
        files = [path for task in settings.tasks.values() for path in (task.path, task.test_path) if path]
        parts |= {f"file {path}": store.file_digest(Path(path)) for path in files}
    teacher = settings.teacher
    for group, source in (
        ("student", settings.student.source),
        ("teacher", teacher.model),
        ("teacher", teacher.adapter),
    ):
        if source and group in spec.settings and (state := weights_state(source)):
            parts[f"folder {source}"] = state
    return parts


def setting_digest(value: Any) -> str:
    """Of one group of settings."""
    return store.digest(store.dump(value))


def source_of(cell: dict[str, Any]) -> str:
    """The text of a notebook cell, which is stored as one string or as lines."""
    return "".join(cell["source"])


def changes(spec: StageSpec, settings: Settings, run_dir: Path, manifest: dict[str, Any]) -> list[str]:
    """Why a stage has to run: empty when it is up to date, else what is new, in words."""
    entry = manifest.get("stages", {}).get(spec.name, {})
    record = record_path(run_dir, spec.name)
    if entry.get("papermill_exit") != 0 or not entry.keys() >= {"depends_on", "outputs"}:
        return ["not finished yet"]
    if not record.exists() or store.read_json(record).get("run") != entry["run"]:
        return ["run by hand since"]
    now, before = fingerprint(spec, settings, run_dir), entry["depends_on"]
    changed = [name for name in sorted({*now, *before}) if now.get(name) != before.get(name)]
    outputs = digests(run_dir, (*spec.outputs, executed(spec)))
    changed += [f"output {name}" for name, value in entry["outputs"].items() if outputs.get(name) != value]
    return changed

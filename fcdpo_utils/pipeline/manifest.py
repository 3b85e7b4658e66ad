"""`manifest.json`: what a run was made of and what it made; and whether a stage of it is still up to date.

A stage is up to date when its notebook, the package's code, the settings and inputs it depends on, and its outputs
are what they were when it last succeeded. Knows contents by their SHA-256 and nothing of what they mean.
"""

import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import yaml

from fcdpo_utils import store
from fcdpo_utils.fingerprint import ROOT, code_behind, package_versions
from fcdpo_utils.lab.settings import RunSettings
from fcdpo_utils.pipeline.stage import record_path
from fcdpo_utils.problems import TASKS, rooms_of
from fcdpo_utils.weights import student_fingerprint

NAME = "manifest.json"
NOTEBOOKS = ROOT / "notebooks"


class StageSpec(NamedTuple):
    """One notebook, as `stages.yaml` describes it."""

    name: str
    settings: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    needs: tuple[str, ...] | None = None


_SPECS = yaml.safe_load(Path(__file__).with_name("stages.yaml").read_text(encoding="utf-8"))
_ALL = tuple(StageSpec(name, **{part: tuple(names) for part, names in spec.items()}) for name, spec in _SPECS.items())
STAGES = tuple(spec for spec in _ALL if spec.needs is None)
FURTHER = tuple(spec for spec in _ALL if spec.needs is not None)  # beyond the pipeline


def head(settings: RunSettings, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """What a run is made of: everything in a manifest but its stages. "set": the overrides that stages depend on."""
    version, groups = commit(), {group for spec in STAGES for group in spec.settings}
    changed = dict(override.split("=", 1) for override in overrides if re.split("[.=]", override)[0] in groups)
    return {
        "commit": version.removesuffix("-dirty"),
        "dirty": version.endswith("-dirty"),
        "profile": settings.profile,
        "seed": settings.seed,
        "settings": settings.model_dump(mode="json"),
        "set": changed,
        "python": platform.python_version(),
        "packages": package_versions(),
        "machine": machine(),
    }


def load(run_dir: Path) -> dict[str, Any]:
    """The manifest of a run; empty where there is none."""
    path = run_dir / NAME
    return store.read_json(path) if path.exists() else {}


def save(run_dir: Path, manifest: dict[str, Any]) -> None:
    store.write_json(run_dir / NAME, manifest)


def digests(run_dir: Path, patterns: Iterable[str]) -> dict[str, str]:
    """SHA-256 of every file in `run_dir` that matches, by its name there."""
    paths = sorted({path for pattern in patterns for path in run_dir.glob(pattern) if path.is_file()})
    return {path.relative_to(run_dir).as_posix(): store.file_digest(path) for path in paths}


def executed(spec: StageSpec) -> str:
    """The executed notebook, relative to the run directory."""
    return f"notebooks/{spec.name}.ipynb"


def fingerprint(spec: StageSpec, settings: RunSettings, run_dir: Path) -> dict[str, Any]:
    """What a stage depends on, part by part, so that a change can be named."""
    cells = store.read_json(NOTEBOOKS / f"{spec.name}.ipynb")["cells"]
    code = "\n".join(source_of(cell) for cell in cells if cell["cell_type"] == "code")
    python = re.sub(r"^(\s*)[!%].*", r"\1pass", code, flags=re.M)  # without lines that only IPython understands
    parts = {
        "notebook": store.digest(*map(source_of, cells)),
        "code": code_behind(python, *rooms_of(settings.tasks)),
        **given(spec, settings.model_dump(mode="json"), run_dir),
    }
    if spec.name == STAGES[0].name:
        files = [path for task in settings.tasks.values() for path in (task.path, task.test_path) if path]
        parts |= {f"file {path}": store.file_digest(Path(path)) for path in files}
        own = (name for name, task in settings.tasks.items() if task.file)
        parts |= {f"rows of {name}": store.digest(repr(TASKS[name].read())) for name in own}
    models, teacher = {"student": (settings.student, None)}, settings.teacher
    if teacher.kind == "local":
        models["teacher"] = teacher.student, teacher.adapter and Path(teacher.adapter)
    if settings.warm_up.adapter:
        models["warm_up"] = settings.student, Path(settings.warm_up.adapter)
    return parts | {name: student_fingerprint(*models[name]) for name in models.keys() & spec.settings}


def given(spec: StageSpec, settings: Mapping[str, Any], run_dir: Path) -> dict[str, str]:
    """The groups of settings that a stage depends on and the files that it reads: the digest of each, by name."""
    groups = {f"settings of {name}": store.digest(store.dump(settings.get(name))) for name in spec.settings}
    return groups | {f"input {name}": value for name, value in digests(run_dir, spec.inputs).items()}


def recorded_settings(run_dir: Path, stage: str) -> RunSettings:
    """The settings that a stage, such as "04", last ended with. Raises `StoreError` where its record does not tell."""
    record = store.require(record_path(run_dir, stage), stage[:2])
    try:
        return RunSettings.model_validate(store.read_json(record)["settings"])
    except (KeyError, TypeError, ValueError):
        raise store.StoreError(f"{record} holds no settings of this version; run {stage[:2]} again") from None


def source_of(cell: dict[str, Any]) -> str:
    """The text of a notebook cell, which is stored as one string or as lines."""
    return "".join(cell["source"])


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested values by dotted name."""
    if not isinstance(value, dict):
        return {name[1:]: value}
    return {key: leaf for part, inner in value.items() for key, leaf in flat(inner, f"{name}.{part}").items()}


def differing(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """The names of what is not the same in both."""
    return [name for name in sorted({*now, *before}) if now.get(name) != before.get(name)]


def altered(spec: StageSpec, run_dir: Path, entry: Mapping[str, Any]) -> list[str]:
    """Artifacts of a stage that are not what its entry in the manifest says: altered, missing or new."""
    return differing(digests(run_dir, (*spec.outputs, executed(spec))), entry.get("outputs", {}))


def recorded_run(run_dir: Path, stage: str) -> str | None:
    """The run in which a stage last ended."""
    record = record_path(run_dir, stage)
    return store.read_json(record).get("run") if record.exists() else None


def changes(spec: StageSpec, settings: RunSettings, run_dir: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Why a stage has to run: empty when it is up to date, else what is new, in words."""
    entry = manifest.get("stages", {}).get(spec.name, {})
    if entry.get("papermill_exit") != 0 or not entry.keys() >= {"depends_on", "outputs"}:
        return ["not finished yet"]
    if recorded_run(run_dir, spec.name) != entry["run"]:
        return ["run by hand since"]
    outputs = [f"output {name}" for name in altered(spec, run_dir, entry)]
    return differing(fingerprint(spec, settings, run_dir), entry["depends_on"]) + outputs


def commit() -> str:
    """The commit of the checkout, with "-dirty" where it has changes; "unknown" without git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    with suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return "unknown"


def machine() -> dict[str, Any]:
    """The processor, its cores that this process may use, the memory, and NVIDIA GPUs by their driver's files."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory().total / 2**30
    gpus = [_field(path, "Model:") for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))]
    cpu = _field(Path("/proc/cpuinfo"), "model name") or platform.processor() or platform.machine()
    return {"cpu": cpu, "cores": cores, "memory_gib": round(memory, 1), "gpus": gpus, "system": platform.platform()}


def _field(path: Path, name: str) -> str:
    """The value of a "name : value" line in one of the kernel's files."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")

"""Runs the notebooks under papermill, each in a process of its own, and skips those that are up to date.

A stage succeeded when papermill exited with 0 *and* its notebook wrote a completion record during this very run; cell
states prove nothing (papermill calls a notebook whose kernel was killed "completed"). Knows the notebooks by name and
nothing of what they compute.
"""

from __future__ import annotations

import ast
import ctypes
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from fcdpo_utils import store
from fcdpo_utils.pipeline import manifest
from fcdpo_utils.pipeline.manifest import StageSpec
from fcdpo_utils.profiles import Settings, load_settings
from fcdpo_utils.provenance import ROOT
from fcdpo_utils.stage import PARAMETERS, RUN_TOKEN, format_seconds, lock, open_run_dir, record_path

HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # read when a process starts; page faults cost much time
_SILENCE_SECONDS = 20  # how often a status line is printed where the output is no terminal


class StageError(Exception):
    """One line: which stage failed and why."""


def run(
    profile: str,
    overrides: Sequence[str] = (),
    run_dir: Path | None = None,
    only: str = "",
    start: str = "",
    cell_timeout: int = 0,
) -> Path:
    """Bring every stage up to date; returns the run directory.

    `only` and `start` are numbers such as "04": run just that stage, or that one and all after it, even where they
    are up to date (chains, checkpoints and references that are stored by content serve again); the stages before
    must be up to date. `only` may name a further stage ("06"): the stages that it needs are brought up to date, then
    it runs. `cell_timeout`: seconds, 0 for none. Raises `StageError`, `SettingsError` or `StoreError`.
    """
    settings = load_settings(profile, overrides)
    specs, further = manifest.STAGES, _find(only, manifest.FURTHER)
    if further:
        specs, only = (*(spec for spec in specs if spec.name[:2] in further.needs), further), ""
    first = _index(only or start) if only or start else 0
    for spec in specs:
        check_notebook(manifest.NOTEBOOKS / f"{spec.name}.ipynb")
    folder, token = open_run_dir(profile, str(run_dir or "")), uuid.uuid4().hex
    head = manifest.head(settings)
    with lock(folder / "run.lock"):
        (folder / "notebooks").mkdir(exist_ok=True)
        for index, spec in enumerate(specs):
            if only and index > first:
                break
            reasons = manifest.changes(spec, settings, folder, manifest.load(folder))
            if index < first and reasons:
                raise StageError(f"stage {spec.name} is not up to date ({reasons[0]}); run it first")
            if not reasons and not ((only or start) and index >= first) and spec is not further:
                _say(f"[{index + 1}/{len(specs)}] {spec.name}: up to date, skipped", final=True)
                continue
            later = 0.0 if further else 60 * sum(settings.expected_minutes[index + 1 :])
            place = f"[{index + 1}/{len(specs)}] {spec.name}"
            _make(spec, place, later, settings, head, folder, token, overrides, cell_timeout)
    return folder


def _find(number: str, specs: Sequence[StageSpec]) -> StageSpec | None:
    """The stage that "04" or its whole name means."""
    return next((spec for spec in specs if number in (spec.name, spec.name[:2], spec.name[1:2])), None)


def _index(number: str) -> int:
    """The place of a stage in the pipeline."""
    found = _find(number, manifest.STAGES)
    if not found:
        known = ", ".join(spec.name[:2] for spec in (*manifest.STAGES, *manifest.FURTHER))
        raise StageError(f"unknown stage {number!r}; expected one of {known} (those from 06 on with --only)")
    return manifest.STAGES.index(found)


def check_notebook(path: Path) -> None:
    """One tagged cell that assigns plain literals to the parameters; else StageError.

    papermill injects its values after that cell, or on top where there is none; a value derived inside it stays stale.
    """
    notebook = store.read_json(path)
    tagged = [cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", [])]
    wanted = f"{path.name} needs one cell tagged 'parameters' that assigns plain literals to {', '.join(PARAMETERS)}"
    if len(tagged) != 1:
        raise StageError(wanted)
    try:
        nodes = ast.parse(manifest.source_of(tagged[0])).body
        names = [node.targets[0].id for node in nodes if ast.literal_eval(node.value) is not None]
    except (SyntaxError, ValueError, AttributeError):
        raise StageError(wanted) from None
    if sorted(names) != sorted(PARAMETERS):
        raise StageError(wanted)


def _make(
    spec: StageSpec,
    place: str,
    later: float,
    settings: Settings,
    head: dict,
    folder: Path,
    token: str,
    overrides: Sequence[str],
    cell_timeout: int,
) -> None:
    """Run one stage and write down in the manifest what it depended on, what it made, and how it ended."""
    stages = manifest.load(folder).get("stages", {})
    before = stages.get(spec.name, {})
    attempts = before.get("attempts", 0) + 1 if before.get("papermill_exit") != 0 else 1
    entry = {"papermill_exit": None, "run": token, "attempts": attempts, "commit": head["commit"]}
    stages[spec.name] = entry
    manifest.save(folder, head | {"stages": stages})
    depends_on = manifest.fingerprint(spec, settings, folder)
    for figure in (path for pattern in spec.outputs if pattern.endswith(".png") for path in folder.glob(pattern)):
        figure.unlink()  # of tasks that this run may not have
    started = time.monotonic()
    exit_code = _papermill(spec, place, settings, folder, token, overrides, cell_timeout, later)
    seconds = round(time.monotonic() - started, 1)
    try:
        _require_success(spec, folder, token, exit_code)
    except StageError:
        entry["papermill_exit"] = exit_code or 1  # a green exit without a record is not one
        manifest.save(folder, head | {"stages": stages})
        raise
    entry |= {"seconds": seconds, "peak_gib": store.read_json(record_path(folder, spec.name))["peak_gib"]}
    if spec.name == manifest.STAGES[-1].name:
        _add_times(folder, stages)
    outputs = manifest.digests(folder, (*spec.outputs, manifest.executed(spec)))
    entry |= {"papermill_exit": exit_code, "depends_on": depends_on, "outputs": outputs}
    manifest.save(folder, head | {"stages": stages})
    _say(f"{place} done in {format_seconds(seconds)}", final=True)


def _add_times(folder: Path, stages: dict[str, dict]) -> None:
    """Time and peak memory of every stage, into the metrics; those of the last of several attempts."""
    metrics, names = store.read_json(folder / "metrics.json"), ("seconds", "peak_gib", "attempts")
    done = {spec.name: stages[spec.name] for spec in manifest.STAGES}
    metrics["stages"] = {name: {key: entry[key] for key in names} for name, entry in done.items()}
    store.write_json(folder / "metrics.json", metrics)


def _papermill(
    spec: StageSpec,
    place: str,
    settings: Settings,
    folder: Path,
    token: str,
    overrides: Sequence[str],
    cell_timeout: int,
    later: float,
) -> int:
    """Execute one notebook; returns papermill's exit code. The output goes to `notebooks/<stage>.log`."""
    record_path(folder, spec.name).unlink(missing_ok=True)
    source, target = manifest.NOTEBOOKS / f"{spec.name}.ipynb", folder / manifest.executed(spec)
    command = [sys.executable, "-m", "papermill", str(source), str(target)]
    values = {"profile": settings.profile, "run_dir": str(folder), "overrides": shlex.join(overrides)}
    for name, value in values.items():
        command += ["-r", name, value]
    command += ["-k", "python3", "--no-progress-bar", "--cwd", str(manifest.NOTEBOOKS)]
    if cell_timeout:
        command += ["--execution-timeout", str(cell_timeout)]
    environment = {**HUGE_PAGES, **os.environ, RUN_TOKEN: token, "PYTHONPATH": str(ROOT)}
    with open(target.with_suffix(".log"), "w", encoding="utf-8") as output:
        options = {"stdout": output, "stderr": subprocess.STDOUT, "env": environment, "preexec_fn": _die_with_parent}
        process = subprocess.Popen(command, **options)
        try:
            _watch(process, spec.name, place, folder, later)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    return process.returncode


def _die_with_parent() -> None:
    """In the child, on Linux: end when the runner is killed; the kernel ends with papermill."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _require_success(spec: StageSpec, folder: Path, token: str, exit_code: int) -> None:
    log, record = (folder / manifest.executed(spec)).with_suffix(".log"), record_path(folder, spec.name)
    if exit_code != 0:
        raise StageError(f"stage {spec.name} failed: {_last_error(log)} (log: {log})")
    if not record.exists() or store.read_json(record).get("run") != token:
        raise StageError(f"stage {spec.name} ended before its last cell, without an error (log: {log})")


def _watch(process: subprocess.Popen, name: str, place: str, folder: Path, later: float) -> None:
    """Show the notebook's own progress until the process ends."""
    printed = 0.0
    while process.poll() is None:
        try:
            status = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            status = {}
        if status.get("stage") == name:
            text = f"{status['text']}, {format_seconds(status['left_seconds'])} left in this step"
        else:
            text = "running"
        line = f"{place}: {text}" + (f", then about {format_seconds(later)} for later stages" if later else "")
        if sys.stdout.isatty() or time.monotonic() - printed > _SILENCE_SECONDS:
            printed = time.monotonic()
            _say(line)
        time.sleep(0.2)


def _say(line: str, final: bool = False) -> None:
    if sys.stdout.isatty():
        print(f"\r\x1b[K{line}", end="\n" if final else "", flush=True)
    else:
        print(line, flush=True)


def _last_error(log: Path) -> str:
    """The exception line of a papermill log, or what became of the kernel."""
    text = log.read_text(encoding="utf-8", errors="replace")
    if "DeadKernelError" in text or "Kernel died" in text:
        return "the kernel died, most likely out of memory"
    if "CellTimeoutError" in text:
        return "a cell took longer than --cell-timeout"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.split(":")[0].endswith(("Error", "Exit", "Interrupt", "Exception"))]
    return errors[-1] if errors else (lines[-1] if lines else "no output")


def results_table(folder: Path) -> str:
    """The demo's closing table: before, after, intervals, and time per stage."""
    metrics = store.read_json(folder / "metrics.json")
    lines = [f"{'task':12}{'problems':>9}{'before, sound':>26}{'after, sound':>26}"]
    for task, result in metrics["tasks"].items():
        cells = [
            f"{100 * r['sound']:.1f} % [{100 * r['sound_ci95'][0]:.1f}, {100 * r['sound_ci95'][1]:.1f}]"
            for r in (result["before"], result["after"])
        ]
        lines.append(f"{task:12}{result['n']:>9}{cells[0]:>26}{cells[1]:>26}")
    times = [f"{name} {format_seconds(values['seconds'])}" for name, values in metrics["stages"].items()]
    return "\n".join([*lines, "time: " + ", ".join(times), f"results: {folder}"])

"""Runs the notebooks under papermill, each in a process of its own, and skips those that are up to date.

A stage succeeded when papermill exited with 0 *and* its notebook wrote a completion record during this very run; cell
states prove nothing (papermill calls a notebook whose kernel was killed "completed"). Knows the notebooks by name and
nothing of what they compute.
"""

import ast
import ctypes
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from fcdpo_utils import store
from fcdpo_utils.fingerprint import ROOT
from fcdpo_utils.lab.settings import RunSettings, load_settings
from fcdpo_utils.pipeline import manifest
from fcdpo_utils.pipeline.stage import PARAMETERS, PROGRESS, RUN_TOKEN, format_seconds, lock, open_run_dir, record_path
from fcdpo_utils.settings import STARTED_IN

HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # read when a process starts; page faults cost much time
# papermill's command, which waits for its log and arguments when all is imported; without a grammar of web addresses
# and Hadoop's files, which no notebook needs: half of the time to start it
_PAPERMILL = """
import json, os, sys
sys.modules |= {"rfc3987_syntax": None, "pyarrow": None}
from papermill.cli import papermill
log, *sys.argv[1:] = json.load(sys.stdin)
for stream in (1, 2):
    os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND), stream)
papermill()
"""
_SILENCE_SECONDS = 20  # how often a status line is printed where the output is no terminal


class StageError(Exception):
    """One line: which stage failed and why."""


class _Run(NamedTuple):
    """What the stages of one call share; `head` opens the manifest, `token` tells their records from other runs'.

    `waiting`: the process that the next stage gets, started while the one before it ran.
    """

    settings: RunSettings
    folder: Path
    head: dict[str, Any]
    options: list[Any]  # of papermill
    token: str
    waiting: list[subprocess.Popen]


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
    settings, plan = load_settings(profile, overrides), _plan(only, start)
    for spec, _ in plan:
        check_notebook(manifest.NOTEBOOKS / f"{spec.name}.ipynb")
    minutes = dict(zip(manifest.STAGES, settings.expected_minutes, strict=False))
    folder, token = open_run_dir(profile, str(run_dir or "")), uuid.uuid4().hex
    profile = profile if profile == settings.profile else str(Path(profile).absolute())  # notebooks work elsewhere
    parameters = store.dump(dict(zip(PARAMETERS, (profile, str(folder), shlex.join(overrides)), strict=True)))
    options = ["-k", "python3", "-y", parameters, "--no-progress-bar", "--cwd", manifest.NOTEBOOKS]
    options += ["--execution-timeout", cell_timeout]
    this = _Run(settings, folder, manifest.head(settings, overrides), options, token, [])
    with lock(folder / "run.lock"), ExitStack() as at_the_end:
        at_the_end.callback(_end, this.waiting)
        (folder / "notebooks").mkdir(exist_ok=True)
        for number, (spec, what) in enumerate(plan, start=1):
            place = f"[{number}/{len(plan)}] {spec.name}"
            reasons = manifest.changes(spec, settings, folder, manifest.load(folder))
            if what == "want" and reasons:
                raise StageError(f"stage {spec.name} is not up to date ({reasons[0]}); run it first")
            if reasons or what == "run":
                _make(this, spec, place, later=60 * sum(minutes.get(spec, 0) for spec, _ in plan[number:]))
            else:
                _say(f"{place}: up to date, skipped", final=True)
    return folder


def _plan(only: str, start: str) -> list[tuple[manifest.StageSpec, str]]:
    """Stages in order, each to "run", to "update" (run where it is not up to date) or to "want" (up to date)."""
    stages, number = manifest.STAGES, only or start
    if not number:
        return [(spec, "update") for spec in stages]
    everything = (*stages, *manifest.FURTHER)
    among = everything if only else stages
    chosen = next((spec for spec in among if number in (spec.name, spec.name[:2], spec.name[1:2])), None)
    if chosen is None:
        known = ", ".join(spec.name[:2] for spec in everything)
        raise StageError(f"unknown stage {number!r}; expected one of {known} (those from 06 on with --only)")
    if chosen in manifest.FURTHER:
        return [*((spec, "update") for spec in stages if spec.name[:2] in chosen.needs), (chosen, "run")]
    last = chosen if only else stages[-1]
    return [(spec, "want" if spec.name < chosen.name else "run") for spec in stages if spec.name <= last.name]


def check_notebook(path: Path) -> None:
    """One tagged cell that assigns plain literals to the parameters; else StageError.

    papermill injects its values after that cell, or on top where there is none; a value derived inside it stays stale.
    """
    cells = [cell for cell in store.read_json(path)["cells"] if "parameters" in cell["metadata"].get("tags", [])]
    names: list[str] = []
    with suppress(SyntaxError, ValueError, AttributeError):
        nodes = ast.parse("\n".join(map(manifest.source_of, cells))).body
        names = [node.targets[0].id for node in nodes if ast.literal_eval(node.value) is not None]
    if len(cells) != 1 or sorted(names) != sorted(PARAMETERS):
        wanted = f"one cell tagged 'parameters' that assigns plain literals to {', '.join(PARAMETERS)}"
        raise StageError(f"{path.name} needs {wanted}")


def _make(this: _Run, spec: manifest.StageSpec, place: str, later: float) -> None:
    """Run one stage and write down in the manifest what it depended on, what it made, and how it ended."""
    folder, stages = this.folder, manifest.load(this.folder).get("stages", {})
    before, made = stages.get(spec.name, {}), this.head | {"stages": stages}
    attempts = before.get("attempts", 0) + 1 if before.get("papermill_exit") != 0 else 1
    entry = {"papermill_exit": None, "run": this.token, "attempts": attempts, "commit": this.head["commit"]}
    stages[spec.name] = entry
    manifest.save(folder, made)
    depends_on = manifest.fingerprint(spec, this.settings, folder)
    for figure in manifest.digests(folder, [pattern for pattern in spec.outputs if pattern.endswith(".png")]):
        (folder / figure).unlink()  # of tasks that this run may not have
    started = time.monotonic()
    exit_code = _papermill(this, spec, place, later)
    seconds = round(time.monotonic() - started, 1)
    entry["papermill_exit"] = exit_code or 1  # a green exit without a record is not one
    manifest.save(folder, made)
    log = (folder / manifest.executed(spec)).with_suffix(".log")
    if exit_code != 0:
        raise StageError(f"stage {spec.name} failed: {_last_error(log)} (log: {log})")
    if manifest.recorded_run(folder, spec.name) != this.token:
        raise StageError(f"stage {spec.name} ended before its last cell, without an error (log: {log})")
    entry |= {"seconds": seconds, "peak_gib": store.read_json(record_path(folder, spec.name))["peak_gib"]}
    if spec == manifest.STAGES[-1]:
        _add_times(folder, stages)
    outputs = manifest.digests(folder, (*spec.outputs, manifest.executed(spec)))
    entry |= {"papermill_exit": exit_code, "depends_on": depends_on, "outputs": outputs}
    manifest.save(folder, made)
    _say(f"{place} done in {format_seconds(seconds)}", final=True)


def _add_times(folder: Path, stages: dict[str, dict]) -> None:
    """Time and peak memory of every stage, into the metrics; those of the last of several attempts."""
    metrics, names = store.read_json(folder / "metrics.json"), ("seconds", "peak_gib", "attempts")
    metrics["stages"] = {spec.name: {key: stages[spec.name][key] for key in names} for spec in manifest.STAGES}
    store.write_json(folder / "metrics.json", metrics)


def _papermill(this: _Run, spec: manifest.StageSpec, place: str, later: float) -> int:
    """Execute one notebook; returns papermill's exit code. The output goes to `notebooks/<stage>.log`."""
    for left in (record_path(this.folder, spec.name), this.folder / PROGRESS):  # by an earlier run or stage
        left.unlink(missing_ok=True)
    source, target = manifest.NOTEBOOKS / f"{spec.name}.ipynb", this.folder / manifest.executed(spec)
    log = target.with_suffix(".log")
    log.unlink(missing_ok=True)
    with open(log, "a", encoding="utf-8") as output:  # two processes may write
        process = this.waiting.pop() if this.waiting else _start(this, output)
        try:
            with suppress(BrokenPipeError), process.stdin as line:  # where it died meanwhile, the log says why
                line.write(json.dumps([str(part) for part in (log, source, target, *this.options)]))
            if later:  # another stage follows
                this.waiting.append(_start(this, output))
            _watch(process, place, this.folder, later)
        finally:
            _end([process])
    return process.returncode


def _start(this: _Run, output: TextIO) -> subprocess.Popen:
    """A process that imports papermill and then waits; what goes wrong until then is written to `output`."""
    environment = {**HUGE_PAGES, **os.environ, RUN_TOKEN: this.token, "PYTHONPATH": str(ROOT), STARTED_IN: os.getcwd()}
    # PR_SET_PDEATHSIG; the kernel ends with papermill
    ends_with_us = partial(ctypes.CDLL(None).prctl, 1, signal.SIGKILL) if sys.platform == "linux" else None
    pipes = {"stdin": subprocess.PIPE, "stdout": output, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, "-c", _PAPERMILL], env=environment, preexec_fn=ends_with_us, **pipes)


def _end(processes: Sequence[subprocess.Popen]) -> None:
    for process in processes:
        process.terminate()
        process.stdin.close()
        process.wait()


def _watch(process: subprocess.Popen, place: str, folder: Path, later: float) -> None:
    """Show the notebook's own progress until the process ends."""
    text, printed, then = "running", 0.0, f", then about {format_seconds(later)}" if later else ""
    while process.poll() is None:
        with suppress(OSError):
            text = (folder / PROGRESS).read_text(encoding="utf-8") or text
        if sys.stdout.isatty() or time.monotonic() - printed > _SILENCE_SECONDS:
            printed = time.monotonic()
            _say(f"{place if text == 'running' else place.partition(' ')[0]}: {text}{then}")
        time.sleep(0.2)


def _say(line: str, final: bool = False) -> None:
    if sys.stdout.isatty():
        print(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}", end="\n" if final else "", flush=True)
    else:
        print(line, flush=True)


def _last_error(log: Path) -> str:
    """The exception line of a papermill log, or what became of the kernel."""
    text = log.read_text(encoding="utf-8", errors="replace")
    if "DeadKernelError" in text or "Kernel died" in text:
        return "the kernel died, most likely out of memory"
    if "CellTimeoutError" in text:
        return "a cell took longer than --cell-timeout"
    errors = re.findall(r"^\s*([^:\n]*(?:Error|Exit|Interrupt|Exception)(?::.*)?)$", text, re.M)
    return (errors or text.strip().splitlines() or ["no output"])[-1].strip()


def results_table(folder: Path) -> str:
    """The demo's closing table: how many are sound before, after the warm-up and after training, and times."""
    metrics = store.read_json(folder / "metrics.json")
    students = [name for name in ("before", "warm_up", "after") if all(name in r for r in metrics["tasks"].values())]
    lines = ["".join([f"{'task, sound':12}{'problems':>9}", *(f"{name.replace('_', ' '):>24}" for name in students)])]
    for task, result in metrics["tasks"].items():
        shares = ([100 * r["sound"], *(100 * side for side in r["sound_ci95"])] for r in map(result.get, students))
        cells = ("{:.1f} % [{:.1f}, {:.1f}]".format(*each) for each in shares)
        lines.append("".join([f"{task:12}{result['n']:>9}", *(f"{cell:>24}" for cell in cells)]))
    times = [f"{name} {format_seconds(values['seconds'])}" for name, values in metrics["stages"].items()]
    return "\n".join([*lines, "time: " + ", ".join(times), f"results: {folder}"])

"""The stages as papermill runs: `fcdpo run --profile cpu`, and what notebooks need to take part in one.

Each stage is one notebook run in a process of its own, so that a dead kernel is seen as such. A stage succeeded
when papermill exited with 0 *and* its notebook wrote a completion record during this very run; cell states prove
nothing. This module knows the notebooks by name and nothing of what they compute.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcdpo_utils import store
from fcdpo_utils.profiles import Settings, SettingsError, load_settings
from fcdpo_utils.tasks.gsm8k import conversion_report, load_rows, report_table

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"
STAGES = (
    "01_function_definition",
    "02_teacher_chains",
    "03_preference_data",
    "04_student_training",
    "05_evaluation_and_plots",
)
_HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # read when a process starts; page faults cost much time
_SILENCE_SECONDS = 20  # how often a status line is printed where the output is no terminal


class StageError(Exception):
    """One line: which stage failed and why."""


# ---- inside a notebook


@dataclass(frozen=True)
class Stage:
    """What a notebook knows of its run: settings, the run directory, and its own name."""

    name: str
    settings: Settings
    run_dir: Path

    def path(self, name: str) -> Path:
        return self.run_dir / name

    def input(self, name: str, made_by: str) -> Path:
        """The artifact of an earlier stage; raises the one line "run 02 first: ..." where it is missing."""
        return store.require(self.run_dir / name, made_by)

    def progress(self, label: str) -> Callable[[int, int], None]:
        """A function (done, total) that keeps the run's status line up to date and prints sparsely by itself."""
        started, first = time.monotonic(), [-1]
        last_print = [started]

        def report(done: int, total: int) -> None:
            now = time.monotonic()
            if first[0] < 0:
                first[0] = done - 1  # what an earlier run had done took no time
            left = (now - started) / max(done - first[0], 1) * (total - done)
            status = {"stage": self.name, "label": label, "done": done, "total": total, "left_seconds": round(left)}
            with suppress(OSError):  # a status line is not worth dying for
                (self.run_dir / "progress.json").write_text(json.dumps(status), encoding="utf-8")
            if now - last_print[0] > 30 or done == total:
                last_print[0] = now
                print(f"{label}: {done}/{total}, {format_seconds(left)} left", flush=True)

        return report

    def record(self, **results: Any) -> None:
        """Write the stage's completion record: last cell of each notebook."""
        token = os.environ.get("FCDPO_RUN", "by hand")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        record = {"run": token, "peak_gib": round(peak, 2), **results}
        store.write_json(self.run_dir / f"{self.name[:2]}_record.json", record)


def start_stage(name: str, profile: str, run_dir: str = "", overrides: str = "") -> Stage:
    """Validate the settings and open the run directory (`outputs/<profile>` unless named)."""
    settings = load_settings(profile, overrides)
    folder = Path(run_dir).resolve() if run_dir else ROOT / "outputs" / profile  # the kernel has its own folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "progress.json").write_text("{}", encoding="utf-8")
    except OSError as error:
        raise store.StoreError(f"cannot write to run directory {folder}: {(error.strerror or '').lower()}") from None
    return Stage(name, settings, folder)


def commit() -> str:
    """The commit of the checkout, with "-dirty" where it has changes; "unknown" without git."""
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


# ---- around the notebooks


def format_seconds(seconds: float) -> str:
    """ "45 s" or "12 min"."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def run(profile: str, overrides: Sequence[str] = (), run_dir: Path | None = None) -> Path:
    """Run all stages; returns the run directory. Raises `StageError`, `SettingsError` or `StoreError`."""
    settings = load_settings(profile, overrides)
    stage = start_stage(STAGES[0], profile, str(run_dir or ""), shlex.join(overrides))
    folder, token = stage.run_dir, uuid.uuid4().hex
    (folder / "notebooks").mkdir(exist_ok=True)
    seconds: dict[str, dict[str, float]] = {}
    for index, name in enumerate(STAGES):
        later = sum(settings.expected_minutes[index + 1 :]) * 60
        started = time.monotonic()
        _run_stage(name, index, folder, token, profile, overrides, later)
        peak = store.read_json(folder / f"{name[:2]}_record.json")["peak_gib"]
        seconds[name] = {"seconds": round(time.monotonic() - started, 1), "peak_gib": peak}
        _say(f"[{index + 1}/{len(STAGES)}] {name} done in {format_seconds(seconds[name]['seconds'])}", final=True)
    metrics = store.read_json(folder / "metrics.json")
    metrics["stages"] = seconds
    store.write_json(folder / "metrics.json", metrics)
    return folder


def _run_stage(
    name: str, index: int, folder: Path, token: str, profile: str, overrides: Sequence[str], later: float
) -> None:
    record = folder / f"{name[:2]}_record.json"
    record.unlink(missing_ok=True)
    log = folder / "notebooks" / f"{name}.log"
    parameters = ["-r", "profile", profile, "-r", "run_dir", str(folder), "-r", "overrides", shlex.join(overrides)]
    command = [sys.executable, "-m", "papermill", str(NOTEBOOKS / f"{name}.ipynb"), str(log.with_suffix(".ipynb"))]
    command += [*parameters, "-k", "python3", "--no-progress-bar", "--cwd", str(NOTEBOOKS)]
    environment = {**_HUGE_PAGES, **os.environ, "FCDPO_RUN": token, "PYTHONPATH": str(ROOT)}
    with open(log, "w", encoding="utf-8") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            _watch(process, name, index, folder, later)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode != 0:
        raise StageError(f"stage {name} failed: {_last_error(log)} (log: {log})")
    if not record.exists() or store.read_json(record).get("run") != token:
        raise StageError(f"stage {name} ended before its last cell, without an error (log: {log})")


def _watch(process: subprocess.Popen, name: str, index: int, folder: Path, later: float) -> None:
    """Show the notebook's own progress until the process ends."""
    printed = 0.0
    while process.poll() is None:
        try:
            status = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            status = {}
        if status.get("stage") == name:
            left = status["left_seconds"]
            text = f"{status['label']} {status['done']}/{status['total']}, {format_seconds(left)} left in this step"
        else:
            text = "running"
        line = f"[{index + 1}/{len(STAGES)}] {name}: {text}, then about {format_seconds(later)} for later stages"
        if sys.stdout.isatty() or time.monotonic() - printed > _SILENCE_SECONDS:
            printed = time.monotonic()
            _say(line)
        time.sleep(0.5)


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


def main(arguments: Sequence[str] | None = None) -> int:
    """The `fcdpo` command. Exit code 0 only when every stage completed; errors are one line on stderr."""
    parser = argparse.ArgumentParser(prog="fcdpo", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("run", help="run notebooks 01 to 05 under papermill")
    command.add_argument("--profile", default="cpu")
    command.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="such as teacher.samples=8")
    command.add_argument("--run-dir", type=Path, help="default: outputs/<profile>")
    command = commands.add_parser(
        "gsm8k", help="how many rows of a GSM8K file convert to chains, and why others do not"
    )
    command.add_argument("path", type=Path)
    options = parser.parse_args(arguments)
    try:
        if options.command == "gsm8k":
            print(report_table(conversion_report(load_rows(options.path))))
        else:
            print(results_table(run(options.profile, options.set, options.run_dir)))
    except (StageError, SettingsError, store.StoreError, OSError, ValueError) as error:
        print(f"fcdpo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nfcdpo: interrupted; what was finished is kept, run the same command to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

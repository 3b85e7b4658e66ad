"""What a notebook needs to take part in a run: its settings, the run directory, a status line, a completion record.

Notebooks import this module; `pipeline`, which runs them, reads what it writes. Knows nothing of what they compute.
"""

from __future__ import annotations

import ast
import fcntl
import json
import os
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fcdpo_utils import store
from fcdpo_utils.profiles import Settings, SettingsError, load_settings
from fcdpo_utils.provenance import ROOT

PARAMETERS = ("profile", "run_dir", "overrides")
RUN_TOKEN = "FCDPO_RUN"  # environment variable: which run a kernel belongs to
_ORPHAN_SECONDS = 60  # how long a stage waits for the kernel of a killed run to end
_locks: list[IO[str]] = []  # kept open, and so held, until the kernel ends


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
        """A function (done, total, note) that keeps the run's status line up to date and prints sparsely by itself."""
        started, first = time.monotonic(), [-1]
        last_print = [started]

        def report(done: int, total: int, note: str = "") -> None:
            now = time.monotonic()
            if first[0] < 0:
                first[0] = done - 1  # what an earlier run had done took no time
            each = (now - started) / max(done - first[0], 1)
            left, rate = each * (total - done), f", {1 / max(each, 1e-3):.1f}/s" if each < 30 else ""
            text = f"{label} {done}/{total}{note and f', {note}'}{rate}"
            status = {"stage": self.name, "text": text, "left_seconds": round(left)}
            with suppress(OSError):  # a status line is not worth dying for
                (self.run_dir / "progress.json").write_text(json.dumps(status), encoding="utf-8")
            if now - last_print[0] > 30 or done == total:
                last_print[0] = now
                print(f"{text}, {format_seconds(left)} left", flush=True)

        return report

    def record(self, **results: Any) -> None:
        """Write the stage's completion record: last cell of each notebook."""
        token = os.environ.get(RUN_TOKEN, "by hand")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        record = {"run": token, "peak_gib": round(peak, 2), **results}
        store.write_json(record_path(self.run_dir, self.name), record)


def record_path(run_dir: Path, stage: str) -> Path:
    """Where a stage's completion record is."""
    return run_dir / f"{stage[:2]}_record.json"


def start_stage(name: str, profile: str, run_dir: str = "", overrides: str = "") -> Stage:
    """Validate the settings and open the run directory (`outputs/<profile>` unless named).

    Raises `SettingsError` or `StoreError` with one line.
    """
    _refuse_unknown_parameters()
    settings = load_settings(profile, overrides)
    folder = open_run_dir(profile, run_dir)
    if RUN_TOKEN in os.environ:  # notebooks open in an editor may share a folder; two runs may not
        _locks.append(lock(folder / "stage.lock", _ORPHAN_SECONDS))
    return Stage(name, settings, folder)


def open_run_dir(profile: str, run_dir: str = "") -> Path:
    """The run directory, made and found writable."""
    folder = Path(run_dir).resolve() if run_dir else ROOT / "outputs" / profile  # the kernel has its own folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "progress.json").write_text("{}", encoding="utf-8")
    except OSError as error:
        raise store.StoreError(f"cannot write to run directory {folder}: {(error.strerror or '').lower()}") from None
    return folder


def lock(path: Path, patience: float = 0) -> IO[str]:
    """Hold `path` against other processes until it is closed or this process ends; StoreError after `patience` s."""
    file, deadline = open(path, "w", encoding="utf-8"), time.monotonic() + patience  # noqa: SIM115
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise store.StoreError(f"another run is at work in {path.parent}; wait for it or stop it") from None
            time.sleep(0.2)


def _refuse_unknown_parameters() -> None:
    """papermill injects misspelt parameters with a mere warning; what it injected is a cell of assignments."""
    with suppress(NameError):  # outside IPython there is nothing to look at
        for source in get_ipython().user_ns["In"]:  # noqa: F821  (IPython's own)
            if source.startswith("# Parameters\n"):
                names = [node.targets[0].id for node in ast.parse(source).body if isinstance(node, ast.Assign)]
                for name in sorted(set(names) - set(PARAMETERS)):
                    raise SettingsError(f"unknown parameter {name!r}; expected one of {', '.join(PARAMETERS)}")


def format_seconds(seconds: float) -> str:
    """ "45 s" or "12 min"."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"

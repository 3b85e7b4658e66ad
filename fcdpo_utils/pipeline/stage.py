"""What a notebook needs to take part in a run: its settings, the run directory, a status line, a completion record.

Notebooks import this module; `pipeline`, which runs them, reads what it writes. Knows nothing of what they compute.
"""

import ast
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from filelock import AcquireReturnProxy, FileLock, Timeout
from tqdm import tqdm

from fcdpo_utils import store
from fcdpo_utils.fingerprint import ROOT
from fcdpo_utils.lab.settings import load_settings
from fcdpo_utils.settings import Settings, SettingsError

PARAMETERS = ("profile", "run_dir", "overrides")
RUN_TOKEN = "FCDPO_RUN"  # environment variable: which run a kernel belongs to
PROGRESS = "progress.txt"  # how far the stage that runs is, on one line
_BAR = "{desc} |{bar:10}| {n_fmt}/{total_fmt}{postfix}, {remaining} left"  # in tqdm's words
_ORPHAN_SECONDS = 60  # how long a stage waits for the kernel of a killed run to end
_locks: list[AcquireReturnProxy] = []  # held until the kernel ends


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
        """A function (done, total, note) that keeps the run's status bar up to date and prints a line when all is done.

        In an open notebook the bar stands there until then. It is text and no widget: what is stored is the line alone.
        """
        started, shown, before, show = time.monotonic(), 0.0, None, None

        def report(done: int, total: int, note: str = "") -> None:
            nonlocal before, shown, show
            show = show or _display()  # nothing is shown of what never begins
            before, now = done - 1 if before is None else before, time.monotonic()  # what an earlier run did took none
            look = {"ascii": True, "bar_format": _BAR, "initial": before, "postfix": note}
            text = tqdm.format_meter(done, total, now - started, prefix=label, **look)
            with suppress(OSError):  # a status line is not worth dying for
                (self.run_dir / PROGRESS).write_text(text, encoding="utf-8")
            if done == total:
                show(f"{label} {done}/{total}{note and f', {note}'}")
            elif show is not print and now - shown > 0.2:
                show(text)
                shown = now

        return report

    def record(self, **results: Any) -> None:
        """Write the stage's completion record: last cell of each notebook."""
        made = {"run": os.environ.get(RUN_TOKEN, "by hand"), "settings": self.settings.model_dump(mode="json")}
        store.write_json(record_path(self.run_dir, self.name), {**made, "peak_gib": round(_peak_gib(), 2), **results})


def _display() -> Callable[[str], None]:
    """Shows a text in the place of the one before, in a notebook that is open; elsewhere `print`."""
    from IPython import display, get_ipython  # slow to import, and the notebooks have done so

    if RUN_TOKEN in os.environ or not hasattr(get_ipython(), "kernel"):
        return print
    place = display.display(display_id=True)  # empty so far
    return lambda text: place.update({"text/plain": text}, raw=True)


def record_path(run_dir: Path, stage: str) -> Path:
    """Where a stage's completion record is; the number of the stage will do."""
    return run_dir / f"{stage[:2]}_record.json"


def start_stage(name: str, profile: str, run_dir: str = "", overrides: str = "") -> Stage:
    """Validated settings and an open run directory (`outputs/<profile>` unless named); SettingsError or StoreError."""
    _refuse_unknown_parameters()
    settings, folder = load_settings(profile, overrides), open_run_dir(profile, run_dir)
    if RUN_TOKEN in os.environ:  # notebooks open in an editor may share a folder; two runs may not
        _locks.append(lock(folder / "stage.lock", _ORPHAN_SECONDS))
    return Stage(name, settings, folder)


def open_run_dir(profile: str, run_dir: str = "") -> Path:
    """The run directory, made and found writable."""
    # the kernel has its own folder; a profile may be a file
    folder = Path(run_dir).resolve() if run_dir else ROOT / "outputs" / Path(profile).stem
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / PROGRESS).write_text("", encoding="utf-8")
    except OSError as error:
        raise store.StoreError(f"cannot write to run directory {folder}: {(error.strerror or '').lower()}") from None
    return folder


def lock(path: Path, patience: float = 0) -> AcquireReturnProxy:
    """Hold `path` against other processes until released or this process ends; StoreError after `patience` s."""
    try:
        return FileLock(path).acquire(timeout=patience, poll_interval=0.2)
    except Timeout:
        raise store.StoreError(f"another run is at work in {path.parent}; wait for it or stop it") from None


def _peak_gib() -> float:
    """The most memory that this process has held at once."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**30
    import resource  # Unix only

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (30 if sys.platform == "darwin" else 20)


def _refuse_unknown_parameters() -> None:
    """papermill injects misspelt parameters with a mere warning; what it injected is a cell of assignments."""
    with suppress(NameError):  # outside IPython there is nothing to look at
        for source in get_ipython().user_ns["In"]:  # noqa: F821  (IPython's own)
            if source.startswith("# Parameters\n"):
                names = {node.targets[0].id for node in ast.parse(source).body if isinstance(node, ast.Assign)}
                if unknown := names - {*PARAMETERS}:
                    raise SettingsError(f"unknown parameter {min(unknown)!r}; expected one of {', '.join(PARAMETERS)}")


def format_seconds(seconds: float) -> str:
    """ "45 s" or "12 min"."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"

"""What 100,000 stored chains cost: opening, resuming and labelling them.

    python benchmarks/store.py [--chains 100000] [--json F]

The chains are the scripted teacher's, 1,000 for each of 100 problems of the profile `paper`, stored as a model's would
be. Each step has a process of its own, for its peak memory; labelling opens the file again. The bar: together under
20 s and 2 GB.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fcdpo_utils import chains, store
from fcdpo_utils.lab.settings import load_settings
from fcdpo_utils.preferences import build_preferences
from fcdpo_utils.problems import Problem
from fcdpo_utils.settings import Settings
from fcdpo_utils.tasks.making import make_problems
from fcdpo_utils.teachers import build_teacher
from fcdpo_utils.teachers.making import make_chains

STEPS = ("open", "resume", "label")


def problems_of(settings: Settings) -> list[Problem]:
    made = [problem for name, task in settings.tasks.items() for problem in make_problems(name, task, settings.seed)]
    return [problem for problem in made if problem.split == "train"]


def settings_of(samples: int) -> Settings:
    sizes = ["tasks.fol.train=50", "tasks.arithmetic.train=50", "tasks.fol.test=1", "tasks.arithmetic.test=1"]
    return load_settings(
        "paper", [*sizes, "teacher.kind=scripted", f"teacher.samples={samples}", "teacher.min_per_label=0"]
    )


def fill(path: Path, settings: Settings) -> None:
    """All chains in one write: `make_chains` would flush each to the disk."""
    pending: list[store.Record] = []
    append, store.append = store.append, lambda _, records: pending.extend(records)
    try:
        make_chains(path, problems_of(settings), settings, build_teacher, lambda *_: None)
    finally:
        store.append = append
    store.write_records(path, pending)


def step(name: str, path: Path, samples: int) -> dict[str, float]:
    """Seconds and peak memory of one step, imports not counted."""
    settings = settings_of(samples)
    problems = problems_of(settings)
    work: dict[str, Callable[[], object]] = {
        "open": lambda: chains.load_chains(path),
        "resume": lambda: make_chains(path, problems, settings, build_teacher, lambda *_: None),
        "label": lambda: build_preferences(chains.load_chains(path), settings.preferences.label),
    }
    started = time.perf_counter()
    work[name]()
    seconds = time.perf_counter() - started
    return {"seconds": round(seconds, 1), "gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chains", type=int, default=100_000)
    parser.add_argument("--json", type=Path, default=Path("outputs/benchmark_store.json"))
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    samples = options.chains // 100
    if options.step:
        print(json.dumps(step(options.step, options.path, samples)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chains.jsonl"
        fill(path, settings_of(samples))
        report: dict[str, object] = {"chains": 100 * samples, "megabytes": round(path.stat().st_size / 1e6)}
        for name in STEPS:
            command = [sys.executable, __file__, "--step", name, "--path", str(path), "--chains", str(options.chains)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            report[name] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(report))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""What the runner costs: `fcdpo run` against bare execution of the same five notebooks with nbclient.

    python benchmarks/runner.py [--repeats 2] [--json F]

Both run the profile `smoke` from nothing, in turn, each in a process of its own with the same environment; prints
seconds, CPU seconds (user and system, of all processes; Unix), and what the runner adds to them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from fcdpo_utils.pipeline import manifest, runner


def bare(folder: Path) -> None:
    """Every notebook in a kernel of its own, parameters written into their cell, no papermill."""
    for spec in manifest.STAGES:
        notebook = nbformat.read(manifest.NOTEBOOKS / f"{spec.name}.ipynb", as_version=4)
        (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
        cell.source = f'profile = "smoke"\nrun_dir = "{folder}"\noverrides = ""'
        resources = {"metadata": {"path": str(manifest.NOTEBOOKS)}}
        NotebookClient(notebook, kernel_name="python3", timeout=None, resources=resources).execute()
        nbformat.write(notebook, folder / f"{spec.name}.ipynb")


def measured(name: str) -> dict[str, float]:
    """Seconds, and CPU seconds, of one execution in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "fcdpo_utils.pipeline.cli", "run", "--profile", "smoke", "--run-dir", folder]
        if name == "bare":
            command = [sys.executable, __file__, "--bare", folder]
        started, before = time.perf_counter(), os.times()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds, after = time.perf_counter() - started, os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return {"seconds": round(seconds, 2), "cpu_seconds": round(spent, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path, default=Path("outputs/benchmark_runner.json"))
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        return bare(options.bare)
    os.environ |= {**runner.HUGE_PAGES, "PYTHONPATH": str(runner.ROOT)}
    runs: dict[str, list[dict[str, float]]] = {"bare": [], "runner": []}
    measured("bare")  # warm up: the student is converted, the reference cache filled
    for number in range(2 * options.repeats):
        name = ("bare", "runner")[(number + number // 2) % 2]  # bare, runner, runner, bare: drift cancels
        runs[name].append(measured(name))
        print(f"{name}: {runs[name][-1]['seconds']} s, {runs[name][-1]['cpu_seconds']} s of CPU", flush=True)
    report = {"runs": runs, "overhead": {}}
    for key in ("seconds", "cpu_seconds"):
        of_bare, of_runner = (statistics.median(run[key] for run in runs[name]) for name in runs)
        report["overhead"] |= {key: round(of_runner - of_bare, 2), f"{key}_share": round(of_runner / of_bare - 1, 4)}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=2) + "\n")
    more = report["overhead"]
    print(f"the runner adds {more['seconds']} s a run ({more['seconds_share']:.1%}), {more['cpu_seconds']} s of CPU")


if __name__ == "__main__":
    main()

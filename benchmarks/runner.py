"""What the runner costs: `fcdpo run` against bare execution of the same five notebooks with nbclient.

    python benchmarks/runner.py [--repeats 2] [--json F]

Both run the profile `smoke` from nothing, in turn, with the same environment; prints seconds and their ratio.
"""

import argparse
import json
import os
import statistics
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path, default=Path("outputs/benchmark_runner.json"))
    options = parser.parse_args()
    os.environ |= {**runner.HUGE_PAGES, "PYTHONPATH": str(runner.ROOT)}
    seconds: dict[str, list[float]] = {"bare": [], "runner": []}
    with tempfile.TemporaryDirectory() as folder:
        bare(Path(folder))  # warm up: the student is converted, the reference cache filled
    for number in range(2 * options.repeats):
        name = ("bare", "runner")[(number + number // 2) % 2]  # bare, runner, runner, bare: drift cancels
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            bare(Path(folder)) if name == "bare" else runner.run("smoke", run_dir=Path(folder))
            seconds[name].append(round(time.perf_counter() - started, 2))
        print(f"{name}: {seconds[name][-1]} s", flush=True)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    report = {"seconds": seconds, "overhead": round(medians["runner"] / medians["bare"] - 1, 4)}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=2) + "\n")
    print(f"overhead of the runner: {report['overhead']:.1%}")


if __name__ == "__main__":
    main()

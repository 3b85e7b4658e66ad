"""The training of a run on several GPUs, each with its share of every step:

    accelerate launch -m fcdpo_utils.pipeline.train --profile paper

The warm-up is trained in the same way; the student's own chains are sampled by the first process.
A step has the same prompts however many share it (but for the last one of an epoch that does not divide evenly, where
some come twice): notebook 04 then finds the training done, and one that was interrupted goes on with another number of
GPUs.
"""

import argparse
import sys
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path

from fcdpo_utils import engine, store
from fcdpo_utils.chains import prompts_of
from fcdpo_utils.fingerprint import ROOT
from fcdpo_utils.lab.settings import load_settings
from fcdpo_utils.onpolicy import preference_data
from fcdpo_utils.problems import load_problems
from fcdpo_utils.students import ModelError
from fcdpo_utils.teachers.own import prepare
from fcdpo_utils.train import train_student
from fcdpo_utils.trainer import distributed_state


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the student of a run whose notebooks 01 to 03 are done; returns the exit code."""
    parser = argparse.ArgumentParser(prog="accelerate launch -m fcdpo_utils.pipeline.train", description=main.__doc__)
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="as for fcdpo run")
    parser.add_argument("--run-dir", type=Path, help="default: outputs/<profile>")
    options = parser.parse_args(arguments)
    # the others wait while the first one downloads the student and passes the references
    distributed_state(timeout=timedelta(hours=6))
    try:
        settings = load_settings(options.profile, options.set)
        folder = options.run_dir or ROOT / "outputs" / Path(options.profile).stem
        store.require(folder / "groups.jsonl", "03")
        prompts = prompts_of(load_problems(folder / "problems.jsonl", "train"), settings)
        progress = partial(partial, _print_progress)
        start = prepare(folder, settings, engine, progress)
        data = preference_data(start.problems, start.teachers, start.own, settings)
        made = train_student(folder, data, prompts, settings, engine, progress, start.adapter)
    except (ModelError, store.StoreError, ValueError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 1
    if distributed_state().is_main_process:
        print(f"{made.steps} steps, {made.pairs} pairs, adapter in {folder / 'adapter'}")
    return 0


def _print_progress(label: str, done: int, total: int, note: str = "") -> None:
    """A line for every twentieth part, from the main process alone."""
    if distributed_state().is_main_process and done % max(total // 20, 1) == 0:
        print(f"{label} {done}/{total}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

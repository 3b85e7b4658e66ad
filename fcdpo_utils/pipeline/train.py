"""The training of a run on several GPUs, each with its share of every step:

    accelerate launch -m fcdpo_utils.pipeline.cli train --profile paper

The warm-up is trained in the same way; the student's own chains are sampled by the first process.
A step has the same prompts however many share it (but for the last one of an epoch that does not divide evenly, where
some come twice): notebook 04 then finds the training done, and one that was interrupted goes on with another number of
GPUs.
"""

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
from fcdpo_utils.teachers.own import prepare
from fcdpo_utils.train import train_student
from fcdpo_utils.trainer import distributed_state


def train(profile: str = "cpu", set: Sequence[str] = (), run_dir: Path | None = None) -> None:
    """Train the student of a run whose notebooks 01 to 03 are done."""
    # the others wait while the first one downloads the student and passes the references
    distributed_state(timeout=timedelta(hours=6))
    settings, folder = load_settings(profile, set), run_dir or ROOT / "outputs" / Path(profile).stem
    store.require(folder / "groups.jsonl", "03")
    prompts = prompts_of(load_problems(folder / "problems.jsonl", "train"))
    progress = partial(partial, _print_progress)
    start = prepare(folder, settings, engine, progress)
    data = preference_data(start.problems, start.teachers, start.own, settings)
    made = train_student(folder, data, prompts, settings, engine, progress, start.adapter)
    if distributed_state().is_main_process:
        print(f"{made.steps} steps, {made.pairs} pairs, adapter in {folder / 'adapter'}")


def _print_progress(label: str, done: int, total: int, note: str = "") -> None:
    """A line for every twentieth part, from the main process alone."""
    if distributed_state().is_main_process and done % max(total // 20, 1) == 0:
        print(f"{label} {done}/{total}", flush=True)

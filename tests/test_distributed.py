"""Data-parallel training: two processes (gloo, on the CPU) do what one does on the same prompts."""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from fcdpo_utils import store
from fcdpo_utils.settings import TrainingSettings
from fcdpo_utils.trainer import share_of_a_step

ROOT = Path(__file__).parents[1]
SCRIPT = Path(__file__).with_name("one_of_several.py")
pytestmark = pytest.mark.xdist_group("distributed")
Trained = tuple[dict[str, torch.Tensor], list[dict]]  # adapters and curve
CHANGES = [
    ("prompts_per_step=4",),  # a process passes two prompts together
    ("prompts_per_step=1", "accumulation=4"),  # or two, one after the other
    ("prompts_per_step=2", "pack_tokens=64"),  # or one, which one of the two has to split
]
STOPPED = ("prompts_per_step=2",)


def run(processes: int, trainings: list[tuple[Path, int, tuple[str, ...]]]) -> list[Trained]:
    """Of each (folder, after how many steps to stop, settings): three epochs over four prompts, each step shared by
    so many processes, which take the trainings one after the other."""
    words: list[str] = []
    for folder, stop_after, changes in trainings:
        folder.mkdir(exist_ok=True)
        words += [str(folder), str(stop_after), *changes, "--"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]  # as accelerate does
    command = [sys.executable, *(launch if processes > 1 else []), str(SCRIPT), *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    options = {"capture_output": True, "text": True, "env": environment, "timeout": 900}
    done = subprocess.run(command, check=False, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    folders = [folder for folder, *_ in trainings]
    return [(load_file(f / f"{i}.safetensors"), store.read_json(f / f"{i}.json")) for i, f in enumerate(folders)]


class Runs(NamedTuple):
    """By settings, from two processes and from one; and a training that two began and one went on with, twice."""

    shared: dict[tuple[str, ...], Trained]
    alone: dict[tuple[str, ...], Trained]
    begun: Trained
    resumed: list[Trained]
    folder: Path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """All of them in two launches: processes that train take seconds to start."""
    folder = tmp_path_factory.mktemp("distributed")
    named = {name: [(folder / f"{name}{i}", 0, change) for i, change in enumerate(CHANGES)] for name in "12"}
    whole = (folder / "whole", 0, STOPPED)
    *shared, begun = run(2, [*named["2"], whole, (folder / "parts", 4, STOPPED)])
    alone = run(1, [*named["1"], *[(folder / "parts", 0, STOPPED)] * 2])
    by_changes = (dict(zip([*CHANGES, STOPPED], made, strict=False)) for made in (shared, alone[:3]))
    return Runs(*by_changes, begun, alone[3:], folder)


def assert_close(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> None:
    assert some.keys() == others.keys()
    for name, weights in some.items():
        assert torch.allclose(weights, others[name], rtol=1e-5, atol=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize("changes", CHANGES, ids=" ".join)
def test_two_processes_take_the_steps_of_one(runs: Runs, changes: tuple[str, ...]) -> None:
    (alone, curve_alone), (shared, curve_shared) = runs.alone[changes], runs.shared[changes]
    assert_close(alone, shared)
    assert max(float(weights.abs().max()) for name, weights in alone.items() if "lora_B" in name) > 1e-3  # it learnt
    steps = 6 if changes[0] == "prompts_per_step=2" else 3
    assert len(curve_alone) == len(curve_shared) == steps
    means = ("rewards/margins", "rewards/accuracies", "logps/chosen")  # over pairs, then over accumulated passes
    for name in ("loss", "num_pairs", *(() if "accumulation" in changes[-1] else means)):
        assert [row[name] for row in curve_alone] == pytest.approx([row[name] for row in curve_shared], abs=1e-4), name
    assert curve_alone[-1]["num_pairs"] == 3 * 11
    kept = [references(runs.folder / f"{processes}{CHANGES.index(changes)}") for processes in "12"]
    assert kept[0] == kept[1] and kept[0]


def references(folder: Path) -> list[tuple[str, float]]:
    with closing(sqlite3.connect(folder / "references.sqlite")) as database:
        return database.execute("SELECT * FROM log_probs ORDER BY key").fetchall()


@pytest.mark.slow
def test_one_process_goes_on_where_two_stopped(runs: Runs) -> None:
    """After four of six steps; and once they are done, as notebook 04 finds them after `accelerate launch`."""
    whole, steps = runs.shared[STOPPED]
    for found, all_steps in runs.resumed:
        assert_close(found, whole)
        assert (len(runs.begun[1]), len(all_steps), len(steps)) == (4, 6, 6)


def test_a_step_is_shared_evenly_or_not_at_all() -> None:
    def shares(prompts: int, passes: int, processes: int) -> tuple[int, int]:
        settings = TrainingSettings(prompts_per_step=prompts, accumulation=passes)
        return share_of_a_step(settings, processes)

    assert shares(4, 1, 1) == (4, 1) and shares(4, 3, 1) == (4, 3)
    assert shares(4, 1, 2) == (2, 1) and shares(4, 3, 2) == (2, 3) and shares(1, 4, 2) == (1, 2)
    assert shares(4, 3, 6) == (2, 1) and shares(6, 2, 4) == (3, 1)
    with pytest.raises(ValueError, match=r"prompts_per_step x training.accumulation is 4: choose a multiple of 3"):
        shares(1, 4, 3)

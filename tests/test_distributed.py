"""Data-parallel training: two processes (gloo, on the CPU) do what one does on the same prompts."""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fcdpo_utils import store
from fcdpo_utils.settings import TrainingSettings
from fcdpo_utils.trainer import share_of_a_step

ROOT = Path(__file__).parents[1]
SCRIPT = Path(__file__).with_name("one_of_several.py")


def run(folder: Path, processes: int, *changes: str, stop_after: int = 0) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """Adapters and curve of three epochs over four prompts, each step shared by so many processes."""
    folder.mkdir(exist_ok=True)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]  # as accelerate does
    command = [sys.executable, *(launch if processes > 1 else []), str(SCRIPT), str(folder), str(stop_after), *changes]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    options = {"capture_output": True, "text": True, "env": environment, "timeout": 300}
    done = subprocess.run(command, check=False, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(folder / "lora.safetensors"), store.read_json(folder / "curve.json")


def assert_close(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> None:
    assert some.keys() == others.keys()
    for name, weights in some.items():
        assert torch.allclose(weights, others[name], rtol=1e-5, atol=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        ("prompts_per_step=4",),  # a process passes two prompts together
        ("prompts_per_step=1", "accumulation=4"),  # or two, one after the other
        ("prompts_per_step=2", "pack_tokens=64"),  # or one, which one of the two has to split
    ],
    ids=" ".join,
)
def test_two_processes_take_the_steps_of_one(tmp_path: Path, changes: tuple[str, ...]) -> None:
    (alone, curve_alone), (shared, curve_shared) = run(tmp_path / "1", 1, *changes), run(tmp_path / "2", 2, *changes)
    assert_close(alone, shared)
    assert max(float(weights.abs().max()) for name, weights in alone.items() if "lora_B" in name) > 1e-3  # it learnt
    steps = 6 if changes[0] == "prompts_per_step=2" else 3
    assert len(curve_alone) == len(curve_shared) == steps
    means = ("rewards/margins", "rewards/accuracies", "logps/chosen")  # over pairs, then over accumulated passes
    for name in ("loss", "num_pairs", *(() if "accumulation" in changes[-1] else means)):
        assert [row[name] for row in curve_alone] == pytest.approx([row[name] for row in curve_shared], abs=1e-4), name
    assert curve_alone[-1]["num_pairs"] == 3 * 11
    assert references(tmp_path / "2") == references(tmp_path / "1")


def references(folder: Path) -> list[tuple[str, float]]:
    with closing(sqlite3.connect(folder / "references.sqlite")) as database:
        return database.execute("SELECT * FROM log_probs ORDER BY key").fetchall()


@pytest.mark.slow
def test_one_process_goes_on_where_two_stopped(tmp_path: Path) -> None:
    """After four of six steps; and once they are done, as notebook 04 finds them after `accelerate launch`."""
    whole, steps = run(tmp_path / "whole", 2, "prompts_per_step=2")
    _, begun = run(tmp_path / "parts", 2, "prompts_per_step=2", stop_after=4)
    for _ in range(2):
        found, all_steps = run(tmp_path / "parts", 1, "prompts_per_step=2")
        assert_close(found, whole)
        assert (len(begun), len(all_steps), len(steps)) == (4, 6, 6)


def test_a_step_is_shared_evenly_or_not_at_all() -> None:
    def shares(prompts: int, passes: int, processes: int) -> tuple[int, int]:
        settings = TrainingSettings(prompts_per_step=prompts, accumulation=passes)
        return share_of_a_step(settings, processes)

    assert shares(4, 1, 1) == (4, 1) and shares(4, 3, 1) == (4, 3)
    assert shares(4, 1, 2) == (2, 1) and shares(4, 3, 2) == (2, 3) and shares(1, 4, 2) == (1, 2)
    assert shares(4, 3, 6) == (2, 1) and shares(6, 2, 4) == (3, 1)
    with pytest.raises(ValueError, match=r"prompts_per_step x training.accumulation is 4: choose a multiple of 3"):
        shares(1, 4, 3)

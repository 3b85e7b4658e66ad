"""Data-parallel training: two processes (gloo, on the CPU) do what one does on the same blocks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fcdpo_utils import store

ROOT = Path(__file__).parents[1]
SCRIPT = Path(__file__).with_name("one_of_several.py")


def run(folder: Path, processes: int) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """Adapters and curve of three steps of four blocks each, shared by so many processes."""
    folder.mkdir()
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]  # as accelerate does
    command = [sys.executable, *(launch if processes > 1 else []), str(SCRIPT), str(folder), str(4 // processes)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(folder / "lora.safetensors"), store.read_json(folder / "curve.json")


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    (alone, curve_alone), (shared, curve_shared) = run(tmp_path / "one", 1), run(tmp_path / "two", 2)
    assert alone.keys() == shared.keys() and len(curve_alone) == len(curve_shared) == 3
    for name, weights in alone.items():
        assert torch.allclose(weights, shared[name], rtol=1e-5, atol=1e-6), name
    assert max(float(weights.abs().max()) for name, weights in alone.items() if "lora_B" in name) > 1e-3  # it learnt
    assert [row["num_pairs"] for row in curve_alone] == [row["num_pairs"] for row in curve_shared] == [11, 22, 33]
    assert store.read(tmp_path / "two" / "references.jsonl") == store.read(tmp_path / "one" / "references.jsonl")

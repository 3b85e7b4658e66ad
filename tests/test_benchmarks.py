"""The benchmark for GPUs, rehearsed on a small model: every part runs and every figure is there."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fcdpo_utils import store
from fcdpo_utils.fingerprint import ROOT


@pytest.mark.nightly
def test_the_gpu_benchmark_runs_whole_on_a_small_model(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/gpu.py", "--tiny", "--json", str(tmp_path / "out.json")]
    parts = ["hardware", "training", "rollouts"]  # the pipeline of --tiny is `smoke`, which other tests run
    done = subprocess.run([*command, "--only", *parts], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    report = store.read_json(tmp_path / "out.json")
    assert report["hardware"]["copy_gb_per_second"] > 0
    training = report["training"]
    assert "failed" not in training and training["pairs"] == 6 * 8 * 8 and 0 < training["share_of_peak"] < 1
    assert training["peak_gb"] > 0 and training["told_gb"] > 0 and training["commit"]
    assert len(training["trl"]) == 2 and any("failed" not in trial for trial in training["trl"])
    for part in ("rollouts_nf4", "rollouts_16_bit"):
        assert all(report[part][f"ratio_to_{peer}"] > 0 for peer in ("microchain", "generate"))


def test_without_a_gpu_only_the_rehearsal_runs() -> None:
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here: python benchmarks/gpu.py runs")
    done = subprocess.run([sys.executable, "benchmarks/gpu.py"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "no CUDA device here; --tiny rehearses on a CPU" in done.stderr

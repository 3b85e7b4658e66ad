"""Benchmarks rehearsed on small models: every part runs and every figure is there."""

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fcdpo_utils import store
from fcdpo_utils.engine.decoding import PendingTokens
from fcdpo_utils.fingerprint import ROOT
from fcdpo_utils.settings import StudentSettings


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


def test_without_a_gpu_only_the_rehearsal_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here: python benchmarks/gpu.py runs")
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "benchmarks" / "gpu.py"), run_name="__main__")
    assert end.value.code == 2 and "no CUDA device here; --tiny rehearses on a CPU" in capsys.readouterr().err


def run(*command: str) -> str:
    """What a benchmark prints."""
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.nightly
def test_accuracy_over_minutes_ends_when_trl_had_as_many_steps_and_as_long(
    tmp_path: Path, load_small_student: Callable[..., tuple]
) -> None:
    for part in load_small_student(StudentSettings()):
        part.save_pretrained(tmp_path / "student")
    sizes = "tasks={arithmetic: {train: 6, test: 3, levels: [2]}}"
    small = [sizes, f"student.source={tmp_path / 'student'}", "student.dtype=float32", "evaluation.turn_tokens=8"]
    options = ["--steps", "3", "--every", "2", "--batches", "2", "--json", str(tmp_path / "out.json"), "--set", *small]
    assert "ours, on" in run("benchmarks/dpo.py", "--to-accuracy", *options)
    report = store.read_json(tmp_path / "out.json")
    ours, stock = report["runs"]["ours"], report["runs"]["TRL, 2 pairs a step"]
    assert [row["step"] for row in ours] == [0, 2, 3] and ours[0]["pairs"] == 0 < ours[-1]["pairs"]
    assert stock[-1]["seconds"] >= 4 * ours[-1]["seconds"] or (
        stock[-1]["step"] >= 3 and stock[-1]["seconds"] >= ours[-1]["seconds"]
    )
    assert all(row["pairs"] == 2 * row["step"] for row in stock) and (tmp_path / "out.png").exists()
    assert "ours, on" not in run("benchmarks/dpo.py", "--to-accuracy", *options)  # what is there is kept


def test_the_ratio_is_of_the_times_to_the_same_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from to_accuracy import compared

    def rows(*points: tuple[int, float, int]) -> list[dict[str, float]]:
        return [{"step": step, "seconds": seconds, "sound": sound} for step, seconds, sound in points]

    runs = {
        "ours": rows((0, 1, 0), (4, 10, 1), (8, 20, 3)),
        "TRL, 1": rows((0, 0, 0), (4, 12, 0), (8, 24, 1)),
        "TRL, 2": rows((0, 0, 0), (4, 30, 2), (8, 60, 2)),
    }
    report = compared(runs, steps=8, total=10)
    assert report["sound_after_as_many_steps"] == {"ours": 3, "TRL, 1": 1, "TRL, 2": 2}
    assert report["sound_after_as_long"] == {"ours": 3, "TRL, 1": 1, "TRL, 2": 2}
    assert report["seconds_to"] == {
        "10 %": {"ours": 10, "TRL, 1": 24, "TRL, 2": 30, "ratio": 2.4},
        "20 %": {"ours": 20, "TRL, 1": None, "TRL, 2": 30, "ratio": 1.5},
        "30 %": {"ours": 20, "TRL, 1": None, "TRL, 2": None, "ratio": None},
    }


def test_without_llama_cpp_its_benchmark_says_so_in_one_line(tmp_path: Path) -> None:
    there = tmp_path / "python"
    printed = run("benchmarks/rollouts.py", "--llama-python", str(there), "--json", str(tmp_path / "out.json"))
    assert printed == f"llama.cpp: skipped, {there} cannot import llama_cpp (pip install llama-cpp-python)\n"


FAKE_LLAMA_CPP = """
import ctypes

texts, outputs = {}, {}  # by sequence; by place in the batch

class Batch: ...

def llama_batch_init(size, *_):
    batch = Batch()
    batch.token, batch.pos, batch.logits, batch.n_seq_id = ([0] * size for _ in range(4))
    batch.seq_id = [[0] for _ in range(size)]
    return batch

def llama_decode(context, batch):
    for place in range(batch.n_tokens):
        text = texts.setdefault(batch.seq_id[place][0], [])
        if batch.pos[place] != len(text):
            return -1  # as llama.cpp: positions of a sequence follow each other
        text.append(batch.token[place])
        outputs[place] = (ctypes.c_float * 97)()
        outputs[place][sum(i * token for i, token in enumerate(text, 1)) % 97] = 1
    return 0

def llama_get_logits_ith(context, place):
    return ctypes.cast(outputs[place], ctypes.POINTER(ctypes.c_float))

def llama_memory_seq_rm(memory, sequence, start, end):
    del texts.setdefault(sequence, [])[max(start, 0):]

def llama_memory_seq_cp(memory, source, target, start, end):
    texts[target] = list(texts[source])

llama_memory_clear = lambda *_: texts.clear()
llama_vocab_n_tokens = lambda _: 97
llama_context_default_params = Batch
llama_log_callback = lambda function: function

def __getattr__(name):
    return lambda *_: None
"""


def test_llama_cpp_is_fed_the_tokens_of_each_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from rollouts import LlamaEngine

    (tmp_path / "llama_cpp.py").write_text(FAKE_LLAMA_CPP)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    command = [sys.executable, str(ROOT / "benchmarks" / "llama_peer.py"), "m.gguf", "1", "3", "64", "unified"]

    def expected(*texts: list[int]) -> list[int]:
        return [sum(i * token for i, token in enumerate([5, 6, *text], 1)) % 97 for text in texts]

    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer:
        engine = LlamaEngine(peer, [], None, [5, 6])

        def said(*chains: PendingTokens) -> list[int]:
            return engine.feed(chains).argmax(-1).tolist()

        a, b, c = (PendingTokens(pending=ids) for ids in ([1, 2, 3], [4], [7, 8]))
        assert said(a, b, c) == expected([1, 2, 3], [4], [7, 8]) and (a.cached, a.pending) == (3, [])
        engine.move([2], [0])  # a is finished, c takes its place
        c.pending, b = [9], PendingTokens(pending=[10, 11])  # and another chain that of b
        assert said(c, b) == expected([7, 8, 9], [10, 11])
        peer.stdin.close()


LLAMA = "FCDPO_LLAMA_PYTHON"


@pytest.mark.skipif(LLAMA not in os.environ, reason=f"{LLAMA} names no Python that has llama-cpp-python")
def test_llama_cpp_answers_as_our_engine_does(tmp_path: Path) -> None:
    options = ["--llama-python", os.environ[LLAMA], "--llama-batches", "1", "4", "--json", str(tmp_path / "out.json")]
    run("benchmarks/rollouts.py", *options)
    for row in store.read_json(tmp_path / "out.json")["rows"]:
        assert row["same_first_turns"] > 0 and 0 <= row["outside"] < 1 and row["ratio"] > 0


@pytest.mark.nightly
def test_a_step_is_computed_in_other_ways_with_the_same_gradients(tmp_path: Path) -> None:
    said = run("benchmarks/step.py", "--steps", "1", "--variants", "peft", "flash,norms", "--json", str(tmp_path / "f"))
    assert said.count("ratio") == 3
    assert all(0 < figures["share_of_peak"] < 1 for figures in store.read_json(tmp_path / "f")["variants"].values())

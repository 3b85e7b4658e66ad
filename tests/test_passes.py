"""Passes of many chains as a specification: recorded or not, they say the same, and no GPU would have to wait."""

from __future__ import annotations

import contextlib
import gc
import random
import weakref
from collections import Counter
from functools import partial

import pytest
import torch
from test_rollout import problems
from torch.fx.experimental.proxy_tensor import make_fx
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from fcdpo_utils import passes as passes_module
from fcdpo_utils import rollout as rollout_module
from fcdpo_utils.agent import Chain, Episode, Limits
from fcdpo_utils.dpo import batch_log_probs, grouped_dpo_loss
from fcdpo_utils.passes import ATTENTION, NewRecorder, Pass, Passes, Row
from fcdpo_utils.rollout import Sampling, rollout
from fcdpo_utils.tasks import TASKS
from fcdpo_utils.tokens import Tokens
from fcdpo_utils.trees import attention_in, tree_attention_in


def sampled(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int, **sampling: object
) -> list[Chain]:
    """Chains of very different lengths, of two tasks: with forced tokens in between, places refilled, the end thin."""
    asked = problems(9) + problems(4, "fol")
    episodes = [
        Episode(TASKS[problem.task], problem, limits=Limits(calls=1 + 3 * (number % 4), errors=20))
        for number, problem in enumerate(asked)
    ]
    return rollout(model, tokenizer, episodes, Sampling(1.0, 7, batch_size, **sampling))


def frozen(run: Pass) -> Pass:
    """What a CUDA graph does, on a CPU: tensor operations alone are recorded, with the tensors that they met."""
    recorded = make_fx(lambda _: run())(torch.zeros(1))
    return lambda: recorded(torch.zeros(1))


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_recorded_passes_say_what_others_say(
    tiny_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
    batch_size: int,
) -> None:
    replayed: list[torch.Size] = []

    def record(run: Pass) -> Pass:
        replay = frozen(run)

        def counted() -> torch.Tensor:
            logits = replay()
            replayed.append(logits.shape)
            return logits

        return counted

    expected = sampled(tiny_model, tokenizer, batch_size)
    monkeypatch.setattr(rollout_module, "new_recorder_on", lambda device: lambda: record)
    assert sampled(tiny_model, tokenizer, batch_size, cuda_graphs=True) == expected
    assert len(replayed) > 40
    assert sampled(tiny_model, tokenizer, batch_size) == expected


def test_several_chunks_are_recorded_too(tiny_model: LlamaForCausalLM) -> None:
    """Rows that feed several tokens at once, other ones each time, while the batch gets smaller and the cache grows."""
    shapes: Counter[tuple[int, int]] = Counter()
    made = passes_module._Recorded.__init__

    def counted(self: object, passes: Passes, spare: int, rows: int, chunks: int) -> None:
        shapes[rows, chunks] += 1
        made(self, passes, spare, rows, chunks)

    def all_logits(new_recorder: NewRecorder | None) -> list[torch.Tensor]:
        rng, passes = random.Random(0), Passes(tiny_model, [7] * 20, new_recorder)
        rows, found = [Row(pending=[5 + place] * 3) for place in range(6)], []
        for number in range(60):
            found.append(passes.feed(rows).clone())
            if number == 40:
                passes.move([5, 4], [0, 1])
                rows = [rows[5], rows[4], rows[2]]
            chunks = rng.sample(range(len(rows)), number % 4)
            for place, row in enumerate(rows):
                row.pending = [rng.randrange(100) for _ in range(rng.randint(2, 12) if place in chunks else 1)]
        return found

    with torch.inference_mode(), attention_in(tiny_model, ATTENTION):
        plain = all_logits(None)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(passes_module._Recorded, "__init__", counted)
            recorded = all_logits(lambda: frozen)
    assert all(torch.allclose(some, others, rtol=0, atol=1e-9) for some, others in zip(plain, recorded, strict=True))
    assert {(6, 0), (6, 1), (6, 2), (6, 4), (3, 0)} <= shapes.keys()


def test_a_device_that_cannot_record_goes_on_without(
    tiny_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def record(run: Pass) -> Pass:
        raise RuntimeError("CUDA error: operation not permitted\nwhen stream is capturing")

    expected = sampled(tiny_model, tokenizer, 8)
    monkeypatch.setattr(rollout_module, "new_recorder_on", lambda device: lambda: record)
    assert sampled(tiny_model, tokenizer, 8, cuda_graphs=True) == expected
    line = "recording a pass failed, going on without: CUDA error: operation not permitted"
    assert capsys.readouterr().out.splitlines() == [line] * 2  # one for each task


def test_a_finished_rollout_holds_no_memory(
    tiny_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not until Python looks for circles, either: the next rollout asks at once how much is free."""
    made: list[weakref.ref[Passes]] = []
    first = Passes.feed
    monkeypatch.setattr(Passes, "feed", lambda self, rows: made.append(weakref.ref(self)) or first(self, rows))
    monkeypatch.setattr(
        rollout_module, "new_recorder_on", lambda device: lambda: lambda run: partial(torch.clone, run())
    )
    gc.collect()
    gc.disable()
    try:
        sampled(tiny_model, tokenizer, 8, cuda_graphs=True)
        assert made and all(passes() is None for passes in made)
    finally:
        gc.enable()


@pytest.mark.parametrize("new_recorder", [None, lambda: lambda run: run], ids=["as they come", "of fixed shapes"])
def test_a_rollout_waits_for_no_value_before_the_choice(
    tiny_model: LlamaForCausalLM, new_recorder: NewRecorder | None
) -> None:
    """Tensors on "meta" have no values and meet no others: whoever reads one, as a GPU would have to wait, fails."""
    model = tiny_model.to("meta")
    rows = [Row(pending=[5] * count) for count in (4, 9, 1, 30)]
    with torch.inference_mode(), attention_in(model, ATTENTION):
        passes = Passes(model, [7] * 20, new_recorder)
        for number in range(12):
            logits = passes.feed(rows[: 4 - number // 4])
            assert logits.device.type == "meta" and logits.shape == (4 - number // 4, model.config.vocab_size)
            for index, row in enumerate(rows):
                row.pending = [5] * (9 if index == number % 4 and number % 2 else 1)


def test_training_waits_for_no_value_either(tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # knows no "meta"
    model = tiny_model.to("meta")
    policy = (False,) * 30 + (True,) * 20
    sequences = [Tokens((*range(30), *range(first, first + 20)), policy, 30) for first in (40, 50, 60)]
    for row_tokens in (1_000, 80):
        with tree_attention_in(model):
            log_probs, _, passes = batch_log_probs(model, sequences, row_tokens)
            grouped_dpo_loss(log_probs[:1], log_probs[1:]).backward()
        assert log_probs.shape == (3,) and (passes > 1) == (row_tokens == 80)
        assert all(weight.grad is not None for weight in model.model.layers.parameters())


@pytest.mark.gpu
def test_passes_are_recorded_on_cuda(
    tiny_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    replayed: list[int] = []
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: replayed.append(1) or replay(graph))
    model = tiny_model.float().to("cuda")
    expected = sampled(model, tokenizer, 8)
    assert sampled(model, tokenizer, 8, cuda_graphs=True) == expected and len(replayed) > 40

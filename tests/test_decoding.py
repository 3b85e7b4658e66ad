"""Passes of many chains as a specification: each sees its own tokens alone, and no GPU would have to wait."""

import contextlib
import gc
import random
import weakref

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from fcdpo_utils import engine
from fcdpo_utils.engine.decoding import ATTENTION, DecodeEngine, PendingTokens
from fcdpo_utils.engine.trees import attention_in
from fcdpo_utils.episode import Episode, Limits
from fcdpo_utils.loss import grouped_dpo_loss
from fcdpo_utils.plain import Sampling
from fcdpo_utils.problems import TASKS
from fcdpo_utils.tokens import Tokens

PREFIX = [7] * 20


def test_every_pass_gives_the_logits_of_each_chain_alone(few_words_model: LlamaForCausalLM) -> None:
    """Chains that feed one token or several, other ones each time, while the batch gets smaller and the cache grows."""
    rng, chains = random.Random(0), [PendingTokens(pending=[5 + place] * 3) for place in range(6)]
    said = [[*PREFIX, *chain.pending] for chain in chains]
    with torch.inference_mode():
        with attention_in(few_words_model, ATTENTION):
            decoding = DecodeEngine(few_words_model, PREFIX)
        for number in range(30):
            with attention_in(few_words_model, ATTENTION):
                logits = decoding.feed(chains)
            for row, ids in zip(logits, said, strict=True):
                alone = few_words_model(torch.tensor([ids])).logits[0, -1].float()
                assert torch.allclose(row, alone, rtol=1e-4, atol=1e-5)
            if number == 20:
                decoding.move([5, 4], [0, 1])
                chains, said = ([some[place] for place in (5, 4, 2)] for some in (chains, said))
            several = rng.sample(range(len(chains)), number % 4)
            for place, (chain, ids) in enumerate(zip(chains, said, strict=True)):
                chain.pending = [rng.randrange(64) for _ in range(rng.randint(2, 12) if place in several else 1)]
                ids += chain.pending
    assert max(map(len, said)) > len(PREFIX) + 64  # the cache has grown


def test_a_finished_rollout_holds_no_memory(
    tiny_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not until Python looks for circles, either: the next rollout asks at once how much is free."""
    made: list[weakref.ref[DecodeEngine]] = []
    feed = DecodeEngine.feed
    monkeypatch.setattr(DecodeEngine, "feed", lambda self, rows: made.append(weakref.ref(self)) or feed(self, rows))
    asked = TASKS["arithmetic"].generate(3, "test", 0, levels=(2,))
    episodes = [Episode(TASKS["arithmetic"], problem, limits=Limits(calls=2)) for problem in asked]
    gc.collect()
    gc.disable()
    try:
        engine.rollout(tiny_model, tokenizer, episodes, Sampling(1.0, 5, batch_size=2))
        assert made and all(reference() is None for reference in made)
    finally:
        gc.enable()


# Tensors on "meta" have no values and meet no others: whoever reads one, as a GPU would have to wait, fails.


def test_a_rollout_waits_for_no_value_before_the_choice(few_words_model: LlamaForCausalLM) -> None:
    model = few_words_model.to("meta")
    chains = [PendingTokens(pending=[5] * count) for count in (4, 9, 1, 30)]
    with torch.inference_mode(), attention_in(model, ATTENTION):
        decoding = DecodeEngine(model, PREFIX)
        for number in range(12):
            logits = decoding.feed(chains[: 4 - number // 4])
            assert logits.device.type == "meta" and logits.shape == (4 - number // 4, model.config.vocab_size)
            for index, chain in enumerate(chains):
                chain.pending = [5] * (9 if index == number % 4 and number % 2 else 1)


def test_training_waits_for_no_value_either(few_words_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # knows no "meta"
    model = few_words_model.to("meta")
    policy = (False,) * 30 + (True,) * 20
    sequences = [Tokens((*range(30), *range(first, first + 20)), policy, 30) for first in (30, 35, 40)]
    for pack_tokens in (1_000, 80):
        with engine.while_training(model):
            log_probs, _, passes = engine.log_probs(model, sequences, pack_tokens)
            grouped_dpo_loss(log_probs[:1], log_probs[1:]).backward()
        assert log_probs.shape == (3,) and (passes > 1) == (pack_tokens == 80)
        assert all(weight.grad is not None for weight in model.model.layers.parameters())

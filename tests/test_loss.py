"""The losses as a specification: the grouped DPO loss is the mean over all pairs, with the gradient of the method."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small import TOKENS, adapted, expanded_loss, families, gradients
from torch.nn.functional import logsigmoid
from transformers import LlamaForCausalLM

from fcdpo_utils import engine
from fcdpo_utils.loss import expanded_dpo_loss, grouped_dpo_loss, log_odds, sequence_log_prob, sft_loss
from fcdpo_utils.tokens import Tokens

REWARDS = st.lists(st.floats(-20, 20), min_size=1, max_size=6)


def tensor(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_an_untrained_policy_has_loss_log_2() -> None:
    assert grouped_dpo_loss(torch.zeros(3), torch.zeros(2)).item() == pytest.approx(0.6931, abs=1e-4)


@given(REWARDS, REWARDS)
def test_the_grouped_loss_is_the_mean_over_all_pairs(chosen: list[float], rejected: list[float]) -> None:
    w, l = tensor(chosen), tensor(rejected)
    mean = torch.stack([-logsigmoid(a - b) for a in w for b in l]).mean()
    assert grouped_dpo_loss(w, l).item() == pytest.approx(mean.item(), rel=1e-9)
    assert expanded_dpo_loss(w, l).item() == pytest.approx(mean.item(), rel=1e-9)


@given(REWARDS, REWARDS)
def test_its_gradient_is_the_formula_of_the_method(chosen: list[float], rejected: list[float]) -> None:
    w, l = tensor(chosen).requires_grad_(), tensor(rejected)
    (got,) = torch.autograd.grad(grouped_dpo_loss(w, l), w)
    expected = -torch.sigmoid(l[None, :] - w.detach()[:, None]).sum(1) / (len(w) * len(l))
    assert torch.allclose(got, expected, rtol=1e-9, atol=1e-12)


@given(st.lists(st.tuples(st.floats(-20, 20), st.floats(-20, 20)), min_size=1, max_size=6))
def test_the_loss_without_augmentation_is_the_mean_over_pairs_of_equal_place(pairs: list[tuple[float, float]]) -> None:
    chosen, rejected = map(tensor, zip(*pairs, strict=True))
    alone = [grouped_dpo_loss(w[None], l[None]) for w, l in zip(chosen, rejected, strict=True)]
    assert torch.allclose(grouped_dpo_loss(chosen, rejected, all_pairs=False), torch.stack(alone).mean())


def test_the_sft_loss_is_the_mean_over_tokens_not_over_completions() -> None:
    assert sft_loss(tensor([-6.0, -1.0]), tensor([3.0, 4.0])).item() == 1.0


@given(st.floats(1e-3, 0.999), st.integers(1, 50))
def test_log_odds_are_of_the_tokens_mean_probability(p: float, tokens: int) -> None:
    log_prob, count = tensor([tokens * math.log(p)]), tensor([tokens])
    assert log_odds(log_prob, count).item() == pytest.approx(math.log(p / (1 - p)), rel=1e-9, abs=1e-9)
    sure = torch.zeros(1, requires_grad=True)  # rounded to certainty: neither infinite nor of infinite slope
    log_odds(sure, count).backward()
    assert 10 < log_odds(sure, count).item() < 20 and sure.grad.isfinite().all()


def test_a_log_probability_is_the_sum_over_the_policys_tokens_alone(few_words_model: LlamaForCausalLM) -> None:
    (tokens, _), log_probs = TOKENS[:2], few_words_model(torch.tensor([TOKENS[0].ids])).logits[0].log_softmax(-1)
    expected = log_probs[3, 30] + log_probs[5, 40]  # the result in between, 31, is the environment's
    assert sequence_log_prob(few_words_model, tokens).item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("pack_tokens", [10_000, 16], ids=["one-pass", "flat-memory"])
def test_loss_and_every_gradient_equal_those_of_expanded_pairs_in_fp32(
    few_words_model: LlamaForCausalLM, pack_tokens: int
) -> None:
    model = adapted(few_words_model.float(), 0.05)
    same = Tokens((3, 10), (False, True), 1)  # as likely as the longer one: nothing to learn from this group

    @settings(max_examples=20, deadline=None)
    @given(families(most=10), st.integers(1, 9), st.integers(0, 99))
    @example([same, same, Tokens((3, 3, 10), (False, False, True), 1)], 2, 0)
    def check(sequences: list[Tokens], k: int, seed: int) -> None:
        k = min(k, len(sequences) - 1)
        log_probs, _, _ = engine.log_probs(model, sequences, pack_tokens)
        noise = torch.randn(len(sequences), generator=torch.Generator().manual_seed(seed))
        reference = log_probs.detach() + 5 * noise
        rewards = 0.1 * (log_probs - reference)
        got, expected = grouped_dpo_loss(rewards[:k], rewards[k:]), expanded_loss(model, sequences, k, reference, 0.1)
        assert got.item() == pytest.approx(expected.item(), rel=1e-5)
        # Terms of equal size may cancel, down to zero: what is left then is the rounding of the terms.
        term = torch.cat([weights.flatten() for weights in gradients(model, rewards[0])]).norm()
        rounding = 1e-6 * len(sequences) * term
        for ours, theirs in zip(gradients(model, got), gradients(model, expected), strict=True):
            assert (ours - theirs).norm() <= 1e-5 * theirs.norm() + rounding

    check()

"""Token trees as a specification: one row for many sequences, and nothing but speed changes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM, MistralConfig, Phi3Config, Qwen2Config

from fcdpo_utils.tokens import Tokens
from fcdpo_utils.trees import build_tree, sequence_log_probs

SLOW_OK = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@st.composite
def families(draw: st.DrawFn) -> list[Tokens]:
    """Ragged sequences over a small alphabet, so that they share prefixes by chance and by construction."""
    prompt = draw(st.lists(st.integers(3, 5), min_size=1, max_size=300))
    sequences = []
    for _ in range(draw(st.integers(1, 8))):
        body = draw(st.lists(st.tuples(st.integers(3, 5), st.booleans()), max_size=12))
        ids = (*prompt, *(i for i, _ in body), 6)
        policy = (*(False for _ in prompt), *(flag for _, flag in body), True)
        sequences.append(Tokens(ids, policy, len(prompt)))
    return sequences


def one_by_one(model: nn.Module, sequences: list[Tokens]) -> torch.Tensor:
    """The definition: one ordinary causal pass per sequence."""
    totals = []
    for tokens in sequences:
        log_probs = model(torch.tensor([tokens.ids]), attention_mask=torch.ones(1, len(tokens.ids))).logits[0]
        log_probs = log_probs.log_softmax(-1)
        places = [t for t in range(1, len(tokens.ids)) if tokens.policy[t]]
        totals.append(sum(log_probs[t - 1, tokens.ids[t]] for t in places))
    return torch.stack(totals)


def gradients(model: nn.Module, value: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(value, [p for p in model.parameters() if p.requires_grad]))


@SLOW_OK
@given(families())
def test_log_probs_equal_those_of_one_pass_per_sequence(tiny_model: LlamaForCausalLM, sequences: list[Tokens]) -> None:
    with torch.no_grad():
        expected = one_by_one(tiny_model, sequences)
        got = sequence_log_probs(tiny_model, build_tree(sequences))
    assert torch.allclose(got, expected, rtol=1e-9, atol=1e-9)


@SLOW_OK
@given(families(), st.integers(0, 1000))
def test_gradients_equal_those_of_one_pass_per_sequence(
    tiny_model: LlamaForCausalLM, sequences: list[Tokens], seed: int
) -> None:
    model = adapted(tiny_model)
    weights = torch.randn(len(sequences), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = gradients(model, (weights * one_by_one(model, sequences)).sum())
    got = gradients(model, (weights * sequence_log_probs(model, build_tree(sequences))).sum())
    for a, b in zip(got, expected, strict=True):
        assert (a - b).norm() <= 1e-6 * b.norm() + 1e-6  # the library's norm layers compute in float32 throughout


def adapted(model: nn.Module) -> nn.Module:
    """LoRA on every linear layer, its second factor not zero, so that all adapters get a gradient."""
    if not hasattr(model, "disable_adapter"):
        model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")).double()
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(sliding_window=None, num_key_value_heads=2),
        Qwen2Config(num_key_value_heads=4),
        Phi3Config(num_key_value_heads=4, pad_token_id=0, sliding_window=None),
    ],
    ids=["mistral", "qwen2", "phi3"],
)
def test_other_students_agree_too(config) -> None:
    config.update({"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2})
    config.update({"num_attention_heads": 4})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).double()
    sequences = [Tokens((3, 4, 5, *tail), (False, False, True, *[True] * len(tail)), 2) for tail in ((6,), (7, 8), ())]
    with torch.no_grad():
        got, expected = sequence_log_probs(model, build_tree(sequences)), one_by_one(model, sequences)
    assert torch.allclose(got, expected, rtol=1e-9)


@given(families())
def test_a_shared_prefix_stands_once(sequences: list[Tokens]) -> None:
    prefixes = {tuple(zip(s.ids, s.policy, strict=True))[:end] for s in sequences for end in range(1, len(s.ids) + 1)}
    assert len(build_tree(sequences)) == len(prefixes)


def test_cost_grows_with_the_completions_not_with_the_pairs() -> None:
    prompt = tuple(range(10, 110))

    def block(size: int) -> int:
        chains = [Tokens((*prompt, 200 + n, 7, 8), (*[False] * 100, True, True, True), 100) for n in range(2 * size)]
        return len(build_tree(chains))

    assert [block(size) for size in (1, 2, 4, 8)] == [100 + 3 * 2 * size for size in (1, 2, 4, 8)]


def test_a_token_that_is_policy_in_one_sequence_only_branches() -> None:
    mine, theirs = Tokens((1, 2, 3), (False, True, True), 1), Tokens((1, 2, 3), (False, False, True), 1)
    assert len(build_tree([mine, theirs])) == 5


def test_the_model_is_left_as_it_was(tiny_model: LlamaForCausalLM) -> None:
    before = tiny_model.config._attn_implementation, tiny_model.get_output_embeddings()
    sequence_log_probs(tiny_model, build_tree([Tokens((1, 2), (False, True), 1)]))
    assert (tiny_model.config._attn_implementation, tiny_model.get_output_embeddings()) == before

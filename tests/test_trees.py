"""Token trees as a specification: one row for many sequences, and nothing but speed changes."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel
from small import adapted, families, gradients, one_by_one
from transformers import AutoModelForCausalLM, LlamaForCausalLM, MistralConfig, Phi3Config, Qwen2Config

from fcdpo_utils.engine.trees import build_tree, common_prefix, sequence_log_probs
from fcdpo_utils.tokens import Tokens

SLOW_OK = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@SLOW_OK
@given(families(300, fewest=1))
def test_log_probs_equal_those_of_one_pass_per_sequence(
    few_words_model: LlamaForCausalLM, sequences: list[Tokens]
) -> None:
    with torch.no_grad():
        expected = one_by_one(few_words_model, sequences)
        got = sequence_log_probs(few_words_model, build_tree(sequences))
    assert torch.allclose(got, expected, rtol=1e-9, atol=1e-9)


@pytest.fixture
def adapted_model(few_words_model: LlamaForCausalLM) -> PeftModel:
    return adapted(few_words_model)


@SLOW_OK
@given(families(300, fewest=1), st.integers(0, 1000))
def test_gradients_equal_those_of_one_pass_per_sequence(
    adapted_model: PeftModel, sequences: list[Tokens], seed: int
) -> None:
    model = adapted_model
    weights = torch.randn(len(sequences), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = gradients(model, (weights * one_by_one(model, sequences)).sum())
    got = gradients(model, (weights * sequence_log_probs(model, build_tree(sequences))).sum())
    for a, b in zip(got, expected, strict=True):
        # the library's norm layers compute in float32 throughout: up to 3e-6 was met
        assert (a - b).norm() <= 1e-5 * b.norm() + 1e-6


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


@given(families(fewest=1))
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


def test_the_model_is_left_as_it_was(few_words_model: LlamaForCausalLM) -> None:
    before = few_words_model.config._attn_implementation, few_words_model.get_output_embeddings()
    sequence_log_probs(few_words_model, build_tree([Tokens((1, 2), (False, True), 1)]))
    assert (few_words_model.config._attn_implementation, few_words_model.get_output_embeddings()) == before


@given(st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=1, max_size=5))
def test_a_common_prefix_is_the_longest_that_all_share(sequences: list[list[int]]) -> None:
    lengths = [n for n in range(7) if all(len(s) >= n and s[:n] == sequences[0][:n] for s in sequences)]
    assert common_prefix(sequences) == max(lengths)

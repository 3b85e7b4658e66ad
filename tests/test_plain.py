"""The engine is held to the plain version: the same functions, the same numbers, the same chains."""

import inspect
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel
from small import GROUPS, SmokeData, adapted, families, gradients, silent, trainer_of
from templates import FAMILIES, speaking
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from fcdpo_utils import engine, plain
from fcdpo_utils.episode import Chain, Episode, Limits
from fcdpo_utils.lab.settings import load_settings
from fcdpo_utils.loss import expanded_dpo_loss, grouped_dpo_loss
from fcdpo_utils.plain import Sampling
from fcdpo_utils.preferences import Preferences
from fcdpo_utils.problems import TASKS, Problem
from fcdpo_utils.tokens import Tokens, turn_ends
from fcdpo_utils.train import tokenise, train_student
from fcdpo_utils.trainer import curve

ROOMS = [plain, engine]
FUNCTIONS = plain.Engine.__annotations__
EXAMPLES = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_both_offer_the_function_with_the_same_parameters(name: str) -> None:
    ours, plainly = (inspect.signature(getattr(room, name)).parameters for room in (engine, plain))
    assert list(ours) == list(plainly)
    required = [parameter.name for parameter in ours.values() if parameter.default is parameter.empty]
    assert set(required) >= {p.name for p in plainly.values() if p.default is p.empty}


def test_the_engine_offers_nothing_else() -> None:
    assert set(engine.__all__) == {*FUNCTIONS}


# Log-probabilities


@pytest.fixture
def student(few_words_model: LlamaForCausalLM) -> PeftModel:
    return adapted(few_words_model)


@EXAMPLES
@given(families(), st.sampled_from([10_000, 16]), st.integers(0, 99))
def test_log_probabilities_and_their_gradients_are_the_same(
    student: PeftModel, sequences: list[Tokens], pack_tokens: int, seed: int
) -> None:
    weights = torch.randn(len(sequences), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected, read, _ = plain.log_probs(student, sequences)
    got, passed, _ = engine.log_probs(student, sequences, pack_tokens)
    assert torch.allclose(got, expected, rtol=1e-9, atol=1e-9) and passed <= read
    for ours, theirs in zip(
        gradients(student, (weights * got).sum()), gradients(student, (weights * expected).sum()), strict=True
    ):
        # the library's norm layers compute in float32 throughout
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm() + 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_for_the_chats_of_every_template(
    tiny_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, smoke_data: SmokeData, family: str
) -> None:
    """Several chains of each of two prompts, whose instructions are shared, too."""
    speaker = speaking(tokenizer, FAMILIES[family])
    tiny_model.resize_token_embeddings(len(speaker), mean_resizing=False)
    preferences = smoke_data.preferences
    chosen = [index for group in preferences.groups[:2] for index in (*group.chosen, *group.rejected)[:3]]
    tokens = tokenise(preferences, smoke_data.prompts, speaker)
    sequences = [tokens[index] for index in chosen]
    with torch.no_grad():
        expected, read, _ = plain.log_probs(tiny_model, sequences)
        got, passed, _ = engine.log_probs(tiny_model, sequences, 10_000)
    assert torch.allclose(got, expected, rtol=1e-9) and passed < read / 2


def test_reference_log_probabilities_are_the_same(few_words_model: LlamaForCausalLM, tmp_path: Path) -> None:
    @EXAMPLES
    @given(families(), st.sampled_from([10_000, 16]))
    def check(sequences: list[Tokens], pack_tokens: int) -> None:
        values = [room.reference_log_probs(few_words_model, sequences, pack_tokens, tmp_path / "c") for room in ROOMS]
        assert values[1] == pytest.approx(values[0], rel=1e-9)

    check()
    assert (tmp_path / "c").exists()  # the engine's, which keeps them


@given(*[st.lists(st.floats(-20, 20), min_size=1, max_size=6)] * 2)
def test_the_grouped_loss_is_the_expanded_one(chosen: list[float], rejected: list[float]) -> None:
    w, l = (torch.tensor(values, dtype=torch.float64, requires_grad=True) for values in (chosen, rejected))
    grouped, expanded = grouped_dpo_loss(w, l), expanded_dpo_loss(w, l)
    assert grouped.item() == pytest.approx(expanded.item(), rel=1e-12)
    for ours, theirs in zip(*(torch.autograd.grad(loss, (w, l)) for loss in (grouped, expanded)), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-15)


# Rollouts


@pytest.fixture
def speaker(tiny_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """Says single digits, which never make one token together, and ends its turns.

    The plain loop tokenises the whole chat again at each turn; of other words it would then read other tokens.
    """
    said = [tokenizer.convert_tokens_to_ids(word) for word in "12345"]
    assert tokenizer("1234512", add_special_tokens=False)["input_ids"] == [said[int(c) - 1] for c in "1234512"]
    others = torch.full((tiny_model.config.vocab_size,), -torch.inf, dtype=torch.float64)
    others[[*said, max(turn_ends(tokenizer))]] = 0
    tiny_model.get_output_embeddings().register_forward_hook(lambda module, inputs, logits: logits + others)
    return tiny_model


def problems() -> list[Problem]:
    return TASKS["arithmetic"].generate(2, "test", 0, levels=(2,)) + TASKS["fol"].generate(2, "test", 0, levels=(1,))


def episodes() -> list[Episode]:
    limits = [Limits(calls=calls, errors=9) for calls in (3, 1, 2, 3)]
    return [Episode(TASKS[p.task], p, limits=own) for p, own in zip(problems(), limits, strict=True)]


@pytest.mark.parametrize("sampling", [Sampling(0.0, 5), Sampling(1.0, 5, 2, seed=3)], ids=["greedy", "sampled"])
def test_rollouts_are_the_same(
    speaker: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, sampling: Sampling
) -> None:
    chains: list[list[Chain]] = []
    written: list[list[int]] = []
    for room in ROOMS:
        acting, finished = episodes(), []
        made = room.rollout(speaker, tokenizer, acting, sampling, [4, 5, 6, 7], finished.append)
        assert sorted(map(id, finished)) == sorted(map(id, acting))
        chains.append(made)
        written.append([episode.usage.written for episode in acting])
    assert chains[0] == chains[1] and written[0] == written[1]
    assert [len(chain.steps) for chain in chains[0]] == [3, 1, 2, 3]
    if sampling.temperature:
        said = [step.call for chain in chains[0] for step in chain.steps]
        assert len(set(said)) > 5 and min(map(len, said)) < 5 == max(
            map(len, said)
        )  # some end of themselves, others are cut


def test_neither_starts_what_is_not_admitted(speaker: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    made = []
    for room in ROOMS:
        answers = iter([True, True])
        options = {"admit": lambda answers=answers: next(answers, False)}
        made.append(room.rollout(speaker, tokenizer, episodes(), Sampling(0.0, 3), **options))
    assert made[0] == made[1] and [chain.problem_id for chain in made[0]] == [p.id for p in problems()[:2]]


# Training


def test_one_training_with_each_gives_the_same_losses(
    smoke_data: SmokeData, small_student: None, tmp_path: Path
) -> None:
    chosen = load_settings("smoke", ["student.dtype=float32", "preferences.max_chosen=2", "preferences.max_rejected=1"])
    usable = tuple(group for group in smoke_data.preferences.groups if group.usable)
    data = Preferences(smoke_data.preferences.completions, usable[:2])
    summaries = [
        train_student(tmp_path / room.__name__, data, smoke_data.prompts, chosen, room, silent) for room in ROOMS
    ]
    plainly, ours = map(vars, summaries)
    for name in ("loss_first", "loss_end", "margin_end"):
        assert ours[name] == pytest.approx(plainly[name], rel=1e-4, abs=1e-5), name
    assert (ours["pairs"], ours["steps"]) == (plainly["pairs"], plainly["steps"])
    assert ours["tokens"] < plainly["tokens"] and ours["fingerprint"] != plainly["fingerprint"]


def test_every_step_has_the_same_loss(
    few_words_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    rows, model = [], few_words_model.float()
    for room in ROOMS:
        trainer = trainer_of(model, tokenizer, tmp_path / room.__name__, "training.epochs=4", groups=GROUPS, room=room)
        trainer.train()
        rows.append(curve(trainer))
        model = trainer.model.unload()
    for name in ("loss", "rewards/margins", "logps/chosen", "logps/rejected"):
        plainly, ours = ([row[name] for row in some] for some in rows)
        assert ours == pytest.approx(plainly, rel=1e-4, abs=1e-5), name
    assert rows[0][-1]["loss"] < rows[0][0]["loss"]

"""Rollouts as a specification: many chains at once say what each would say alone."""

import pytest
import torch
from templates import FAMILIES, Family
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from fcdpo_utils.engine import memory, rollout
from fcdpo_utils.engine.decoding import DecodeEngine
from fcdpo_utils.episode import Chain, Episode, Limits, prompt
from fcdpo_utils.plain import Sampling
from fcdpo_utils.problems import TASKS, Problem
from fcdpo_utils.tasks.making import with_functions
from fcdpo_utils.tokens import render

LIMITS = Limits(calls=4, errors=3)


def problems(count: int, task: str = "arithmetic") -> list[Problem]:
    return TASKS[task].generate(count, "test", 0, levels=(2,) if task == "arithmetic" else (1,))


def episodes(chosen: list[Problem], limits: Limits = LIMITS) -> list[Episode]:
    return [Episode(TASKS[problem.task], problem, limits=limits) for problem in chosen]


def by_generate(
    model, tokenizer: PreTrainedTokenizerBase, episode: Episode, turn_tokens: int, family: Family = FAMILIES["smollm2"]
) -> Chain:
    """The definition: the library's greedy decoding of each turn, the whole chat passed again each time."""
    messages = prompt(episode.task, episode.problem)
    text = render(tokenizer, messages, generate=True)
    ends = [tokenizer.convert_tokens_to_ids(family.end_of_turn), tokenizer.eos_token_id]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    while not episode.finished:
        with torch.no_grad():
            output = model.generate(
                input_ids=torch.tensor([ids]), max_new_tokens=turn_tokens, do_sample=False, eos_token_id=ends
            )
        new = output[0, len(ids) :].tolist()
        ended = new[-1] in ends
        step = episode.step(tokenizer.decode(new[: len(new) - ended]))
        between = tokenizer(family.between.format(step.result), add_special_tokens=False)["input_ids"]
        ids = ids + new[: len(new) - ended] + between
    return episode.chain()


def test_fewer_chains_advance_together_where_memory_is_short(
    tiny_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chosen = problems(5)
    expected = rollout(tiny_model, tokenizer, episodes(chosen), Sampling(turn_tokens=8))
    assert capsys.readouterr().out == ""
    widths = []
    feed = DecodeEngine.feed
    monkeypatch.setattr(DecodeEngine, "feed", lambda self, rows: widths.append(len(rows)) or feed(self, rows))
    monkeypatch.setattr(memory, "available_bytes", lambda device: 500_000)
    assert rollout(tiny_model, tokenizer, episodes(chosen), Sampling(turn_tokens=8)) == expected
    found = max(widths)
    assert 1 <= found < 5 and capsys.readouterr().out == f"{found} chains at a time in place of 64: 0.0 GB are left\n"


@pytest.mark.slow
def test_greedy_batched_equals_one_by_one_equals_the_library_in_fp32(
    embedded_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase
) -> None:
    chosen, limits = problems(2) + problems(1, "fol"), Limits(calls=3, errors=3)
    batched = rollout(embedded_model, tokenizer, episodes(chosen, limits), Sampling(turn_tokens=16))
    alone = rollout(embedded_model, tokenizer, episodes(chosen, limits), Sampling(turn_tokens=16, batch_size=1))
    library = [by_generate(embedded_model, tokenizer, episode, 16) for episode in episodes(chosen, limits)]
    assert batched == alone == library
    assert len({chain.steps for chain in batched}) == len(chosen)  # three different chains, not three empty ones


def test_sampled_chains_do_not_depend_on_their_neighbours(
    tiny_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase
) -> None:
    chosen, sampling = problems(3), Sampling(temperature=1.0, turn_tokens=6)
    together = rollout(tiny_model, tokenizer, episodes(chosen), sampling)
    alone = [rollout(tiny_model, tokenizer, episodes([problem]), sampling)[0] for problem in chosen]
    assert together == alone


def test_problems_whose_functions_go_by_drawn_names_advance_together(
    tiny_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = with_functions(problems(6), 0, ("steps", "expression"), "natural")
    sampling = Sampling(temperature=1.0, turn_tokens=6)
    assert len({episode.tools for episode in episodes(chosen)}) == 6
    alone = [rollout(tiny_model, tokenizer, episodes([problem]), sampling)[0] for problem in chosen]
    widths = []
    feed = DecodeEngine.feed
    monkeypatch.setattr(DecodeEngine, "feed", lambda self, rows: widths.append(len(rows)) or feed(self, rows))
    assert rollout(tiny_model, tokenizer, episodes(chosen), sampling) == alone
    assert max(widths) == 3  # of each toolset


def test_samples_of_one_problem_differ_and_repeat_with_the_seed(
    tiny_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase
) -> None:
    chosen = problems(1) * 3

    def run(seed: int) -> list[Chain]:
        sampling = Sampling(temperature=1.0, turn_tokens=5, seed=seed)
        return rollout(tiny_model, tokenizer, episodes(chosen), sampling, samples=[0, 1, 2])

    assert run(0) == run(0)
    assert len({chain.steps for chain in run(0)}) == 3
    assert run(0) != run(1)


def test_a_finished_chain_leaves_the_batch_and_the_others_go_on(
    tiny_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Chains of very different lengths: the results in between are forced tokens of different lengths too."""
    finished: list[str] = []
    chosen = problems(4)
    mixed = [
        Episode(TASKS["arithmetic"], problem, limits=Limits(calls=calls, errors=9))
        for problem, calls in zip(chosen, (1, 5, 2, 3), strict=True)
    ]
    sampling = Sampling(temperature=1.0, turn_tokens=4)
    rollout(tiny_model, tokenizer, mixed, sampling, on_finished=lambda e: finished.append(e.problem.id))
    assert [len(e.steps) for e in mixed] == [1, 5, 2, 3]
    assert finished == [chosen[i].id for i in (0, 2, 3, 1)]


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_the_next_chain_takes_the_place_of_a_finished_one(
    tiny_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, batch_size: int
) -> None:
    """Of two tasks, with different instructions; what a place held before does not show."""

    def some() -> list[Episode]:
        asked = problems(5) + problems(3, "fol")
        return [
            Episode(TASKS[problem.task], problem, limits=Limits(calls=1 + number % 4, errors=9))
            for number, problem in enumerate(asked)
        ]

    def run(size: int) -> list[Chain]:
        sampling = Sampling(temperature=1.0, turn_tokens=4, batch_size=size)
        return rollout(tiny_model, tokenizer, some(), sampling)

    assert run(batch_size) == run(8)
    assert [len(chain.steps) for chain in run(batch_size)] == [1, 2, 3, 4, 1, 2, 3, 4]


def test_no_chain_starts_once_the_budget_says_no(
    tiny_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase
) -> None:
    answers = iter([True, True, True, False])
    chains = rollout(
        tiny_model,
        tokenizer,
        episodes(problems(6), Limits(calls=2, errors=9)),
        Sampling(temperature=1.0, turn_tokens=3, batch_size=2),
        admit=lambda: next(answers, False),
    )
    assert [chain.problem_id for chain in chains] == [problem.id for problem in problems(3)]
    assert all(len(chain.steps) == 2 for chain in chains)


def test_a_chain_that_would_overflow_the_context_is_cut(
    tiny_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase
) -> None:
    problem = problems(1)[0]
    used = len(tokenizer(render(tokenizer, prompt(TASKS["arithmetic"], problem), generate=True))["input_ids"])
    tiny_model.config.max_position_embeddings = used + 40
    (chain,) = rollout(tiny_model, tokenizer, episodes([problem], Limits(calls=24, errors=24)), Sampling(turn_tokens=8))
    assert 1 <= len(chain.steps) < 5 and chain.outcome == "too_long"


def test_the_models_mode_and_attention_are_left_as_they_were(
    tiny_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase
) -> None:
    tiny_model.train()
    before = tiny_model.config._attn_implementation
    rollout(tiny_model, tokenizer, episodes(problems(1)), Sampling(turn_tokens=2))
    assert tiny_model.training and tiny_model.config._attn_implementation == before

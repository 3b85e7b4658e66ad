"""The scripted teacher as a specification: reproducible, controlled, and labelled like anybody."""

from __future__ import annotations

import random
from collections import Counter
from functools import cache

import pytest
from toolsets import using
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from fcdpo_utils.arithmetic import Arithmetic
from fcdpo_utils.episode import Limits, run_calls
from fcdpo_utils.plain import Sampling
from fcdpo_utils.problems import Problem, Task
from fcdpo_utils.tasks.logic.task import FirstOrderLogic
from fcdpo_utils.teacher import Sample, SampleRequest
from fcdpo_utils.teachers import LocalTeacher
from fcdpo_utils.teachers.scripted import COMMON_MISTAKES, ScriptedTeacher

FOL, ARITHMETIC = FirstOrderLogic(), Arithmetic()
TOOLSETS = [(task, name) for task in (FOL, ARITHMETIC) for name in task.toolsets]
MIXED = ScriptedTeacher(error_rate=0.5, variation=0.3, seed=2)


def sample_chains(
    teacher: ScriptedTeacher,
    task: Task,
    problems: list[Problem],
    each: int,
    limits: Limits = Limits(),
) -> list[Sample]:
    """All chains of a teacher, `each` per problem."""
    made: list[Sample] = []
    requests = [SampleRequest(task, problem, number, limits) for problem in problems for number in range(each)]
    teacher.run(requests, made.append)
    return made


@cache
def problems(task: Task, count: int = 24, toolset: str | None = None) -> list[Problem]:
    return [using(toolset, problem) for problem in task.generate(count, "train", seed=4)]


@cache
def samples(
    teacher: ScriptedTeacher, task: Task, each: int = 8, count: int = 24, toolset: str | None = None
) -> list[Sample]:
    return sample_chains(teacher, task, problems(task, count, toolset), each)


# The same again


@pytest.mark.parametrize("task", [FOL, ARITHMETIC], ids=lambda task: task.name)
def test_the_same_arguments_give_the_same_chains(task: Task) -> None:
    assert sample_chains(MIXED, task, problems(task), 8) == samples(MIXED, task)


def test_a_chain_does_not_depend_on_what_was_asked_before() -> None:
    expected = samples(MIXED, FOL)[5 * 8 + 3]
    assert MIXED.sample(SampleRequest(FOL, problems(FOL)[5], 3)) == expected


@pytest.mark.parametrize("other", [ScriptedTeacher(0.5, 0.3, seed=3), ScriptedTeacher(0.5, 0.3, seed=0)])
def test_another_seed_gives_other_chains(other: ScriptedTeacher) -> None:
    assert [s.chain for s in samples(other, ARITHMETIC)] != [s.chain for s in samples(MIXED, ARITHMETIC)]


def test_chains_of_one_problem_differ_by_their_number() -> None:
    per_problem = [{s.chain.steps for s in samples(MIXED, ARITHMETIC)[i : i + 8]} for i in range(0, 24 * 8, 8)]
    assert min(map(len, per_problem)) >= 2


def test_samples_come_in_the_order_of_the_problems_and_their_numbers() -> None:
    made = samples(MIXED, FOL)
    assert [(s.problem.id, s.number) for s in made] == [(p.id, n) for p in problems(FOL) for n in range(8)]
    assert all(s.chain.problem_id == s.problem.id for s in made)


# Mistakes, at the set rate


@pytest.mark.parametrize(("task", "toolset"), TOOLSETS)
def test_without_errors_every_chain_is_gold_and_sound(task: Task, toolset: str) -> None:
    for sample in samples(ScriptedTeacher(error_rate=0.0, variation=0.5), task, 4, 24, toolset):
        assert sample.source == "gold" and sample.chain.sound, sample


def test_without_errors_the_longer_puzzles_are_solved_soundly_too() -> None:
    longer = FOL.generate(30, "train", seed=4, levels=(5,))
    assert all(s.chain.sound for s in sample_chains(ScriptedTeacher(error_rate=0.0), FOL, longer, 2))


@pytest.mark.parametrize("task", [FOL, ARITHMETIC], ids=lambda task: task.name)
def test_at_an_error_rate_of_one_no_chain_is_gold(task: Task) -> None:
    assert "gold" not in {s.source for s in samples(ScriptedTeacher(error_rate=1.0), task)}


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.8])
def test_the_share_of_mistakes_is_about_the_error_rate(rate: float) -> None:
    sources = Counter(s.source == "gold" for s in samples(ScriptedTeacher(error_rate=rate), ARITHMETIC, 40))
    assert rate - 0.06 < sources[False] / sources.total() < rate + 0.06  # 960 chains: more than 3.7 standard errors


@pytest.mark.parametrize("task", [FOL, ARITHMETIC], ids=lambda task: task.name)
def test_every_mistake_occurs_and_makes_some_chain_unsound(task: Task) -> None:
    made = samples(ScriptedTeacher(error_rate=1.0), task, 16)
    names = set(COMMON_MISTAKES) | set(task.mistakes)
    assert {s.source for s in made} == names
    assert {s.source for s in made if not s.chain.sound} == names


@pytest.mark.parametrize(("task", "toolset"), TOOLSETS)
def test_most_chains_with_a_mistake_are_not_sound(task: Task, toolset: str) -> None:
    made = samples(ScriptedTeacher(error_rate=1.0), task, 8, 24, toolset)
    assert sum(not s.chain.sound for s in made) > 0.75 * len(made)


@pytest.mark.parametrize(("task", "toolset"), TOOLSETS)
@pytest.mark.parametrize("name", COMMON_MISTAKES)
def test_a_common_mistake_applies_to_every_gold_chain(task: Task, toolset: str, name: str) -> None:
    for problem in problems(task, 24, toolset):
        gold = task.gold_calls(problem)
        assert COMMON_MISTAKES[name](problem, list(gold), random.Random(problem.id)) not in (None, gold)


@pytest.mark.parametrize(
    ("name", "kinds"), [("bad_syntax", {"syntax", "not_a_call"}), ("unknown_function", {"unknown_function"})]
)
def test_a_rejected_call_of_the_teacher_is_followed_by_the_right_one(name: str, kinds: set[str]) -> None:
    for problem in problems(FOL):
        gold = FOL.gold_calls(problem)
        chain = run_calls(FOL, problem, COMMON_MISTAKES[name](problem, list(gold), random.Random(problem.id)))
        assert chain.solved and not chain.sound
        assert {step.error for step in chain.steps} - {None} <= kinds
        assert [step.call for step in chain.steps if step.error is None] == gold


def test_a_chain_that_never_stops_is_named_and_ends_so() -> None:
    made = [s for s in samples(ScriptedTeacher(error_rate=1.0), FOL, 16) if s.source == "no_stop"]
    assert made and {s.chain.outcome for s in made} == {"no_stop"}


# Labels come from running the chain


@pytest.mark.parametrize(("task", "toolset"), TOOLSETS)
def test_a_label_is_what_running_the_calls_again_gives(task: Task, toolset: str) -> None:
    for sample in samples(ScriptedTeacher(error_rate=0.7, seed=1), task, 8, 24, toolset):
        calls = [step.call for step in sample.chain.steps]
        assert run_calls(task, sample.problem, calls) == sample.chain


def test_a_mistake_without_consequences_leaves_a_chain_sound() -> None:
    made = samples(ScriptedTeacher(error_rate=1.0), FOL, 16)
    assert any(s.source == "skipped_step" and s.chain.sound for s in made)


def test_the_limits_of_the_run_hold_for_the_teacher_too() -> None:
    made = sample_chains(MIXED, FOL, problems(FOL), 2, limits=Limits(calls=3))
    assert all(len(s.chain.steps) <= 3 and not s.chain.sound for s in made)


# Variation


def gold_chains(task: Task, variation: float) -> dict[str, set]:
    """Distinct gold chains per problem."""
    found: dict[str, set] = {}
    for sample in samples(ScriptedTeacher(error_rate=0.0, variation=variation), task, 8):
        found.setdefault(sample.problem.id, set()).add(sample.chain.steps)
    return found


@pytest.mark.parametrize("task", [FOL, ARITHMETIC], ids=lambda task: task.name)
def test_correct_chains_vary(task: Task) -> None:
    assert sum(len(chains) > 1 for chains in gold_chains(task, 1.0).values()) >= 5


@pytest.mark.parametrize("task", [FOL, ARITHMETIC], ids=lambda task: task.name)
def test_without_variation_every_correct_chain_is_the_canonical_one(task: Task) -> None:
    assert {len(chains) for chains in gold_chains(task, 0.0).values()} == {1}


# A local model


def test_chains_of_a_local_model_do_not_depend_on_batch_size_or_order(
    tiny_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Random weights, sampled: every chain has its own random stream."""
    requests = [
        SampleRequest(ARITHMETIC, p, n, limits=Limits(calls=3)) for p in problems(ARITHMETIC, 3) for n in range(3)
    ]
    found = []
    for size, order in ((9, requests), (2, requests[::-1]), (1, requests)):
        made: list[Sample] = []
        LocalTeacher(tiny_model, tokenizer, Sampling(1.0, 6, size, seed=1)).run(order, made.append)
        found.append({(s.problem.id, s.number): s.chain for s in made})
    assert found[0] == found[1] == found[2]
    assert len({chain.steps for chain in found[0].values()}) == 9

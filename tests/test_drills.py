"""Drills as a specification: sums that do not build on each other, each said so that it can be read."""

from __future__ import annotations

import re

import pytest

from fcdpo_utils.arithmetic import OPERATIONS
from fcdpo_utils.episode import run_calls
from fcdpo_utils.problems import TASKS
from fcdpo_utils.tasks.drills import LEVELS, SAID
from fcdpo_utils.tasks.making import with_functions

TASK = TASKS["drills"]


@pytest.mark.parametrize("naming", ["fixed", "natural", "invented"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_gold_chains_are_sound_and_have_a_call_for_each_sum(split: str, naming: str) -> None:
    for problem in with_functions(TASK.generate(60, split, 0), 0, naming=naming):
        chain = run_calls(TASK, problem, TASK.gold_calls(problem))
        assert chain.sound and len(chain.steps) == problem.level + 2
        sums = problem.details["said"]
        assert problem.question == sums[0] and len(sums) == len({function for function, *_ in problem.details["steps"]})
        assert [step.result.partition("; ")[2] for step in chain.steps[: problem.level]] == [*sums[1:], ""]
        for (_, *operands), said in zip(problem.details["steps"], sums, strict=True):
            assert sorted(re.findall(r"\d+", said)) == sorted(operands)


def test_no_sum_is_said_without_its_numbers_nor_as_another() -> None:
    assert set(SAID) == set(OPERATIONS)
    phrases = [phrase for each in SAID.values() for phrase in each]
    assert len({*phrases}) == len(phrases) and all("{a}" in phrase and "{b}" in phrase for phrase in phrases)


def test_the_same_seed_gives_the_same_drills_and_no_split_shares_one() -> None:
    train, test = (TASK.generate(200, split, 3) for split in ("train", "test"))
    assert train == TASK.generate(200, "train", 3) != TASK.generate(200, "train", 4)
    forms = [{problem.canonical for problem in problems} for problems in (train, test)]
    assert list(map(len, forms)) == [200, 200] and not forms[0] & forms[1]


def test_only_the_sum_at_hand_is_accepted() -> None:
    (problem,) = TASK.generate(1, "train", 0, levels=[2])
    (function, a, b), _ = problem.details["steps"]
    gold = TASK.gold_calls(problem)
    for other in [other for other in OPERATIONS if other != function]:
        chain = run_calls(TASK, problem, [f"{other}({a}, {b})", *gold])
        assert chain.steps[0].result == f"Error: {other}: that is not what is asked" and not chain.sound
        assert chain.recovered  # the sum at hand stays the same
    assert run_calls(TASK, problem, [gold[1]]).steps[0].error == "refused"  # the next one, too early
    assert run_calls(TASK, problem, [*gold[:2], gold[1]]).steps[-1].result.endswith("no sum is left; answer")


def test_a_level_that_is_none_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"^drills: levels must be some of 1, 2, 3, 4, got \(5,\)$"):
        TASK.generate(1, "train", 0, levels=(5,))
    assert LEVELS == (1, 2, 3, 4)


def test_more_drills_than_there_are_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"^drills: no further test problem of level 1; ask for fewer problems$"):
        TASK.generate(1_000, "test", 0, levels=[1])

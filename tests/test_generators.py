"""Thousands of problems of each generator (`pytest --problems 10000`: all that are promised): every answer found again
from the question alone, and splits kept apart.

Nothing of the generators is used to find an answer: logic questions are read back from English and proved by z3, the
numbers of stories are put into formulas written here. Logic gives 10,000 problems for each split, arithmetic 10,000 to
train and 5,000 to test: its smallest schema, percent_off, has 366 test problems, and one problem in sixteen is of it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from functools import cache

import pytest
import runs
from test_logic import Z3Oracle

from fcdpo_utils.arithmetic import SCHEMAS, Arithmetic
from fcdpo_utils.problems import Problem
from fcdpo_utils.tasks.logic.formulas import Formula, parse_formula
from fcdpo_utils.tasks.logic.task import FirstOrderLogic

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("generators")]  # one process makes them

LOGIC_LEVELS, STORY_LEVELS = (1, 2, 3, 5), (2, 3, 4, 5)
MOST_STORIES = {"train": 10_000, "test": 5_000}
SPLITS = [("fol", "train"), ("fol", "test"), ("arithmetic", "train"), ("arithmetic", "test")]


@cache
def problems(task: str, split: str) -> list[Problem]:
    if task == "fol":
        return FirstOrderLogic().generate(runs.PROBLEMS, split, seed=0, levels=LOGIC_LEVELS)
    return Arithmetic().generate(min(runs.PROBLEMS, MOST_STORIES[split]), split, seed=0, levels=STORY_LEVELS)


# What is made


@pytest.mark.parametrize(("task", "split"), SPLITS)
def test_as_many_distinct_questions_come_as_were_asked_for(task: str, split: str) -> None:
    made = problems(task, split)
    asked = runs.PROBLEMS if task == "fol" else min(runs.PROBLEMS, MOST_STORIES[split])
    assert len({problem.question for problem in made}) == len({problem.id for problem in made}) == asked


@pytest.mark.parametrize("task", ["fol", "arithmetic"])
@pytest.mark.parametrize("part", ["question", "canonical"])
def test_no_question_and_no_canonical_form_is_in_both_splits(task: str, part: str) -> None:
    train, test = ({getattr(problem, part) for problem in problems(task, split)} for split in ("train", "test"))
    assert train and test and not train & test


@pytest.mark.parametrize("split", ["train", "test"])
def test_labels_stay_balanced_in_every_level(split: str) -> None:
    counts = Counter((problem.level, problem.answer) for problem in problems("fol", split))
    assert {level for level, _ in counts} == set(LOGIC_LEVELS)
    assert len(counts) == 12 and max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("split", ["train", "test"])
def test_stories_stay_spread_over_all_schemas(split: str) -> None:
    counts = Counter(problem.details["schema"] for problem in problems("arithmetic", split))
    assert set(counts) == {schema.name for schema in SCHEMAS}
    assert min(counts.values()) >= len(problems("arithmetic", split)) // 16


# Logic: English -> formulas -> z3


def read(sentence: str) -> Formula:
    """The formula that a sentence says, by the first pattern that fits."""
    for pattern, formula in READINGS:
        if match := re.fullmatch(pattern, sentence):
            return parse_formula(formula(*match.groups()))
    raise AssertionError(f"no reading of {sentence!r}")


def said_of(name: str, words: str) -> str:
    """ "kind and not a doctor" as literals about `name`."""
    parts = re.split(r" (and|or) ", words)
    return " ".join(part if part in ("and", "or") else literal(name, part) for part in parts)


def literal(name: str, words: str) -> str:
    denied, word = re.fullmatch(r"(not )?(?:an? )?([a-z]+)", words).groups()
    return f"{denied or ''}{word}({name})"


def rule(condition: str, then: str) -> str:
    return f"{said_of('x', condition)} -> {literal('x', then)}"


READINGS: tuple[tuple[str, Callable[..., str]], ...] = (
    (r"Everyone who is (.+) is (.+)", rule),
    (r"If someone is (.+), then they are (.+)", rule),
    (r"Every (\w+)(?: person)? is (.+)", rule),
    (r"No (\w+)(?: person)? is (.+)", lambda condition, then: rule(condition, f"not {then}")),
    (r"([A-Z]\w+) is (.+)", said_of),
)


@pytest.mark.parametrize("split", ["train", "test"])
def test_z3_proves_every_label_from_the_question(split: str) -> None:
    oracle = Z3Oracle()
    for problem in problems("fol", split):
        said, _, statement = problem.question.partition(" Statement: ")
        premises = [read(sentence) for sentence in said.removesuffix(".").split(". ")]
        assert oracle.decide(premises, read(statement.removesuffix("."))) == problem.answer, problem


# Stories: numbers -> a formula for each schema

FORMULAS: dict[str, Callable[..., Fraction]] = {
    "packs_plus": lambda packs, each, more: packs * each + more,
    "packs_minus": lambda packs, each, fewer: packs * each - fewer,
    "collect_share": lambda morning, afternoon, friends: (morning + afternoon) / friends,
    "change": lambda count, price, bill: bill - count * price,
    "two_kinds": lambda count, price, others, other_price: count * price + others * other_price,
    "leftovers_shared": lambda trays, each, eaten, friends: (trays * each - eaten) / friends,
    "times_as_many": lambda first, times, given: first * (times + 1) - given,
    "percent_off": lambda price, percent: price * (100 - percent) / 100,
    "wages_shared": lambda hours, wage, days, spent, jars: (hours * wage * days - spent) / jars,
    "two_kinds_change": lambda a, price, b, other_price, bill: bill - a * price - b * other_price,
    "come_and_go": lambda at_first, off, on, off_again, on_again: at_first - (off + off_again) + (on + on_again),
    "coupon_shared": lambda a, price, b, other_price, coupon, friends: (a * price + b * other_price - coupon) / friends,
    "orchard": lambda rows, trees, apples, lost, size, price: (rows * trees * apples - lost) / size * price,
    "percent_off_order": lambda count, price, percent, added: count * price * (100 - percent) / 100 + added,
}
PLAYS_NO_PART = re.compile(
    r"\w+ is \d+ years old\.|It is \d+ degrees outside\.|\w+ lives at number \d+ on Hill Street\."
    r"|The walk home takes \d+ minutes\."
)


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_answer_is_what_the_numbers_of_the_question_give(split: str) -> None:
    for problem in problems("arithmetic", split):
        told = re.findall(r"\d+(?:\.\d+)?", PLAYS_NO_PART.sub("", problem.question))
        assert FORMULAS[problem.details["schema"]](*map(Fraction, told)) == Fraction(problem.answer), problem


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_canonical_form_holds_the_numbers_of_the_question(split: str) -> None:
    for problem in problems("arithmetic", split):
        told = re.findall(r"\d+(?:\.\d+)?", PLAYS_NO_PART.sub("", problem.question))
        assert re.findall(r"=(\S+)", problem.canonical) == told, problem

"""Ordering puzzles as a specification: what is asked, what the functions accept, and when a chain is sound.

Every label is found again from the words of the question alone, by solvers written here.
"""

from __future__ import annotations

import copy
import json
import random
import re
from dataclasses import asdict
from functools import cache

import pytest
import runs
from hypothesis import given, settings
from hypothesis import strategies as st

from fcdpo_utils.episode import Chain, prompt, run_calls
from fcdpo_utils.problems import TASKS, Problem, split_of
from fcdpo_utils.tasks import ordering
from fcdpo_utils.tasks.ordering import canonical_form
from fcdpo_utils.tools import Toolset

TASK, LEVELS, SPLITS = TASKS["ordering"], (1, 2, 3), ("train", "test")
each_mistake = pytest.mark.parametrize("mistake", TASK.mistakes)


@cache
def problems(split: str = "train", count: int = 150) -> list[Problem]:
    return TASK.generate(count, split, seed=5)


def both_splits() -> list[Problem]:
    return [*problems(), *problems("test")]


def run(problem: Problem, rng: random.Random | None = None) -> Chain:
    return run_calls(TASK, problem, TASK.gold_calls(problem, rng))


# Every label, from the question alone


def sentences(question: str, pattern: str) -> list[tuple[str, ...]]:
    """The groups of `pattern` in all sentences but the last, each of which must match it."""
    told = re.split(r"(?<=[.?]) ", question)[:-1]
    matches = [re.fullmatch(pattern, sentence) for sentence in told]
    assert all(matches), question
    return [match.groups() for match in matches]


MORE = {"older": "oldest", "taller": "tallest", "faster": "fastest", "stronger": "strongest", "richer": "richest"}
LESS = {"younger": "oldest", "shorter": "tallest", "slower": "fastest", "weaker": "strongest", "poorer": "richest"}
OPPOSITE = {"youngest": "oldest", "shortest": "tallest", "slowest": "fastest", "weakest": "strongest"}
OPPOSITE |= {"poorest": "richest"}


def solve(question: str) -> set[str]:
    """Who has everyone else on the right side: only such a place is the same in all orders."""
    told = sentences(question, r"(\w+) is (\w+) than (\w+)\.")
    second, asked = re.search(r"Who is the (second )?(\w+)\?$", question).groups()
    scale = {(MORE | LESS)[word] for _, word, _ in told}
    assert scale == {OPPOSITE.get(asked, asked)}, question
    above = {(a, b) if word in MORE else (b, a) for a, word, b in told}
    people = {person for pair in above for person in pair}
    for middle in people:  # Warshall
        above |= {(a, b) for a in people for b in people if (a, middle) in above and (middle, b) in above}
    assert not any((a, a) in above for a in people), question
    if asked in OPPOSITE:
        above = {(b, a) for a, b in above}
    ahead = {person: sum((other, person) in above for other in people) for person in people}
    behind = {person: sum((person, other) in above for other in people) for person in people}
    place = 1 if second else 0
    return {person for person in people if ahead[person] == place and behind[person] == len(people) - 1 - place}


def test_the_question_alone_has_the_answer_and_no_other() -> None:
    for problem in both_splits():
        assert solve(problem.question) == {problem.answer}, problem


@pytest.mark.slow
def test_many_problems_of_each_split_are_distinct_rightly_labelled_and_kept_apart() -> None:
    made = {split: TASK.generate(runs.PROBLEMS, split, seed=0) for split in SPLITS}
    for split in SPLITS:
        assert len({problem.question for problem in made[split]}) == runs.PROBLEMS
        wrong = [p for p in made[split] if solve(p.question) != {p.answer}]
        assert wrong == []
    shapes = [{shape(problem) for problem in made[split]} for split in SPLITS]
    canonicals = [{problem.canonical for problem in made[split]} for split in SPLITS]
    assert not shapes[0] & shapes[1] and not canonicals[0] & canonicals[1]


# What is generated


def shape(problem: Problem) -> str:
    """The question with its names numbered in the order of the text."""
    names: dict[str, str] = {}
    return re.sub(
        rf"\b(?:{'|'.join(ordering.NAMES)})\b",
        lambda match: names.setdefault(match[0], str(len(names))),
        problem.question,
    )


def test_problems_that_differ_only_in_names_are_in_the_same_split() -> None:
    train, test = ({shape(p) for p in problems(split, 600)} for split in SPLITS)
    assert len(train) > 20 and len(test) > 20 and not train & test


def test_the_canonical_form_alone_says_the_split() -> None:
    for split in SPLITS:
        assert {split_of(problem.canonical) for problem in problems(split)} == {split}


@given(facts=st.lists(st.lists(st.sampled_from("abcd<"), min_size=1, max_size=3), max_size=5), rng=st.randoms())
def test_new_names_and_another_order_leave_the_canonical_form(facts: list[list[str]], rng: random.Random) -> None:
    renamed = dict(zip("abcd", rng.sample("wxyz", 4), strict=True))
    other = [[renamed.get(word, word) for word in fact] for fact in rng.sample(facts, len(facts))]
    assert canonical_form(other, "zyxw") == canonical_form(facts, "abcd")


def test_another_structure_has_another_canonical_form() -> None:
    assert canonical_form([("a", "b"), ("b", "c")], "abc") != canonical_form([("a", "b"), ("a", "c")], "abc")


def test_the_same_arguments_give_the_same_problems() -> None:
    assert TASK.generate(30, "train", seed=5) == problems()[:30]
    assert TASK.generate(30, "train", seed=6) != problems()[:30]


def test_problems_are_distinct_and_numbered_and_their_levels_are_taken_in_turn() -> None:
    made = problems()
    assert len({problem.question for problem in made}) == len(made)
    assert [problem.id for problem in made] == [f"{TASK.name}-train-{number:04d}" for number in range(1, 151)]
    assert [problem.level for problem in made[:5]] == [1, 2, 3, 1, 2]
    assert {problem.level for problem in TASK.generate(4, "test", seed=0, levels=(3,))} == {3}


def test_a_problem_can_be_stored_as_json() -> None:
    for problem in problems():
        assert Problem(**json.loads(json.dumps(asdict(problem)))) == problem


@pytest.mark.parametrize(
    ("split", "levels", "line"),
    [
        ("dev", (1,), "split must be one of train, test, got 'dev'"),
        ("train", (1, 9), "levels must be some of 1, 2, 3, got (1, 9)"),
        ("train", (), "levels must be some of 1, 2, 3, got ()"),
    ],
)
def test_an_unknown_split_or_level_is_one_line(split: str, levels: tuple[int, ...], line: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(f'{TASK.name}: {line}')}$"):
        TASK.generate(3, split, 0, levels=levels)


def test_running_out_of_problems_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordering, "MAX_DRAWS", 0)
    with pytest.raises(
        ValueError, match=f"^{TASK.name}: no further test problem of level 2 found; ask for fewer probl"
    ):
        TASK.generate(1, "test", 0, levels=(2,))


def test_the_worked_example_is_in_no_split() -> None:
    example = TASK.example()
    assert example == TASK.example() and example.split == "example"
    assert example.canonical not in {p.canonical for split in SPLITS for p in problems(split, 600)}


def test_a_higher_level_takes_more_people() -> None:
    sizes = {level: set() for level in LEVELS}
    for problem in problems():
        sizes[problem.level].add(len(set(re.findall("|".join(ordering.NAMES), problem.question))))
    assert sizes == {level: {level + 2} for level in LEVELS}


def test_the_second_place_is_only_asked_for_at_higher_levels() -> None:
    asked = {(p.level, "second" in p.question) for p in problems()}
    assert asked == {(1, False), (2, False), (2, True), (3, False), (3, True)}


# Gold chains


@pytest.mark.parametrize("order", ["canonical", "another"])
def test_every_gold_chain_is_sound_and_short(order: str) -> None:
    for problem in both_splits():
        chain = run(problem, random.Random(problem.id) if order == "another" else None)
        assert chain.sound, (problem, chain.transcript())
        assert len(chain.steps) <= 14 and max(len(step.result) for step in chain.steps) < 60


def test_the_canonical_chain_is_always_the_same_and_others_come_with_an_rng() -> None:
    varied = 0
    for problem in problems():
        gold = TASK.gold_calls(problem)
        assert TASK.gold_calls(problem) == gold
        varied += any(TASK.gold_calls(problem, random.Random(seed)) != gold for seed in range(6))
    assert varied > len(problems()) / 4


EXAMPLE_CHAIN = [
    ('Above("Ben", "Ann")', "O1: not enough"),
    ('Above("Mary", "Ben")', "O2: not enough"),
    ('Above("Ben", "Tom")', "O3: not enough"),
    ('Above("Tom", "Ann")', "O4: enough"),
    ("Bottom(2)", "Tom"),
    ('Answer("Tom")', "Answer recorded"),
]


def test_the_worked_example_step_by_step() -> None:
    chain = run(TASK.example())
    assert [(step.call, step.result) for step in chain.steps] == [*EXAMPLE_CHAIN, ("Stop()", "Stopped")]
    assert chain.sound and solve(TASK.example().question) == {chain.answer}


def test_everything_before_the_problem_is_short() -> None:
    (message,) = prompt(TASK, TASK.example())
    assert len(message["content"]) < 1_500


# What is not sound


def test_a_lucky_guess_is_solved_but_not_sound() -> None:
    for problem in problems():
        chain = run_calls(TASK, problem, TASK.gold_calls(problem)[-2:])
        assert chain.solved and not chain.sound


def test_the_right_answer_before_it_is_derived_is_not_sound() -> None:
    for problem in problems():
        *steps, answer, stop = TASK.gold_calls(problem)
        assert not run_calls(TASK, problem, [*steps[:-1], answer, stop]).sound


def test_another_answer_than_the_derived_one_does_not_follow() -> None:
    calls = TASK.gold_calls(TASK.example())
    chain = run_calls(TASK, TASK.example(), [*calls[:-2], 'Answer("Ann")', "Stop()"])
    assert chain.outcome == "wrong_answer"


def test_a_place_that_was_not_asked_for_derives_nothing() -> None:
    calls = TASK.gold_calls(TASK.example())
    chain = run_calls(TASK, TASK.example(), [*calls[:4], "Top(3)", *calls[5:]])
    assert chain.steps[4].result == "Tom" and chain.solved and not chain.sound


@each_mistake
def test_a_chain_with_a_mistake_is_not_sound(mistake: str) -> None:
    applied = 0
    for problem in both_splits():
        gold = TASK.gold_calls(problem)
        calls = TASK.mistakes[mistake](problem, list(gold), random.Random(problem.id))
        if calls is not None:
            applied += 1
            assert calls != gold
            assert not run_calls(TASK, problem, calls).sound, (problem, calls)
    assert applied >= 0.6 * len(both_splits())


@pytest.mark.parametrize(
    "mistake",
    [
        "wrong_end",
        "someone_else",
    ],
)
def test_these_mistakes_end_in_a_wrong_answer(mistake: str) -> None:
    for problem in problems():
        calls = TASK.mistakes[mistake](problem, TASK.gold_calls(problem), random.Random(problem.id))
        assert calls is None or run_calls(TASK, problem, calls).outcome == "wrong_answer"


# What the functions refuse


@pytest.mark.parametrize(
    ("call", "line"),
    [
        ('Above("Ann", "Ben")', "Error: Above: Ann above Ben is not stated in the problem"),
        ('Above("Mary", "Tom")', "Error: Above: Mary above Tom is not stated in the problem"),
        ("Top(0)", "Error: Top: place must be from 1 to 4, got 0"),
        ("Bottom(5)", "Error: Bottom: place must be from 1 to 4, got 5"),
        ('Answer("Bob")', "Error: Answer: Bob is not in the problem"),
    ],
)
def test_what_is_not_in_the_problem_is_refused_with_its_line(call: str, line: str) -> None:
    result = TASK.start(TASK.example()).call(call)
    assert (result.text, result.error) == (line, "refused")


# Hostile calls

ARGUMENTS = st.one_of(
    st.sampled_from(["Ann", "Ben", "Tom", "a b", "Bottom", "1", ""]),
    st.text(max_size=30),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.lists(st.text(max_size=3), max_size=3),
)


@settings(max_examples=60)
@given(data=st.data())
def test_any_call_is_answered_with_one_line_and_leaves_the_problem_as_it_is(data: st.DataObject) -> None:
    problem = TASK.example()
    state, before = TASK.start(problem), copy.deepcopy(problem)
    for _ in range(6):
        name = data.draw(st.sampled_from(list(state.functions())))
        arguments = data.draw(st.lists(ARGUMENTS, max_size=3))
        answer(state, f"{name}({', '.join(map(repr, arguments))})")
    assert problem == before


@given(text=st.text(max_size=80))
def test_any_text_is_answered_with_one_line(text: str) -> None:
    answer(TASK.start(TASK.example()), text)


def answer(state: Toolset, call: str) -> None:
    result = state.call(call)
    assert result.text.isprintable() and len(result.text) <= 300 and " failed (" not in result.text


def test_two_chains_of_one_problem_share_nothing() -> None:
    problem = TASK.example()
    first, second = TASK.start(problem), TASK.start(problem)
    for call in TASK.gold_calls(problem):
        first.call(call)
    assert first.answer is not None and second.answer is None and second.derived is None
    assert run(problem) == run(problem)

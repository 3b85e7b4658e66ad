"""Ordering puzzles as a specification: what is asked, what the functions accept, and when a chain is sound.

Every answer is found again from the words of the question alone, by trying all orders.
"""

from __future__ import annotations

import re
from functools import cache
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcdpo_utils.episode import Chain, prompt, run_calls
from fcdpo_utils.lab.settings import OODSettings
from fcdpo_utils.pipeline.ask import problem_of
from fcdpo_utils.problems import TASKS, Problem
from fcdpo_utils.tasks import own
from fcdpo_utils.tasks.ordering import NAMES, PUZZLES, OrderingTools, older_than, puzzles

TASK, SPLITS = TASKS["ordering"], ("train", "test")


@cache
def problems() -> list[Problem]:
    return TASK.read()[0]


def run(problem: Problem, calls: list[str] | None = None) -> Chain:
    return run_calls(TASK, problem, TASK.gold_calls(problem) if calls is None else calls)


def orders(people: set[str], pairs: set[tuple[str, str]]) -> list[tuple[str, ...]]:
    """All orders, the first one on top, that agree with (upper, lower)."""
    return [o for o in permutations(sorted(people)) if all(o.index(a) < o.index(b) for a, b in pairs)]


def solve(question: str) -> set[str]:
    """Who can be the one that is asked for."""
    *told, asked = re.split(r"(?<=[.?]) ", question)
    found = [re.fullmatch(r"(\w+) is (older|younger) than (\w+)\.", sentence).groups() for sentence in told]
    pairs = {(a, b) if word == "older" else (b, a) for a, word, b in found}
    place = {"": 0, "second ": 1, "third ": 2}[re.fullmatch(r"Who is the (second |third |)oldest\?", asked)[1]]
    return {order[place] for order in orders({person for pair in pairs for person in pair}, pairs)}


# What is asked


def test_it_is_whole_as_a_users_task_must_be() -> None:
    made, faults = TASK.read()
    assert [*TASK.faults()] == faults == [] and len(made) == len({p.question for p in made}) == PUZZLES


def test_the_question_alone_has_the_answer_and_no_other() -> None:
    for problem in problems():
        assert solve(problem.question) == {problem.answer}, problem


def test_a_higher_level_has_more_people_and_asks_for_later_places() -> None:
    for level in (1, 2, 3):
        asked = [p.question for p in problems() if p.level == level]
        assert {len(set(re.findall("|".join(NAMES), question))) for question in asked} == {level + 2}
        assert len({question.rpartition(". ")[2] for question in asked}) == level


def test_the_puzzles_are_the_same_every_time_and_the_seed_picks_among_them() -> None:
    assert puzzles() == puzzles()
    first, other = (TASK.generate(20, "test", seed) for seed in (1, 2))
    assert TASK.generate(20, "test", 1) == first != other
    assert {p.level for p in TASK.generate(20, "test", 0, levels=(3,))} == {3}


@pytest.mark.parametrize("level", [1, 2, 3])
def test_there_are_enough_of_each_level_for_a_set_of_notebook_07(level: int) -> None:
    assert len(TASK.generate(OODSettings(name="a", task="ordering", levels=(1,)).test, "test", 0, (level,))) == 100


def test_its_name_is_taken() -> None:
    with pytest.raises(own.OwnTaskError, match="^ordering: the name is taken by a task of this package$"):
        own.own_task("ordering", OrderingTools, "", [], ("?", ["Stop()"]))


def test_everything_before_the_problem_is_short() -> None:
    (message,) = prompt(TASK, TASK.example())
    assert len(message["content"]) < 1_500


# What the functions answer


def test_the_worked_example_step_by_step() -> None:
    chain = run(TASK.example())
    assert [(step.call, step.result) for step in chain.steps] == [
        ('Older("Tom", "Ann")', "Noted"),
        ('Older("Ben", "Mary")', "Noted"),
        ('Older("Mary", "Tom")', "Noted"),
        ("Place(2)", "Mary"),
        ('Answer("Mary")', "Answer recorded"),
        ("Stop()", "Stopped"),
    ]
    assert chain.sound and solve(TASK.example().question) == {chain.answer}


def test_a_question_from_anywhere_can_be_asked() -> None:
    asked = problem_of(TASK, "Eve is younger than Zoe. Who is the oldest?")
    chain = run(asked, ['Older("Zoe", "Eve")', "Place(1)", 'Answer("Zoe")', "Stop()"])
    assert [step.result for step in chain.steps[:2]] == ["Noted", "Zoe"]


@pytest.mark.parametrize(
    ("call", "line"),
    [
        ('Older("Ann", "Tom")', "Error: Older: the problem does not say that Ann is older than Tom"),
        ('Older("Ben", "Tom")', "Error: Older: the problem does not say that Ben is older than Tom"),
        ("Place(0)", "Error: Place: place must be from 1 to 4, got 0"),
        ("Place(5)", "Error: Place: place must be from 1 to 4, got 5"),
    ],
)
def test_what_is_not_in_the_problem_is_refused_with_its_line(call: str, line: str) -> None:
    result = TASK.start(TASK.example()).call(call)
    assert (result.text, result.error) == (line, "refused")


people = st.sampled_from("abcde")


@given(pairs=st.sets(st.tuples(people, people).filter(lambda pair: pair[0] < pair[1]), max_size=6), place=st.data())
def test_a_place_is_told_exactly_where_all_orders_agree(pairs: set[tuple[str, str]], place: st.DataObject) -> None:
    told = " ".join(f"{a} is older than {b}." for a, b in sorted(pairs))
    noted = place.draw(st.sets(st.sampled_from(sorted(pairs)))) if pairs else set()
    state = TASK.start(problem_of(TASK, told or "?"))
    for a, b in noted:
        state.call(f'Older("{a}", "{b}")')
    everybody = {person for pair in pairs for person in pair}
    for number in range(1, len(everybody) + 1):
        holders = {order[number - 1] for order in orders(everybody, noted)}
        expected = holders.pop() if len(holders) == 1 else "not determined yet"
        assert state.call(f"Place({number})").text == expected


def test_a_circle_has_an_end() -> None:
    assert older_than("a", {("a", "b"), ("b", "a")}) == {"a", "b"}


@given(text=st.text(max_size=80))
def test_any_text_is_answered_with_one_line(text: str) -> None:
    result = TASK.start(TASK.example()).call(text)
    assert result.text.isprintable() and len(result.text) <= 300 and " failed (" not in result.text


# When a chain is sound


def test_every_gold_chain_is_sound() -> None:
    assert all(run(problem).sound for problem in problems())


def test_a_lucky_guess_is_solved_but_not_sound() -> None:
    for problem in problems():
        chain = run(problem, TASK.gold_calls(problem)[-2:])
        assert chain.solved and not chain.sound


def test_the_right_answer_before_it_is_derived_is_not_sound() -> None:
    for problem in problems():
        *steps, _, answer, stop = TASK.gold_calls(problem)
        assert not run(problem, [*steps[:-1], "Place(1)", answer, stop]).sound


def test_two_chains_of_one_problem_share_nothing() -> None:
    problem = TASK.example()
    first, second = TASK.start(problem), TASK.start(problem)
    for call in TASK.gold_calls(problem):
        first.call(call)
    assert first.answer is not None and second.answer is None and second.noted == set()

"""Puzzles as a specification: what is asked, what the functions accept, and when a chain is sound.

Every label is found again from the words of the question alone, by solvers written here.
"""

from __future__ import annotations

import copy
import json
import random
import re
from dataclasses import asdict
from functools import cache
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcdpo_utils.episode import Chain, prompt, run_calls
from fcdpo_utils.problems import TASKS, Problem, split_of
from fcdpo_utils.tasks.puzzles import PUZZLES, base
from fcdpo_utils.tasks.puzzles.base import Puzzle, canonical_form
from fcdpo_utils.tools import Toolset

LEVELS, SPLITS = (1, 2, 3), ("train", "test")
each_puzzle = pytest.mark.parametrize("task", PUZZLES, ids=lambda task: task.name)
each_mistake = pytest.mark.parametrize(
    ("task", "mistake"),
    [(task, name) for task in PUZZLES for name in task.mistakes],
    ids=lambda value: getattr(value, "name", value),
)


@cache
def problems(task: Puzzle, split: str = "train", count: int = 150) -> list[Problem]:
    return task.generate(count, split, seed=5)


def both_splits(task: Puzzle) -> list[Problem]:
    return [*problems(task), *problems(task, "test")]


def named(name: str) -> Puzzle:
    return next(task for task in PUZZLES if task.name == name)


def run(task: Puzzle, problem: Problem, rng: random.Random | None = None) -> Chain:
    return run_calls(task, problem, task.gold_calls(problem, rng))


# Every label, from the question alone


def sentences(question: str, pattern: str) -> list[tuple[str, ...]]:
    """The groups of `pattern` in all sentences but the last, each of which must match it."""
    told = [sentence for sentence in re.split(r"(?<=[.?]) ", question)[:-1] if not sentence.startswith("Knights ")]
    matches = [re.fullmatch(pattern, sentence) for sentence in told]
    assert all(matches), question
    return [match.groups() for match in matches]


def solve_knights(question: str) -> set[str]:
    """The kinds that the person asked for has in some world where knights' claims are true and knaves' false."""
    said = [(who, re.sub(r"\bI\b", who, claim)) for who, claim in sentences(question, r"(\w+) says: (.+)\.")]
    asked = re.search(r"Is (\w+) a knight or a knave\?$", question)[1]
    people = [who for who, _ in said]
    worlds = [set(knights) for size in range(len(people) + 1) for knights in combinations(people, size)]
    fitting = [world for world in worlds if all((who in world) == holds(claim, world) for who, claim in said)]
    assert len(fitting) == 1, question  # the puzzle as a whole has one solution
    return {"knight" if asked in world else "knave" for world in fitting}


def holds(claim: str, knights: set[str]) -> bool:
    if match := re.fullmatch(r"(\w+) is a (knight|knave)", claim):
        return (match[1] in knights) == (match[2] == "knight")
    first, second, kind = re.fullmatch(r"(\w+) and (\w+) are (?:both|of) ([\w ]+)", claim).groups()
    count = len({first, second} & knights)
    return {"knights": count == 2, "knaves": count == 0, "the same kind": count != 1, "different kinds": count == 1}[
        kind
    ]


MORE = {"older": "oldest", "taller": "tallest", "faster": "fastest", "stronger": "strongest", "richer": "richest"}
LESS = {"younger": "oldest", "shorter": "tallest", "slower": "fastest", "weaker": "strongest", "poorer": "richest"}
OPPOSITE = {"youngest": "oldest", "shortest": "tallest", "slowest": "fastest", "weakest": "strongest"}
OPPOSITE |= {"poorest": "richest"}


def solve_ordering(question: str) -> set[str]:
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


SOLVERS = {"knights_knaves": solve_knights, "ordering": solve_ordering}


@each_puzzle
def test_the_question_alone_has_the_answer_and_no_other(task: Puzzle) -> None:
    for problem in both_splits(task):
        assert SOLVERS[task.name](problem.question) == {problem.answer}, problem


@pytest.mark.slow  # 20,000 problems a puzzle: about 20 s of CPU time each
@each_puzzle
def test_ten_thousand_problems_of_each_split_are_distinct_rightly_labelled_and_kept_apart(task: Puzzle) -> None:
    made = {split: task.generate(10_000, split, seed=0) for split in SPLITS}
    for split in SPLITS:
        assert len({problem.question for problem in made[split]}) == 10_000
        wrong = [p for p in made[split] if SOLVERS[task.name](p.question) != {p.answer}]
        assert wrong == []
    shapes = [{shape(problem) for problem in made[split]} for split in SPLITS]
    canonicals = [{problem.canonical for problem in made[split]} for split in SPLITS]
    assert not shapes[0] & shapes[1] and not canonicals[0] & canonicals[1]


# What is generated


def shape(problem: Problem) -> str:
    """The question with its names numbered in the order of the text."""
    names: dict[str, str] = {}
    return re.sub(
        rf"\b(?:{'|'.join(base.NAMES)})\b", lambda match: names.setdefault(match[0], str(len(names))), problem.question
    )


@each_puzzle
def test_problems_that_differ_only_in_names_are_in_the_same_split(task: Puzzle) -> None:
    train, test = ({shape(p) for p in problems(task, split, 600)} for split in SPLITS)
    assert len(train) > 20 and len(test) > 20 and not train & test


@each_puzzle
def test_the_canonical_form_alone_says_the_split(task: Puzzle) -> None:
    for split in SPLITS:
        assert {split_of(problem.canonical) for problem in problems(task, split)} == {split}


@given(facts=st.lists(st.lists(st.sampled_from("abcd<"), min_size=1, max_size=3), max_size=5), rng=st.randoms())
def test_new_names_and_another_order_leave_the_canonical_form(facts: list[list[str]], rng: random.Random) -> None:
    renamed = dict(zip("abcd", rng.sample("wxyz", 4), strict=True))
    other = [[renamed.get(word, word) for word in fact] for fact in rng.sample(facts, len(facts))]
    assert canonical_form(other, "zyxw") == canonical_form(facts, "abcd")


def test_another_structure_has_another_canonical_form() -> None:
    assert canonical_form([("a", "b"), ("b", "c")], "abc") != canonical_form([("a", "b"), ("a", "c")], "abc")


def test_it_does_not_matter_whom_of_a_pair_a_claim_names_first() -> None:
    pairs = [["Ann", "Tom"], ["Tom", "Ann"]]
    drafts = [[["Ann", "knaves", *first], ["Tom", "different", *second]] for first in pairs for second in pairs]
    assert len({named("knights_knaves").pose(1, ["Ann", "Tom"], draft, "Ann").canonical for draft in drafts}) == 1


@each_puzzle
def test_the_same_arguments_give_the_same_problems(task: Puzzle) -> None:
    assert task.generate(30, "train", seed=5) == problems(task)[:30]
    assert task.generate(30, "train", seed=6) != problems(task)[:30]


@each_puzzle
def test_problems_are_distinct_and_numbered_and_their_levels_are_taken_in_turn(task: Puzzle) -> None:
    made = problems(task)
    assert len({problem.question for problem in made}) == len(made)
    assert [problem.id for problem in made] == [f"{task.name}-train-{number:04d}" for number in range(1, 151)]
    assert [problem.level for problem in made[:5]] == [1, 2, 3, 1, 2]
    assert {problem.level for problem in task.generate(4, "test", seed=0, levels=(3,))} == {3}


def test_questions_stay_distinct_where_few_can_be_asked() -> None:
    made = named("knights_knaves").generate(600, "test", seed=0, levels=(1,))
    assert len({problem.question for problem in made}) == 600


@each_puzzle
def test_a_problem_can_be_stored_as_json(task: Puzzle) -> None:
    for problem in problems(task):
        assert Problem(**json.loads(json.dumps(asdict(problem)))) == problem


@each_puzzle
def test_a_puzzle_is_registered_under_its_name(task: Puzzle) -> None:
    assert TASKS[task.name] is task


@each_puzzle
@pytest.mark.parametrize(
    ("split", "levels", "line"),
    [
        ("dev", (1,), "split must be one of train, test, got 'dev'"),
        ("train", (1, 9), "levels must be some of 1, 2, 3, got (1, 9)"),
        ("train", (), "levels must be some of 1, 2, 3, got ()"),
    ],
)
def test_an_unknown_split_or_level_is_one_line(task: Puzzle, split: str, levels: tuple[int, ...], line: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(f'{task.name}: {line}')}$"):
        task.generate(3, split, 0, levels=levels)


@each_puzzle
def test_running_out_of_problems_is_one_line(task: Puzzle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "MAX_DRAWS", 0)
    with pytest.raises(
        ValueError, match=f"^{task.name}: no further test problem of level 2 found; ask for fewer probl"
    ):
        task.generate(1, "test", 0, levels=(2,))


@each_puzzle
def test_the_worked_example_is_in_no_split(task: Puzzle) -> None:
    example = task.example()
    assert example == task.example() and example.split == "example"
    assert example.canonical not in {p.canonical for split in SPLITS for p in problems(task, split, 600)}


@each_puzzle
def test_a_higher_level_takes_more_people(task: Puzzle) -> None:
    sizes = {level: set() for level in LEVELS}
    for problem in problems(task):
        sizes[problem.level].add(len(set(re.findall("|".join(base.NAMES), problem.question))))
    first = {"knights_knaves": 2, "ordering": 3}[task.name]
    assert sizes == {level: {first + level - 1} for level in LEVELS}


def test_the_second_place_is_only_asked_for_at_higher_levels() -> None:
    asked = {(p.level, "second" in p.question) for p in problems(named("ordering"))}
    assert asked == {(1, False), (2, False), (2, True), (3, False), (3, True)}


# Gold chains


@each_puzzle
@pytest.mark.parametrize("order", ["canonical", "another"])
def test_every_gold_chain_is_sound_and_short(task: Puzzle, order: str) -> None:
    for problem in both_splits(task):
        chain = run(task, problem, random.Random(problem.id) if order == "another" else None)
        assert chain.sound, (problem, chain.transcript())
        assert len(chain.steps) <= 14 and max(len(step.result) for step in chain.steps) < 60


@each_puzzle
def test_the_canonical_chain_is_always_the_same_and_others_come_with_an_rng(task: Puzzle) -> None:
    varied = 0
    for problem in problems(task):
        gold = task.gold_calls(problem)
        assert task.gold_calls(problem) == gold
        varied += any(task.gold_calls(problem, random.Random(seed)) != gold for seed in range(6))
    assert varied > len(problems(task)) / 4


EXAMPLE_CHAINS = {
    "knights_knaves": [
        ('Says("Ann", "knave(Max)")', "S1: not enough for Ann"),
        ('Says("Tom", "knaves(Ann, Tom)")', "S2: enough for Ann"),
        ('Suppose("Ann", "knight")', "possible"),
        ('Suppose("Ann", "knave")', "impossible, Ann is a knight"),
        ('Answer("knight")', "Answer recorded"),
    ],
    "ordering": [
        ('Above("Ben", "Ann")', "O1: not enough"),
        ('Above("Mary", "Ben")', "O2: not enough"),
        ('Above("Ben", "Tom")', "O3: not enough"),
        ('Above("Tom", "Ann")', "O4: enough"),
        ("Bottom(2)", "Tom"),
        ('Answer("Tom")', "Answer recorded"),
    ],
}


@each_puzzle
def test_the_worked_example_step_by_step(task: Puzzle) -> None:
    chain = run(task, task.example())
    assert [(step.call, step.result) for step in chain.steps] == [*EXAMPLE_CHAINS[task.name], ("Stop()", "Stopped")]
    assert chain.sound and SOLVERS[task.name](task.example().question) == {chain.answer}


@each_puzzle
def test_everything_before_the_problem_is_short(task: Puzzle) -> None:
    (message,) = prompt(task, task.example())
    assert len(message["content"]) < 1_500


# What is not sound


@each_puzzle
def test_a_lucky_guess_is_solved_but_not_sound(task: Puzzle) -> None:
    for problem in problems(task):
        chain = run_calls(task, problem, task.gold_calls(problem)[-2:])
        assert chain.solved and not chain.sound


@each_puzzle
def test_the_right_answer_before_it_is_derived_is_not_sound(task: Puzzle) -> None:
    for problem in problems(task):
        *steps, answer, stop = task.gold_calls(problem)
        assert not run_calls(task, problem, [*steps[:-1], answer, stop]).sound


@each_puzzle
def test_another_answer_than_the_derived_one_does_not_follow(task: Puzzle) -> None:
    others = {"knights_knaves": "knave", "ordering": "Ann"}
    calls = task.gold_calls(task.example())
    chain = run_calls(task, task.example(), [*calls[:-2], f'Answer("{others[task.name]}")', "Stop()"])
    assert chain.outcome == "wrong_answer"


def test_a_place_that_was_not_asked_for_derives_nothing() -> None:
    task = named("ordering")
    calls = task.gold_calls(task.example())
    chain = run_calls(task, task.example(), [*calls[:4], "Top(3)", *calls[5:]])
    assert chain.steps[4].result == "Tom" and chain.solved and not chain.sound


def test_refuting_a_supposition_about_another_person_derives_nothing() -> None:
    task = named("knights_knaves")
    state = task.start(task.example())
    for call in task.gold_calls(task.example())[:2]:
        state.call(call)
    assert state.call('Suppose("Tom", "knight")').text == "impossible, Tom is a knave"
    assert state.derived is None


@each_mistake
def test_a_chain_with_a_mistake_is_not_sound(task: Puzzle, mistake: str) -> None:
    applied = 0
    for problem in both_splits(task):
        gold = task.gold_calls(problem)
        calls = task.mistakes[mistake](problem, list(gold), random.Random(problem.id))
        if calls is not None:
            applied += 1
            assert calls != gold
            assert not run_calls(task, problem, calls).sound, (problem, calls)
    assert applied >= 0.6 * len(both_splits(task))


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("knights_knaves", "wrong_kind"),
        ("knights_knaves", "hasty"),
        ("ordering", "wrong_end"),
        ("ordering", "someone_else"),
    ],
)
def test_these_mistakes_end_in_a_wrong_answer(name: str, mistake: str) -> None:
    task = named(name)
    for problem in problems(task):
        calls = task.mistakes[mistake](problem, task.gold_calls(problem), random.Random(problem.id))
        assert calls is None or run_calls(task, problem, calls).outcome == "wrong_answer"


# What the functions refuse


@pytest.mark.parametrize(
    ("name", "call", "line"),
    [
        ("knights_knaves", 'Says("Ann", "knight(Max)")', "Error: Says: Ann does not say knight(Max) in the problem"),
        ("knights_knaves", 'Says("Max", "knave(Max)")', "Error: Says: Max does not say knave(Max) in the problem"),
        (
            "knights_knaves",
            'Says("Ann", "Max is a knave")',
            "Error: Says: cannot read the claim; expected one such as knave(Ben) or same(Ann, Ben)",
        ),
        ("knights_knaves", 'Suppose("Bob", "knave")', "Error: Suppose: Bob is not in the problem"),
        ("ordering", 'Above("Ann", "Ben")', "Error: Above: Ann above Ben is not stated in the problem"),
        ("ordering", 'Above("Mary", "Tom")', "Error: Above: Mary above Tom is not stated in the problem"),
        ("ordering", "Top(0)", "Error: Top: place must be from 1 to 4, got 0"),
        ("ordering", "Bottom(5)", "Error: Bottom: place must be from 1 to 4, got 5"),
        ("ordering", 'Answer("Bob")', "Error: Answer: Bob is not in the problem"),
    ],
)
def test_what_is_not_in_the_problem_is_refused_with_its_line(name: str, call: str, line: str) -> None:
    result = named(name).start(named(name).example()).call(call)
    assert (result.text, result.error) == (line, "refused")


def test_the_pair_of_a_claim_may_be_said_either_way_and_nothing_else_may() -> None:
    state = named("knights_knaves").start(named("knights_knaves").example())
    assert state.call('Says("Tom", "knaves(Tom, Ann)")').text == "S1: enough for Ann"
    assert state.call('Says("Tom", "knaves(Tom, Tom)")').error == "refused"


# Hostile calls

ARGUMENTS = st.one_of(
    st.sampled_from(["Ann", "Ben", "Tom", "a b", "knave(Max)", "same(Ann, Max)", "knight", "1", ""]),
    st.text(max_size=30),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.lists(st.text(max_size=3), max_size=3),
)


@each_puzzle
@settings(max_examples=60)
@given(data=st.data())
def test_any_call_is_answered_with_one_line_and_leaves_the_problem_as_it_is(task: Puzzle, data: st.DataObject) -> None:
    problem = task.example()
    state, before = task.start(problem), copy.deepcopy(problem)
    for _ in range(6):
        name = data.draw(st.sampled_from(list(state.functions())))
        arguments = data.draw(st.lists(ARGUMENTS, max_size=3))
        answer(state, f"{name}({', '.join(map(repr, arguments))})")
    assert problem == before


@each_puzzle
@given(text=st.text(max_size=80))
def test_any_text_is_answered_with_one_line(task: Puzzle, text: str) -> None:
    answer(task.start(task.example()), text)


def answer(state: Toolset, call: str) -> None:
    result = state.call(call)
    assert result.text.isprintable() and len(result.text) <= 300 and " failed (" not in result.text


@each_puzzle
def test_two_chains_of_one_problem_share_nothing(task: Puzzle) -> None:
    problem = task.example()
    first, second = task.start(problem), task.start(problem)
    for call in task.gold_calls(problem):
        first.call(call)
    assert first.answer is not None and second.answer is None and second.derived is None
    assert run(task, problem) == run(task, problem)

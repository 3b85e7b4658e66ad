"""FOLIO as a specification: how its formulas are read and decided, which rows become chains, and when those are sound.

The rows of most tests are written here. The real files are read where they lie beside the repository, never copied;
there z3 is asked a second time, with formulas that a reader of its own put into SMT-LIB.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import product
from pathlib import Path

import pytest
import runs
import z3
from hypothesis import given, settings
from hypothesis import strategies as st
from test_gsm8k import write

from fcdpo_utils.episode import prompt, run_calls
from fcdpo_utils.pipeline.cli import main
from fcdpo_utils.problems import Problem, split_of
from fcdpo_utils.settings import TaskSettings
from fcdpo_utils.tasks.folio import FOLIO, FolioTools, read
from fcdpo_utils.tasks.logic import first_order
from fcdpo_utils.tasks.logic.first_order import Formula, decide, equivalent, is_consistent, parse, symbols
from fcdpo_utils.tasks.making import make_problems
from fcdpo_utils.tools import ToolError

DATA = Path(__file__).parents[2] / "shared/data/folio"
TASK = FOLIO()


def error_of(text: str) -> str:
    with pytest.raises(ToolError) as caught:
        parse(text)
    return str(caught.value)


# Random formulas: predicates P/1, Q/1 and R/2, names a and b, variables as they are bound


def random_formula(rng: random.Random, depth: int = 4, bound: tuple[str, ...] = ()) -> Formula:
    kind = rng.choice(("and", "or", "xor", "->", "<->", "not", "all", "exists")) if depth and rng.random() < 0.8 else ""
    if kind in ("all", "exists"):
        name = rng.choice("xyz")
        return Formula(kind, (random_formula(rng, depth - 1, (*bound, name)),), (name,))
    if kind:
        count = 1 if kind == "not" else rng.choice((2, 2, 3)) if kind in ("and", "or", "xor") else 2
        return Formula(kind, tuple(random_formula(rng, depth - 1, bound) for _ in range(count)))
    predicate, arity = rng.choice((("P", 1), ("Q", 1), ("R", 2), ("=", 2)))
    names = tuple(rng.choice((*"ab", *bound, *bound)) for _ in range(arity))
    return Formula("=", names=names) if predicate == "=" else Formula("atom", names=(predicate, *names))


World = Callable[[tuple], bool]


def holds(formula: Formula, world: World, things: range, names: dict[str, int]) -> bool:
    """The truth of a formula among a few things, as a textbook defines it."""
    if formula.kind in ("all", "exists"):
        found = (holds(formula.parts[0], world, things, names | {formula.names[0]: thing}) for thing in things)
        return all(found) if formula.kind == "all" else any(found)
    if formula.kind == "atom":
        return world((formula.names[0], *(names[name] for name in formula.names[1:])))
    if formula.kind == "=":
        return names[formula.names[0]] == names[formula.names[1]]
    first, *others = (holds(part, world, things, names) for part in formula.parts)
    return {
        "not": lambda: not first,
        "and": lambda: first and all(others),
        "or": lambda: first or any(others),
        "xor": lambda: (first + sum(others)) % 2 == 1,
        "->": lambda: not first or others[0],
        "<->": lambda: first == others[0],
    }[formula.kind]()


def random_worlds(rng: random.Random, count: int) -> list[tuple[World, range, dict[str, int]]]:
    """Worlds of one to three things."""
    made = []
    for _ in range(count):
        things = range(rng.randint(1, 3))
        facts = {fact: rng.random() < 0.5 for fact in [*product("PQ", things), *product("R", things, things)]}
        made.append((facts.__getitem__, things, {name: rng.choice(things) for name in "ab"}))
    return made


randoms = st.randoms(use_true_random=False)


# Reading and printing


@given(randoms)
@settings(deadline=None)  # the first one loads the grammar
def test_a_printed_formula_is_read_back_as_it_was(rng: random.Random) -> None:
    formula = random_formula(rng)
    if str(formula).count("all") + str(formula).count("exists") <= first_order.MAX_QUANTIFIERS:
        assert len(str(formula)) > first_order.MAX_CHARACTERS or parse(str(formula)) == formula


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("not P(a) and Q(a)", "(not P(a)) and Q(a)"),
        ("P(a) and Q(a) or P(b)", "(P(a) and Q(a)) or P(b)"),
        ("P(a) or Q(a) -> P(b)", "(P(a) or Q(a)) -> P(b)"),
        ("P(a) -> Q(a) xor P(b)", "P(a) -> (Q(a) xor P(b))"),
        ("P(a) -> Q(a) -> P(b)", "P(a) -> (Q(a) -> P(b))"),
        ("P(a) <-> Q(a) -> P(b)", "P(a) <-> (Q(a) -> P(b))"),
        ("all x P(x) and Q(a)", "(all x P(x)) and Q(a)"),
        ("all x exists y R(x, y)", "all x (exists y (R(x, y)))"),
        ("not a = b", "not (a = b)"),
        ("∀x (P(x) → ¬Q(x) ∨ ∃y (R(x,y) ⊕ P(y)))", "all x (P(x) -> (not Q(x) or exists y (R(x, y) xor P(y))))"),
        ("P(a) ↔ Q(b)∧P(b)", "P(a) <-> (Q(b) and P(b))"),
    ],
)
def test_operators_bind_as_in_a_textbook(text: str, meant: str) -> None:
    assert parse(text) == parse(meant)


@pytest.mark.parametrize("name", ["l-2021", "c++", "anU.SGovernmentOfficial", "children'sBook", "José", "7eleven"])
def test_the_names_of_the_data_set_are_names(name: str) -> None:
    assert parse(f"Likes(tom, {name})").names == ("Likes", "tom", name)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", 'unexpected end behind ""'),
        ("P(a", 'unexpected end behind "P(a"'),
        ("P()", 'unexpected ")" behind "P("'),
        ("P", 'unexpected end behind "P"'),
        ("P(a) Q(b)", 'unexpected "Q(b)" behind "P(a)"'),
        ("P(Q(a))", 'unexpected "(a))" behind "P(Q"'),
        ("P(a) & Q(a)", 'unexpected "& Q(a)" behind "P(a)"'),
        ("P(a) and %", 'unexpected "%" behind "P(a) and"'),
        ("P(a) or Q(a) xor P(b)", "or and xor side by side; put parentheses around one of them"),
        ("all x P(x) -> Q(x)", "no quantifier binds x here; write for example all x (P(x) -> Q(x))"),
        ("all not P(a)", 'unexpected "not P(a)" behind "all"'),
        ("P(a) and P(a, b)", "P has 1 names in one place, 2 in another"),
        ("all x " * 9 + "P(x)", "more than 8 quantifiers"),
        ("P(a) and " * 200, "a formula has at most 500 characters, got 1800"),
    ],
)
def test_what_is_no_formula_is_refused_with_its_line(text: str, line: str) -> None:
    assert error_of(text) == line


@pytest.mark.parametrize("text", ["(" * 240 + "P(a)" + ")" * 240, "not " * 120 + "P(a)", "a=b->" * 99 + "P(a)"])
def test_as_many_characters_as_are_read_may_be_nested_as_deep_as_they_go(text: str) -> None:
    formula = parse(text)
    assert str(formula) and decide((), formula) == "Unknown"


def test_a_long_chain_of_one_operator_is_one_formula() -> None:
    assert len(parse(" and ".join(["P(a)"] * 50)).parts) == 50


def test_symbols_are_listed_in_the_order_of_the_text() -> None:
    found = symbols([parse("all x (R(x, tom) -> exists tom (P(tom) and x = ann))"), parse("P(bob)")])
    assert [list(part) for part in found] == [[("R", 2), ("P", 1)], ["tom", "ann", "bob"]]


# What follows


@pytest.mark.parametrize(
    ("premises", "goal", "label"),
    [
        (["all x (Cat(x) -> exists y Likes(x, y))", "Cat(tom)"], "exists x Likes(tom, x)", "True"),
        (["Cat(tom) xor Dog(tom)", "Cat(tom)"], "Dog(tom)", "False"),
        (["Cat(tom) or Dog(tom)"], "Cat(tom)", "Unknown"),
        (["all x (P(x) <-> x = a)", "P(b)"], "a = b", "True"),
        (["all x all y (R(x, y) -> R(y, x))", "R(a, b)"], "R(b, a)", "True"),
        (["P(a)", "Q(b)"], "a = b", "Unknown"),
        ([], "P(a) or not P(a)", "True"),
    ],
)
def test_a_goal_is_decided(premises: list[str], goal: str, label: str) -> None:
    assert decide(tuple(map(parse, premises)), parse(goal)) == label


INFINITE = ("all x exists y R(x, y)", "all x not R(x, x)", "all x all y all z (R(x, y) and R(y, z) -> R(x, z))")


def test_what_only_an_infinite_world_shows_is_not_decided_within_the_budget() -> None:
    premises = tuple(map(parse, INFINITE))
    assert decide(premises, parse("P(a)")) is None and is_consistent(premises) is None
    assert decide(premises, parse("exists x R(a, x)")) == "True"


def test_after_a_question_that_ran_out_of_budget_the_next_one_is_asked_anew() -> None:
    """It crashed z3 in one of 10,000 hostile formulas, this one."""
    given = (*INFINITE, "all x (P(x) <-> exists y (R(x, y) and not Q(y)))", "P(a) xor Q(b)")
    assert decide(tuple(map(parse, given)), parse("(R(a, a) or P(b)) <-> P(a)")) is None


@given(st.integers(0, 10**9))
@settings(deadline=None, max_examples=60)
def test_no_small_world_speaks_against_what_z3_decides(seed: int) -> None:
    rng = random.Random(seed)
    premises, goal = tuple(random_formula(rng, 3) for _ in range(3)), random_formula(rng, 3)
    worlds = random_worlds(rng, 60)
    models = [world for world in worlds if all(holds(premise, *world) for premise in premises)]
    if models:
        assert is_consistent(premises) is not False
        label, seen = decide(premises, goal), {holds(goal, *world) for world in models}
        assert label not in ("True", "False") or seen == {label == "True"}
    others = (goal, Formula("not", (Formula("not", premises[:1]),)))
    same = equivalent(premises[0], others)
    assert same[1] is True
    for other, is_same in zip(others, same, strict=True):
        assert not is_same or all(holds(premises[0], *world) == holds(other, *world) for world in worlds)


def test_a_decision_does_not_depend_on_what_was_asked_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a budget that is just too small it stays too small, with one that is just enough it stays enough."""
    premises, goal = tuple(map(parse, INFINITE)), parse("exists x exists y exists z (R(a, x) and R(x, y) and R(y, z))")

    def told(budget: int) -> str | None:
        monkeypatch.setattr(first_order, "BUDGET", budget)
        return decide.__wrapped__(premises, goal)

    small, large = 100, first_order.BUDGET
    while large - small > 50:
        middle = (small + large) // 2
        small, large = (small, middle) if told(middle) else (middle, large)
    assert (told(small), told(large)) == (None, "True")
    for text in INFINITE:
        equivalent.__wrapped__(parse(text), premises)
    assert (told(small), told(large)) == (None, "True")


# Rows


def row(**other: object) -> dict[str, object]:
    return {
        "premises": ["Every cat likes someone.", "Tom is a cat or a dog. ", "Tom likes nobody."],
        "premises-FOL": ["∀x (Cat(x) → ∃y (Likes(x, y)))", "Cat(tom) ⊕ Dog(tom)", "¬∃x (Likes(tom, x))"],
        "conclusion": "Tom is a dog.",
        "conclusion-FOL": "Dog(tom)",
        "label": "True",
        **other,
    }


def rows(stories: int) -> list[dict[str, object]]:
    """Three rows about each of so many stories, one of each label."""
    made = []
    for number in range(stories):
        story = {
            "premises": [f"Every cat likes number {number}.", "Tom is a cat."],
            "premises-FOL": [f"∀x (Cat(x) → Likes(x, n{number}))", "Cat(tom)"],
        }
        likes = f"Likes(tom, n{number})"
        asked = [("True", likes), ("False", f"¬{likes}"), ("Uncertain", "Likes(ann, tom)")]
        made += [row(**story, conclusion=text, label=label) | {"conclusion-FOL": text} for label, text in asked]
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "rows.jsonl", rows(12))


def problem(**other: object) -> Problem:
    made, why = TASK.convert(row(**other))
    assert why == "converted"
    return made


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({}, "converted"),
        ({"label": "False"}, "labelled False, but True follows"),
        ({"conclusion-FOL": ""}, "no formula of the conclusion"),
        ({"conclusion-FOL": "Dog(tom"}, "converted"),
        ({"conclusion-FOL": "Dog(x)"}, "the conclusion cannot be read"),
        ({"conclusion-FOL": 3}, "the conclusion cannot be read"),
        ({"premises-FOL": ["Cat(tom) Dog(tom)"]}, "a premise cannot be read"),
        ({"premises-FOL": ["Cat(tom)", "Dog(tom, ann)"]}, "a predicate has two numbers of names"),
        ({"premises-FOL": ["Dog(tom)", "¬Dog(tom)"]}, "the premises contradict each other"),
        ({"premises-FOL": list(INFINITE)}, "not decided within the budget"),
        ({"premises-FOL": "Dog(tom)\n∀x (Dog(x) → Cat(x))\n"}, "converted"),  # the newer form
    ],
)
def test_a_row_is_converted_or_says_why_not(other: dict[str, object], reason: str) -> None:
    assert TASK.convert(row(**other))[1] == reason


@pytest.mark.parametrize(
    ("text", "formula"),
    [
        ("Dog(tom))", "Dog(tom)"),
        ("(Dog(tom) ∧ Cat(tom)", "Dog(tom) and Cat(tom)"),
        ("From(captain america, dc universe)", "From(captain_america, dc_universe)"),
        ("Companies\u2019Stocks(kO) \u27f7 Dog(tom).", "Companies'Stocks(kO) <-> Dog(tom)"),
    ],
)
def test_a_plain_slip_of_notation_is_repaired(text: str, formula: str) -> None:
    assert read(text) == parse(formula)


@pytest.mark.parametrize("text", ["∀x Dog(x) → Cat(x)", "Dog(tom)) → Cat(tom)", "Dog(tom) ^ Cat(tom)", "((Dog(tom)"])
def test_what_may_have_meant_two_things_is_left_alone(text: str) -> None:
    assert read(text) is None


def test_the_command_prints_the_table(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["folio", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["    36  100.0%  converted", "    36  100.0%  rows"]


@pytest.mark.parametrize(
    "line",
    [
        '{"premises": ["a"]}',
        "[1]",
        json.dumps(row(label=1)),
        json.dumps(row(premises=[])),
        json.dumps(row(conclusion=[])),
    ]
    + [json.dumps(row(**{"premises-FOL": [1]}))],
)
def test_a_broken_row_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(f"{json.dumps(row())}\n{line}\n", encoding="utf-8")
    wanted = 'expected an object with text "premises" and "premises-FOL" and "conclusion" and "label", got'
    with pytest.raises(ValueError, match=f"^folio: {re.escape(str(file))} line 2: {wanted}"):
        TASK.load_rows(file)


def test_problems_are_sound_and_a_story_is_in_one_split_only(path: Path) -> None:
    options = TaskSettings(train=15, test=6, levels=(2,), path=str(path))
    problems = make_problems("folio", options, seed=0)
    assert [p.id for p in problems][::15] == ["folio-train-0001", "folio-test-0001"]
    for made in problems:
        assert run_calls(TASK, made, TASK.gold_calls(made, random.Random(0))).sound
        assert split_of(made.canonical) == made.split
    assert make_problems("folio", options, seed=0) == problems


def test_a_story_that_is_asked_is_not_learnt_from(path: Path, tmp_path: Path) -> None:
    asked = write(tmp_path / "test.jsonl", [made | {"conclusion": "Else?"} for made in rows(2)[::3]])
    assert len(TASK.generate(2, "test", 0, path=path, test_path=asked)) == 2
    assert len(TASK.generate(30, "train", 0, path=path, test_path=asked)) == 30
    with pytest.raises(ValueError, match=r"^folio: 31 train problems asked for, only 30 in .*rows\.jsonl$"):
        TASK.generate(31, "train", 0, path=path, test_path=asked)


def test_the_hub_has_a_validation_split_for_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = {"validation": rows(1), "train": rows(3)}
    monkeypatch.setattr("datasets.load_dataset", lambda name, split: {"yale-nlp/FOLIO": splits}[name][split])
    assert len(TASK.generate(3, "test", 0)) == 3 and len(TASK.generate(6, "train", 0)) == 6


def test_a_prompt_says_what_formulas_may_be_made_of() -> None:
    asked = prompt(TASK, problem())[-1]["content"]
    assert asked.endswith("Tom is a dog. Predicates: Cat/1, Likes/2, Dog/1. Names: tom.")
    assert "all x (Cat(x) -> exists y (Likes(x, y) and not (x = y)))" in asked


def test_the_worked_example_is_sound_and_its_label_is_proved() -> None:
    example = TASK.example()
    assert run_calls(TASK, example, TASK.gold_calls(example)).sound
    assert decide(tuple(map(parse, example.details["premises"])), parse(example.details["goal"])) == example.answer


# What the functions answer

PREMISES = ('Premise("all x (Cat(x) -> exists y Likes(x, y))")', 'Premise("Cat(tom) xor Dog(tom)")')
NOBODY = 'Premise("not exists x Likes(tom, x)")'


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        ('Premise("∀y (Cat(y) → ∃x (Likes(y, x)))")', "P1: all x (Cat(x) -> exists y Likes(x, y))"),
        ('Premise("all x all y (not Likes(tom, y) and Cat(x) -> Cat(x) and not Likes(tom, y))")', None),
        ('Premise("not (Cat(tom) <-> Dog(tom))")', "P1: Cat(tom) xor Dog(tom)"),
        ('Premise("all x not Likes(tom, x)")', "P1: not exists x Likes(tom, x)"),
        ('Premise("all x (exists y Likes(x, y) -> Cat(x))")', None),
        ('Premise("Cat(tom) or Dog(tom)")', None),
        ('Decide("Dog(tom)")', "Unknown"),
        ('Decide("Dog(tom) or not Dog(tom)")', "True"),
        ('Conclude("False")', "Answer recorded"),
    ],
)
def test_a_premise_is_what_z3_proves_equivalent_to_one(call: str, answer: str | None) -> None:
    result = TASK.start(problem()).call(call)
    if answer is None:
        assert result.error == "refused" and result.text.endswith(" is not stated in the problem")
    else:
        assert (result.text, result.error) == (answer, None)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (
            'Premise("Bird(tom)")',
            "Premise: Bird/1 is not of the problem. Predicates: Cat/1, Likes/2, Dog/1. Names: tom.",
        ),
        (
            'Decide("Likes(tom)")',
            "Decide: Likes/1 is not of the problem. Predicates: Cat/1, Likes/2, Dog/1. Names: tom.",
        ),
        ('Decide("Cat(ann)")', "Decide: ann is not of the problem. Predicates: Cat/1, Likes/2, Dog/1. Names: tom."),
        ('Decide("Cat(tom) Dog(tom)")', 'Decide: unexpected "Dog(tom)" behind "Cat(tom)"'),
    ],
)
def test_a_formula_of_something_else_is_refused_with_its_line(call: str, line: str) -> None:
    result = TASK.start(problem()).call(call)
    assert (result.text, result.error) == (f"Error: {line}", "refused")


def test_what_is_not_decided_is_said_in_one_line() -> None:
    given = tuple(map(parse, INFINITE))
    state = FolioTools(given, parse("P(a)"))
    for text in INFINITE:
        assert state.call(f'Premise("{text}")').error is None
    assert state.call('Decide("P(a)")').text == "not decided within the budget"
    assert state.call('Conclude("Unknown")').error is None and not state.answer_follows()


@pytest.mark.parametrize(
    ("calls", "answer", "sound"),
    [
        ((*PREMISES, NOBODY, 'Decide("Dog(tom)")'), "True", True),
        ((NOBODY, *PREMISES, 'Decide("not not Dog(tom)")'), "True", True),
        ((*PREMISES, 'Decide("Dog(tom)")', NOBODY), "True", False),
        ((*PREMISES, NOBODY, 'Decide("Cat(tom)")'), "True", False),
        ((*PREMISES, NOBODY), "True", False),
        ((*PREMISES, NOBODY, 'Decide("Likes(ann, tom)")'), "Unknown", True),
        ((*PREMISES, 'Decide("Likes(ann, tom)")'), "Unknown", False),
        ((*PREMISES, 'Decide("Likes(ann, tom)")', NOBODY), "Unknown", False),
    ],
)
def test_an_answer_follows_from_what_was_recorded_before_it_was_decided(
    calls: tuple[str, ...], answer: str, sound: bool
) -> None:
    asked = {"conclusion-FOL": "Likes(ann, tom)", "label": "Uncertain"} if answer == "Unknown" else {}
    chain = run_calls(TASK, problem(**asked), [*calls, f'Conclude("{answer}")', "Stop()"])
    assert all(step.error is None for step in chain.steps) and chain.solved and chain.sound == sound


@pytest.mark.parametrize("name", TASK.mistakes)
def test_a_chain_with_a_mistake_is_not_sound(name: str, path: Path) -> None:
    outcomes = Counter()
    for made in TASK.generate(36, "test", 0, test_path=path):
        calls = TASK.mistakes[name](made, TASK.gold_calls(made), random.Random(made.id))
        if calls is not None:
            chain = run_calls(TASK, made, calls)
            outcomes[chain.outcome] += 1
            assert not chain.sound, chain
    assert outcomes.total() == (24 if name == "left_out" else 36)  # "Unknown" stays so without a premise


# Hostile formulas


def hostile(rng: random.Random) -> str:
    """Nesting, towers of quantifiers, 2,000 characters, clashing arities, and any tokens in a row."""
    size = rng.choice((1, 3, 8, 9, 30, 200, 1990))
    names = "xyzab"
    tower = "".join(f"{rng.choice(('all', 'exists'))} {rng.choice(names)} " for _ in range(min(size, 150)))
    tokens = [*"()=,∀∃∧∨¬⊕", "->", "<->", "and", "or", "xor", "not ", "all x ", "exists y ", "P(a)", "Q(b)", "R(a, b)"]
    text = rng.choice(
        (
            "(" * size + "P(a)" + ")" * rng.choice((size, size - 1)),
            "not " * size + "R(a, b)",
            tower + "R(x, y)",
            tower + "(P(x) <-> (R(y, z) xor Q(x)))",
            rng.choice((" and ", " -> ", " <-> ", " xor ")).join(["P(a)"] * size),
            " or ".join(f"P({', '.join(rng.choices(names, k=rng.randint(1, 4)))})" for _ in range(size)),
            "".join(rng.choices(tokens, k=min(size, 300))),
            "".join(rng.choices([*tokens, " ", "\u2028", "{", "é", "9", "-", "."], k=size)),
            f"P({'a' * size})",
            str(random_formula(rng, rng.choice((2, 4, 6)))),
        )
    )
    return text[: 2_000 - len('Premise("")')]


def is_of(state: FolioTools, text: str) -> bool:
    """Whether it is a formula of the problem's symbols."""
    with suppress(ToolError):
        return bool(state._read(text))
    return False


@pytest.mark.slow
def test_no_hostile_formula_makes_more_than_a_line_or_more_work_than_the_budget() -> None:
    """Refused before z3 is asked: in 50 ms of this process. Else z3 has its budget; how long that took is printed."""
    given = (*INFINITE, "all x (P(x) <-> exists y (R(x, y) and not Q(y)))", "P(a) xor Q(b)")
    rng, kinds, longest = random.Random(0), Counter(), Counter()
    state = FolioTools(tuple(map(parse, given)), parse("R(a, b)"))
    for text in given:
        assert state.call(f'Premise("{text}")').error is None  # also loads z3
    for _ in range(runs.PROBLEMS):
        text = hostile(rng)
        call, kind = f'{rng.choice(("Premise", "Decide"))}("{text}")', "asked z3" if is_of(state, text) else "refused"
        start = time.process_time()
        result = state.call(call)
        seconds = time.process_time() - start
        if kind == "refused" and seconds > 0.05:  # this process may just have collected garbage
            start = time.process_time()
            state.call(call)
            seconds = min(seconds, time.process_time() - start)
        assert result.text.isprintable() and 0 < len(result.text) <= 300 and " failed (" not in result.text, call
        assert kind == "asked z3" or seconds <= 0.05, call
        kinds[kind] += 1
        longest[kind] = max(longest[kind], seconds)
    print(dict(kinds), {kind: f"{seconds:.3f} s" for kind, seconds in longest.items()})
    assert longest["asked z3"] < 1 and min(kinds["refused"], kinds["asked z3"]) > runs.PROBLEMS / 20


# The real files


def real(name: str) -> list[dict[str, object]]:
    if not (DATA / name).is_file():
        pytest.skip(f"FOLIO's {name} is not at {DATA}")
    return TASK.load_rows(DATA / name)


def counts(table: str) -> list[str]:
    return [line.replace("%", "").split(maxsplit=2)[0] + " " + line.split(maxsplit=2)[2] for line in table.splitlines()]


def test_nine_in_ten_rows_with_a_formula_of_the_conclusion_become_chains() -> None:
    real("validation_part.jsonl")
    assert counts(TASK.report(DATA / "validation_part.jsonl")) == [
        "87 converted",
        "1 labelled True, but Unknown follows",
        "1 labelled False, but Unknown follows",
        "1 a premise cannot be read",
        "90 rows",
    ]


def test_97_in_100_premises_of_the_training_rows_can_be_read() -> None:
    texts = [text for row in real("train.jsonl") for text in row["premises-FOL"]]
    assert (len(texts), sum(read(text) is not None for text in texts)) == (5239, 5170)


PRIORITY = {"∀": 5, "∃": 5, "¬": 5, "∧": 4, "∨": 3, "⊕": 3, "→": 2, "↔": 1, "(": 0}
SMT = {"¬": "not", "∧": "and", "∨": "or", "⊕": "xor", "→": "=>", "↔": "="}


class Smt:
    """Formulas in the data set's symbols -> SMT-LIB, with two stacks (Dijkstra's shunting yard) and no tree."""

    def __init__(self) -> None:
        self.declared: dict[str, str] = {}

    def formula(self, text: str) -> str:
        operators, operands, bound = [], [], set(re.findall(r"[∀∃](\w+)", text))

        def reduce() -> None:
            operator = operators.pop()
            last = operands.pop()
            if operator[0] in "∀∃":
                operands.append(f"({'forall' if operator[0] == '∀' else 'exists'} ((|{operator[1:]}| Thing)) {last})")
            else:
                before = [] if operator == "¬" else [operands.pop()]
                operands.append(f"({SMT[operator]} {' '.join([*before, last])})")

        for atom, sign in re.findall(r"([\w'.+-]+ ?\([^()∀∃∧∨¬⊕→↔]*\))|([∀∃]\w+|[^\s\w])", text):
            if atom:
                operands.append(self.atom(atom, bound))
            elif sign[0] in "∀∃¬(":
                operators.append(sign)
            elif sign == ")":
                while operators[-1] != "(":
                    reduce()
                operators.pop()
            else:
                while operators and PRIORITY[operators[-1][0]] >= PRIORITY[sign] + (sign == "→"):
                    reduce()
                operators.append(sign)
        while operators:
            reduce()
        (whole,) = operands
        return whole

    def atom(self, text: str, bound: set[str]) -> str:
        predicate, names = text.rstrip(")").split("(")
        listed = [name.strip() for name in names.split(",")]
        for name in set(listed) - bound:
            self.declared[f"{name}/0"] = f"(declare-const |{name}| Thing)"
        name = predicate.strip()
        self.declared[f"{name}/{len(listed)}"] = f"(declare-fun |{name}| ({'Thing ' * len(listed)}) Bool)"
        return f"(|{name}| {' '.join(f'|{one}|' for one in listed)})"


def other_label(row: dict) -> str | None:
    """What z3 says of the SMT-LIB text; None where this reader or z3 cannot read it."""
    smt = Smt()
    try:
        *premises, goal = map(smt.formula, (*row["premises-FOL"], row["conclusion-FOL"]))
        found = []
        for claim in (goal, f"(not {goal})"):
            lines = [
                "(declare-sort Thing 0)",
                *smt.declared.values(),
                *(f"(assert {one})" for one in (*premises, claim)),
            ]
            solver = z3.Solver()
            solver.set("timeout", 10_000)
            solver.add(z3.parse_smt2_string("\n".join(lines)))
            found.append(solver.check() == z3.sat)
    except (IndexError, KeyError, ValueError, z3.Z3Exception):
        return None
    return {(True, False): "True", (False, True): "False", (True, True): "Unknown"}.get(tuple(found))


READ_ONCE = [  # conclusions, and our labels, of rows that the other reader cannot read
    ("KO is a company stock.", "Unknown"),  # these three have a ’ in names
    ("KO is a company stock and a growth company’s stock.", "False"),
    ("If KO is a growth company’s stock or if its price is", "True"),
    ("Sir Digby’s nemesis loses.", None),  # a comma where an operator should be
    ("Peter tidies his space consistently and enjoys the process", "Unknown"),  # these three a parenthesis too many
    ("Peter is either a foodie who goes out frequently to find new", "False"),
    ("Peter is either a foodie who goes out frequently to find new", "True"),
]


def test_another_reader_and_z3_find_the_same_labels() -> None:
    found = []
    for made in real("validation_part.jsonl"):
        (ours, why), other = TASK.convert(made), other_label(made)
        label = ours.answer if ours else (re.findall(r"but (\w+) follows", why) or [None])[0]
        found.append((made["conclusion"], label, other))
    assert [one for one in found if None not in one and one[1] != one[2]] == []
    unread = [(text, label) for text, label, other in found if other is None]
    for (text, label), (start, known) in zip(unread, READ_ONCE, strict=True):
        assert text.startswith(start) and label == known
    assert len(found) == 90


@pytest.mark.parametrize("name", TASK.mistakes)
def test_real_chains_with_a_mistake_are_rarely_sound(name: str) -> None:
    real("validation_part.jsonl")
    chains = []
    for made in TASK.generate(87, "test", 0, test_path=DATA / "validation_part.jsonl"):
        calls = TASK.mistakes[name](made, TASK.gold_calls(made), random.Random(made.id))
        chains += [] if calls is None else [run_calls(TASK, made, calls)]
    print(name, Counter(chain.outcome for chain in chains))
    assert len(chains) > 50 and not any(chain.sound for chain in chains)

"""Generated word problems as a specification: answers, tools, stories, gold chains and mistakes."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from dataclasses import asdict
from fractions import Fraction
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toolsets import using

from fcdpo_utils.arithmetic import (
    LEVELS,
    SCHEMAS,
    Arithmetic,
    ArithmeticTools,
    load_stories,
    parse_answer,
)
from fcdpo_utils.episode import run_calls
from fcdpo_utils.numbers import format_number
from fcdpo_utils.problems import Problem
from fcdpo_utils.tasks.expression import CalculateTools
from fcdpo_utils.tools import ToolResult, Toolset

TASK = Arithmetic()
PROBLEMS = TASK.generate(336, "train", seed=7)  # every schema at least 21 times
TOOLSETS = list(TASK.toolsets)


def run(problem: Problem, calls: list[str], toolset: str) -> tuple[Toolset, list[ToolResult]]:
    state = TASK.start(using(toolset, problem))
    return state, [state.call(call) for call in calls]


# What an answer is


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("36", 36),
        (" -4 ", -4),
        ("$18", 18),
        ("-$18", -18),
        ("$-18", -18),
        ("1,250.50", Fraction(2501, 2)),
        ("20%", 20),
        ("12 apples", 12),
        ("12 apples.", 12),
        ("41.", 41),
        (".5", Fraction(1, 2)),
        ("3/4", Fraction(3, 4)),
        ("-22/7 miles", Fraction(-22, 7)),
    ],
)
def test_an_answer_is_read_as_people_write_it(text: str, value: Fraction) -> None:
    assert parse_answer(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3 4",
        "3, 4",
        "1,2",
        "12 and 14",
        "1/2/3",
        "1/0",
        "1.2.3",
        "--3",
        "-$-3",
        "nan",
        "inf",
        "True",
        "apples 3",
        "1e5",
        "9" * 40,
        "9" * 5000,
        "1;2",
    ],
)
def test_anything_but_one_number_is_no_answer(text: str) -> None:
    with pytest.raises(ValueError):
        parse_answer(text)


def test_a_bool_is_no_answer() -> None:
    with pytest.raises(ValueError, match="expected one number, got 'True'"):
        parse_answer(True)


@given(st.fractions(min_value=-(10**9), max_value=10**9, max_denominator=10**6))
def test_a_formatted_number_is_read_back_exactly(number: Fraction) -> None:
    assert parse_answer(format_number(number)) == number


@given(st.text(max_size=60))
def test_any_text_is_a_number_or_a_value_error(text: str) -> None:
    try:
        assert isinstance(parse_answer(text), Fraction)
    except ValueError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("answer", [None, "", "no idea", "37", "36 37"])
def test_a_missing_unreadable_or_other_answer_is_incorrect(answer: str | None) -> None:
    assert not TASK.is_correct(problem_with_answer("36"), answer)


def test_the_same_number_written_otherwise_is_correct() -> None:
    assert TASK.is_correct(problem_with_answer("36"), "$36.00")


def problem_with_answer(answer: str) -> Problem:
    return Problem("x", "arithmetic", "train", 1, "?", answer, "x", {"steps": [["Sum", "30", "6"]]})


# What the tools answer


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ("Sum(30, 6)", "36"),
        ("Subtract(2, 5)", "-3"),
        ("Multiply(0.1, 3)", "0.3"),
        ("Divide(22, 7)", "22/7"),
        ('Multiply("22/7", 7)', "22"),
        ("Answer(36)", "Answer recorded"),
        ('Answer("1/3")', "Answer recorded"),
        ("Divide(1, 0)", "Error: Divide: cannot divide by zero"),
        (f"Multiply({10**15}, 10)", f"Error: Multiply: the result is beyond {10**15}"),
        (f"Divide(1.5, {10**15})", f"Error: Divide: the result is beyond {10**15}"),
    ],
)
def test_a_step_gives_its_exact_result_or_one_error_line(call: str, text: str) -> None:
    assert ArithmeticTools().call(call).text == text


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("2 * (3 + 4)", "14"),
        ("2 + 3 * 4 - 6 / 2", "11"),
        ("-(2 - 5) / 2", "1.5"),
        ("0.1 + 0.2", "0.3"),
        ("1 / 3", "1/3"),
        ("41", "Error: Calculate: the expression needs at least one of + - * /"),
        ("1 / (2 - 2)", "Error: Calculate: cannot divide by zero"),
        ("2 ** 9", "Error: Calculate: expected only numbers, + - * / and parentheses"),
        ("7 // 2", "Error: Calculate: expected only numbers, + - * / and parentheses"),
        ("2 (3)", "Error: Calculate: expected only numbers, + - * / and parentheses"),
        ("2 +", "Error: Calculate: cannot read the expression"),
        ("9" * 20 + " + 1", "Error: Calculate: a number is too large"),
        (f"{10**15} * 10", f"Error: Calculate: the result is beyond {10**15}"),
        ("1" + "+1" * 40, "Error: Calculate: the expression is nested too deeply"),
    ],
)
def test_an_expression_gives_its_exact_result_or_one_error_line(expression: str, text: str) -> None:
    assert CalculateTools().call(f'Calculate("{expression}")').text == text


@pytest.mark.parametrize("expression", ["a + 1", "1_0 + 1", "f(2)", "1, 2", "", "1 == 1", "[1]", "1+1" * 70, "1\\n+1"])
def test_only_numbers_and_four_operators_reach_the_evaluator(expression: str) -> None:
    result = CalculateTools().call(f'Calculate("{expression}")')
    allowed = "expected at most 200 characters: numbers, + - * / and parentheses"
    assert (result.text, result.error) == (f"Error: Calculate: {allowed}", "refused")


@given(st.text(alphabet="0123456789.+-*/() ", max_size=80))
def test_any_expression_is_a_number_or_a_refusal(expression: str) -> None:
    result = CalculateTools().call(f'Calculate("{expression}")')
    assert result.error in (None, "refused") and "failed" not in result.text


@pytest.mark.parametrize("calls", [["Sum(30, 6)", "Answer(36)"], ["Sum(30, 6)", "Sum(1, 1)", "Answer(36.0)"]])
def test_an_answer_that_was_computed_follows(calls: list[str]) -> None:
    tools = ArithmeticTools()
    for call in calls:
        tools.call(call)
    assert tools.answer_follows()


@pytest.mark.parametrize("calls", [[], ["Sum(30, 6)"], ["Answer(36)"], ["Sum(1, 2)", "Answer(36)"]])
def test_an_answer_that_was_not_computed_does_not_follow(calls: list[str]) -> None:
    tools = ArithmeticTools()
    for call in calls:
        tools.call(call)
    assert not tools.answer_follows()


def test_an_unknown_toolset_is_one_line() -> None:
    with pytest.raises(ValueError, match="arithmetic: toolset must be one of steps, expression, got 'words'"):
        TASK.start(using("words", PROBLEMS[0]))


# What a story is


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.name)
def test_every_phrasing_names_a_person_and_all_numbers_in_the_order_of_use(schema) -> None:
    used = dict.fromkeys(word for word in re.findall(r"\b[a-z]\b", schema.steps))
    assert list(used) == list(schema.numbers)
    assert len(schema.phrasings) >= 3
    for phrasing in schema.phrasings:
        assert re.findall(r"\{([a-z])\}", phrasing) == list(schema.numbers)
        assert "{name}" in phrasing and phrasing.endswith("?")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"numbers": {"a": "huge", "b": "few"}}, "TypeError"),
        ({"steps": "Sum a c"}, "ValueError"),
        ({"steps": "Power a b"}, "KeyError"),
        ({"tale": "a twice-told one"}, "TypeError"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value,
)
def test_a_story_that_cannot_be_read_is_named_in_one_line(change: dict, said: str, tmp_path: Path) -> None:
    story = {"name": "pair", "steps": "Sum a b", "numbers": {"a": "few", "b": [3, 5]}, "phrasings": ["{a} and {b}?"]}
    path = tmp_path / "own.yaml"
    written = {"ranges": {"few": [2, 9]}, "words": {}, "stories": [story]}
    path.write_text(json.dumps(written), encoding="utf-8")  # JSON is YAML
    assert load_stories(path)[0][0].numbers["b"] == [3, 4, 5]
    path.write_text(json.dumps(written | {"stories": [story | change]}), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"^own.yaml: cannot read the story 'pair': {said}\(.+\)$"):
        load_stories(path)


def test_there_are_at_least_fourteen_distinct_schemas_over_all_levels() -> None:
    assert len({schema.steps for schema in SCHEMAS}) >= 14
    assert {schema.level for schema in SCHEMAS} == set(LEVELS)


def test_problems_are_spread_evenly_over_levels_and_schemas() -> None:
    levels = Counter(problem.level for problem in PROBLEMS)
    assert set(levels.values()) == {84}
    schemas = Counter(problem.details["schema"] for problem in PROBLEMS)
    assert set(schemas) == {schema.name for schema in SCHEMAS} and set(schemas.values()) <= {21, 28}


def test_questions_are_short_distinct_and_written_with_digits() -> None:
    lengths = [len(problem.question.split()) for problem in PROBLEMS]
    assert max(lengths) <= 60 and sum(lengths) / len(lengths) <= 40
    assert len({problem.question for problem in PROBLEMS}) == len(PROBLEMS)
    assert not any("{" in problem.question for problem in PROBLEMS)


def test_about_a_third_of_the_questions_hold_a_number_that_plays_no_part() -> None:
    def distracted(problem: Problem) -> bool:
        told = re.findall(r"\d+(?:\.\d+)?", problem.question)
        return len(told) == problem.canonical.count("=") + 1

    assert 0.25 < sum(map(distracted, PROBLEMS)) / len(PROBLEMS) < 0.42


def test_answers_are_positive_and_whole_or_cents() -> None:
    for problem in PROBLEMS:
        answer, money = Fraction(problem.answer), "dollars" in problem.question
        assert answer > 0 and (answer * (100 if money else 1)).denominator == 1


def test_the_same_arguments_give_the_same_problems() -> None:
    assert TASK.generate(50, "test", seed=3) == TASK.generate(50, "test", seed=3)
    assert TASK.generate(50, "test", seed=3) != TASK.generate(50, "test", seed=4)


def test_known_problems_stay_the_same_between_runs_and_machines() -> None:
    first = TASK.generate(1, "train", seed=0)[0]
    assert first.id == "arithmetic-train-0001"
    assert first.canonical == "packs_plus a=7 b=9 c=5"


def test_splits_share_no_canonical_form_whatever_the_seed() -> None:
    train = {problem.canonical for seed in range(3) for problem in TASK.generate(150, "train", seed)}
    test = {problem.canonical for seed in range(3) for problem in TASK.generate(150, "test", seed)}
    assert train and test and not train & test


def test_only_the_levels_asked_for_come() -> None:
    assert {problem.level for problem in TASK.generate(20, "test", 0, levels=(2, 5))} == {2, 5}


def test_a_problem_can_be_stored_as_json() -> None:
    assert Problem(**json.loads(json.dumps(asdict(PROBLEMS[0])))) == PROBLEMS[0]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"split": "dev"}, "arithmetic: split must be one of train, test, got 'dev'"),
        ({"levels": (2, 9)}, r"arithmetic: levels must be some of 2, 3, 4, 5, got \(2, 9\)"),
        ({"levels": ()}, r"arithmetic: levels must be some of 2, 3, 4, 5, got \(\)"),
    ],
)
def test_a_wrong_split_or_level_is_one_line(arguments: dict, line: str) -> None:
    with pytest.raises(ValueError, match=f"^{line}$"):
        TASK.generate(**({"count": 1, "split": "train", "seed": 0} | arguments))


# What a gold chain is


def test_the_worked_example_is_solved_by_its_calls_and_in_no_split() -> None:
    example = TASK.example()
    assert TASK.gold_calls(example) == ["Sum(12, 8)", "Subtract(20, 5)", "Answer(15)", "Stop()"]
    assert example.split == "example"


def test_calls_of_both_toolsets() -> None:
    steps = [["Divide", "4", "3"], ["Multiply", "4/3", "9"]]
    problem = Problem("x", "arithmetic", "train", 2, "?", "12", "x", {"steps": steps})
    assert TASK.gold_calls(problem) == ["Divide(4, 3)", 'Multiply("4/3", 9)', "Answer(12)", "Stop()"]
    expected = ['Calculate("4 / 3")', 'Calculate("(4/3) * 9")', "Answer(12)", "Stop()"]
    assert TASK.gold_calls(using("expression", problem)) == expected


@pytest.mark.parametrize("toolset", TOOLSETS)
@pytest.mark.parametrize("schema", [schema.name for schema in SCHEMAS])
def test_every_gold_chain_is_sound(schema: str, toolset: str) -> None:
    problems = [problem for problem in PROBLEMS if problem.details["schema"] == schema]
    for problem, rng in product(problems, (None, random.Random(1))):
        problem = using(toolset, problem)
        assert run_calls(TASK, problem, TASK.gold_calls(problem, rng)).sound, problem


@settings(max_examples=50)
@given(seed=st.integers(0, 10**6))
def test_variations_only_swap_operands_of_sums_and_products(seed: int) -> None:
    problem = PROBLEMS[seed % len(PROBLEMS)]
    for gold, varied in zip(TASK.gold_calls(problem), TASK.gold_calls(problem, random.Random(seed)), strict=True):
        assert varied == gold or (varied == swapped(gold) and gold.startswith(("Sum", "Multiply")))


def test_chains_vary() -> None:
    problem = next(p for p in PROBLEMS if p.details["schema"] == "two_kinds")
    assert len({tuple(TASK.gold_calls(problem, random.Random(seed))) for seed in range(60)}) == 8


def swapped(call: str) -> str:
    return re.sub(r"\((.+), (.+)\)", r"(\2, \1)", call)


# What a mistake is


@pytest.mark.parametrize("toolset", TOOLSETS)
@pytest.mark.parametrize("name", TASK.mistakes)
def test_a_mistaken_chain_runs_and_mostly_ends_wrong(name: str, toolset: str) -> None:
    rng, outcomes = random.Random(0), Counter()
    for problem in PROBLEMS:
        problem = using(toolset, problem)
        gold = TASK.gold_calls(problem, rng)
        calls = TASK.mistakes[name](problem, gold, rng)
        if calls is None:
            outcomes["not applicable"] += 1
            continue
        state, results = run(problem, calls, toolset)
        assert [result for result in results if result.error] == [] and state.stopped and calls != gold
        outcomes["right" if TASK.is_correct(problem, state.answer) else "wrong"] += 1
    assert outcomes["wrong"] >= 0.95 * (outcomes["wrong"] + outcomes["right"]), outcomes
    assert outcomes["not applicable"] <= 0.2 * len(PROBLEMS), outcomes


EXAMPLE_MISTAKES = {
    "swapped_operands": {("Sum(12, 8)", "Subtract(5, 20)", "Answer(-15)")},
    "skipped_step": {("Subtract(12, 5)", "Answer(7)")},
    "wrong_operation": {
        ("Subtract(12, 8)", "Subtract(4, 5)", "Answer(-1)"),
        ("Multiply(12, 8)", "Subtract(96, 5)", "Answer(91)"),
        ("Divide(12, 8)", "Subtract(1.5, 5)", "Answer(-3.5)"),
        ("Sum(12, 8)", "Sum(20, 5)", "Answer(25)"),
        ("Sum(12, 8)", "Multiply(20, 5)", "Answer(100)"),
        ("Sum(12, 8)", "Divide(20, 5)", "Answer(4)"),
    },
    "wrong_number": {
        ("Sum(8, 8)", "Subtract(16, 5)", "Answer(11)"),
        ("Sum(5, 8)", "Subtract(13, 5)", "Answer(8)"),
        ("Sum(12, 12)", "Subtract(24, 5)", "Answer(19)"),
        ("Sum(12, 5)", "Subtract(17, 5)", "Answer(12)"),
        ("Sum(12, 8)", "Subtract(20, 12)", "Answer(8)"),
        ("Sum(12, 8)", "Subtract(20, 8)", "Answer(12)"),
    },
    "wrong_unit": {
        ("Sum(12, 8)", "Subtract(20, 5)", f"Answer({answer})") for answer in ("20", "150", "1500", "1.5", "0.15")
    },
}


@pytest.mark.parametrize("name", TASK.mistakes)
def test_later_steps_carry_the_wrong_result_on(name: str) -> None:
    example = TASK.example()
    gold = TASK.gold_calls(example)
    seen = {tuple(TASK.mistakes[name](example, gold, random.Random(seed))[:-1]) for seed in range(200)}
    assert seen == EXAMPLE_MISTAKES[name]


@pytest.mark.parametrize("name", ["swapped_operands", "skipped_step"])
def test_a_mistake_that_does_not_apply_is_none(name: str) -> None:
    problem = problem_with_answer("36")
    assert TASK.mistakes[name](problem, TASK.gold_calls(problem), random.Random(0)) is None

"""Numbers as a specification: how they are read, written and compared, and which ones a text states."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcdpo_utils.numbers import answers_equal, format_number, is_result, is_stated, numbers_in, parse_number

# Reading and writing


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (3, Fraction(3)),
        (2.5, Fraction(5, 2)),
        (0.1, Fraction(1, 10)),
        ("3", Fraction(3)),
        ("-2.5", Fraction(-5, 2)),
        ("3.", Fraction(3)),
        (".5", Fraction(1, 2)),
        ("-1/3", Fraction(-1, 3)),
        ("1.5/3", Fraction(1, 2)),
        (" +7 ", Fraction(7)),
    ],
)
def test_a_number_is_read_exactly(value: Any, number: Fraction) -> None:
    assert parse_number(value) == number


@pytest.mark.parametrize(
    "value",
    ["", " ", "two", "1 2", "1,000", "1_000", "$3", "3%", "1e3", "nan", "inf", "1/0", "1/-3", "--1", "1/2/3", "0x1"],
)
def test_other_text_is_no_number(value: str) -> None:
    with pytest.raises(ValueError, match="not a number|zero denominator"):
        parse_number(value)


@pytest.mark.parametrize("value", [True, False, [1], []])
def test_booleans_and_lists_are_no_numbers(value: Any) -> None:
    with pytest.raises(TypeError, match="not a number"):
        parse_number(value)


@pytest.mark.parametrize(
    "value", [10**15 + 1, -(10**15) - 1, 1e16, 1e-16, "1000000000000001", "0." + "1" * 20, "1/" + "9" * 20]
)
def test_a_number_out_of_range_is_rejected(value: Any) -> None:
    with pytest.raises(ValueError, match="number too large"):
        parse_number(value)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (Fraction(7), "7"),
        (Fraction(-7), "-7"),
        (Fraction(0), "0"),
        (Fraction(100), "100"),
        (Fraction(5, 2), "2.5"),
        (Fraction(-1, 2), "-0.5"),
        (Fraction(1, 10**6), "0.000001"),
        (Fraction(1, 10**7), "1/10000000"),
        (Fraction(22, 7), "22/7"),
        (Fraction(-1, 3), "-1/3"),
    ],
)
def test_a_number_is_written_in_its_shortest_exact_form(number: Fraction, text: str) -> None:
    assert format_number(number) == text


@settings(derandomize=True, deadline=None, database=None, max_examples=300)
@given(st.fractions(min_value=-(10**9), max_value=10**9, max_denominator=10**9))
def test_a_written_number_reads_back_as_itself(number: Fraction) -> None:
    assert parse_number(format_number(number)) == number


# Comparing


def test_whole_numbers_are_compared_exactly_and_others_to_a_millionth() -> None:
    assert not answers_equal(Fraction(10_000_001), Fraction(10_000_000))
    assert answers_equal(Fraction(1, 3), Fraction("0.3333333"))
    assert not answers_equal(Fraction(1, 3), Fraction("0.3333"))
    assert answers_equal(Fraction(0), Fraction(0))
    assert not answers_equal(Fraction(0), Fraction(1, 10**9))


# What a text states


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("He has 7 pens.", ["7"]),
        ("It costs $1,250.50 or .5.", ["1250.5", "0.5"]),
        ("1,2 and 3; -4", ["1", "2", "3", "4"]),
        ("1/3 of it", ["1", "3", "1/3"]),
        ("2 1/2 cups", ["2", "1", "0.5", "2.5"]),
        ("20%", ["20", "100", "0.2", "0.01"]),
        ("20 percent", ["20", "100", "0.2", "0.01"]),
        ("twenty percent", ["20", "100", "0.2", "0.01"]),
        ("50 cents", ["50", "100", "0.5", "0.01"]),
        ("Seven", ["7"]),
        ("twenty-five", ["20", "5", "25"]),
        ("two hundred and fifty", ["2", "100", "200", "50", "250"]),
        ("two thousand five hundred", ["2", "1000", "2000", "5", "2005", "100", "2500"]),
        ("2 million", ["2", "1000000", "2000000"]),
        ("half a dozen", ["2", "0.5", "12", "6"]),
        ("two dozen pairs", ["2", "12", "24", "48"]),
        ("a quarter", ["4", "0.25"]),
        ("two thirds", ["2", "3", "1/3", "2/3"]),
        ("two and a half", ["2", "0.5", "2.5", "1"]),
        ("twice, thrice, double and once", ["2", "3", "1"]),
        ("the 4th of 3x", ["4", "3"]),
        ("ten. Two", ["10", "2"]),
        ("five and six", ["5", "6"]),
        ("F1: likes(Ann2), R_3", []),
        ("a pen of Tom's and an apple", []),
        ("9" * 5000, []),
    ],
)
def test_a_text_states_its_numbers_in_digits_and_words(text: str, stated: list[str]) -> None:
    assert sorted(numbers_in(text)) == sorted(map(Fraction, stated))


@given(st.text(max_size=60) | st.text(alphabet="0123456789/.,-$% andtwohlf", max_size=40))
def test_any_text_states_numbers_that_are_not_negative(text: str) -> None:
    assert all(number >= 0 for number in numbers_in(text))


@settings(max_examples=300)
@given(st.fractions(min_value=0, max_value=10**9, max_denominator=10**6))
def test_a_written_number_is_stated(number: Fraction) -> None:
    assert number in numbers_in(f"It is {format_number(number)}.")


@pytest.mark.parametrize(
    ("value", "stated"),
    [
        (6, True),
        (-6, True),
        (6.0, True),
        (7, False),
        (0, False),
        (True, True),  # no number
        ("6", True),
        ("7", False),
        ("\uff17", False),  # a digit seven that is as wide as two
        ("1,000", False),
        ("2 * (6 - 2.5)", True),
        ("2 * (6 - 3)", False),
        ("1/3", True),
        ("0.3333333", True),
        ("6/2", True),
        ("6/7", False),
        ("1/0", False),
        ("F1", True),
        ("likes(Ann7)", True),
        ("9" * 1_900, False),
        ([6, "2.5"], True),
        ([6, 7], False),
    ],
)
def test_each_number_in_an_argument_must_be_stated(value: Any, stated: bool) -> None:
    assert is_stated(value, {Fraction(6), Fraction(2), Fraction(5, 2), Fraction(1, 3)}) == stated


@pytest.mark.parametrize(
    ("answer", "line", "given_by"),
    [
        ("12.5", "12.50 dollars", True),
        ("$12.50", "12.5", True),
        ("-3", "-3", True),
        ("3", "-3", False),
        ("22/7", "22/7", True),
        ("22", "22/7", False),
        ("1", "F1: cat(Tom)", False),
        ("Ann", "  ANN ", True),
        ("Ann", "Ann is a knight", False),
        ("2 or 3", "2 or 3", True),
        ("2 or 3", "2", False),
    ],
)
def test_a_result_gives_an_answer_as_its_number_or_the_same_text(answer: str, line: str, given_by: bool) -> None:
    assert is_result(answer, line) == given_by

"""Overlap between training and evaluation texts as a specification, on texts that can be counted by hand."""

from __future__ import annotations

import json

import pages
import pytest
from contamination import DATA, REAL_FILE, masked, questions, table, wording
from hypothesis import given
from hypothesis import strategies as st
from test_gsm_symbolic import needs_package

from fcdpo_utils.arithmetic import Arithmetic
from fcdpo_utils.lab.contamination import Overlap, overlap
from fcdpo_utils.problems import Task
from fcdpo_utils.tasks.logic.task import FirstOrderLogic

ALPHABET = " ".join(f"word{number}" for number in range(26))


def words(start: int, stop: int) -> str:
    """Words `start` to `stop` - 1 of a text of 26 different ones."""
    return " ".join(ALPHABET.split()[start:stop])


# What counts as a shared n-gram


def test_thirteen_words_in_a_row_are_an_overlap() -> None:
    assert overlap([words(0, 13) + " and then other things"], [words(0, 13)]).sharing == 1


def test_twelve_words_in_a_row_are_none() -> None:
    assert overlap([words(0, 12) + " other"], [words(0, 13)]) == Overlap(1, duplicates=0, sharing=0, mean_share=0.0)


def test_the_same_words_in_another_order_are_none() -> None:
    assert overlap([" ".join(reversed(words(0, 13).split()))], [words(0, 13)]).sharing == 0


def test_an_overlap_never_spans_two_training_texts() -> None:
    assert overlap([words(0, 7), words(7, 13)], [words(0, 13)]).sharing == 0


def test_the_length_of_the_n_grams_can_be_chosen() -> None:
    assert [overlap(["a b c x"], ["a b c d"], n).sharing for n in (1, 3, 4)] == [1, 1, 0]


def test_a_text_shorter_than_that_counts_as_a_whole() -> None:
    train = ["She said that Tom is kind today."]
    assert overlap(train, ["Tom is kind."]).sharing == 1
    assert overlap(train, ["Tom is not kind."]).sharing == 0


def test_the_share_is_of_the_distinct_n_grams_of_a_text_and_averaged_over_texts() -> None:
    found = overlap(["a b c d"], ["a b c x", "p q r", "a b a b"], n=2)  # 2 of 3, 0 of 2, 1 of 2
    assert found.sharing == 2 and found.mean_share == pytest.approx((2 / 3 + 0 + 1 / 2) / 3)


# What counts as a duplicate


@pytest.mark.parametrize("copy", ["TOM is kind", "tom  is\nkind!", '"Tom" is kind.'])
def test_case_punctuation_and_spaces_do_not_hide_a_duplicate(copy: str) -> None:
    assert overlap([copy], ["Tom is kind."]) == Overlap(1, duplicates=1, sharing=1, mean_share=1.0)


def test_a_text_within_a_longer_one_is_an_overlap_but_no_duplicate() -> None:
    assert overlap([words(0, 20)], [words(2, 18)]) == Overlap(1, duplicates=0, sharing=1, mean_share=1.0)


def test_another_number_is_another_text() -> None:
    assert overlap(["Ann has 12 pens"], ["Ann has 13 pens"]).duplicates == 0


# Edges


@pytest.mark.parametrize("train", [[], ["", "?!"], ["Tom"]])
def test_a_text_without_words_overlaps_with_nothing(train: list[str]) -> None:
    assert overlap(train, ["", "..."]) == Overlap(2, duplicates=0, sharing=0, mean_share=0.0)


def test_no_evaluation_texts_are_no_division_by_zero() -> None:
    assert overlap(["Tom"], []) == Overlap(0, duplicates=0, sharing=0, mean_share=0.0)


def test_n_grams_of_no_words_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"^contamination: n must be at least 1, got 0$"):
        overlap(["Tom"], ["Tom"], n=0)


def test_a_result_can_be_stored_as_json() -> None:
    record = json.loads(json.dumps(vars(overlap(["a b"], ["a b", "c"]))))
    assert record == {"texts": 2, "duplicates": 1, "sharing": 1, "mean_share": 0.5}


# Whatever the texts are

few_words = st.lists(st.sampled_from("ab"), max_size=8).map(" ".join)  # so few that they collide


def contains(text: str, run: list[str]) -> bool:
    return f" {' '.join(run)} " in f" {text} "


def shared_by_search(train: list[str], text: str, n: int) -> list[bool]:
    """For each distinct n-gram of `text`, whether a training text contains it, by searching for substrings."""
    said = text.split()
    size = min(n, len(said))
    runs = {tuple(said[start : start + size]) for start in range(len(said) - size + 1)} if said else set()
    return [any(contains(other, list(run)) for other in train) for run in runs]


@given(st.lists(few_words, max_size=4), st.lists(few_words, min_size=1, max_size=4), st.integers(1, 5))
def test_it_agrees_with_a_search_for_substrings(train: list[str], evaluated: list[str], n: int) -> None:
    found = overlap(train, evaluated, n)
    hits = [shared_by_search(train, text, n) for text in evaluated]
    assert found.texts == len(evaluated)
    assert found.duplicates == sum(bool(text) and text in train for text in evaluated)
    assert found.sharing == sum(map(any, hits))
    assert found.mean_share == pytest.approx(sum(sum(hit) / len(hit) for hit in hits if hit) / len(evaluated))


@given(st.lists(st.text(max_size=40), max_size=3), st.text(min_size=1).filter(str.isalnum), st.integers(1, 20))
def test_a_text_is_found_in_training_data_that_holds_it(others: list[str], text: str, n: int) -> None:
    assert overlap([*others, text], [text], n) == Overlap(1, duplicates=1, sharing=1, mean_share=1.0)


@given(
    st.lists(st.text("abc .,"), max_size=5),
    st.lists(st.text("xyz 0.,"), min_size=1, max_size=5),
    st.integers(1, 15),
)
def test_texts_of_disjoint_vocabularies_do_not_overlap(train: list[str], evaluated: list[str], n: int) -> None:
    assert overlap(train, evaluated, n) == Overlap(len(evaluated), duplicates=0, sharing=0, mean_share=0.0)


# Wordings


def test_names_and_numbers_do_not_hide_a_wording() -> None:
    one = "There Ann has 1,200 pens, and gives Bob $3. Ann's pens cost 5.50 each, 20% off."
    other = "There Eva has 7 pens, and gives Tom \u20ac50. Eva's pens cost 12 each, 5% off."
    assert (
        masked(one)
        == masked(other)
        == "There Someone has 0 pens, and gives Someone 0. Someone's pens cost 0 each, 0 off."
    )
    assert masked(one) != masked(other.replace("pens", "cups"))


# What docs/field.md says


@needs_package
@pytest.mark.skipif(not (REAL_FILE.exists() and DATA.exists()), reason="no GSM8K and FOLIO beside the repository")
def test_the_page_has_the_tables_of_these_data() -> None:
    assert pages.written("contamination") == table(*questions(REAL_FILE, DATA), 13)
    assert pages.written("wording") == wording(REAL_FILE)


# The problems of one run


@pytest.mark.parametrize("task", [FirstOrderLogic(), Arithmetic()], ids=lambda task: task.name)
def test_generated_train_and_test_problems_share_templates_but_no_text(task: Task) -> None:
    train, test = ([problem.question for problem in task.generate(200, split, 0)] for split in ("train", "test"))
    found = overlap(train, test, n=5)
    assert found.duplicates == 0 and found.sharing > 100
    assert overlap([*train, test[0].upper()], test).duplicates == 1

"""Numbers of the report as a specification: intervals, paired tests and categories against values known by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcdpo_utils.episode import OUTCOMES, Chain, Step
from fcdpo_utils.evaluation import (
    McNemar,
    by_level,
    call_rates,
    compare,
    mcnemar,
    outcome_counts,
    recovery,
    summary,
    wilson,
)
from fcdpo_utils.lab.grid import holm
from fcdpo_utils.problems import Problem


def chain(problem: str = "p", outcome: str = "solved", sound: bool = False, errors: int = 0, calls: int = 2) -> Chain:
    """A chain of `calls` calls, the first `errors` of them rejected."""
    steps = tuple(Step("Call()", "text", "refused" if i < errors else None) for i in range(calls))
    return Chain(problem, steps, outcome, "1", outcome == "solved", sound)


def problem(name: str, level: int) -> Problem:
    return Problem(name, "fol", "test", level, "?", "True", "c")


SOUND, LUCKY, WRONG = chain(sound=True), chain(), chain(outcome="wrong_answer")


# Wilson's interval


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
        (1, 10, 0.0179, 0.4042),
        (0, 1, 0.0, 0.7935),
        (50, 100, 0.4038, 0.5962),
        (81, 263, 0.2553, 0.3662),
    ],
)
def test_the_interval_is_wilson_s(successes: int, trials: int, low: float, high: float) -> None:
    score = wilson(successes, trials)
    assert (score.low, score.high) == (pytest.approx(low, abs=6e-5), pytest.approx(high, abs=6e-5))


counts = st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts)
def test_the_interval_holds_the_estimate_and_stays_between_0_and_1(count: tuple[int, int]) -> None:
    score = wilson(*count)
    assert 0 <= score.low <= score.estimate <= score.high <= 1
    assert score.low < score.high


@given(counts)
def test_failures_have_the_mirrored_interval(count: tuple[int, int]) -> None:
    successes, trials = count
    score, mirrored = wilson(successes, trials), wilson(trials - successes, trials)
    assert (1 - mirrored.high, 1 - mirrored.low) == (pytest.approx(score.low), pytest.approx(score.high))


@given(counts)
def test_ten_times_the_trials_give_a_narrower_interval(count: tuple[int, int]) -> None:
    score, larger = wilson(*count), wilson(10 * count[0], 10 * count[1])
    assert larger.high - larger.low < score.high - score.low


def test_a_score_is_printed_in_percent() -> None:
    assert str(wilson(5, 10)) == "50.0 % [23.7, 76.3]"


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 2)])
def test_impossible_counts_are_refused_with_their_line(successes: int, trials: int) -> None:
    with pytest.raises(ValueError) as caught:
        wilson(successes, trials)
    expected = "expected 0 <= successes <= trials with trials >= 1"
    assert str(caught.value) == f"{expected}, got {successes} of {trials}"


# McNemar's exact test


def paired(gained: int, lost: int, both: int = 0, neither: int = 0) -> tuple[list[bool], list[bool]]:
    before = [False] * gained + [True] * lost + [True] * both + [False] * neither
    after = [True] * gained + [False] * lost + [True] * both + [False] * neither
    return before, after


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [
        (5, 0, 0.0625),  # 2 / 2^5
        (0, 5, 0.0625),
        (6, 0, 0.03125),
        (8, 2, 0.109375),  # 2 (1 + 10 + 45) / 2^10
        (3, 3, 1.0),  # 2 (1 + 6 + 15 + 20) / 2^6 is more than 1
        (1, 0, 1.0),
        (0, 0, 1.0),
    ],
)
def test_the_p_value_is_the_exact_two_sided_one(gained: int, lost: int, p: float) -> None:
    assert mcnemar(*paired(gained, lost)) == McNemar(gained, lost, p)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30), st.integers(0, 30))
def test_only_problems_whose_outcome_changed_count(gained: int, lost: int, both: int, neither: int) -> None:
    assert mcnemar(*paired(gained, lost, both, neither)) == mcnemar(*paired(gained, lost))


@given(st.integers(0, 40), st.integers(0, 40))
def test_the_p_value_is_the_same_in_both_directions(gained: int, lost: int) -> None:
    p = mcnemar(*paired(gained, lost)).p
    assert p == mcnemar(*paired(lost, gained)).p
    assert 0 < p <= 1


def test_outcomes_of_different_numbers_of_problems_are_refused() -> None:
    with pytest.raises(ValueError):
        mcnemar([True], [True, False])


# Categories


def test_sound_chains_are_told_apart_from_those_that_are_only_solved() -> None:
    counted = outcome_counts([SOUND, SOUND, LUCKY, WRONG, chain(outcome="too_long")])
    assert counted == {
        "sound": 2,
        "solved": 1,
        "wrong_answer": 1,
        "abstained": 0,
        "no_answer": 0,
        "no_stop": 0,
        "too_many_errors": 0,
        "too_long": 1,
    }


def test_categories_come_in_a_fixed_order_also_without_chains() -> None:
    assert list(outcome_counts([])) == ["sound", *OUTCOMES]
    assert set(outcome_counts([]).values()) == {0}


@given(st.lists(st.sampled_from([SOUND, LUCKY, *(chain(outcome=name) for name in OUTCOMES)])))
def test_every_chain_is_in_one_category(chains: list[Chain]) -> None:
    assert sum(outcome_counts(chains).values()) == len(chains)


@pytest.mark.parametrize(
    ("chains", "share"),
    [
        ([], 0.0),
        ([chain(calls=0)], 0.0),
        ([chain(errors=0, calls=4)], 1.0),
        ([chain(errors=1, calls=4)], 0.75),
        ([chain(errors=3, calls=3), chain(errors=0, calls=1)], 0.25),  # of all calls, not a mean over chains
    ],
)
def test_a_rate_is_a_share_of_all_calls(chains: list[Chain], share: float) -> None:
    assert call_rates(chains)["accepted"] == share


# Summaries


def test_a_summary_holds_rates_intervals_validity_and_categories() -> None:
    chains = [SOUND, LUCKY, WRONG, chain(outcome="too_long", errors=2)]
    assert summary(chains) == {
        "solved": 0.5,
        "solved_ci95": [wilson(2, 4).low, wilson(2, 4).high],
        "sound": 0.25,
        "sound_ci95": [wilson(1, 4).low, wilson(1, 4).high],
        "step_validity": 0.75,
        "outcomes": outcome_counts(chains),
        "calls": call_rates(chains),
        "recovery": recovery(chains),
        "calls_per_solved": 2.0,
    }


def test_a_comparison_tests_soundness_on_the_same_problems() -> None:
    names = "abcdefg"
    before = [chain(name, sound=name == "a") for name in names]
    after = [chain(name, sound=name not in "ag") for name in names]
    assert compare(before, after) == {
        "n": 7,
        "before": summary(before),
        "after": summary(after),
        "mcnemar": {"gained": 5, "lost": 1, "p": 0.21875},  # 2 (1 + 6) / 2^6
    }


@pytest.mark.parametrize("names", ["ba", "a", "abc", "ac", ""])
def test_other_problems_cannot_be_compared(names: str) -> None:
    with pytest.raises(ValueError) as caught:
        compare([chain("a"), chain("b")], [chain(name) for name in names])
    assert str(caught.value) == "before and after must hold the same problems in the same order"


def test_soundness_is_told_by_level() -> None:
    problems = [problem("a", 2), problem("b", 1), problem("c", 2)]
    assert by_level(problems, [SOUND, LUCKY, WRONG]) == {1: wilson(0, 1), 2: wilson(1, 2)}


def test_every_problem_needs_its_chain() -> None:
    with pytest.raises(ValueError):
        by_level([problem("a", 1), problem("b", 1)], [SOUND])


def test_p_values_are_adjusted_for_their_number() -> None:
    """Worked by hand: 0.01 * 4, 0.02 * 3, 0.03 * 2, 0.04 * 1, none below the one before, none above 1 (Holm 1979)."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_p_values_are_adjusted_for_tests_that_came_to_none() -> None:
    """As if theirs were 1: 0.01 * 4, then 0.02 * 3."""
    assert holm([0.02, 0.01], tests=4) == pytest.approx([0.06, 0.04]) == holm([0.02, 0.01, 1.0, 1.0])[:2]


# Calls, recovery, effort


def test_the_shares_of_accepted_and_rejected_calls_sum_to_1() -> None:
    rates = call_rates([chain(errors=1), chain(errors=0)])
    assert rates["accepted"] == 0.75 and rates["refused"] == 0.25 and sum(rates.values()) == 1
    assert list(rates)[1:] == ["syntax", "not_a_call", "unknown_function", "bad_arguments", "refused", "extra_text"]
    assert set(call_rates([]).values()) == {0.0}


def test_recovery_is_being_solved_after_a_rejected_call() -> None:
    chains = [chain(errors=1), chain(errors=2, outcome="too_many_errors"), SOUND]
    assert recovery(chains) == {"with_errors": 2, "solved": 1, "recovered": 0}
    got_up = replace(chain(errors=1), recovered=True)
    assert recovery([got_up, SOUND]) == {"with_errors": 1, "solved": 1, "recovered": 1}


def test_calls_and_tokens_are_those_of_solved_chains() -> None:
    chains = [chain("a", calls=2), chain("b", calls=4), chain("c", calls=9, outcome="wrong_answer")]
    result = summary(chains, {"a": 10, "b": 30, "c": 500})
    assert (result["calls_per_solved"], result["tokens_per_solved"]) == (3, 20)
    none = summary([WRONG], {"p": 7})
    assert (none["calls_per_solved"], none["tokens_per_solved"]) == (None, None)

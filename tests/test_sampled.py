"""Several samples of each problem as a specification, against shares of all draws counted by hand."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcdpo_utils.evaluation import wilson
from fcdpo_utils.lab.sampled import clustered, pass_k, sampled


@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n), st.integers(1, n))))
def test_pass_at_k_and_pass_hat_k_are_shares_of_all_draws(case: tuple[int, int, int]) -> None:
    successes, samples, k = case
    draws = list(combinations([True] * successes + [False] * (samples - successes), k))
    assert pass_k(*case) == pytest.approx((sum(map(any, draws)) / len(draws), sum(map(all, draws)) / len(draws)))


@pytest.mark.parametrize("case", [(3, 2, 1), (-1, 2, 1), (1, 2, 3), (1, 2, 0)])
def test_impossible_counts_are_refused(case: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="expected 0 <= successes <= samples"):
        pass_k(*case)


def test_an_interval_by_problem_is_wider_than_one_that_counts_samples_as_trials() -> None:
    by_problem = clustered([1.0] * 10 + [0.0] * 10)
    as_if_apart = wilson(80, 160)
    assert by_problem.estimate == 0.5 == as_if_apart.estimate
    assert by_problem.high - by_problem.low > 2 * (as_if_apart.high - as_if_apart.low)
    never = clustered([0.0] * 10)
    assert (never.low, never.high) == (0.0, wilson(0, 10).high)  # resampling cannot see what never happened
    assert clustered([0.25] * 5).low == clustered([0.25] * 5).high == 0.25
    assert clustered([1.0, 0.0, 1.0]) == clustered([1.0, 0.0, 1.0])  # resampling is seeded


def test_resampled_intervals_have_the_width_of_the_normal_approximation() -> None:
    interval = clustered([1.0] * 50 + [0.0] * 50)
    assert interval.low == pytest.approx(0.5 - 1.96 * 0.05, abs=0.015)
    assert interval.high == pytest.approx(0.5 + 1.96 * 0.05, abs=0.015)


def test_curves_over_k_go_up_to_the_fewest_samples_of_a_problem() -> None:
    curves = sampled({"a": [True, False, True, False], "b": [False] * 5, "c": [True] * 4})
    assert list(curves["pass@k"]) == list(curves["pass^k"]) == [1, 2, 4]
    at, hat = ([point.estimate for point in curves[name].values()] for name in ("pass@k", "pass^k"))
    assert at == pytest.approx([0.5, (5 / 6 + 1) / 3, 2 / 3]) and hat == pytest.approx([0.5, (1 / 6 + 1) / 3, 1 / 3])

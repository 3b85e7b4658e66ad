"""Before against after on the same held-out problems: outcome categories, intervals and paired tests.

Works on finished chains; knows nothing of models or figures.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from fcdpo_utils.agent import OUTCOMES, Chain
from fcdpo_utils.calls import ErrorKind
from fcdpo_utils.tasks.base import Problem

Z95 = 1.959963984540054


@dataclass(frozen=True)
class Score:
    """A proportion with its Wilson 95 % interval; `estimate` is successes / trials."""

    successes: int
    trials: int
    low: float
    high: float

    @property
    def estimate(self) -> float:
        return self.successes / self.trials

    def __str__(self) -> str:
        return f"{100 * self.estimate:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def wilson(successes: int, trials: int) -> Score:
    """Wilson score interval at 95 % (Wilson 1927). Raises ValueError without trials."""
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"expected 0 <= successes <= trials with trials >= 1, got {successes} of {trials}")
    p, z2 = successes / trials, Z95**2
    centre = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 / (1 + z2 / trials) * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials**2))
    low = 0.0 if successes == 0 else centre - half
    return Score(successes, trials, low, 1.0 if successes == trials else centre + half)


@dataclass(frozen=True)
class McNemar:
    """Exact McNemar test on paired outcomes: how many were gained and lost, and the two-sided p-value."""

    gained: int
    lost: int
    p: float


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> McNemar:
    """Exact (binomial) McNemar test (McNemar 1947) on two outcomes of the same problems."""
    gained = sum(b < a for b, a in zip(before, after, strict=True))
    lost = sum(b > a for b, a in zip(before, after, strict=True))
    n, tail = gained + lost, min(gained, lost)
    p = min(1.0, 2 * sum(math.comb(n, i) for i in range(tail + 1)) / 2**n)
    return McNemar(gained, lost, p)


def outcome_counts(chains: Sequence[Chain]) -> dict[str, int]:
    """Chains per terminal category, in a fixed order; sound chains are told apart from merely solved ones."""
    counts = Counter("sound" if chain.sound else chain.outcome for chain in chains)
    return {name: counts[name] for name in ("sound", *OUTCOMES)}


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for their number, in the same order (Holm 1979).

    Rejecting those below 0.05 then keeps the chance of any false rejection below 5 %, however the tests depend on each
    other.
    """
    order, largest = sorted(range(len(p_values)), key=p_values.__getitem__), 0.0
    adjusted = [0.0] * len(p_values)
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, p_values[index] * (len(order) - rank)))
        adjusted[index] = largest
    return adjusted


def call_rates(chains: Sequence[Chain]) -> dict[str, float]:
    """Share of all calls that were accepted, and that were rejected for each kind of error; they sum to 1."""
    counts = Counter(step.error or "accepted" for chain in chains for step in chain.steps)
    return {kind: counts[kind] / max(counts.total(), 1) for kind in ("accepted", *get_args(ErrorKind))}


def step_validity(chains: Sequence[Chain]) -> float:
    """Share of all calls that the engine accepted; 0 when nothing was called."""
    return call_rates(chains)["accepted"]


def recovery(chains: Sequence[Chain]) -> dict[str, int]:
    """What became of the chains with a rejected call: how many there are, and how many were solved all the same."""
    stumbled = [chain for chain in chains if any(step.error for step in chain.steps)]
    return {"with_errors": len(stumbled), "solved": sum(chain.solved for chain in stumbled)}


def summary(chains: Sequence[Chain], tokens: Mapping[str, int] | None = None) -> dict[str, Any]:
    """What `metrics.json` holds for one student on one task.

    `tokens`: by problem id, what the student wrote. Calls and tokens are means over the solved chains.
    """
    solved = wilson(sum(chain.solved for chain in chains), len(chains))
    sound = wilson(sum(chain.sound for chain in chains), len(chains))
    done = [chain for chain in chains if chain.solved]
    effort: dict[str, Any] = {"calls_per_solved": _mean([len(chain.steps) for chain in done])}
    if tokens is not None:
        effort["tokens_per_solved"] = _mean([tokens[chain.problem_id] for chain in done])
    return {
        "solved": solved.estimate,
        "solved_ci95": [solved.low, solved.high],
        "sound": sound.estimate,
        "sound_ci95": [sound.low, sound.high],
        "step_validity": step_validity(chains),
        "outcomes": outcome_counts(chains),
        "calls": call_rates(chains),
        "recovery": recovery(chains),
        **effort,
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def compare(
    before: Sequence[Chain],
    after: Sequence[Chain],
    tokens_before: Mapping[str, int] | None = None,
    tokens_after: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Both summaries and the paired test on soundness. Raises ValueError where the problems differ."""
    if [chain.problem_id for chain in before] != [chain.problem_id for chain in after]:
        raise ValueError("before and after must hold the same problems in the same order")
    test = mcnemar([chain.sound for chain in before], [chain.sound for chain in after])
    summaries = {"before": summary(before, tokens_before), "after": summary(after, tokens_after)}
    return {"n": len(before), **summaries, "mcnemar": vars(test)}


def by_level(problems: Sequence[Problem], chains: Sequence[Chain]) -> dict[int, Score]:
    """Soundness per level of difficulty."""
    levels = sorted({problem.level for problem in problems})
    groups = {level: [c.sound for p, c in zip(problems, chains, strict=True) if p.level == level] for level in levels}
    return {level: wilson(sum(group), len(group)) for level, group in groups.items()}


# ---- several samples of each problem


@dataclass(frozen=True)
class Interval:
    """A mean over problems with a 95 % interval from resampling whole problems."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.estimate:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def pass_at_k(successes: int, samples: int, k: int) -> float:
    """Unbiased chance that at least one of k samples succeeds (arXiv 2107.03374, eq. 1)."""
    _check_samples(successes, samples, k)
    return 1 - math.comb(samples - successes, k) / math.comb(samples, k)


def pass_hat_k(successes: int, samples: int, k: int) -> float:
    """Unbiased chance that all of k samples succeed, written pass^k (arXiv 2406.12045)."""
    _check_samples(successes, samples, k)
    return math.comb(successes, k) / math.comb(samples, k)


def _check_samples(successes: int, samples: int, k: int) -> None:
    if not 0 <= successes <= samples or not 1 <= k <= samples:
        raise ValueError(f"expected 0 <= successes <= samples and 1 <= k <= samples, got {successes}, {samples}, {k}")


def clustered(values: Sequence[float], resamples: int = 2_000, seed: int = 0) -> Interval:
    """Mean of one value per problem, with a percentile bootstrap over problems (Efron 1979).

    Samples of one problem resemble each other: counting each as a trial of its own would feign certainty. Where all
    problems give 0, or all 1, resampling sees no variation, and the interval is Wilson's for so many problems. Raises
    ValueError without values.
    """
    if not values:
        raise ValueError("expected at least one problem")
    if set(values) in ({0.0}, {1.0}):
        score = wilson(round(sum(values)), len(values))
        return Interval(score.estimate, score.low, score.high)
    rng, n = random.Random(seed), len(values)
    means = sorted(sum(rng.choices(values, k=n)) / n for _ in range(resamples))
    tail = round(0.025 * resamples)
    return Interval(sum(values) / n, means[tail], means[-tail - 1])


def sampled(groups: Mapping[str, Sequence[bool]]) -> dict[str, Any]:
    """pass@k and pass^k for k = 1, 2, 4, ... of problem id -> whether each of its samples is sound.

    Problems need not have equally many samples; k goes up to the fewest.
    """
    fewest = min(map(len, groups.values()))
    sizes = [2**power for power in range(fewest.bit_length()) if 2**power <= fewest]
    counts = [(sum(group), len(group)) for group in groups.values()]
    return {
        name: {str(k): vars(clustered([estimate(c, n, k) for c, n in counts])) for k in sizes}
        for name, estimate in (("pass@k", pass_at_k), ("pass^k", pass_hat_k))
    }

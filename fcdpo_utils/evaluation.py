"""Before against after on the same held-out problems: outcome categories, intervals and paired tests.

Works on finished chains; knows nothing of models or figures.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, get_args

from fcdpo_utils.calls import ErrorKind
from fcdpo_utils.episode import OUTCOMES, Chain
from fcdpo_utils.problems import Problem

Z95 = 1.959963984540054
TokenCounts = Mapping[str, int] | None  # by problem id, what a student wrote


@dataclass(frozen=True)
class Score:
    """A share with its 95 % interval."""

    estimate: float
    low: float
    high: float

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
    return Score(p, low, 1.0 if successes == trials else centre + half)


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


def call_rates(chains: Sequence[Chain]) -> dict[str, float]:
    """Share of all calls that were accepted, and that were rejected for each kind of error; all 0 without calls."""
    counts = Counter(step.error or "accepted" for chain in chains for step in chain.steps)
    return {kind: counts[kind] / max(counts.total(), 1) for kind in ("accepted", *get_args(ErrorKind))}


def recovery(chains: Sequence[Chain]) -> dict[str, int]:
    """What became of the chains with a rejected call: how many there are, how many were solved or recovered."""
    stumbled = [chain for chain in chains if any(step.error for step in chain.steps)]
    counts = {label: sum(getattr(chain, label) for chain in stumbled) for label in ("solved", "recovered")}
    return {"with_errors": len(stumbled), **counts}


def summary(chains: Sequence[Chain], tokens: TokenCounts = None) -> dict[str, Any]:
    """What `metrics.json` holds for one student on one task. Calls and tokens are means over the solved chains."""
    shares: dict[str, Any] = {}
    for label in ("solved", "sound"):
        score = wilson(sum(getattr(chain, label) for chain in chains), len(chains))
        shares |= {label: score.estimate, f"{label}_ci95": [score.low, score.high]}
    calls, done = call_rates(chains), [chain for chain in chains if chain.solved]
    effort: dict[str, Any] = {"calls_per_solved": fmean(len(chain.steps) for chain in done) if done else None}
    if tokens is not None:
        effort["tokens_per_solved"] = fmean(tokens[chain.problem_id] for chain in done) if done else None
    return {
        **shares,
        "step_validity": calls["accepted"],
        "outcomes": outcome_counts(chains),
        "calls": calls,
        "recovery": recovery(chains),
        **effort,
    }


def compare(
    before: Sequence[Chain], after: Sequence[Chain], tokens_before: TokenCounts = None, tokens_after: TokenCounts = None
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

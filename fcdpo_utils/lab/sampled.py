"""Several samples of each problem: pass@k and pass^k, and intervals that count problems, not samples.

Works on outcomes alone; knows nothing of chains, models or figures.
"""

import math
import random
from collections.abc import Mapping, Sequence

from fcdpo_utils.evaluation import Score, wilson


def pass_k(successes: int, samples: int, k: int) -> tuple[float, float]:
    """Unbiased chances that at least one of k samples succeeds, and that all do.

    They are pass@k (arXiv 2107.03374, eq. 1) and pass^k (arXiv 2406.12045).
    """
    if not 0 <= successes <= samples or not 1 <= k <= samples:
        raise ValueError(f"expected 0 <= successes <= samples and 1 <= k <= samples, got {successes}, {samples}, {k}")
    draws = math.comb(samples, k)
    return 1 - math.comb(samples - successes, k) / draws, math.comb(successes, k) / draws


def clustered(values: Sequence[float]) -> Score:
    """Mean of one value per problem, with a percentile bootstrap over problems (Efron 1979), 2,000 times, seeded.

    Samples of one problem resemble each other: counting each as a trial of its own would feign certainty. Where all
    problems give 0, or all 1, resampling sees no variation, and the interval is Wilson's for so many problems. Raises
    ValueError without values.
    """
    if not values:
        raise ValueError("expected at least one problem")
    rng, n = random.Random(0), len(values)
    if set(values) in ({0.0}, {1.0}):
        return wilson(round(sum(values)), n)
    means = sorted(sum(rng.choices(values, k=n)) / n for _ in range(2_000))
    return Score(sum(values) / n, means[50], means[-51])


def sampled(groups: Mapping[str, Sequence[bool]]) -> dict[str, dict[int, Score]]:
    """pass@k and pass^k for k = 1, 2, 4, ... of problem id -> whether each of its samples is sound.

    Problems need not have equally many samples; k goes up to the fewest.
    """
    curves: dict[str, dict[int, Score]] = {"pass@k": {}, "pass^k": {}}
    for k in (2**power for power in range(min(map(len, groups.values())).bit_length())):
        chances = zip(*(pass_k(sum(group), len(group), k) for group in groups.values()), strict=True)
        for curve, values in zip(curves.values(), chances, strict=True):
            curve[k] = clustered(values)
    return curves

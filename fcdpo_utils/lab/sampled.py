"""Several samples of each problem: pass@k and pass^k, and intervals that count problems, not samples.

Works on outcomes alone; knows nothing of chains, models or figures.
"""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from fcdpo_utils.evaluation import Score, wilson


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


def sampled(groups: Mapping[str, Sequence[bool]]) -> dict[str, Any]:
    """pass@k and pass^k for k = 1, 2, 4, ... of problem id -> whether each of its samples is sound.

    Problems need not have equally many samples; k goes up to the fewest.
    """
    fewest = min(map(len, groups.values()))
    sizes = [2**power for power in range(fewest.bit_length())]
    counts = [(sum(group), len(group)) for group in groups.values()]
    return {
        name: {str(k): vars(clustered([estimate(c, n, k) for c, n in counts])) for k in sizes}
        for name, estimate in (("pass@k", pass_at_k), ("pass^k", pass_hat_k))
    }

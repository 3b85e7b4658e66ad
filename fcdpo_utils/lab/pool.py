"""One experiment under several seeds: its variants tested over all their problems together, and what such a test sees.

Each seed has its own problems, chains and students, so that pooled outcomes are of as many problems as all seeds have.
"""

from collections.abc import Sequence
from itertools import accumulate
from math import exp, lgamma, log, log1p
from pathlib import Path
from typing import Any

from fcdpo_utils import store
from fcdpo_utils.evaluation import mcnemar, wilson
from fcdpo_utils.lab.grid import holm, slug, table


def soundness(run_dir: Path, task: str = "") -> dict[str, dict[str, bool]]:
    """Of each variant of a run's notebook 06, by name: which held-out problems (of a task) it solved soundly."""
    rows = store.read_json(store.require(run_dir / "ablations.json", "06"))["variants"]
    files = {row["name"]: run_dir / "ablations" / slug(row["name"]) / "chains.jsonl" for row in rows}
    problems = store.iterate(run_dir / "problems.jsonl")
    asked = {record["id"] for record in problems if task in ("", record["task"])}
    found = {}
    for name in (name for name, path in files.items() if path.exists()):
        records = (record for record in store.iterate(files[name]) if record["problem_id"] in asked)
        found[name] = {f"{run_dir}/{record['problem_id']}": record["sound"] for record in records}
    return found


def pooled(run_dirs: Sequence[Path], task: str = "", against: str = "") -> list[dict[str, Any]]:
    """One row per variant that every run has: how sound over all runs, and each run's share; gained, lost, p and Holm's
    p against the first, which is the variant `against`, or the full method. Of one task, or of all together.

    Raises ValueError where the runs share no two variants, nor that one, or have no such task.
    """
    runs = [soundness(run_dir, task) for run_dir in run_dirs]
    names = [name for name in runs[0] if all(name in run for run in runs)]
    if len(names) < 2:
        raise ValueError("these runs have no two variants in common: run notebook 06 with the same profile in each")
    if against not in ("", *names):
        raise ValueError(f"these runs have no variant {against!r} in common, but {', '.join(names)}")
    if not all(run[names[0]] for run in runs):
        raise ValueError(f"no problems of task {task!r} in one of these runs")
    rows, full = [], {}
    for name in sorted(names, key=lambda name: name != against):
        outcomes = {problem: sound for run in runs for problem, sound in run[name].items()}
        full, score = full or outcomes, wilson(sum(outcomes.values()), len(outcomes))
        row = {"name": name, "n": len(outcomes), "sound": score.estimate, "sound_ci95": [score.low, score.high]}
        row["runs"] = [sum(run[name].values()) / len(run[name]) for run in runs]
        rows.append(row | vars(mcnemar(list(full.values()), [outcomes[problem] for problem in full])))
    for row, p in zip(rows[1:], holm([row["p"] for row in rows[1:]]), strict=True):
        row["p_holm"] = p
    return rows


def power(n: int, difference: float, churn: float, alpha: float = 0.05) -> float:
    """The chance that McNemar's test on `n` pairs finds a true `difference`, a share `churn` > 0 of them being lost.

    Exact over the numbers of gained and lost pairs, which are binomial; gained have the share churn + difference.
    """
    moved, total = 2 * churn + difference, 0.0
    for m in range(n + 1):  # discordant pairs
        if (weight := _binomial(m, n, moved)) > 1e-9:
            tail = accumulate(_binomial(i, m, 0.5) for i in range(m // 2 + 1))
            few = range(sum(2 * p < alpha for p in tail))  # so few lost, or gained, are significant
            gaining = (churn + difference) / moved
            total += weight * sum(_binomial(i, m, share) for share in (gaining, 1 - gaining) for i in few)
    return total


def _binomial(k: int, n: int, p: float) -> float:
    """The chance of k successes in n trials."""
    return exp(lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) + k * log(p) + (n - k) * log1p(-p))


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of `pooled` as a table, and the power of its tests."""
    runs = [row | {"each run": ", ".join(f"{share:.0%}" for share in row["runs"])} for row in rows]
    n = rows[0]["n"]
    found = " and ".join(f"{points} points: {power(n, points / 100, 0.05):.0%}" for points in (5, 10))
    return f"{table(runs, 'each run')}\n\nChance to find a true difference, 5 % of {n} problems being lost: {found}."

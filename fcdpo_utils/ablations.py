"""What each ingredient is worth: the full method and arms that differ from it in one setting, on the same problems.

Arms share problems, chains, seed and (by content) reference log-probabilities; each keeps its work in a folder of its
own, so that a broken-off grid goes on where it stopped. Knows nothing of notebooks or figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcdpo_utils import store
from fcdpo_utils.agent import Chain
from fcdpo_utils.artifacts import (
    Report,
    evaluate_student,
    evaluated,
    evaluation_identity,
    load_chains,
    load_problems,
    prompts_of,
)
from fcdpo_utils.evaluation import holm, mcnemar, summary
from fcdpo_utils.models import ModelError, free_memory, load_student
from fcdpo_utils.preferences import build_preferences
from fcdpo_utils.profiles import ArmSettings, Settings
from fcdpo_utils.train import drop_checkpoints, train_student

FULL = ArmSettings(question="full method", arm="full method", change=())


@dataclass(frozen=True)
class ArmResult:
    """One trained and evaluated arm; `chains` in the order of the held-out problems."""

    arm: ArmSettings
    training: dict[str, Any]
    chains: list[Chain]


def arms_of(settings: Settings) -> list[ArmSettings]:
    """The full method, then the arms of the settings. Raises ValueError where there are none, or none can differ."""
    if not settings.ablations:
        raise ValueError(f"profile {settings.profile} has no arms under ablations; use the profile ablations or paper")
    if settings.training.trainer == "stock":
        raise ValueError("ablations need training.trainer=grouped: TRL's own trainer draws no chains of a prompt")
    return [FULL, *settings.ablations]


def run_arms(settings: Settings, run_dir: Path, progress: Callable[[str], Report]) -> Iterator[ArmResult]:
    """Every arm in turn on the run's problems and chains; what is done already is not done again.

    `progress` makes a reporting function for a label, which says what arm is running. An arm that cannot be trained is
    left out with one line; the full method may not fail.
    """
    stored, arms = load_chains(run_dir / "chains.jsonl"), arms_of(settings)
    for number, arm in enumerate(arms, start=1):
        place = f"arm {number}/{len(arms)} ({arm.arm})"
        try:
            yield _run_arm(arm, settings, stored, run_dir, lambda label, place=place: progress(f"{place}: {label}"))
        except (ValueError, ModelError) as error:
            if arm is FULL:
                raise
            print(f"{place} is left out: {error}", flush=True)


def _run_arm(
    arm: ArmSettings,
    settings: Settings,
    stored: Sequence[tuple[str, Chain]],
    run_dir: Path,
    progress: Callable[[str], Report],
) -> ArmResult:
    """Train and evaluate one arm in `ablations/<arm>`."""
    own, folder = settings.changed(arm.change), run_dir / "ablations" / store.slug(arm.arm)
    folder.mkdir(parents=True, exist_ok=True)
    prompts = prompts_of(load_problems(run_dir / "problems.jsonl", "train"), own)
    preferences = build_preferences(stored, own.preferences.label)
    training = train_student(folder, preferences, prompts, own, progress)
    drop_checkpoints(folder)
    problems, identity = load_problems(run_dir / "problems.jsonl", "test"), evaluation_identity(own, folder / "adapter")
    path = folder / "chains.jsonl"
    chains = evaluated(problems, own, path, identity)
    if chains is None:
        student = load_student(own.student, folder / "adapter")
        chains = evaluate_student(*student, problems, own, path, identity, progress("evaluated"))
        del student
        free_memory()
    return ArmResult(arm, training, chains)


def table(results: Sequence[ArmResult]) -> list[dict[str, Any]]:
    """One row per arm, the full method first: what was changed, how sound, and the paired test against the full one.

    `gained` are problems sound in the arm alone, `lost` those sound in the full method alone; `p_holm`, which all rows
    but the first have, is adjusted for the number of arms.
    """
    full = [chain.sound for chain in results[0].chains]
    rows = []
    for result in results:
        test, scores = mcnemar(full, [chain.sound for chain in result.chains]), summary(result.chains)
        rows.append(
            {
                "question": result.arm.question,
                "arm": result.arm.arm,
                "n": len(result.chains),
                "sound": scores["sound"],
                "sound_ci95": scores["sound_ci95"],
                "solved": scores["solved"],
                "steps": result.training["steps"],
                "pairs": result.training["pairs"],
                "tokens": result.training["tokens"],
                **vars(test),
            }
        )
    adjusted = holm([row["p"] for row in rows[1:]])
    return rows[:1] + [row | {"p_holm": p} for row, p in zip(rows[1:], adjusted, strict=True)]


def verdict(row: dict[str, Any], full: dict[str, Any], alpha: float = 0.05) -> str:
    """One sentence on an arm, from its numbers alone."""
    difference = 100 * (row["sound"] - full["sound"])
    numbers = f"{100 * row['sound']:.1f} % against {100 * full['sound']:.1f} % ({difference:+.1f} points)"
    test = f"{row['gained']} gained, {row['lost']} lost, p = {row['p']:.2g}, adjusted {row['p_holm']:.2g}"
    if row["p_holm"] < alpha:
        word = "better" if difference > 0 else "worse"
    elif row["p"] < alpha:
        word = f"nominally {'better' if difference > 0 else 'worse'}, not significant after Holm's correction"
    else:
        word = "no difference shown"
    return f"{row['arm']}: {word}; {numbers}; {test}."


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of `table` as a Markdown table."""
    heads = ("arm", "sound", "95 %", "steps", "pairs", "gained", "lost", "p", "p adj.")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        low, high = row["sound_ci95"]
        cells = [row["arm"], f"{row['sound']:.1%}", f"{low:.1%} to {high:.1%}", row["steps"], row["pairs"]]
        tests = [row["gained"], row["lost"], f"{row['p']:.2g}", f"{row['p_holm']:.2g}"] if "p_holm" in row else [""] * 4
        lines.append("| " + " | ".join(map(str, [*cells, *tests])) + " |")
    return "\n".join(lines)

"""What each ingredient is worth: the full method and arms that differ from it in one setting, on the same problems.

Arms share problems, chains, seed and (by content) reference log-probabilities; each keeps its work in a folder of its
own, so that a broken-off grid goes on where it stopped. Knows nothing of notebooks or figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcdpo_utils import store
from fcdpo_utils.agent import Chain
from fcdpo_utils.artifacts import (
    Report,
    evaluate_student,
    evaluation_identity,
    load_chains,
    load_problems,
    prompts_of,
    training_blocks,
)
from fcdpo_utils.evaluation import mcnemar, summary
from fcdpo_utils.models import free_memory, load_student
from fcdpo_utils.preferences import Preferences, build_preferences
from fcdpo_utils.profiles import ArmSettings, Settings
from fcdpo_utils.training import train_student

FULL = ArmSettings(question="full method", arm="full method", change=())


@dataclass(frozen=True)
class ArmResult:
    """One trained and evaluated arm; `chains` in the order of the held-out problems."""

    arm: ArmSettings
    training: dict[str, Any]
    chains: list[Chain]


def arms_of(settings: Settings) -> list[ArmSettings]:
    """The full method, then the arms of the settings."""
    return [FULL, *settings.ablations]


def arm_settings(arm: ArmSettings, settings: Settings, preferences: Callable[[Settings], Preferences]) -> Settings:
    """The settings of one arm; with `same_steps`, epochs such that it takes as many steps as the full method."""
    changed = settings.changed(arm.change)
    if not arm.same_steps:
        return changed
    full, own = (steps_per_epoch(preferences(options), options) for options in (settings, changed))
    wanted = math.ceil(full * settings.training.epochs)
    return changed.changed([f"training.epochs={(wanted - 0.5) / own!r}"])  # the trainer rounds up


def steps_per_epoch(preferences: Preferences, settings: Settings) -> int:
    """Optimiser steps of one pass over the blocks."""
    blocks = [block for block in training_blocks(preferences, settings) if block.usable]
    return math.ceil(len(blocks) / (settings.training.prompts_per_step * settings.training.accumulation))


def run_arms(settings: Settings, run_dir: Path, progress: Callable[[str], Report]) -> Iterator[ArmResult]:
    """Every arm in turn, as `run_arm` makes it; labels of progress say which one is running."""
    arms = arms_of(settings)
    for number, arm in enumerate(arms, start=1):
        place = f"arm {number}/{len(arms)} ({arm.arm})"
        yield run_arm(arm, settings, run_dir, lambda label, place=place: progress(f"{place}: {label}"))


def run_arm(arm: ArmSettings, settings: Settings, run_dir: Path, progress: Callable[[str], Report]) -> ArmResult:
    """Train and evaluate one arm on the run's problems and chains; what is done already is not done again.

    `progress` makes a reporting function for a label.
    """
    stored = load_chains(run_dir / "chains.jsonl")

    def preferences(options: Settings) -> Preferences:
        return build_preferences(stored, options.preferences.label)

    own = arm_settings(arm, settings, preferences)
    folder = run_dir / "ablations" / store.slug(arm.arm)
    folder.mkdir(parents=True, exist_ok=True)
    prompts = prompts_of(load_problems(run_dir / "problems.jsonl", "train"), own)
    training = train_student(folder, preferences(own), prompts, own, progress)
    free_memory()
    model, tokenizer = load_student(own.student, folder / "adapter")
    problems, identity = load_problems(run_dir / "problems.jsonl", "test"), evaluation_identity(own, folder / "adapter")
    chosen = (own, folder / "chains.jsonl", identity, progress("evaluated"))
    chains = evaluate_student(model, tokenizer, problems, *chosen)
    del model
    free_memory()
    return ArmResult(arm, training, chains)


def table(results: Sequence[ArmResult]) -> list[dict[str, Any]]:
    """One row per arm, the full method first: what was changed, how sound, and the paired test against the full one.

    `gained` are problems sound in the arm alone, `lost` those sound in the full method alone.
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
    return with_holm(rows)


def with_holm(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds `p_holm` to all rows but the first: p-values adjusted for testing many arms (Holm 1979)."""
    order, largest = sorted(range(1, len(rows)), key=lambda index: rows[index]["p"]), 0.0
    adjusted: dict[int, float] = {}
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, rows[index]["p"] * (len(order) - rank)))
        adjusted[index] = largest
    return [row | ({"p_holm": adjusted[index]} if index else {}) for index, row in enumerate(rows)]


def verdict(row: dict[str, Any], full: dict[str, Any], alpha: float = 0.05) -> str:
    """One sentence on an arm, from its numbers alone."""
    difference = 100 * (row["sound"] - full["sound"])
    numbers = f"{100 * row['sound']:.1f} % against {100 * full['sound']:.1f} % ({difference:+.1f} points)"
    test = f"{row['gained']} gained, {row['lost']} lost, p = {row['p']:.2g}, adjusted {row['p_holm']:.2g}"
    if row["p_holm"] < alpha:
        word = "better" if difference > 0 else "worse"
    elif row["p"] < alpha:
        word = f"{'better' if difference > 0 else 'worse'} by itself, but not once all arms are counted"
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

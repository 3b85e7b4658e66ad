"""Every figure of the notebooks and the report, one function each; they draw what they are given.

Colours: blue before, orange after, green correct, red incorrect; all readable without colour by label or position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from fcdpo_utils.evaluation import Score

BEFORE, AFTER, CORRECT, INCORRECT, MUTED = "#4c78a8", "#f58518", "#54a24b", "#e45756", "#9aa0a6"
STAGES = (
    ("01", "problems", "functions"),
    ("02", "teacher", "chains"),
    ("03", "preference", "pairs"),
    ("04", "student", "training"),
    ("05", "before /", "after"),
)
FURTHER = (("06", "ablations", "(02)"), ("07", "generalis-", "ation (05)"), ("08", "rounds", "(04)"))


def pipeline(here: str) -> Figure:
    """The five stages, and those beyond them where `here` (such as "03"), which is marked, is one of them."""
    stages = STAGES if here <= STAGES[-1][0] else STAGES + FURTHER
    figure, axes = plt.subplots(figsize=(1.7 * len(stages), 1.35))
    axes.set(xlim=(-0.05, 2 * len(stages)), ylim=(0, 1))
    axes.axis("off")
    for index, (number, *words) in enumerate(stages):
        active = number == here
        box = FancyBboxPatch(
            (2 * index + 0.1, 0.15), 1.55, 0.7, boxstyle="round,pad=0.05", fc=AFTER if active else "#eef1f5", ec=MUTED
        )
        axes.add_patch(box)
        text = f"{number}\n{words[0]}\n{words[1]}"
        axes.text(2 * index + 0.88, 0.5, text, ha="center", va="center", fontsize=9, weight="bold" if active else None)
        if 0 < index < len(STAGES):
            axes.annotate("", (2 * index + 0.03, 0.5), (2 * index - 0.27, 0.5), arrowprops={"arrowstyle": "->"})
    return figure


def counts(values: Mapping[str, int], title: str, colors: Sequence[str] | None = None) -> Figure:
    """Horizontal bars of counts, in the order given, each with its number."""
    figure, axes = plt.subplots(figsize=(7, 0.6 + 0.32 * len(values)))
    bars = axes.barh(list(map(_label, values)), list(values.values()), color=colors or BEFORE)
    axes.bar_label(bars, padding=3)
    axes.invert_yaxis()
    axes.set_title(title, loc="left")
    _clean(axes)
    axes.set_xticks([])
    return figure


def histogram(groups: Mapping[str, Sequence[int]], xlabel: str, title: str) -> Figure:
    """Overlaid histograms of whole numbers, one outline per group."""
    figure, axes = plt.subplots(figsize=(7, 2.6))
    everything = [value for values in groups.values() for value in values]
    bins = [edge - 0.5 for edge in range(min(everything), max(everything) + 2)]
    for (name, values), color in zip(groups.items(), (CORRECT, INCORRECT, BEFORE, AFTER), strict=False):
        axes.hist(values, bins=bins, alpha=0.45, color=color, label=f"{name} ({len(values)})")
    axes.set(xlabel=xlabel, ylabel="chains")
    axes.set_title(title, loc="left")
    axes.legend(frameon=False)
    _clean(axes)
    return figure


def per_problem(pairs: Sequence[Sequence[int]]) -> Figure:
    """Correct and incorrect chains of each problem, (correct, incorrect), as stacked columns, most correct first."""
    figure, axes = plt.subplots(figsize=(7, 2.6))
    ordered = sorted(pairs, key=lambda pair: (-pair[0], pair[1]))
    for values, below, color, name in (
        ([correct for correct, _ in ordered], None, CORRECT, "sound"),
        ([wrong for _, wrong in ordered], [correct for correct, _ in ordered], INCORRECT, "not sound"),
    ):
        axes.bar(range(len(ordered)), values, bottom=below, width=1, color=color, alpha=0.6, label=name)
    both = sum(min(pair) > 0 for pair in pairs)
    axes.set(xlabel="problem", ylabel="chains", xlim=(-0.5, len(pairs) - 0.5))
    axes.set_title(f"{both} of {len(pairs)} problems have both kinds", loc="left")
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0.62, 1), ncol=2)
    _clean(axes)
    return figure


def pair_counts(original: int, augmented: int) -> Figure:
    """D* beside Da."""
    return counts({"D* (each chain once)": original, "Da (all pairs)": augmented}, "pairs", [MUTED, AFTER])


def training_curves(rows: Sequence[Mapping[str, float]]) -> Figure:
    """Loss, reward margin, and chosen and rejected log-probabilities over the steps."""
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 2.8), layout="constrained")
    steps = [row["step"] for row in rows]
    _smooth(axes[0], steps, [row["loss"] for row in rows], AFTER, "loss")
    _smooth(axes[1], steps, [row["rewards/margins"] for row in rows], BEFORE, "reward margin")
    _smooth(axes[2], steps, [row["logps/chosen"] for row in rows], CORRECT, "chosen")
    _smooth(axes[2], steps, [row["logps/rejected"] for row in rows], INCORRECT, "rejected")
    axes[1].axhline(0, color=MUTED, lw=0.8)
    axes[2].legend(frameon=False)
    for axis, title in zip(axes, ("loss", "reward margin", "log-probability of a chain"), strict=True):
        axis.set_title(title, loc="left")
        axis.set_xlabel("step")
        _clean(axis)
    return figure


def _smooth(axes: Axes, steps: Sequence[float], values: Sequence[float], color: str, label: str) -> None:
    """Faint raw values under a running mean of nine."""
    window = [values[max(0, i - 8) : i + 1] for i in range(len(values))]
    axes.plot(steps, values, color=color, alpha=0.25, lw=0.8)
    axes.plot(steps, [sum(part) / len(part) for part in window], color=color, label=label)


def accuracy(results: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Sound answers before and after per task (see `evaluation.compare`), with Wilson 95 % intervals."""
    figure, axes = plt.subplots(figsize=(7, 0.9 + 0.75 * len(results)))
    for row, result in enumerate(results.values()):
        for when, shift, color in (("before", -0.15, BEFORE), ("after", 0.15, AFTER)):
            _interval(axes, row + shift, result[when], color, when if row == 0 else None)
    _share_axis(axes, list(results))
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncol=2)
    return figure


def arms(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Sound answers of ablation arms (see `ablations.table`), with Wilson intervals; the first is the full method."""
    figure, axes = plt.subplots(figsize=(7, 0.8 + 0.42 * len(rows)))
    axes.axvline(100 * rows[0]["sound"], color=MUTED, lw=0.8, ls="--")
    for place, row in enumerate(rows):
        _interval(axes, place, row, AFTER if place == 0 else BEFORE, None)
    _share_axis(axes, [row["arm"] for row in rows])
    return figure


def heat_map(values: Mapping[tuple[int, int], float], xlabel: str, ylabel: str) -> Figure:
    """Shares by two counts, (row, column) -> share, each written in its cell; cells that were not run stay empty."""
    columns, rows = sorted({x for _, x in values}), sorted({y for y, _ in values}, reverse=True)
    shares = [[100 * values.get((y, x), float("nan")) for x in columns] for y in rows]
    figure, axes = plt.subplots(figsize=(1.6 + 0.8 * len(columns), 1.2 + 0.6 * len(rows)))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for i, line in enumerate(shares):
        for j, share in enumerate(line):
            text = "" if share != share else f"{share:.0f} %"
            axes.text(j, i, text, ha="center", va="center", color="white" if share > 55 else "black")
    axes.set(xticks=range(len(columns)), xticklabels=columns, yticks=range(len(rows)), yticklabels=rows)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    return figure


def over_rounds(series: Mapping[str, Sequence[Score]]) -> Figure:
    """Sound answers after each round, one line per set of problems, with Wilson intervals."""
    figure, axes = plt.subplots(figsize=(7, 3))
    for index, (name, scores) in enumerate(series.items()):
        shift = 0.03 * (index - (len(series) - 1) / 2)
        centre = [100 * score.estimate for score in scores]
        spread = [[100 * (s.estimate - s.low) for s in scores], [100 * (s.high - s.estimate) for s in scores]]
        places = [number + shift for number in range(1, len(scores) + 1)]
        axes.errorbar(places, centre, yerr=spread, fmt="o-", capsize=4, label=name)
    axes.set(xticks=range(1, max(map(len, series.values())) + 1), xlabel="round", ylabel="sound, %", ylim=(-5, 105))
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    _clean(axes)
    return figure


def pass_curves(curves: Mapping[str, Mapping[str, Mapping[str, float]]], title: str) -> Figure:
    """pass@k and pass^k (see `evaluation.sampled`) over k, with intervals from resampling problems."""
    figure, axes = plt.subplots(figsize=(6, 2.8))
    for (name, points), color in zip(curves.items(), (AFTER, BEFORE), strict=True):
        values = [100 * point["estimate"] for point in points.values()]
        axes.plot(list(points), values, "o-", color=color, label=name)
        low, high = ([100 * point[side] for point in points.values()] for side in ("low", "high"))
        axes.fill_between(list(points), low, high, color=color, alpha=0.2)
    axes.set(xlabel="k", ylabel="sound, %", ylim=(-5, 105))
    axes.set_title(title, loc="left")
    axes.legend(frameon=False)
    _clean(axes)
    return figure


def likelihoods(before: Sequence[float], after: Sequence[float]) -> Figure:
    """Log-likelihood of each reference answer after training over before; below the diagonal is forgetting."""
    figure, axes = plt.subplots(figsize=(3.6, 3.6))
    low, high = min(*before, *after), max(*before, *after)
    axes.plot([low, high], [low, high], color=MUTED, lw=0.8, ls="--")
    axes.scatter(before, after, color=AFTER, s=18)
    axes.set(xlabel="before, nats per token", ylabel="after")
    _clean(axes)
    return figure


def _share_axis(axes: Axes, names: Sequence[str]) -> None:
    """One row per name from the top, shares in percent from left to right."""
    axes.set(yticks=range(len(names)), yticklabels=names, xlim=(-2, 112), ylim=(len(names) - 0.5, -0.5))
    axes.set(xlabel="sound answers, % (95 % interval)")
    _clean(axes)


def _interval(axes: Axes, y: float, result: Mapping[str, Any], color: str, label: str | None) -> None:
    value, low, high = (100 * x for x in (result["sound"], *result["sound_ci95"]))
    axes.errorbar(value, y, xerr=[[value - low], [high - value]], fmt="o", color=color, capsize=4, label=label)
    axes.annotate(f"{value:.0f} %", (high, y), (6, 0), textcoords="offset points", va="center", color=color)


def outcomes(before: Mapping[str, int], after: Mapping[str, int], title: str) -> Figure:
    """How chains ended, before and after, as counts per category."""
    names = [name for name in before if before[name] or after[name]]
    figure, axes = plt.subplots(figsize=(7, 0.9 + 0.45 * len(names)))
    for shift, values, color, label in ((-0.2, before, BEFORE, "before"), (0.2, after, AFTER, "after")):
        places = [index + shift for index in range(len(names))]
        bars = axes.barh(places, [values[name] for name in names], height=0.36, color=color, label=label)
        axes.bar_label(bars, padding=3)
    axes.set(yticks=range(len(names)), yticklabels=list(map(_label, names)), xticks=[])
    axes.invert_yaxis()
    axes.set_title(title, loc="left")
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncol=2)
    _clean(axes)
    return figure


def by_level(before: Mapping[int, Score], after: Mapping[int, Score], xlabel: str, title: str) -> Figure:
    """Sound answers by level of difficulty, with intervals."""
    figure, axes = plt.subplots(figsize=(6, 2.8))
    for shift, scores, color, label in ((-0.06, before, BEFORE, "before"), (0.06, after, AFTER, "after")):
        centre = [100 * s.estimate for s in scores.values()]
        spread = [
            [100 * (s.estimate - s.low) for s in scores.values()],
            [100 * (s.high - s.estimate) for s in scores.values()],
        ]
        axes.errorbar([x + shift for x in scores], centre, yerr=spread, fmt="o-", color=color, capsize=4, label=label)
    axes.set(xticks=list(before), xlabel=xlabel, ylabel="sound, %", ylim=(-5, 105))
    axes.set_title(title, loc="left")
    axes.legend(frameon=False)
    _clean(axes)
    return figure


def _label(name: str) -> str:
    return "solved, not sound" if name == "solved" else name.replace("_", " ")


def _clean(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)

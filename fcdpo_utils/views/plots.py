"""Every figure of the notebooks and the report, one function each; they draw what they are given.

Colours: blue before, purple warmed up, orange after, green correct, red incorrect; all readable without colour by
label or position.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fcdpo_utils.evaluation import Score

BEFORE, WARMED_UP, AFTER, CORRECT, INCORRECT, MUTED = "#4c78a8", "#8a6d9f", "#f58518", "#54a24b", "#e45756", "#9aa0a6"


def counts(values: Mapping[str, int], title: str) -> Figure:
    """Horizontal bars of counts, in the order given, each with its number."""
    axes = plt.subplots(figsize=(7, 0.6 + 0.32 * len(values)))[1]
    axes.bar_label(axes.barh(list(map(_label, values)), list(values.values()), color=BEFORE), padding=3)
    axes.invert_yaxis()
    return _finish(axes, title, xticks=[])


def histogram(groups: Mapping[str, Sequence[int]], xlabel: str, title: str) -> Figure:
    """Overlaid histograms of whole numbers, one outline per group."""
    axes = plt.subplots(figsize=(7, 2.6))[1]
    everything = [value for values in groups.values() for value in values]
    bins = [edge - 0.5 for edge in range(min(everything), max(everything) + 2)]
    for (name, values), color in zip(groups.items(), (CORRECT, INCORRECT, BEFORE, AFTER), strict=False):
        axes.hist(values, bins=bins, alpha=0.45, color=color, label=f"{name} ({len(values)})")
    return _finish(axes, title, legend={}, xlabel=xlabel, ylabel="chains")


def per_problem(pairs: Sequence[Sequence[int]]) -> Figure:
    """Correct and incorrect chains of each problem, (correct, incorrect), as stacked columns, most correct first."""
    axes = plt.subplots(figsize=(7, 2.6))[1]
    correct, wrong = zip(*sorted(pairs, key=lambda pair: (-pair[0], pair[1])), strict=True)
    axes.bar(range(len(pairs)), correct, 1, color=CORRECT, alpha=0.6, label="correct")
    axes.bar(range(len(pairs)), wrong, 1, correct, color=INCORRECT, alpha=0.6, label="incorrect")
    both = sum(min(pair) > 0 for pair in pairs)
    legend = {"loc": "lower left", "bbox_to_anchor": (0.62, 1), "ncol": 2}
    title = f"{both} of {len(pairs)} problems have both kinds"
    return _finish(axes, title, legend, xlabel="problem", ylabel="chains", xlim=(-0.5, len(pairs) - 0.5))


def chain_tree(chains: Sequence[tuple[Sequence[str], bool]]) -> Figure:
    """The chains of one prompt, (calls, correct), as a tree from left to right: what chains share stands once.

    Beside it their pairs: a square for each correct chain, in its row, with each incorrect one, in the column of its
    number.
    """
    rows = sorted((tuple(calls), correct) for calls, correct in chains)
    nodes: dict[tuple[str, ...], list[int]] = {}  # each beginning, and the rows of the chains that share it
    for row, (calls, _) in enumerate(rows):
        for end in range(1, len(calls) + 1):
            nodes.setdefault(calls[:end], []).append(row)
    starts = [0]  # of the columns, in characters
    for depth in range(1, max(map(len, nodes)) + 1):
        starts.append(starts[-1] + 5 + max(len(calls[-1][:30]) for calls in nodes if len(calls) == depth))
    wrong = [row for row, (_, correct) in enumerate(rows) if not correct]
    columns = {row: starts[-1] + 12 + 3 * number for number, row in enumerate(wrong)}
    width = starts[-1] + 14 + 3 * len(wrong)
    axes = plt.subplots(figsize=(0.09 * width, 0.34 * len(rows) + 0.6))[1]
    for calls, shared in nodes.items():
        kinds, text, x = {rows[row][1] for row in shared}, calls[-1][:30], starts[len(calls) - 1]
        if before := nodes.get(calls[:-1]):
            left = starts[len(calls) - 2] + len(calls[-2][:30]) + 0.5
            axes.plot([left, x - 0.5], [fmean(before), fmean(shared)], color=MUTED, lw=0.8)
        color = "black" if len(kinds) == 2 else CORRECT if True in kinds else INCORRECT
        axes.text(x, fmean(shared), text, color=color, fontsize=8, family="monospace", va="center")
    for row, (calls, correct) in enumerate(rows):
        words = "correct" if correct else f"incorrect {wrong.index(row) + 1}"
        axes.text(starts[len(calls)] - 3, row, words, fontsize=8, va="center", style="italic")
        axes.scatter(columns.values() if correct else (), [row] * len(wrong) * correct, marker="s", color=BEFORE)
    for number, x in enumerate(columns.values(), start=1):
        axes.text(x, -1, f"{number}", fontsize=8, ha="center", va="center", style="italic")
    axes.axis("off")
    return _finish(axes, xlim=(0, width), ylim=(len(rows) - 0.5, -1.5))


def training_curves(rows: Sequence[Mapping[str, float]]) -> Figure:
    """Loss, reward margin, and chosen and rejected log-probabilities over the steps."""
    figure, (loss, margin, log_probs) = plt.subplots(1, 3, figsize=(10.5, 2.8), layout="constrained")
    panels = [(loss, "loss", AFTER), (margin, "rewards/margins", BEFORE)]
    panels += [(log_probs, "logps/chosen", CORRECT), (log_probs, "logps/rejected", INCORRECT)]
    steps = [row["step"] for row in rows]
    for axes, column, color in panels:  # faint raw values under a running mean of nine
        values = [row[column] for row in rows]
        axes.plot(steps, values, color=color, alpha=0.25, lw=0.8)
        means = [fmean(values[max(0, i - 8) : i + 1]) for i in range(len(values))]
        axes.plot(steps, means, color=color, label=column.split("/")[-1])
    margin.axhline(0, color=MUTED, lw=0.8)
    _finish(loss, "loss", xlabel="step")
    _finish(margin, "reward margin", xlabel="step")
    _finish(log_probs, "log-probability of a chain", legend={}, xlabel="step")
    return figure


def token_log_probs(chains: Mapping[str, Sequence[tuple[str, float | None, float | None]]]) -> Figure:
    """log p of each token of some chains, (text, before, after) by name; masked ones, with None, stand in grey."""
    size = 1 + 0.13 * max(map(len, chains.values())), 2.6 * len(chains)
    figure, panels = plt.subplots(len(chains), figsize=size, layout="constrained", squeeze=False)
    for (name, tokens), axes in zip(chains.items(), panels[:, 0], strict=True):
        own = [place for place, token in enumerate(tokens) if token[1] is not None]
        for column, color, label in ((1, BEFORE, "before"), (2, AFTER, "after")):
            axes.plot(own, [tokens[place][column] for place in own], ".", color=color, label=label)
        texts = [text.strip().replace("$", r"\$") for text, *_ in tokens]
        _finish(axes, name, {"ncol": 2}, xticks=range(len(tokens)), xticklabels=texts, ylabel="log-probability")
        axes.tick_params(axis="x", labelrotation=90, labelsize=7)
        for label, (_, before, _) in zip(axes.get_xticklabels(), tokens, strict=True):
            label.set_color(MUTED if before is None else "black")
    return figure


def accuracy(results: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Sound answers of each student per task (see `evaluation.compare`), with Wilson 95 % intervals."""
    axes = plt.subplots(figsize=(7, 0.9 + 0.85 * len(results)))[1]
    for row, result in enumerate(results.values()):
        for when, shift, color in (("before", -0.2, BEFORE), ("warm_up", 0, WARMED_UP), ("after", 0.2, AFTER)):
            if when in result:
                _interval(axes, row + shift, result[when], color, _label(when) if row == 0 else None)
    return _share_axis(axes, list(results), legend={"loc": "lower center", "bbox_to_anchor": (0.5, 1), "ncol": 3})


def variants(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Sound answers of variants (see `ablations.table`), with Wilson intervals; the first is the full method."""
    axes = plt.subplots(figsize=(7, 0.8 + 0.42 * len(rows)))[1]
    axes.axvline(100 * rows[0]["sound"], color=MUTED, lw=0.8, ls="--")
    for place, row in enumerate(rows):
        _interval(axes, place, row, AFTER if place == 0 else BEFORE, None)
    return _share_axis(axes, [row["name"] for row in rows])


def _interval(axes: Axes, y: float, result: Mapping[str, Any], color: str, label: str | None) -> None:
    value, low, high = (100 * x for x in (result["sound"], *result["sound_ci95"]))
    axes.errorbar(value, y, xerr=[[value - low], [high - value]], fmt="o", color=color, capsize=4, label=label)
    axes.annotate(f"{value:.0f} %", (high, y), (6, 0), textcoords="offset points", va="center", color=color)


def _share_axis(axes: Axes, names: Sequence[str], legend: Mapping[str, Any] | None = None) -> Figure:
    """One row per name from the top, shares in percent from left to right."""
    limits = {"xlim": (-2, 112), "ylim": (len(names) - 0.5, -0.5)}
    rows = {"yticks": range(len(names)), "yticklabels": names}
    return _finish(axes, legend=legend, **rows, **limits, xlabel="sound answers, % (95 % interval)")


def heat_map(values: Mapping[tuple[int, int], float], xlabel: str, ylabel: str) -> Figure:
    """Shares by two counts, (row, column) -> share, each written in its cell; cells that were not run stay empty."""
    columns, rows = sorted({x for _, x in values}), sorted({y for y, _ in values}, reverse=True)
    figure, axes = plt.subplots(figsize=(1.6 + 0.8 * len(columns), 1.2 + 0.6 * len(rows)))
    shares = [[100 * values.get((y, x), float("nan")) for x in columns] for y in rows]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for (y, x), value in values.items():
        place, color = (columns.index(x), rows.index(y)), "white" if value > 0.55 else "black"
        axes.text(*place, f"{100 * value:.0f} %", ha="center", va="center", color=color)
    axes.set(xticks=range(len(columns)), xticklabels=columns, yticks=range(len(rows)), yticklabels=rows)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    return figure


def curves(lines: Mapping[str, Mapping[int, Score]], xlabel: str, title: str) -> Figure:
    """Sound answers with their intervals over levels of difficulty, or k of pass@k; one line for each of two names."""
    axes = plt.subplots(figsize=(6, 2.8))[1]
    for (name, scores), color, shift in zip(lines.items(), (BEFORE, AFTER), (-0.06, 0.06), strict=True):
        percent = [100 * score.estimate for score in scores.values()]
        spread = [[100 * (s.estimate - s.low), 100 * (s.high - s.estimate)] for s in scores.values()]
        options = {"yerr": [*zip(*spread, strict=True)], "fmt": "o-", "capsize": 4, "color": color, "label": name}
        axes.errorbar([x + shift for x in scores], percent, **options)
    axes.set_xticks(sorted(set().union(*lines.values())))
    return _finish(axes, title, legend={}, xlabel=xlabel, ylabel="sound, %", ylim=(-5, 105))


def shares(curves: Mapping[str, Sequence[float]], title: str) -> Figure:
    """Shares over the steps of a training, one line each."""
    axes = plt.subplots(figsize=(6, 2.8))[1]
    for (name, values), color in zip(curves.items(), (CORRECT, WARMED_UP, AFTER), strict=False):
        axes.plot(range(len(values)), [100 * value for value in values], color=color, label=_label(name))
    return _finish(axes, title, legend={}, xlabel="step", ylabel="right, %", ylim=(0, 105))


def likelihoods(before: Sequence[float], after: Sequence[float]) -> Figure:
    """Log-likelihood of each reference answer after training over before; below the diagonal is forgetting."""
    axes = plt.subplots(figsize=(3.6, 3.6))[1]
    low, high = min(*before, *after), max(*before, *after)
    axes.plot([low, high], [low, high], color=MUTED, lw=0.8, ls="--")
    axes.scatter(before, after, color=AFTER, s=18)
    return _finish(axes, xlabel="before, nats per token", ylabel="after")


def outcomes(before: Mapping[str, int], after: Mapping[str, int], title: str) -> Figure:
    """How chains ended, before and after, as counts per category."""
    names = [name for name in before if before[name] or after[name]]
    axes = plt.subplots(figsize=(7, 0.9 + 0.45 * len(names)))[1]
    for shift, values, color, label in ((-0.2, before, BEFORE, "before"), (0.2, after, AFTER, "after")):
        places = [index + shift for index in range(len(names))]
        bars = axes.barh(places, [values[name] for name in names], height=0.36, color=color, label=label)
        axes.bar_label(bars, padding=3)
    axes.invert_yaxis()
    legend = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncol": 2}
    return _finish(axes, title, legend, yticks=range(len(names)), yticklabels=list(map(_label, names)), xticks=[])


def _label(name: str) -> str:
    return "solved, not sound" if name == "solved" else name.replace("_", " ")


def _finish(axes: Axes, title: str = "", legend: Mapping[str, Any] | None = None, **labels: Any) -> Figure:
    """The figure, with labels, ticks and limits; the title on the left; a legend, placed as said, if any; no frame."""
    axes.set(**labels)
    axes.set_title(title, loc="left")
    if legend is not None:
        axes.legend(frameon=False, **legend)
    axes.spines[["top", "right"]].set_visible(False)
    return axes.figure

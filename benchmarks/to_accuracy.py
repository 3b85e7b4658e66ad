"""Held-out accuracy over minutes of training: ours with all pairs of a prompt, stock TRL with pairs that it samples.

    python benchmarks/dpo.py --to-accuracy [--batches 1 2] [--start ADAPTER] [--set training.sft_weight=0 seed=1]

The same student, chains (of the profile `ablations`), loss and rates; the rate stays constant, so that a curve may be
cut anywhere. TRL, with each of `--batches` pairs a step, goes on until it has made as many steps as ours and taken as
long, at most four times as long. The clock runs while a trainer is built, references are computed and steps are taken,
and stands still while held-out problems are answered. Runs that the JSON file has, with the same settings, are kept.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from transformers import PrinterCallback, TrainerCallback

from fcdpo_utils import engine
from fcdpo_utils.chains import prompts_of, request_of
from fcdpo_utils.dataset import GroupDataset
from fcdpo_utils.lab.settings import RunSettings, load_settings
from fcdpo_utils.plain import Sampling
from fcdpo_utils.preferences import build_preferences
from fcdpo_utils.students import free_memory, load_student
from fcdpo_utils.tasks.making import make_problems
from fcdpo_utils.teachers import build_teacher
from fcdpo_utils.train import tokenise
from fcdpo_utils.trainer import build_trainer

CAP = 4  # the longest that TRL may take, in times of ours
Row = dict[str, float]  # step, seconds, pairs seen, sound of the held-out problems


class Curve(TrainerCallback):
    """Rows before the first step and after some; the end after `options.steps` steps and `seconds`."""

    def __init__(self, options: argparse.Namespace, seconds: float, measure: Callable[[int], Row]):
        self.options, self.seconds, self.measure = options, seconds, measure
        self.rows: list[Row] = []
        self.spent, self.started = 0.0, time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.on_step_end(args, state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        before, step, options = self.spent, state.global_step, self.options
        self.spent += time.perf_counter() - self.started
        as_long = self.spent >= self.seconds
        control.should_training_stop = as_long and (step >= options.steps or 0 < CAP * self.seconds <= self.spent)
        if step % options.every == 0 or control.should_training_stop or before < self.seconds <= self.spent:
            self.rows.append({"step": step, "seconds": round(self.spent, 1), **self.measure(step)})
            print("  " + ", ".join(f"{name} {value:g}" for name, value in self.rows[-1].items()), flush=True)
        self.started = time.perf_counter()


def train(settings: RunSettings, options: argparse.Namespace, seconds: float = 0.0) -> list[Row]:
    """One run's curve; `seconds`: how long it takes at least."""
    problems = [p for name, task in settings.tasks.items() for p in make_problems(name, task, settings.seed)]
    known, held_out = ([p for p in problems if p.split == split] for split in ("train", "test"))
    requests, chains = [request_of(p, settings, n) for p in known for n in range(settings.teacher.samples)], []
    build_teacher(settings).run(requests, lambda sample: chains.append((sample.problem.task, sample.chain)))
    data, training = build_preferences(chains), settings.training
    model, tokenizer = load_student(settings.student, options.start, trainable=True)
    tokens = tokenise(data, prompts_of(known), tokenizer)
    groups = GroupDataset(data, tokens, settings.preferences, settings.seed)
    sampling = Sampling(0.0, settings.evaluation.turn_tokens, settings.evaluation.batch_size)

    def measure(step: int) -> Row:
        episodes = [request_of(problem, settings).episode() for problem in held_out]
        sound = sum(chain.sound for chain in engine.rollout(trainer.model, tokenizer, episodes, sampling))
        stock = training.trainer == "stock"
        return {"pairs": step * training.accumulation if stock else trainer.totals["num_pairs"], "sound": sound}

    curve = Curve(options, seconds, measure)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        trainer = build_trainer(model, tokenizer, groups, settings, place, place / "references.sqlite", engine)
        trainer.args.lr_scheduler_type, trainer.args.save_strategy = "constant_with_warmup", "no"
        trainer.args.max_steps = 100 * options.steps  # the curve ends it before
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(curve)
        trainer.train()
    return curve.rows


def compared(runs: dict[str, list[Row]], steps: int, total: int) -> dict[str, Any]:
    """Soundness after as many steps and as long as ours; seconds to each tenth, and TRL's least in times of ours."""
    limits, ours = {"step": steps, "seconds": runs["ours"][-1]["seconds"]}, runs["ours"]
    first = {  # row from which on a curve is as far
        key: {name: next((row["sound"] for row in rows if row[key] >= limit), None) for name, rows in runs.items()}
        for key, limit in limits.items()
    }
    reached = {}
    for tenth in range(1, 1 + int(10 * max(row["sound"] for row in ours) / total)):
        there = {n: [row["seconds"] for row in rows if 10 * row["sound"] >= tenth * total] for n, rows in runs.items()}
        best = min((times[0] for name, times in there.items() if times and name != "ours"), default=None)
        ratio = best and round(best / there["ours"][0], 2)  # None: TRL was never there
        reached[f"{tenth}0 %"] = {**{name: min(times, default=None) for name, times in there.items()}, "ratio": ratio}
    return {"sound_after_as_many_steps": first["step"], "sound_after_as_long": first["seconds"], "seconds_to": reached}


def plot(runs: dict[str, list[Row]], total: int, path: Path, device: str) -> None:
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for (name, rows), color in zip(runs.items(), ("#f58518", "#4c78a8", "#54a24b", "#9aa0a6", "#b279a2"), strict=False):
        points = [(row["seconds"] / 60, 100 * row["sound"] / total) for row in rows]
        axes.plot(*zip(*points, strict=True), "o-", color=color, label=f"{name}: {rows[-1]['pairs']:,.0f} pairs")
    axes.set(xlabel="minutes of training", ylabel=f"sound, % of {total} held-out problems", ylim=(0, None))
    axes.legend(frameon=False)
    axes.set_title(device, loc="left", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main(options: argparse.Namespace, device: str) -> None:
    changes = ["tasks.arithmetic.test=60", f"training.steps={options.steps}", *options.set]
    settings = load_settings("ablations", changes).changed([])  # its variants are not run
    setup = {"settings": settings.model_dump(mode="json"), "every": options.every, "start": str(options.start)}
    report = json.loads(options.json.read_text()) if options.json.exists() else {}
    runs: dict[str, list[Row]] = report["runs"] if report.get("setup") == setup else {}
    total = sum(task.test for task in settings.tasks.values())
    for batch in (0, *options.batches):
        name = f"TRL, {batch} pairs a step" if batch else "ours"
        stock = ["training.trainer=stock", "training.prompts_per_step=1", f"training.accumulation={batch}"]
        if name not in runs:
            print(f"{name}, on {device}; {total} held-out problems", flush=True)
            own, long = (settings.changed(stock), runs["ours"][-1]["seconds"]) if batch else (settings, 0.0)
            runs[name] = train(own, options, long)
            free_memory()
        report = {"device": device, **compared(runs, options.steps, total), "runs": runs, "setup": setup}
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    plot(runs, total, options.json.with_suffix(".png"), device)
    print(json.dumps({name: report[name] for name in list(report)[:4]}, indent=2))

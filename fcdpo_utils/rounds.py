"""Further rounds of training in which the student is its own teacher (iterative DPO, as in arXiv 2404.19733).

Each round samples chains of the current student on new problems, labels them by running them, pairs them, and trains
the adapter further against the student it was. Only the checkers judge; no larger model is asked. Knows nothing of
notebooks or figures.
"""

from __future__ import annotations

from collections.abc import Callable
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
    make_chains,
    prompts_of,
)
from fcdpo_utils.evaluation import sampled
from fcdpo_utils.generalisation import ask
from fcdpo_utils.models import free_memory, load_student
from fcdpo_utils.preferences import build_preferences
from fcdpo_utils.profiles import Settings, TeacherSettings
from fcdpo_utils.tasks import Problem, make_problems
from fcdpo_utils.training import train_student

_SEEDS_APART = 1_000  # between rounds: problems of one round are not those of another


@dataclass(frozen=True)
class Round:
    """What a round made: its chains by problem id, what training says of itself, and the adapter's folder."""

    number: int
    chains: dict[str, list[Chain]]
    statistics: dict[str, int]
    training: dict[str, Any]
    adapter: Path

    def sampled(self) -> dict[str, Any]:
        """pass@k and pass^k of the student that this round started with."""
        return sampled({problem: [chain.sound for chain in chains] for problem, chains in self.chains.items()})


def round_settings(number: int, settings: Settings, adapter: Path) -> Settings:
    """The settings of one round: the student with `adapter` as teacher, new problems, a smaller learning rate."""
    options, student = settings.rounds, settings.student
    teacher = TeacherSettings(
        kind="local",
        model=student.source,
        four_bit=student.four_bit,
        adapter=str(adapter),
        samples=options.samples,
        temperature=options.temperature,
        turn_tokens=settings.evaluation.turn_tokens,
        parallel=settings.evaluation.batch_size,
    )
    tasks = {
        name: task.model_copy(
            update={"train": options.train, "test": 0, "levels": options.levels.get(name, task.levels)}
        )
        for name, task in settings.tasks.items()
        if task.train
    }
    training = settings.training.model_copy(update={"learning_rate": options.learning_rate})
    seed = settings.seed + _SEEDS_APART * number
    return settings.model_copy(update={"teacher": teacher, "tasks": tasks, "training": training, "seed": seed})


def run_round(number: int, settings: Settings, start: Path, folder: Path, progress: Callable[[str], Report]) -> Round:
    """Sample, label, pair and train, from the adapter `start`; an interrupted round goes on where it stopped.

    Raises ValueError where no problem has both a correct and an incorrect chain.
    """
    own = round_settings(number, settings, start)
    folder.mkdir(parents=True, exist_ok=True)
    problems: list[Problem] = [p for name, task in own.tasks.items() for p in make_problems(name, task, own.seed)]
    make_chains(folder / "chains.jsonl", problems, own, progress(f"round {number}: chains"))
    free_memory()
    stored = load_chains(folder / "chains.jsonl")
    preferences = build_preferences(stored, own.preferences.label)
    reports = lambda label: progress(f"round {number}: {label}")  # noqa: E731
    training = train_student(folder, preferences, prompts_of(problems, own), own, reports, start)
    chains: dict[str, list[Chain]] = {}
    for _, chain in stored:
        chains.setdefault(chain.problem_id, []).append(chain)
    return Round(number, chains, preferences.statistics(), training, folder / "adapter")


def evaluate_round(
    number: int, settings: Settings, adapter: Path, run_dir: Path, progress: Callable[[str], Report]
) -> dict[str, list[Chain]]:
    """Greedy chains of the student after a round: the held-out problems by task, and the rounds' probes by name."""
    model, tokenizer = load_student(settings.student, adapter)
    problems, folder = load_problems(run_dir / "problems.jsonl", "test"), run_dir / "rounds"
    folder.mkdir(exist_ok=True)
    path = folder / f"{number}_tests.jsonl" if number > 1 else run_dir / "chains_after.jsonl"  # notebook 05's
    report = progress(f"after round {number}")
    chains = evaluate_student(
        model, tokenizer, problems, settings, path, evaluation_identity(settings, adapter), report
    )
    asked: dict[str, list[Chain]] = {}
    for problem, chain in zip(problems, chains, strict=True):
        asked.setdefault(problem.task, []).append(chain)
    for probe in settings.rounds.probes:
        path = folder / f"{number}_{store.slug(probe.name)}.jsonl"
        report = progress(f"after round {number}, {probe.name}")
        asked[probe.name] = ask(model, tokenizer, probe, settings, path, adapter, report)
    del model
    free_memory()
    return asked

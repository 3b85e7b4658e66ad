"""Further rounds of training in which the student is its own teacher (iterative DPO, as in arXiv 2404.19733).

Each round samples chains of the current student on new problems, labels them by running them, pairs them, and trains
the adapter further against the student it was. Only the checkers judge; no larger model is asked. Three things keep a
round from spoiling what was there: a sampled chain ends at its first error, because what a student writes after one is
noise that DPO would spend its force on; some prompts of the first round are trained on again; and steps are small.
Knows nothing of notebooks or figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
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
from fcdpo_utils.generalisation import ask, probe_problems
from fcdpo_utils.models import free_memory, load_student
from fcdpo_utils.preferences import build_preferences
from fcdpo_utils.profiles import Settings, TeacherSettings
from fcdpo_utils.tasks import Problem, make_problems
from fcdpo_utils.train import drop_checkpoints, train_student

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
    """The settings of one round: the student with `adapter` as teacher, new problems, a smaller learning rate.

    Its chains end at their first error.
    """
    options, student = settings.rounds, settings.student
    teacher = TeacherSettings(
        kind="local",
        model=student.source,
        four_bit=student.four_bit,
        adapter=str(adapter),
        dtype=student.dtype,
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
    rate = options.learning_rate_share * settings.training.learning_rate
    training = settings.training.model_copy(update={"learning_rate": rate})
    limits = settings.limits.model_copy(update={"errors": 1})
    seed = settings.seed + _SEEDS_APART * number
    changed = {"teacher": teacher, "tasks": tasks, "training": training, "limits": limits, "seed": seed}
    return settings.model_copy(update=changed)


def new_problems(own: Settings, known: Mapping[str, set[str]]) -> list[Problem]:
    """Training problems of a round, as many as its settings say, with no question of their task that is `known`."""
    made: list[Problem] = []
    for name, task in own.tasks.items():
        more = task.model_copy(update={"train": task.train + len(known[name])})  # a file may give them all again
        fresh = [problem for problem in make_problems(name, more, own.seed) if problem.question not in known[name]]
        made += fresh[: task.train]
    return made


@dataclass(frozen=True)
class Replay:
    """Some of the first round's problems of each task, with their chains as (task, chain)."""

    problems: tuple[Problem, ...]
    chains: tuple[tuple[str, Chain], ...]


def load_replay(settings: Settings, run_dir: Path) -> Replay:
    """The first `rounds.replay` problems of each task that have chains of both kinds."""
    chains = load_chains(run_dir / "chains.jsonl")
    blocks = build_preferences(chains, settings.preferences.label).blocks
    usable = {block.problem_id for block in blocks if block.usable}
    ready = [problem for problem in load_problems(run_dir / "problems.jsonl", "train") if problem.id in usable]
    problems: list[Problem] = []
    for name in settings.tasks:
        problems += [problem for problem in ready if problem.task == name][: settings.rounds.replay]
    kept = {problem.id for problem in problems}
    return Replay(tuple(problems), tuple(pair for pair in chains if pair[1].problem_id in kept))


def run_rounds(settings: Settings, run_dir: Path, progress: Callable[[str], Report]) -> Iterator[Round]:
    """Rounds 2, 3, ... from the run's adapter on; an interrupted one goes on where it stopped.

    `progress` makes a reporting function for a label. Raises ValueError for a probe that cannot be asked afterwards.
    """
    for probe in settings.rounds.probes:
        probe_problems(probe, settings.seed)  # now rather than after hours of training
    known: dict[str, set[str]] = {name: set() for name in settings.tasks}
    for split in ("train", "test"):
        for problem in load_problems(run_dir / "problems.jsonl", split):
            known[problem.task].add(problem.question)
    adapter, replay = run_dir / "adapter", load_replay(settings, run_dir)
    for number in range(2, settings.rounds.count + 1):
        own = round_settings(number, settings, adapter)
        problems = [replace(p, id=f"{p.id}-round-{number}") for p in new_problems(own, known)]
        for problem in problems:
            known[problem.task].add(problem.question)
        folder = run_dir / "rounds" / str(number)
        made = _run_round(number, own, problems, replay, adapter, folder, _labelled(progress, number))
        yield made
        adapter = made.adapter


def _run_round(
    number: int,
    own: Settings,
    problems: list[Problem],
    replay: Replay,
    start: Path,
    folder: Path,
    progress: Callable[[str], Report],
) -> Round:
    """Sample, label, pair and train.

    Where no new problem has both a correct and an incorrect chain there is nothing to learn: `training` is then empty,
    and the adapter stays the one it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    make_chains(folder / "chains.jsonl", problems, own, progress("chains"))
    free_memory()
    stored = load_chains(folder / "chains.jsonl")
    chains: dict[str, list[Chain]] = {}
    for _, chain in stored:
        chains.setdefault(chain.problem_id, []).append(chain)
    statistics, training = build_preferences(stored, own.preferences.label).statistics(), {}
    if statistics["pairs_augmented"]:
        preferences = build_preferences([*stored, *replay.chains], own.preferences.label)
        prompts = prompts_of([*problems, *replay.problems], own)
        training = train_student(folder, preferences, prompts, own, progress, start)
        drop_checkpoints(folder)
    return Round(number, chains, statistics, training, folder / "adapter" if training else start)


def _labelled(progress: Callable[[str], Report], number: int) -> Callable[[str], Report]:
    return lambda label: progress(f"round {number}: {label}")


def evaluate_round(
    number: int, settings: Settings, adapter: Path, run_dir: Path, progress: Callable[[str], Report]
) -> dict[str, list[Chain]]:
    """Greedy chains of the student after a round: the held-out problems by task, and the rounds' probes by name."""
    model, tokenizer = load_student(settings.student, adapter)
    problems, folder = load_problems(run_dir / "problems.jsonl", "test"), run_dir / "rounds"
    folder.mkdir(exist_ok=True)
    path = folder / f"{number}_tests.jsonl"
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

"""The scripted teacher, the embedded default, is what its name says: gold chains with typical mistakes.

It is no language model. Its chains are labelled like anybody's, by running them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fcdpo_utils.agent import run_calls
from fcdpo_utils.tasks.base import Mistake, Problem, Task
from fcdpo_utils.teachers.base import Job, Sample


def _skipped_step(problem: Problem, calls: list[str], rng: random.Random) -> list[str] | None:
    place = rng.randrange(max(1, len(calls) - 2))
    return calls[:place] + calls[place + 1 :]


def _bad_syntax(problem: Problem, calls: list[str], rng: random.Random) -> list[str] | None:
    place = rng.randrange(len(calls))
    broken = rng.choice([calls[place][:-1], calls[place].replace("(", "", 1), f"Call: {calls[place]}"])
    return [*calls[:place], broken, *calls[place:]]


def _unknown_function(problem: Problem, calls: list[str], rng: random.Random) -> list[str] | None:
    place = rng.randrange(len(calls))
    name, _, arguments = calls[place].partition("(")
    invented = rng.choice([f"{name}s", f"{name}_step", name.lower(), "Solve"])
    return [*calls[:place], f"{invented}({arguments}", *calls[place:]]


def _no_stop(problem: Problem, calls: list[str], rng: random.Random) -> list[str] | None:
    return [*calls[:-1], calls[-2]]


COMMON_SHARE = 0.25  # of the mistakes; the others are typical of the task
COMMON_MISTAKES: dict[str, Mistake] = {
    "skipped_step": _skipped_step,
    "bad_syntax": _bad_syntax,
    "unknown_function": _unknown_function,
    "no_stop": _no_stop,
}


@dataclass(frozen=True)
class ScriptedTeacher:
    """Gold chains plus controlled mistakes.

    `error_rate`: share of each problem's samples that get one mistake, spread evenly (0.5: every second one).
    `variation`: share of the others, after the first, that take another natural order of steps.
    """

    error_rate: float = 0.5
    variation: float = 0.3
    seed: int = 0

    def run(
        self, jobs: Sequence[Job], keep: Callable[[Sample], None], admit: Callable[[], bool] = lambda: True
    ) -> None:
        for job in jobs:
            if not admit():
                return
            keep(self.sample(job))

    def sample(self, job: Job) -> Sample:
        """One chain; the same job gives the same chain."""
        rng = random.Random(f"teacher/{self.seed}/{job.problem.id}/{job.number}")
        source, calls = self._calls(job.task, job.problem, job.number, rng, job.toolset)
        chain = run_calls(job.task, job.problem, calls, job.toolset, job.limits)
        return Sample(job.problem, job.number, source, chain)

    def _calls(
        self, task: Task, problem: Problem, number: int, rng: random.Random, toolset: str | None
    ) -> tuple[str, list[str]]:
        phase = random.Random(f"phase/{self.seed}/{problem.id}").random()
        if int((number + 1) * self.error_rate + phase) == int(number * self.error_rate + phase):
            varied = number > 0 and rng.random() < self.variation
            return "gold", task.gold_calls(problem, rng if varied else None, toolset)
        gold = task.gold_calls(problem, None, toolset)
        mistakes = COMMON_MISTAKES | dict(task.mistakes)
        kinds = [sorted(task.mistakes), sorted(COMMON_MISTAKES)]
        if rng.random() < COMMON_SHARE:
            kinds.reverse()
        for name in (name for kind in kinds for name in rng.sample(kind, len(kind))):
            calls = mistakes[name](problem, list(gold), rng)
            if calls is not None:
                return name, calls
        raise ValueError(f"no mistake applies to {problem.id}")  # unreachable: the common ones always apply

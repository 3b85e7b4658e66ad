"""Teachers: who proposes the chains that the student learns from.

The scripted teacher is the embedded default, and it is what its name says: gold chains, into which it puts typical
mistakes at a set rate. It is no language model. Its chains are labelled like anybody's, by running them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fcdpo_utils.agent import Chain, Limits, run_calls
from fcdpo_utils.tasks.base import Mistake, Problem, Task


@dataclass(frozen=True)
class Sample:
    """One chain of a teacher: `source` tells how it was made and is never used for its label."""

    problem: Problem
    number: int
    source: str
    chain: Chain


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

    def sample(self, task: Task, problem: Problem, number: int, toolset: str | None, limits: Limits) -> Sample:
        """Chain `number` of `problem`; the same arguments give the same chain."""
        rng = random.Random(f"teacher/{self.seed}/{problem.id}/{number}")
        source, calls = self._calls(task, problem, number, rng, toolset)
        return Sample(problem, number, source, run_calls(task, problem, calls, toolset, limits))

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


def sample_chains(
    teacher: ScriptedTeacher,
    task: Task,
    problems: Sequence[Problem],
    samples: int,
    toolset: str | None = None,
    limits: Limits = Limits(),
    done: frozenset[tuple[str, int]] = frozenset(),
) -> Iterator[Sample]:
    """`samples` chains per problem, in order, leaving out the (problem id, number) that are `done` already."""
    for problem in problems:
        for number in range(samples):
            if (problem.id, number) not in done:
                yield teacher.sample(task, problem, number, toolset, limits)

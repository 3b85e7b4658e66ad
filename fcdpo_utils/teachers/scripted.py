"""The embedded default, which is no language model: gold chains with typical mistakes.

A stand-in for a large teacher: what mistakes there are and how often they come is known.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile

from fcdpo_utils.episode import run_calls
from fcdpo_utils.problems import Mistake, Problem, Task
from fcdpo_utils.teacher import Admit, OnSample, Sample, SampleRequest


def _skipped_step(problem: Problem, calls: list[str], rng: random.Random) -> list[str]:
    place = rng.randrange(max(1, len(calls) - 2))
    return calls[:place] + calls[place + 1 :]


def _made_good(spoilt: Callable[[str], list[str]], problem: Problem, calls: list[str], rng: random.Random) -> list[str]:
    """One of the spoilt forms of a call, and then the call as it should be."""
    place = rng.randrange(len(calls))
    return [*calls[:place], rng.choice(spoilt(calls[place])), *calls[place:]]


def _unknown_functions(call: str) -> list[str]:
    name, _, arguments = call.partition("(")
    return [f"{invented}({arguments}" for invented in (f"{name}s", f"{name}_step", name.lower(), "Solve")]


def _misjudged(problem: Problem, calls: list[str], rng: random.Random) -> list[str]:
    """Solves on although a function is missing, or says that one is although none is."""
    return calls if problem.missing else [*calls[: rng.randrange(max(1, len(calls) - 1))], "Unable()", "Stop()"]


COMMON_SHARE = 0.25  # of the mistakes; the others are typical of the task
COMMON_MISTAKES: dict[str, Mistake] = {
    "skipped_step": _skipped_step,
    "bad_syntax": partial(_made_good, lambda call: [call[:-1], call.replace("(", "", 1), f"Call: {call}"]),
    "unknown_function": partial(_made_good, _unknown_functions),
    "no_stop": lambda problem, calls, rng: [*calls[:-1], calls[-2]],
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

    def run(self, requests: Sequence[SampleRequest], on_sample: OnSample, admit: Admit = lambda: True) -> None:
        for request in takewhile(lambda _: admit(), requests):
            on_sample(self.sample(request))

    def sample(self, request: SampleRequest) -> Sample:
        """One chain; the same request gives the same chain."""
        task, problem, number = request.task, request.problem, request.number
        rng = random.Random(f"teacher/{self.seed}/{problem.id}/{number}")
        phase = random.Random(f"phase/{self.seed}/{problem.id}").random()
        if int((number + 1) * self.error_rate + phase) > int(number * self.error_rate + phase):
            source, calls = _with_mistake(task, problem, task.solution(problem), rng)
        else:
            varied = number > 0 and rng.random() < self.variation
            source, calls = "gold", task.gold_calls(problem, rng if varied else None)
        return Sample(problem, number, source, run_calls(task, problem, calls, request.limits))


def _with_mistake(task: Task, problem: Problem, gold: list[str], rng: random.Random) -> tuple[str, list[str]]:
    """The name of a mistake that applies, and the calls with it."""
    typical = task.mistakes | ({"misjudged": _misjudged} if problem.withheld else {})
    kinds, mistakes = [typical, COMMON_MISTAKES], COMMON_MISTAKES | typical
    if rng.random() < COMMON_SHARE:
        kinds.reverse()
    names = (name for kind in kinds for name in rng.sample(sorted(kind), len(kind)))
    tried = ((name, mistakes[name](problem, list(gold), rng)) for name in names)
    return next((name, calls) for name, calls in tried if calls is not None)  # the common ones always apply

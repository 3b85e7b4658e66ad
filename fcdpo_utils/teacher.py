"""Who proposes chains: what is asked of every teacher, and its budget. `teachers` has the scripted one and models.

Sample requests go in, chains come out; labels come from running the chains.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fcdpo_utils.episode import Chain, Episode, Usage
from fcdpo_utils.problems import Problem, Task
from fcdpo_utils.settings import Limits


class TeacherError(Exception):
    """One line: why no more chains can be made, and what to do."""


@dataclass(frozen=True)
class SampleRequest:
    """One chain to make: sample `number` of `problem`."""

    task: Task
    problem: Problem
    number: int
    limits: Limits = field(default_factory=Limits)

    def episode(self) -> Episode:
        return Episode(self.task, self.problem, self.limits)


@dataclass(frozen=True)
class Sample:
    """One chain of a teacher: `source` tells how it was made and is never used for its label."""

    problem: Problem
    number: int
    source: str
    chain: Chain
    usage: Usage = field(default_factory=Usage)


OnSample = Callable[[Sample], None]
Admit = Callable[[], bool]


class Teacher(Protocol):
    """The same request gives the same chain where the teacher's randomness is ours to seed."""

    def run(self, requests: Sequence[SampleRequest], on_sample: OnSample, admit: Admit = lambda: True) -> None:
        """Make every chain; `on_sample` gets each as it ends, `admit` is asked before each starts and may say no.
        Raises `TeacherError` when some cannot be made.
        """

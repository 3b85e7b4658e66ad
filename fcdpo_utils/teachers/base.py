"""What every teacher is: something that turns jobs into chains. Labels come from running the chains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from fcdpo_utils.agent import Chain, Episode, Limits
from fcdpo_utils.tasks.base import Problem, Task

DEFAULT_LIMITS = Limits()


class TeacherError(Exception):
    """One line: why no more chains can be made, and what to do."""


@dataclass(frozen=True)
class Job:
    """One chain to make: sample `number` of `problem`."""

    task: Task
    problem: Problem
    number: int
    toolset: str | None = None
    limits: Limits = DEFAULT_LIMITS

    def episode(self) -> Episode:
        return Episode(self.task, self.problem, self.toolset, self.limits)


@dataclass(frozen=True)
class Sample:
    """One chain of a teacher: `source` tells how it was made and is never used for its label."""

    problem: Problem
    number: int
    source: str
    chain: Chain


class Teacher(Protocol):
    """The same job gives the same chain where the teacher's randomness is ours to seed."""

    def run(self, jobs: Sequence[Job], keep: Callable[[Sample], None]) -> None:
        """Make every chain; `keep` is called with each as it ends. Raises `TeacherError` when some cannot be made."""

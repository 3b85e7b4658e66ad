"""What every teacher is: something that turns jobs into chains. Labels come from running the chains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fcdpo_utils.agent import Chain, Episode, Limits, Usage
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
    usage: Usage = field(default_factory=Usage)


@dataclass
class Budget:
    """How much may be made; 0 is no limit. `prices`: of a million tokens read, and of a million written.

    Chains under way when the budget ends are finished; they are reckoned at the mean of the finished ones.
    """

    max_chains: int = 0
    max_tokens: int = 0
    max_cost: float = 0.0
    prices: tuple[float, float] = (0.0, 0.0)
    started: int = 0
    finished: int = 0
    usage: Usage = field(default_factory=Usage)

    def admit(self) -> bool:
        """Whether one more chain may start; it then counts as started."""
        if self.ended():
            return False
        self.started += 1
        return True

    def settle(self, usage: Usage) -> None:
        """A chain was made, now or in an earlier run."""
        self.finished += 1
        self.started = max(self.started, self.finished)
        self.usage.add(usage.read, usage.written)

    @property
    def tokens(self) -> int:
        return self.usage.read + self.usage.written

    @property
    def cost(self) -> float:
        return (self.usage.read * self.prices[0] + self.usage.written * self.prices[1]) / 1e6

    def ended(self) -> str | None:
        """The limit that is reached, or None."""
        share = self.started / self.finished if self.finished else 1.0  # with what is under way
        spent = {"max_chains": self.started, "max_tokens": self.tokens * share, "max_cost": self.cost * share}
        return next((name for name, used in spent.items() if 0 < getattr(self, name) <= used), None)


class Teacher(Protocol):
    """The same job gives the same chain where the teacher's randomness is ours to seed."""

    def run(
        self, jobs: Sequence[Job], keep: Callable[[Sample], None], admit: Callable[[], bool] = lambda: True
    ) -> None:
        """Make every chain; `keep` is called with each as it ends, `admit` before each starts, which may say no.

        Raises `TeacherError` when some cannot be made.
        """

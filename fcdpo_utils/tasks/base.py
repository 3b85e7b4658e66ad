"""What a task is: problems, the functions to solve them with, gold chains, and a check of the answer.

Knows nothing of prompts, models or chains being sampled.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fcdpo_utils.functions import Toolset

Mistake = Callable[["Problem", list[str], random.Random], list[str] | None]


@dataclass(frozen=True)
class Problem:
    """One problem as it is stored in `problems.jsonl`.

    `details` holds what the task needs to check a chain (for logic the premises, for arithmetic the gold calls);
    `canonical` is equal for problems that differ only in names, so that splits can be kept apart.
    """

    id: str
    task: str
    split: str
    level: int
    question: str
    answer: str
    canonical: str
    details: dict[str, Any] = field(default_factory=dict)


class Task(ABC):
    """One kind of problem. `toolsets` maps a name to a `Toolset` class; the first is the default."""

    name: ClassVar[str]
    instruction: ClassVar[str]
    toolsets: ClassVar[dict[str, type[Toolset]]]
    mistakes: ClassVar[dict[str, Mistake]] = {}

    def toolset(self, name: str | None) -> type[Toolset]:
        """The toolset of that name, None being the default; raises ValueError with one line for an unknown one."""
        if name is not None and name not in self.toolsets:
            raise ValueError(f"{self.name}: toolset must be one of {', '.join(self.toolsets)}, got {name!r}")
        return self.toolsets[name or next(iter(self.toolsets))]

    @abstractmethod
    def generate(self, count: int, split: str, seed: int, **options: Any) -> list[Problem]:
        """`count` distinct problems of `split`; the same arguments give the same problems."""

    @abstractmethod
    def example(self) -> Problem:
        """The fixed problem of the worked example in every prompt; in no split."""

    @abstractmethod
    def start(self, problem: Problem, toolset: str | None = None) -> Toolset:
        """A fresh chain state for `problem`."""

    @abstractmethod
    def gold_calls(self, problem: Problem, rng: random.Random | None = None, toolset: str | None = None) -> list[str]:
        """Calls that solve `problem` soundly; `rng` picks among natural orders, None is the canonical one."""

    @abstractmethod
    def is_correct(self, problem: Problem, answer: str | None) -> bool:
        """Whether `answer` (as recorded by the toolset) is right."""

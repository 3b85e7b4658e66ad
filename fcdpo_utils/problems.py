"""What a task is: problems, the functions to solve them with, gold chains, and a check of the answer.

Tasks are known by name in `TASKS`; `arithmetic` is one in full, `tasks/` has the others. Knows nothing of prompts,
models or chains being sampled.
"""

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from fcdpo_utils import store
from fcdpo_utils.tools import Functions, Toolset

SPLITS = ("train", "test")
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

    @property
    def toolset(self) -> str | None:
        """The name of the toolset that it is solved with, None being the task's default."""
        return self.details.get("toolset")

    @property
    def functions(self) -> Functions:
        """How the functions are shown, where that was drawn for this problem; else ()."""
        return tuple(map(tuple, self.details.get("functions", ())))

    @property
    def withheld(self) -> Functions:
        """The one that is not offered, where the problem lacks one; else ()."""
        return tuple(map(tuple, self.details.get("withheld", ())))

    @property
    def missing(self) -> bool:
        """Whether that one is needed: then no answer is right but `Unable()`."""
        return self.details.get("missing", False)


class Task(ABC):
    """One kind of problem. `toolsets` maps a name to a `Toolset` class; the first is the default.

    `constants` are numbers that a sound chain may use although neither the question nor a result states them.
    `accepted_is_right`: whether the functions accept only steps that are right, as a checker of proofs does.
    """

    name: ClassVar[str]
    instruction: ClassVar[str]
    toolsets: ClassVar[dict[str, type[Toolset]]]
    mistakes: ClassVar[dict[str, Mistake]] = {}
    constants: ClassVar[tuple[int | str, ...]] = ()
    accepted_is_right: ClassVar[bool] = False
    own_code: ClassVar[Sequence[str]] = ()  # of a task outside this package: what stands for its code in fingerprints

    def constants_of(self, problem: Problem) -> Sequence[int | str]:
        """The constants that a chain of `problem` may use; numbers other than whole ones as text, such as "1/3"."""
        return self.constants

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

    def start(self, problem: Problem) -> Toolset:
        """A fresh chain state for `problem`."""
        state = self.toolset(problem.toolset)()
        state.question = problem.question
        return state

    def gold_calls(self, problem: Problem, rng: random.Random | None = None) -> list[str]:
        """Calls of a sound chain: its `solution`, but where a function for that is missing, that it is."""
        return ["Unable()", "Stop()"] if problem.missing else self.solution(problem, rng)

    @abstractmethod
    def solution(self, problem: Problem, rng: random.Random | None = None) -> list[str]:
        """Calls that solve `problem` soundly; `rng` picks among natural orders, None is the canonical one."""

    def is_correct(self, problem: Problem, answer: str | None) -> bool:
        """Whether `answer` (as recorded by the toolset) is right."""
        return answer == problem.answer


TASKS: dict[str, Task] = {}


def register(task: Task) -> None:
    """Make `task` known by its name."""
    TASKS[task.name] = task


def rooms_of(names: Iterable[str]) -> list[str]:
    """The modules of these tasks, of their functions and of their mistakes, whose code their chains depend on."""
    tasks = [TASKS[name] for name in set(names)]
    parts = [part for task in tasks for part in (type(task), *task.toolsets.values(), *task.mistakes.values())]
    return sorted({part.__module__ for part in parts}.union(*(task.own_code for task in tasks)))


def folded(text: str) -> str:
    """`text` up to case and spaces: by it two questions are one."""
    return " ".join(text.lower().split())


def split_of(canonical: str) -> str:
    """ "test" for three tenths of all canonical forms, else "train": no problem is ever in both."""
    return "test" if int(hashlib.sha256(canonical.encode()).hexdigest(), 16) % 10 < 3 else "train"


def check_request(
    task: str, split: str, levels: Sequence[int], allowed: Sequence[int], splits: Sequence[str] = SPLITS
) -> None:
    """Raises ValueError, one line, for a split or a level that `task` does not have."""
    if split not in splits:
        raise ValueError(f"{task}: split must be one of {', '.join(splits)}, got {split!r}")
    if not levels or not set(levels) <= set(allowed):
        raise ValueError(f"{task}: levels must be some of {', '.join(map(str, allowed))}, got {levels!r}")


def save_problems(path: Path, problems: Sequence[Problem]) -> None:
    store.write_records(path, (vars(problem) for problem in problems))


def load_problems(path: Path, split: str) -> list[Problem]:
    """The problems of one split, in the order they were made."""
    return [Problem(**record) for record in store.read(path) if record["split"] == split]

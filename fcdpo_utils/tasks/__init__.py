"""The tasks by name, and the problems of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fcdpo_utils.tasks.arithmetic import Arithmetic
from fcdpo_utils.tasks.base import Problem, Task
from fcdpo_utils.tasks.fol import FirstOrderLogic
from fcdpo_utils.tasks.gsm8k import GSM8K
from fcdpo_utils.tasks.puzzles import PUZZLES

if TYPE_CHECKING:
    from fcdpo_utils.profiles import TaskSettings

TASKS: dict[str, Task] = {task.name: task for task in (FirstOrderLogic(), Arithmetic(), GSM8K(), *PUZZLES)}


def make_problems(name: str, settings: TaskSettings, seed: int) -> list[Problem]:
    """The training and held-out problems of one task; no canonical form is in both."""
    paths = {"path": settings.path, "test_path": settings.test_path}
    options = {option: path for option, path in paths.items() if path}
    return [
        problem
        for split, count in (("train", settings.train), ("test", settings.test))
        for problem in TASKS[name].generate(count, split, seed, levels=settings.levels, **options)
    ]

"""The problems of a run: as many of each task as the settings want, each with the functions that it offers."""

import random
from collections.abc import Sequence
from dataclasses import replace

from fcdpo_utils.problems import TASKS, Problem
from fcdpo_utils.settings import FunctionSettings, TaskSettings
from fcdpo_utils.tasks.naming import draw_names


def make_problems(name: str, settings: TaskSettings, seed: int) -> list[Problem]:
    """The training and held-out problems of one task; no canonical form is in both."""
    options = settings.model_dump(include={"path", "test_path"}, exclude_none=True)
    held_out, found = settings.model_copy(update={"naming": "fixed"}), []
    for split, count, functions in (("train", settings.train, settings), ("test", settings.test, held_out)):
        problems = TASKS[name].generate(count, split, seed, levels=settings.levels, **options)
        found += with_functions(problems, functions, seed)
    return found


def with_functions(problems: Sequence[Problem], options: FunctionSettings, seed: int) -> list[Problem]:
    """Each problem with its toolset and names drawn for its functions; held-out ones have pools of their own.

    Toolsets come in turn, each round in an order of its own, for levels and answers come in turn, too.
    """
    found, names = [], options.toolset or (None,)
    for place, problem in enumerate(problems):
        task, (turn, number) = TASKS[problem.task], divmod(place, len(names))
        toolset = random.Random(f"toolset/{seed}/{turn}").sample(names, len(names))[number]
        tools = task.toolset(toolset)
        functions = draw_names(tools, options.naming, problem.split != "train", f"{seed}/{problem.id}")
        drawn = {"toolset": toolset if tools is not task.toolset(None) else None, "functions": functions}
        details = problem.details | {name: value for name, value in drawn.items() if value}
        found.append(replace(problem, details=details))
    return found

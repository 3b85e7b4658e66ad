"""The problems of a run: as many of each task as the settings want, with names drawn for their functions."""

from collections.abc import Sequence
from dataclasses import replace

from fcdpo_utils.problems import TASKS, Problem
from fcdpo_utils.settings import Naming, TaskSettings
from fcdpo_utils.tasks.naming import draw_names


def make_problems(name: str, settings: TaskSettings, seed: int) -> list[Problem]:
    """The training and held-out problems of one task; no canonical form is in both."""
    options = settings.model_dump(include={"path", "test_path"}, exclude_none=True)
    train, test = (
        TASKS[name].generate(count, split, seed, levels=settings.levels, **options)
        for split, count in (("train", settings.train), ("test", settings.test))
    )
    return [*with_names(train, settings.toolset, settings.naming, seed), *test]


def with_names(problems: Sequence[Problem], toolset: str | None, naming: Naming, seed: int) -> list[Problem]:
    """Each problem with names drawn for its functions; those of held-out ones come from pools of their own."""
    found = []
    for problem in problems:
        tools, held_out = TASKS[problem.task].toolset(toolset), problem.split != "train"
        functions = draw_names(tools, naming, held_out, f"{seed}/{problem.id}")
        details = problem.details | ({"functions": functions} if functions else {})
        found.append(replace(problem, details=details))
    return found

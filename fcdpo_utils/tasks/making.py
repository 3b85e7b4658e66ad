"""The problems of a run: as many of each task as the settings want, each with the functions that it offers."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from fcdpo_utils.episode import run_calls
from fcdpo_utils.problems import TASKS, Problem
from fcdpo_utils.settings import Limits, Naming, TaskSettings, Toolsets
from fcdpo_utils.tasks.naming import draw_names


def make_problems(name: str, settings: TaskSettings, seed: int) -> list[Problem]:
    """The training and held-out problems of one task; no canonical form is in both."""
    options = settings.model_dump(include={"path", "test_path"}, exclude_none=True)
    train, test = (
        TASKS[name].generate(count, split, seed, levels=settings.levels, **options)
        for split, count in (("train", settings.train), ("test", settings.test))
    )
    train = with_functions(train, seed, settings.toolset, settings.naming, settings.missing, settings.share_names)
    return [*train, *with_functions(test, seed, settings.toolset)]


def with_functions(
    problems: Sequence[Problem],
    seed: int,
    toolsets: Toolsets = (),
    naming: Naming = "fixed",
    missing: float = 0.0,
    share: int = 1,
) -> list[Problem]:
    """Each problem with its toolset and what is shown of it; names of held-out ones come from pools of their own.

    `share`: so many problems of a toolset, as they come, have the names of the first of them.
    """
    found, names, counts, first = [], toolsets or (None,), Counter(), {}
    for place, problem in enumerate(problems):
        task, (turn, number) = TASKS[problem.task], divmod(place, len(names))
        # each turn in an order of its own: levels and answers come in turn, too
        toolset = random.Random(f"toolset/{seed}/{turn}").sample(names, len(names))[number]
        tools, held_out, key = task.toolset(toolset), problem.split != "train", f"{seed}/{problem.id}"
        if counts[toolset] % share == 0:
            first[toolset] = key
        counts[toolset] += 1
        functions = draw_names(tools, naming, held_out, first[toolset], unable=missing > 0)
        drawn = {"toolset": toolset if tools is not task.toolset(None) else None, "functions": functions}
        shown = replace(problem, details=problem.details | {name: value for name, value in drawn.items() if value})
        found.append(_lacking_one(shown, missing, f"missing/{key}") if missing else shown)
    return found


def _lacking_one(problem: Problem, share: float, seed: str) -> Problem:
    """`problem` without a function: a needed one in `share` of all, else one not called, or a short list would tell."""
    task, rng, rows = TASKS[problem.task], random.Random(seed), {row[0]: row for row in problem.functions}
    calls, missing, among = task.solution(problem), rng.random() < share, []
    for name in sorted(rows.keys() - {"Stop", "Unable"}):
        rest = [call for call in calls if not call.startswith(f"{name}(")]
        if not run_calls(task, problem, rest, Limits(calls=len(calls))).sound if missing else rest == calls:
            among.append(name)
    withheld = [rows.pop(rng.choice([name for name in among if name != "Reasoning"] or among))] if among else []
    lacking = {"functions": tuple(rows.values()), "withheld": withheld, "missing": missing}
    return replace(problem, details=problem.details | lacking)

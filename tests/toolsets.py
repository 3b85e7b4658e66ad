"""Problems as they are asked with another toolset of their task."""

from dataclasses import replace

from fcdpo_utils.problems import Problem


def using(toolset: str | None, problem: Problem) -> Problem:
    """`problem`, solved with that toolset."""
    return replace(problem, details=problem.details | {"toolset": toolset})

"""Typical mistakes in arithmetic, for the scripted teacher: gold calls -> plausible calls that go wrong.

A mistaken chain is only offered here; whether it is wrong is found by running it.
"""

import random
import re
from collections.abc import Callable
from fractions import Fraction

from fcdpo_utils.arithmetic import OPERATIONS, Arithmetic, NumberTools, Step, compute, render_calls
from fcdpo_utils.numbers import format_number, parse_number
from fcdpo_utils.problems import TASKS, Mistake, Problem
from fcdpo_utils.tools import ToolError

Link = list  # a step, [function, a, b], whose int operand is the index of an earlier step
_QUESTION_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?", re.ASCII)


def _read(problem: Problem, calls: list[str]) -> tuple[list[Link], type[NumberTools]]:
    """Links and toolset of a problem's gold calls; an operand equal to an earlier result refers to it."""
    links, results = [], []
    tools = TASKS[problem.task].toolset(problem.toolset)
    for (function, a, b), call in zip(problem.details["steps"], calls, strict=False):
        values = list(map(parse_number, (b, a) if call == tools.write(function, b, a) else (a, b)))
        links.append([function, *(len(results) - 1 - results[::-1].index(v) if v in results else v for v in values)])
        results.append(compute(function, *values))
    return links, tools


def _follow(links: list[Link]) -> tuple[list[Step], list[Fraction]]:
    """Steps and results of the links, each reference holding what its step really gave. Raises `ToolError`."""
    steps, results = [], []
    for function, *operands in links:
        a, b = (results[o] if isinstance(o, int) else o for o in operands)
        results.append(compute(function, a, b))
        steps.append([function, format_number(a), format_number(b)])
    return steps, results


def _mistake(change: Callable[[list[Link], Problem, random.Random], None]) -> Mistake:
    """A mistake that changes links; the later steps carry the wrong result on, and the last one is answered.

    It does not apply where `change` finds nothing to choose from (IndexError), or where the result is no number.
    """

    def mistaken(problem: Problem, calls: list[str], rng: random.Random) -> list[str] | None:
        links, tools = _read(problem, calls)
        try:
            change(links, problem, rng)
            steps, results = _follow(links)
        except (IndexError, ToolError):
            return None
        return render_calls(steps, format_number(results[-1]), tools)

    return mistaken


def _swap_operands(links: list[Link], problem: Problem, rng: random.Random) -> None:
    link = rng.choice([link for link in links if link[0] in ("Subtract", "Divide") and link[1] != link[2]])
    link[1:] = link[:0:-1]


def _change_operation(links: list[Link], problem: Problem, rng: random.Random) -> None:
    link = rng.choice(links)
    link[0] = rng.choice([other for other in OPERATIONS if other != link[0]])


def _skip_step(links: list[Link], problem: Problem, rng: random.Random) -> None:
    """Leave out a step before the last; who needs its result takes the step's first operand instead."""
    place = rng.choice(range(len(links) - 1))
    _, first, _ = links.pop(place)
    for link in links[place:]:
        operands = (first if isinstance(o, int) and o == place else o for o in link[1:])
        link[1:] = [o - 1 if isinstance(o, int) and o > place else o for o in operands]


def _change_number(links: list[Link], problem: Problem, rng: random.Random) -> None:
    numbers = [parse_number(text.replace(",", "")) for text in _QUESTION_NUMBER.findall(problem.question)]
    link, place = rng.choice([(link, i) for link in links for i in (1, 2) if isinstance(link[i], Fraction)])
    link[place] = rng.choice([number for number in numbers if number != link[place]])


def _wrong_unit(problem: Problem, calls: list[str], rng: random.Random) -> list[str] | None:
    """Right steps, but the answer is off by a factor of 10 or 100, or is the result of an earlier step."""
    links, tools = _read(problem, calls)
    if not links:
        return None
    steps, results = _follow(links)
    factor = rng.choice([Fraction(10), Fraction(100), Fraction(1, 10), Fraction(1, 100)])
    answer = rng.choice([results[-1] * factor, *results[:-1]])
    return render_calls(steps, format_number(answer), tools)


Arithmetic.mistakes = {
    "swapped_operands": _mistake(_swap_operands),
    "wrong_operation": _mistake(_change_operation),
    "skipped_step": _mistake(_skip_step),
    "wrong_number": _mistake(_change_number),
    "wrong_unit": _wrong_unit,
}

"""Drills: sums said in a few words, a call for each. They practise one thing alone: to find, among the functions that
a prompt offers, the one that does what is asked. With drawn names (`tasks.drills.naming`) that takes reading them.
"""

import random
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import yaml

from fcdpo_utils.arithmetic import MAX_DRAWS, OPERATIONS, Arithmetic, ArithmeticTools, Step
from fcdpo_utils.numbers import format_number
from fcdpo_utils.problems import Problem, check_request, split_of
from fcdpo_utils.tasks.expression import result_of
from fcdpo_utils.tools import ToolError

LEVELS = (1, 2, 3, 4)
SAID = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


def _draw(function: str, rng: random.Random) -> tuple[Step, str]:
    """One sum with a whole, positive result, and how it is said."""
    a, b = rng.randint(2, 12), rng.randint(2, 12)
    a = {"Divide": a * b, "Subtract": a * 5 + b}.get(function, a)
    return [function, str(a), str(b)], rng.choice(SAID[function]).format(a=a, b=b)


class DrillTools(ArithmeticTools):
    """One sum at a time: only a call with its result is accepted, and what that returns brings the next sum."""

    def __init__(self, steps: Sequence[Step], said: Sequence[str]):
        super().__init__()
        self.waiting = list(zip(map(result_of, steps), [*said[1:], ""], strict=True))

    def say(self, result: Fraction) -> str:
        if not self.waiting or result != self.waiting[0][0]:
            raise ToolError("that is not what is asked" if self.waiting else "no sum is left; answer")
        return "; ".join(filter(None, (format_number(result), self.waiting.pop(0)[1])))


class Drills(Arithmetic):
    """Sums that do not build on each other, asked one after the other; the answer is the last result."""

    name = "drills"
    instruction = (
        "Do the sum with one call; the reply brings its result and the next sum. Then answer with the last result."
    )
    toolsets = {"one_by_one": DrillTools}
    accepted_is_right = True

    def generate(self, count: int, split: str, seed: int, levels: Sequence[int] = LEVELS) -> list[Problem]:
        """As the stories, with their errors; the level is the number of sums."""
        check_request(self.name, split, levels, LEVELS)
        rng, found, draws = random.Random(f"{seed} {split}"), dict[str, Problem](), 0
        while len(found) < count:
            level, number = levels[len(found) % len(levels)], f"{self.name}-{split}-{len(found) + 1:04d}"
            drawn = [_draw(function, rng) for function in rng.sample([*OPERATIONS], level)]
            canonical = "; ".join(" ".join(step) for step, _ in drawn)
            if split_of(canonical) == split and canonical not in found:
                found[canonical], draws = self._problem(number, split, canonical, drawn), 0
            elif (draws := draws + 1) == MAX_DRAWS:
                raise ValueError(f"{self.name}: no further {split} problem of level {level}; ask for fewer problems")
        return [*found.values()]

    def _problem(self, name: str, split: str, canonical: str, drawn: Sequence[tuple[Step, str]]) -> Problem:
        steps, said = map(list, zip(*drawn, strict=True))
        answer, details = format_number(result_of(steps[-1])), {"steps": steps, "said": said}
        return Problem(name, self.name, split, len(steps), said[0], answer, canonical, details)

    def example(self) -> Problem:
        drawn = [(["Sum", "12", "8"], "12 plus 8"), (["Multiply", "2", "15"], "2 times 15")]
        return self._problem(f"{self.name}-example", "example", "example", drawn)

    def start(self, problem: Problem) -> DrillTools:
        return self.toolset(problem.toolset)(problem.details["steps"], problem.details["said"])

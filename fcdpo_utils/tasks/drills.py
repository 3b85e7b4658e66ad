"""Drills: sums said in a few words, a call for each. They practise one thing alone: to find, among the functions that
a prompt offers, the one that does what is asked. With drawn names (`tasks.drills.naming`) that takes reading them.
"""

import random
from collections.abc import Sequence
from pathlib import Path

import yaml

from fcdpo_utils.arithmetic import OPERATIONS, Arithmetic, Step, compute
from fcdpo_utils.numbers import format_number, parse_number
from fcdpo_utils.problems import Problem, check_request, split_of

LEVELS = (1, 2, 3, 4)
SAID = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


def _draw(function: str, rng: random.Random) -> tuple[Step, str]:
    """One sum with a whole, positive result, and how it is said."""
    a, b = rng.randint(2, 12), rng.randint(2, 12)
    a = {"Divide": a * b, "Subtract": a * 5 + b}.get(function, a)
    return [function, str(a), str(b)], rng.choice(SAID[function]).format(a=a, b=b)


class Drills(Arithmetic):
    """Sums that do not build on each other; the answer is the last result, the level how many there are."""

    name = "drills"
    instruction = "Work out the sums in turn, one call per message. Then answer with the last result."

    def generate(self, count: int, split: str, seed: int, levels: Sequence[int] = LEVELS) -> list[Problem]:
        """As the stories: ValueError for an unknown split or level."""
        check_request(self.name, split, levels, LEVELS)
        rng, found = random.Random(f"{seed} {split}"), dict[str, Problem]()
        while len(found) < count:
            level, number = levels[len(found) % len(levels)], f"{self.name}-{split}-{len(found) + 1:04d}"
            steps, said = zip(*(_draw(function, rng) for function in rng.sample([*OPERATIONS], level)), strict=True)
            canonical = "; ".join(map(" ".join, steps))
            if split_of(canonical) == split and canonical not in found:
                found[canonical] = self._problem(number, split, "; ".join(said), canonical, list(steps))
        return [*found.values()]

    def _problem(self, name: str, split: str, question: str, canonical: str, steps: list[Step]) -> Problem:
        function, *operands = steps[-1]
        answer = format_number(compute(function, *map(parse_number, operands)))
        return Problem(name, self.name, split, len(steps), question, answer, canonical, {"steps": steps})

    def example(self) -> Problem:
        steps = [["Sum", "12", "8"], ["Multiply", "2", "15"]]
        return self._problem(f"{self.name}-example", "example", "12 plus 8; 2 times 15", "example", steps)

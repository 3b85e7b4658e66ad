"""What the puzzles share: drawing distinct problems, keeping splits apart, and when an answer follows.

A puzzle says how one problem is drawn and solved; everything else about being a task is here. Writes nothing;
knows nothing of prompts or models.
"""

import json
import random
import re
from abc import abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

from fcdpo_utils.problems import Mistake, Problem, Task, check_request, split_of
from fcdpo_utils.tools import Toolset

LEVELS = (1, 2, 3)
MAX_DRAWS = 20_000
Facts = Collection[Sequence[str]]

# Words that common tokenizers keep whole: a puzzle should test reasoning, not spelling.
NAMES = (
    "Alice Ann Emily Jane Kim Lily Maria Mary Rose Sarah "
    "Adam Ben Bob Dan David Henry Jack James John Luke Max Paul Peter Sam Tim Tom"
).split()


class PuzzleTools(Toolset):
    """The state of one chain: what is `given`, what of it was `recorded`, and the answer that was `derived` so far."""

    def __init__(self, given: dict[str, Any]):
        super().__init__()
        self.given = given
        self.recorded: list[Sequence[str]] = []
        self.derived: str | None = None

    def answer_follows(self) -> bool:
        """Whether the answer is what this chain derived: one that was only guessed does not follow."""
        return self.answer is not None and self.answer == self.derived


class Puzzle(Task):
    """A task whose problems are drawn at random until one has a unique answer. Its toolset takes the `details`."""

    @abstractmethod
    def draw(self, level: int, rng: random.Random) -> Problem | None:
        """One random problem of `level`, or None where its answer is not unique."""

    @abstractmethod
    def steps(self, state: PuzzleTools, rng: random.Random | None) -> list[str]:
        """The gold calls that lead a fresh `state` to the answer; `rng` picks among natural orders."""

    def gold_calls(self, problem: Problem, rng: random.Random | None = None, toolset: str | None = None) -> list[str]:
        return [*self.steps(self.start(problem, toolset), rng), written("Answer", problem.answer), "Stop()"]

    def generate(self, count: int, split: str, seed: int, levels: Sequence[int] = LEVELS) -> list[Problem]:
        """`count` problems with distinct questions, levels in turn. Raises ValueError where no further one is found."""
        check_request(self.name, split, levels, LEVELS)
        rng, example = random.Random(f"{self.name}/{seed}/{split}"), self.example().canonical
        made: dict[str, Problem] = {}  # by question
        for index in range(count):
            level = levels[index % len(levels)]
            drawn = (p for _ in range(MAX_DRAWS) if (p := self.draw(level, rng)) and p.question not in made)
            own = (p for p in drawn if p.canonical != example and split_of(p.canonical) == split)
            problem = next(own, None)
            if problem is None:
                wanted = f"{split} problem of level {level}"
                raise ValueError(f"{self.name}: no further {wanted} found; ask for fewer problems")
            made[problem.question] = replace(problem, id=f"{self.name}-{split}-{index + 1:04d}", split=split)
        return list(made.values())

    def problem(self, level: int, question: str, answer: str, facts: Facts, **details: Any) -> Problem:
        """A problem in no split yet; `facts` are what its canonical form tells of the people."""
        canonical = canonical_form(facts, details["people"])
        return Problem(f"{self.name}-example", self.name, "example", level, question, answer, canonical, details)

    def start(self, problem: Problem, toolset: str | None = None) -> Toolset:
        return self.toolset(toolset)(problem.details)


def canonical_form(facts: Facts, names: Sequence[str]) -> str:
    """The least text of `facts` over all ways to number `names`: equal where only names and order differ."""

    def text(order: Sequence[int]) -> str:
        numbers = dict(zip(names, map(str, order), strict=True))
        return "; ".join(sorted(" ".join([numbers.get(word, word) for word in fact]) for fact in facts))

    return min(map(text, permutations(range(1, len(names) + 1))))


def written(function: str, *arguments: str | int) -> str:
    """One call as text: `Above("Ann", "Ben")`, `Top(1)`."""
    return f"{function}({', '.join(map(json.dumps, arguments))})"


def run_until(words: str, calls: list[str], state: Toolset, rng: random.Random | None) -> list[str]:
    """Run `calls`, as `rng` shuffles them if there is one, until one is answered with `words`; those that were run."""
    order = calls if rng is None else rng.sample(calls, len(calls))
    last = next(place for place, call in enumerate(order) if words in state.call(call).text)
    return order[: last + 1]


def altered(function: str, change: Callable[[list[str], Problem, random.Random], list[str]]) -> Mistake:
    """The mistake of changing the quoted arguments of one randomly chosen call of `function`."""

    def mistaken(problem: Problem, calls: list[str], rng: random.Random) -> list[str] | None:
        places = [place for place, call in enumerate(calls) if call.startswith(f"{function}(")]
        if not places:
            return None
        place = rng.choice(places)
        arguments = change(re.findall(r'"([^"]*)"', calls[place]), problem, rng)
        return [*calls[:place], written(function, *arguments), *calls[place + 1 :]]

    return mistaken

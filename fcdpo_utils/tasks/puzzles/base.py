"""What the puzzles share: drawing distinct problems, keeping splits apart, and when an answer follows.

A puzzle says how one problem is drawn and solved; everything else about being a task is here. Writes nothing;
knows nothing of prompts or models.
"""

from __future__ import annotations

import json
import random
import re
from abc import abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from itertools import permutations

from fcdpo_utils.functions import Toolset
from fcdpo_utils.tasks.arithmetic import SPLITS, split_of
from fcdpo_utils.tasks.base import Mistake, Problem, Task

LEVELS = (1, 2, 3)
MAX_DRAWS = 20_000

# Words that common tokenizers keep whole: a puzzle should test reasoning, not spelling.
WOMEN = tuple("Alice Ann Emily Jane Kim Lily Maria Mary Rose Sarah".split())
MEN = tuple("Adam Ben Bob Dan David Henry Jack James John Luke Max Paul Peter Sam Tim Tom".split())
NAMES = WOMEN + MEN


class PuzzleTools(Toolset):
    """The state of one chain: `derived` is the answer that its steps have led to, None so far."""

    def __init__(self) -> None:
        super().__init__()
        self.derived: str | None = None

    def answer_follows(self) -> bool:
        """Whether the answer is what this chain derived: one that was only guessed does not follow."""
        return self.answer is not None and self.answer == self.derived

    def record_answer(self, answer: str) -> str:
        self.answer = answer
        return "Answer recorded"


class Puzzle(Task):
    """A task whose problems are drawn at random until one has a unique answer. Its toolset takes the `details`."""

    @abstractmethod
    def draw(self, level: int, rng: random.Random) -> Problem | None:
        """One random problem of `level`, or None where its answer is not unique."""

    @abstractmethod
    def steps(self, state: Toolset, rng: random.Random | None) -> list[str]:
        """The gold calls that lead a fresh `state` to the answer; `rng` picks among natural orders."""

    def gold_calls(self, problem: Problem, rng: random.Random | None = None, toolset: str | None = None) -> list[str]:
        return [*self.steps(self.start(problem, toolset), rng), written("Answer", problem.answer), "Stop()"]

    def generate(self, count: int, split: str, seed: int, levels: Sequence[int] = LEVELS) -> list[Problem]:
        """`count` problems with distinct questions, levels in turn.

        Raises ValueError, one line, for an unknown split or level, or where no further problem is found.
        """
        if split not in SPLITS:
            raise ValueError(f"{self.name}: split must be one of {', '.join(SPLITS)}, got {split!r}")
        if not levels or not set(levels) <= set(LEVELS):
            raise ValueError(f"{self.name}: levels must be some of {', '.join(map(str, LEVELS))}, got {levels!r}")
        rng, problems, seen = random.Random(f"{self.name}/{seed}/{split}"), [], set()
        for index in range(count):
            problem = self._new(levels[index % len(levels)], split, seen, rng)
            seen.add(problem.question)
            problems.append(replace(problem, id=f"{self.name}-{split}-{index + 1:04d}", split=split))
        return problems

    def _new(self, level: int, split: str, seen: set[str], rng: random.Random) -> Problem:
        example = self.example().canonical
        for _ in range(MAX_DRAWS):
            problem = self.draw(level, rng)
            if problem is None or problem.question in seen or problem.canonical == example:
                continue
            if split_of(problem.canonical) == split:
                return problem
        raise ValueError(f"{self.name}: no further {split} problem of level {level} found; ask for fewer problems")

    def problem(self, level: int, question: str, answer: str, canonical: str, **details: object) -> Problem:
        """A problem in no split yet."""
        return Problem(f"{self.name}-example", self.name, "example", level, question, answer, canonical, details)

    def start(self, problem: Problem, toolset: str | None = None) -> Toolset:
        return self.toolset(toolset)(**problem.details)

    def is_correct(self, problem: Problem, answer: str | None) -> bool:
        return answer == problem.answer


def canonical_form(facts: Collection[Sequence[str]], names: Sequence[str]) -> str:
    """The least text of `facts` over all ways to number `names`: equal where only names and order differ."""

    def text(numbers: dict[str, str]) -> str:
        return "; ".join(sorted(" ".join([numbers.get(word, word) for word in fact]) for fact in facts))

    orders = permutations([str(number) for number in range(1, len(names) + 1)])
    return min(text(dict(zip(names, order, strict=True))) for order in orders)


def written(function: str, *arguments: str | int) -> str:
    """One call as text: `Above("Ann", "Ben")`, `Top(1)`."""
    return f"{function}({', '.join(map(json.dumps, arguments))})"


def run_until(words: str, calls: list[str], state: Toolset, rng: random.Random | None) -> list[str]:
    """Run `calls`, as `rng` shuffles them if there is one, until one is answered with `words`; those that were run."""
    order = calls if rng is None else rng.sample(calls, len(calls))
    last = next(place for place, call in enumerate(order) if words in state.call(call).text)
    return order[: last + 1]


def altered(function: str, change: Callable[[list[str], Problem, random.Random], list[str] | None]) -> Mistake:
    """The mistake of changing the quoted arguments of one randomly chosen call of `function`."""

    def mistaken(problem: Problem, calls: list[str], rng: random.Random) -> list[str] | None:
        places = [place for place, call in enumerate(calls) if call.startswith(f"{function}(")]
        if not places:
            return None
        place = rng.choice(places)
        arguments = change(re.findall(r'"([^"]*)"', calls[place]), problem, rng)
        return arguments and [*calls[:place], written(function, *arguments), *calls[place + 1 :]]

    return mistaken

"""Ordering puzzles: who is the oldest, tallest, second fastest, told by comparing two people at a time.

A task out of the students' domain: do chains learnt on logic and arithmetic help with functions never trained on? Its
problems are drawn at random until one has a unique answer.
"""

import json
import random
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from itertools import combinations, permutations
from typing import Any

from fcdpo_utils.problems import Mistake, Problem, Task, check_request, split_of
from fcdpo_utils.tools import ToolError, Toolset, tool

LEVELS = (1, 2, 3)
MAX_DRAWS = 20_000
# Words that common tokenizers keep whole: a puzzle should test reasoning, not spelling.
NAMES = (
    "Alice Ann Emily Jane Kim Lily Maria Mary Rose Sarah "
    "Adam Ben Bob Dan David Henry Jack James John Luke Max Paul Peter Sam Tim Tom"
).split()
SCALES = (  # more, most, less, least
    ("older", "oldest", "younger", "youngest"),
    ("taller", "tallest", "shorter", "shortest"),
    ("faster", "fastest", "slower", "slowest"),
    ("stronger", "strongest", "weaker", "weakest"),
    ("richer", "richest", "poorer", "poorest"),
)
OTHER_END = {"Top": "Bottom", "Bottom": "Top"}


def holders(people: Sequence[str], pairs: Sequence[Sequence[str]], end: str, place: int) -> set[str]:
    """Who can be at `place` from the `end`, over all orders (top first) that agree with `pairs` (upper, lower)."""
    orders = (o for o in permutations(people) if all(o.index(upper) < o.index(lower) for upper, lower in pairs))
    return {order[place - 1] if end == "Top" else order[-place] for order in orders}


class OrderingTools(Toolset):
    """Record comparisons, then look up who has a place. State: what of the `given` was recorded, what was derived."""

    def __init__(self, given: dict[str, Any]):
        super().__init__()
        self.given = given
        self.recorded: list[Sequence[str]] = []
        self.derived: str | None = None

    def answer_follows(self) -> bool:
        """Whether the answer is what this chain derived: one that was only guessed does not follow."""
        return self.answer is not None and self.answer == self.derived

    @tool('Above("Ann", "Ben")')
    def Above(self, upper: str, lower: str) -> str:
        """Record that Ann is older (taller, ...) than Ben."""
        if [upper, lower] not in self.given["pairs"]:
            raise ToolError(f"{upper} above {lower} is not stated in the problem")
        self.recorded.append([upper, lower])
        enough = len(holders(**self.given | {"pairs": self.recorded})) == 1
        return f"O{len(self.recorded)}: {'enough' if enough else 'not enough'}"

    @tool("Top(1)")
    def Top(self, place: int) -> str:
        """Who is the oldest (tallest, ...); 2 is the second oldest."""
        return self._look_up("Top", place)

    @tool("Bottom(1)")
    def Bottom(self, place: int) -> str:
        """Who is the youngest (shortest, ...); 2 is the second youngest."""
        return self._look_up("Bottom", place)

    @tool('Answer("Ann")')
    def Answer(self, person: str) -> str:
        """Answer with a name."""
        if person not in self.given["people"]:
            raise ToolError(f"{person} is not in the problem")
        self.answer = person
        return "Answer recorded"

    def _look_up(self, end: str, place: int) -> str:
        people = self.given["people"]
        if not 1 <= place <= len(people):
            raise ToolError(f"place must be from 1 to {len(people)}, got {place}")
        holder, *others = holders(people, self.recorded, end, place)
        if others:
            return "not determined yet"
        if (end, place) == (self.given["end"], self.given["place"]):
            self.derived = holder
        return holder


def canonical_form(facts: Collection[Sequence[str]], names: Sequence[str]) -> str:
    """The least text of `facts` over all ways to number `names`: equal where only names and order differ."""

    def text(order: Sequence[int]) -> str:
        numbers = dict(zip(names, map(str, order), strict=True))
        return "; ".join(sorted(" ".join([numbers.get(word, word) for word in fact]) for fact in facts))

    return min(map(text, permutations(range(1, len(names) + 1))))


def _written(function: str, *arguments: str | int) -> str:
    """One call as text: `Above("Ann", "Ben")`, `Top(1)`."""
    return f"{function}({', '.join(map(json.dumps, arguments))})"


def _altered(function: str, change: Callable[[list[str], Problem, random.Random], list[str]]) -> Mistake:
    """The mistake of changing the quoted arguments of one randomly chosen call of `function`."""

    def mistaken(problem: Problem, calls: list[str], rng: random.Random) -> list[str] | None:
        places = [place for place, call in enumerate(calls) if call.startswith(f"{function}(")]
        if not places:
            return None
        place = rng.choice(places)
        arguments = change(re.findall(r'"([^"]*)"', calls[place]), problem, rng)
        return [*calls[:place], _written(function, *arguments), *calls[place + 1 :]]

    return mistaken


def _wrong_end(problem: Problem, calls: list[str], rng: random.Random) -> list[str]:
    """Look from the other end, and answer someone who may be there."""
    mistaken = problem.details | {"end": OTHER_END[problem.details["end"]]}
    person = rng.choice(sorted(holders(**mistaken)))
    return [*calls[:-3], _written(mistaken["end"], mistaken["place"]), _written("Answer", person), "Stop()"]


class Ordering(Task):
    """Three to five people; asked for the first at either end, at higher levels also for the second."""

    name = "ordering"
    instruction = (
        "Find out who has the place that is asked for. Record comparisons of the problem until they are enough, "
        "look up the place, answer, stop."
    )
    toolsets = {"compare": OrderingTools}
    constants = (1, 2, 3, 4, 5)  # places
    mistakes = {
        "swapped_names": _altered("Above", lambda arguments, problem, rng: arguments[::-1]),
        "wrong_end": _wrong_end,
        "someone_else": _altered(
            "Answer",
            lambda said, problem, rng: [rng.choice([p for p in problem.details["people"] if p != problem.answer])],
        ),
    }

    def generate(self, count: int, split: str, seed: int, levels: Sequence[int] = LEVELS) -> list[Problem]:
        """`count` problems with distinct questions, levels in turn. Raises ValueError where no further one is found."""
        check_request(self.name, split, levels, LEVELS)
        rng, example = random.Random(f"{self.name}/{seed}/{split}"), self.example().canonical
        made: dict[str, Problem] = {}  # by question
        for index in range(count):
            level = levels[index % len(levels)]
            drawn = (p for _ in range(MAX_DRAWS) if (p := self._draw(level, rng)) and p.question not in made)
            own = (p for p in drawn if p.canonical != example and split_of(p.canonical) == split)
            problem = next(own, None)
            if problem is None:
                wanted = f"{split} problem of level {level}"
                raise ValueError(f"{self.name}: no further {wanted} found; ask for fewer problems")
            made[problem.question] = replace(problem, id=f"{self.name}-{split}-{index + 1:04d}", split=split)
        return list(made.values())

    def _draw(self, level: int, rng: random.Random) -> Problem | None:
        people = rng.sample(NAMES, level + 2)
        possible = [list(pair) for pair in combinations(people, 2)]
        pairs = rng.sample(possible, min(len(possible), level + 1 + rng.randint(0, 1)))
        return self.pose(level, people, pairs, rng.choice(list(OTHER_END)), rng.randint(1, min(level, 2)), rng)

    def pose(
        self, level: int, people: list[str], pairs: list[list[str]], end: str, place: int, rng: random.Random
    ) -> Problem | None:
        """The problem in words that `rng` picks, or None where the place is open or someone is not mentioned."""
        found = holders(people, pairs, end, place)
        if len(found) > 1 or {person for pair in pairs for person in pair} != set(people):
            return None
        more, most, less, least = rng.choice(SCALES)
        said = [(upper, more, lower) if rng.random() < 0.5 else (lower, less, upper) for upper, lower in pairs]
        told = " ".join(f"{a} is {word} than {b}." for a, word, b in said)
        question = f"{told} Who is the {'second ' if place == 2 else ''}{most if end == 'Top' else least}?"
        details = {"people": sorted(people), "pairs": pairs, "end": end, "place": place}  # people in no telling order
        canonical = canonical_form([*pairs, [end, str(place)]], details["people"])
        return Problem(f"{self.name}-example", self.name, "example", level, question, found.pop(), canonical, details)

    def example(self) -> Problem:
        people, pairs = ["Mary", "Ben", "Tom", "Ann"], [["Ben", "Ann"], ["Mary", "Ben"], ["Ben", "Tom"], ["Tom", "Ann"]]
        return self.pose(2, people, pairs, "Bottom", 2, random.Random(0))

    def start(self, problem: Problem, toolset: str | None = None) -> Toolset:
        return self.toolset(toolset)(problem.details)

    def gold_calls(self, problem: Problem, rng: random.Random | None = None, toolset: str | None = None) -> list[str]:
        """Comparisons in the order of the text, or as `rng` shuffles them, until they are enough; then the place."""
        state, details = self.start(problem, toolset), problem.details
        compared = [_written("Above", *pair) for pair in details["pairs"]]
        order = compared if rng is None else rng.sample(compared, len(compared))
        last = next(place for place, call in enumerate(order) if ": enough" in state.call(call).text)
        return [
            *order[: last + 1],
            _written(details["end"], details["place"]),
            _written("Answer", problem.answer),
            "Stop()",
        ]

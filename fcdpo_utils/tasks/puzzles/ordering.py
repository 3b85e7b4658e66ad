"""Ordering puzzles: who is the oldest, tallest, second fastest, told by comparing two people at a time."""

import random
from collections.abc import Sequence
from itertools import combinations, permutations

from fcdpo_utils.problems import Problem
from fcdpo_utils.tasks.puzzles.base import NAMES, Puzzle, PuzzleTools, altered, run_until, written
from fcdpo_utils.tools import ToolError, tool

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


class OrderingTools(PuzzleTools):
    """Record comparisons, then look up who has a place."""

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


def _wrong_end(problem: Problem, calls: list[str], rng: random.Random) -> list[str]:
    """Look from the other end, and answer someone who may be there."""
    mistaken = problem.details | {"end": OTHER_END[problem.details["end"]]}
    person = rng.choice(sorted(holders(**mistaken)))
    return [*calls[:-3], written(mistaken["end"], mistaken["place"]), written("Answer", person), "Stop()"]


class Ordering(Puzzle):
    """Three to five people; asked for the first at either end, at higher levels also for the second."""

    name = "ordering"
    instruction = (
        "Find out who has the place that is asked for. Record comparisons of the problem until they are enough, "
        "look up the place, answer, stop."
    )
    toolsets = {"compare": OrderingTools}
    constants = (1, 2, 3, 4, 5)  # places
    mistakes = {
        "swapped_names": altered("Above", lambda arguments, problem, rng: arguments[::-1]),
        "wrong_end": _wrong_end,
        "someone_else": altered(
            "Answer",
            lambda said, problem, rng: [rng.choice([p for p in problem.details["people"] if p != problem.answer])],
        ),
    }

    def draw(self, level: int, rng: random.Random) -> Problem | None:
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
        return self.problem(level, question, found.pop(), [*pairs, [end, str(place)]], **details)

    def example(self) -> Problem:
        people, pairs = ["Mary", "Ben", "Tom", "Ann"], [["Ben", "Ann"], ["Mary", "Ben"], ["Ben", "Tom"], ["Tom", "Ann"]]
        return self.pose(2, people, pairs, "Bottom", 2, random.Random(0))

    def steps(self, state: OrderingTools, rng: random.Random | None) -> list[str]:
        """Comparisons in the order of the text, or as `rng` shuffles them, until they are enough; then the place."""
        compared = [written("Above", *pair) for pair in state.given["pairs"]]
        return [*run_until(": enough", compared, state, rng), written(state.given["end"], state.given["place"])]

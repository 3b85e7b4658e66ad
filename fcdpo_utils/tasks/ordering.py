"""Ordering puzzles: who is the oldest, told by comparing two people at a time; made as a user's task is.

A task out of the students' domain: do chains learnt on logic and arithmetic help with functions never trained on?
"""

import random
import re
from itertools import pairwise
from typing import Any

from fcdpo_utils.tasks.own import own_task
from fcdpo_utils.tools import ToolError, Toolset, tool

PUZZLES = 1_200  # of each level over a hundred are held out
# Words that common tokenizers keep whole: a puzzle should test reasoning, not spelling.
NAMES = (
    "Alice Ann Emily Jane Kim Lily Maria Mary Rose Sarah "
    "Adam Ben Bob Dan David Henry Jack James John Luke Max Paul Peter Sam Tim Tom"
).split()
Pairs = set[tuple[str, str]]  # (older, younger)


def stated(question: str) -> Pairs:
    """The comparisons that a question tells."""
    told = re.findall(r"(\w+) is (older|younger) than (\w+)", question)
    return {(a, b) if word == "older" else (b, a) for a, word, b in told}


def older_than(person: str, pairs: Pairs) -> set[str]:
    """All who must be older, by one comparison or several."""
    found, last = set[str](), {person}
    while last:
        last = {older for older, younger in pairs if younger in last} - found
        found |= last
    return found


class OrderingTools(Toolset):
    """Note comparisons of the question, then look up who has a place by those noted."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: Pairs = set()

    @tool('Older("Ann", "Ben")')
    def Older(self, older: str, younger: str) -> str:
        """Note that Ann is older than Ben."""
        if (older, younger) not in stated(self.question):
            raise ToolError(f"the problem does not say that {older} is older than {younger}")
        self.noted.add((older, younger))
        return "Noted"

    @tool("Place(1)")
    def Place(self, place: int) -> str:
        """Who is the oldest; 2 is the second oldest."""
        people = {person for pair in stated(self.question) for person in pair}
        if not 1 <= place <= len(people):
            raise ToolError(f"place must be from 1 to {len(people)}, got {place}")
        younger = {(b, a) for a, b in self.noted}
        first = {person: 1 + len(older_than(person, self.noted)) for person in people}
        last = {person: len(people) - len(older_than(person, younger)) for person in people}
        possible = [person for person in people if first[person] <= place <= last[person]]
        return possible[0] if len(possible) == 1 else "not determined yet"


def puzzles() -> list[dict[str, Any]]:
    """Rows of levels 1 to 3 in turn: three to five people, each compared with the next, told in any order."""
    rng, made = random.Random("ordering"), {}
    while len(made) < PUZZLES:
        level = 1 + len(made) % 3
        people, place = rng.sample(NAMES, level + 2), rng.randint(1, level)
        pairs = rng.sample([*pairwise(people)], level + 1)
        told = [f"{a} is older than {b}." if rng.random() < 0.5 else f"{b} is younger than {a}." for a, b in pairs]
        question = f"{' '.join(told)} Who is the {('', 'second ', 'third ')[place - 1]}oldest?"
        noted, answer = [f'Older("{a}", "{b}")' for a, b in pairs], people[place - 1]
        calls = [*noted, f"Place({place})", f'Answer("{answer}")', "Stop()"]
        made[question] = {"question": question, "answer": answer, "calls": calls, "level": level}
    return [*made.values()]


own_task(
    "ordering",
    tools=OrderingTools,
    instruction="Find out who is asked for. Note comparisons until they are enough, look up the place, answer, stop.",
    problems=puzzles,
    example=(
        "Ann is younger than Tom. Ben is older than Mary. Mary is older than Tom. Who is the second oldest?",
        ['Older("Tom", "Ann")', 'Older("Ben", "Mary")', 'Older("Mary", "Tom")', "Place(2)", 'Answer("Mary")', "Stop()"],
    ),
    constants=(1, 2, 3, 4, 5),  # places
).file = None  # profiles name it without one

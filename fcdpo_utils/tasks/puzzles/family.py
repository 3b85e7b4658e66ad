"""Family relations: what one person is to another, by composing what is told of neighbours in the family.

Brothers and sisters share both parents. Relations are kept without gender ("parent"), and said with it where the
chain has recorded it ("mother").
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from functools import reduce
from itertools import pairwise
from typing import Literal

from fcdpo_utils.functions import Refused, tool
from fcdpo_utils.tasks.base import Problem
from fcdpo_utils.tasks.puzzles.base import MEN, WOMEN, Puzzle, PuzzleTools, altered, canonical_form, written

Near = Literal["mother", "father", "daughter", "son", "sister", "brother"]
Kin = Literal[
    "mother", "father", "daughter", "son", "sister", "brother", "aunt", "uncle", "niece", "nephew",
    "grandmother", "grandfather", "granddaughter", "grandson",
    "great-grandmother", "great-grandfather", "great-granddaughter", "great-grandson",
]  # fmt: skip
Link = tuple[str, str, str]  # person, relation, other

WORDS = {  # relation: said of a woman, of a man
    "parent": ("mother", "father"),
    "child": ("daughter", "son"),
    "sibling": ("sister", "brother"),
    "aunt or uncle": ("aunt", "uncle"),
    "niece or nephew": ("niece", "nephew"),
    "grandparent": ("grandmother", "grandfather"),
    "grandchild": ("granddaughter", "grandson"),
    "great-grandparent": ("great-grandmother", "great-grandfather"),
    "great-grandchild": ("great-granddaughter", "great-grandson"),
}
RELATION = {word: relation for relation, words in WORDS.items() for word in words}
INVERSE = {
    "parent": "child",
    "sibling": "sibling",
    "aunt or uncle": "niece or nephew",
    "grandparent": "grandchild",
    "great-grandparent": "great-grandchild",
}
INVERSE |= {b: a for a, b in INVERSE.items()}
COMPOSED = {  # a is .. of b, b is .. of c: a is .. of c; where more than one relation is possible there is no entry
    ("parent", "parent"): "grandparent",
    ("parent", "sibling"): "parent",
    ("parent", "aunt or uncle"): "grandparent",
    ("parent", "grandparent"): "great-grandparent",
    ("child", "parent"): "sibling",
    ("sibling", "sibling"): "sibling",
    ("sibling", "parent"): "aunt or uncle",
    ("aunt or uncle", "sibling"): "aunt or uncle",
    ("grandparent", "parent"): "great-grandparent",
    ("grandparent", "sibling"): "grandparent",
    ("grandparent", "aunt or uncle"): "great-grandparent",
    ("great-grandparent", "sibling"): "great-grandparent",
}
COMPOSED |= {(INVERSE[b], INVERSE[a]): INVERSE[c] for (a, b), c in COMPOSED.items()}


def turned(link: Link) -> Link:
    """The same link told of the other person."""
    return link[2], INVERSE[link[1]], link[0]


def closure(links: Iterable[Link]) -> set[Link]:
    """Everything that follows from `links`, told of both people."""
    known, new = set(), {told for link in links for told in (link, turned(link))}
    while new - known:
        known |= new
        pairs = ((first, second) for first in known for second in known if first[2] == second[0])
        new = {(a, COMPOSED[r, s], d) for (a, r, _), (_, s, d) in pairs if a != d and (r, s) in COMPOSED}
    return known


def compose(first: Link, second: Link) -> Link | None:
    """What follows for the outer two of three people, or None where the links do not meet or leave it open."""
    outer = (link for link in closure([first, second]) if link[0] not in second and link[2] not in first)
    return next(outer, None)


class FamilyTools(PuzzleTools):
    """Links L1, L2, ... between two people, told or composed."""

    def __init__(self, facts: list[list[str]], path: list[str]):
        super().__init__()
        self.facts, self.path = facts, path
        self.links: list[Link] = []
        self.is_woman: dict[str, bool] = {}  # of whom it is recorded

    @tool('Relation("Ann", "mother", "Ben")')
    def Relation(self, person: str, relation: Near, other: str) -> str:
        """Record that Ann is the mother of Ben."""
        if [person, relation, other] not in self.facts:
            raise Refused(f'"{person} is the {relation} of {other}" is not stated in the problem')
        link = (person, RELATION[relation], other)
        joined = [number for number, earlier in enumerate(self.links, start=1) if compose(earlier, link)]
        self.is_woman[person] = relation == WORDS[link[1]][0]
        self.links.append(link)
        return f"L{len(self.links)}: joins L{joined[-1]}" if joined else f"L{len(self.links)}"

    @tool('Compose("L1", "L2")')
    def Compose(self, first: str, second: str) -> str:
        """Join two links that share a person."""
        link = compose(self._link(first), self._link(second))
        if link is None:
            raise Refused(f"nothing follows from {first} and {second}")
        self.links.append(link)
        for person, relation, other in (link, turned(link)):
            if (person, other) == (self.path[0], self.path[-1]):
                self.derived = self._word(person, relation)
        person, relation, other = link
        return f"L{len(self.links)}: {person} is the {self._word(person, relation)} of {other}"

    @tool('Answer("grandmother")')
    def Answer(self, relation: Kin) -> str:
        """Answer with a relation."""
        return self.record_answer(relation)

    def _link(self, name: str) -> Link:
        names = [f"L{number}" for number in range(1, len(self.links) + 1)]
        if name not in names:
            raise Refused(f'no link named "{name[:20]}"; the last is {names[-1] if names else "none"}')
        return self.links[names.index(name)]

    def _word(self, person: str, relation: str) -> str:
        return WORDS[relation][not self.is_woman[person]] if person in self.is_woman else relation


def _other_gender(arguments: list[str], problem: Problem, rng: random.Random) -> list[str]:
    words = WORDS[RELATION[arguments[0]]]
    return [words[words[0] == arguments[0]]]


def _turned_around(arguments: list[str], problem: Problem, rng: random.Random) -> list[str] | None:
    """Say what the second person is to the first."""
    relation = RELATION[arguments[0]]
    words = WORDS[INVERSE[relation]]
    return [words[WORDS[relation].index(arguments[0])]] if relation != "sibling" else None


class Family(Puzzle):
    """Two to four links from one person to the other; at level 3 a further one may lead elsewhere."""

    name = "family"
    instruction = (
        "Find out what the first person is to the second; brothers and sisters share both parents. Record relations "
        "of the problem, compose those that share a person, answer, stop."
    )
    toolsets = {"compose": FamilyTools}
    mistakes = {
        "swapped_names": altered("Relation", lambda arguments, problem, rng: arguments[::-1]),
        "other_gender": altered("Answer", _other_gender),
        "turned_around": altered("Answer", _turned_around),
    }

    def draw(self, level: int, rng: random.Random) -> Problem | None:
        couples = zip(rng.sample(WOMEN, level + 2), rng.sample(MEN, level + 2), strict=True)
        people = [rng.choice(couple) for couple in couples]
        path = people[:-1] if level == 3 and rng.random() < 0.5 else people
        pairs = [*pairwise(path), *((person, rng.choice(path)) for person in people[len(path) :])]
        facts = []
        for place, (person, other) in enumerate(pairs):
            if level > 1 and 0 < place < len(path) - 1 and rng.random() < 0.5:
                person, other = other, person
            facts.append([person, WORDS[rng.choice(("parent", "child", "sibling"))][person in MEN], other])
        return self.pose(level, rng.sample(facts, len(facts)), path)

    def pose(self, level: int, facts: list[list[str]], path: list[str]) -> Problem | None:
        """The problem, or None where its links do not compose one by one, or no such family can be."""
        first, *others = [(person, RELATION[word], other) for person, word, other in _route(facts, path)]
        link = reduce(lambda composed, following: composed and compose(composed, following), others, first)
        if link is None or not _is_family(closure((person, RELATION[word], other) for person, word, other in facts)):
            return None
        told = " ".join(f"{person} is the {word} of {other}." for person, word, other in facts)
        question = f"{told} What is {path[0]} to {path[-1]}?"
        people = sorted({person for fact in facts for person in (fact[0], fact[2])})
        canonical = canonical_form([*facts, ["asked", path[0], path[-1]]], people)
        return self.problem(level, question, WORDS[link[1]][path[0] in MEN], canonical, facts=facts, path=path)

    def example(self) -> Problem:
        facts = [["Ben", "brother", "Mary"], ["Ann", "sister", "Tom"], ["Ben", "son", "Tom"]]
        return self.pose(2, facts, ["Ann", "Tom", "Ben", "Mary"])

    def steps(self, state: FamilyTools, rng: random.Random | None) -> list[str]:
        """Each link of the way, composed with what is known; `rng` may record all that is told before."""
        calls = [written("Relation", *fact) for fact in state.facts] if rng and rng.random() < 0.5 else []
        composed = None
        for fact in _route(state.facts, state.path):
            call = written("Relation", *fact)
            if call not in calls:
                calls.append(call)
            link = f"L{calls.index(call) + 1}"
            if composed:
                calls.append(written("Compose", composed, link))
                link = f"L{len(calls)}"
            composed = link
        return calls


def _route(facts: list[list[str]], path: list[str]) -> list[list[str]]:
    """The facts that lead along `path`, in its order."""
    return [fact for pair in pairwise(path) for fact in facts if {fact[0], fact[2]} == set(pair)]


def _is_family(links: set[Link]) -> bool:
    """Whether any two people are related in one way only, and nobody has two mothers or two fathers."""
    parents = [(child, person in MEN) for person, relation, child in links if relation == "parent"]
    return len({(a, b) for a, _, b in links}) == len(links) and len(set(parents)) == len(parents)

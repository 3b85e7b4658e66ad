"""Knights and knaves: who tells the truth, found by refuting suppositions.

Everyone speaks once, about one or two people; exactly one assignment of kinds agrees with all that is said.
"""

import random
import re
from collections.abc import Sequence
from itertools import product
from typing import Literal

from fcdpo_utils.problems import Problem
from fcdpo_utils.tasks.puzzles.base import NAMES, Puzzle, PuzzleTools, altered, run_until, written
from fcdpo_utils.tools import ToolError, tool

Kind = Literal["knight", "knave"]
Claim = Sequence[str]  # speaker, form, and the one or two people it is about

# form: how it is said, and when it is true (True is a knight)
FORMS = {
    "knight": ("{} is a knight", lambda a: a),
    "knave": ("{} is a knave", lambda a: not a),
    "knights": ("{} and {} are both knights", lambda a, b: a and b),
    "knaves": ("{} and {} are both knaves", lambda a, b: not a and not b),
    "same": ("{} and {} are of the same kind", lambda a, b: a == b),
    "different": ("{} and {} are of different kinds", lambda a, b: a != b),
}
INTRODUCTION = "Knights always tell the truth and knaves always lie."
OPPOSITE = {"knight": "knave", "knights": "knaves", "same": "different"}
OPPOSITE |= {b: a for a, b in OPPOSITE.items()}
_CLAIM = re.compile(r"(\w+)\((\w+)(?:, ?(\w+))?\)")


def solutions(people: Sequence[str], claims: Sequence[Claim]) -> list[dict[str, Kind]]:
    """All ways to give people kinds such that knights' claims are true and knaves' are false."""
    worlds = [dict(zip(people, kinds, strict=True)) for kinds in product((True, False), repeat=len(people))]
    found = [w for w in worlds if all(w[s] == FORMS[form][1](*(w[p] for p in about)) for s, form, *about in claims)]
    return [{person: "knight" if honest else "knave" for person, honest in world.items()} for world in found]


class KnightsTools(PuzzleTools):
    """Record what is said, then refute one of the two suppositions about the person asked for."""

    def kinds(self, person: str) -> set[Kind]:
        """What `person` may be by what was recorded."""
        return {solution[person] for solution in solutions(self.given["people"], self.recorded)}

    @tool('Says("Ann", "knave(Ben)")')
    def Says(self, speaker: str, claim: str) -> str:
        """Record a claim about one (knight, knave) or two (knights, knaves, same, different)."""
        match = _CLAIM.fullmatch(claim.strip())
        if match is None:
            raise ToolError("cannot read the claim; expected one such as knave(Ben) or same(Ann, Ben)")
        said, asked = [speaker, *filter(None, match.groups())], self.given["asked"]
        if not any(stated[:2] == said[:2] and sorted(stated) == sorted(said) for stated in self.given["claims"]):
            raise ToolError(f"{speaker} does not say {claim.strip()} in the problem")
        self.recorded.append(said)
        enough = len(self.kinds(asked)) == 1
        return f"S{len(self.recorded)}: {'enough' if enough else 'not enough'} for {asked}"

    @tool('Suppose("Ann", "knight")')
    def Suppose(self, person: str, kind: Kind) -> str:
        """Test a supposition; if impossible, the opposite is shown."""
        if person not in self.given["people"]:
            raise ToolError(f"{person} is not in the problem")
        if kind in self.kinds(person):
            return "possible"
        if person == self.given["asked"]:
            self.derived = OPPOSITE[kind]
        return f"impossible, {person} is a {OPPOSITE[kind]}"

    @tool('Answer("knave")')
    def Answer(self, kind: Kind) -> str:
        """Answer knight or knave."""
        self.answer = kind
        return "Answer recorded"


def _claim(speaker: str, people: list[str], rng: random.Random) -> list[str]:
    form = rng.choice(list(FORMS))
    if form in ("knight", "knave"):
        return [speaker, form, rng.choice([person for person in people if person != speaker])]
    return [speaker, form, *sorted(rng.sample(people, 2), key=speaker.__eq__)]  # "Ben and I", not "I and Ben"


def _hasty(problem: Problem, calls: list[str], rng: random.Random) -> list[str]:
    """Hear one person, find that the wrong kind is possible, and answer it."""
    wrong = OPPOSITE[problem.answer]
    heard = rng.choice([call for call in calls if call.startswith("Says")])
    return [heard, written("Suppose", problem.details["asked"], wrong), written("Answer", wrong), "Stop()"]


class KnightsAndKnaves(Puzzle):
    """Two to four people, one claim each; asked for the kind of one of them."""

    name = "knights_knaves"
    instruction = (
        "Find out whether someone is a knight or a knave. Record what is said until it is enough, "
        "suppose a kind until one is impossible, answer, stop."
    )
    toolsets = {"suppose": KnightsTools}
    mistakes = {
        "flipped_claim": altered(
            "Says", lambda said, problem, rng: [said[0], re.sub(r"^\w+", lambda form: OPPOSITE[form[0]], said[1])]
        ),
        "wrong_kind": altered("Answer", lambda arguments, problem, rng: [OPPOSITE[problem.answer]]),
        "hasty": _hasty,
    }

    def draw(self, level: int, rng: random.Random) -> Problem | None:
        people = rng.sample(NAMES, level + 1)
        claims = [_claim(speaker, people, rng) for speaker in people]
        return self.pose(level, people, rng.sample(claims, len(claims)), rng.choice(people))

    def pose(self, level: int, people: list[str], claims: list[Claim], asked: str) -> Problem | None:
        found = solutions(people, claims)
        if len(found) != 1:
            return None
        said = [(s, FORMS[form][0].format(*("I" if p == s else p for p in about))) for s, form, *about in claims]
        told = " ".join([INTRODUCTION, *(f"{speaker} says: {claim}." for speaker, claim in said)])
        either_way = {(s, form, *pair) for s, form, *about in claims for pair in (about, about[::-1])}
        facts, question = either_way | {("asked", asked)}, f"{told} Is {asked} a knight or a knave?"
        return self.problem(level, question, found[0][asked], facts, people=people, claims=claims, asked=asked)

    def example(self) -> Problem:
        claims = [["Ann", "knave", "Max"], ["Tom", "knaves", "Ann", "Tom"], ["Max", "same", "Ann", "Max"]]
        return self.pose(2, ["Ann", "Tom", "Max"], claims, "Ann")

    def steps(self, state: KnightsTools, rng: random.Random | None) -> list[str]:
        """What is said, in the order of the text, until it is enough; then the suppositions. `rng` shuffles both."""
        said = [written("Says", s, f"{form}({', '.join(about)})") for s, form, *about in state.given["claims"]]
        supposed = [written("Suppose", state.given["asked"], kind) for kind in ("knight", "knave")]
        return [*run_until(": enough", said, state, rng), *run_until("impossible", supposed, state, rng)]

"""Random first-order theories in English, with labels proved by the decider.

A theory is a derivation of the wanted depth plus distractors, said in one of several sentence templates per
formula and shuffled. Inconsistent or mislabelled drafts are rejected; labels are balanced within each level;
train and test never share a canonical form, the `ood_words` split has its own vocabulary, and in `ood_depth`, apart
from train like test, a level is a proof depth beyond those of training.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import yaml

from fcdpo_utils.problems import Problem, check_request
from fcdpo_utils.tasks.logic.formulas import VARIABLE, Formula, Label, Literal, canonical_form, decide, is_consistent
from fcdpo_utils.tasks.logic.toolsets import reachable_facts, told

LABELS: tuple[Label, ...] = get_args(Label)
SPLITS = ("train", "test", "ood_words", "ood_depth")
LEVELS = (1, 2, 3, 5)
DEPTHS = (4, 5, 6)  # the levels of ood_depth
MAX_DRAFTS = 4_000
JOINED_SHARE = 0.2  # of rules: two conditions
PRACTISED_SHARE = 0.4  # the same in training, for they are what students misread


# Two pools that never meet, each of nouns (said "a baker"), adjectives and names.
WORDS: dict[str, dict[str, list[str]]] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


def generate(count: int, split: str, seed: int, levels: Sequence[int] = (1, 2, 3)) -> list[Problem]:
    """`count` problems with distinct questions, levels and labels in turn. Raises ValueError where there are fewer."""
    check_request("fol", split, levels, DEPTHS if split == "ood_depth" else LEVELS, SPLITS)
    made: dict[str, Problem] = {}  # by question
    for number in range(count):
        level, label = levels[number // len(LABELS) % len(levels)], LABELS[number % len(LABELS)]
        rng = random.Random(f"fol/{seed}/{split}/{number}")
        drafts = (_draft(rng, split, level, label) for _ in range(MAX_DRAFTS))
        new = next((draft for draft in drafts if draft and draft.question not in made), None)
        if new is None:
            where = f"level {level} for split {split} in {MAX_DRAFTS} drafts"
            raise ValueError(f"no new {label} theory of {where}; ask for fewer")
        made[new.question] = replace(new, id=f"fol-{split}-{number + 1:04d}")
    return list(made.values())


def split_of(canonical: str) -> str:
    """train or test (30 %), by the canonical form alone."""
    return "test" if int(canonical, 16) % 10 < 3 else "train"


def _draft(rng: random.Random, split: str, level: int, label: Label) -> Problem | None:
    """One random theory as a problem without its id, or None when a check rejects it."""
    words = WORDS["other" if split == "ood_words" else "main"]
    size = (9, 14) if split == "ood_depth" else (5, 10) if level == 5 else (4, 8)  # more steps need more words
    draft = _Draft(rng, words, *size, PRACTISED_SHARE if split == "train" else JOINED_SHARE)
    draft.chain(level)
    goal = draft.distractors_and_goal(label)
    premises = rng.sample(draft.premises, len(draft.premises))
    form = canonical_form(premises, goal)
    if split != "ood_words" and split_of(form) != ("train" if split == "train" else "test"):
        return None
    if not is_consistent(premises) or decide(premises, goal) != label:
        return None
    if (told(goal, reachable_facts(tuple(premises))) or "Unknown") != label:  # not by the steps of natural deduction
        return None
    question = " ".join([*(say(premise, rng) for premise in premises), f"Statement: {say(goal, rng)}"])
    details = {"premises": list(map(str, premises)), "goal": str(goal), "depth": level}
    return Problem("", "fol", split, level, question, label, form, details)


class _Draft:
    """Premises under construction, from one fact on; the last literal `derived` is what the next rule fires on."""

    def __init__(
        self, rng: random.Random, words: dict[str, list[str]], nouns: int, adjectives: int, joined_share: float
    ):
        self.rng, self.joined_share = rng, joined_share
        self.name = rng.choice(words["names"])
        rng.choice(words["names"][1:])  # of an earlier version's second person: the same seeds give the same puzzles
        self.predicates = rng.sample(words["nouns"], nouns) + rng.sample(words["adjectives"], adjectives)
        rng.shuffle(self.predicates)
        self.derived = [self.new_literal()]
        self.premises = [Formula((self.derived[0],))]

    def new_literal(self) -> Literal:
        return Literal(self.predicates.pop(), self.name, self.rng.random() >= 0.25)

    def chain(self, depth: int) -> None:
        """`depth` rules, each firing on the literal before; some with a second condition."""
        for _ in range(depth):
            head, kind, body = self.new_literal(), self.rng.random(), self.derived[-1:]
            if kind < self.joined_share:
                body = [*body, self.new_literal()]
            joined_by_or = self.joined_share / 2 <= kind < self.joined_share
            if not joined_by_or:
                self.premises += [Formula((second,)) for second in body[1:]]
            self._rule(body, "or" if joined_by_or else "and", head)
            self.derived.append(head)

    def distractors_and_goal(self, label: Label) -> Formula:
        """Add one or two rules that never fire and choose the statement to ask about."""
        target = self.derived[-1] if label != "Unknown" else self.new_literal()
        side = target if self.rng.random() < 0.7 or label == "Unknown" else self.new_literal()
        head = replace(side, positive=self.rng.random() < 0.7)
        self._rule([self._idle_condition(head.predicate)], "and", head)
        if self.rng.random() < 0.4:
            self._rule([self._idle_condition()], "and", self.new_literal())
        negate = self.rng.random() < 0.25 if label == "Unknown" else label == "False"
        return Formula((target.negated() if negate else target,))

    def _idle_condition(self, head: str = "") -> Literal:
        """A condition nothing satisfies: a fresh predicate, or the negation of a derived literal, not of `head`."""
        derived = [literal for literal in self.derived if literal.predicate != head]
        if derived and self.rng.random() < 0.4:
            return self.rng.choice(derived).negated()
        return self.new_literal()

    def _rule(self, body: list[Literal], connective: str, head: Literal) -> None:
        if len(body) > 1:
            body = body[::-1] if self.rng.random() < 0.5 else body
            body = sorted(body, key=lambda literal: not literal.positive)  # "not a and b" would be ambiguous
        *generic, then = (replace(literal, name=VARIABLE) for literal in (*body, head))
        self.premises.append(Formula(tuple(generic), connective, then))


_NOUNS = frozenset(WORDS["main"]["nouns"] + WORDS["other"]["nouns"])


def say(formula: Formula, rng: random.Random) -> str:
    """One English sentence for `formula`, in a randomly chosen template."""
    first, *others = formula.body
    said = f" {formula.connective} ".join(map(_quality, formula.body))
    if formula.head is None:
        return f"{first.name} is {said}."
    then = _quality(formula.head)
    templates = [f"Everyone who is {said} is {then}.", f"If someone is {said}, then they are {then}."]
    if not others and first.positive:
        person = first.predicate if first.predicate in _NOUNS else f"{first.predicate} person"
        templates.append(f"Every {person} is {then}.")
        if not formula.head.positive:
            templates.append(f"No {person} is {_quality(formula.head.negated())}.")
    return rng.choice(templates)


def _quality(literal: Literal) -> str:
    """ "kind", "a driver" or "not an actor"."""
    article = "" if literal.predicate not in _NOUNS else "an " if literal.predicate[0] in "aeiou" else "a "
    return f"{'' if literal.positive else 'not '}{article}{literal.predicate}"

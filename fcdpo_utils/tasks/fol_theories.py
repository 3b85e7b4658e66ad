"""Random first-order theories in English, with labels proved by the decider.

A theory is a derivation of the wanted depth plus distractors, said in one of several sentence templates per
formula and shuffled. Inconsistent or mislabelled drafts are rejected; labels are balanced within each level;
train and test never share a canonical form, the `ood_words` split has its own vocabulary, and in `ood_depth`, apart
from train like test, a level is a proof depth beyond those of training.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from fcdpo_utils.tasks.logic import (
    Formula,
    Label,
    Literal,
    canonical_form,
    consequences,
    decide,
    is_consistent,
)

LABELS: tuple[Label, ...] = ("True", "False", "Unknown")
SPLITS = ("train", "test", "ood_words", "ood_depth")
LEVELS = (1, 2, 3, 4, 5)
DEPTHS = (4, 5, 6)  # the levels of ood_depth
MAX_DRAFTS = 4_000
JOINED_SHARE = 0.2  # of rules: two conditions
PRACTISED_SHARE = 0.4  # the same in training, for they are what students misread


@dataclass(frozen=True)
class Vocabulary:
    """Words of one pool: nouns (said "a baker"), adjectives and names never meet those of the other pool."""

    nouns: tuple[str, ...]
    adjectives: tuple[str, ...]
    names: tuple[str, ...]


# Words that common tokenizers keep whole: a puzzle should test reasoning, not spelling.
MAIN_WORDS = Vocabulary(
    nouns=tuple("doctor teacher driver writer artist actor player student leader king parent friend".split()),
    adjectives=tuple("kind rich tall quiet happy young strong slow warm smart big small old poor weak wise".split()),
    names=tuple("Tom Ann Bob Max Dan Sam Kim Ray Ben John Mary Paul".split()),
)
OTHER_WORDS = Vocabulary(
    nouns=tuple("guard cook author editor reader owner manager worker".split()),
    adjectives=tuple("cold hot dark bright soft hard heavy clean famous active".split()),
    names=tuple("Jane Alice David James Peter Anna".split()),
)


@dataclass(frozen=True)
class Theory:
    """Premises in the order they are said, the goal, its proved label and the depth of the derivation."""

    premises: tuple[Formula, ...]
    goal: Formula
    label: Label
    level: int
    depth: int
    question: str
    canonical: str


def generate(count: int, split: str, seed: int, levels: tuple[int, ...]) -> list[Theory]:
    """`count` distinct theories, levels and labels in turn; deterministic in all arguments."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
    known = DEPTHS if split == "ood_depth" else LEVELS
    if not levels or not set(levels) <= set(known):
        raise ValueError(f"unknown fol levels {list(levels)} of split {split}; expected some of {list(known)}")
    theories: list[Theory] = []
    seen: set[str] = set()
    for number in range(count):
        level, label = levels[number // len(LABELS) % len(levels)], LABELS[number % len(LABELS)]
        rng = random.Random(f"fol/{seed}/{split}/{number}")
        theories.append(_accepted_draft(rng, split, level, label, seen))
        seen.add(theories[-1].question)
    return theories


def _accepted_draft(rng: random.Random, split: str, level: int, label: Label, seen: set[str]) -> Theory:
    for _ in range(MAX_DRAFTS):
        theory = _draft(rng, split, level, label)
        if theory is not None and theory.question not in seen:
            return theory
    raise ValueError(f"no new {label} theory of level {level} for split {split} in {MAX_DRAFTS} drafts; ask for fewer")


def split_of(canonical: str) -> str:
    """train or test (30 %), by the canonical form alone."""
    return "test" if int(canonical, 16) % 10 < 3 else "train"


def has_harder_schemas(level: int, split: str) -> bool:
    """Whether this level has disjunctive facts, relations and the like instead of longer proofs."""
    return level == 4 and split != "ood_depth"


def _draft(rng: random.Random, split: str, level: int, label: Label) -> Theory | None:
    """One random theory, or None when a check rejects it."""
    words = OTHER_WORDS if split == "ood_words" else MAIN_WORDS
    size = (9, 14) if split == "ood_depth" else (5, 10) if level == 5 else (4, 8)  # more steps need more words
    draft = _Draft(rng, words, *size, PRACTISED_SHARE if split == "train" else JOINED_SHARE)
    if has_harder_schemas(level, split):
        rng.choice([draft.contraposition, draft.disjunction, draft.relation, draft.witness])()
        draft.chain(rng.randint(0, 1))
    else:
        draft.fact(draft.new_literal())
        draft.chain(level)
    goal = draft.distractors_and_goal(label)
    premises = rng.sample(draft.premises, len(draft.premises))
    form = canonical_form(premises, goal)
    if split != "ood_words" and split_of(form) != ("train" if split == "train" else "test"):
        return None
    if not is_consistent(premises) or decide(premises, goal) != label:
        return None
    if label != "Unknown" and any(p.exists for p in premises) and any(_joins(p) for p in premises):
        return None  # the second condition is not known of the witness: only a proof by cases could justify it
    if not has_harder_schemas(level, split) and _chained_label(premises, goal) != label:
        return None  # the core steps could not justify it
    sentences = " ".join(say(premise, rng) for premise in premises)
    question = f"{sentences} Statement: {say(goal, rng)}"
    return Theory(tuple(premises), goal, label, level, draft.depth, question, form)


def _joins(premise: Formula) -> bool:
    return premise.head is not None and premise.connective == "and" and len(premise.body) > 1


def _chained_label(premises: list[Formula], goal: Formula) -> Label:
    """What forward chaining alone can say of a ground goal."""
    known = [premise.body[0] for premise in premises if premise.head is None]
    for fact in known:  # grows while it is walked
        for rule in premises:
            if rule.head is not None:
                known += [new for new in consequences(rule, fact, known) if new not in known]
    if goal.body[0] in known:
        return "True"
    return "False" if goal.body[0].negated() in known else "Unknown"


class _Draft:
    """Premises under construction; `last` is the most recently derivable literal."""

    def __init__(self, rng: random.Random, words: Vocabulary, nouns: int, adjectives: int, joined_share: float):
        self.rng, self.joined_share = rng, joined_share
        self.name = rng.choice(words.names)
        self.other_name = rng.choice([name for name in words.names if name != self.name])
        self.predicates = rng.sample(words.nouns, nouns) + rng.sample(words.adjectives, adjectives)
        rng.shuffle(self.predicates)
        self.premises: list[Formula] = []
        self.derived: list[Literal] = []
        self.depth = 0
        self.last = Literal("none", (self.name,))

    def new_literal(self, negative_share: float = 0.25, name: str | None = None) -> Literal:
        return Literal(self.predicates.pop(), (name or self.name,), self.rng.random() >= negative_share)

    def fact(self, literal: Literal) -> None:
        self.premises.append(Formula((literal,)))
        self._derive(literal)

    def chain(self, depth: int) -> None:
        """`depth` rules, each firing on the literal before; some with a second condition."""
        for _ in range(depth):
            head, kind = self.new_literal(), self.rng.random()
            if kind < self.joined_share / 2:
                second = self.new_literal()
                self.premises.append(Formula((second,)))
                self._rule((self.last, second), "and", head)
            elif kind < self.joined_share:
                self._rule((self.last, self.new_literal()), "or", head)
            else:
                self._rule((self.last,), "and", head)
            self._derive(head)
            self.depth += 1

    def contraposition(self) -> None:
        cause, effect = self.new_literal(0.0), self.new_literal()
        self._rule((cause,), "and", effect)
        self.premises.append(Formula((effect.negated(),)))
        self._derive(cause.negated())
        self.depth = 1

    def disjunction(self) -> None:
        left, right = self.new_literal(0.0), self.new_literal(0.0)
        self.premises += [Formula((left, right), "or"), Formula((left.negated(),))]
        self._derive(right)
        self.depth = 1

    def relation(self) -> None:
        fact, head = Literal("likes", (self.name, self.other_name)), self.new_literal()
        self.premises.append(Formula((fact,)))
        if self.rng.random() < 0.5:
            self._rule((Literal("likes", ("x", self.other_name)),), "and", head)
        else:
            quality = self.new_literal(0.0, self.other_name)
            self.premises.append(Formula((quality,)))
            condition = Literal(quality.predicate, ("y",))
            self._rule((Literal("likes", ("x", "y")), condition), "and", head)
        self._derive(head)
        self.depth = 1

    def witness(self) -> None:
        """Somebody unnamed has a quality; statements about somebody follow."""
        quality = self.new_literal(0.0)
        self.premises.append(Formula((_generic(quality),), exists=True))
        self._derive(quality)

    def distractors_and_goal(self, label: Label) -> Formula:
        """Add one or two rules that never fire and choose the statement to ask about."""
        target = self.last if label != "Unknown" else self.new_literal()
        side = target if self.rng.random() < 0.7 or label == "Unknown" else self.new_literal()
        head = Literal(side.predicate, side.args, self.rng.random() < 0.7)
        self._rule((self._idle_condition(head.predicate),), "and", head)
        if self.rng.random() < 0.4:
            self._rule((self._idle_condition(),), "and", self.new_literal())
        return self._goal(target, label)

    def _goal(self, target: Literal, label: Label) -> Formula:
        if any(premise.exists for premise in self.premises):
            return Formula((_generic(target),), exists=True)
        negate = self.rng.random() < 0.25 if label == "Unknown" else label == "False"
        return Formula((target.negated() if negate else target,))

    def _idle_condition(self, head: str = "") -> Literal:
        """A condition nothing satisfies: a fresh predicate, or the negation of a derived literal, not of `head`."""
        derived = [literal for literal in self.derived if literal.predicate != head]
        if derived and self.rng.random() < 0.4:
            return self.rng.choice(derived).negated()
        return self.new_literal()

    def _rule(self, body: tuple[Literal, ...], connective: str, head: Literal) -> None:
        if len(body) > 1 and body[0].predicate != "likes":
            if self.rng.random() < 0.5:
                body = body[::-1]
            body = tuple(sorted(body, key=lambda literal: not literal.positive))  # "not a and b" would be ambiguous
        self.premises.append(Formula(tuple(map(_generic, body)), connective, _generic(head)))

    def _derive(self, literal: Literal) -> None:
        self.derived.append(literal)
        self.last = literal


def _generic(literal: Literal) -> Literal:
    """The literal about anybody: its one constant becomes x (relations are built with variables already)."""
    return (
        literal
        if len(literal.args) > 1 or literal.args == ("y",)
        else Literal(literal.predicate, ("x",), literal.positive)
    )


_NOUNS = frozenset(MAIN_WORDS.nouns + OTHER_WORDS.nouns)


def say(formula: Formula, rng: random.Random) -> str:
    """One English sentence for `formula`, in a randomly chosen template."""
    if formula.exists:
        return f"Someone {_is(formula.body[0])}."
    if formula.head is None:
        return " or ".join([_about(formula.body[0]), *map(_is_bare, formula.body[1:])]) + "."
    head = formula.head
    if formula.body[0].predicate == "likes":
        return f"Everyone who likes {_liked(formula)} {_is(head)}."
    condition = f" {formula.connective} ".join([_is(formula.body[0]), *map(_is_bare, formula.body[1:])])
    templates = [f"Everyone who {condition} {_is(head)}.", f"If someone {condition}, then they {_are(head)}."]
    only = formula.body[0]
    if len(formula.body) == 1 and only.positive:
        templates.append(f"Every {_person(only)} {_is(head)}.")
        if not head.positive:
            templates.append(f"No {_person(only)} is {_bare(head)}.")
    return rng.choice(templates)


def _bare(literal: Literal) -> str:
    """ "kind", "a driver" or "an actor", without negation."""
    article = "an" if literal.predicate[0] in "aeiou" else "a"
    return f"{article} {literal.predicate}" if literal.predicate in _NOUNS else literal.predicate


def _is_bare(literal: Literal) -> str:
    return _bare(literal) if literal.positive else f"not {_bare(literal)}"


def _is(literal: Literal) -> str:
    return f"is {_is_bare(literal)}"


def _are(literal: Literal) -> str:
    return f"are {_is_bare(literal)}"


def _person(literal: Literal) -> str:
    return literal.predicate if literal.predicate in _NOUNS else f"{literal.predicate} person"


def _about(literal: Literal) -> str:
    name = literal.args[0]
    return f"{name} likes {literal.args[1]}" if literal.predicate == "likes" else f"{name} {_is(literal)}"


def _liked(formula: Formula) -> str:
    target = formula.body[0].args[1]
    if target != "y":
        return target
    return f"someone who {_is(formula.body[1])}"

"""All of first-order logic without function symbols: formulas read, printed, and decided by z3 within a budget.

    all x (Cat(x) -> exists y (Likes(x, y) and not y = x))        Cat(tom) xor Dog(tom)        not (P(a) <-> Q(a))

Or in the textbook's symbols. Tight to loose: not, all, exists; and; or, xor; ->; <->. Names that no quantifier binds
are constants. Formulas come from models, so their size is bounded and nothing is evaluated. Knows nothing of tasks.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from operator import eq
from typing import Any, Self

SYMBOLS = {"∀": "all", "∃": "exists", "∧": "and", "\u2228": "or", "¬": "not", "⊕": "xor", "→": "->", "↔": "<->"}
MAX_CHARACTERS = 500
MAX_DEPTH = 30  # of parentheses, quantifiers, negations and implications within each other
MAX_QUANTIFIERS = 8
BUDGET = 200_000  # of one decision, in z3's own units of work: the same on every machine, unlike seconds
SAFETY_MILLISECONDS = 20_000
_BINDING = {"<->": 1, "->": 2, "or": 3, "xor": 3, "and": 4}
_WORDS = {*_BINDING, "not", "all", "exists"}
_TOKEN = re.compile(r"<->|->|\w+(?:[-.']\w+)*\+*|\S")
_VARIABLE = re.compile(r"[u-z]\d?")


@dataclass(frozen=True)
class Formula:
    """`kind`: a connective of `parts`, a quantifier that binds names[0] in parts[0], "=" of `names`, or "atom".

    An atom's `names` are its predicate and arguments: "Likes(x, tom)" has ("Likes", "x", "tom").
    """

    kind: str
    parts: tuple[Self, ...] = ()
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.kind in ("atom", "="):
            return " = ".join(self.names) if self.kind == "=" else f"{self.names[0]}({', '.join(self.names[1:])})"
        inner = [f"({part})" if part.kind in _BINDING else str(part) for part in self.parts]
        return f" {self.kind} ".join(inner) if self.kind in _BINDING else " ".join((self.kind, *self.names, *inner))

    def same_as(self, other: Self) -> bool:
        return self == other


def symbols(formulas: Iterable[Formula], bound: tuple[str, ...] = ()) -> tuple[dict, dict]:
    """Predicates with their numbers of arguments, and constants, each in the order of the formulas."""
    predicates, constants = {}, {}
    for formula in formulas:
        own = formula.names[1:] if formula.kind == "atom" else formula.names
        inner = symbols(formula.parts, (*bound, *own))
        if formula.kind == "atom":
            predicates[formula.names[0], len(own)] = None
        if not formula.parts:
            constants |= {name: None for name in own if name not in bound}
        predicates, constants = predicates | inner[0], constants | inner[1]
    return predicates, constants


@lru_cache(maxsize=4096)
def parse(text: str) -> Formula:
    """Read one formula; raises ValueError with one line that says what is wrong."""
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"a formula has at most {MAX_CHARACTERS} characters, got {len(text)}")
    for symbol, word in SYMBOLS.items():
        text = text.replace(symbol, f" {word} ")
    parser = _Parser(text)
    formula = parser.formula(0, MAX_DEPTH)
    if parser.next:
        raise ValueError(f'expected the end of the formula, got "{parser.next[:40]}"')
    return formula


class _Parser:
    """Recursive descent over the tokens, operators by how tightly they bind (Pratt)."""

    def __init__(self, text: str):
        self.tokens: list[str] = _TOKEN.findall(text)
        self.place = self.quantifiers = 0
        self.bound: list[str] = []
        self.arities: dict[str, int] = {}

    @property
    def next(self) -> str:
        """The token to come, "" at the end."""
        return self.tokens[self.place] if self.place < len(self.tokens) else ""

    def take(self, expected: str = "") -> str:
        """The next token: the one that is expected, else any name."""
        token = self.next
        if token != expected if expected else token in _WORDS or not re.match(r"\w", token):
            raise ValueError(f"expected {expected or 'a name'}, got {token[:40] or 'the end of the formula'}")
        self.place += 1
        return token

    def formula(self, least: int, depth: int) -> Formula:
        """What operators that bind more tightly than `least` join."""
        left, last = self.operand(depth), ""
        while _BINDING.get(operator := self.next, 0) > least:
            if {operator, last} == {"or", "xor"}:
                raise ValueError("or and xor side by side; put parentheses around one of them")
            self.place += 1
            right = self.formula(_BINDING[operator] - (operator == "->"), depth - 1)
            longer = operator == last != "<->"
            left, last = Formula(operator, (*left.parts, right) if longer else (left, right)), operator
        return left

    def operand(self, depth: int) -> Formula:
        if depth <= 0:
            raise ValueError(f"nested more than {MAX_DEPTH} deep")
        if (kind := self.next) not in ("(", "not", "all", "exists"):
            return self.atom()
        self.place += 1
        if kind == "not":
            return Formula("not", (self.operand(depth - 1),))
        if kind == "(":
            inner = self.formula(0, depth - 1)
            self.take(")")
            return inner
        self.quantifiers += 1
        if self.quantifiers > MAX_QUANTIFIERS:
            raise ValueError(f"more than {MAX_QUANTIFIERS} quantifiers")
        self.bound.append(self.take())
        inner = self.operand(depth - 1)
        return Formula(kind, (inner,), (self.bound.pop(),))

    def atom(self) -> Formula:
        name = self.take()
        if self.next != "(":
            self.take("=")
            return Formula("=", names=(self.term(name), self.term(self.take())))
        names = [name]
        while self.next == ("," if names[1:] else "("):
            self.place += 1
            names.append(self.term(self.take()))
        self.take(")")
        if self.arities.setdefault(name, len(names)) != len(names):
            raise ValueError(f"{name:.40} has {self.arities[name] - 1} names in one place, {len(names) - 1} in another")
        return Formula("atom", names=tuple(names))

    def term(self, name: str) -> str:
        if name not in self.bound and _VARIABLE.fullmatch(name):
            raise ValueError(f"no quantifier binds {name} here; write for example all {name} (P({name}) -> Q({name}))")
        return name


class _Solver:
    """z3 over one sort of things, for one question: its answer does not depend on what was asked before.

    A second question after one that ran out of budget has crashed z3 5.4 (in a quantified theory, with push and pop).
    """

    def __init__(self, premises: Sequence[Formula], budget: int):
        import z3  # a third of a second, which who decides nothing need not wait for

        self.z3, context = z3, z3.Context()
        self.thing, self.truth = z3.DeclareSort("Thing", context), z3.BoolSort(context)
        self.solver = z3.SimpleSolver(ctx=context)
        self.solver.set("rlimit", budget)
        self.solver.set("timeout", SAFETY_MILLISECONDS)
        self.solver.add(*map(self.expression, premises))

    def allows(self, formula: Formula) -> bool | None:
        """Whether `formula` can be true together with the premises; None where the budget does not tell."""
        self.solver.add(self.expression(formula))
        found = self.solver.check()
        return None if found == self.z3.unknown else found == self.z3.sat

    def expression(self, formula: Formula) -> Any:
        z3, kind = self.z3, formula.kind
        names = [z3.Const(name, self.thing) for name in formula.names]
        if kind == "atom":
            return z3.Function(formula.names[0], *[self.thing] * (len(names) - 1), self.truth)(*names[1:])
        if kind in ("all", "exists"):
            return (z3.ForAll if kind == "all" else z3.Exists)(names, self.expression(formula.parts[0]))
        operands = names or [self.expression(part) for part in formula.parts]
        several = {"and": z3.And, "or": z3.Or, "not": z3.Not}.get(kind)
        return several(*operands) if several else reduce({"->": z3.Implies, "xor": z3.Xor}.get(kind, eq), operands)


def is_consistent(premises: tuple[Formula, ...]) -> bool | None:
    """Whether all can be true together; None where the budget does not tell."""
    return _Solver(premises[1:], BUDGET).allows(premises[0])


@lru_cache(maxsize=4096)
def decide(premises: tuple[Formula, ...], goal: Formula) -> str | None:
    """True, False or Unknown, as premises that agree with each other have it; None where the budget does not tell."""
    if (denied := _Solver(premises, BUDGET // 2).allows(Formula("not", (goal,)))) is False:
        return "True"
    claimed = _Solver(premises, BUDGET // 2).allows(goal)
    return "False" if claimed is False else "Unknown" if denied and claimed else None


@lru_cache(maxsize=4096)
def equivalent(formula: Formula, others: tuple[Formula, ...]) -> tuple[bool | None, ...]:
    """Which of `others` say the same, whatever the world; None where the budget, for all together, does not tell."""
    share = BUDGET // len(others)
    differ = [formula != other and _Solver((), share).allows(Formula("xor", (formula, other))) for other in others]
    return tuple(None if one is None else not one for one in differ)

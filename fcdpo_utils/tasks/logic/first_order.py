"""All of first-order logic without function symbols: formulas read, printed, and decided by z3 within a budget.

    all x (Cat(x) -> exists y (Likes(x, y) and not y = x))        Cat(tom) xor Dog(tom)        not (P(a) <-> Q(a))

Or in the textbook's symbols. Tight to loose: not, all, exists; and; or, xor; ->; <->. Names that no quantifier binds
are constants. Formulas come from models, so their size is bounded and nothing is evaluated. Knows nothing of tasks.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, reduce
from operator import eq
from pathlib import Path
from typing import Any, Self

import yaml

from fcdpo_utils.tools import ToolError

MAX_CHARACTERS = 500
MAX_QUANTIFIERS = 8
BUDGET = 200_000  # of one decision, in z3's own units of work: the same on every machine, unlike seconds
SAFETY_MILLISECONDS = 20_000
_BINARY = ("<->", "->", "or", "xor", "and")
_VARIABLE = re.compile(r"[u-z]\d?")
_SYNTAX = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


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
        inner = [f"({part})" if part.kind in _BINARY else str(part) for part in self.parts]
        return f" {self.kind} ".join(inner) if self.kind in _BINARY else " ".join((self.kind, *self.names, *inner))

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
    """Read one formula; raises ToolError, one line that says what is wrong."""
    if len(text) > MAX_CHARACTERS:
        raise ToolError(f"a formula has at most {MAX_CHARACTERS} characters, got {len(text)}")
    for sign, word in _SYNTAX["signs"].items():
        text = text.replace(sign, word)
    if sum(word in ("all", "exists") for word in re.findall(r"[\w.'+-]+", text)) > MAX_QUANTIFIERS:
        raise ToolError(f"more than {MAX_QUANTIFIERS} quantifiers")
    formula = _formula(_tree(text))
    predicates, constants = symbols((formula,))
    if free := next(filter(_VARIABLE.fullmatch, constants), None):
        raise ToolError(f"no quantifier binds {free} here; write for example all {free} (P({free}) -> Q({free}))")
    arities: dict[str, int] = {}
    for name, count in predicates:
        if arities.setdefault(name, count) != count:
            raise ToolError(f"{name:.40} has {arities[name]} names in one place, {count} in another")
    return formula


@cache
def _grammar() -> Any:
    from lark import Lark  # as with z3, who reads no formula need not wait for it

    return Lark(_SYNTAX["grammar"], start="whole", parser="lalr", lexer="basic")


def _tree(text: str) -> Any:
    from lark.exceptions import UnexpectedInput

    try:
        return _grammar().parse(text)
    except UnexpectedInput as error:
        at_end = getattr(error, "token", None) == ""  # where lark knows no place
        rest = "" if at_end else text[error.pos_in_stream :]
    got = f'"{rest.strip()[:40]}"' if rest else "end"
    raise ToolError(f'unexpected {got} behind "{text.removesuffix(rest).strip()[-40:]}"')


def _formula(tree: Any) -> Formula:
    """What a tree of the grammar says."""
    if tree.data == "joined":
        kind, *others = dict.fromkeys(map(str, tree.children[1::2]))
        if others:
            raise ToolError("or and xor side by side; put parentheses around one of them")
        return Formula(kind, tuple(map(_formula, tree.children[::2])))
    if tree.data == "prefixed":
        kind, *names, inner = tree.children
        return Formula(str(kind), (_formula(inner),), tuple(map(str, names)))
    names = ("_".join(name.children) for name in tree.children)  # where it has several words
    return Formula("=" if tree.data == "equation" else "atom", names=tuple(names))


def _allowed(formula: Formula, premises: Sequence[Formula], budget: int) -> bool | None:
    """Whether `formula` can be true together with the premises; None where the budget does not tell.

    By z3 over one sort of things. Each question has a solver of its own, for its answer must not depend on others: one
    after another that ran out of budget has crashed z3 5.4 (in a quantified theory, with push and pop).
    """
    import z3  # a third of a second, which who decides nothing need not wait for

    context = z3.Context()
    thing, truth = z3.DeclareSort("Thing", context), z3.BoolSort(context)

    def expression(formula: Formula) -> Any:
        kind, names = formula.kind, [z3.Const(name, thing) for name in formula.names]
        if kind == "atom":
            return z3.Function(formula.names[0], *[thing] * (len(names) - 1), truth)(*names[1:])
        if kind in ("all", "exists"):
            return (z3.ForAll if kind == "all" else z3.Exists)(names, expression(formula.parts[0]))
        operands = names or [expression(part) for part in formula.parts]
        several = {"and": z3.And, "or": z3.Or, "not": z3.Not}.get(kind)
        return several(*operands) if several else reduce({"->": z3.Implies, "xor": z3.Xor}.get(kind, eq), operands)

    solver = z3.SimpleSolver(ctx=context)
    solver.set(rlimit=budget, timeout=SAFETY_MILLISECONDS)
    solver.add(*map(expression, (*premises, formula)))
    found = solver.check()
    return None if found == z3.unknown else found == z3.sat


def is_consistent(premises: tuple[Formula, ...]) -> bool | None:
    """Whether all can be true together; None where the budget does not tell."""
    return _allowed(premises[0], premises[1:], BUDGET)


@lru_cache(maxsize=4096)
def decide(premises: tuple[Formula, ...], goal: Formula) -> str | None:
    """True, False or Unknown, as premises that agree with each other have it; None where the budget does not tell."""
    if (denied := _allowed(Formula("not", (goal,)), premises, BUDGET // 2)) is False:
        return "True"
    claimed = _allowed(goal, premises, BUDGET // 2)
    return "False" if claimed is False else "Unknown" if denied and claimed else None


@lru_cache(maxsize=4096)
def equivalent(formula: Formula, others: tuple[Formula, ...]) -> tuple[bool | None, ...]:
    """Which of `others` say the same, whatever the world; None where the budget, for all together, does not tell."""
    share = BUDGET // len(others)
    differ = [formula != other and _allowed(Formula("xor", (formula, other)), (), share) for other in others]
    return tuple(None if one is None else not one for one in differ)

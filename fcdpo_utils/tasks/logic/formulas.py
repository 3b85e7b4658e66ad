"""First-order logic about one person at a time: formulas, a complete decider, and forward chaining.

A formula is a fact or a universally quantified rule:

    cat(Tom)     not cat(Tom)
    cat(x) -> mammal(x)     small(x) and not wild(x) -> pet(x)     cat(x) or dog(x) -> pet(x)

x is the variable (y and z are read as x), every other name a constant. So few formulas are decided completely by
grounding over the constants and DPLL. Formulas come from models, so their size is bounded. Knows nothing of English;
`tasks.folio` has all of first-order logic.
"""

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal as OneOf
from typing import Self

from fcdpo_utils.tools import ToolError

Label = OneOf["True", "False", "Unknown"]
VARIABLE = "x"
MAX_LITERALS = 8
_ATOM = re.compile(r"(not\s+)?([a-z][a-z0-9_]*)\(\s*([A-Za-z]\w*)\s*\)", re.ASCII)


@dataclass(frozen=True, order=True)
class Literal:
    """A possibly negated atom such as `not kind(Ann)`, or `not kind(x)` in a rule."""

    predicate: str
    name: str
    positive: bool = True

    def __str__(self) -> str:
        return f"{'' if self.positive else 'not '}{self.predicate}({self.name})"

    def negated(self) -> Self:
        return replace(self, positive=not self.positive)

    def about(self, name: str) -> Self:
        """The literal with `name` in place of the variable."""
        return replace(self, name=name) if self.name == VARIABLE else self


Clause = frozenset[Literal]


@dataclass(frozen=True)
class Formula:
    """One literal (a fact), or literals joined by `connective` that imply `head` (a rule)."""

    body: tuple[Literal, ...]
    connective: OneOf["and", "or"] = "and"
    head: Literal | None = None

    def __str__(self) -> str:
        text = f" {self.connective} ".join(map(str, self.body))
        return text if self.head is None else f"{text} -> {self.head}"

    def literals(self) -> tuple[Literal, ...]:
        return self.body if self.head is None else (*self.body, self.head)

    def same_as(self, other: Self) -> bool:
        """Equal up to the order of the body and repeated literals."""
        mine, others = set(self.body), set(other.body)
        joined_alike = self.connective == other.connective or len(mine) == 1
        return mine == others and self.head == other.head and joined_alike


@lru_cache(maxsize=4096)  # a problem is started once for every chain of it
def parse_formula(text: str) -> Formula:
    """Read one formula; raises ToolError, one line that says what is wrong."""
    left, arrow, right = text.strip().rstrip(".").partition("->")
    if " and " in left and " or " in left:
        raise ToolError("mix of 'and' and 'or'; use one of them")
    connective = "or" if " or " in left else "and"
    parts = left.split(f" {connective} ")
    if len(parts) > MAX_LITERALS:
        raise ToolError(f"at most {MAX_LITERALS} statements may be joined by '{connective}', got {len(parts)}")
    body, head = tuple(map(parse_literal, parts)), parse_literal(right) if arrow else None
    open_body = any(literal.name == VARIABLE for literal in body)
    if head is None and len(body) > 1:
        raise ToolError(f"only a rule joins statements by '{connective}'")
    if head is None and open_body:
        raise ToolError("a fact needs a name, not a variable")
    if head is not None and head.name == VARIABLE and not open_body:
        raise ToolError("the variable of the conclusion is not in the rule's condition")
    return Formula(body, connective, head)


def parse_literal(text: str) -> Literal:
    """Read `cat(Tom)` or `not cat(x)`; raises ToolError."""
    match = _ATOM.fullmatch(text.strip())
    if match is None:
        raise ToolError(f'cannot read "{text.strip()[:40]}"; write for example not cat(Tom)')
    negation, predicate, name = match.groups()
    return Literal(predicate, VARIABLE if name in ("y", "z") else name, negation is None)


def decide(premises: Sequence[Formula], goal: Formula) -> Label:
    """Whether the premises entail the fact `goal` (True), its negation (False) or neither (Unknown).

    Raises ToolError when the premises contradict each other.
    """
    if not is_consistent(premises):
        raise ToolError("the premises contradict each other")
    if not is_consistent([*premises, Formula((goal.body[0].negated(),))]):
        return "True"
    return "Unknown" if is_consistent([*premises, goal]) else "False"


def is_consistent(premises: Iterable[Formula]) -> bool:
    """Whether some model satisfies all premises."""
    clauses: list[Clause] = []  # implicitly universally quantified
    for formula in premises:
        if formula.head is None:
            clauses.append(frozenset(formula.body))
        else:
            denied = [literal.negated() for literal in formula.body]
            conditions = [denied] if formula.connective == "and" else [[literal] for literal in denied]
            clauses += [frozenset([*condition, formula.head]) for condition in conditions]
    return satisfiable(tuple(clauses))


def ground(clauses: Collection[Clause]) -> Iterator[Clause]:
    """Every instance of every clause over the constants that occur (one invented constant when none does)."""
    constants = sorted({literal.name for clause in clauses for literal in clause} - {VARIABLE})
    for clause in clauses:
        for name in constants or ["_c"]:
            yield frozenset(literal.about(name) for literal in clause)


@lru_cache(maxsize=1024)  # the same premises are asked about many goals
def satisfiable(clauses: tuple[Clause, ...]) -> bool:
    """Complete satisfiability by grounding and DPLL."""
    numbers: dict[tuple, int] = {}
    grounded = set()
    for clause in ground(clauses):
        atoms = [(numbers.setdefault((lit.predicate, lit.name), len(numbers) + 1), lit.positive) for lit in clause]
        grounded.add(frozenset(number if positive else -number for number, positive in atoms))
    cases = [sorted(grounded, key=sorted)]
    while cases and (clauses := cases.pop()):  # a case in which no clause is left is a model
        if shortest := min(clauses, key=len):  # an empty clause cannot be met
            literals = shortest if len(shortest) == 1 else (-min(shortest), min(shortest))
            cases += [[clause - {-literal} for clause in clauses if literal not in clause] for literal in literals]
    return not clauses


def consequence(rule: Formula, fact: Literal, known: Collection[Literal]) -> Literal | None:
    """What `rule` yields where `fact` meets one of its conditions and `known` facts meet the others."""
    body = [condition.about(fact.name) for condition in rule.body]
    met = fact in body and (rule.connective == "or" or all(other == fact or other in known for other in body))
    return rule.head.about(fact.name) if met else None


def canonical_form(premises: Iterable[Formula], goal: Formula) -> str:
    """A hash that is equal for theories which differ only in symbols and order.

    By Weisfeiler-Lehman colour refinement over predicates and constants: splits by it never share a structure.
    """
    formulas = [(f, "premise") for f in premises] + [(goal, "goal")]
    symbols = {s for f, _ in formulas for lit in f.literals() for s in (lit.predicate, lit.name)} - {VARIABLE}
    colours = dict.fromkeys(symbols, "")

    def colour(symbol: str) -> str:
        """The formulas as they look to `symbol`, or to nobody in particular."""
        seen = colours | {symbol: "*"}
        text = colours.get(symbol, "") + str(sorted(_coloured(f, role, seen) for f, role in formulas))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    for _ in range(4):
        colours = {symbol: colour(symbol) for symbol in symbols}
    return colour("")


def _coloured(formula: Formula, role: str, colours: dict[str, str]) -> str:
    def literal(lit: Literal) -> str:
        predicate, name = (colours.get(symbol, "v") for symbol in (lit.predicate, lit.name))
        return f"{lit.positive}{predicate}({name})"

    body, head = sorted(map(literal, formula.body)), formula.head and literal(formula.head)
    connective = formula.connective if len(body) > 1 else "and"
    return f"{role}:{connective}{body}{head}False"  # the word stays for the hashes, and splits, of earlier versions

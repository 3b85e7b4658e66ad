"""Function-free first-order logic: formulas, a complete decider, and forward chaining.

A formula is a fact, a disjunction of facts, an existential fact, or a universally quantified rule:

    cat(Tom)     not cat(Tom)     cat(Tom) or dog(Tom)     exists x. cat(x) and small(x)
    cat(x) -> mammal(x)     small(x) and not wild(x) -> pet(x)     cat(x) or dog(x) -> pet(x)

x, y and z are variables, every other name a constant. Without function symbols this is the Bernays-Schoenfinkel
class: Skolem constants, grounding over the constants and DPLL decide it completely. Knows nothing of English.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal as OneOf

Label = OneOf["True", "False", "Unknown"]
Binding = dict[str, str]
VARIABLES = ("x", "y", "z")
MAX_GROUND_CLAUSES = 200_000
_ATOM = re.compile(r"(not\s+)?([a-z][a-z0-9_]*)\(\s*([A-Za-z]\w*(?:\s*,\s*[A-Za-z]\w*)*)\s*\)", re.ASCII)
_EXISTS = re.compile(r"exists\s+([xyz])\s*\.\s*(.*)")


@dataclass(frozen=True, order=True)
class Literal:
    """A possibly negated atom such as `not likes(x, Ann)`."""

    predicate: str
    args: tuple[str, ...]
    positive: bool = True

    def __str__(self) -> str:
        return f"{'' if self.positive else 'not '}{self.predicate}({', '.join(self.args)})"

    def negated(self) -> Literal:
        return replace(self, positive=not self.positive)

    def bind(self, binding: Binding) -> Literal:
        return replace(self, args=tuple(binding.get(arg, arg) for arg in self.args))

    def is_ground(self) -> bool:
        return not any(arg in VARIABLES for arg in self.args)


Clause = frozenset[Literal]


@dataclass(frozen=True)
class Formula:
    """`body` joined by `connective`, alone (a fact; `exists` binds its variable) or implying `head` (a rule)."""

    body: tuple[Literal, ...]
    connective: OneOf["and", "or"] = "and"
    head: Literal | None = None
    exists: bool = False

    def __str__(self) -> str:
        text = f" {self.connective} ".join(map(str, self.body))
        if self.exists:
            variable = next(arg for literal in self.body for arg in literal.args if arg in VARIABLES)
            return f"exists {variable}. {text}"
        return text if self.head is None else f"{text} -> {self.head}"

    def literals(self) -> tuple[Literal, ...]:
        return self.body if self.head is None else (*self.body, self.head)

    def same_as(self, other: Formula) -> bool:
        """Equal up to the order of the body, the names of variables and repeated literals."""
        return _normal_form(self) == _normal_form(other)


def parse_formula(text: str) -> Formula:
    """Read one formula; raises ValueError with one line that says what is wrong."""
    text = text.strip().rstrip(".")
    exists = _EXISTS.fullmatch(text)
    left, arrow, right = (exists.group(2) if exists else text).partition("->")
    if " and " in left and " or " in left:
        raise ValueError("mix of 'and' and 'or'; use one of them")
    connective = "or" if " or " in left else "and"
    body = tuple(parse_literal(part) for part in left.split(f" {connective} "))
    formula = Formula(body, connective, parse_literal(right) if arrow else None, exists is not None)
    _check(formula, exists.group(1) if exists else None)
    return formula


def parse_literal(text: str) -> Literal:
    """Read `cat(Tom)` or `not likes(x, Ann)`; raises ValueError."""
    match = _ATOM.fullmatch(text.strip())
    if match is None:
        raise ValueError(f'cannot read "{text.strip()[:40]}"; write for example not cat(Tom)')
    negation, predicate, arguments = match.groups()
    return Literal(predicate, tuple(arg.strip() for arg in arguments.split(",")), negation is None)


def _check(formula: Formula, bound: str | None) -> None:
    free = {arg for literal in formula.body for arg in literal.args if arg in VARIABLES} - {bound}
    if formula.head is not None:
        if bound:
            raise ValueError("an existential rule is not allowed")
        loose = [arg for arg in formula.head.args if arg in VARIABLES and arg not in free]
        if loose:
            raise ValueError(f"variable {loose[0]} is not in the rule's condition")
    elif free:
        raise ValueError(f"a fact needs a name, not the variable {min(free)}")
    elif bound and not any(bound in literal.args for literal in formula.body):
        raise ValueError(f"exists {bound} binds nothing")


def _normal_form(formula: Formula) -> tuple:
    """Smallest rendering over all renamings of the (at most three) variables."""
    used = sorted({arg for literal in formula.literals() for arg in literal.args if arg in VARIABLES})
    forms = []
    for names in product(VARIABLES[: len(used)], repeat=len(used)):
        if len(set(names)) == len(used):
            binding = dict(zip(used, names, strict=True))
            body = tuple(sorted({literal.bind(binding) for literal in formula.body}))
            connective = formula.connective if len(body) > 1 else "and"
            head = formula.head and str(formula.head.bind(binding))
            forms.append((tuple(map(str, body)), connective, head, formula.exists))
    return min(forms, key=str)


def decide(premises: Iterable[Formula], goal: Formula) -> Label:
    """Whether the premises entail `goal` (True), its negation (False) or neither (Unknown).

    `goal` is any formula but a rule. Raises ValueError when the premises contradict each other.
    """
    base = to_clauses(premises)
    if not satisfiable(base):
        raise ValueError("the premises contradict each other")
    if not satisfiable(base + _denial(goal)):
        return "True"
    return "False" if not satisfiable(base + to_clauses([goal], skolem="g")) else "Unknown"


def _denial(goal: Formula) -> list[Clause]:
    """Clauses of not `goal`: a variable that the goal says exists is here any one."""
    denied = [literal.negated() for literal in goal.body]
    return [frozenset(denied)] if goal.connective == "and" else [frozenset([literal]) for literal in denied]


def is_consistent(premises: Iterable[Formula]) -> bool:
    """Whether some model satisfies all premises."""
    return satisfiable(to_clauses(premises))


def to_clauses(formulas: Iterable[Formula], skolem: str = "s") -> list[Clause]:
    """Clauses (implicitly universally quantified); existential variables become fresh Skolem constants."""
    clauses: list[Clause] = []
    for index, formula in enumerate(formulas):
        body = formula.body
        if formula.exists:
            body = tuple(literal.bind({v: f"_{skolem}{index}" for v in VARIABLES}) for literal in body)
        if formula.head is None:
            clauses += [frozenset(body)] if formula.connective == "or" else [frozenset([lit]) for lit in body]
        elif formula.connective == "or":
            clauses += [frozenset([literal.negated(), formula.head]) for literal in body]
        else:
            clauses.append(frozenset([literal.negated() for literal in body] + [formula.head]))
    return clauses


def ground(clauses: Iterable[Clause]) -> Iterator[Clause]:
    """Every instance of every clause over the constants that occur (one invented constant when none does)."""
    clauses = list(clauses)
    constants = sorted({arg for clause in clauses for lit in clause for arg in lit.args if arg not in VARIABLES})
    for clause in clauses:
        variables = sorted({arg for literal in clause for arg in literal.args if arg in VARIABLES})
        for values in product(constants or ["_c"], repeat=len(variables)):
            binding = dict(zip(variables, values, strict=True))
            yield frozenset(literal.bind(binding) for literal in clause)


def satisfiable(clauses: Iterable[Clause]) -> bool:
    """Complete satisfiability by grounding and DPLL. Raises ValueError beyond `MAX_GROUND_CLAUSES`."""
    numbers: dict[tuple, int] = {}
    grounded = set()
    for clause in ground(clauses):
        grounded.add(
            frozenset(
                numbers.setdefault((lit.predicate, lit.args), len(numbers) + 1) * (1 if lit.positive else -1)
                for lit in clause
            )
        )
        if len(grounded) > MAX_GROUND_CLAUSES:
            raise ValueError(f"more than {MAX_GROUND_CLAUSES} ground clauses")
    return _dpll(sorted(grounded, key=sorted))


def _dpll(clauses: list[frozenset[int]]) -> bool:
    while True:
        if not clauses:
            return True
        if frozenset() in clauses:
            return False
        unit = next((clause for clause in clauses if len(clause) == 1), None)
        if unit is None:
            break
        clauses = _assume(clauses, next(iter(unit)))
    choice = min(clauses[0])
    return _dpll(_assume(clauses, choice)) or _dpll(_assume(clauses, -choice))


def _assume(clauses: list[frozenset[int]], literal: int) -> list[frozenset[int]]:
    return [clause - {-literal} for clause in clauses if literal not in clause]


def matches(pattern: Literal, fact: Literal, binding: Binding) -> Binding | None:
    """`binding` extended so that `pattern` becomes the ground `fact`, or None."""
    if (pattern.predicate, pattern.positive, len(pattern.args)) != (fact.predicate, fact.positive, len(fact.args)):
        return None
    binding = dict(binding)
    for variable, value in zip(pattern.args, fact.args, strict=True):
        if variable not in VARIABLES and variable != value:
            return None
        if variable in VARIABLES and binding.setdefault(variable, value) != value:
            return None
    return binding


def consequences(rule: Formula, fact: Literal, known: Iterable[Literal]) -> list[Literal]:
    """What `rule` yields when `fact` meets one of its conditions and `known` facts meet the others."""
    known = list(known)
    found: dict[Literal, None] = {}
    for index, condition in enumerate(rule.body):
        binding = matches(condition, fact, {})
        if binding is not None:
            others = () if rule.connective == "or" else rule.body[:index] + rule.body[index + 1 :]
            for complete in _satisfy(others, known, binding):
                found[rule.head.bind(complete)] = None
    return [literal for literal in found if literal.is_ground()]


def _satisfy(conditions: tuple[Literal, ...], known: list[Literal], binding: Binding) -> Iterator[Binding]:
    if not conditions:
        yield binding
        return
    for fact in known:
        extended = matches(conditions[0], fact, binding)
        if extended is not None:
            yield from _satisfy(conditions[1:], known, extended)


def canonical_form(premises: Iterable[Formula], goal: Formula) -> str:
    """A hash that is equal for theories which differ only in symbols, variable names and order.

    Weisfeiler-Lehman colour refinement over predicates and constants: isomorphic theories always agree, so splits
    by this hash never share a structure.
    """
    formulas = [(f, "premise") for f in premises] + [(goal, "goal")]
    symbols = {s for f, _ in formulas for lit in f.literals() for s in (lit.predicate, *lit.args)} - set(VARIABLES)
    colours = dict.fromkeys(symbols, "")
    for _ in range(4):
        colours = {
            s: _digest(colours[s] + str(sorted(_coloured(f, role, colours, s) for f, role in formulas)))
            for s in symbols
        }
    return _digest(str(sorted(_coloured(f, role, colours, None) for f, role in formulas)))


def _coloured(formula: Formula, role: str, colours: dict[str, str], marked: str | None) -> str:
    def symbol(name: str) -> str:
        return "*" if name == marked else colours.get(name, "v")

    def literal(lit: Literal) -> str:
        return f"{lit.positive}{symbol(lit.predicate)}({','.join(map(symbol, lit.args))})"

    body = sorted(map(literal, formula.body))
    head = formula.head and literal(formula.head)
    connective = formula.connective if len(body) > 1 else "and"
    return f"{role}:{connective}{body}{head}{formula.exists}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]

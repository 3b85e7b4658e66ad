"""Function-free first-order logic: formulas, a complete decider, and forward chaining.

A formula is a fact, a disjunction of facts, an existential fact, or a universally quantified rule:

    cat(Tom)     not cat(Tom)     cat(Tom) or dog(Tom)     exists x. cat(x) and small(x)
    cat(x) -> mammal(x)     small(x) and not wild(x) -> pet(x)     cat(x) or dog(x) -> pet(x)

x, y and z are variables, every other name a constant. Without function symbols this is the Bernays-Schoenfinkel
class: Skolem constants, grounding over the constants and DPLL decide it completely. Formulas come from models, so
their size is bounded: the work of a decision grows with names to the power of variables. Knows nothing of English.
"""

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import permutations, product
from typing import Literal as OneOf
from typing import Self

Label = OneOf["True", "False", "Unknown"]
Binding = dict[str, str]
VARIABLES = ("x", "y", "z")
MAX_ARGUMENTS = 3
MAX_LITERALS = 8
MAX_GROUND_CLAUSES = 10_000
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

    def negated(self) -> Self:
        return replace(self, positive=not self.positive)

    def bind(self, binding: Binding) -> Self:
        return replace(self, args=tuple(binding.get(arg, arg) for arg in self.args))


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
            return f"exists {_variables(self.body)[0]}. {text}"
        return text if self.head is None else f"{text} -> {self.head}"

    def about(self, name: str) -> tuple[Literal, ...]:
        """The body with `name` in place of its variables."""
        return tuple(literal.bind(dict.fromkeys(VARIABLES, name)) for literal in self.body)

    def denied(self) -> Self:
        """That the body holds of nobody: "not a or not b" for "a and b"."""
        return Formula(tuple(literal.negated() for literal in self.body), "or" if self.connective == "and" else "and")

    def contrapositive(self) -> Self:
        """not head -> not body, of a rule with one condition."""
        return Formula((self.head.negated(),), "and", self.body[0].negated())

    def without(self, part: Literal) -> Self:
        """What is left of a disjunction when one part of it does not hold."""
        rest = tuple(literal for literal in self.body if literal != part)
        return Formula(rest, "or" if len(rest) > 1 else "and")

    def literals(self) -> tuple[Literal, ...]:
        return self.body if self.head is None else (*self.body, self.head)

    def same_as(self, other: Self) -> bool:
        """Equal up to the order of the body, the names of variables and repeated literals."""
        return _normal_form(self) == _normal_form(other)


def parse_formula(text: str) -> Formula:
    """Read one formula; raises ValueError with one line that says what is wrong."""
    text = text.strip().rstrip(".")
    exists = _EXISTS.fullmatch(text)
    bound, text = exists.groups() if exists else (None, text)
    left, arrow, right = text.partition("->")
    if " and " in left and " or " in left:
        raise ValueError("mix of 'and' and 'or'; use one of them")
    connective = "or" if " or " in left else "and"
    parts = left.split(f" {connective} ")
    if len(parts) > MAX_LITERALS:
        raise ValueError(f"at most {MAX_LITERALS} statements may be joined by '{connective}', got {len(parts)}")
    body, head = tuple(map(parse_literal, parts)), parse_literal(right) if arrow else None
    used = set(_variables(body))
    loose = [arg for arg in head.args if arg in VARIABLES and arg not in used] if head else []
    if head and bound:
        raise ValueError("an existential rule is not allowed")
    if loose:
        raise ValueError(f"variable {loose[0]} is not in the rule's condition")
    if not head and used - {bound}:
        raise ValueError(f"a fact needs a name, not the variable {min(used - {bound})}")
    if bound and bound not in used:
        raise ValueError(f"exists {bound} binds nothing")
    return Formula(body, connective, head, bound is not None)


def parse_literal(text: str) -> Literal:
    """Read `cat(Tom)` or `not likes(x, Ann)`; raises ValueError."""
    match = _ATOM.fullmatch(text.strip())
    if match is None:
        raise ValueError(f'cannot read "{text.strip()[:40]}"; write for example not cat(Tom)')
    negation, predicate, listed = match.groups()
    arguments = tuple(argument.strip() for argument in listed.split(","))
    if len(arguments) > MAX_ARGUMENTS:
        raise ValueError(f"{predicate[:40]} may speak of at most {MAX_ARGUMENTS} names, got {len(arguments)}")
    return Literal(predicate, arguments, negation is None)


@lru_cache(maxsize=4096)
def _normal_form(formula: Formula) -> str:
    """The least text over all renamings of the (at most three) variables."""
    used = _variables(formula.literals())

    def renamed(names: tuple[str, ...]) -> str:
        binding = dict(zip(used, names, strict=True))
        body = tuple(sorted({literal.bind(binding) for literal in formula.body}))
        return str(replace(formula, body=body, head=formula.head and formula.head.bind(binding)))

    return min(map(renamed, permutations(VARIABLES[: len(used)])))


def _variables(literals: Iterable[Literal]) -> list[str]:
    return sorted({arg for literal in literals for arg in literal.args if arg in VARIABLES})


def decide(premises: Sequence[Formula], goal: Formula) -> Label:
    """Whether the premises entail `goal` (True), its negation (False) or neither (Unknown).

    `goal` is any formula but a rule. Raises ValueError when the premises contradict each other.
    """
    if not is_consistent(premises):
        raise ValueError("the premises contradict each other")
    if not is_consistent([*premises, goal.denied()]):
        return "True"
    return "Unknown" if is_consistent([*premises, goal]) else "False"


def is_consistent(premises: Iterable[Formula]) -> bool:
    """Whether some model satisfies all premises."""
    return satisfiable(to_clauses(premises))


def to_clauses(formulas: Iterable[Formula]) -> tuple[Clause, ...]:
    """Clauses (implicitly universally quantified); existential variables become fresh Skolem constants."""
    clauses: list[Clause] = []
    for index, formula in enumerate(formulas):
        said, then = (formula, ()) if formula.head is None else (formula.denied(), (formula.head,))
        literals = said.about(f"_s{index}") if said.exists else said.body
        joined = [literals] if said.connective == "or" else [[literal] for literal in literals]
        clauses += [frozenset([*alternatives, *then]) for alternatives in joined]
    return tuple(clauses)


def ground(clauses: Collection[Clause]) -> Iterator[Clause]:
    """Every instance of every clause over the constants that occur (one invented constant when none does)."""
    constants = sorted({arg for clause in clauses for lit in clause for arg in lit.args if arg not in VARIABLES})
    for clause in clauses:
        variables = _variables(clause)
        for values in product(constants or ["_c"], repeat=len(variables)):
            binding = dict(zip(variables, values, strict=True))
            yield frozenset(literal.bind(binding) for literal in clause)


@lru_cache(maxsize=1024)  # the same premises are asked about many goals
def satisfiable(clauses: tuple[Clause, ...]) -> bool:
    """Complete satisfiability by grounding and DPLL. Raises ValueError beyond `MAX_GROUND_CLAUSES`."""
    numbers: dict[tuple, int] = {}
    grounded = set()
    for clause in ground(clauses):
        atoms = [(numbers.setdefault((lit.predicate, lit.args), len(numbers) + 1), lit.positive) for lit in clause]
        grounded.add(frozenset(number if positive else -number for number, positive in atoms))
        if len(grounded) > MAX_GROUND_CLAUSES:
            raise ValueError(f"more than {MAX_GROUND_CLAUSES} ground clauses")
    cases = [sorted(grounded, key=sorted)]
    while cases and (clauses := cases.pop()):  # a case in which no clause is left is a model
        if shortest := min(clauses, key=len):  # an empty clause cannot be met
            literals = shortest if len(shortest) == 1 else (-min(shortest), min(shortest))
            cases += [[clause - {-literal} for clause in clauses if literal not in clause] for literal in literals]
    return not clauses


def matches(pattern: Literal, fact: Literal, binding: Binding) -> Binding | None:
    """`binding` extended so that `pattern` becomes the ground `fact`, or None."""
    if (pattern.predicate, pattern.positive, len(pattern.args)) != (fact.predicate, fact.positive, len(fact.args)):
        return None
    binding = dict(binding)
    for variable, value in zip(pattern.args, fact.args, strict=True):
        if (binding.setdefault(variable, value) if variable in VARIABLES else variable) != value:
            return None
    return binding


def consequences(rule: Formula, fact: Literal, known: Collection[Literal]) -> list[Literal]:
    """What `rule` yields when `fact` meets one of its conditions and `known` facts meet the others."""
    found: dict[Literal, None] = {}  # a set in order
    for index, condition in enumerate(rule.body):
        bindings = [matches(condition, fact, {})]
        for other in () if rule.connective == "or" else rule.body[:index] + rule.body[index + 1 :]:
            bindings = [matches(other, met, binding) for binding in bindings if binding is not None for met in known]
        found |= dict.fromkeys(rule.head.bind(binding) for binding in bindings if binding is not None)
    return [literal for literal in found if not _variables([literal])]


def canonical_form(premises: Iterable[Formula], goal: Formula) -> str:
    """A hash that is equal for theories which differ only in symbols, variable names and order.

    By Weisfeiler-Lehman colour refinement over predicates and constants: splits by it never share a structure.
    """
    formulas = [(f, "premise") for f in premises] + [(goal, "goal")]
    symbols = {s for f, _ in formulas for lit in f.literals() for s in (lit.predicate, *lit.args)} - set(VARIABLES)
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
        predicate, *args = (colours.get(symbol, "v") for symbol in (lit.predicate, *lit.args))
        return f"{lit.positive}{predicate}({','.join(args)})"

    body, head = sorted(map(literal, formula.body)), formula.head and literal(formula.head)
    connective = formula.connective if len(body) > 1 else "and"
    return f"{role}:{connective}{body}{head}{formula.exists}"

"""First-order formulas as a specification: what is read, what is the same, and what follows (z3 agrees)."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcdpo_utils.tasks.logic.formulas import (
    VARIABLE,
    Formula,
    Literal,
    canonical_form,
    consequence,
    decide,
    is_consistent,
    parse_formula,
    parse_literal,
)
from fcdpo_utils.tools import ToolError

PREDICATES = ("cat", "dog", "kind", "old")
NAMES = ("Tom", "Ann", "Bob")
Z3_THEORIES = 1_500


def theory(*texts: str) -> list[Formula]:
    return [parse_formula(text) for text in texts]


def error_of(text: str) -> str:
    """The line of the error that parsing `text` raises."""
    with pytest.raises(ToolError) as caught:
        parse_formula(text)
    return str(caught.value)


# Random formulas of the whole fragment; the source of randomness may be hypothesis's own


def random_literal(rng: random.Random, name: str) -> Literal:
    """A third of them negated."""
    return Literal(rng.choice(PREDICATES), name, rng.random() < 2 / 3)


def random_rule(rng: random.Random) -> Formula:
    """One to three conditions about x and, some of them, a name, joined by and / or."""
    first, *others = (random_literal(rng, VARIABLE) for _ in range(rng.choice((1, 1, 2, 3))))
    body = [first, *(replace(literal, name=rng.choice((VARIABLE, *NAMES))) for literal in others)]
    rng.shuffle(body)
    return Formula(tuple(body), rng.choice(("and", "or")) if others else "and", random_literal(rng, VARIABLE))


def random_fact(rng: random.Random) -> Formula:
    return Formula((random_literal(rng, rng.choice(NAMES)),))


def random_formula(rng: random.Random) -> Formula:
    return random_rule(rng) if rng.random() < 0.5 else random_fact(rng)


def random_theory(rng: random.Random) -> tuple[list[Formula], Formula]:
    """Up to eight premises and a goal."""
    return [random_formula(rng) for _ in range(rng.randint(1, 8))], random_fact(rng)


def renamed_literal(literal: Literal, names: dict[str, str]) -> Literal:
    name, predicate = (names.get(symbol, symbol) for symbol in (literal.name, literal.predicate))
    return Literal(predicate, name, literal.positive)


def renamed(formula: Formula, names: dict[str, str], rng: random.Random) -> Formula:
    """`formula` with symbols renamed and its body shuffled."""
    body = [renamed_literal(literal, names) for literal in formula.body]
    rng.shuffle(body)
    return Formula(tuple(body), formula.connective, formula.head and renamed_literal(formula.head, names))


randoms = st.randoms(use_true_random=False)
formulas = randoms.map(random_formula)
theories = randoms.map(random_theory)


# Reading and printing


@pytest.mark.parametrize(
    ("text", "formula"),
    [
        ("cat(Tom)", Formula((Literal("cat", "Tom"),))),
        ("not cat(Tom)", Formula((Literal("cat", "Tom", False),))),
        ("cat(x) -> dog(x)", Formula((Literal("cat", "x"),), "and", Literal("dog", "x"))),
        ("cat(z) -> dog(y)", Formula((Literal("cat", "x"),), "and", Literal("dog", "x"))),
        (
            "cat(x) and not dog(x) -> kind(x)",
            Formula((Literal("cat", "x"), Literal("dog", "x", False)), "and", Literal("kind", "x")),
        ),
        (
            "cat(x) or dog(Tom) -> not kind(x)",
            Formula((Literal("cat", "x"), Literal("dog", "Tom")), "or", Literal("kind", "x", False)),
        ),
    ],
)
def test_each_kind_of_formula_is_read(text: str, formula: Formula) -> None:
    assert parse_formula(text) == formula


@given(formulas)
def test_a_printed_formula_is_read_back_as_it_was(formula: Formula) -> None:
    assert parse_formula(str(formula)) == formula


@pytest.mark.parametrize("text", ["  cat( Tom )  ", "cat(Tom).", "cat(Tom) ."])
def test_spaces_and_a_final_dot_do_not_matter(text: str) -> None:
    assert str(parse_formula(text)) == "cat(Tom)"


@pytest.mark.parametrize(
    "text",
    ["", "cat", "cat()", "cat(Tom", "Cat(Tom)", "cat(Tom) dog(Tom)", "no cat(Tom)", "not not cat(Tom)", "cat(1)"]
    + ["cat(Tom) & dog(Tom)", "all x. cat(x)", "cat(Tom,)", "kätzchen(Tom)", "cat(dog(Tom))"]
    + ["likes(Tom, Ann)", "exists x. cat(x)"],
)
def test_text_that_is_no_formula_is_quoted_with_an_example(text: str) -> None:
    assert error_of(text) == f'cannot read "{text}"; write for example not cat(Tom)'


def test_only_the_unreadable_part_is_quoted() -> None:
    assert error_of("cat(x) -> dog(x) -> kind(x)") == 'cannot read "dog(x) -> kind(x)"; write for example not cat(Tom)'


def test_at_most_forty_characters_are_quoted() -> None:
    assert error_of("z" * 90) == f'cannot read "{"z" * 40}"; write for example not cat(Tom)'


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("cat(x) and dog(x) or kind(x) -> old(x)", "mix of 'and' and 'or'; use one of them"),
        ("cat(Tom) -> dog(y)", "the variable of the conclusion is not in the rule's condition"),
        ("cat(x)", "a fact needs a name, not a variable"),
        ("cat(Tom) or dog(Tom)", "only a rule joins statements by 'or'"),
        ("cat(x) and dog(x)", "only a rule joins statements by 'and'"),
        (" or ".join(["cat(Tom)"] * 9), "at most 8 statements may be joined by 'or', got 9"),
        (" and ".join(["cat(x)"] * 90) + " -> dog(x)", "at most 8 statements may be joined by 'and', got 90"),
    ],
)
def test_a_formula_outside_the_fragment_is_refused_with_its_line(text: str, line: str) -> None:
    assert error_of(text) == line


@given(st.text(max_size=60).filter(str.isprintable) | st.text(alphabet="catx yz()->,.notexistandorT", max_size=60))
def test_any_printable_text_is_a_formula_or_one_error_line(text: str) -> None:
    try:
        assert isinstance(parse_formula(text), Formula)
    except ToolError as error:
        assert len(str(error).splitlines()) == 1


def test_a_literal_denied_twice_is_itself() -> None:
    literal = parse_literal("not kind(Ann)")
    assert str(literal.negated()) == "kind(Ann)"
    assert literal.negated().negated() == literal


# The same formula


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("cat(x) and dog(x) -> kind(x)", "dog(x) and cat(x) -> kind(x)"),
        ("cat(x) -> kind(x)", "cat(z) -> kind(z)"),
        ("cat(x) and cat(x) -> kind(x)", "cat(x) -> kind(x)"),
        ("cat(x) or cat(x) -> kind(x)", "cat(y) -> kind(y)"),
        ("cat(x) or dog(Ann) -> kind(x)", "dog(Ann) or cat(z) -> kind(z)"),
    ],
)
def test_order_variable_names_and_repetition_do_not_make_a_difference(first: str, second: str) -> None:
    assert parse_formula(first).same_as(parse_formula(second))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("cat(x) -> kind(x)", "kind(x) -> cat(x)"),
        ("cat(x) -> kind(x)", "cat(x) -> not kind(x)"),
        ("cat(x) -> kind(x)", "cat(Tom) -> kind(Tom)"),
        ("cat(x) and dog(x) -> kind(x)", "cat(x) or dog(x) -> kind(x)"),
        ("cat(x) and dog(x) -> kind(x)", "cat(x) and dog(Tom) -> kind(x)"),
        ("cat(Tom)", "cat(Ann)"),
        ("cat(Tom)", "not cat(Tom)"),
    ],
)
def test_different_formulas_are_not_the_same(first: str, second: str) -> None:
    assert not parse_formula(first).same_as(parse_formula(second))


@given(formulas, randoms)
def test_a_formula_is_the_same_with_its_body_shuffled(formula: Formula, rng: random.Random) -> None:
    other = renamed(formula, {}, rng)
    assert formula.same_as(other) and other.same_as(formula)


# What follows


@pytest.mark.parametrize(
    ("premises", "goal", "label"),
    [
        (["cat(Tom)"], "cat(Tom)", "True"),
        (["cat(Tom)"], "not cat(Tom)", "False"),
        (["cat(Tom)"], "cat(Ann)", "Unknown"),
        ([], "cat(Tom)", "Unknown"),
        (["cat(x) -> kind(x)", "cat(Tom)"], "kind(Tom)", "True"),
        (["cat(x) -> kind(x)", "not kind(Tom)"], "cat(Tom)", "False"),
        (["cat(x) -> kind(x)", "kind(Tom)"], "cat(Tom)", "Unknown"),
        (["cat(x) -> kind(x)", "not cat(x) -> kind(x)"], "kind(Tom)", "True"),
        (["cat(x) or dog(x) -> kind(x)", "not kind(Tom)"], "dog(Tom)", "False"),
        (["cat(x) -> dog(x)", "cat(x) -> not dog(x)"], "cat(Tom)", "False"),
        (["cat(Tom) and dog(x) -> kind(x)", "cat(Tom)", "dog(Ann)"], "kind(Ann)", "True"),
    ],
)
def test_a_goal_is_decided(premises: list[str], goal: str, label: str) -> None:
    assert decide(theory(*premises), parse_formula(goal)) == label


@pytest.mark.parametrize(
    "premises",
    [
        ["cat(Tom)", "not cat(Tom)"],
        ["cat(x) -> dog(x)", "cat(Tom)", "not dog(Tom)"],
        ["cat(x) -> not cat(x)", "not cat(x) -> cat(x)"],
    ],
)
def test_premises_that_contradict_each_other_decide_nothing(premises: list[str]) -> None:
    with pytest.raises(ToolError) as caught:
        decide(theory(*premises), parse_formula("kind(Ann)"))
    assert str(caught.value) == "the premises contradict each other"
    assert not is_consistent(theory(*premises))


@given(theories)
@settings(deadline=None)
def test_the_order_of_the_premises_does_not_change_the_label(case: tuple[list[Formula], Formula]) -> None:
    premises, goal = case
    if is_consistent(premises):
        assert decide(premises, goal) == decide(premises[::-1], goal)


@given(theories)
@settings(deadline=None)
def test_what_is_true_stays_true_with_another_consistent_premise(case: tuple[list[Formula], Formula]) -> None:
    (*premises, new), goal = case
    if is_consistent([*premises, new]) and decide(premises, goal) != "Unknown":
        assert decide([*premises, new], goal) == decide(premises, goal)


# The same labels as z3's, over an uninterpreted sort: domains of any size


class Z3Oracle:
    """`decide` by z3. The fragment is decidable for it, so that "unknown" is a failure."""

    def __init__(self) -> None:
        self.z3 = pytest.importorskip("z3")
        self.thing = self.z3.DeclareSort("Thing")
        self.solver = self.z3.Solver()
        self.solver.set("timeout", 5_000)

    def decide(self, premises: list[Formula], goal: Formula) -> str:
        self.solver.push()
        try:
            self.solver.add(*map(self.formula, premises))
            if not self.satisfiable(self.z3.BoolVal(True)):
                return "contradiction"
            if not self.satisfiable(self.z3.Not(self.formula(goal))):
                return "True"
            return "Unknown" if self.satisfiable(self.formula(goal)) else "False"
        finally:
            self.solver.pop()

    def satisfiable(self, extra) -> bool:
        answer = self.solver.check(extra)
        assert answer != self.z3.unknown, self.solver.reason_unknown()
        return answer == self.z3.sat

    def formula(self, formula: Formula):
        if formula.head is None:
            return self.literal(formula.body[0])
        join = self.z3.And if formula.connective == "and" else self.z3.Or
        matrix = self.z3.Implies(join(*map(self.literal, formula.body)), self.literal(formula.head))
        return self.z3.ForAll([self.z3.Const(VARIABLE, self.thing)], matrix)

    def literal(self, literal: Literal):
        symbol = self.z3.Function(literal.predicate, self.thing, self.z3.BoolSort())
        atom = symbol(self.z3.Const(literal.name, self.thing))
        return atom if literal.positive else self.z3.Not(atom)


def our_label(premises: list[Formula], goal: Formula) -> str:
    try:
        return decide(premises, goal)
    except ToolError as error:
        assert str(error) == "the premises contradict each other"
        return "contradiction"


def test_z3_agrees_on_fifteen_hundred_random_theories() -> None:
    oracle, labels = Z3Oracle(), Counter()
    for seed in range(Z3_THEORIES):
        premises, goal = random_theory(random.Random(f"z3/{seed}"))
        label = oracle.decide(premises, goal)
        assert our_label(premises, goal) == label, (seed, list(map(str, premises)), str(goal))
        labels[label] += 1
    assert min(labels[name] for name in ("True", "False", "Unknown", "contradiction")) >= 100, labels


# Single steps


@pytest.mark.parametrize(
    ("rule", "known", "found"),
    [
        ("cat(x) -> kind(x)", ["cat(Tom)"], "kind(Tom)"),
        ("cat(x) -> kind(x)", ["not cat(Tom)"], None),
        ("cat(x) and dog(x) -> kind(x)", ["cat(Tom)"], None),
        ("cat(x) and dog(x) -> kind(x)", ["cat(Tom)", "dog(Ann)"], None),
        ("cat(x) and dog(x) -> kind(x)", ["cat(Tom)", "dog(Tom)"], "kind(Tom)"),
        ("dog(x) and cat(x) -> kind(x)", ["cat(Tom)", "dog(Tom)"], "kind(Tom)"),
        ("cat(x) or dog(x) -> kind(x)", ["cat(Tom)"], "kind(Tom)"),
        ("cat(Ann) -> kind(Ann)", ["cat(Tom)"], None),
        ("cat(x) and dog(Ann) -> kind(x)", ["cat(Tom)", "dog(Ann)"], "kind(Tom)"),
    ],
)
def test_a_rule_applied_to_the_first_fact_yields(rule: str, known: list[str], found: str | None) -> None:
    facts = [parse_literal(text) for text in known]
    assert consequence(parse_formula(rule), facts[0], facts) == (found and parse_literal(found))


@given(randoms)
@settings(deadline=None)
def test_what_a_rule_yields_is_entailed(rng: random.Random) -> None:
    rule, facts = random_rule(rng), [random_literal(rng, rng.choice(NAMES)) for _ in range(4)]
    premises = [rule, *(Formula((fact,)) for fact in facts)]
    if found := consequence(rule, facts[0], facts):
        assert not is_consistent([*premises, Formula((found.negated(),))])


# The canonical form


def symbols_renamed(rng: random.Random) -> dict[str, str]:
    predicates, names = PREDICATES, NAMES
    new_names = rng.sample(("Zoe", "Max", "tom", "Ann", "Tom"), len(names))
    new_predicates = rng.sample(("dog", "cat", "old", "likes", "wise", "tall"), len(predicates))
    return dict(zip((*predicates, *names), (*new_predicates, *new_names), strict=True))


@given(theories, randoms)
@settings(deadline=None)
def test_the_canonical_form_is_blind_to_symbols_and_order(
    case: tuple[list[Formula], Formula], rng: random.Random
) -> None:
    premises, goal = case
    names = symbols_renamed(rng)
    others = [renamed(premise, names, rng) for premise in premises]
    rng.shuffle(others)
    assert canonical_form(others, renamed(goal, names, rng)) == canonical_form(premises, goal)


@pytest.mark.parametrize(
    ("premises", "goal"),
    [
        (["cat(x) -> dog(x)", "cat(Tom)"], "not dog(Tom)"),
        (["cat(x) -> dog(x)", "cat(Tom)"], "cat(Tom)"),
        (["cat(x) -> dog(x)", "cat(Tom)"], "dog(Ann)"),
        (["cat(x) -> dog(x)", "not cat(Tom)"], "dog(Tom)"),
        (["dog(x) -> cat(x)", "cat(Tom)"], "dog(Tom)"),
        (["cat(x) -> dog(x)"], "dog(Tom)"),
        (["cat(x) -> dog(x)", "cat(Tom)", "kind(Tom)"], "dog(Tom)"),
        (["cat(Tom) -> dog(Tom)", "cat(Tom)"], "dog(Tom)"),
    ],
)
def test_the_canonical_form_tells_theories_of_another_structure_apart(premises: list[str], goal: str) -> None:
    reference = canonical_form(theory("cat(x) -> dog(x)", "cat(Tom)"), parse_formula("dog(Tom)"))
    assert canonical_form(theory(*premises), parse_formula(goal)) != reference

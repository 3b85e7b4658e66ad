"""First-order formulas as a specification: what is read, what is the same, and what follows (z3 agrees)."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcdpo_utils.tasks.logic import formulas as logic
from fcdpo_utils.tasks.logic.formulas import (
    VARIABLES,
    Formula,
    Literal,
    canonical_form,
    consequences,
    decide,
    is_consistent,
    matches,
    parse_formula,
    parse_literal,
    satisfiable,
    to_clauses,
)

PREDICATES = ("cat", "dog", "kind")
NAMES = ("Tom", "Ann", "Bob")
Z3_THEORIES = 1_500


def theory(*texts: str) -> list[Formula]:
    return [parse_formula(text) for text in texts]


def error_of(text: str) -> str:
    """The line of the error that parsing `text` raises."""
    with pytest.raises(ValueError) as caught:
        parse_formula(text)
    return str(caught.value)


# Random formulas of the whole fragment; the source of randomness may be hypothesis's own


def random_literal(rng: random.Random, terms: tuple[str, ...]) -> Literal:
    """Unary or (a quarter) binary, a third of them negated; its first argument is the first of `terms`."""
    positive = rng.random() < 2 / 3
    if rng.random() < 0.25:
        return Literal("likes", (terms[0], rng.choice((*terms, rng.choice(NAMES)))), positive)
    return Literal(rng.choice(PREDICATES), (terms[0],), positive)


def random_rule(rng: random.Random) -> Formula:
    """One to three conditions over x and sometimes y, joined by and / or."""
    body = [random_literal(rng, ("x",)) for _ in range(rng.choice((1, 1, 2, 3)))]
    if rng.random() < 0.25:
        body[-1] = Literal("likes", ("x", "y"), rng.random() < 2 / 3)
    bound = tuple(sorted({arg for literal in body for arg in literal.args if arg in VARIABLES}))
    head = random_literal(rng, (rng.choice(bound), *bound))
    return Formula(tuple(body), rng.choice(("and", "or")) if len(body) > 1 else "and", head)


def random_fact(rng: random.Random) -> Formula:
    """A ground literal, a disjunction or conjunction of two or three, or somebody unnamed with one or two qualities."""
    if rng.random() < 0.2:
        body = tuple(random_literal(rng, ("x",)) for _ in range(rng.choice((1, 2))))
        return Formula(body, rng.choice(("and", "or")) if len(body) > 1 else "and", exists=True)
    size = rng.choice((1, 1, 1, 2, 3))
    body = tuple(random_literal(rng, (rng.choice(NAMES),)) for _ in range(size))
    return Formula(body, rng.choice(("and", "or", "or")) if size > 1 else "and")


def random_formula(rng: random.Random) -> Formula:
    return random_rule(rng) if rng.random() < 0.5 else random_fact(rng)


def random_theory(rng: random.Random) -> tuple[list[Formula], Formula]:
    """Up to eight premises and a goal."""
    return [random_formula(rng) for _ in range(rng.randint(1, 8))], random_fact(rng)


def renamed_literal(literal: Literal, names: dict[str, str]) -> Literal:
    args = tuple(names.get(arg, arg) for arg in literal.args)
    return Literal(names.get(literal.predicate, literal.predicate), args, literal.positive)


def renamed(formula: Formula, names: dict[str, str], rng: random.Random) -> Formula:
    """`formula` with symbols (and, in a rule or an existential, variables) renamed and its body shuffled."""
    shuffled = rng.sample(VARIABLES, 3)
    names = names | dict(zip(VARIABLES, shuffled, strict=True))
    body = [renamed_literal(literal, names) for literal in formula.body]
    rng.shuffle(body)
    return Formula(
        tuple(body), formula.connective, formula.head and renamed_literal(formula.head, names), formula.exists
    )


randoms = st.randoms(use_true_random=False)
formulas = randoms.map(random_formula)
theories = randoms.map(random_theory)


# Reading and printing


@pytest.mark.parametrize(
    ("text", "formula"),
    [
        ("cat(Tom)", Formula((Literal("cat", ("Tom",)),))),
        ("not cat(Tom)", Formula((Literal("cat", ("Tom",), False),))),
        ("likes(Tom, Ann)", Formula((Literal("likes", ("Tom", "Ann")),))),
        ("cat(Tom) or dog(Tom)", Formula((Literal("cat", ("Tom",)), Literal("dog", ("Tom",))), "or")),
        ("exists x. cat(x)", Formula((Literal("cat", ("x",)),), exists=True)),
        ("cat(x) -> dog(x)", Formula((Literal("cat", ("x",)),), "and", Literal("dog", ("x",)))),
        (
            "cat(x) and not dog(x) -> kind(x)",
            Formula((Literal("cat", ("x",)), Literal("dog", ("x",), False)), "and", Literal("kind", ("x",))),
        ),
        (
            "cat(x) or dog(x) -> not kind(x)",
            Formula((Literal("cat", ("x",)), Literal("dog", ("x",))), "or", Literal("kind", ("x",), False)),
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


@pytest.mark.parametrize("text", ["likes(Tom,Ann)", "likes( Tom ,  Ann )"])
def test_arguments_are_printed_with_a_comma_and_a_space(text: str) -> None:
    assert str(parse_formula(text)) == "likes(Tom, Ann)"


@pytest.mark.parametrize(
    "text",
    ["", "cat", "cat()", "cat(Tom", "Cat(Tom)", "cat(Tom) dog(Tom)", "no cat(Tom)", "not not cat(Tom)", "cat(1)"]
    + ["cat(Tom) & dog(Tom)", "all x. cat(x)", "cat(Tom,)", "kätzchen(Tom)", "cat(dog(Tom))"],
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
        ("exists x. cat(x) -> dog(x)", "an existential rule is not allowed"),
        ("cat(x) -> dog(y)", "variable y is not in the rule's condition"),
        ("cat(Tom) -> likes(Tom, z)", "variable z is not in the rule's condition"),
        ("cat(x)", "a fact needs a name, not the variable x"),
        ("exists x. likes(x, y)", "a fact needs a name, not the variable y"),
        ("exists x. cat(Tom)", "exists x binds nothing"),
        ("likes(Tom, Ann, Bob, Tom)", "likes may speak of at most 3 names, got 4"),
        (f"not cat({', '.join(NAMES * 50)})", "cat may speak of at most 3 names, got 150"),
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
    except ValueError as error:
        assert len(str(error).splitlines()) == 1


def test_a_literal_denied_twice_is_itself() -> None:
    literal = parse_literal("not likes(x, Ann)")
    assert str(literal.negated()) == "likes(x, Ann)"
    assert literal.negated().negated() == literal


# The same formula


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("cat(x) and dog(x) -> kind(x)", "dog(x) and cat(x) -> kind(x)"),
        ("cat(x) -> kind(x)", "cat(z) -> kind(z)"),
        ("likes(x, y) and cat(y) -> kind(x)", "cat(x) and likes(y, x) -> kind(y)"),
        ("cat(x) and cat(x) -> kind(x)", "cat(x) -> kind(x)"),
        ("cat(x) or cat(x) -> kind(x)", "cat(y) -> kind(y)"),
        ("cat(Tom) or dog(Ann)", "dog(Ann) or cat(Tom)"),
        ("exists x. cat(x) and dog(x)", "exists y. dog(y) and cat(y)"),
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
        ("cat(x) and dog(x) -> kind(x)", "cat(x) and dog(y) -> kind(x)"),
        ("likes(x, y) -> kind(x)", "likes(x, y) -> kind(y)"),
        ("likes(x, y) -> kind(x)", "likes(x, x) -> kind(x)"),
        ("cat(Tom)", "cat(Ann)"),
        ("cat(Tom)", "exists x. cat(x)"),
        ("likes(Tom, Ann)", "likes(Ann, Tom)"),
    ],
)
def test_different_formulas_are_not_the_same(first: str, second: str) -> None:
    assert not parse_formula(first).same_as(parse_formula(second))


@given(formulas, randoms)
def test_a_formula_is_the_same_with_its_variables_renamed_and_its_body_shuffled(
    formula: Formula, rng: random.Random
) -> None:
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
        (["cat(Tom) or dog(Tom)", "cat(x) -> kind(x)", "dog(x) -> kind(x)"], "kind(Tom)", "True"),
        (["exists x. cat(x)", "cat(x) -> kind(x)"], "exists x. kind(x)", "True"),
        (["exists x. cat(x)"], "cat(Tom)", "Unknown"),
        (["cat(Tom)"], "exists x. cat(x)", "True"),
        (["cat(x) -> dog(x)", "cat(x) -> not dog(x)"], "exists x. cat(x)", "False"),
        (["exists x. cat(x)", "exists x. dog(x)"], "exists x. cat(x) and dog(x)", "Unknown"),
        (["cat(Tom)"], "exists x. cat(x) or dog(x)", "True"),
        (["cat(Tom)"], "cat(Tom) or dog(Tom)", "True"),
        (["not cat(Tom)", "not dog(Tom)"], "cat(Tom) or dog(Tom)", "False"),
        (["likes(x, y) -> likes(y, x)", "likes(Tom, Ann)"], "likes(Ann, Tom)", "True"),
    ],
)
def test_a_goal_is_decided(premises: list[str], goal: str, label: str) -> None:
    assert decide(theory(*premises), parse_formula(goal)) == label


@pytest.mark.parametrize(
    "premises",
    [
        ["cat(Tom)", "not cat(Tom)"],
        ["cat(x) -> dog(x)", "cat(Tom)", "not dog(Tom)"],
        ["exists x. cat(x)", "cat(x) -> dog(x)", "cat(x) -> not dog(x)"],
        ["cat(x) -> not cat(x)", "not cat(x) -> cat(x)"],
    ],
)
def test_premises_that_contradict_each_other_decide_nothing(premises: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        decide(theory(*premises), parse_formula("kind(Ann)"))
    assert str(caught.value) == "the premises contradict each other"
    assert not is_consistent(theory(*premises))


def test_an_existential_speaks_of_somebody_new_each_time() -> None:
    assert is_consistent(theory("exists x. cat(x)", "exists x. not cat(x)"))


def test_too_many_ground_clauses_are_refused_with_their_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logic, "MAX_GROUND_CLAUSES", 10)
    with pytest.raises(ValueError) as caught:
        decide(theory("likes(x, y) -> likes(y, x)", *(f"cat({name})" for name in "ABCD")), parse_formula("cat(A)"))
    assert str(caught.value) == "more than 10 ground clauses"


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
        join = self.z3.And if formula.connective == "and" else self.z3.Or
        matrix = join(*map(self.literal, formula.body))
        if formula.head is not None:
            matrix = self.z3.Implies(matrix, self.literal(formula.head))
        variables = sorted({arg for literal in formula.literals() for arg in literal.args if arg in VARIABLES})
        if not variables:
            return matrix
        quantifier = self.z3.Exists if formula.exists else self.z3.ForAll
        return quantifier([self.z3.Const(name, self.thing) for name in variables], matrix)

    def literal(self, literal: Literal):
        sorts = [self.thing] * len(literal.args) + [self.z3.BoolSort()]
        symbol = self.z3.Function(f"{literal.predicate}{len(literal.args)}", *sorts)
        atom = symbol(*(self.z3.Const(arg, self.thing) for arg in literal.args))
        return atom if literal.positive else self.z3.Not(atom)


def our_label(premises: list[Formula], goal: Formula) -> str:
    try:
        return decide(premises, goal)
    except ValueError as error:
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
    ("pattern", "fact", "binding"),
    [
        ("cat(x)", "cat(Tom)", {"x": "Tom"}),
        ("likes(x, Ann)", "likes(Tom, Ann)", {"x": "Tom"}),
        ("likes(x, Ann)", "likes(Tom, Bob)", None),
        ("likes(x, x)", "likes(Tom, Ann)", None),
        ("likes(x, x)", "likes(Tom, Tom)", {"x": "Tom"}),
        ("cat(x)", "not cat(Tom)", None),
        ("cat(x)", "dog(Tom)", None),
        ("cat(x)", "cat(Tom, Ann)", None),
        ("cat(Tom)", "cat(Tom)", {}),
    ],
)
def test_a_pattern_matches_a_fact(pattern: str, fact: str, binding: dict[str, str] | None) -> None:
    assert matches(parse_literal(pattern), parse_literal(fact), {}) == binding


def test_a_pattern_must_agree_with_what_is_bound_already() -> None:
    assert matches(parse_literal("cat(x)"), parse_literal("cat(Tom)"), {"x": "Ann"}) is None


@pytest.mark.parametrize(
    ("rule", "known", "found"),
    [
        ("cat(x) -> kind(x)", ["cat(Tom)"], ["kind(Tom)"]),
        ("cat(x) -> kind(x)", ["not cat(Tom)"], []),
        ("cat(x) and dog(x) -> kind(x)", ["cat(Tom)"], []),
        ("cat(x) and dog(x) -> kind(x)", ["cat(Tom)", "dog(Ann)"], []),
        ("cat(x) and dog(x) -> kind(x)", ["cat(Tom)", "dog(Tom)"], ["kind(Tom)"]),
        ("dog(x) and cat(x) -> kind(x)", ["cat(Tom)", "dog(Tom)"], ["kind(Tom)"]),
        ("cat(x) or dog(x) -> kind(x)", ["cat(Tom)"], ["kind(Tom)"]),
        ("cat(x) and likes(x, y) -> likes(y, x)", ["cat(Tom)", "likes(Tom, Ann)"], ["likes(Ann, Tom)"]),
        (
            "cat(x) and dog(y) -> likes(x, y)",
            ["cat(Tom)", "dog(Ann)", "dog(Bob)"],
            ["likes(Tom, Ann)", "likes(Tom, Bob)"],
        ),
        ("cat(x) or dog(y) -> likes(x, y)", ["cat(Tom)"], []),
    ],
)
def test_a_rule_applied_to_the_first_fact_yields(rule: str, known: list[str], found: list[str]) -> None:
    facts = [parse_literal(text) for text in known]
    assert list(map(str, consequences(parse_formula(rule), facts[0], facts))) == found


@given(randoms)
@settings(deadline=None)
def test_what_a_rule_yields_is_entailed(rng: random.Random) -> None:
    rule, facts = random_rule(rng), [random_literal(rng, (rng.choice(NAMES),)) for _ in range(4)]
    premises = [rule, *(Formula((fact,)) for fact in facts)]
    for literal in consequences(rule, facts[0], facts):
        denied = Formula((literal.negated(),))
        assert not satisfiable(to_clauses([*premises, denied]))


# The canonical form


def symbols_renamed(rng: random.Random) -> dict[str, str]:
    predicates, names = ("likes", *PREDICATES), NAMES
    new_names = rng.sample(("Zoe", "Max", "tom", "Ann", "Tom"), len(names))
    new_predicates = rng.sample(("dog", "cat", "old", "likes", "wise", "tall"), len(predicates))
    return dict(zip((*predicates, *names), (*new_predicates, *new_names), strict=True))


@given(theories, randoms)
@settings(deadline=None)
def test_the_canonical_form_is_blind_to_symbols_variables_and_order(
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

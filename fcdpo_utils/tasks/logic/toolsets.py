"""The functions of a logic puzzle: natural deduction, one checked step a call; or premises and a complete decider.

Every fact and rule must be a premise of the problem. Also finds the steps of a derivation, for gold chains and to know
when nothing more follows. Knows nothing of English, prompts or models.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import product
from random import Random

from fcdpo_utils.tasks.logic.formulas import Formula, Label, Literal, consequences, decide, matches, parse_formula
from fcdpo_utils.tools import ToolError, Toolset, tool


class FolTools(Toolset, ABC):
    """Shared by all toolsets: the problem's premises and the answer."""

    def __init__(self, premises: Sequence[Formula], goal: Formula):
        super().__init__()
        self.premises = tuple(premises)
        self.goal = goal

    def formalise(self, text: str) -> Formula:
        """Parse `text` and require that it is one of the problem's premises."""
        formula = _parse(text)
        if not any(formula.same_as(premise) for premise in self.premises):
            raise ToolError(f"{formula} is not stated in the problem")
        return formula

    @abstractmethod
    def solve(self, rng: Random | None) -> list[str]:
        """Gold calls from a fresh state to where the answer is known; `rng` picks among natural orders."""

    @tool('Conclude("True")')
    def Conclude(self, label: Label) -> str:
        """Answer True, False or Unknown."""
        self.answer = label
        return "Answer recorded"


class DeductionTools(FolTools):
    """Natural deduction: facts F1, F2, ... and rules R1, R2, ...; every step is checked."""

    def __init__(self, premises: Sequence[Formula], goal: Formula):
        super().__init__(premises, goal)
        self.rules: list[Formula] = []
        self.facts: list[Formula] = []

    @tool('Fact("rich(Tom)")')
    def Fact(self, text: str) -> str:
        """Record a fact of the problem."""
        fact = self.formalise(text)
        if fact.head is not None:
            raise ToolError("this is a rule; use Rule")
        if not fact.exists:
            self.facts.append(fact)
            return f"F{len(self.facts)}" + self._met_rule()
        body = fact.about(f"Someone{len(self.facts) + 1}")
        return self._record([Formula(body, "or")] if fact.connective == "or" else [Formula((lit,)) for lit in body])

    @tool('Rule("rich(x) -> kind(x)")')
    def Rule(self, text: str) -> str:
        """Record a rule of the problem."""
        rule = self.formalise(text)
        if rule.head is None:
            raise ToolError("this is a fact; use Fact")
        self.rules.append(rule)
        return f"R{len(self.rules)}" + self._state_of(rule)

    @tool('Apply("R1", "F1")')
    def Apply(self, rule: str, fact: str) -> str:
        """Apply a rule to a fact; its other conditions must be recorded."""
        applied, literal = _numbered("R", rule, self.rules), self._literal(fact)
        found = consequences(applied, literal, self.known())
        if not found:
            raise ToolError(f"{applied} does not apply to {literal}")
        return self._record([Formula((literal,)) for literal in found])

    @tool('Query("kind(Tom)")')
    def Query(self, goal: str) -> str:
        """Look up a statement: True, False, Not derived yet, or Unknown once nothing more follows."""
        return self.look_up(_parse_goal(goal))

    def look_up(self, goal: Formula) -> str:
        """What a query of the one statement `goal` says."""
        statement, known = goal.body[0], self.known()
        if any(matches(statement, fact, {}) is not None for fact in known):
            return "True"
        if not goal.exists and statement.negated() in known:
            return "False"
        return "Unknown" if self.is_exhausted() else "Not derived yet"

    def solve(self, rng: Random | None) -> list[str]:
        """The steps of a derivation, a look-up after each that may have reached the goal."""
        calls, query = [], f'Query("{self.goal}")'
        for step in derivation(self, rng):
            self.call(step)
            calls.append(step)
            if step.startswith(("Apply", "Eliminate")):
                calls.append(query)
                if self.look_up(self.goal) in ("True", "False"):
                    return calls
        return calls if calls[-1] == query else [*calls, query]

    def answer_follows(self) -> bool:
        """True and False must have been derived; Unknown needs every applicable premise applied."""
        return self.answer == self.look_up(self.goal)

    def recent(self) -> dict[int, Literal]:
        """Number -> literal of the facts, the most recent first, disjunctions left out."""
        numbered = reversed(list(enumerate(self.facts, start=1)))
        return {number: fact.body[0] for number, fact in numbered if len(fact.body) == 1}

    def known(self) -> list[Literal]:
        """The derived ground literals, disjunctions left out."""
        return [fact.body[0] for fact in self.facts if len(fact.body) == 1]

    def is_exhausted(self) -> bool:
        """Whether everything that the premises yield by these steps has been derived."""
        return reachable_facts(self.premises, type(self)) <= set(map(_anyone, self.known()))

    def _state_of(self, rule: Formula) -> str:
        """What a rule just recorded applies to, or what it lacks: a proof assistant shows its open goals too."""
        known, recent = self.known(), self.recent()
        for number, literal in recent.items():
            if yields(rule, literal, known):
                return f": applies to F{number}"
        for literal, condition in product(recent.values(), rule.body):
            binding = matches(condition, literal, {})
            if rule.connective == "and" and binding is not None:
                others = [other.bind(binding) for other in rule.body if other != condition]
                lacking = [str(other) for other in others if other not in known]
                return f": lacks {' and '.join(lacking)}" if lacking else ""
        return ""

    def _met_rule(self) -> str:
        """The most recent rule that the fact just recorded sets going, if any."""
        for number in range(len(self.rules), 0, -1) if len(self.facts[-1].body) == 1 else ():
            if yields(self.rules[number - 1], self.facts[-1].body[0], self.known()):
                return f": R{number} applies"
        return ""

    def _record(self, facts: list[Formula]) -> str:
        self.facts += facts
        first = len(self.facts) - len(facts) + 1
        return ", ".join(f"F{number}: {fact}" for number, fact in enumerate(facts, start=first))

    def _literal(self, name: str) -> Literal:
        fact = _numbered("F", name, self.facts)
        if len(fact.body) > 1:
            raise ToolError(f"{name} is a disjunction")
        return fact.body[0]


class HigherDeductionTools(DeductionTools):
    """Adds the two steps that disjunctive facts and backward rules need."""

    @tool('Contrapose("R1")')
    def Contrapose(self, rule: str) -> str:
        """Turn a -> b into not b -> not a."""
        given = _numbered("R", rule, self.rules)
        if len(given.body) > 1:
            raise ToolError(f"{rule} has more than one condition")
        self.rules.append(given.contrapositive())
        return f"R{len(self.rules)}: {self.rules[-1]}"

    @tool('Eliminate("F1", "F2")')
    def Eliminate(self, disjunction: str, fact: str) -> str:
        """From a or b and not a, conclude b."""
        given, denied = _numbered("F", disjunction, self.facts), self._literal(fact).negated()
        rest = given.without(denied)
        if len(rest.body) in (0, len(given.body)):
            raise ToolError(f"{fact} does not deny a part of {disjunction}")
        return self._record([rest])


class DecideTools(FolTools):
    """Formalise, then decide: the premises are recorded one by one and a complete decider does the logic."""

    def __init__(self, premises: Sequence[Formula], goal: Formula):
        super().__init__(premises, goal)
        self.recorded: list[Formula] = []
        self.decided: str | None = None

    @tool('Premise("rich(x) -> kind(x)")')
    def Premise(self, formula: str) -> str:
        """Record one premise of the problem."""
        self.recorded.append(self.formalise(formula))
        self.decided = None if self.decided == "Unknown" else self.decided  # more premises may decide it
        return f"P{len(self.recorded)}: {self.recorded[-1]}"

    @tool('Decide("kind(Tom)")')
    def Decide(self, goal: str) -> str:
        """Decide a statement from the recorded premises."""
        parsed = _parse_goal(goal)
        label = decide(self.recorded, parsed)
        if parsed.same_as(self.goal):
            self.decided = label
        return label

    def solve(self, rng: Random | None) -> list[str]:
        """All premises, then the goal."""
        calls = [f'Premise("{premise}")' for premise in self.premises]
        if rng is not None:
            rng.shuffle(calls)
        return [*calls, f'Decide("{self.goal}")']

    def answer_follows(self) -> bool:
        """The goal was decided as answered; Unknown only counts when every premise was recorded."""
        complete = all(any(p.same_as(r) for r in self.recorded) for p in self.premises)
        return self.answer == self.decided and (self.answer != "Unknown" or complete)


def _parse(text: str) -> Formula:
    try:
        return parse_formula(text)
    except ValueError as error:
        raise ToolError(str(error)) from None


def _parse_goal(text: str) -> Formula:
    goal = _parse(text)
    if goal.head is not None or len(goal.body) > 1:
        raise ToolError("a goal is one statement such as kind(Tom)")
    return goal


def _numbered(letter: str, name: str, items: list[Formula]) -> Formula:
    names = [f"{letter}{number}" for number in range(1, len(items) + 1)]
    if name.strip() not in names:
        raise ToolError(f'no {letter} named "{name[:20]}"; the last is {names[-1] if names else "none"}')
    return items[names.index(name.strip())]


# ---- what follows, and by which steps


def yields(rule: Formula, fact: Literal, known: list[Literal]) -> bool:
    """Whether `rule` meets `fact` and derives something from it that is not `known`."""
    return not set(consequences(rule, fact, known)) <= set(known)


@lru_cache(maxsize=4096)
def reachable_facts(premises: tuple[Formula, ...], toolset: type[DeductionTools]) -> frozenset[Literal]:
    """Every literal that the steps of `toolset` can derive from `premises`, all witnesses called Someone."""
    state = toolset(premises, premises[0])
    for step in derivation(state, None):
        state.call(step)
    return frozenset(map(_anyone, state.known()))


def derivation(state: DeductionTools, rng: Random | None) -> Iterator[str]:
    """Yield calls, each local to the last: a fact, a rule that it meets, what else the rule needs, its application.

    The caller runs each call on `state` before asking for the next one. Ends when nothing more follows.
    """
    facts = [premise for premise in state.premises if premise.head is None]
    rules = [premise for premise in state.premises if premise.head is not None]
    higher = isinstance(state, HigherDeductionTools)
    rules += [rule.contrapositive() for rule in rules if higher and len(rule.body) == 1]
    if rng is not None:
        rng.shuffle(facts)
        rng.shuffle(rules)
    while True:
        if step := _next_application(state, rules, facts):
            rule, number, needed = step
            if any(rule.same_as(premise) for premise in state.premises):
                yield f'Rule("{rule}")'
            else:
                yield f'Rule("{rule.contrapositive()}")'
                yield f'Contrapose("R{len(state.rules)}")'
            applied = len(state.rules)
            for fact in needed:
                facts.remove(fact)
                yield f'Fact("{fact}")'
                number = len(state.facts)
            yield f'Apply("R{applied}", "F{number}")'
        elif facts:
            yield f'Fact("{facts.pop(0)}")'
        elif elimination := _next_elimination(state) if higher else None:
            yield elimination
        else:
            return


Application = tuple[Formula, int, list[Formula]]  # a rule, the number of the fact that meets it, facts it also needs


def _next_application(state: DeductionTools, rules: list[Formula], facts: list[Formula]) -> Application | None:
    """The first rule that yields something new, maybe with one of the unrecorded `facts`; recent facts are tried first.

    The condition that is met is said first, so that the rule's call begins with what was derived last.
    """
    known = state.known()
    stated = [[], *([fact] for fact in facts if len(fact.body) == 1 and not fact.exists)]
    for (number, literal), rule, needed in product(state.recent().items(), rules, stated):
        if yields(rule, literal, [*known, *(fact.body[0] for fact in needed)]):
            body = sorted(rule.body, key=lambda condition: matches(condition, literal, {}) is None)
            return replace(rule, body=tuple(body)), number, needed
    return None


def _next_elimination(state: DeductionTools) -> str | None:
    numbers = {literal: number for number, literal in state.recent().items()}  # the earliest of equal facts
    for number, fact in enumerate(state.facts, start=1):
        for part in fact.body if len(fact.body) > 1 else ():
            if part.negated() in numbers and fact.without(part) not in state.facts:
                return f'Eliminate("F{number}", "F{numbers[part.negated()]}")'
    return None


def _anyone(literal: Literal) -> Literal:
    """`literal` without the numbers of witnesses, which depend on the order of the facts."""
    return replace(literal, args=tuple("Someone" if arg.startswith("Someone") else arg for arg in literal.args))

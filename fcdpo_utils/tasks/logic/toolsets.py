"""The functions of a logic puzzle: natural deduction, one checked step a call; or premises and a complete decider.

Every fact and rule must be a premise of the problem. Also finds the steps of a derivation, for gold chains and to know
when nothing more follows. Knows nothing of English, prompts or models.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import product
from random import Random
from typing import Any

from fcdpo_utils.tasks.logic.formulas import Formula, Label, Literal, consequence, decide, parse_formula
from fcdpo_utils.tools import ToolError, Toolset, tool


class FolTools(Toolset, ABC):
    """Shared by all toolsets: the problem's premises and the answer."""

    def __init__(self, premises: Sequence[Formula], goal: Formula):
        super().__init__()
        self.premises = tuple(premises)
        self.goal = goal

    def formalise(self, text: str) -> Formula:
        """Parse `text` and require that it is one of the problem's premises."""
        formula = parse_formula(text)
        if not any(formula.same_as(premise) for premise in self.premises):
            hint = ""
            if self.hints:  # the premise that shares most words with it
                hint = f"; it states {max(self.premises, key=lambda p: len(_words(p) & _words(formula)))}"
            raise ToolError(f"{formula} is not stated in the problem{hint}")
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
        self.facts: list[Literal] = []

    @tool('Fact("rich(Tom)")')
    def Fact(self, text: str) -> str:
        """Record a fact of the problem."""
        fact = self.formalise(text)
        if fact.head is not None:
            raise ToolError("this is a rule; use Rule")
        self.facts.append(fact.body[0])
        return f"F{len(self.facts)}" + self._met_rule()

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
        applied, literal = _numbered("R", rule, self.rules), _numbered("F", fact, self.facts)
        found = consequence(applied, literal, self.facts)
        if found is None:
            raise ToolError(f"{applied} does not apply to {literal}")
        self.facts.append(found)
        return f"F{len(self.facts)}: {found}"

    @tool('Query("kind(Tom)")')
    def Query(self, goal: str) -> str:
        """Look up a statement: True, False, Not derived yet, or Unknown once nothing more follows."""
        return self.look_up(_parse_goal(goal))

    def look_up(self, goal: Formula) -> str:
        """What a query of the one statement `goal` says."""
        if label := told(goal, self.facts):
            return label
        return "Unknown" if reachable_facts(self.premises) <= set(self.facts) else "Not derived yet"

    def solve(self, rng: Random | None) -> list[str]:
        """The steps of a derivation, a look-up after each that may have reached the goal.

        Each is local to the last: a fact, a rule that it meets, what else the rule needs, its application.
        """
        calls, query = [], f'Query("{self.goal}")'
        facts = [premise for premise in self.premises if premise.head is None]
        rules = [premise for premise in self.premises if premise.head is not None]
        for listed in (facts, rules) if rng is not None else ():
            rng.shuffle(listed)

        def take(step: str) -> None:
            self.call(step)
            calls.append(step)

        while (found := _next_application(self, rules, facts)) or facts:
            if found is None:
                take(f'Fact("{facts.pop(0)}")')
                continue
            rule, number, needed = found
            take(f'Rule("{rule}")')
            for fact in needed:
                facts.remove(fact)
                take(f'Fact("{fact}")')
                number = len(self.facts)
            take(f'Apply("R{len(self.rules)}", "F{number}")')
            calls.append(query)
            if told(self.goal, self.facts):
                return calls
        return calls if calls[-1] == query else [*calls, query]

    def answer_follows(self) -> bool:
        """True and False must have been derived; Unknown needs every applicable premise applied."""
        return self.answer == self.look_up(self.goal)

    def recent(self) -> dict[int, Literal]:
        """Number -> fact, the most recent first."""
        return dict(reversed(list(enumerate(self.facts, start=1))))

    def _state_of(self, rule: Formula) -> str:
        """What a rule just recorded applies to, or what it lacks: a proof assistant shows its open goals too."""
        recent = self.recent()
        for number, literal in recent.items():
            if yields(rule, literal, self.facts):
                return f": applies to F{number}"
        for literal in recent.values() if rule.connective == "and" else ():
            body = [condition.about(literal.name) for condition in rule.body]
            if literal in body:
                lacking = [str(other) for other in body if other not in self.facts]
                return f": lacks {' and '.join(lacking)}" if lacking else ""
        return ""

    def _met_rule(self) -> str:
        """The most recent rule that the fact just recorded sets going, if any."""
        for number in range(len(self.rules), 0, -1):
            if yields(self.rules[number - 1], self.facts[-1], self.facts):
                return f": R{number} applies"
        return ""


class DecideTools(FolTools):
    """Formalise, then decide: the premises are recorded one by one and a complete decider does the logic."""

    def __init__(self, premises: Sequence[Formula], goal: Formula):
        super().__init__(premises, goal)
        self.recorded: list[Formula] = []
        self.decided: str | None = None

    @tool('Premise("rich(x) -> kind(x)")')
    def Premise(self, formula: str) -> str:
        """Record one premise of the problem."""
        return self.record([self.formalise(formula)])

    def record(self, premises: Iterable[Formula]) -> str:
        """Also under which number the last of them is recorded."""
        self.recorded += premises
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


def _words(formula: Formula) -> set[str]:
    return {*re.findall(r"\w+", str(formula))}


def _parse_goal(text: str) -> Formula:
    goal = parse_formula(text)
    if goal.head is not None:
        raise ToolError("a goal is one statement such as kind(Tom)")
    return goal


def _numbered(letter: str, name: str, items: list[Any]) -> Any:
    names = [f"{letter}{number}" for number in range(1, len(items) + 1)]
    if name.strip() not in names:
        raise ToolError(f'no {letter} named "{name[:20]}"; the last is {names[-1] if names else "none"}')
    return items[names.index(name.strip())]


# ---- what follows, and by which steps


def yields(rule: Formula, fact: Literal, known: Collection[Literal]) -> bool:
    """Whether `rule` meets `fact` and derives something from it that is not `known`."""
    return consequence(rule, fact, known) not in (None, *known)


@lru_cache(maxsize=4096)
def reachable_facts(premises: tuple[Formula, ...]) -> frozenset[Literal]:
    """Every literal that the steps of natural deduction can derive from `premises`."""
    facts = [premise.body[0] for premise in premises if premise.head is None]
    rules = [premise for premise in premises if premise.head is not None]
    for fact in facts:  # which grow meanwhile
        facts += [consequence(rule, fact, facts) for rule in rules if yields(rule, fact, facts)]
    return frozenset(facts)


def told(goal: Formula, facts: Collection[Literal]) -> str | None:
    """True or False where `facts` hold the goal or its negation."""
    statement = goal.body[0]
    return "True" if statement in facts else "False" if statement.negated() in facts else None


def _next_application(
    state: DeductionTools, rules: list[Formula], facts: list[Formula]
) -> tuple[Formula, int, list[Formula]] | None:
    """A rule that yields something new, the number of the fact that meets it, and what it needs of unrecorded `facts`.

    Recent facts are tried first, and one unrecorded fact at the most. The condition that is met is said first, so that
    the rule's call begins with what was derived last.
    """
    for (number, literal), rule, needed in product(state.recent().items(), rules, [[], *([fact] for fact in facts)]):
        if yields(rule, literal, [*state.facts, *(fact.body[0] for fact in needed)]):
            body = sorted(rule.body, key=lambda condition: condition.about(literal.name) != literal)
            return replace(rule, body=tuple(body)), number, needed
    return None

"""First-order logic puzzles in English: toolsets, gold chains and typical mistakes.

A problem states facts and rules about people and asks whether a statement is True, False or Unknown. The core
toolset is natural deduction, one checked step a call; the second formalises the premises and lets a complete
decider answer. Knows nothing of prompts or models; theories come from `fol_theories`.
"""

from __future__ import annotations

import random
import re
from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar, Literal

from fcdpo_utils.functions import Refused, Toolset, tool
from fcdpo_utils.tasks import fol_theories
from fcdpo_utils.tasks.base import Mistake, Problem, Task
from fcdpo_utils.tasks.logic import Formula, consequences, decide, matches, parse_formula
from fcdpo_utils.tasks.logic import Literal as Atom

Label = Literal["True", "False", "Unknown"]
NOT_DERIVED = "Not derived yet"


class FolTools(Toolset):
    """Shared by both toolsets: the problem's premises and the answer."""

    def __init__(self, premises: list[Formula], goal: Formula):
        super().__init__()
        self.premises = premises
        self.goal = goal

    def formalise(self, text: str) -> Formula:
        """Parse `text` and require that it is one of the problem's premises."""
        formula = _parse(text)
        if not any(formula.same_as(premise) for premise in self.premises):
            raise Refused(f"{formula} is not stated in the problem")
        return formula

    def conclude(self, label: Label) -> str:
        self.answer = label
        return "Answer recorded"


class DeductionTools(FolTools):
    """Natural deduction: facts F1, F2, ... and rules R1, R2, ...; every step is checked."""

    def __init__(self, premises: list[Formula], goal: Formula):
        super().__init__(premises, goal)
        self.rules: list[Formula] = []
        self.facts: list[Formula] = []

    @tool('Fact("rich(Tom)")')
    def Fact(self, text: str) -> str:
        """Record a fact of the problem."""
        fact = self.formalise(text)
        if fact.head is not None:
            raise Refused("this is a rule; use Rule")
        if not fact.exists:
            self.facts.append(fact)
            return f"F{len(self.facts)}" + self._met_rule()
        witness = f"Someone{len(self.facts) + 1}"
        body = tuple(literal.bind(dict.fromkeys("xyz", witness)) for literal in fact.body)
        return self._record([Formula(body, "or")] if fact.connective == "or" else [Formula((lit,)) for lit in body])

    @tool('Rule("rich(x) -> kind(x)")')
    def Rule(self, text: str) -> str:
        """Record a rule of the problem."""
        rule = self.formalise(text)
        if rule.head is None:
            raise Refused("this is a fact; use Fact")
        return self._record_rule(rule) + self._state_of(rule)

    @tool('Apply("R1", "F1")')
    def Apply(self, rule: str, fact: str) -> str:
        """Apply a rule to a fact; its other conditions must be recorded."""
        found = consequences(self._rule(rule), self._fact(fact), self.known())
        if not found:
            raise Refused(f"{self._rule(rule)} does not apply to {self._fact(fact)}")
        return self._record([Formula((literal,)) for literal in found])

    @tool('Query("kind(Tom)")')
    def Query(self, goal: str) -> str:
        """Look up a statement: True, False, Not derived yet, or Unknown once nothing more follows."""
        found = lookup(_parse_goal(goal), self.known())
        return "Unknown" if found == NOT_DERIVED and self.is_exhausted() else found

    @tool('Conclude("True")')
    def Conclude(self, label: Label) -> str:
        """Answer True, False or Unknown."""
        return self.conclude(label)

    def known(self) -> list[Atom]:
        """The derived ground literals, disjunctions left out."""
        return [fact.body[0] for fact in self.facts if len(fact.body) == 1]

    def answer_follows(self) -> bool:
        """True and False must have been derived; Unknown needs every applicable premise applied."""
        looked_up = lookup(self.goal, self.known())
        if self.answer != "Unknown":
            return looked_up == self.answer
        return looked_up == NOT_DERIVED and self.is_exhausted()

    def is_exhausted(self) -> bool:
        """Whether everything that the premises yield by these steps has been derived."""
        reachable = reachable_facts(tuple(self.premises), type(self))
        return set(map(_anyone, reachable)) <= set(map(_anyone, self.known()))

    def _yields(self, rule: Formula, number: int) -> bool:
        """Whether `rule` meets fact `number` and derives something new from it."""
        fact, known = self.facts[number - 1], self.known()
        return len(fact.body) == 1 and bool(set(consequences(rule, fact.body[0], known)) - set(known))

    def _state_of(self, rule: Formula) -> str:
        """What a rule just recorded applies to, or what it lacks: a proof assistant shows its open goals too."""
        recent_first = range(len(self.facts), 0, -1)
        for number in recent_first:
            if self._yields(rule, number):
                return f": applies to F{number}"
        for number in recent_first if rule.connective == "and" else ():
            for condition in rule.body:
                binding = matches(condition, self.facts[number - 1].body[0], {})
                if binding is not None:
                    others = [other.bind(binding) for other in rule.body if other != condition]
                    lacking = [str(other) for other in others if other not in self.known()]
                    return f": lacks {' and '.join(lacking)}" if lacking else ""
        return ""

    def _met_rule(self) -> str:
        """The most recent rule that the fact just recorded sets going, if any."""
        for number in range(len(self.rules), 0, -1):
            if self._yields(self.rules[number - 1], len(self.facts)):
                return f": R{number} applies"
        return ""

    def _record(self, facts: list[Formula]) -> str:
        lines = []
        for fact in facts:
            self.facts.append(fact)
            lines.append(f"F{len(self.facts)}: {fact}")
        return ", ".join(lines)

    def _record_rule(self, rule: Formula) -> str:
        self.rules.append(rule)
        return f"R{len(self.rules)}"

    def _rule(self, name: str) -> Formula:
        return _numbered("R", name, self.rules)

    def _fact(self, name: str) -> Atom:
        fact = _numbered("F", name, self.facts)
        if len(fact.body) > 1:
            raise Refused(f"{name} is a disjunction")
        return fact.body[0]


class HigherDeductionTools(DeductionTools):
    """Adds the two steps that disjunctive facts and backward rules need."""

    @tool('Contrapose("R1")')
    def Contrapose(self, rule: str) -> str:
        """Turn a -> b into not b -> not a."""
        given = self._rule(rule)
        if len(given.body) > 1:
            raise Refused(f"{rule} has more than one condition")
        turned = contrapositive(given)
        return f"{self._record_rule(turned)}: {turned}"

    @tool('Eliminate("F1", "F2")')
    def Eliminate(self, disjunction: str, fact: str) -> str:
        """From a or b and not a, conclude b."""
        given, denied = _numbered("F", disjunction, self.facts), self._fact(fact).negated()
        rest = tuple(literal for literal in given.body if literal != denied)
        if len(rest) in (0, len(given.body)):
            raise Refused(f"{fact} does not deny a part of {disjunction}")
        return self._record([Formula(rest, "or" if len(rest) > 1 else "and")])


class DecideTools(FolTools):
    """Formalise, then decide: the premises are recorded one by one and a complete decider does the logic."""

    def __init__(self, premises: list[Formula], goal: Formula):
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

    @tool('Conclude("True")')
    def Conclude(self, label: Label) -> str:
        """Answer True, False or Unknown."""
        return self.conclude(label)

    def answer_follows(self) -> bool:
        """The goal was decided as answered; Unknown only counts when every premise was recorded."""
        complete = all(any(p.same_as(r) for r in self.recorded) for p in self.premises)
        return self.answer == self.decided and (self.answer != "Unknown" or complete)


def _parse(text: str) -> Formula:
    try:
        return parse_formula(text)
    except ValueError as error:
        raise Refused(str(error)) from None


def _parse_goal(text: str) -> Formula:
    goal = _parse(text)
    if goal.head is not None or len(goal.body) > 1:
        raise Refused("a goal is one statement such as kind(Tom)")
    return goal


def _numbered(letter: str, name: str, items: list[Formula]) -> Formula:
    match = re.fullmatch(rf"{letter}([1-9]\d{{0,3}})", name.strip())
    if match is None or int(match.group(1)) > len(items):
        last = f"{letter}{len(items)}" if items else "none"
        raise Refused(f'no {letter} named "{name[:20]}"; the last is {last}')
    return items[int(match.group(1)) - 1]


def _anyone(literal: Atom) -> Atom:
    """`literal` without the numbers of witnesses, which depend on the order of the facts."""
    return replace(literal, args=tuple("Someone" if arg.startswith("Someone") else arg for arg in literal.args))


def contrapositive(rule: Formula) -> Formula:
    """not head -> not body, of a rule with one condition."""
    return Formula((rule.head.negated(),), "and", rule.body[0].negated())


def lookup(goal: Formula, known: list[Atom]) -> str:
    """True, False or Not derived yet, by comparing `goal` with the derived literals."""
    if any(matches(goal.body[0], fact, {}) is not None for fact in known):
        return "True"
    if not goal.exists and goal.body[0].negated() in known:
        return "False"
    return NOT_DERIVED


@lru_cache(maxsize=4096)
def reachable_facts(premises: tuple[Formula, ...], toolset: type[DeductionTools]) -> tuple[Atom, ...]:
    """Every literal that the steps of `toolset` can derive from `premises`."""
    state = toolset(list(premises), premises[0])
    for step in _exhaust(state, list(premises), None):
        state.call(step)
    return tuple(dict.fromkeys(state.known()))


class FirstOrderLogic(Task):
    """Puzzles of the theories in `fol_theories`; levels 1 to 3 and 5 are proof depths, level 4 has harder schemas."""

    name = "fol"
    instruction = (
        "Decide whether the statement is True, False or Unknown. Record what the problem states exactly as it "
        "states it, find out what follows, conclude, stop."
    )
    toolsets: ClassVar = {"deduction": DeductionTools, "higher": HigherDeductionTools, "decide": DecideTools}
    mistakes: ClassVar[dict[str, Mistake]] = {}

    def generate(
        self, count: int, split: str, seed: int, levels: tuple[int, ...] = (1, 2, 3), **options: Any
    ) -> list[Problem]:
        theories = fol_theories.generate(count, split, seed, levels)
        return [
            Problem(
                id=f"fol-{split}-{number:04d}",
                task=self.name,
                split=split,
                level=theory.level,
                question=theory.question,
                answer=theory.label,
                canonical=theory.canonical,
                details={"premises": list(map(str, theory.premises)), "goal": str(theory.goal), "depth": theory.depth},
            )
            for number, theory in enumerate(theories, start=1)
        ]

    def example(self) -> Problem:
        premises = ["big(x) -> guard(x)", "not guard(x) -> hot(x)", "big(Lisa)"]
        question = (
            "Every big person is a guard. Everyone who is not a guard is hot. Lisa is big. "
            "Statement: Lisa is not a guard."
        )
        details = {"premises": premises, "goal": "not guard(Lisa)", "depth": 1}
        return Problem("fol-example", self.name, "example", 1, question, "False", "example", details)

    def start(self, problem: Problem, toolset: str | None = None) -> FolTools:
        premises = list(map(parse_formula, problem.details["premises"]))
        kind = self.toolset(toolset or _default_toolset(problem))
        return kind(premises, parse_formula(problem.details["goal"]))

    def gold_calls(self, problem: Problem, rng: random.Random | None = None, toolset: str | None = None) -> list[str]:
        state = self.start(problem, toolset)
        if isinstance(state, DecideTools):
            premises = [f'Premise("{premise}")' for premise in state.premises]
            steps = [*premises, f'Decide("{state.goal}")', f'Conclude("{problem.answer}")', "Stop()"]
            return _shuffled_head(steps, len(premises), rng)
        calls, query = [], f'Query("{state.goal}")'
        for step in _exhaust(state, list(state.premises), rng):
            state.call(step)
            calls.append(step)
            if step.startswith(("Apply", "Eliminate")):
                calls.append(query)
                if lookup(state.goal, state.known()) != NOT_DERIVED:
                    break
        end = [f'Conclude("{problem.answer}")', "Stop()"]
        return [*calls, *end] if calls[-1] == query else [*calls, query, *end]

    def is_correct(self, problem: Problem, answer: str | None) -> bool:
        return answer == problem.answer


def _default_toolset(problem: Problem) -> str:
    return "higher" if fol_theories.has_harder_schemas(problem.level, problem.split) else "deduction"


def _shuffled_head(steps: list[str], size: int, rng: random.Random | None) -> list[str]:
    head = list(steps[:size])
    if rng is not None:
        rng.shuffle(head)
    return head + steps[size:]


def _exhaust(state: DeductionTools, premises: list[Formula], rng: random.Random | None):
    """Yield calls, each local to the last: a fact, a rule that it meets, what else the rule needs, its application.

    The caller runs each call on `state` before asking for the next one.
    """
    facts = [premise for premise in premises if premise.head is None]
    rules = [premise for premise in premises if premise.head is not None]
    if isinstance(state, HigherDeductionTools):
        rules += [contrapositive(rule) for rule in rules if len(rule.body) == 1]
    if rng is not None:
        rng.shuffle(facts)
        rng.shuffle(rules)
    while True:
        step = _next_application(state, rules, facts)
        if step is not None:
            rule, number, needed = step
            yield from _record_rule_calls(state, premises, _led_by(rule, state.facts[number - 1].body[0]))
            applied = len(state.rules)
            for fact in needed:
                facts.remove(fact)
                yield f'Fact("{fact}")'
                number = len(state.facts)
            yield f'Apply("R{applied}", "F{number}")'
        elif facts:
            yield f'Fact("{facts.pop(0)}")'
        elif elimination := _next_elimination(state):
            yield elimination
        else:
            return


def _led_by(rule: Formula, fact: Atom) -> Formula:
    """`rule` with the condition that `fact` meets said first, so that its call begins with what was derived last."""
    return replace(rule, body=tuple(sorted(rule.body, key=lambda literal: matches(literal, fact, {}) is None)))


def _record_rule_calls(state: DeductionTools, premises: list[Formula], rule: Formula):
    if any(rule.same_as(premise) for premise in premises):
        yield f'Rule("{rule}")'
    else:
        yield f'Rule("{contrapositive(rule)}")'
        yield f'Contrapose("R{len(state.rules)}")'


def _next_application(
    state: DeductionTools, rules: list[Formula], facts: list[Formula]
) -> tuple[Formula, int, list[Formula]] | None:
    """The first rule that yields something new, tried on the most recent fact first.

    Returns the rule, the number of the fact that meets it, and those of the unrecorded `facts` that it needs besides.
    """
    known = state.known()
    stated = [fact for fact in facts if len(fact.body) == 1 and not fact.exists]
    for number in range(len(state.facts), 0, -1):
        fact = state.facts[number - 1]
        if len(fact.body) > 1:
            continue
        for rule in rules:
            for needed in ([], *([other] for other in stated)):
                assumed = [*known, *(other.body[0] for other in needed)]
                if set(consequences(rule, fact.body[0], assumed)) - set(assumed):
                    return rule, number, needed
    return None


def _next_elimination(state: DeductionTools) -> str | None:
    known = state.known()
    for number, fact in enumerate(state.facts, start=1):
        for denied in fact.body if len(fact.body) > 1 else ():
            rest = tuple(literal for literal in fact.body if literal != denied)
            if denied.negated() in known and Formula(rest, "or" if len(rest) > 1 else "and") not in state.facts:
                denial = next(
                    i for i, f in enumerate(state.facts, start=1) if len(f.body) == 1 and f.body[0] == denied.negated()
                )
                return f'Eliminate("F{number}", "F{denial}")'
    return None


def _edit_formula(calls: list[str], rng: random.Random, functions: str, edit: Any) -> list[str] | None:
    """Apply `edit` to the quoted formula of one randomly chosen call of `functions`."""
    places = [i for i, call in enumerate(calls) if re.match(rf"({functions})\(", call)]
    rng.shuffle(places)
    for place in places:
        name, formula = re.fullmatch(r'(\w+)\("(.*)"\)', calls[place]).groups()
        changed = edit(formula)
        if changed is not None and changed != formula:
            return [*calls[:place], f'{name}("{changed}")', *calls[place + 1 :]]
    return None


def _drop_negation(problem: Problem, calls: list[str], rng: random.Random) -> list[str] | None:
    return _edit_formula(
        calls, rng, "Rule|Fact|Premise", lambda text: text.replace("not ", "", 1) if "not " in text else None
    )


def _dropped_condition(problem: Problem, calls: list[str], rng: random.Random) -> list[str] | None:
    """Read a rule with two conditions as if it had only the first."""
    return _edit_formula(calls, rng, "Rule|Premise", lambda text: re.sub(r" (and|or) .* ->", " ->", text))


def _wrong_rule(problem: Problem, calls: list[str], rng: random.Random) -> list[str] | None:
    """Record another rule of the problem in place of the right one."""
    rules = [text for text in problem.details["premises"] if "->" in text]

    def other(text: str) -> str | None:
        said = parse_formula(text)
        choices = [rule for rule in rules if not parse_formula(rule).same_as(said)]
        return rng.choice(choices) if said.head is not None and choices else None

    return _edit_formula(calls, rng, "Rule|Premise", other)


def _swapped_sides(problem: Problem, calls: list[str], rng: random.Random) -> list[str] | None:
    """Read "every a is b" as "every b is a"."""

    def swap(text: str) -> str | None:
        left, arrow, right = text.partition(" -> ")
        return f"{right} -> {left}" if arrow and " and " not in left and " or " not in left else None

    return _edit_formula(calls, rng, "Rule|Premise", swap)


def _wrong_goal(problem: Problem, calls: list[str], rng: random.Random) -> list[str] | None:
    """Look up the negation of the statement and believe what it says."""
    flipped = {"True": "False", "False": "True"}.get(problem.answer)
    if flipped is None:
        return None
    edits = {f'Conclude("{problem.answer}")': f'Conclude("{flipped}")'}
    for call in calls:
        if match := re.fullmatch(r'(Query|Decide)\("(not )?(.*)"\)', call):
            edits[call] = f'{match[1]}("{"" if match[2] else "not "}{match[3]}")'
    return [edits.get(call, call) for call in calls]


def _wrong_label(problem: Problem, calls: list[str], rng: random.Random) -> list[str] | None:
    label = rng.choice([label for label in ("True", "False", "Unknown") if label != problem.answer])
    return [f'Conclude("{label}")' if call.startswith("Conclude") else call for call in calls]


FirstOrderLogic.mistakes.update(
    dropped_negation=_drop_negation,
    dropped_condition=_dropped_condition,
    wrong_rule=_wrong_rule,
    swapped_sides=_swapped_sides,
    wrong_goal=_wrong_goal,
    wrong_label=_wrong_label,
)

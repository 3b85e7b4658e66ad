"""First-order logic puzzles in English as a task: the worked example, gold chains and typical mistakes.

A problem states facts and rules about people and asks whether a statement is True, False or Unknown. Problems come
from `theories`, functions from `toolsets`. Knows nothing of prompts or models.
"""

import random
import re
from collections.abc import Callable

from fcdpo_utils.problems import Mistake, Problem, Task
from fcdpo_utils.tasks.logic import theories
from fcdpo_utils.tasks.logic.formulas import parse_formula
from fcdpo_utils.tasks.logic.toolsets import DecideTools, DeductionTools, FolTools


def misread(functions: str, misreading: Callable[[str, Problem, random.Random], str | None]) -> Mistake:
    """The mistake of changing the quoted formula of one randomly chosen call of `functions`."""

    def mistaken(problem: Problem, calls: list[str], rng: random.Random) -> list[str] | None:
        places = [i for i, call in enumerate(calls) if re.match(rf"({functions})\(", call)]
        rng.shuffle(places)
        for place in places:
            name, formula = re.fullmatch(r'(\w+)\("(.*)"\)', calls[place]).groups()
            changed = misreading(formula, problem, rng)
            if changed not in (None, formula):
                return [*calls[:place], f'{name}("{changed}")', *calls[place + 1 :]]
        return None

    return mistaken


def _other_rule(text: str, problem: Problem, rng: random.Random) -> str | None:
    """Another rule of the problem in place of the right one."""
    said = parse_formula(text)
    rules = [rule for rule in problem.details["premises"] if "->" in rule and not parse_formula(rule).same_as(said)]
    return rng.choice(rules) if said.head is not None and rules else None


def _swap_sides(text: str, problem: Problem, rng: random.Random) -> str | None:
    """Read "every a is b" as "every b is a"."""
    left, arrow, right = text.partition(" -> ")
    return f"{right} -> {left}" if arrow and " and " not in left and " or " not in left else None


def _wrong_goal(problem: Problem, calls: list[str], rng: random.Random) -> list[str] | None:
    """Look up the negation of the statement and believe what it says."""
    flipped = {"True": "False", "False": "True"}.get(problem.answer)
    if flipped is None:
        return None
    opposite = [re.sub(r'^(Query|Decide)\("(not )?', lambda m: f'{m[1]}("{"" if m[2] else "not "}', c) for c in calls]
    return [call.replace(f'Conclude("{problem.answer}")', f'Conclude("{flipped}")') for call in opposite]


def wrong_label(problem: Problem, calls: list[str], rng: random.Random) -> list[str]:
    label = rng.choice([label for label in theories.LABELS if label != problem.answer])
    return [f'Conclude("{label}")' if call.startswith("Conclude") else call for call in calls]


class FirstOrderLogic(Task):
    """Puzzles of `theories`; a level is the depth of the proof."""

    name = "fol"
    instruction = (
        "Decide whether the statement is True, False or Unknown. Record what the problem states exactly as it "
        "states it, find out what follows, conclude, stop."
    )
    accepted_is_right = True
    parse = staticmethod(parse_formula)
    toolsets = {"deduction": DeductionTools, "decide": DecideTools}
    mistakes = {
        "dropped_negation": misread("Rule|Fact|Premise", lambda text, problem, rng: text.replace("not ", "", 1)),
        "dropped_condition": misread(  # a rule with two conditions, as if it had only the first
            "Rule|Premise", lambda text, problem, rng: re.sub(r" (and|or) .* ->", " ->", text)
        ),
        "wrong_rule": misread("Rule|Premise", _other_rule),
        "swapped_sides": misread("Rule|Premise", _swap_sides),
        "wrong_goal": _wrong_goal,
        "wrong_label": wrong_label,
    }

    generate = staticmethod(theories.generate)

    def example(self) -> Problem:
        premises = ["big(x) -> guard(x)", "not guard(x) -> hot(x)", "big(Lisa)"]
        told = "Every big person is a guard. Everyone who is not a guard is hot. Lisa is big."
        question = f"{told} Statement: Lisa is not a guard."
        details = {"premises": premises, "goal": "not guard(Lisa)", "depth": 1}
        return Problem("fol-example", self.name, "example", 1, question, "False", "example", details)

    def start(self, problem: Problem) -> FolTools:
        premises, goal = problem.details["premises"], problem.details["goal"]
        return self.toolset(problem.toolset)(tuple(map(self.parse, premises)), self.parse(goal))

    def solution(self, problem: Problem, rng: random.Random | None = None) -> list[str]:
        return [*self.start(problem).solve(rng), f'Conclude("{problem.answer}")', "Stop()"]

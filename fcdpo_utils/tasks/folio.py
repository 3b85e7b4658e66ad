"""FOLIO (Han et al., arXiv 2209.00840) as chains: first-order logic that people wrote, decided by z3.

A row has premises and a conclusion in English and as formulas. A premise is recorded when z3 proves it equivalent to an
annotated one. Rows whose label z3 does not confirm, or without a formula of the conclusion, have no chain: `fcdpo folio
PATH` prints how many have, and what the rest are.
"""

import random
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace

from fcdpo_utils.episode import Chain, run_calls
from fcdpo_utils.problems import Problem, folded
from fcdpo_utils.settings import Limits
from fcdpo_utils.tasks.logic.first_order import Formula, decide, equivalent, is_consistent, parse, symbols
from fcdpo_utils.tasks.logic.task import FirstOrderLogic, misread, wrong_label
from fcdpo_utils.tasks.logic.toolsets import DecideTools
from fcdpo_utils.tasks.rows import CONVERTED, Row, RowTask
from fcdpo_utils.tools import ToolError, tool

UNDECIDED = "not decided within the budget"


def read(text: str) -> Formula | None:
    """An annotated formula, if need be with one parenthesis more or less at its end; None where it cannot be read."""
    for attempt in (text, text + ")", text.strip().removesuffix(")")):
        with suppress(ToolError):
            return parse(attempt)
    return None


def _listed(texts: list[str] | str) -> list[str]:
    """Premises as a list; a newer version of the data has one text of several lines."""
    return texts.strip().split("\n") if isinstance(texts, str) else texts


def _listing(formulas: Iterable[Formula]) -> str:
    """What formulas may be made of, for prompts and error lines."""
    predicates, names = symbols(tuple(formulas))
    listed = ", ".join(f"{name}/{count}" for name, count in predicates)
    return f"Predicates: {listed}. Names: {', '.join(names) or 'none'}."


class FolioTools(DecideTools):
    """Formalise, then decide; formulas are of all of first-order logic."""

    @tool('Premise("all x (Cat(x) -> exists y (Likes(x, y) and not (x = y)))")')
    def Premise(self, formula: str) -> str:
        """Record one premise of the problem as a formula, with and, or, xor, not, ->, <->, =, all, exists."""
        asked = self._read(formula)
        same = equivalent(asked, self.premises)
        if True not in same:
            raise ToolError(f"{asked} is {UNDECIDED if None in same else 'not stated in the problem'}")
        return self.record(premise for premise, one in zip(self.premises, same, strict=True) if one)

    @tool('Decide("Cat(tom) xor Dog(tom)")')
    def Decide(self, goal: str) -> str:
        """Decide a statement from the recorded premises."""
        asked = self._read(goal)
        label = decide(tuple(self.recorded), asked)
        if label and equivalent(asked, (self.goal,)) == (True,):
            self.decided = label
        return label or UNDECIDED

    def _read(self, text: str) -> Formula:
        formula, stated = parse(text), (*self.premises, self.goal)
        for used, known in zip(symbols((formula,)), symbols(stated), strict=True):
            if unknown := [symbol for symbol in used if symbol not in known]:
                name = unknown[0] if isinstance(unknown[0], str) else "{}/{}".format(*unknown[0])
                raise ToolError(f"{name} is not of the problem. {_listing(stated)}")
        return formula


def _run(problem: Problem, calls: list[str]) -> Chain:
    return run_calls(FOLIO(), problem, calls, limits=Limits(calls=99))


def _swapped(text: str, problem: Problem, rng: random.Random) -> str:
    """Read "every a is b" as "every b is a"."""

    def swap(formula: Formula) -> Formula:
        parts = formula.parts[::-1] if formula.kind == "->" else tuple(map(swap, formula.parts))
        return replace(formula, parts=parts) if formula.kind in ("->", "all") else formula

    return str(swap(parse(text)))


def _left_out(problem: Problem, calls: list[str], rng: random.Random) -> list[str] | None:
    """Leave out a premise that matters, and believe what is decided without it."""
    for place in rng.sample(range(len(calls) - 3), len(calls) - 3):
        *asked, _, stop = calls[:place] + calls[place + 1 :]
        label = _run(problem, asked).steps[-1].result
        if label == "Unknown" != problem.answer:
            return [*asked, f'Conclude("{label}")', stop]
    return None


class FOLIO(RowTask, FirstOrderLogic):
    """Theories that people wrote; level is the number of premises."""

    name = "folio"
    instruction = (
        "Decide whether the statement is True, False or Unknown. Record every premise as a formula of the listed "
        "predicates (with their numbers of names) and names, decide the statement, conclude, stop."
    )
    toolsets = {"decide": FolioTools}
    parse = staticmethod(parse)
    mistakes = {"left_out": _left_out, "swapped_sides": misread("Premise", _swapped), "wrong_label": wrong_label}
    hub, hub_test, levels = ("yale-nlp/FOLIO",), "validation", tuple(range(1, 11))
    fields, lists = ("premises", "premises-FOL", "conclusion", "label"), ("premises", "premises-FOL")

    def canonical(self, row: Row) -> str:
        """The premises: several rows ask about the same ones."""
        return folded(" ".join(_listed(row["premises"])))

    def question(self, row: Row) -> str:
        return folded(f"{self.canonical(row)} {row['conclusion']}")

    def convert(self, row: Row) -> tuple[Problem | None, str]:
        """As for every such task; without a chain there is no problem, for the functions need the formulas."""
        if not row.get("conclusion-FOL"):
            return None, "no formula of the conclusion"
        *premises, goal = (read(text) for text in (*_listed(row["premises-FOL"]), str(row["conclusion-FOL"])))
        if None in premises or goal is None:
            return None, "the conclusion cannot be read" if goal is None else "a premise cannot be read"
        premises, answer = tuple(dict.fromkeys(premises)), row["label"].replace("Uncertain", "Unknown")
        predicates = symbols((*premises, goal))[0]
        if len({predicate for predicate, _ in predicates}) < len(predicates):
            return None, "a predicate has two numbers of names"
        if not (consistent := is_consistent(premises)):
            return None, UNDECIDED if consistent is None else "the premises contradict each other"
        if (label := decide(premises, goal)) != answer:
            return None, f"labelled {answer}, but {label} follows" if label else UNDECIDED
        told = " ".join([*_listed(row["premises"]), "Statement:", row["conclusion"]])
        question = f"{' '.join(told.split())} {_listing((*premises, goal))}"
        details = {"premises": list(map(str, premises)), "goal": str(goal)}
        problem = Problem("", self.name, "", len(premises), question, answer, self.canonical(row), details)
        is_sound = _run(problem, self.gold_calls(problem)).sound
        return (problem, CONVERTED) if is_sound else (None, "the gold chain is not sound")

    def example(self) -> Problem:
        premises = ["all x (Cat(x) -> exists y (Likes(x, y)))", "Cat(tom) xor Dog(tom)", "not exists x (Likes(tom, x))"]
        told = "Every cat likes someone. Tom is either a cat or a dog. Tom likes nobody. Statement: Tom is a dog."
        question = f"{told} {_listing(map(parse, premises))}"
        details = {"premises": premises, "goal": "Dog(tom)"}
        return Problem("folio-example", self.name, "example", 3, question, "True", "example", details)

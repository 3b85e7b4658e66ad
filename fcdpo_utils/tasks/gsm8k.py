"""GSM8K (Cobbe et al., arXiv 2110.14168) as chains: its `<<48/2=24>>` annotations become gold calls.

A row is {"question", "answer"}. To learn from, it keeps those whose last step gives the row's own answer.
`fcdpo gsm8k PATH` prints how many rows convert and why the others do not.
"""

import random
import re
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import yaml

from fcdpo_utils.arithmetic import Arithmetic, Step, parse_answer
from fcdpo_utils.numbers import answers_equal, format_number, is_stated, numbers_in, parse_number
from fcdpo_utils.problems import Problem, folded
from fcdpo_utils.tasks.expression import expression_steps, result_of
from fcdpo_utils.tasks.rows import CONVERTED, Row, RowTask
from fcdpo_utils.tools import ToolError

_ANNOTATION = re.compile(r"<<([^<>]*)>>")
_NUMBER = r"\(*-?(?:\d+\.?\d*|\.\d+)\)*"
_EQUATION = re.compile(rf"{_NUMBER}(?: *[-+*/] *{_NUMBER})+ *= *-?(?:\d+\.?\d*|\.\d+)", re.ASCII)
_REWRITES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))["rewrites"]


class NoChain(Exception):
    """Why a row has no chain, in the words of the report's table."""


def gold_steps(solution: str, answer: Fraction) -> list[Step]:
    """The steps of a row's solution, the last of which gives the answer. Raises `NoChain`.

    Equations that the author left unmarked are read too: without "160*5 = 800" a later call would use an 800 from
    nowhere. Where they do not lead to the answer, the annotations alone are tried.
    """
    try:
        return _convert(equations_in(solution), answer)
    except NoChain:
        return _convert(_ANNOTATION.findall(solution), answer)


def _convert(equations: list[str], answer: Fraction) -> list[Step]:
    steps = [step for equation in equations for step in _read_equation(equation)]
    if not steps:
        raise NoChain("no calculation to read")
    if not answers_equal(result_of(steps[-1]), answer):
        raise NoChain("the last result is not the answer")
    return steps


def _read_equation(equation: str) -> list[Step]:
    """The steps of "48/2=24", whose two sides must agree. Raises `NoChain`."""
    expression, _, result = equation.partition("=")
    try:
        (steps, value), stated = expression_steps(_rewrite(expression)), parse_answer(result)
    except (ToolError, ValueError):
        raise NoChain("an annotation cannot be read") from None
    if not answers_equal(value, stated):
        raise NoChain("an annotation does not equal its own expression")
    return steps


def _rewrite(text: str) -> str:
    for pattern, replacement in _REWRITES:
        text = re.sub(pattern, replacement, text)
    return text.strip()


def equations_in(text: str) -> list[str]:
    """Annotations and, behind the last one of each line, unmarked equations that hold."""
    equations: list[str] = []
    for line in text.splitlines():
        equations += _ANNOTATION.findall(line)
        for found in _EQUATION.findall(_rewrite(line.rpartition(">>")[2])):
            with suppress(NoChain):
                _read_equation(found)
                equations.append(found)
    return equations


class GSM8K(RowTask, Arithmetic):
    """Real word problems; level is the number of gold steps, at most 6 where a chain is learnt from."""

    name = "gsm8k"
    hub, fields, levels = ("openai/gsm8k", "main"), ("question", "answer"), (1, 2, 3, 4, 5, 6)
    constants = (7, 12, 24, 30, 52, 60, 100, 365, 1000)  # of units: days, months, hours, minutes, cents, metres

    def constants_of(self, problem: Problem) -> Sequence[int | str]:
        """Also the numbers that the row's author takes from elsewhere."""
        return *self.constants, *problem.details.get("constants", ())

    def canonical(self, row: Row) -> str:
        return folded(row["question"])

    def convert(self, row: Row) -> tuple[Problem | None, str]:
        """As for every such task; without a chain there is a problem still, if only the answer can be read."""
        solution, mark, final = row["answer"].rpartition("####")
        try:
            answer = parse_answer(final if mark else "")
        except ValueError:
            return None, "no answer after ####"
        try:
            steps, why = gold_steps(solution, answer), CONVERTED
        except NoChain as error:
            steps, why = [], str(error)
        question = " ".join(row["question"].split())
        level = len(steps) or max(1, len(_ANNOTATION.findall(row["answer"])))
        details = {"steps": steps, "constants": _constants(question, steps)}
        return Problem("", self.name, "", level, question, format_number(answer), self.canonical(row), details), why

    def solution(self, problem: Problem, rng: random.Random | None = None) -> list[str]:
        """As for arithmetic. Raises ValueError for a test row whose annotations do not convert."""
        if not problem.details["steps"]:
            raise ValueError(f"gsm8k: {problem.id} has no gold chain; it is for evaluation only")
        return super().solution(problem, rng)


def _constants(question: str, steps: list[Step]) -> list[str]:
    """The numbers that enter `steps` from neither the question nor an earlier step nor a unit."""
    stated, missing = numbers_in(question) | set(map(Fraction, GSM8K.constants)), []
    for step in steps:
        missing += [number for number in dict.fromkeys(step[1:]) if not is_stated(number, stated)]
        stated |= {abs(parse_number(number)) for number in missing}
        stated |= numbers_in(format_number(result_of(step)))
    return missing

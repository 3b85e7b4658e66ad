"""GSM8K (Cobbe et al., arXiv 2110.14168) as chains: its `<<48/2=24>>` annotations become gold calls.

Reads rows {"question", "answer"} from a JSONL file or from the hub, and keeps those whose chain, once run, gives the
row's own answer. `fcdpo gsm8k PATH` prints how many convert and why the others do not.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

from fcdpo_utils.functions import Refused, format_number
from fcdpo_utils.tasks.arithmetic import (
    Arithmetic,
    ArithmeticTools,
    Step,
    answers_equal,
    check_request,
    expression_steps,
    parse_answer,
    render_calls,
    split_of,
)
from fcdpo_utils.tasks.base import Problem

LEVELS = (1, 2, 3, 4, 5, 6)
HUB_NAME = "openai/gsm8k"

_ANNOTATION = re.compile(r"<<([^<>]*)>>")
_NUMBER = r"\(*-?(?:\d+\.?\d*|\.\d+)\)*"
_EQUATION = re.compile(rf"{_NUMBER}(?: *[-+*/] *{_NUMBER})+ *= *-?(?:\d+\.?\d*|\.\d+)", re.ASCII)
_REWRITES = (  # what people write -> what `expression_steps` reads, in this order
    (r"(?<=\d),(?=\d{3})|\$", ""),
    ("[\u2013\u2212]", "-"),
    ("\u00d7|" r"(?<=[\d) ])x(?=[\d( ])", "*"),
    ("\u00f7|//", "/"),
    (r"(\d+(?:\.\d+)?|\.\d+) ?%", r"(\1/100)"),
    (r"(?<=[\d)]) +[A-Za-z][A-Za-z ]*?(?= *[-+*/=])", ""),  # units: "12 apples + 3 apples"
    (r"(?<![\d.])0+(?=\d)", ""),  # 08 is no Python number
)


class ConversionFailure(str):
    """Why a row has no chain, in the words of the report's table."""


NO_ANSWER = ConversionFailure("no answer after ####")
NO_CALCULATION = ConversionFailure("no calculation to read")
UNREADABLE = ConversionFailure("an annotation cannot be read")
WRONG_RESULT = ConversionFailure("an annotation does not equal its own expression")
OTHER_ANSWER = ConversionFailure("the last result is not the answer")
NOT_ACCEPTED = ConversionFailure("the chain does not run")


def convert_row(row: dict[str, str]) -> list[Step] | ConversionFailure:
    """Gold steps of one row, or why there are none.

    Equations that the author left unmarked are read too: without "160*5 = 800" a later call would use an 800 from
    nowhere. Where they do not lead to the answer, the annotations alone are tried.
    """
    text, mark, final = row["answer"].rpartition("####")
    try:
        answer = parse_answer(final if mark else "")
    except ValueError:
        return NO_ANSWER
    outcome = _convert(_all_equations(text), answer)
    return _convert(_ANNOTATION.findall(text), answer) if isinstance(outcome, ConversionFailure) else outcome


def _convert(equations: list[str], answer: Fraction) -> list[Step] | ConversionFailure:
    """Steps of all equations in order, checked by running them as a chain."""
    steps: list[Step] = []
    for equation in equations:
        try:
            new_steps, right = _read_equation(equation)
        except (Refused, ValueError):
            return UNREADABLE
        if not right:
            return WRONG_RESULT
        steps += new_steps
    if not steps:
        return NO_CALCULATION
    tools = ArithmeticTools()
    results = [tools.call(call) for call in render_calls(steps, format_number(answer), "steps")]
    if any(result.error for result in results):
        return NOT_ACCEPTED
    return steps if answers_equal(tools.results[-1], answer) else OTHER_ANSWER


def _read_equation(equation: str) -> tuple[list[Step], bool]:
    """The steps of "48/2=24", and whether its two sides agree. Raises `Refused` or ValueError."""
    expression, _, result = equation.partition("=")
    steps, value = expression_steps(_rewrite(expression))
    return steps, answers_equal(value, parse_answer(result))


def _rewrite(text: str) -> str:
    for pattern, replacement in _REWRITES:
        text = re.sub(pattern, replacement, text)
    return text.strip()


def _all_equations(text: str) -> list[str]:
    """Annotations and, behind the last one of each line, unmarked equations that hold."""
    equations: list[str] = []
    for line in text.splitlines():
        equations += _ANNOTATION.findall(line)
        equations += filter(_holds, _EQUATION.findall(_rewrite(line.rpartition(">>")[2])))
    return equations


def _holds(equation: str) -> bool:
    try:
        return _read_equation(equation)[1]
    except (Refused, ValueError):
        return False


def conversion_report(rows: Iterable[dict[str, str]]) -> dict[str, int]:
    """How many rows convert ("converted"), and how many do not by reason, most frequent first."""
    outcomes = [convert_row(row) for row in rows]
    counts = Counter(str(o) if isinstance(o, ConversionFailure) else "converted" for o in outcomes)
    return {"converted": counts.pop("converted", 0)} | dict(counts.most_common())


def report_table(report: dict[str, int]) -> str:
    """The report as lines of count, share and reason."""
    total = sum(report.values())
    lines = [f"{count:6d}  {count / max(total, 1):6.1%}  {reason}" for reason, count in report.items()]
    return "\n".join([*lines, f"{total:6d}  100.0%  rows"])


def load_rows(path: str | Path | None = None) -> list[dict[str, str]]:
    """Rows of a JSONL file, or of the hub's train split where `path` is None.

    Raises FileNotFoundError, ValueError (naming file and line) or ConnectionError, each with one line.
    """
    if path is None:
        return _hub_rows()
    if not Path(path).is_file():
        raise FileNotFoundError(f'gsm8k: no file {path}; expected JSONL with a "question" and an "answer" on each line')
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError:
        raise ValueError(f"gsm8k: {path} is not UTF-8 text; expected JSONL") from None
    return [_row(line, f"{path} line {number}") for number, line in enumerate(lines, start=1) if line.strip()]


def _row(line: str, place: str) -> dict[str, str]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError(f"gsm8k: {place} is not JSON: {line[:40]!r}") from None
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("question", "answer")):
        raise ValueError(f'gsm8k: {place}: expected an object with text "question" and "answer", got {line[:40]!r}')
    return row


def _hub_rows() -> list[dict[str, str]]:
    import datasets  # slow to import, and only this way of loading needs it

    try:  # its test split stays untouched: published results are measured on it
        return list(datasets.load_dataset(HUB_NAME, "main", split="train"))
    except Exception as error:  # the client raises many kinds when offline
        kind = type(error).__name__
        raise ConnectionError(f"gsm8k: cannot load {HUB_NAME} from the hub ({kind}); pass GSM8K=PATH") from None


class GSM8K(Arithmetic):
    """Real word problems; level is the number of gold steps, at most 6."""

    name = "gsm8k"

    def generate(
        self,
        count: int,
        split: str,
        seed: int,
        levels: Sequence[int] | None = None,
        path: str | Path | None = None,
    ) -> list[Problem]:
        """`count` rows that convert, drawn from those whose question's hash falls into `split`.

        Raises ValueError for an unknown split or level, or where there are fewer such rows.
        """
        levels = LEVELS if levels is None else levels
        check_request(self.name, split, levels, LEVELS)
        rows = {" ".join(row["question"].lower().split()): row for row in load_rows(path)}
        canonicals = [canonical for canonical in rows if split_of(canonical) == split]
        random.Random(f"{seed} {split}").shuffle(canonicals)
        problems: list[Problem] = []
        for canonical in canonicals:
            if len(problems) == count:
                break
            steps = convert_row(rows[canonical])
            if not isinstance(steps, ConversionFailure) and len(steps) in levels:
                identity = f"{self.name}-{split}-{len(problems) + 1:04d}"
                problems.append(_problem(identity, split, rows[canonical], canonical, steps))
        if len(problems) < count:
            raise ValueError(f"gsm8k: {count} {split} problems asked for, only {len(problems)} in {path or HUB_NAME}")
        return problems


def _problem(identity: str, split: str, row: dict[str, str], canonical: str, steps: list[Step]) -> Problem:
    answer = format_number(parse_answer(row["answer"].rpartition("####")[2]))
    question = " ".join(row["question"].split())
    return Problem(identity, GSM8K.name, split, len(steps), question, answer, canonical, {"steps": steps})

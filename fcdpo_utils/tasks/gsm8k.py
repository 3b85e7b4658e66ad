"""GSM8K (Cobbe et al., arXiv 2110.14168) as chains: its `<<48/2=24>>` annotations become gold calls.

Reads rows {"question", "answer"} from JSONL files or from the hub. To learn from, it keeps those whose chain, once run,
gives the row's own answer; a source of its own for tests is a benchmark and asked whole. `fcdpo gsm8k PATH` prints how
many rows convert and why the others do not.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import islice
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


def load_rows(path: str | Path | None = None, hub_split: str = "train") -> list[dict[str, str]]:
    """Rows of a JSONL file, or of that split of the hub's data set where `path` is None.

    Raises FileNotFoundError, ValueError (naming file and line) or ConnectionError, each with one line.
    """
    if path is None:
        return _hub_rows(hub_split)
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


def _hub_rows(split: str) -> list[dict[str, str]]:
    import datasets  # slow to import, and only this way of loading needs it

    try:
        return list(datasets.load_dataset(HUB_NAME, "main", split=split))
    except Exception as error:  # the client raises many kinds when offline
        kind = type(error).__name__
        raise ConnectionError(f"gsm8k: cannot load {HUB_NAME} from the hub ({kind}); pass GSM8K=PATH") from None


class GSM8K(Arithmetic):
    """Real word problems; level is the number of gold steps, at most 6 where a chain is learnt from."""

    name = "gsm8k"

    def generate(
        self,
        count: int,
        split: str,
        seed: int,
        levels: Sequence[int] | None = None,
        path: str | Path | None = None,
        test_path: str | Path | None = None,
    ) -> list[Problem]:
        """`count` rows, drawn by `seed`: training rows from `path` or the hub, test rows from `test_path` or the hub.

        Test rows of such a source are all asked, at any level, with or without a gold chain, if only their answer can
        be read. With `path` alone both splits are drawn from it, by the question's hash, among the rows that convert.
        Raises ValueError for an unknown split or level, or where there are fewer such rows.
        """
        levels = LEVELS if levels is None else levels
        check_request(self.name, split, levels, LEVELS)
        benchmark = split == "test" and (path is None or test_path is not None)
        rows = _rows_of(split, path, test_path) if count else []
        random.Random(f"{seed} {split}").shuffle(rows)
        found = islice(_problems(rows, split, None if benchmark else levels), count)
        problems = [replace(p, id=f"{self.name}-{split}-{number:04d}") for number, p in enumerate(found, start=1)]
        if len(problems) < count:
            source = (test_path if benchmark else path) or HUB_NAME
            raise ValueError(f"gsm8k: {count} {split} problems asked for, only {len(problems)} in {source}")
        return problems

    def gold_calls(self, problem: Problem, rng: random.Random | None = None, toolset: str | None = None) -> list[str]:
        """As for arithmetic. Raises ValueError for a test row whose annotations do not convert."""
        if not problem.details["steps"]:
            raise ValueError(f"gsm8k: {problem.id} has no gold chain; it is for evaluation only")
        return super().gold_calls(problem, rng, toolset)


def _rows_of(split: str, path: str | Path | None, test_path: str | Path | None) -> list[dict[str, str]]:
    """The rows that `split` may use: no question is in both, up to case and spaces."""
    if path is not None and test_path is None:
        return [row for canonical, row in _by_question(load_rows(path)).items() if split_of(canonical) == split]
    asked = load_rows(test_path, "test")
    if split == "test":
        return asked
    held_out = _by_question(asked)
    return [row for canonical, row in _by_question(load_rows(path)).items() if canonical not in held_out]


def _by_question(rows: Iterable[dict[str, str]]) -> dict[str, dict[str, str]]:
    return {_canonical(row): row for row in rows}


def _canonical(row: dict[str, str]) -> str:
    return " ".join(row["question"].lower().split())


def _problems(rows: Iterable[dict[str, str]], split: str, levels: Sequence[int] | None) -> Iterator[Problem]:
    """Problems without their ids: rows with a gold chain of one of `levels`; where it is None, all with an answer."""
    for row in rows:
        outcome = convert_row(row)
        steps = [] if isinstance(outcome, ConversionFailure) else outcome
        wanted = outcome != NO_ANSWER if levels is None else len(steps) in levels
        if wanted:
            yield _problem(split, row, steps)


def _problem(split: str, row: dict[str, str], steps: list[Step]) -> Problem:
    answer = format_number(parse_answer(row["answer"].rpartition("####")[2]))
    question = " ".join(row["question"].split())
    level = len(steps) or max(1, len(_ANNOTATION.findall(row["answer"])))
    return Problem("", GSM8K.name, split, level, question, answer, _canonical(row), {"steps": steps})

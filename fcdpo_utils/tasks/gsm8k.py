"""GSM8K (Cobbe et al., arXiv 2110.14168) as chains: its `<<48/2=24>>` annotations become gold calls.

Reads rows {"question", "answer"} from JSONL files or from the hub. To learn from, it keeps those whose last step gives
the row's own answer; a source of its own for tests is a benchmark and asked whole. `fcdpo gsm8k PATH` prints how many
rows convert and why the others do not.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from enum import StrEnum
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path

from fcdpo_utils.arithmetic import Arithmetic, Step, compute, parse_answer
from fcdpo_utils.numbers import answers_equal, format_number, is_stated, numbers_in, parse_number
from fcdpo_utils.problems import Problem, check_request, split_of
from fcdpo_utils.tasks.expression import expression_steps
from fcdpo_utils.tools import ToolError

LEVELS = (1, 2, 3, 4, 5, 6)
HUB_NAME = "openai/gsm8k"
File = str | Path | None  # a JSONL file, None is the hub
Levels = Sequence[int]

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


class ConversionFailure(StrEnum):
    """Why a row has no chain, in the words of the report's table."""

    NO_ANSWER = "no answer after ####"
    NO_CALCULATION = "no calculation to read"
    UNREADABLE = "an annotation cannot be read"
    WRONG_RESULT = "an annotation does not equal its own expression"
    OTHER_ANSWER = "the last result is not the answer"


def convert_row(row: dict[str, str]) -> list[Step] | ConversionFailure:
    """Gold steps of one row, or why there are none.

    Equations that the author left unmarked are read too: without "160*5 = 800" a later call would use an 800 from
    nowhere. Where they do not lead to the answer, the annotations alone are tried.
    """
    text, mark, final = row["answer"].rpartition("####")
    try:
        answer = parse_answer(final if mark else "")
    except ValueError:
        return ConversionFailure.NO_ANSWER
    outcome = _convert(_all_equations(text), answer)
    return _convert(_ANNOTATION.findall(text), answer) if isinstance(outcome, ConversionFailure) else outcome


def _convert(equations: list[str], answer: Fraction) -> list[Step] | ConversionFailure:
    """The steps of all equations in order, the last of which must give the answer."""
    outcomes = list(map(_read_equation, equations))
    if failures := [outcome for outcome in outcomes if isinstance(outcome, ConversionFailure)]:
        return failures[0]
    if not any(outcomes):
        return ConversionFailure.NO_CALCULATION
    steps = list(chain.from_iterable(outcomes))
    return steps if answers_equal(_result(steps[-1]), answer) else ConversionFailure.OTHER_ANSWER


def _result(step: Step) -> Fraction:
    function, *operands = step
    return compute(function, *map(parse_number, operands))


def _read_equation(equation: str) -> list[Step] | ConversionFailure:
    """The steps of "48/2=24", whose two sides must agree."""
    expression, _, result = equation.partition("=")
    try:
        steps, value = expression_steps(_rewrite(expression))
        return steps if answers_equal(value, parse_answer(result)) else ConversionFailure.WRONG_RESULT
    except (ToolError, ValueError):
        return ConversionFailure.UNREADABLE


def _rewrite(text: str) -> str:
    for pattern, replacement in _REWRITES:
        text = re.sub(pattern, replacement, text)
    return text.strip()


def _all_equations(text: str) -> list[str]:
    """Annotations and, behind the last one of each line, unmarked equations that hold."""
    equations: list[str] = []
    for line in text.splitlines():
        equations += _ANNOTATION.findall(line)
        unmarked = _EQUATION.findall(_rewrite(line.rpartition(">>")[2]))
        equations += [found for found in unmarked if not isinstance(_read_equation(found), ConversionFailure)]
    return equations


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


def load_rows(path: File = None, hub_split: str = "train") -> list[dict[str, str]]:
    """Rows of a JSONL file, or of that split of the hub's data set where `path` is None.

    Raises FileNotFoundError, ValueError (naming file and line) or ConnectionError, each with one line.
    """
    if path is None:
        import datasets  # slow to import, and only this way of loading needs it

        try:
            return list(datasets.load_dataset(HUB_NAME, "main", split=hub_split))
        except Exception as error:  # the client raises many kinds when offline
            kind = type(error).__name__
            raise ConnectionError(f"gsm8k: cannot load {HUB_NAME} from the hub ({kind}); pass GSM8K=PATH") from None
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


class GSM8K(Arithmetic):
    """Real word problems; level is the number of gold steps, at most 6 where a chain is learnt from."""

    name = "gsm8k"
    constants = (7, 12, 24, 30, 52, 60, 100, 365, 1000)  # of units: days, months, hours, minutes, cents, metres

    def constants_of(self, problem: Problem) -> Sequence[int | str]:
        """Also the numbers that the row's author takes from elsewhere."""
        return *self.constants, *problem.details.get("constants", ())

    def generate(
        self, count: int, split: str, seed: int, levels: Levels = LEVELS, path: File = None, test_path: File = None
    ) -> list[Problem]:
        """`count` rows, drawn by `seed`: training rows from `path` or the hub, test rows from `test_path` or the hub.

        Test rows of such a source are all asked, at any level, with or without a gold chain, if only their answer can
        be read. With `path` alone both splits are drawn from it, by the question's hash, among the rows that convert.
        Raises ValueError for an unknown split or level, or where there are fewer such rows.
        """
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


def _rows_of(split: str, path: File, test_path: File) -> list[dict[str, str]]:
    """The rows that `split` may use: no question is in both, up to case and spaces."""
    shared = path is not None and test_path is None
    asked = [] if shared else load_rows(test_path, "test")
    if split == "test" and not shared:
        return asked
    rows = {_canonical(row): row for row in load_rows(path)}  # a question once
    others = {text for text in rows if split_of(text) != split} if shared else set(map(_canonical, asked))
    return [row for text, row in rows.items() if text not in others]


def _canonical(row: dict[str, str]) -> str:
    return " ".join(row["question"].lower().split())


def _problems(rows: Iterable[dict[str, str]], split: str, levels: Levels | None) -> Iterator[Problem]:
    """Problems without their ids: rows with a gold chain of one of `levels`; where it is None, all with an answer."""
    for row in rows:
        outcome = convert_row(row)
        steps = [] if isinstance(outcome, ConversionFailure) else outcome
        if outcome == ConversionFailure.NO_ANSWER or not (levels is None or len(steps) in levels):
            continue
        answer = format_number(parse_answer(row["answer"].rpartition("####")[2]))
        question = " ".join(row["question"].split())
        level = len(steps) or max(1, len(_ANNOTATION.findall(row["answer"])))
        details = {"steps": steps, "constants": _constants(question, steps)}
        yield Problem("", GSM8K.name, split, level, question, answer, _canonical(row), details)


def _constants(question: str, steps: list[Step]) -> list[str]:
    """The numbers that enter `steps` from neither the question nor an earlier step nor a unit."""
    stated, missing = numbers_in(question) | set(map(Fraction, GSM8K.constants)), []
    for step in steps:
        missing += [number for number in dict.fromkeys(step[1:]) if not is_stated(number, stated)]
        stated |= {abs(parse_number(number)) for number in missing}
        stated |= numbers_in(format_number(_result(step)))
    return missing

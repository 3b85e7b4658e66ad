"""The same call strings through microchain-python's engine, which the paper's agent used, and through ours.

Wherever microchain accepts a call, ours answers the same; every exception is a row of `DIFFERENCES`, asserted here and
printed in docs/microchain.md. `python tests/test_microchain.py` writes that table anew.
"""

# No `from __future__ import annotations`: microchain's help fails on annotations that are strings.

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pytest

from fcdpo_utils.numbers import format_number
from fcdpo_utils.tools import Number, ToolError, ToolResult, Toolset, tool

microchain = pytest.importorskip("microchain")

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "microchain.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"
WRONG_FORMAT = "Error: wrong format. Use "
TRACEBACK = "Error inside function call: Traceback (most recent call last):"
UNCAUGHT = "uncaught "


# The same functions for both


class Sum(microchain.Function):
    description = "Add two numbers"
    example_args = (1, 2)

    def __call__(self, a: float, b: float):
        return a + b


class Subtract(microchain.Function):
    description = "Subtract b from a"
    example_args = (3, 2)

    def __call__(self, a: float, b: float):
        return a - b


class Multiply(microchain.Function):
    description = "Multiply two numbers"
    example_args = (2, 3)

    def __call__(self, a: float, b: float):
        return a * b


class Divide(microchain.Function):
    description = "Divide a by b"
    example_args = (6, 4)

    def __call__(self, a: float, b: float):
        return a / b


class Scale(microchain.Function):
    description = "Multiply by ten, or by another number"
    example_args = (2, 10)

    def __call__(self, value: float, by: float = 10):
        return value * by


class Total(microchain.Function):
    description = "Add a list of numbers"
    example_args = ([1, -2],)

    def __call__(self, values: list):
        return sum(values)


class Conclude(microchain.Function):
    description = "Conclude"
    example_args = ("True",)

    def __call__(self, label: str):
        return f"Answer recorded: {label}"


class Ping(microchain.Function):
    description = "Say that you are there"
    example_args = ()

    def __call__(self):
        return "pong"


class Ours(Toolset):
    """The functions above, written for `Toolset`."""

    @tool("Sum(1, 2)")
    def Sum(self, a: Number, b: Number) -> str:
        """Add two numbers."""
        return format_number(a + b)

    @tool("Subtract(3, 2)")
    def Subtract(self, a: Number, b: Number) -> str:
        """Subtract b from a."""
        return format_number(a - b)

    @tool("Multiply(2, 3)")
    def Multiply(self, a: Number, b: Number) -> str:
        """Multiply two numbers."""
        return format_number(a * b)

    @tool("Divide(6, 4)")
    def Divide(self, a: Number, b: Number) -> str:
        """Divide a by b."""
        if b == 0:
            raise ToolError("b must not be 0")
        return format_number(a / b)

    @tool("Scale(2)")
    def Scale(self, value: Number, by: Number = Fraction(10)) -> str:
        """Multiply by ten, or by another number."""
        return format_number(value * by)

    @tool("Total([1, -2])")
    def Total(self, values: list[Number]) -> str:
        """Add a list of numbers."""
        return format_number(sum(values, Fraction(0)))

    @tool('Conclude("True")')
    def Conclude(self, label: str) -> str:
        """Conclude."""
        return f"Answer recorded: {label}"

    @tool("Ping()")
    def Ping(self) -> str:
        """Say that you are there."""
        return "pong"


# Calls that microchain accepts: ours answers the same.

SAME_ANSWER = (
    "Sum(1, 2)",
    "Sum(1,2)",
    "Sum( 1 , 2 )",
    "Sum(0, 0)",
    "Sum(a=1, b=2)",
    "Sum(b=1, a=2)",
    "Sum(1, b=2)",
    "Sum(1, 2,)",
    "Sum(1, 2) ",
    "Sum(1, 2)\n",
    "Sum(1, 2);",
    "Sum(1, 2)  # three",
    "(Sum(1, 2))",
    "Sum(\n  1,\n  2\n)",
    "Sum(1_000, 0x10)",
    "Sum(0.5, 0.25)",
    "Sum(1.5, 2)",
    "Sum(999999999999999, 1)",
    "Ｓum(1, 2)",
    "Subtract(3, 2)",
    "Subtract(2, 3)",
    "Subtract(a=10, b=0.5)",
    "Multiply(6, 7)",
    "Multiply(0.5, 3)",
    "Multiply(12345, 6789)",
    "Divide(7, 2)",
    "Divide(1, 8)",
    "Divide(a=3, b=4)",
    "Scale(2, 3)",
    "Scale(2, by=3)",
    'Conclude("True")',
    "Conclude('False')",
    'Conclude(label="Unknown")',
    'Conclude("")',
    'Conclude("a" "b")',
    'Conclude("""a""")',
    "Conclude(r'a')",
    'Conclude("it\'s (all) [fine], {is} it not?")',
    'Conclude("Größe ≥ 3 🙂")',
    'Conclude("Sum(1, 2)")',
    'Conclude("-1")',
    "Ping()",
    "Ping( )",
)

# Calls that neither accepts; each has its own words for it.

BOTH_REFUSE = (
    "",
    "   ",
    "# thinking",
    "hello",
    "The answer is 3",
    "3",
    "Sum",
    "Sum(1, 2",
    "Sum(1, 2))",
    "Sum 1, 2",
    "Sum(1 2)",
    "Sum[1, 2]",
    "I call Sum(1, 2)",
    "I add.\nSum(1, 2)",
    "Sum(1, 2)\nSum(3, 4)",
    "Sum(1, 2); Ping()",
    "x = Sum(1, 2)",
    "Sum(1, 2) + 1",
    "lambda: Ping()",
    "Ping()()",
    "math.sqrt(4)",
    "__import__('os').system('true')",
    "eval('1')",
    "Power(2, 3)",
    "ping()",
    "Sum()",
    "Sum(1)",
    "Sum(1, 2, 3)",
    "Sum(a=1)",
    "Sum(1, a=2)",
    "Sum(a=1, c=2)",
    "Sum(x, 2)",
    "Sum(1 + 1, 2)",
    "Sum(Sum(1, 1), 2)",
    "Sum(None, 2)",
    'Sum("two", 2)',
    "Sum((1, 2), 3)",
    "Sum([1], 2)",
    "Sum(*[1, 2])",
    "Sum(**{'a': 1, 'b': 2})",
    "Sum(1, **2)",
    "Conclude()",
    "Conclude(True",
    "Conclude(f'a')",
    "Conclude(open('/etc/passwd').read())",
    "Ping(1)",
    "Total(3)",
    "\ufeffSum(1, 2)",
    "Sum(" + "(" * 250 + "1" + ")" * 250 + ", 2)",
)


@dataclass(frozen=True)
class Difference:
    """One call on which the two disagree: what each answers, and why ours does so.

    `microchain` is its answer, the beginning of its answer where that ends in "…" (paths of the machine follow), or
    "uncaught X" for an exception X that it lets escape. `shown` stands for a call too long to print.
    """

    call: str
    microchain: str
    ours: str
    why: str
    shown: str = ""


def _no_variables(call: str) -> str:
    return f"Error: the command {call} must be a function call, you cannot use variables. Please try again."


def _rejected_by_microchain(call: str, ours: str, why: str) -> Difference:
    return Difference(call, _no_variables(call), ours, why)


NOT_A_LITERAL = "must be a string, a number, True, False or a flat list of these"
RANGE = "numbers are bounded, so that no call can be made slow or its answer long"
TYPES = "annotations are checked"

DIFFERENCES = (
    _rejected_by_microchain("Sum(-1, 2)", "1", "negative numbers are literals"),
    _rejected_by_microchain("Sum(+1, 2)", "3", "signed numbers are literals"),
    _rejected_by_microchain("Sum(a=-1.5, b=2)", "0.5", "also by keyword"),
    _rejected_by_microchain("Total([1, 2])", "3", "lists are literals"),
    _rejected_by_microchain("Total(values=[1, -2])", "-1", "the example that microchain's own help prints"),
    Difference(
        "Scale(2)",
        WRONG_FORMAT + "Scale(value: float, by: float). Example: Scale(value=2, by=10). Please try again.",
        "20",
        "defaults can be used",
    ),
    Difference(
        "Scale(value=2)",
        WRONG_FORMAT + "Scale(value: float, by: float). Example: Scale(value=2, by=10). Please try again.",
        "20",
        "also by keyword",
    ),
    Difference('Sum("2", "3")', "23", "5", "a numeric string is a number"),
    Difference('Sum("two", "three")', "twothree", "Error: Sum: a must be a number, got 'two'", TYPES),
    Difference(
        'Sum(1, "2")',
        WRONG_FORMAT + "Sum(a: float, b: float). Example: Sum(a=1, b=2). Please try again.",
        "3",
        "a numeric string is a number",
    ),
    Difference('Multiply("ab", 3)', "ababab", "Error: Multiply: a must be a number, got 'ab'", TYPES),
    Difference("Sum(True, 1)", "2", "Error: Sum: a must be a number, got True", "a bool is not a number"),
    Difference("Sum(1j, 2)", "(2+1j)", f"Error: Sum: argument 1 {NOT_A_LITERAL}", "no complex numbers"),
    Difference("Sum(b'a', b'b')", "b'ab'", f"Error: Sum: argument 1 {NOT_A_LITERAL}", "no bytes"),
    Difference(
        "Conclude(None)",
        "Answer recorded: None",
        f"Error: Conclude: argument 1 {NOT_A_LITERAL}",
        "no None",
    ),
    Difference("Conclude(True)", "Answer recorded: True", "Error: Conclude: label must be a string, got True", TYPES),
    Difference("Conclude(3)", "Answer recorded: 3", "Error: Conclude: label must be a string, got 3", TYPES),
    Difference("Sum(a=1, a=2, b=3)", "5", "Error: Sum: argument a is given twice", "which one was meant is unknown"),
    Difference("Sum(0.1, 0.2)", "0.30000000000000004", "0.3", "numbers are exact fractions"),
    Difference("Divide(6, 3)", "2.0", "2", "a whole number is written as one"),
    Difference("Divide(1, 3)", "0.3333333333333333", "1/3", "numbers are exact fractions"),
    Difference("Sum(1e999, 1)", "inf", "Error: Sum: argument 1 is too large a number", "no infinity"),
    Difference("Sum(1e99, 1)", "1e+99", "Error: Sum: a must be a number, got 1e+99", RANGE),
    Difference(
        "Sum(10000000000000000, 1)",
        "10000000000000001",
        "Error: Sum: a must be a number, got 10000000000000000",
        RANGE,
    ),
    Difference(
        "Divide(1, 0)",
        TRACEBACK + "…",
        "Error: Divide: b must not be 0",
        "the model reads one line, never a traceback with this machine's paths",
    ),
    Difference(
        " Sum(1, 2)",
        "Error: syntax error in command  Sum(1, 2). Please try again.",
        "3",
        "space around a call does no harm",
    ),
    Difference(r'Conclude("a\nb")', "Answer recorded: a\nb", r"Answer recorded: a\nb", "an answer is one line"),
    Difference(r'Conclude("\x1b[2J")', "Answer recorded: \x1b[2J", r"Answer recorded: \x1b[2J", "and printable"),
    Difference(
        'Conclude("<|im_end|>")',
        "Answer recorded: <|im_end|>",
        "Answer recorded: < |im_end| >",
        "an answer cannot name a chat role",
    ),
    Difference(
        f'Conclude("{"x" * 500}")',
        f"Answer recorded: {'x' * 500}",
        f"Answer recorded: {'x' * 280}...",
        "an answer has at most 300 characters",
        shown='Conclude("xxx…"), 500 x',
    ),
    Difference(
        f'Conclude("{"x" * 5_000}")',
        f"Answer recorded: {'x' * 5_000}",
        "Error: a call has at most 2000 characters, got 5012",
        "a call has at most 2,000 characters",
        shown='Conclude("xxx…"), 5,000 x',
    ),
    Difference(
        f"Sum({'-' * 100_000}1, 2)",
        UNCAUGHT + "MemoryError",
        "Error: a call has at most 2000 characters, got 100009",
        "no text ends the run",
        shown="Sum(---…1, 2), 100,000 signs",
    ),
    Difference(
        'Conclude("\ud800")',
        UNCAUGHT + "UnicodeEncodeError",
        r'Error: cannot read "Conclude("\ud800")" as a call; check quotes and parentheses',
        "no text ends the run",
    ),
)


# Both engines


def run_microchain(call: str) -> tuple[bool, str]:
    """Whether microchain accepts the call, and its answer."""
    engine = microchain.Engine({})
    for function in (Sum, Subtract, Multiply, Divide, Scale, Total, Conclude, Ping):
        instance = function()
        instance.example_args = list(instance.example_args)  # it insists on a list
        engine.register(instance)
    engine.bind(object())  # it insists on an agent, and on its help having been read
    assert engine.help
    result, text = engine.execute(call)
    return result == microchain.FunctionResult.SUCCESS, text


def run_ours(call: str) -> ToolResult:
    return Ours().call(call)


@pytest.mark.parametrize("call", SAME_ANSWER)
def test_a_call_that_microchain_accepts_has_the_same_answer(call: str) -> None:
    assert run_microchain(call) == (True, run_ours(call).text)
    assert run_ours(call).error is None


@pytest.mark.parametrize("call", BOTH_REFUSE)
def test_a_call_that_microchain_refuses_is_an_error(call: str) -> None:
    assert not run_microchain(call)[0]
    assert run_ours(call).error is not None


@pytest.mark.parametrize("row", DIFFERENCES, ids=lambda row: ascii(row.shown or row.call))
def test_ours_answers_as_the_table_says(row: Difference) -> None:
    result = run_ours(row.call)
    assert result.text == row.ours
    assert (result.error is not None) == row.ours.startswith("Error: ")


@pytest.mark.parametrize("row", DIFFERENCES, ids=lambda row: ascii(row.shown or row.call))
def test_microchain_answers_as_the_table_says(row: Difference) -> None:
    if row.microchain.startswith(UNCAUGHT):
        with pytest.raises((MemoryError, RecursionError, UnicodeEncodeError)) as caught:
            run_microchain(row.call)
        assert caught.typename == row.microchain.removeprefix(UNCAUGHT)
        return
    accepted, text = run_microchain(row.call)
    assert accepted == (not row.microchain.startswith("Error"))
    if row.microchain.endswith("…"):
        assert text.startswith(row.microchain[:-1])
    else:
        assert text == row.microchain


def test_microchain_tells_the_model_paths_of_the_machine() -> None:
    assert microchain.__file__.removesuffix("__init__.py") in run_microchain("Divide(1, 0)")[1]


def test_each_row_of_the_table_is_a_difference() -> None:
    assert [row.call for row in DIFFERENCES if row.microchain == row.ours] == []


def test_no_call_is_listed_twice() -> None:
    calls = [*SAME_ANSWER, *BOTH_REFUSE, *(row.call for row in DIFFERENCES)]
    assert len(calls) == len(set(calls)) >= 60


def test_engines_of_microchain_share_their_default_state_and_toolsets_of_ours_do_not() -> None:
    assert microchain.Engine().state is microchain.Engine().state
    assert vars(Ours()) is not vars(Ours())


def test_microchain_s_help_fails_on_postponed_annotations() -> None:
    class Postponed(Ping):
        def __call__(self, label: "str"):
            return label

    with pytest.raises(AttributeError, match="__name__"):
        assert Postponed().help


# The table in the documentation


def markdown_table() -> str:
    """`DIFFERENCES` as a markdown table, one row a call."""
    rows = [(_code(row.shown or row.call), _answer(row.microchain), _answer(row.ours), row.why) for row in DIFFERENCES]
    lines = [("Call", "microchain-python 0.4.6", "Ours", "Why ours"), ("---",) * 4, *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _answer(text: str) -> str:
    return text if text.startswith(UNCAUGHT) else _code(text)


def _code(text: str) -> str:
    """Inline code; control characters become their pictures, such as ␊ for a line break."""
    length = f" ({len(text):,} characters)" if len(text) > 120 else ""
    shown = text[:24] + "…" if length else text
    pictures = "".join(chr(0x2400 + ord(c)) if ord(c) < 32 else c for c in shown)
    return f"`{pictures}`{length}".replace("|", "\\|").replace("\ud800", "\\ud800")


def test_the_documentation_has_the_table() -> None:
    assert BEGIN + markdown_table() + END in DOCUMENT.read_text(encoding="utf-8")


if __name__ == "__main__":
    before, rest = DOCUMENT.read_text(encoding="utf-8").split(BEGIN)
    DOCUMENT.write_text(before + BEGIN + markdown_table() + END + rest.split(END)[1], encoding="utf-8")

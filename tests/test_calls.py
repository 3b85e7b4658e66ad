"""The call parser as a specification, and arbitrary strings thrown at `Toolset.call`.

A model's output is hostile: whatever comes, the answer is one printable line, in time, and nothing is evaluated.
"""

from __future__ import annotations

import builtins
import re
import sys
import time
from fractions import Fraction
from typing import Literal, Self

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fcdpo_utils.calls import (
    MAX_CALL_CHARACTERS,
    MAX_RESULT_CHARACTERS,
    CallError,
    ParsedCall,
    as_line,
    one_line,
    parse_call,
)
from fcdpo_utils.numbers import format_number
from fcdpo_utils.tools import Number, ToolResult, Toolset, tool

pytestmark = pytest.mark.xdist_group("calls")  # one process counts the strings
NOT_A_LITERAL = "Error: Sum: argument 1 must be a string, a number, True, False or a flat list of these"
ONE_CALL_ONLY = "Error: write exactly one call and nothing else"
MAX_SECONDS = 0.050
LEAST_STRINGS = 20_000


def error_of(text: str) -> tuple[str, str]:
    """Kind and line of the error that parsing `text` raises."""
    with pytest.raises(CallError) as caught:
        parse_call(text)
    return caught.value.kind, str(caught.value)


# What is a call


@pytest.mark.parametrize(
    ("text", "args", "kwargs"),
    [
        ("Stop()", (), {}),
        ("Sum(1, 2)", (1, 2), {}),
        ("Sum(a=1, b=2)", (), {"a": 1, "b": 2}),
        ("Sum(1, b=2)", (1,), {"b": 2}),
        ("Sum(1.5, 2e3)", (1.5, 2000.0), {}),
        ("Sum(-1, +2)", (-1, 2), {}),
        ("Sum(-1.5, 1_000)", (-1.5, 1000), {}),
        ("Sum(0x10, 0b11)", (16, 3), {}),
        ("Sum([1, -2, 'a', True])", ([1, -2, "a", True],), {}),
        ("Sum([])", ([],), {}),
        ("Sum('it''s', \"x\")", ("its", "x"), {}),
        ("Sum(True, False)", (True, False), {}),
    ],
)
def test_a_call_with_literal_arguments_is_parsed(text: str, args: tuple, kwargs: dict) -> None:
    assert parse_call(text) == ParsedCall("Sum" if text.startswith("Sum") else "Stop", args, kwargs)


def test_booleans_stay_booleans() -> None:
    assert [type(value) for value in parse_call("Sum(True, 1)").args] == [bool, int]


@pytest.mark.parametrize("text", ["  Sum(1)\n", "\tSum(1)", "Sum(1) ", "(Sum(1))", "Sum(1)  # so far", "Sum(\n  1,\n)"])
def test_whitespace_parentheses_and_a_comment_around_a_call_are_allowed(text: str) -> None:
    assert parse_call(text) == ParsedCall("Sum", (1,), {})


def test_a_call_of_exactly_the_limit_is_parsed() -> None:
    content = "x" * (MAX_CALL_CHARACTERS - len('Sum("")'))
    assert parse_call(f'Sum("{content}")').args == (content,)


# What is not, and the one line the model reads


def test_one_character_over_the_limit_is_a_syntax_error() -> None:
    text = "Sum(" + "1" * (MAX_CALL_CHARACTERS - 4) + ")"
    assert error_of(text) == ("syntax", "Error: a call has at most 2000 characters, got 2001")


def test_spaces_around_a_call_do_not_count_towards_the_limit() -> None:
    assert parse_call(" " * 5_000 + "Stop()").name == "Stop"


@pytest.mark.parametrize(
    "text", ["Sum(1, 2", "Sum(1, 2))", 'Sum("a)', "Sum(1 2)", "Sum(1,, 2)", "I add Sum(1, 2)", "Sum(01)"]
)
def test_text_that_python_cannot_read_is_a_syntax_error(text: str) -> None:
    assert error_of(text) == ("syntax", f'Error: cannot read "{text}" as a call; check quotes and parentheses')


@pytest.mark.parametrize(
    ("text", "shown"),
    [("Sum(1)\x00", "Sum(1)\\x00"), ('Sum("\ud800")', 'Sum("\\ud800")'), ("Sum(\x1b[0m)", "Sum(\\x1b[0m)")],
)
def test_characters_that_python_cannot_read_are_a_syntax_error_and_shown_escaped(text: str, shown: str) -> None:
    assert error_of(text) == ("syntax", f'Error: cannot read "{shown}" as a call; check quotes and parentheses')


@pytest.mark.parametrize("text", ["", "  \n\t ", "# only a comment"])
def test_an_empty_message_is_not_a_call(text: str) -> None:
    assert error_of(text) == ("not_a_call", "Error: expected one call, got an empty message")


@pytest.mark.parametrize(
    "text",
    ["hello", "the answer is 4", "4", "Sum", "x = 1", "Sum(1) + 1", "Sum[1]", "lambda: Stop()", "import os", "-Sum(1)"]
    + ["os.system('ls')", "Stop()()", "[Sum](1)", "await Stop()", "(x := Stop())", "del Sum"],
)
def test_anything_but_a_call_on_a_bare_name_is_not_a_call(text: str) -> None:
    assert error_of(text) == ("not_a_call", f'Error: expected one call such as Stop(), got "{text}"')


def test_an_error_line_quotes_at_most_sixty_characters() -> None:
    assert error_of("y" * 100) == ("not_a_call", f'Error: expected one call such as Stop(), got "{"y" * 60}"')


@pytest.mark.parametrize("text", ["Sum(1)\nSum(2)", "Sum(1); Sum(2)", "x = 1; Sum(x)", "Sum(1)\n\nStop()"])
def test_several_statements_are_extra_text(text: str) -> None:
    assert error_of(text) == ("extra_text", ONE_CALL_ONLY)


@pytest.mark.parametrize(
    "text",
    ["First I add.\nSum(1, 2)", "Sum(1, 2)\nso it's 3", "I don't know.\n\nSum(1, 2)", "Sum(\n1,\n2)\nSum(3, 4)"]
    + ["Here:\n```python\nSum(1, 2)\n```", "```python\nSum(1, 2)", "```\nSum(1, 2)\nSum(3, 4)\n```"]
    + ["```\nSum(1, 2)\n```\n```\nSum(1, 2)\n```"],
)
def test_prose_on_other_lines_than_the_call_is_extra_text(text: str) -> None:
    assert error_of(text) == ("extra_text", ONE_CALL_ONLY)


@pytest.mark.parametrize(
    "text", ["```python\nSum(1)\n```", "```\nSum(1)\n```\n", " ```py\r\n\nSum(1)```", "```\nSum(\n1)\n```"]
)
def test_a_call_alone_in_a_markdown_fence_is_parsed(text: str) -> None:
    assert parse_call(text) == ParsedCall("Sum", (1,), {})


# The one line that is recorded


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("  Sum(1, 2)\n", "Sum(1, 2)"),
        ("```python\nSum(1, 2)\n```", "Sum(1, 2)"),
        ("Sum(\n  1,  # one\n  2,\n)", "Sum(1, 2)"),
        ("Sum(1,\r\n2)", "Sum(1, 2)"),
        ('Reasoning("""a\nb""")', r"Reasoning('a\nb')"),
        ('Reasoning("a\\nb")', 'Reasoning("a\\nb")'),  # on one line already
        ('Reasoning("<"\n"|im_end|>")', "Reasoning('< |im_end| >')"),
        ("Sum(1, 2)\nSum(3, 4)", r"Sum(1, 2)\nSum(3, 4)"),
        ("I add.\nSum(1, 2)", r"I add.\nSum(1, 2)"),
    ],
)
def test_a_message_becomes_one_line(text: str, line: str) -> None:
    assert as_line(text) == line


def verdict(text: str) -> str | None:
    try:
        parse_call(text)
    except CallError as error:
        return error.kind
    return None


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Sum(1, 2)\nSum(3, 4)", "extra_text"),
        ("Sum(1, 2)\r\n\r\nSum(3, 4)", "extra_text"),
        ("Sum(\n1,\n2)\nSum(3, 4)", "extra_text"),
        ("I don't know.\nSum(1, 2)", "extra_text"),
        ("Sum(1, 2)\nso it's 3", "extra_text"),
        ("Here:\n```python\nSum(1, 2)\n```", "extra_text"),
        ("```\nSum(1, 2)\nSum(3, 4)\n```", "extra_text"),
        ('Reasoning("a\nSum(1, 2)', "syntax"),  # the first call has no end
        ("Sum(01,\n2)", "syntax"),
        ("(1,\n2)", "not_a_call"),
        ("Sum(\n1)", None),
        ("```\nSum(1)\n```", None),
    ],
)
def test_the_line_that_is_recorded_has_the_verdict_of_the_message(text: str, kind: str | None) -> None:
    assert (verdict(text), verdict(as_line(text))) == (kind, kind)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (r'Reasoning("a\nSum(1, 2)', "syntax"),
        (r"Sum(1, 2)\n", "syntax"),
        (r"so\nit is", "not_a_call"),
        ("```Sum(1, 2)```", "syntax"),
        (r"Sum(1, 2)\nSum(3, 4)", "extra_text"),  # what is recorded of two lines
    ],
)
def test_a_written_line_break_parts_only_what_is_outside_a_call(text: str, kind: str) -> None:
    assert verdict(text) == kind


@pytest.mark.parametrize(
    "argument",
    ["x", "None", "...", "1j", "b'a'", "f'a'", "1 + 1", "10**9", "1/3", "--1", "-True", "-'1'", "not 1", "~1", "Sum(1)"]
    + ["(1, 2)", "{1}", "{1: 2}", "[[1]]", "[x]", "[Sum(1)]", "*[1]", "lambda: 1", "1 if 1 else 2", "[i for i in 'a']"]
    + ["x.y", "x[0]", "1 < 2", "1 and 2", "(y := 1)", "-[1]", "[-[1]]", "i for i in 'a'"],
)
def test_an_argument_that_is_not_a_literal_is_a_bad_argument(argument: str) -> None:
    assert error_of(f"Sum({argument})") == ("bad_arguments", NOT_A_LITERAL)


def test_a_bad_argument_is_named_by_its_position() -> None:
    assert error_of("Sum(1, x)") == ("bad_arguments", NOT_A_LITERAL.replace("argument 1", "argument 2"))


def test_a_bad_keyword_argument_is_named_by_its_keyword() -> None:
    assert error_of("Sum(1, b=x)") == ("bad_arguments", NOT_A_LITERAL.replace("argument 1", "argument b"))


@pytest.mark.parametrize("number", ["1e999", "-1e999", "[1e999]"])
def test_a_float_beyond_the_largest_is_a_bad_argument(number: str) -> None:
    assert error_of(f"Sum({number})") == ("bad_arguments", "Error: Sum: argument 1 is too large a number")


@pytest.mark.parametrize("text", ["Sum(**{'a': 1})", "Sum(**x)", "Sum(1, **1)"])
def test_double_star_is_a_bad_argument(text: str) -> None:
    assert error_of(text) == ("bad_arguments", "Error: Sum: ** is not allowed")


def test_a_keyword_given_twice_is_a_bad_argument() -> None:
    assert error_of("Sum(a=1, b=2, a=3)") == ("bad_arguments", "Error: Sum: argument a is given twice")


@pytest.mark.parametrize(
    "text",
    ["Sum(" + "-" * 1_900 + "1)", "Sum(" + "[" * 900 + "]" * 900 + ")", "f(" * 900 + ")" * 180]
    + [
        "Sum(" + "1+" * 900 + "1)",
        "lambda:" * 280,
        "Sum" + "(1)" * 600,
        "Sum" + ".x" * 900 + "()",
        "not " * 490 + "1",
        "{" * 1_990,
        "f'{" * 600,
    ],
)
def test_deep_nesting_is_an_error_like_any_other(text: str) -> None:
    kind, line = error_of(text)
    assert kind in ("syntax", "not_a_call", "bad_arguments")
    assert "\n" not in line


def test_an_invalid_escape_in_a_string_warns_nobody(recwarn: pytest.WarningsRecorder) -> None:
    parse_call(r'Sum("\d")')
    assert len(recwarn) == 0


# One line


def test_printable_text_is_one_line_as_it_is() -> None:
    assert one_line("Größe ≥ 3 🙂") == "Größe ≥ 3 🙂"


@pytest.mark.parametrize(
    ("character", "escaped"),
    [("\n", r"\n"), ("\r", r"\r"), ("\x00", r"\x00"), ("\x1b", r"\x1b"), ("\u2028", r"\u2028"), ("\ud800", r"\ud800")]
    + [("\u202e", r"\u202e"), ("\u200b", r"\u200b"), ("\U000e0041", r"\U000e0041")],
)
def test_characters_that_do_not_print_are_escaped(character: str, escaped: str) -> None:
    assert one_line(f"a{character}b") == f"a{escaped}b"


@pytest.mark.parametrize(
    ("marker", "harmless"),
    [("<|im_start|>", "< |im_start| >"), ("<|im_end|>", "< |im_end| >"), ("<|>", "< | >"), ("<<||>>", "<< || >>")]
    + [("[INST]", "[ INST]"), ("[/INST]", "[ /INST]"), ("<\n|im_start|\n>", r"<\n|im_start|\n>")]
    + [("<s>", "< s>"), ("</s>", "< /s>"), ("<start_of_turn>", "< start_of_turn>"), ("<<SYS>>", "<< SYS>>")]
    + [("[TOOL_CALLS]", "[ TOOL_CALLS]"), ("<<|", "<< |"), ("<</s", "<< /s")],
)
def test_a_chat_role_marker_is_broken_up(marker: str, harmless: str) -> None:
    assert one_line(marker) == harmless


def test_text_of_exactly_the_limit_is_kept() -> None:
    assert one_line("x" * MAX_RESULT_CHARACTERS) == "x" * MAX_RESULT_CHARACTERS


@pytest.mark.parametrize("unit", ["x", "\n", "<|", "[INST]", "\U000e0041", "<|\x00|>"])
def test_a_long_line_is_cut_at_the_limit_also_when_escaping_makes_it_longer(unit: str) -> None:
    line = one_line(unit * 400)
    assert len(line) == MAX_RESULT_CHARACTERS
    assert line.endswith("...")


def test_an_error_line_is_cut_at_the_limit() -> None:
    assert len(str(CallError("refused", "x" * 1_000))) == MAX_RESULT_CHARACTERS


# Hostile strings. Every string goes through `throw`, which checks the promises and counts.

WATCHED_EVENTS = ("exec", "import", "open", "os.", "subprocess.", "socket.", "shutil.", "ctypes.", "pty.")


class Watch:
    """Records, through Python's audit hook, code that is run and the outside world that is touched while armed."""

    def __init__(self) -> None:
        self.armed = False
        self.events: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple) -> None:
        if not self.armed or not event.startswith(WATCHED_EVENTS):
            return
        if arguments[:1] != ("<unknown>",):  # Python itself looks for a source file of that name on a syntax error
            self.events.append(event)

    def __enter__(self) -> Self:
        self.events.clear()
        self.armed = True
        return self

    def __exit__(self, *_error: object) -> None:
        self.armed = False


WATCH = Watch()
THROWN: set[int] = set()  # hashes, so that the count is of different strings


class Target(Toolset):
    """Counts what the strings achieve: `ran` is how many calls reached a function."""

    def __init__(self) -> None:
        super().__init__()
        self.ran = 0

    @tool("Sum(1, 2)")
    def Sum(self, a: Number, b: Number = Fraction(1)) -> str:
        """Add."""
        self.ran += 1
        return format_number(a + b)

    @tool("Total([1, 2])")
    def Total(self, values: list[Number], precise: bool = True) -> str:
        """Add all."""
        self.ran += 1
        return format_number(sum(values, Fraction(0)))

    @tool('Conclude("True")')
    def Conclude(self, label: Literal["True", "False"]) -> str:
        """Conclude."""
        self.ran += 1
        return label

    @tool('Echo("a", 1)')
    def Echo(self, text: str, times: int = 1) -> str:
        """Say it again."""
        self.ran += 1
        return text * min(abs(times), 1_000)


def throw(text: str) -> ToolResult:
    """Call `Target` with `text` and check everything that holds for every string."""
    THROWN.add(hash(text))
    line = as_line(text)
    assert line.isprintable() and len(line) <= MAX_CALL_CHARACTERS and as_line(line) == line, text
    result, target, seconds = _fastest_call(text)
    assert seconds < MAX_SECONDS, f"{seconds * 1000:.0f} ms: {text[:80]!r}"
    assert WATCH.events == [], text
    assert result.text.isprintable() and len(result.text) <= MAX_RESULT_CHARACTERS, text
    assert not any(marker in result.text for marker in ("<|", "|>", "<s", "</", "[INST]", "[/INST]")), text
    assert target.ran <= 1, text
    if result.error is not None:
        assert target.ran == 0 and result.text.startswith("Error: "), text
    return result


def _fastest_call(text: str) -> tuple[ToolResult, Target, float]:
    """Up to three tries, as a busy machine can make any single one slow; a slow string is slow in all of them."""
    best = float("inf")
    for _ in range(3):
        target = Target()
        with WATCH:
            start = time.perf_counter()
            result = target.call(text)
            best = min(best, time.perf_counter() - start)
        if best < MAX_SECONDS:
            break
    return result, target, best


@pytest.fixture(autouse=True, scope="module")
def warm() -> None:
    """Resolve annotations and load codecs once, so that no string meets the one-time work."""
    for text in ('Echo("\\x00")', "Sum(1, 2)", "Sum(", "Sum(x)", "Sum()", 'Sum("a")', "\ud800", "é()", "Total([1])"):
        Target().call(text)


def hostile(strategy: st.SearchStrategy, examples: int):
    """Run a test on `examples` draws. A failure names its string, so nothing is shrunk: that would take minutes."""
    checks = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example)
    options = {"deadline": None, "derandomize": True, "database": None, "phases": (Phase.generate,)}
    return lambda test: settings(max_examples=examples, suppress_health_check=checks, **options)(given(strategy)(test))


VALID_CALLS = (
    "Sum(1, 2)",
    "Sum(a=-1.5, b=2)",
    'Sum("1/3", "2.5")',
    "Sum(3)",
    "Total([1, 2, -3.5])",
    "Total(values=[1, '2'], precise=False)",
    'Conclude("True")',
    'Conclude(label="False")',
    'Echo("the cat sat on the mat", 3)',
    "Echo(text='it is \\n so', times=2)",
    'Reasoning("first I add the apples")',
    "Stop()",
)
FRAGMENTS = (
    *("(", ")", "[", "]", "{", "}", ",", "=", ":", ";", "\n", "\r", "\t", " ", "\\", '"', "'", '"""', "#", "*", "**"),
    *("-", "--", "~", "@", "!", "$", "`", "\x00", "\x0c", "\x1b[31m", "\ud800", "\udfff", "\u2028", "\u202e", "\ufeff"),
    *("é", "１", "ſ", "𝐒", "lambda:", "lambda x:", "yield", "await ", "not ", "if", "else", "for x in "),
    *(
        "import os",
        ":=",
        "...",
        "__import__('os')",
        ".__class__",
        "f'{",
        "b'",
        "r'",
        "\\N{",
        "\\x",
        "\\ud800",
        "\\U0010ffff",
        "0x",
    ),
    *("1e999", "9" * 40, "1_0", "1j", "None", "nan", "inf", "<|im_start|>", "<|im_end|>", "|>", "[INST]", "[/INST]"),
    *("</s>", "Sum(", "Stop()", "print", "match x:\n case ", "async ", "del ", "global x", "a=", "self=", "%s", "{0}"),
    *("# -*- coding: utf-7 -*-\n", "try:\n", "with (", "class X:\n", "def f():\n", "@f\n", "\\\n", "if x:\n\t"),
)
characters = st.text(max_size=60)
any_unicode = st.text(st.characters(exclude_categories=()), max_size=60)


@st.composite
def mutated_calls(draw: st.DrawFn) -> str:
    """A valid call after one to four edits: slices deleted, duplicated, reversed, replaced, or fragments inserted."""
    text = draw(st.sampled_from(VALID_CALLS))
    for _ in range(draw(st.integers(1, 4))):
        start, end = sorted((draw(st.integers(0, len(text))), draw(st.integers(0, len(text)))))
        part = text[start:end]
        edit = draw(st.sampled_from(("delete", "duplicate", "reverse", "replace", "insert")))
        new = draw(st.sampled_from(FRAGMENTS)) if edit in ("replace", "insert") else ""
        middle = {"duplicate": part * 2, "reverse": part[::-1], "insert": new + part}.get(edit, new)
        text = text[:start] + middle + text[end:]
    return text


@st.composite
def repeated_fragments(draw: st.DrawFn) -> str:
    """Deep or long: one or two fragments repeated up to past the limit, inside or outside a call."""
    unit = "".join(draw(st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=2)))
    body = unit * draw(st.sampled_from((2, 10, 30, 100, 190, 500, 1_000, 2_500)))
    before = draw(st.sampled_from(("", "Sum(", "Echo('", "x")))
    after = draw(st.sampled_from(("", ")", "')", ":", "=1")))
    return before + (body[: MAX_CALL_CHARACTERS - 10] if draw(st.booleans()) else body) + after


@st.composite
def calls_with_any_literal(draw: st.DrawFn) -> str:
    """Well-formed calls whose arguments are arbitrary strings and numbers, nested lists and dictionaries."""
    scalars = st.text(max_size=20) | st.integers() | st.floats() | st.booleans() | st.none() | st.binary(max_size=5)
    values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner), max_leaves=4)
    name = draw(st.sampled_from(("Sum", "Total", "Conclude", "Echo", "Reasoning", "Stop", "Nope")))
    keyword = st.sampled_from(("", "", "", "a=", "b=", "text=", "values=", "self="))
    return f"{name}({', '.join(draw(keyword) + repr(value) for value in draw(st.lists(values, max_size=3)))})"


@hostile(characters, examples=4_000)
def test_any_text_costs_one_line(text: str) -> None:
    throw(text)


@hostile(any_unicode, examples=4_000)
def test_any_unicode_with_surrogates_costs_one_line(text: str) -> None:
    throw(text)


@hostile(any_unicode, examples=3_500)
def test_any_text_as_an_argument_costs_one_line(text: str) -> None:
    throw(f'Echo("{text}")')


@hostile(st.binary(max_size=80), examples=2_500)
def test_any_bytes_decoded_cost_one_line(chunk: bytes) -> None:
    throw(chunk.decode("latin-1"))
    throw(chunk.decode("utf-8", errors="surrogateescape"))


@hostile(mutated_calls(), examples=6_000)
def test_mutated_calls_cost_one_line(text: str) -> None:
    throw(text)


@hostile(st.lists(st.sampled_from(FRAGMENTS + VALID_CALLS), max_size=12).map("".join), examples=3_000)
def test_fragments_of_python_in_any_order_cost_one_line(text: str) -> None:
    throw(text)


@hostile(repeated_fragments(), examples=1_200)
def test_deep_and_long_strings_cost_one_line(text: str) -> None:
    throw(text)


@hostile(calls_with_any_literal(), examples=1_000)
def test_calls_with_any_literal_cost_one_line(text: str) -> None:
    throw(text)


@pytest.mark.parametrize(
    "first", ["(", "[", "{", "f(", "-", "a\n", "é\r", "'''", "lambda:", "1,", "1+", "a if b else ", "\\\n"]
)
@pytest.mark.parametrize("second", ["", "(", "é", ":", "a=", "\n("])
def test_text_of_the_full_length_is_answered_in_time(first: str, second: str) -> None:
    for end in ("", ")", ":", "=1"):
        throw((first + second) * ((MAX_CALL_CHARACTERS - 2) // len(first + second)) + end)


@pytest.mark.parametrize("length", [10**5, 10**6])
@pytest.mark.parametrize("unit", ["-", "(", " ", "\n", "a", "é", "\ud800", "Stop()\n"])
def test_text_far_over_the_limit_is_answered_in_time(unit: str, length: int) -> None:
    throw(unit * (length // len(unit)))
    throw("```" + unit * (length // len(unit)))  # a fence that does not close
    throw("```\n" + unit * (length // len(unit)))


EVALUATION_ATTEMPTS = (
    "__import__('os').system('true')",
    "eval('1 + 1')",
    "exec('x = 1')",
    "open('/etc/passwd')",
    "compile('1', '', 'eval')",
    "breakpoint()",
    "Echo(__import__('os').getcwd())",
    "Echo(open('/etc/passwd').read())",
    "Echo(eval('1'))",
    "Echo(f'{open(0)}')",
    "Echo(Echo('inner'))",
    "Echo([Echo('inner')])",
    "Echo(text=Echo('inner'))",
    "Echo(*[Echo('inner')])",
    "Echo(**{'text': Echo('inner')})",
    "Echo((lambda: Echo('inner'))())",
    "Echo('a' if Echo('inner') else 'b')",
    "[Echo('inner') for x in 'ab']",
    "Sum.__func__.__globals__",
    "().__class__.__base__.__subclasses__()",
    "Sum(9**9**9, 1)",
    "Echo('a' * 10**10)",
    "__init__()",
    "call('Stop()')",
    "answer_follows()",
    "functions()",
    "__class__()",
)


@pytest.mark.parametrize("text", EVALUATION_ATTEMPTS)
def test_an_attempt_at_evaluation_is_an_error_and_runs_nothing(text: str) -> None:
    assert throw(text).error in ("not_a_call", "unknown_function", "bad_arguments")


class Evaluated(BaseException):
    """Not an `Exception`, so that `Toolset.call` cannot turn it into an error line."""


@pytest.mark.parametrize("text", EVALUATION_ATTEMPTS + VALID_CALLS)
def test_neither_eval_nor_exec_is_called(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def evaluated(*_arguments: object) -> None:
        raise Evaluated

    def imported(name: str, *arguments: object) -> object:
        return real_import(name, *arguments) if name == "re" else evaluated()  # `Pattern.sub` looks `re` up itself

    target = Target()
    with monkeypatch.context() as patch:
        patch.setattr("builtins.eval", evaluated)
        patch.setattr("builtins.exec", evaluated)
        patch.setattr("builtins.__import__", imported)
        result = target.call(text)
    assert result.text.isprintable()


def test_the_watch_hears_code_that_is_run() -> None:
    with WATCH:
        eval("1")
    assert WATCH.events == ["exec"]


def test_the_watch_hears_a_file_that_is_opened() -> None:
    with WATCH, open(__file__):
        pass
    assert "open" in WATCH.events


@pytest.mark.parametrize("text", VALID_CALLS)
def test_the_calls_that_are_mutated_are_themselves_accepted(text: str) -> None:
    assert throw(text).error is None


def test_at_least_twenty_thousand_different_strings_were_thrown(request: pytest.FixtureRequest) -> None:
    selected = {item.name for item in request.session.items}
    if not {name for name in globals() if re.search(r"_costs?_one_line$", name)} <= selected:
        pytest.skip("only a part of this file was selected")
    assert len(THROWN) >= LEAST_STRINGS

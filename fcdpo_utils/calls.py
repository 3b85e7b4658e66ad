"""Text of one call -> name and literal arguments, or a typed error.

A model's output is hostile input: it is parsed with `ast`, never evaluated. This module knows the grammar
of one call and nothing about which functions exist (see `tools`) or what a chain is (see `episode`).
"""

import ast
import math
import re
import warnings
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

MAX_CALL_CHARACTERS = 2_000
MAX_RESULT_CHARACTERS = 300
# what opens or closes a role marker in the chat templates of Llama, Mistral, ChatML, Phi, Gemma and Qwen
_ROLE_MARKER = re.compile(r"<(?=[|/a-zA-Z])|\|(?=>)|\[(?=/?[A-Z_]+\])")
_FENCE = re.compile(r"\A\s*```\w{0,20}[^\S\r\n]{0,20}[\r\n](.{0,4000}?)```\s*\Z", re.DOTALL)  # fast on any text
_LINE_BREAK = re.compile(r"[\r\n]|\\[rn]")  # as it is, or as `one_line` writes it

_NUMBERS, _SCALARS = (int, float), (str, int, float, bool)

ErrorKind = Literal["syntax", "not_a_call", "unknown_function", "bad_arguments", "refused", "extra_text"]
Scalar = str | int | float | bool
Value = Scalar | list[Scalar]


class CallError(Exception):
    """One line for the model: what was wrong with its call. `kind` is one of `ErrorKind`."""

    def __init__(self, kind: ErrorKind, message: str):
        super().__init__(one_line(message))
        self.kind = kind


@dataclass(frozen=True)
class ParsedCall:
    """`name(*args, **kwargs)` with literal values only; not yet checked against any function."""

    name: str
    args: tuple[Value, ...]
    kwargs: dict[str, Value]


def one_line(text: str, limit: int = MAX_RESULT_CHARACTERS) -> str:
    """`text` with control characters escaped, no chat role (see `without_roles`), and cut at `limit`."""
    start = text[: limit + 1]  # escaping only lengthens, so what lies beyond is cut in any case
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in start)
    line = without_roles(line)
    return line if len(line) <= limit else line[: limit - 3] + "..."


def without_roles(text: str) -> str:
    """`text` with `<|`, `<s` or `[INST` broken up, so that it opens no chat role; half a surrogate pair becomes "?"."""
    return _ROLE_MARKER.sub(r"\g<0> ", text.encode("utf-8", "replace").decode("utf-8"))


def as_line(text: str) -> str:
    """A model's message as the one harmless line that is run and recorded; a call over several lines is joined."""
    text = _FENCE.sub(r"\1", text).strip()
    if ("\n" in text or "\r" in text) and len(text) <= MAX_CALL_CHARACTERS:
        with suppress(ValueError, TypeError, RecursionError):  # not one expression: its line breaks are escaped
            (statement,) = _statements(text)
            text = ast.unparse(statement) if isinstance(statement, ast.Expr) else text
    return one_line(text, MAX_CALL_CHARACTERS)


def parse_call(text: str) -> ParsedCall:
    """Parse exactly one call on a bare name with literal arguments.

    Accepted literals: str, int, float, bool, signed numbers, and flat lists of these. The call may span lines, and may
    be all there is in a Markdown fence (```python and ``` on lines around it).
    Raises `CallError` of kind syntax, not_a_call, extra_text or bad_arguments; never anything else.
    """
    text = _FENCE.sub(r"\1", text).strip()
    if len(text) > MAX_CALL_CHARACTERS:
        raise CallError("syntax", f"Error: a call has at most {MAX_CALL_CHARACTERS} characters, got {len(text)}")
    statements = _statements(text)
    if statements is None or len(statements) != 1:
        raise _not_one_call(text, statements)
    node = statements[0].value if isinstance(statements[0], ast.Expr) else None
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise CallError("not_a_call", f'Error: expected one call such as Stop(), got "{text[:60]}"')
    name = node.func.id
    if any(keyword.arg is None for keyword in node.keywords):
        raise CallError("bad_arguments", f"Error: {name}: ** is not allowed")
    args = tuple(_literal(name, position, arg) for position, arg in enumerate(node.args, start=1))
    kwargs: dict[str, Value] = {}
    for keyword in node.keywords:
        if keyword.arg in kwargs:  # `ast.parse` lets it pass
            raise CallError("bad_arguments", f"Error: {name}: argument {keyword.arg} is given twice")
        kwargs[keyword.arg] = _literal(name, keyword.arg, keyword.value)
    return ParsedCall(name, args, kwargs)


def _statements(text: str) -> list[ast.stmt] | None:
    """The statements of `text`, or None where Python cannot parse it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as "invalid escape sequence": the model's, not ours
            return ast.parse(text).body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def _not_one_call(text: str, statements: list[ast.stmt] | None) -> CallError:
    """Tell an empty message, prose around a call, and broken syntax apart."""
    if not text or statements == []:
        return CallError("not_a_call", "Error: expected one call, got an empty message")
    lines: list[str] = []
    for line in filter(str.strip, _LINE_BREAK.split(text)):
        if lines and lines[-1].count("(") > lines[-1].count(")"):
            lines[-1] += line  # within an unfinished call it is no break between two
        else:
            lines.append(line)
    if statements is not None or (len(lines) > 1 and any("(" in line and _is_call(line.strip()) for line in lines)):
        return CallError("extra_text", "Error: write exactly one call and nothing else")
    if "(" not in text:
        return CallError("not_a_call", f'Error: expected one call such as Stop(), got "{text[:60]}"')
    return CallError("syntax", f'Error: cannot read "{text[:60]}" as a call; check quotes and parentheses')


def _is_call(line: str) -> bool:
    statements = _statements(line)
    return bool(statements) and isinstance(statements[0], ast.Expr) and isinstance(statements[0].value, ast.Call)


def _literal(name: str, argument: int | str, node: ast.expr, nested: bool = False) -> Value:
    """The value of a literal node; `argument` (its position or keyword) is only for the error line."""
    if isinstance(node, ast.List) and not nested:
        return [_literal(name, argument, item, nested=True) for item in node.elts]
    signed = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd)
    constant = node.operand if signed else node
    if not isinstance(constant, ast.Constant) or type(constant.value) not in (_NUMBERS if signed else _SCALARS):
        message = f"argument {argument} must be a string, a number, True, False or a flat list of these"
        raise CallError("bad_arguments", f"Error: {name}: {message}")
    if isinstance(constant.value, float) and not math.isfinite(constant.value):
        raise CallError("bad_arguments", f"Error: {name}: argument {argument} is too large a number")
    return -constant.value if signed and isinstance(node.op, ast.USub) else constant.value

"""Text of one call -> name and literal arguments, or a typed error.

A model's output is hostile input: it is parsed with `ast`, never evaluated. This module knows the grammar
of one call and nothing about which functions exist (see `functions`) or what a chain is (see `agent`).
"""

from __future__ import annotations

import ast
import math
import re
import warnings
from dataclasses import dataclass
from typing import Literal

MAX_CALL_CHARACTERS = 2_000
MAX_RESULT_CHARACTERS = 300
# what opens or closes a role marker in the chat templates of Llama, Mistral, ChatML, Phi, Gemma and Qwen
_ROLE_MARKER = re.compile(r"<(?=[|/a-zA-Z])|\|(?=>)|\[(?=/?[A-Z_]+\])")

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
    """`text` with control characters escaped, `<|`, `<s` or `[INST` broken up (no chat role), and cut at `limit`."""
    start = text[: limit + 1]  # escaping only lengthens, so what lies beyond is cut in any case
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in start)
    line = _ROLE_MARKER.sub(r"\g<0> ", line)
    return line if len(line) <= limit else line[: limit - 3] + "..."


def parse_call(text: str) -> ParsedCall:
    """Parse exactly one call on a bare name with literal arguments.

    Accepted literals: str, int, float, bool, signed numbers, and flat lists of these.
    Raises `CallError` of kind syntax, not_a_call, extra_text or bad_arguments; never anything else.
    """
    text = text.strip()
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
    repeated = _first_repeated([keyword.arg for keyword in node.keywords])
    if repeated is not None:  # `ast.parse` lets it pass, and a dict would keep only the last
        raise CallError("bad_arguments", f"Error: {name}: argument {repeated} is given twice")
    args = tuple(_literal(name, position, arg) for position, arg in enumerate(node.args, start=1))
    kwargs = {keyword.arg: _literal(name, keyword.arg, keyword.value) for keyword in node.keywords}
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
    lines = [line for line in text.splitlines() if line.strip()]
    if statements is not None or (len(lines) > 1 and any("(" in line and _is_call(line.strip()) for line in lines)):
        return CallError("extra_text", "Error: write exactly one call and nothing else")
    if "(" not in text:
        return CallError("not_a_call", f'Error: expected one call such as Stop(), got "{text[:60]}"')
    return CallError("syntax", f'Error: cannot read "{text[:60]}" as a call; check quotes and parentheses')


def _is_call(line: str) -> bool:
    statements = _statements(line)
    return bool(statements) and isinstance(statements[0], ast.Expr) and isinstance(statements[0].value, ast.Call)


def _first_repeated(names: list[str]) -> str | None:
    return next((name for position, name in enumerate(names) if name in names[:position]), None)


def _literal(name: str, argument: int | str, node: ast.expr, nested: bool = False) -> Value:
    """The value of a literal node; `argument` (its position or keyword) is only for the error line."""
    if isinstance(node, ast.List) and not nested:
        return [_literal(name, argument, item, nested=True) for item in node.elts]
    sign = 1
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        sign = -1 if isinstance(node.op, ast.USub) else 1
        node = node.operand
        if not isinstance(node, ast.Constant) or type(node.value) not in (int, float):
            raise _not_a_literal(name, argument)
    if not isinstance(node, ast.Constant) or type(node.value) not in (str, int, float, bool):
        raise _not_a_literal(name, argument)
    if isinstance(node.value, float) and not math.isfinite(node.value):
        raise CallError("bad_arguments", f"Error: {name}: argument {argument} is too large a number")
    return node.value if sign == 1 else -node.value


def _not_a_literal(name: str, argument: int | str) -> CallError:
    message = f"Error: {name}: argument {argument} must be a string, a number, True, False or a flat list of these"
    return CallError("bad_arguments", message)

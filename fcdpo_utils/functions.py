"""Functions a model may call, made from annotated Python methods.

A `Toolset` subclass is a set of callable functions; an instance of it is the state of one chain. The docstring
and the example of each method give the help text and the JSON schema. Knows nothing of prompts or models.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fcdpo_utils.calls import CallError, ErrorKind, ParsedCall, Value, one_line, parse_call

Number = Fraction
MAX_MAGNITUDE = 10**15
_NUMBER = re.compile(r"[+-]?(\d{1,30}(\.\d{0,30})?|\.\d{1,30})(/\d{1,30})?")
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_JSON_TYPES = {str: "string", int: "integer", float: "number", Fraction: "number", bool: "boolean"}
_WORDS = {str: "a string", int: "an integer", float: "a number", Fraction: "a number", bool: "True or False"}


class Refused(Exception):
    """Raised inside a tool for a well-formed call that it rejects; the text becomes the model's error line."""


@dataclass(frozen=True)
class Result:
    """What the engine answers to one call: one line, and the error kind (None when the call was accepted)."""

    text: str
    error: ErrorKind | None = None


@dataclass(frozen=True)
class Function:
    """One callable function: its name, help line, example call and annotated parameters."""

    name: str
    doc: str
    example: str
    signature: inspect.Signature
    types: dict[str, Any]

    def help(self) -> str:
        """One line: an example call and what it does."""
        return f"{self.example}: {self.doc}"

    def schema(self) -> dict[str, Any]:
        """The function as an OpenAI-style tool (JSON schema)."""
        parameters = self.signature.parameters.values()
        required = [p.name for p in parameters if p.default is inspect.Parameter.empty]
        properties = {name: _json_type(kind) for name, kind in self.types.items()}
        schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
        description = f"{self.doc} Example: {self.example}"
        return {
            "type": "function",
            "function": {"name": self.name, "description": description, "parameters": schema},
        }

    def bind(self, call: ParsedCall) -> dict[str, Any]:
        """Arguments by name, defaults filled in, coerced by annotation. Raises `CallError` (bad_arguments)."""
        try:
            bound = self.signature.bind(*call.args, **call.kwargs)
        except TypeError as error:
            expected = f"{self.name}({', '.join(self.signature.parameters)})"
            raise CallError("bad_arguments", f"Error: {self.name}: {error}; expected {expected}") from None
        bound.apply_defaults()
        return {key: self._coerce(key, value) for key, value in bound.arguments.items()}

    def _coerce(self, parameter: str, value: Value) -> Any:
        try:
            return coerce(value, self.types[parameter])
        except (TypeError, ValueError):
            expected, got = _describe(self.types[parameter]), repr(value)[:40]
            message = f"Error: {self.name}: {parameter} must be {expected}, got {got}"
            raise CallError("bad_arguments", message) from None


def coerce(value: Value, kind: Any) -> Any:
    """`value` as the annotated type `kind`; raises TypeError or ValueError where it does not fit."""
    if get_origin(kind) is list:
        if not isinstance(value, list):
            raise TypeError("not a list")
        return [coerce(item, get_args(kind)[0]) for item in value]
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ValueError("not among the choices")
        return value
    if kind in (str, bool):
        if type(value) is not kind:
            raise TypeError(f"not {kind.__name__}")
        return value
    number = parse_number(value)
    if kind is int and number.denominator != 1:
        raise ValueError("not whole")
    return number if kind is Fraction else kind(number)


def parse_number(value: Value) -> Fraction:
    """An int, a finite float, or text such as "3", "2.5", "-1/3" as an exact fraction.

    Raises TypeError or ValueError for bool, several numbers, other text, a zero denominator or |value| > 1e15.
    """
    if isinstance(value, bool | list):
        raise TypeError("not a number")
    text = str(value).strip()
    if isinstance(value, str) and not _NUMBER.fullmatch(text):
        raise ValueError("not a number")
    try:
        numerator, _, denominator = text.partition("/")
        number = Fraction(numerator) / Fraction(denominator or 1)
    except ZeroDivisionError:
        raise ValueError("zero denominator") from None
    if abs(number) > MAX_MAGNITUDE or number.denominator > MAX_MAGNITUDE:
        raise ValueError("number too large")
    return number


def format_number(number: Fraction) -> str:
    """Shortest exact text: "7", "2.5" for a finite decimal of at most six places, else "22/7"."""
    if number.denominator == 1:
        return str(number.numerator)
    scaled = number * 10**6
    if scaled.denominator != 1:
        return f"{number.numerator}/{number.denominator}"
    sign = "-" if number < 0 else ""
    whole, part = divmod(abs(scaled.numerator), 10**6)
    return f"{sign}{whole}.{part:06d}".rstrip("0")


def tool(example: str) -> Callable[[Callable], Callable]:
    """Mark a method of a `Toolset` as callable by the model; `example` is one valid call of it."""

    def mark(method: Callable) -> Callable:
        method.tool_example = example
        return method

    return mark


class Toolset:
    """Subclass it, and mark annotated methods with `@tool("Example(1)")`. An instance is the state of one chain.

    A tool returns one line of text, or raises `Refused`. `answer` is what the chain answered (None so far),
    `stopped` whether it called Stop.
    """

    def __init__(self) -> None:
        self.answer: str | None = None
        self.stopped = False

    @tool('Reasoning("add first")')
    def Reasoning(self, text: str) -> str:
        """Write down a thought."""
        return "Noted"

    @tool("Stop()")
    def Stop(self) -> str:
        """End after answering."""
        self.stopped = True
        return "Stopped"

    def answer_follows(self) -> bool:
        """Whether the answer follows from what this chain derived; subclasses say what that means."""
        return self.answer is not None

    @classmethod
    @cache
    def functions(cls) -> dict[str, Function]:
        """Every callable function by name, the subclass's own first, then Reasoning and Stop."""
        methods = [m for m in vars(cls).values() if hasattr(m, "tool_example")]
        inherited = {} if cls is Toolset else cls.__mro__[1].functions()
        own = {m.__name__: _function(m) for m in methods}
        return own | inherited | own  # own first, and own where a method is overridden

    @classmethod
    def help(cls) -> str:
        """One help line per function."""
        return "\n".join(function.help() for function in cls.functions().values())

    @classmethod
    def schemas(cls) -> list[dict[str, Any]]:
        """OpenAI-style tool schemas, for models with native tool calls."""
        return [function.schema() for function in cls.functions().values()]

    def call(self, text: str) -> Result:
        """Run one call given as text. Never raises: every failure is a `Result` with its error kind."""
        try:
            parsed = parse_call(text)
            function = self.functions().get(parsed.name)
            if function is None:
                known = ", ".join(self.functions())
                raise CallError("unknown_function", f"Error: no function {parsed.name[:40]}; use one of {known}")
            arguments = function.bind(parsed)
            return Result(one_line(getattr(self, parsed.name)(**arguments)))
        except CallError as error:
            return Result(str(error), error.kind)
        except Refused as error:
            return Result(one_line(f"Error: {parsed.name}: {error}"), "refused")
        except Exception as error:  # a bug in a user's own tool costs that call, not a night of chains
            return Result(one_line(f"Error: {parsed.name} failed ({type(error).__name__})"), "refused")


def _function(method: Callable) -> Function:
    signature = inspect.signature(method)
    parameters = [p for p in signature.parameters.values() if p.name != "self"]
    hints = get_type_hints(method)
    missing = [p.name for p in parameters if p.name not in hints]
    if missing or not method.__doc__:
        expected = f"a docstring and an annotation for {missing or 'each parameter'}"
        raise TypeError(f"{method.__name__}: a tool needs {expected}")
    unusable = [p.name for p in parameters if p.kind not in _BY_NAME or not _is_supported(hints[p.name])]
    if unusable:
        expected = "named and of type str, int, float, Number, bool, a Literal of strings or a list of these"
        raise TypeError(f"{method.__name__}: a tool's parameters must be {expected}; {unusable} are not")
    doc = " ".join(inspect.getdoc(method).split("\n\n")[0].split())
    types = {p.name: hints[p.name] for p in parameters}
    return Function(method.__name__, doc, method.tool_example, signature.replace(parameters=parameters), types)


def _is_supported(kind: Any, nested: bool = False) -> bool:
    if get_origin(kind) is list:
        return not nested and _is_supported(get_args(kind)[0], nested=True)
    if get_origin(kind) is Literal:
        return all(isinstance(choice, str) for choice in get_args(kind))
    return kind in _WORDS


def _json_type(kind: Any) -> dict[str, Any]:
    if get_origin(kind) is list:
        return {"type": "array", "items": _json_type(get_args(kind)[0])}
    if get_origin(kind) is Literal:
        return {"type": "string", "enum": list(get_args(kind))}
    return {"type": _JSON_TYPES[kind]}


def _describe(kind: Any) -> str:
    if get_origin(kind) is list:
        return f"a list, each item {_describe(get_args(kind)[0])}"
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(repr, get_args(kind)))
    return _WORDS[kind]

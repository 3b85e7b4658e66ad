"""Functions a model may call, made from annotated Python methods.

A `Toolset` subclass is a set of callable functions; an instance of it is the state of one chain. The docstring
and the example of each method give the help text and the JSON schema. Knows nothing of prompts or models.
"""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from fcdpo_utils.calls import CallError, ErrorKind, ParsedCall, Value, one_line, parse_call
from fcdpo_utils.numbers import is_result, parse_number

Number = Fraction
ABSTAINED = "a function is missing"  # the answer of a chain that abstains
Functions = tuple[tuple[str, str, str], ...]  # in the order shown: a function's name, the name shown, the description
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_KINDS = {  # of arguments: as JSON schema, and in words
    str: ({"type": "string"}, "a string"),
    int: ({"type": "integer"}, "an integer"),
    float: ({"type": "number"}, "a number"),
    Fraction: ({"type": "number"}, "a number"),
    bool: ({"type": "boolean"}, "True or False"),
}


class ToolError(Exception):
    """Raised inside a tool for a well-formed call that it rejects; the text becomes the model's error line."""


@dataclass(frozen=True)
class ToolResult:
    """What the engine answers to one call: one line, and the error kind (None when the call was accepted)."""

    text: str
    error: ErrorKind | None = None


@dataclass(frozen=True)
class Tool:
    """One callable function: its name, help line, example call and annotated parameters; `method` is what it runs."""

    name: str
    doc: str
    example: str
    signature: inspect.Signature
    types: dict[str, Any]
    method: str

    def help(self) -> str:
        """One line: an example call and what it does."""
        return f"{self.example}: {self.doc}"

    def shown_as(self, name: str, doc: str) -> Self:
        """The same function under another name and description."""
        return replace(self, name=name, doc=doc, example=name + self.example.removeprefix(self.name))

    def schema(self) -> dict[str, Any]:
        """The function as an OpenAI-style tool (JSON schema)."""
        parameters = self.signature.parameters.values()
        required = [p.name for p in parameters if p.default is inspect.Parameter.empty]
        properties = {name: _kind_of(annotation)[0] for name, annotation in self.types.items()}
        schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
        description = f"{self.doc} Example: {self.example}"
        return {"type": "function", "function": {"name": self.name, "description": description, "parameters": schema}}

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
            expected, got = _kind_of(self.types[parameter])[1], repr(value)[:40]
            message = f"Error: {self.name}: {parameter} must be {expected}, got {got}"
            raise CallError("bad_arguments", message) from None


def coerce(value: Value, kind: Any) -> Any:
    """`value` as the annotated type `kind`; raises TypeError or ValueError where it does not fit."""
    if get_origin(kind) is list and isinstance(value, list):
        return [coerce(item, get_args(kind)[0]) for item in value]
    if type(value) is kind in (str, bool) or (get_origin(kind) is Literal and value in get_args(kind)):
        return value
    if kind not in (int, float, Fraction):
        raise TypeError("of another type")
    number = parse_number(value)
    if kind is int and number.denominator != 1:
        raise ValueError("not whole")
    return number if kind is Fraction else kind(number)


def tool(example: str) -> Callable[[Callable], Callable]:
    """Mark a method of a `Toolset` as callable by the model; `example` is one valid call of it."""

    def mark(method: Callable) -> Callable:
        method.tool_example = example
        return method

    return mark


class Toolset:
    """Subclass it, and mark annotated methods with `@tool("Example(1)")`. An instance is the state of one chain.

    A tool returns one line of text, or raises `ToolError`. `answer` is what the chain answered (None so far),
    `stopped` whether it called Stop. `derivations` are its accepted calls with their results, in order, but for
    thoughts and for calls of a tool that sets the answer. `question`: the problem's text ("" in logic: formulas count).
    `hints`: whether a rejected call may say what would come near. `shown`: the functions as the model knows them, this
    class or what `shown_as` made of it.
    """

    question = ""
    UNABLE = Tool("Unable", "Say that a needed function is missing.", "Unable()", inspect.Signature(), {}, "Unable")

    def __init__(self) -> None:
        self.answer: str | None = None
        self.stopped = False
        self.derivations: list[tuple[ParsedCall, str]] = []
        self.shown = type(self)
        self.hints = False
        self._not_deriving = {"Reasoning"}

    @tool('Reasoning("add first")')
    def Reasoning(self, text: str) -> str:
        """Write down a thought."""
        return "Noted"

    @tool("Stop()")
    def Stop(self) -> str:
        """End after answering."""
        self.stopped = True
        return "Stopped"

    def Unable(self) -> str:
        """Abstain: a tool where a problem's functions name it, and listed nowhere else."""
        self.answer = ABSTAINED
        return "Answer recorded"

    def answer_follows(self) -> bool:
        """Whether the answer is the result of an earlier call; a subclass may ask for more."""
        return self.answer is not None and any(is_result(str(self.answer), result) for _, result in self.derivations)

    @classmethod
    @cache
    def functions(cls) -> dict[str, Tool]:
        """Every callable function by name, the subclass's own first, then Reasoning and Stop."""
        inherited = {} if cls is Toolset else cls.__mro__[1].functions()
        own = {name: _function(method) for name, method in vars(cls).items() if hasattr(method, "tool_example")}
        return own | inherited | own  # own first, and own where a method is overridden

    @classmethod
    @cache
    def shown_as(cls, functions: Functions) -> type[Self]:
        """These functions alone, in this order, under these names and descriptions; itself for ()."""
        if not functions:
            return cls
        known = cls.functions() | {"Unable": cls.UNABLE}
        shown = {new: known[name].shown_as(new, doc) for name, new, doc in functions}
        return type(cls.__name__, (cls,), {"functions": staticmethod(lambda: shown)})

    @classmethod
    def help(cls) -> str:
        """One help line per function."""
        return "\n".join(function.help() for function in cls.functions().values())

    @classmethod
    def schemas(cls) -> list[dict[str, Any]]:
        """OpenAI-style tool schemas, for models with native tool calls."""
        return [function.schema() for function in cls.functions().values()]

    def call(self, text: str) -> ToolResult:
        """Run one call given as text. Never raises: every failure is a `ToolResult` with its error kind."""
        functions = self.shown.functions()
        try:
            parsed = parse_call(text)
            function = functions.get(parsed.name)
            if function is None:
                known = ", ".join(functions)
                raise CallError("unknown_function", f"Error: no function {parsed.name[:40]}; use one of {known}")
            arguments, before = function.bind(parsed), self.answer
            result = ToolResult(one_line(getattr(self, function.method)(**arguments)))
            if self.answer != before:
                self._not_deriving.add(function.method)
            if function.method not in self._not_deriving:
                self.derivations.append((parsed, result.text))
            return result
        except CallError as error:
            return ToolResult(str(error), error.kind)
        except ToolError as error:
            said, names = str(error), {function.method: function.name for function in functions.values()}
            said = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), said)  # "use Rule"
            return ToolResult(one_line(f"Error: {parsed.name}: {said}"), "refused")
        except Exception as error:  # a bug in a user's own tool costs that call, not a night of chains
            return ToolResult(one_line(f"Error: {parsed.name} failed ({type(error).__name__})"), "refused")


def _function(method: Callable) -> Tool:
    signature = inspect.signature(method)
    parameters = [p for p in signature.parameters.values() if p.name != "self"]
    hints = get_type_hints(method)
    missing = [p.name for p in parameters if p.name not in hints]
    if missing or not method.__doc__:
        expected = f"a docstring and an annotation for {missing or 'each parameter'}"
        raise TypeError(f"{method.__name__}: a tool needs {expected}")
    unusable = [p.name for p in parameters if p.kind not in _BY_NAME or not _kind_of(hints[p.name])]
    if unusable:
        expected = "named and of type str, int, float, Number, bool, a Literal of strings or a list of these"
        raise TypeError(f"{method.__name__}: a tool's parameters must be {expected}; {unusable} are not")
    doc = " ".join(inspect.getdoc(method).split("\n\n")[0].split())
    types = {p.name: hints[p.name] for p in parameters}
    signature = signature.replace(parameters=parameters)
    return Tool(method.__name__, doc, method.tool_example, signature, types, method.__name__)


def _kind_of(annotation: Any, nested: bool = False) -> tuple[dict[str, Any], str] | None:
    """The JSON schema of an annotated type, and the type in words; None where no argument can be of it."""
    among = get_args(annotation)
    if get_origin(annotation) is list and not nested and (item := _kind_of(among[0], nested=True)):
        return {"type": "array", "items": item[0]}, f"a list, each item {item[1]}"
    if get_origin(annotation) is Literal and all(isinstance(choice, str) for choice in among):
        return {"type": "string", "enum": list(among)}, "one of " + ", ".join(map(repr, among))
    return _KINDS.get(annotation)

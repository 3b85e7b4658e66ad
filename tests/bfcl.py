"""BFCL's wheel as an outside judge: its gold calls, and its decoder and checker beside our parser.

`make test` fetches the wheel, without its dependencies, into a folder of its own; `VERSION` is pinned in the Makefile.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from types import MappingProxyType
from typing import Any, Literal, get_args, get_origin
from unittest.mock import MagicMock, patch

from runs import ROOT

from fcdpo_utils.calls import CallError, as_line, parse_call
from fcdpo_utils.fingerprint import CACHE
from fcdpo_utils.teachers.tool_calls import TOOL_CALLS, as_request
from fcdpo_utils.tools import Tool, Toolset

VERSION = re.search(r"BFCL := ([\d.]+)", (ROOT / "Makefile").read_text(encoding="utf-8"))[1]
SITE = CACHE / f"bfcl-{VERSION}"
CATEGORIES = "simple_python multiple parallel parallel_multiple".split()
CATEGORIES += [f"live_{name}" for name in ("simple", "multiple", "parallel", "parallel_multiple")]
NAMES = "ours"  # the model's name for their checker

_SCALARS = {"string": str, "integer": int, "float": float, "boolean": bool}
_ABSENT = [f"bfcl_eval.model_handler.parser.{name}_parser" for name in ("java", "js")] + ["tenacity"]
ACCEPTED, SURVIVES, DOTTED = "accepted", "survives", "survives, its dots as underscores"


@dataclass(frozen=True)
class Gold:
    """One gold call: which alternative it takes, the function as BFCL describes it, and the answers BFCL allows."""

    id: str
    alternative: int
    function: dict[str, Any]
    answer: dict[str, list[Any]]

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """With "" an argument may be left out; of a required one that is a slip in the data."""
        given = {}
        for key, allowed in self.answer.items():
            values = [value for value in allowed if value != "" or key not in self.function["parameters"]["required"]]
            if values and (value := values[min(self.alternative, len(values) - 1)]) != "":
                given[key] = _first(value)
        return given

    @property
    def name(self) -> str:
        return self.function["name"].replace(".", "_")

    def text(
        self, changed: Mapping[str, Any] = MappingProxyType({}), without: Container[str] = (), name: str = ""
    ) -> str:
        values = {key: value for key, value in (self.arguments | {**changed}).items() if key not in without}
        return f"{name or self.name}({', '.join(f'{key}={value!r}' for key, value in values.items())})"

    def typed(self, *types: str) -> list[str]:
        """The parameters of these types that the call gives."""
        properties = self.function["parameters"]["properties"]
        return [key for key in self.arguments if properties.get(key, {}).get("type") in types]


def _first(value: Any) -> Any:
    """A dict lists what is allowed for each of its keys."""
    if isinstance(value, dict):
        firsts = {key: allowed[0] if isinstance(allowed, list) else allowed for key, allowed in value.items()}
        return {key: _first(first) for key, first in firsts.items() if first != ""}
    return [_first(item) for item in value] if isinstance(value, list) else value


def gold_calls(category: str) -> Iterator[Gold]:
    """As many calls of each gold function as its longest list of allowed values: each value is in one of them."""
    folder = SITE / "bfcl_eval" / "data"
    questions, answers = (
        [json.loads(line) for line in (place / f"BFCL_v4_{category}.json").read_text(encoding="utf-8").splitlines()]
        for place in (folder, folder / "possible_answer")
    )
    for question, answer in zip(questions, answers, strict=True):
        assert question["id"] == answer["id"]
        functions = {function["name"]: function for function in question["function"]}
        for call in answer["ground_truth"]:
            ((name, allowed),) = call.items()
            for alternative in range(max([1, *map(len, allowed.values())])):
                yield Gold(answer["id"], alternative, functions[name], allowed)


# ---- ours


def annotation(kind: dict[str, Any]) -> Any:
    """One of their parameter types as ours; raises KeyError, naming the type, where there is none."""
    if kind["type"] in ("array", "tuple"):
        item = _SCALARS[kind["items"]["type"]]
        return list[item]
    if kind["type"] == "string" and "enum" in kind:
        return Literal[tuple(kind["enum"])]
    return _SCALARS[kind["type"]]


def toolset(function: dict[str, Any]) -> type[Toolset]:
    """Our `Toolset` of one function that BFCL describes; what may be left out has a default of its type."""
    name, described = function["name"].replace(".", "_"), function["parameters"]
    types = {key: annotation(kind) for key, kind in described["properties"].items()}
    parameters = []
    for key in sorted(types, key=lambda key: key not in described["required"]):  # Python wants defaults last
        default = (get_args(types[key]) or [""])[0] if get_origin(types[key]) is Literal else types[key]()
        default = inspect.Parameter.empty if key in described["required"] else default
        parameters.append(inspect.Parameter(key, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default))
    tool = Tool(name, function["description"], f"{name}()", inspect.Signature(parameters), types, name)
    return type(name, (Toolset,), {"functions": classmethod(lambda cls: {name: tool})})


def ours(tools: type[Toolset], text: str) -> str:
    """ "accepted", or the kind of our error: the text is parsed and its arguments bound."""
    try:
        call = parse_call(text)
        if call.name not in tools.functions():
            return "unknown_function"
        tools.functions()[call.name].bind(call)
    except CallError as error:
        return error.kind
    return ACCEPTED


def fate(gold: Gold) -> str:
    """`SURVIVES`, `DOTTED`, or why a gold call cannot be said here; "contradicts" is said of BFCL's data."""
    given = list(gold.arguments.values())
    flat = given + [item for value in given if isinstance(value, list) for item in value]
    nested = [item for value in given if isinstance(value, list) for item in value if isinstance(item, list)]
    for found, reason in (
        (any(isinstance(value, dict) for value in flat), "an argument is a dict, or a list of them"),
        (nested, "an argument is a list of lists"),
        (any(value is None for value in flat), "an argument is None"),
    ):
        if found:
            return reason
    text = gold.text()
    if repr(parse_call(as_line(text)).kwargs) != repr(gold.arguments):
        return "a string is changed, so that it opens no chat role"
    try:
        tools = toolset(gold.function)
    except KeyError as error:
        return f"another parameter of its function is of type {error.args[0]}"
    try:
        tools.functions()[gold.name].bind(parse_call(text))
    except CallError as error:
        kinds = {"must be one of": "list of values", "required argument": "required", "unexpected": "parameters"}
        return f"contradicts its function: {next((kinds[kind] for kind in kinds if kind in str(error)), 'types')}"
    back = TOOL_CALLS.read(tools, TOOL_CALLS.written(tools, text))
    same = repr(as_request(tools, back)) == repr(as_request(tools, text)) and ours(tools, back) == ACCEPTED
    survives = DOTTED if "." in gold.function["name"] else SURVIVES
    return survives if same else "the JSON round trip changes it"


# ---- theirs


@cache
def judge() -> tuple[Callable[..., Any], Callable[..., Any], Any]:
    """Their decoder of texts, their checker, and their name for Python.

    What the wheel's other dependencies are for (parsers of Java, the handlers of a hundred models) is left out.
    """
    absent = {name: MagicMock() for name in _ABSENT}
    models = {NAMES: MagicMock(underscore_to_dot=True)}  # of models whose function names have no dots
    absent["bfcl_eval.constants.model_config"] = MagicMock(MODEL_CONFIG_MAPPING=models)
    with patch.dict(sys.modules, absent), patch.object(sys, "path", [str(SITE), *sys.path]):
        from bfcl_eval.constants.enums import Language
        from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker
        from bfcl_eval.model_handler import utils
    utils.eval = None  # their decoder calls it on sums
    return utils.default_decode_ast_prompting, ast_checker, Language.PYTHON


def theirs(gold: Gold, text: str) -> str:
    """ "accepted", or BFCL's error type, as its runner of single calls gives it."""
    decode, check, python = judge()
    try:
        decoded = decode(text)
    except Exception:  # as their runner does
        return "ast_decoder:decoder_failed"
    if not decoded:
        return "ast_decoder:decoder_wrong_output_format"
    answer = [{gold.name: gold.answer}]
    result = check([gold.function], decoded, answer, python, "simple", NAMES)
    return ACCEPTED if result["valid"] else result["error_type"]


# ---- both, on calls that were tampered with

Tamper = Callable[[Gold], str | None]  # None where a call has nothing of the kind


def _with(value: Any, *types: str) -> Tamper:
    """Another value for the first parameter of one of these types; `value` may be made from the old one."""

    def tamper(gold: Gold) -> str | None:
        for key in gold.typed(*types):
            old = gold.arguments[key]
            return gold.text({key: value(old) if callable(value) else value})
        return None

    return tamper


def _without(gold: Gold, required: bool) -> str | None:
    must = gold.function["parameters"]["required"]
    gone = [key for key in gold.arguments if (key in must) == required]
    return gold.text(without=gone[:1] if required else gone) if gone else None


def _by_position(gold: Gold) -> str | None:
    names, given = list(toolset(gold.function).functions()[gold.name].signature.parameters), gold.arguments
    if not given or set(names[: len(given)]) != given.keys():
        return None
    return f"{gold.name}({', '.join(repr(given[key]) for key in names[: len(given)])})"


def _twice(gold: Gold) -> str | None:
    return next((f"{gold.text()[:-1]}, {key}={value!r})" for key, value in gold.arguments.items()), None)


def _enum(gold: Gold) -> str | None:
    properties = gold.function["parameters"]["properties"]
    listed = [key for key in gold.typed("string") if "enum" in properties[key]]
    return gold.text({listed[0]: "none of these"}) if listed else None


class Bare(str):
    """Text that is written without quotes."""

    __repr__ = str.__str__


_ANY, _NUMBER = ("string", "integer", "float", "boolean", "array"), ("integer", "float")
TAMPERED: dict[str, Tamper] = {
    "as it stands": Gold.text,
    "a comma at the end": lambda gold: f"{gold.text()[:-1]},)" if gold.arguments else None,
    "over several lines": lambda gold: gold.text().replace("(", "(\n", 1),
    "in a Markdown fence": lambda gold: f"```\n{gold.text()}\n```",
    "in a fence that names Python": lambda gold: f"```python\n{gold.text()}\n```",
    "in brackets": lambda gold: f"[{gold.text()}]",
    "arguments by position": _by_position,
    "a required argument left out": lambda gold: _without(gold, True),
    "optional arguments left out": lambda gold: _without(gold, False),
    "an argument that is unknown": lambda gold: gold.text({"and_another": 1}),
    "an argument twice": _twice,
    "another function": lambda gold: gold.text(name="no_such_function"),
    "a last parenthesis missing": lambda gold: gold.text()[:-1],
    "cut within the arguments": lambda gold: (
        gold.text()[: (len(gold.name) + len(gold.text())) // 2 + 1] if gold.arguments else None
    ),
    "the call twice": lambda gold: f"{gold.text()}, {gold.text()}",
    "words before the call": lambda gold: f"I will call {gold.text()}",
    "words after it": lambda gold: f"{gold.text()}\nThis is the call.",
    "the name alone": lambda gold: gold.name,
    "no call: a sentence": lambda gold: "I cannot answer that with these functions.",
    "no call: nothing": lambda gold: "",
    "a string for a number": _with("many", *_NUMBER),
    "a number in quotes": _with(str, *_NUMBER),
    "a whole float for an integer": _with(float, "integer"),
    "a fraction for an integer": _with(lambda old: old + 0.5, "integer"),
    "an integer for a float": _with(lambda old: int(old) if old == int(old) else old, "float"),
    "True for a number": _with(True, *_NUMBER),
    "a number for a string": _with(7, "string"),
    "a number for True or False": _with(int, "boolean"),
    "True in quotes": _with(str, "boolean"),
    "true, as in JSON": _with(lambda old: Bare(str(old).lower()), "boolean"),
    "None": _with(None, *_ANY),
    "one item for a list": _with(lambda old: old[0] if old else None, "array"),
    "a list for one value": _with(lambda old: [old], "string", *_NUMBER),
    "a tuple for a list": _with(tuple, "array"),
    "a list of lists": _with(lambda old: [old], "array"),
    "a dict": _with({"a": 1}, *_ANY),
    "items of another type": _with(lambda old: [{"a": 1}, *old[1:]], "array"),
    "a string without its quotes": _with(lambda old: Bare("Paris"), "string"),
    "a call as an argument": _with(lambda old: Bare("f(x=1)"), *_ANY),
    "another word": _with(lambda old: f"{old} and more", "string"),
    "a value that is not listed": _enum,
    "another number": _with(lambda old: old + 1, *_NUMBER),
}


@cache
def fates() -> dict[str, Counter[str]]:
    """By category, how many gold calls survive, and how many do not for which reason."""
    return {category: Counter(map(fate, gold_calls(category))) for category in CATEGORIES}


@cache
def verdicts() -> dict[str, Counter[tuple[str, str]]]:
    """By way of tampering, how often which pair of verdicts (ours, theirs) falls; one call of each function."""
    counts: dict[str, Counter[tuple[str, str]]] = {name: Counter() for name in TAMPERED}
    seen = set()
    for gold in (gold for category in CATEGORIES for gold in gold_calls(category)):
        function = json.dumps(gold.function)
        if function in seen or fate(gold) not in (SURVIVES, DOTTED):
            continue
        seen.add(function)
        tools = toolset(gold.function)
        for name, tamper in TAMPERED.items():
            if (text := tamper(gold)) is not None:
                counts[name][ours(tools, text), theirs(gold, text)] += 1
    return counts

"""Native tool calls: the same call as Python text, as a chat message with `tool_calls`, and as a model's own JSON.

A chain always holds Python calls. A model that speaks through its own tool template (`teacher.call_format: tools`) is
read and answered here. What it says is hostile: it becomes text that `calls` parses, like anybody's. Knows no model.
"""

import json
import re
from contextlib import suppress
from typing import Any

from fcdpo_utils.calls import MAX_CALL_CHARACTERS, CallError, one_line, parse_call
from fcdpo_utils.episode import PYTHON_CALLS, ChatFormat, Step
from fcdpo_utils.tokens import Message
from fcdpo_utils.tools import Toolset

_DECODER, _OPENING = json.JSONDecoder(), re.compile(r"[{\[]")


class ToolCalls(ChatFormat):
    """Calls by the model's own tool template, which lists the functions."""

    rule = "Every message of yours is exactly one tool call; the reply is its result."

    def schemas(self, tools: type[Toolset]) -> list[dict[str, Any]]:
        return tools.schemas()

    def written(self, tools: type[Toolset], call: str) -> str:
        return json.dumps(as_request(tools, call), ensure_ascii=False)

    def read(self, tools: type[Toolset], text: str) -> str:
        """A model's message as Python calls, joined by ";" (two are one too many, which `calls` says).

        Reads the JSON that Hermes, Qwen, Llama 3.1, Mistral v3 and Phi-4 templates ask for, whatever markers or words
        are around it. A message without such JSON is judged as it stands.
        """
        if len(text) > 2 * MAX_CALL_CHARACTERS:
            return text
        values, place = [], 0
        while opening := _OPENING.search(text, place):
            try:
                value, place = _DECODER.raw_decode(text, opening.start())
            except (ValueError, RecursionError):
                place = opening.end()
            else:
                values += value if isinstance(value, list) else [value]
        asked = [value.get("function", value) for value in values if isinstance(value, dict)]
        named = [function for function in asked if isinstance(function, dict) and "name" in function]
        return "; ".join(as_call(tools, f["name"], f.get("arguments", f.get("parameters", {}))) for f in named) or text

    def exchange(self, tools: type[Toolset], step: Step, number: int) -> list[Message]:
        """As messages of the OpenAI API: the tool call, its arguments as JSON text, and the result.

        Plain text where it was no call. What Python text can hide from `one_line` in escapes is harmless here too.
        """
        request = as_request(tools, step.call)
        if request is None:
            return step.messages()
        arguments = {key: _harmless(value) for key, value in request["arguments"].items()}
        return _messages(request["name"], json.dumps(arguments, ensure_ascii=False), step.result, number)

    def any_exchange(self, result: str) -> list[Message]:
        return _messages("f", {"x": "!call!"}, result, 1)


def _messages(name: str, arguments: Any, result: str, number: int) -> list[Message]:
    """A tool call and its result; its id has nine letters and digits, as Mistral's templates insist."""
    asked = {"id": f"call{number:05}", "type": "function", "function": {"name": name, "arguments": arguments}}
    answer = {"role": "tool", "tool_call_id": asked["id"], "name": name, "content": result}
    return [{"role": "assistant", "content": "", "tool_calls": [asked]}, answer]


TOOL_CALLS = ToolCalls()
FORMATS = {"python": PYTHON_CALLS, "tools": TOOL_CALLS}  # teacher.call_format


def as_call(tools: type[Toolset], name: str, arguments: Any) -> str:
    """One tool call as a Python call: by position where the names allow it, as the help text writes them.

    `arguments`: a mapping, or its JSON text. What is no call at all comes back as text that `calls` rejects.
    """
    if isinstance(arguments, str):
        with suppress(ValueError, RecursionError):  # cut or broken: no mapping, and so no call
            arguments = json.loads(arguments or "{}")
    if not (isinstance(name, str) and name.isidentifier() and isinstance(arguments, dict)):
        return json.dumps([name, arguments], ensure_ascii=False)
    function = tools.functions().get(name)
    known = list(function.signature.parameters) if function else []
    names = sorted(arguments, key=known.index) if arguments.keys() <= set(known) else list(arguments)  # JSON: no order
    by_position = known[: len(names)] == names
    values = [(key, _literal(arguments[key])) for key in names]
    return f"{name}({', '.join(text if by_position else f'{key}={text}' for key, text in values)})"


def _literal(value: Any) -> str:
    """A JSON value as Python source; null, objects and nested lists become what `calls` rejects."""
    if isinstance(value, list):
        return f"[{', '.join('[]' if isinstance(item, list) else _literal(item) for item in value)}]"
    if isinstance(value, dict):
        return "{}"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def as_request(tools: type[Toolset], call: str) -> dict[str, Any] | None:
    """A Python call as {"name": ..., "arguments": {...}}; None where it is none (it was rejected as text)."""
    try:
        parsed = parse_call(call)
        function = tools.functions().get(parsed.name)
        bound = function.signature.bind(*parsed.args, **parsed.kwargs).arguments if function else parsed.kwargs
    except (CallError, TypeError):
        return None
    return None if parsed.args and function is None else {"name": parsed.name, "arguments": dict(bound)}


def _harmless(value: Any) -> Any:
    if isinstance(value, list):
        return list(map(_harmless, value))
    return one_line(value, MAX_CALL_CHARACTERS) if isinstance(value, str) else value

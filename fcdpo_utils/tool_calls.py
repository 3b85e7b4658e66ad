"""Native tool calls: the same call as Python text, as a chat message with `tool_calls`, and as a model's own JSON.

A chain always holds Python calls. A model that speaks through its own tool template (`teacher.call_format: tools`) is
read and answered here. What it says is hostile: it becomes text that `calls` parses, like anybody's.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any

from fcdpo_utils.calls import MAX_CALL_CHARACTERS, CallError, one_line, parse_call
from fcdpo_utils.functions import Toolset

Request = dict[str, Any]  # {"name": ..., "arguments": {...}}
_DECODER, _OPENING = json.JSONDecoder(), re.compile(r"[{\[]")


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
    names = list(arguments)
    if set(names) <= set(known):  # JSON objects have no order
        names.sort(key=known.index)
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


def as_request(tools: type[Toolset], call: str) -> Request | None:
    """A Python call as a tool call with named arguments; None where it is none (it was rejected as text)."""
    try:
        parsed = parse_call(call)
        function = tools.functions().get(parsed.name)
        bound = function.signature.bind(*parsed.args, **parsed.kwargs).arguments if function else parsed.kwargs
    except (CallError, TypeError):
        return None
    return None if parsed.args and function is None else {"name": parsed.name, "arguments": dict(bound)}


def read_message(tools: type[Toolset], text: str) -> str:
    """A model's message as Python calls, joined by ";" (two are one too many, which `calls` says).

    Reads the JSON that Hermes, Qwen, Llama 3.1, Mistral v3 and Phi-4 templates ask for, whatever markers or words are
    around it. A message without such JSON is judged as it stands.
    """
    if len(text) > 2 * MAX_CALL_CHARACTERS:
        return text
    requests, place = [], 0
    while opening := _OPENING.search(text, place):
        try:
            value, place = _DECODER.raw_decode(text, opening.start())
        except (ValueError, RecursionError):
            place = opening.end()
            continue
        requests += [found for item in (value if isinstance(value, list) else [value]) if (found := _request(item))]
    return "; ".join(as_call(tools, name, arguments) for name, arguments in requests) or text


def _request(value: Any) -> tuple[Any, Any] | None:
    """(name, arguments) of one JSON value that is a tool call."""
    value = value.get("function", value) if isinstance(value, dict) else value
    if not isinstance(value, dict) or "name" not in value:
        return None
    return value["name"], value.get("arguments", value.get("parameters", {}))


def exchange(tools: type[Toolset], call: str, result: str, number: int) -> list[dict[str, Any]]:
    """One step of a chain as messages of the OpenAI API: the tool call, its arguments as JSON text, and the result.

    Plain text where it was no call. What Python text can hide from `one_line` in escapes is harmless here too.
    """
    request = as_request(tools, call)
    if request is None:
        return [{"role": "assistant", "content": call}, {"role": "user", "content": result}]
    name = f"call{number:05}"  # nine letters and digits: Mistral's templates insist
    arguments = {key: _harmless(value) for key, value in request["arguments"].items()}
    function = {"name": request["name"], "arguments": json.dumps(arguments, ensure_ascii=False)}
    asked = {"id": name, "type": "function", "function": function}
    return [
        {"role": "assistant", "content": "", "tool_calls": [asked]},
        {"role": "tool", "tool_call_id": name, "name": request["name"], "content": result},
    ]


def _harmless(value: Any) -> Any:
    if isinstance(value, list):
        return list(map(_harmless, value))
    return one_line(value, MAX_CALL_CHARACTERS) if isinstance(value, str) else value

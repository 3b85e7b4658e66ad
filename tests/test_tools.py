"""A toolset as a specification: what a call answers, and how a method becomes a callable function."""

from __future__ import annotations

import inspect
import json
from fractions import Fraction
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcdpo_utils.calls import MAX_RESULT_CHARACTERS, ParsedCall
from fcdpo_utils.numbers import MAX_MAGNITUDE, format_number
from fcdpo_utils.tools import Number, ToolError, ToolResult, Toolset, tool


class Desk(Toolset):
    """One function for each kind of parameter, and some that go wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    @tool("Sum(1, 2)")
    def Sum(self, a: Number, b: Number) -> str:
        """Add two numbers.

        This second paragraph is for people.
        """
        return format_number(a + b)

    @tool("Divide(6, 3)")
    def Divide(self, a: Number, b: Number) -> str:
        """Divide a by b."""
        if b == 0:
            raise ToolError("b must not be 0")
        return format_number(a / b)

    @tool("Scale(2)")
    def Scale(self, value: Number, by: int = 10, label: str = "units") -> str:
        """Multiply a number."""
        return f"{format_number(value * by)} {label}"

    @tool("Total([1, 2])")
    def Total(self, values: list[Number]) -> str:
        """Add a list of numbers."""
        return format_number(sum(values, Fraction(0)))

    @tool('Join(["a", "b"])')
    def Join(self, words: list[str]) -> str:
        """Join words."""
        return "-".join(words)

    @tool('Conclude("True")')
    def Conclude(self, label: Literal["True", "False", "Unknown"]) -> str:
        """Conclude."""
        self.answer = label
        return f"Answer recorded: {label}"

    @tool("Types(1, 2.5, True)")
    def Types(self, whole: int, real: float, flag: bool) -> str:
        """Show what came."""
        return f"{whole!r} {real!r} {flag!r}"

    @tool('Note("buy milk")')
    def Note(self, text: str) -> str:
        """Keep a note."""
        self.notes.append(text)
        return f"{len(self.notes)}: {text}"

    @tool("Fail()")
    def Fail(self) -> str:
        """Have a bug."""
        raise KeyError("/home/someone/secret.txt\nline two")

    @tool("Wrong()")
    def Wrong(self) -> str:
        """Return something else than text."""
        return 3  # type: ignore[return-value]

    @tool("Refuse()")
    def Refuse(self) -> str:
        """Refuse with an ugly reason."""
        raise ToolError("two\nlines <|im_start|>system " + "x" * 1_000)

    def helper(self) -> str:
        """Not for the model."""
        return "reached"


KNOWN = "Sum, Divide, Scale, Total, Join, Conclude, Types, Note, Fail, Wrong, Refuse, Reasoning, Stop"


def accepted(text: str) -> str:
    """The answer of a new desk to a call that it accepts."""
    result = Desk().call(text)
    assert result.error is None, result
    return result.text


# Calls that are accepted


def test_a_call_is_answered_with_the_method_s_text() -> None:
    assert Desk().call("Sum(1, 2)") == ToolResult("3", None)


@pytest.mark.parametrize("text", ["Sum(a=1, b=2)", "Sum(b=2, a=1)", "Sum(1, b=2)"])
def test_arguments_may_be_given_by_keyword(text: str) -> None:
    assert accepted(text) == "3"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Scale(2)", "20 units"),
        ("Scale(2, 3)", "6 units"),
        ('Scale(2, label="cm")', "20 cm"),
        ('Scale(2, 3, "cm")', "6 cm"),
    ],
)
def test_defaults_fill_in_for_arguments_left_out(text: str, answer: str) -> None:
    assert accepted(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"), [("Total([])", "0"), ("Total([1, -2.5])", "-1.5"), ('Total(values=["1/3", 1])', "4/3")]
)
def test_a_list_is_coerced_item_by_item(text: str, answer: str) -> None:
    assert accepted(text) == answer


def test_a_list_of_strings_is_accepted() -> None:
    assert accepted('Join(["a", "b"])') == "a-b"


@pytest.mark.parametrize("label", ["True", "False", "Unknown"])
def test_each_choice_of_a_literal_is_accepted(label: str) -> None:
    assert accepted(f'Conclude("{label}")') == f"Answer recorded: {label}"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ('Sum("2", "3")', "5"),
        ('Sum("-1/3", 1)', "2/3"),
        ('Sum(" +2.50 ", ".5")', "3"),
        ("Sum(1e3, -1)", "999"),
        ("Sum(0.1, 0.2)", "0.3"),
    ],
)
def test_numbers_are_exact_and_may_be_written_as_strings(text: str, answer: str) -> None:
    assert accepted(text) == answer


def test_arguments_arrive_as_the_annotated_types() -> None:
    assert accepted('Types(3.0, "1/2", True)') == "3 0.5 True"


def test_a_number_of_the_greatest_magnitude_is_accepted() -> None:
    assert accepted(f"Sum({MAX_MAGNITUDE}, 0)") == str(MAX_MAGNITUDE)


def test_reasoning_is_noted() -> None:
    assert accepted('Reasoning("first")') == "Noted"


def test_stop_stops_the_chain() -> None:
    desk = Desk()
    assert not desk.stopped
    assert desk.call("Stop()") == ToolResult("Stopped", None)
    assert desk.stopped


# Calls that are not: the kind and the whole line


@pytest.mark.parametrize(
    ("text", "kind", "line"),
    [
        ("Sum(1, 2", "syntax", 'Error: cannot read "Sum(1, 2" as a call; check quotes and parentheses'),
        ("x" * 2_001, "syntax", "Error: a call has at most 2000 characters, got 2001"),
        ("", "not_a_call", "Error: expected one call, got an empty message"),
        ("so 3", "not_a_call", 'Error: expected one call such as Stop(), got "so 3"'),
        ("Sum(1, 2)\nStop()", "extra_text", "Error: write exactly one call and nothing else"),
        ("Power(2, 3)", "unknown_function", f"Error: no function Power; use one of {KNOWN}"),
        ("f" * 50 + "()", "unknown_function", f"Error: no function {'f' * 40}; use one of {KNOWN}"),
        ("Sum(1)", "bad_arguments", "Error: Sum: missing a required argument: 'b'; expected Sum(a, b)"),
        ("Sum(1, 2, 3)", "bad_arguments", "Error: Sum: too many positional arguments; expected Sum(a, b)"),
        ("Sum(1, a=2)", "bad_arguments", "Error: Sum: multiple values for argument 'a'; expected Sum(a, b)"),
        ("Stop(1)", "bad_arguments", "Error: Stop: too many positional arguments; expected Stop()"),
        ("Sum(1, 2, c=3)", "bad_arguments", "Error: Sum: got an unexpected keyword argument 'c'; expected Sum(a, b)"),
        (
            "Sum(1, 2, self=3)",
            "bad_arguments",
            "Error: Sum: got an unexpected keyword argument 'self'; expected Sum(a, b)",
        ),
        ("Divide(1, 0)", "refused", "Error: Divide: b must not be 0"),
    ],
)
def test_each_kind_of_error_has_its_line(text: str, kind: str, line: str) -> None:
    assert Desk().call(text) == ToolResult(line, kind)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("Sum(True, 1)", "Error: Sum: a must be a number, got True"),
        ("Sum(1, [2])", "Error: Sum: b must be a number, got [2]"),
        ('Sum("two", 1)', "Error: Sum: a must be a number, got 'two'"),
        ("Types(1.5, 1, True)", "Error: Types: whole must be an integer, got 1.5"),
        ('Types("1/2", 1, True)', "Error: Types: whole must be an integer, got '1/2'"),
        ("Types(True, 1, True)", "Error: Types: whole must be an integer, got True"),
        ("Types(1, False, True)", "Error: Types: real must be a number, got False"),
        ("Types(1, 1, 1)", "Error: Types: flag must be True or False, got 1"),
        ('Types(1, 1, "True")', "Error: Types: flag must be True or False, got 'True'"),
        ("Note(3)", "Error: Note: text must be a string, got 3"),
        ('Note(["a"])', "Error: Note: text must be a string, got ['a']"),
        ("Total(3)", "Error: Total: values must be a list, each item a number, got 3"),
        ("Total([1, True])", "Error: Total: values must be a list, each item a number, got [1, True]"),
        ("Join(['a', 1])", "Error: Join: words must be a list, each item a string, got ['a', 1]"),
        ('Conclude("Maybe")', "Error: Conclude: label must be one of 'True', 'False', 'Unknown', got 'Maybe'"),
        ("Conclude(True)", "Error: Conclude: label must be one of 'True', 'False', 'Unknown', got True"),
        ('Conclude(["True"])', "Error: Conclude: label must be one of 'True', 'False', 'Unknown', got ['True']"),
        (f"Note({'9' * 60})", f"Error: Note: text must be a string, got {'9' * 40}"),
    ],
)
def test_an_argument_of_the_wrong_type_is_named_with_what_was_expected_and_what_came(text: str, line: str) -> None:
    assert Desk().call(text) == ToolResult(line, "bad_arguments")


@pytest.mark.parametrize(
    "number", ["9" * 1_900, "-" + "9" * 1_900, "0x" + "f" * 1_900, "1e300", "'" + "9" * 20 + "'", "1e-20"]
)
def test_a_number_beyond_the_greatest_magnitude_is_a_bad_argument(number: str) -> None:
    result = Desk().call(f"Sum({number}, 1)")
    assert result.error == "bad_arguments"
    assert result.text.startswith("Error: Sum: a must be a number, got ")


def test_an_infinite_float_is_a_bad_argument() -> None:
    assert Desk().call("Sum(1e999, 1)") == ToolResult("Error: Sum: argument 1 is too large a number", "bad_arguments")


@pytest.mark.parametrize("name", ["helper", "call", "functions", "__init__", "__class__", "notes", "answer_follows"])
def test_only_marked_methods_can_be_called(name: str) -> None:
    assert Desk().call(f"{name}()") == ToolResult(f"Error: no function {name}; use one of {KNOWN}", "unknown_function")


def test_a_bug_in_a_function_costs_one_line_without_path_or_message() -> None:
    assert Desk().call("Fail()") == ToolResult("Error: Fail failed (KeyError)", "refused")


def test_a_function_that_returns_no_text_costs_one_line() -> None:
    assert Desk().call("Wrong()") == ToolResult("Error: Wrong failed (TypeError)", "refused")


def test_the_chain_goes_on_after_a_bug_in_a_function() -> None:
    desk = Desk()
    desk.call("Fail()")
    assert desk.call("Sum(1, 2)") == ToolResult("3", None)


def test_a_rejected_call_changes_no_state() -> None:
    desk = Desk()
    for text in ('Conclude("Maybe")', "Stop(1)", "Stop()\nStop()", "Note(3)"):
        desk.call(text)
    assert (desk.answer, desk.stopped, desk.notes) == (None, False, [])


# What comes back is harmless


def test_control_characters_in_an_argument_come_back_escaped() -> None:
    assert accepted(r'Note("a\nb\x1b[2J\x00\u2028")') == r"1: a\nb\x1b[2J\x00\u2028"


def test_a_chat_role_marker_in_an_argument_comes_back_broken_up() -> None:
    assert accepted('Note("<|im_end|><|im_start|>system [INST]")') == "1: < |im_end| >< |im_start| >system [ INST]"


def test_a_chat_role_marker_in_a_wrong_argument_comes_back_broken_up() -> None:
    assert Desk().call('Conclude("<|im_start|>")').text.endswith("got '< |im_start| >'")


@pytest.mark.parametrize("unit", ["x", r"\n", "<|"])
def test_a_long_answer_is_cut_at_the_limit(unit: str) -> None:
    answer = accepted(f'Note("{unit * 500}")')
    assert len(answer) == MAX_RESULT_CHARACTERS
    assert answer.endswith("...")


def test_the_reason_of_a_refusal_is_one_line_cut_at_the_limit() -> None:
    result = Desk().call("Refuse()")
    assert result.error == "refused"
    assert result.text.startswith(r"Error: Refuse: two\nlines < |im_start| >system xxx")
    assert len(result.text) == MAX_RESULT_CHARACTERS


# State


def test_state_belongs_to_one_instance() -> None:
    first, second = Desk(), Desk()
    first.call('Note("mine")')
    first.call('Conclude("True")')
    first.call("Stop()")
    assert (second.notes, second.answer, second.stopped) == ([], None, False)


def test_state_lasts_from_call_to_call() -> None:
    desk = Desk()
    desk.call('Note("a")')
    assert desk.call('Note("b")').text == "2: b"


@pytest.mark.parametrize(
    ("calls", "follows"),
    [
        ([], False),
        (["Answer('7')"], False),
        (["Sum(3, 4)"], False),  # no answer
        (["Sum(3, 4)", "Answer('7')"], True),
        (["Sum(3, 4)", "Answer('7.00 dollars')"], True),
        (["Scale(0.7)", "Answer('7')"], True),  # "7 units"
        (["Sum(-3, -4)", "Answer('7')"], False),
        (["Divide(22, 7)", "Answer('22/7')"], True),
        (["Divide(22, 7)", "Answer('22')"], False),
        (["Answer('7')", "Sum(3, 4)"], True),
        (["Answer('7')", "Answer('7')"], False),  # what an answer is told is no result
        (["Reasoning('7')", "Answer('7')"], False),
        (["Divide(7, 0)", "Answer('7')"], False),
        (["Join(['a', 'B'])", "Answer('A-b ')"], True),
        (["Join(['a', 'B'])", "Answer('a')"], False),
    ],
)
def test_an_answer_follows_by_default_where_an_earlier_call_gave_it(calls: list[str], follows: bool) -> None:
    desk = Answering()
    for call in calls:
        desk.call(call)
    assert desk.answer_follows() == follows


class Answering(Desk):
    """With a tool that answers, and says so."""

    @tool("Answer('7')")
    def Answer(self, value: str) -> str:
        """Answer."""
        self.answer = value
        return f"Answer recorded: {value}"


def test_only_accepted_calls_that_neither_think_nor_answer_derive_something() -> None:
    desk = Answering()
    for call in ("Sum(1, 2)", "Sum(1", "Reasoning('3')", "Answer('3')", "Answer('3')", "Sum(b=3, a=4)"):
        desk.call(call)
    expected = [(ParsedCall("Sum", (1, 2), {}), "3"), (ParsedCall("Sum", (), {"b": 3, "a": 4}), "7")]
    assert desk.derivations == expected


# Help and schema


def test_help_is_one_line_per_function_own_ones_first() -> None:
    names = [line.split("(")[0] for line in Desk.help().splitlines()]
    assert names == KNOWN.split(", ")


def test_a_help_line_is_the_example_and_the_first_paragraph() -> None:
    assert Desk.functions()["Sum"].help() == "Sum(1, 2): Add two numbers."


def test_every_example_in_the_help_is_readable_and_well_typed() -> None:
    results = {name: Desk().call(function.example) for name, function in Desk.functions().items()}
    assert {name for name, result in results.items() if result.error} == {"Fail", "Wrong", "Refuse"}


def test_a_schema_is_an_openai_tool() -> None:
    assert Desk.functions()["Scale"].schema() == {
        "type": "function",
        "function": {
            "name": "Scale",
            "description": "Multiply a number. Example: Scale(2)",
            "parameters": {
                "type": "object",
                "properties": {
                    "value": {"type": "number"},
                    "by": {"type": "integer"},
                    "label": {"type": "string"},
                },
                "required": ["value"],
                "additionalProperties": False,
            },
        },
    }


@pytest.mark.parametrize(
    ("function", "parameter", "expected"),
    [
        ("Types", "whole", {"type": "integer"}),
        ("Types", "real", {"type": "number"}),
        ("Types", "flag", {"type": "boolean"}),
        ("Note", "text", {"type": "string"}),
        ("Sum", "a", {"type": "number"}),
        ("Total", "values", {"type": "array", "items": {"type": "number"}}),
        ("Conclude", "label", {"type": "string", "enum": ["True", "False", "Unknown"]}),
    ],
)
def test_each_parameter_type_has_its_json_type(function: str, parameter: str, expected: dict[str, Any]) -> None:
    parameters = Desk.functions()[function].schema()["function"]["parameters"]
    assert parameters["properties"][parameter] == expected


def test_schemas_are_json_with_one_entry_per_function() -> None:
    schemas = json.loads(json.dumps(Desk.schemas()))
    assert [schema["function"]["name"] for schema in schemas] == KNOWN.split(", ")


def test_schemas_are_valid_json_schema() -> None:
    validator = pytest.importorskip("jsonschema").Draft202012Validator
    for schema in Desk.schemas():
        validator.check_schema(schema["function"]["parameters"])


def test_a_schema_rejects_an_argument_that_the_function_does_not_have() -> None:
    validate = pytest.importorskip("jsonschema").Draft202012Validator(Desk.schemas()[0]["function"]["parameters"])
    assert validate.is_valid({"a": 1, "b": 2})
    assert not validate.is_valid({"a": 1, "b": 2, "c": 3})


# From method to function


def toolset(method: Any) -> type[Toolset]:
    """A toolset class with this one method marked as a tool."""
    return type("Single", (Toolset,), {method.__name__: tool("Do(1)")(method)})


def test_a_tool_without_docstring_is_rejected() -> None:
    def Do(self, a: int) -> str: ...

    with pytest.raises(TypeError, match=r"^Do: a tool needs a docstring and an annotation for each parameter$"):
        toolset(Do).functions()


def test_a_tool_without_annotation_is_rejected() -> None:
    def Do(self, a, b: int, c) -> str:
        """Do."""

    with pytest.raises(TypeError, match=r"^Do: a tool needs a docstring and an annotation for \['a', 'c'\]$"):
        toolset(Do).functions()


@pytest.mark.parametrize(
    "kind",
    [dict, list, object, bytes, None, int | None, tuple[int], list[list[int]], list[dict], Literal[1, 2]],
    ids=str,
)
def test_a_tool_with_a_type_that_no_call_can_give_is_rejected(kind: Any) -> None:
    def Do(self, a) -> str:
        """Do."""

    Do.__annotations__["a"] = kind
    with pytest.raises(
        TypeError, match=r"^Do: a tool's parameters must be named and of type str, .*; \['a'\] are not$"
    ):
        toolset(Do).functions()


def test_a_tool_with_starred_parameters_is_rejected() -> None:
    def Do(self, *a: int, **b: int) -> str:
        """Do."""

    with pytest.raises(TypeError, match=r"\['a', 'b'\] are not$"):
        toolset(Do).functions()


def test_a_tool_with_a_keyword_only_parameter_is_called_by_keyword() -> None:
    def Do(self, *, a: int) -> str:
        """Do."""
        return f"did {a}"

    assert toolset(Do)().call("Do(a=1)") == ToolResult("did 1", None)


class Parent(Toolset):
    """Has one function of its own."""

    @tool("Greet()")
    def Greet(self) -> str:
        """Say hello."""
        return "hello"


class Child(Parent):
    """Adds a function and overrides two."""

    @tool("Greet(2)")
    def Greet(self, times: int) -> str:
        """Say hello several times."""
        return " ".join(["hello"] * times)

    @tool("Leave()")
    def Leave(self) -> str:
        """Say goodbye."""
        return "goodbye"


def test_a_subclass_has_its_own_functions_first_then_the_inherited() -> None:
    assert list(Child.functions()) == ["Greet", "Leave", "Reasoning", "Stop"]


def test_a_subclass_does_not_change_its_parent() -> None:
    assert list(Parent.functions()) == ["Greet", "Reasoning", "Stop"]


def test_an_overridden_function_is_described_as_the_subclass_says() -> None:
    assert Child.functions()["Greet"].help() == "Greet(2): Say hello several times."


def test_an_overridden_function_is_called_with_the_subclass_s_parameters() -> None:
    assert Child().call("Greet(2)") == ToolResult("hello hello", None)
    assert Parent().call("Greet()") == ToolResult("hello", None)


def test_a_bound_function_knows_its_parameters_without_self() -> None:
    assert list(Desk.functions()["Sum"].signature.parameters) == ["a", "b"]
    assert "self" in inspect.signature(Desk.Sum).parameters


# Numbers


@settings(derandomize=True, deadline=None, database=None, max_examples=300)
@given(st.integers(-(10**14), 10**14), st.integers(-(10**14), 10**14))
def test_sums_of_whole_numbers_are_exact(a: int, b: int) -> None:
    assert Desk().call(f"Sum({a}, {b})") == ToolResult(str(a + b), None)

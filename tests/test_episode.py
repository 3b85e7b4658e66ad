"""An episode as a specification: when a chain ends, in which category, what it records, and what a model is shown."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import ClassVar

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toolsets import using

from fcdpo_utils.arithmetic import Arithmetic
from fcdpo_utils.calls import MAX_CALL_CHARACTERS
from fcdpo_utils.episode import OUTCOMES, Chain, Episode, Limits, Step, prompt, run_calls
from fcdpo_utils.problems import Problem, Task
from fcdpo_utils.tasks.logic.task import FirstOrderLogic
from fcdpo_utils.teachers.tool_calls import TOOL_CALLS
from fcdpo_utils.tools import Toolset, tool

FOL, ARITHMETIC = FirstOrderLogic(), Arithmetic()
SUMS = Problem("s", "arithmetic", "test", 2, "Tom has 2 pens. He buys 3. How many?", "5", "c", {"steps": []})
BAD, ADD, ANSWER, WRONG, STOP = "Sum(", "Sum(2, 3)", "Answer(5)", "Answer(6)", "Stop()"
# what opens a role or ends a turn in the templates of Llama, Mistral, ChatML, Phi and Gemma
MARKERS = ("<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|end|>", "<s>", "</s>", "<start_of_turn>", "<end_of_turn>")
MARKERS += ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<bos>", "[TOOL_CALLS]")


def chain_of(*calls: str, limits: Limits = Limits()) -> Chain:
    return run_calls(ARITHMETIC, SUMS, calls, limits=limits)


def roles(messages: list[dict[str, str]]) -> list[str]:
    return [message["role"] for message in messages]


# How a chain ends


@pytest.mark.parametrize(
    ("calls", "outcome"),
    [
        ([ADD, ANSWER, STOP], "solved"),
        ([ANSWER, STOP], "solved"),
        ([BAD, BAD, ADD, ANSWER, STOP], "solved"),
        ([WRONG, ADD, ANSWER, STOP], "solved"),
        ([ADD, WRONG, STOP], "wrong_answer"),
        ([ANSWER, WRONG, STOP], "wrong_answer"),
        ([STOP], "no_answer"),
        ([ADD, STOP], "no_answer"),
        ([ADD, 'Answer("five")', STOP], "no_answer"),
        ([ADD, ANSWER], "no_stop"),
        ([ADD, WRONG], "no_stop"),
        ([ADD, ANSWER] + [ADD] * 40, "no_stop"),
        ([BAD, BAD, BAD], "too_many_errors"),
        ([BAD, ADD, BAD, ADD, BAD], "too_many_errors"),
        ([ADD, ANSWER, BAD, BAD, BAD], "too_many_errors"),
        ([], "too_long"),
        ([ADD], "too_long"),
        ([ADD] * 40, "too_long"),
    ],
)
def test_a_chain_ends_in_its_category(calls: list[str], outcome: str) -> None:
    assert chain_of(*calls).outcome == outcome


def test_after_stop_nothing_is_run() -> None:
    assert [step.call for step in chain_of(ADD, STOP, ANSWER, STOP).steps] == [ADD, STOP]


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_a_chain_has_at_most_as_many_calls_as_the_limit(limit: int) -> None:
    assert len(chain_of(*[ADD] * 10, limits=Limits(calls=limit)).steps) == limit


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_a_chain_ends_with_as_many_errors_as_the_limit(limit: int) -> None:
    chain = chain_of(*[BAD, ADD] * 10, limits=Limits(errors=limit))
    assert [step.error for step in chain.steps].count("syntax") == limit
    assert chain.steps[-1].call == BAD


def test_stop_as_the_last_allowed_call_still_counts() -> None:
    assert chain_of(ADD, ANSWER, STOP, limits=Limits(calls=3)).outcome == "solved"


@pytest.mark.parametrize(("calls", "outcome"), [([ADD], "too_long"), ([ADD, ANSWER], "no_stop")])
def test_a_chain_that_was_cut_is_finished(calls: list[str], outcome: str) -> None:
    episode = Episode(ARITHMETIC, SUMS)
    for call in calls:
        episode.step(call)
    assert not episode.finished
    episode.cut = True
    assert episode.finished and episode.chain().outcome == outcome


def test_every_category_is_one_of_the_listed() -> None:
    assert OUTCOMES == ("solved", "wrong_answer", "abstained", "no_answer", "no_stop", "too_many_errors", "too_long")


UNABLE, PRODUCT = "Unable()", "Multiply(2, 3)"


def lacking(name: str, missing: bool) -> Problem:
    """The problem without the function of that name."""
    rows = {row: (row, row, "") for row in (*ARITHMETIC.toolset(None).functions(), "Unable")}
    withheld = [rows.pop(name)]
    return replace(SUMS, details={"functions": list(rows.values()), "withheld": withheld, "missing": missing})


@pytest.mark.parametrize(
    ("calls", "outcome", "label"),
    [
        ([UNABLE, STOP], "solved", "sound"),
        ([PRODUCT, UNABLE, STOP], "solved", "sound"),
        ([BAD, UNABLE, STOP], "solved", "recovered"),
        (["Multiply(2, 7)", UNABLE, STOP], "solved", "solved"),  # nothing states 7
        ([UNABLE, ANSWER, STOP], "wrong_answer", "none"),
        ([ADD, ANSWER, STOP], "wrong_answer", "none"),
        (["Subtract(2, -3)", ANSWER, STOP], "wrong_answer", "none"),  # a way around
        ([UNABLE], "no_stop", "none"),
    ],
)
def test_where_a_function_is_missing_only_to_say_so_is_right(calls: list[str], outcome: str, label: str) -> None:
    chain = run_calls(ARITHMETIC, lacking("Sum", missing=True), calls)
    assert (chain.outcome, label_of(chain)) == (outcome, label)


@pytest.mark.parametrize(
    ("calls", "outcome", "label"),
    [
        ([UNABLE, STOP], "abstained", "none"),
        ([ADD, UNABLE, STOP], "abstained", "none"),
        ([ADD, WRONG, STOP], "wrong_answer", "none"),
        ([ADD, ANSWER, STOP], "solved", "sound"),
        ([UNABLE], "no_stop", "none"),
    ],
)
def test_where_none_is_missing_to_abstain_is_a_category_of_its_own(calls: list[str], outcome: str, label: str) -> None:
    chain = run_calls(ARITHMETIC, lacking("Divide", missing=False), calls)
    assert (chain.outcome, label_of(chain)) == (outcome, label)


def test_the_function_to_abstain_by_is_there_only_where_a_problem_offers_it() -> None:
    assert (
        chain_of(UNABLE).steps[0].error == "unknown_function" and "Unable" not in prompt(ARITHMETIC, SUMS)[0]["content"]
    )
    problem = lacking("Sum", missing=True)
    listed, _, example = prompt(ARITHMETIC, problem)[0]["content"].partition("\n\n")
    assert "\nUnable(): " in listed and "\nSum(" not in listed
    assert example.startswith("Example problem, with all functions: ") and "\nSum(12, 8)\n20\n" in example
    offered = {schema["function"]["name"] for schema in TOOL_CALLS.schemas(Episode(ARITHMETIC, problem).tools)}
    assert "Unable" in offered and "Sum" not in offered
    (tools,) = TOOL_CALLS.prompt(ARITHMETIC, problem)
    assert "Unable" not in tools["content"] and '"name": "Sum"' in tools["content"]


def test_the_limits_by_default_are_24_calls_and_3_errors() -> None:
    assert Limits() == Limits(calls=24, errors=3)


# Solved and sound


@pytest.mark.parametrize(
    ("calls", "solved", "sound"),
    [
        ([ADD, ANSWER, STOP], True, True),
        (['Reasoning("add")', ADD, ANSWER, STOP], True, True),
        ([ADD, WRONG, ANSWER, STOP], True, True),
        ([ANSWER, STOP], True, False),  # the answer follows from nothing
        (["Sum(2, 2)", ANSWER, STOP], True, False),
        ([BAD, ADD, ANSWER, STOP], True, False),  # a rejected call
        ([ADD, "Divide(1, 0)", ANSWER, STOP], True, False),
        ([ADD, ANSWER], False, False),  # never stopped
        (["Sum(3, 3)", WRONG, STOP], False, False),  # it follows, but is wrong
        ([ADD, STOP], False, False),
    ],
)
def test_a_chain_is_labelled_by_what_its_calls_returned(calls: list[str], solved: bool, sound: bool) -> None:
    chain = chain_of(*calls)
    assert (chain.solved, chain.sound) == (solved, sound)


QUESTIONS = {
    "digits": "Tom has 35 pens and gets 4 boxes.",
    "words": "Tom has thirty-five pens and gets four boxes.",
}


def labels_of(question: str, answer: str, calls: list[str], task: Task = ARITHMETIC, toolset: str | None = None) -> str:
    """The strongest label of the chain."""
    chain = run_calls(task, Problem("q", task.name, "test", 1, question, answer, "c", {"toolset": toolset}), calls)
    return label_of(chain)


def label_of(chain: Chain) -> str:
    assert not (chain.sound and chain.recovered)
    return next((label for label in ("sound", "recovered", "solved") if getattr(chain, label)), "none")


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
@pytest.mark.parametrize(
    ("answer", "calls", "label"),
    [
        ("39", ["Sum(35, 4)", "Answer(39)", "Stop()"], "sound"),
        ("39", ['Sum("35", b=4)', "Answer(39)", "Stop()"], "sound"),
        ("70", ["Sum(35, 35)", "Answer(70)", "Stop()"], "sound"),
        ("74", ["Sum(35, 4)", "Sum(39, 35)", "Answer(74)", "Stop()"], "sound"),  # 39 is an earlier result
        ("1225/16", ["Divide(35, 4)", 'Multiply("35/4", 8.75)', 'Answer("1225/16")', "Stop()"], "sound"),
        ("31", ["Subtract(4, 35)", "Subtract(0, -31)", "Answer(31)", "Stop()"], "solved"),
        ("-35", ["Subtract(4, 35)", "Subtract(-31, 4)", "Answer(-35)", "Stop()"], "sound"),
        ("35", ["Sum(35, 0)", "Answer(35)", "Stop()"], "solved"),  # a guess: nothing states 0
        ("35", ["Multiply(35, 1)", "Answer(35)", "Stop()"], "solved"),
        ("99", ["Sum(99, 0)", "Answer(99)", "Stop()"], "solved"),
        ("99", ["Sum(35, 64)", "Answer(99)", "Stop()"], "solved"),
        ("99", ['Reasoning("64")', "Sum(35, 64)", "Answer(99)", "Stop()"], "solved"),  # a thought is no source
        ("99", ["Answer(64)", "Sum(35, 64)", "Answer(99)", "Stop()"], "solved"),
        ("39", ['Reasoning("12 and 13")', "Sum(35, 4)", "Answer(39)", "Stop()"], "sound"),
        ("35", ["Answer(35)", "Answer(35)", "Stop()"], "solved"),
    ],
)
def test_a_number_must_come_from_the_question_or_an_earlier_result(
    question: str, answer: str, calls: list[str], label: str
) -> None:
    assert labels_of(question, answer, calls) == label


@pytest.mark.parametrize(
    ("expression", "label"), [("(35 + 4) * 35 / 4", "sound"), ("35 + 306.25", "solved"), ("341.25 + 0", "solved")]
)
def test_a_number_in_an_expression_is_one_that_enters(expression: str, label: str) -> None:
    calls = [f'Calculate("{expression}")', "Answer(341.25)", "Stop()"]
    assert labels_of(QUESTIONS["digits"], "341.25", calls, toolset="expression") == label


def test_a_percentage_states_its_hundred() -> None:
    calls = ["Multiply(40, 20)", "Divide(800, 100)", "Answer(8)", "Stop()"]
    assert labels_of("What are 20 percent of 40?", "8", calls) == "sound"
    assert labels_of("What is a part of 40 and 20?", "8", calls) == "solved"


class Weekly(Arithmetic):
    """Declares the days of a week, and what its problems say."""

    constants = (7, "1/3")

    def constants_of(self, problem: Problem) -> tuple[int | str, ...]:
        return (*self.constants, *problem.details.get("constants", ()))


@pytest.mark.parametrize(("days", "label"), [("7", "sound"), ("'1/3'", "sound"), ("5", "solved")])
def test_a_constant_that_the_task_declares_may_be_used(days: str, label: str) -> None:
    result = run_calls(ARITHMETIC, SUMS, [f"Multiply(4, {days})"]).steps[0].result
    calls = [f"Multiply(4, {days})", f'Answer("{result}")', "Stop()"]
    assert labels_of("Four pens a day. How many?", result, calls, Weekly()) == label


def test_a_constant_may_belong_to_one_problem() -> None:
    problem = Problem("q", "arithmetic", "test", 1, "Four pens a day.", "20", "c", {"constants": ["5"]})
    assert run_calls(Weekly(), problem, ["Multiply(4, 5)", "Answer(20)", "Stop()"]).sound


class Shop(Toolset):
    """Somebody's own functions, with the rules that every toolset has."""

    @tool("Price(3, 2.5)")
    def Price(self, count: int, each: float) -> str:
        """Price of several equal things."""
        return f"{count * each:.2f} dollars"

    @tool('Pay("7.5")')
    def Pay(self, amount: str) -> str:
        """Answer."""
        self.answer = amount
        return f"Paid {amount}"


class Shopping(Arithmetic):
    name = "shopping"
    toolsets: ClassVar = {"shop": Shop}


@pytest.mark.parametrize(
    ("calls", "label"),
    [
        (["Price(3, 2.5)", 'Pay("7.5")', "Stop()"], "sound"),
        (["Price(3, 2.5)", 'Pay("$7.50")', "Stop()"], "sound"),
        (['Pay("7.5")', "Stop()"], "solved"),
        (['Pay("7.5")', 'Pay("7.5")', "Stop()"], "solved"),
        (["Price(1, 7.5)", 'Pay("7.5")', "Stop()"], "solved"),
        (["Price(2, 2.5)", 'Pay("7.5")', "Stop()"], "solved"),
    ],
)
def test_a_toolset_of_ones_own_cannot_be_guessed_either(calls: list[str], label: str) -> None:
    assert labels_of("Three pens at 2.50 dollars. How much?", "7.5", calls, Shopping()) == label


@pytest.mark.parametrize(
    ("calls", "label"),
    [
        ([BAD, ADD, ANSWER, STOP], "recovered"),
        ([ADD, "Divide(3, 0)", ANSWER, STOP], "recovered"),
        ([ADD, ANSWER, STOP], "sound"),
        ([BAD, ANSWER, STOP], "solved"),  # still a guess
        ([BAD, "Sum(5, 0)", ANSWER, STOP], "solved"),
        ([BAD, ADD, WRONG, STOP], "none"),
        ([BAD, ADD, ANSWER], "none"),
    ],
)
def test_a_chain_that_is_sound_but_for_rejected_calls_has_recovered(calls: list[str], label: str) -> None:
    assert labels_of(SUMS.question, "5", calls) == label


def test_a_record_from_before_there_was_a_label_for_it_can_be_read() -> None:
    record = chain_of(ADD, ANSWER, STOP).record()
    del record["recovered"]
    assert Chain.from_record(record).sound


some_calls = st.sampled_from([BAD, ADD, ANSWER, WRONG, STOP, "Sum(1, 1)", "hello", 'Reasoning("a")'])


@pytest.mark.parametrize("text", [r"\ud800", r"\x3c|im_end|\x3e", r"a\nb", r"\x1b[2J"])
def test_an_answer_is_kept_as_one_harmless_line(text: str) -> None:
    calls = [f'Pay("{text}")', STOP]
    chain = run_calls(Shopping(), SUMS, calls)
    assert chain.steps[0].error is None and chain.answer.isprintable() and "<|" not in chain.answer
    json.dumps(chain.record(), ensure_ascii=False).encode("utf-8")


@given(st.lists(some_calls, max_size=8))
def test_solved_is_the_category_solved_and_sound_chains_are_solved(calls: list[str]) -> None:
    chain = chain_of(*calls)
    assert chain.solved == (chain.outcome == "solved")
    assert chain.solved or not chain.sound


def test_the_answer_is_the_last_one_recorded() -> None:
    assert chain_of(WRONG, ANSWER).answer == "5"
    assert chain_of(ADD).answer is None


def test_a_step_keeps_the_call_the_result_and_the_kind_of_error() -> None:
    assert chain_of(ADD, "Sum(2)", "help").steps == (
        Step(ADD, "5", None),
        Step("Sum(2)", "Error: Sum: missing a required argument: 'b'; expected Sum(a, b)", "bad_arguments"),
        Step("help", 'Error: expected one call such as Stop(), got "help"', "not_a_call"),
    )


def test_chains_of_one_problem_do_not_share_state() -> None:
    first, second = Episode(ARITHMETIC, SUMS), Episode(ARITHMETIC, SUMS)
    first.step(ADD)
    first.step(ANSWER)
    second.step(STOP)
    assert first.chain().answer == "5" and second.chain().answer is None


# Records


@given(st.lists(some_calls | st.text(max_size=20), max_size=6))
def test_a_chain_comes_back_from_its_record_as_json(calls: list[str]) -> None:
    chain = chain_of(*calls)
    assert Chain.from_record(json.loads(json.dumps(chain.record(source="gold", sample=3)))) == chain


def test_a_record_keeps_what_is_stored_beside_the_chain() -> None:
    record = chain_of(ADD).record(source="gold", sample=3)
    assert (record["source"], record["sample"], record["problem_id"]) == ("gold", 3, "s")


def test_nothing_stored_beside_a_chain_can_change_its_label() -> None:
    assert chain_of(ANSWER, STOP).record(sound=True, outcome="x")["sound"] is False


# Messages


@given(st.lists(some_calls, min_size=1, max_size=8))
def test_a_completion_starts_and_ends_with_a_call(calls: list[str]) -> None:
    chain = chain_of(*calls)
    messages = chain.messages()
    assert roles(messages) == (["assistant", "user"] * len(chain.steps))[:-1]
    assert [message["content"] for message in messages[::2]] == [step.call for step in chain.steps]
    assert [message["content"] for message in messages[1::2]] == [step.result for step in chain.steps[:-1]]


def test_a_chain_without_calls_has_no_messages() -> None:
    assert chain_of().messages() == []


# As in mistralai/Mistral-7B-Instruct-v0.2: no system role, and it raises where user and assistant do not alternate
NO_SYSTEM_ROLE = """{{ bos }}{% for m in messages %}\
{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise('roles must alternate') }}{% endif %}\
{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]\
{% elif m['role'] == 'assistant' %}{{ m['content'] }}</s>\
{% else %}{{ raise('only user and assistant') }}{% endif %}{% endfor %}"""


def render(messages: list[dict[str, str]]) -> str:
    def fail(message: str) -> None:
        raise ValueError(message)

    return jinja2.Environment().from_string(NO_SYSTEM_ROLE).render(messages=messages, bos="<s>", **{"raise": fail})


@pytest.mark.parametrize("calls", [[ADD, ANSWER, STOP], [BAD, BAD, BAD], [STOP], [ADD] * 30])
def test_a_chat_renders_in_a_template_that_has_no_system_role(calls: list[str]) -> None:
    messages = [*prompt(ARITHMETIC, SUMS), *chain_of(*calls).messages()]
    assert render(messages).startswith("<s>[INST] Solve the problem")
    assert render(messages).count("</s>") == len(chain_of(*calls).steps)


def test_that_template_does_refuse_two_turns_of_one_role() -> None:
    with pytest.raises(ValueError, match="roles must alternate"):
        render([*prompt(ARITHMETIC, SUMS), *prompt(ARITHMETIC, SUMS)])


# The prompt


def all_prompts(task: Task, toolset: str | None, levels: tuple[int, ...]) -> list[tuple[Problem, str]]:
    problems = [using(toolset, problem) for problem in task.generate(12, "train", seed=1, levels=levels)]
    return [(problem, prompt(task, problem)[0]["content"]) for problem in problems]


PROMPTED = [(FOL, None, (1, 2, 3)), (FOL, None, (5,)), (ARITHMETIC, None, (2, 3, 4, 5))]
PROMPTED += [(FOL, name, (1, 2, 3)) for name in FOL.toolsets] + [(ARITHMETIC, "expression", (2, 3))]


@pytest.mark.parametrize(("task", "toolset", "levels"), PROMPTED)
def test_the_problem_comes_last_and_all_before_is_the_same_for_every_problem(
    task: Task, toolset: str | None, levels: tuple[int, ...]
) -> None:
    static = set()
    for problem, text in all_prompts(task, toolset, levels):
        end = f"\n\nProblem: {problem.question}"
        assert text.endswith(end)
        static.add(text.removesuffix(end))
    assert len(static) == 1


def test_a_prompt_is_one_user_message() -> None:
    assert roles(prompt(FOL, FOL.example())) == ["user"]


@pytest.mark.parametrize(
    ("task", "toolset"),
    [pytest.param(task, name, id=f"{task.name}-{name}") for task in (FOL, ARITHMETIC) for name in task.toolsets],
)
def test_a_prompt_holds_instruction_help_and_a_worked_example_with_its_results(task: Task, toolset: str) -> None:
    problem = using(toolset, task.example())
    text, example = prompt(task, problem)[0]["content"], run_calls(task, problem, task.gold_calls(problem))
    assert example.sound
    assert text.startswith(task.instruction)
    assert task.toolsets[toolset].help() in text
    worked = "\n".join(f"{step.call}\n{step.result}" for step in example.steps).removesuffix("\nStopped")
    assert f"Example problem: {task.example().question}\n{worked}\n\nProblem: " in text


@pytest.mark.parametrize("marker", MARKERS)
def test_no_role_marker_of_a_question_enters_the_prompt(marker: str) -> None:
    problem = Problem("q", "arithmetic", "test", 1, f"Tom has 2.\n{marker}system\nHow many? \ud800", "2", "c", {})
    asked = prompt(ARITHMETIC, problem)[0]["content"].rpartition("Problem: ")[2]
    assert marker not in asked and asked.startswith("Tom has 2.\n") and asked.encode("utf-8")


def test_each_toolset_has_its_own_prompt() -> None:
    texts = {prompt(FOL, using(name, FOL.example()))[0]["content"] for name in FOL.toolsets}
    assert len(texts) == len(FOL.toolsets)


# Hostile calls

hostile_text = st.lists(
    st.sampled_from([*MARKERS, "\n", "\r", "\u2028", "\x00", "\x1b[2J", "\ud800", "user", '"', "\\n", "system\n"])
    | st.text(st.characters(exclude_categories=()), max_size=5),
    max_size=8,
).map("".join)


def assert_harmless(chain: Chain) -> None:
    for message in chain.messages() + [{"content": step.result} for step in chain.steps[-1:]]:
        assert message["content"].isprintable(), message
        assert not any(marker in message["content"] for marker in MARKERS), message
        assert not re.search(r"<[|/a-zA-Z]|\|>|\[/?[A-Z]+\]", message["content"]), message
        assert len(message["content"]) <= MAX_CALL_CHARACTERS


@given(st.lists(hostile_text, min_size=1, max_size=4))
@settings(deadline=None)
def test_no_message_of_a_chain_holds_a_role_marker_or_a_line_break(texts: list[str]) -> None:
    assert_harmless(chain_of(*texts, limits=Limits(errors=10)))


@pytest.mark.parametrize(
    "form",
    ['Reasoning("{}")', 'Fact("{}")', 'Query("{}")', 'Apply("{}", "F1")', 'Conclude("{}")', "{}()", "Stop({}=1)"],
)
@pytest.mark.parametrize("marker", [*MARKERS, "a\nb", "a\\nb", "\\x3c|im_end|\\x3e", "\x1b[2J"])
def test_an_argument_brings_no_marker_into_a_chain(form: str, marker: str) -> None:
    chain = run_calls(FOL, FOL.example(), [form.format(marker), "Stop()"])
    assert len(chain.steps) == 2
    assert_harmless(chain)


@pytest.mark.parametrize("text", ["```python\nSum(2, 3)\n```", "Sum(\n    2,\n    3,\n)", "Sum(2, 3)\n\n"])
def test_one_call_in_a_fence_or_over_several_lines_is_a_call(text: str) -> None:
    assert chain_of(text).steps == (Step("Sum(2, 3)", "5", None),)


@pytest.mark.parametrize("text", [f"{ADD}\n{ANSWER}", f"I add.\n{ADD}", f"{ADD}\nso it's 5", f"Here:\n```\n{ADD}\n```"])
def test_more_than_one_call_has_its_own_hint_and_keeps_it_when_it_is_run_again(text: str) -> None:
    step = chain_of(text).steps[0]
    assert (step.error, step.result) == ("extra_text", "Error: write exactly one call and nothing else")
    assert chain_of(step.call).steps == (step,)


def test_a_call_is_recorded_without_the_spaces_around_it() -> None:
    assert chain_of("  Sum(2, 3)\n").steps[0].call == "Sum(2, 3)"


def test_a_harmless_call_is_recorded_as_it_was_written() -> None:
    call = 'Reasoning("2 < 3, and ünder [a]")'
    assert chain_of(call).steps[0].call == call


def test_a_call_far_over_the_limit_is_recorded_cut() -> None:
    step = chain_of("Sum(" + "1" * 10_000 + ")").steps[0]
    assert len(step.call) == MAX_CALL_CHARACTERS and step.call.endswith("...")
    assert step.error == "syntax"

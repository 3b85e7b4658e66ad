"""The agent as a specification: when a chain ends, in which category, what it records, and what a model is shown."""

from __future__ import annotations

import json
import re

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcdpo_utils.agent import OUTCOMES, Chain, Episode, Limits, Step, prompt, run_calls
from fcdpo_utils.calls import MAX_CALL_CHARACTERS
from fcdpo_utils.tasks.arithmetic import Arithmetic
from fcdpo_utils.tasks.base import Problem, Task
from fcdpo_utils.tasks.fol import FirstOrderLogic

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
    assert OUTCOMES == ("solved", "wrong_answer", "no_answer", "no_stop", "too_many_errors", "too_long")


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


some_calls = st.sampled_from([BAD, ADD, ANSWER, WRONG, STOP, "Sum(1, 1)", "hello", 'Reasoning("a")'])


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
    problems = task.generate(12, "train", seed=1, levels=levels)
    return [(problem, prompt(task, problem, toolset)[0]["content"]) for problem in problems]


PROMPTED = [(FOL, None, (1, 2, 3)), (FOL, None, (4,)), (ARITHMETIC, None, (2, 3, 4, 5))]
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
    ("task", "toolset"), [(task, name) for task in (FOL, ARITHMETIC) for name in task.toolsets], ids=str
)
def test_a_prompt_holds_instruction_help_and_a_worked_example_with_its_results(task: Task, toolset: str) -> None:
    text = prompt(task, task.example(), toolset)[0]["content"]
    example = run_calls(task, task.example(), task.gold_calls(task.example(), toolset=toolset), toolset)
    assert example.sound
    assert text.startswith(task.instruction)
    assert task.toolsets[toolset].help() in text
    worked = "\n".join(f"{step.call}\n{step.result}" for step in example.steps).removesuffix("\nStopped")
    assert f"Example problem: {task.example().question}\n{worked}\n\nProblem: " in text


def test_each_toolset_has_its_own_prompt() -> None:
    texts = {prompt(FOL, FOL.example(), name)[0]["content"] for name in FOL.toolsets}
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


def test_a_call_is_recorded_without_the_spaces_around_it() -> None:
    assert chain_of("  Sum(2, 3)\n").steps[0].call == "Sum(2, 3)"


def test_a_harmless_call_is_recorded_as_it_was_written() -> None:
    call = 'Reasoning("2 < 3, and ünder [a]")'
    assert chain_of(call).steps[0].call == call


def test_a_call_far_over_the_limit_is_recorded_cut() -> None:
    step = chain_of("Sum(" + "1" * 10_000 + ")").steps[0]
    assert len(step.call) == MAX_CALL_CHARACTERS and step.call.endswith("...")
    assert step.error == "syntax"

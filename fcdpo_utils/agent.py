"""The agent: a prompt, then one function call per assistant turn and its result per user turn.

An `Episode` is one chain in the making; whoever proposes the calls (a scripted teacher, a local model, a server)
feeds them to `step`. Labels come only from what the chain's own calls returned. Contains no model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from fcdpo_utils import tool_calls
from fcdpo_utils.calls import MAX_CALL_CHARACTERS, ErrorKind, one_line
from fcdpo_utils.functions import Toolset
from fcdpo_utils.tasks.base import Problem, Task
from fcdpo_utils.tokens import Message

CallFormat = Literal["python", "tools"]  # how a model is asked to write calls: as text, or by its own tool template
OUTCOMES = ("solved", "wrong_answer", "no_answer", "no_stop", "too_many_errors", "too_long")


@dataclass(frozen=True)
class Limits:
    """When an unfinished chain is ended: after `calls` calls or `errors` rejected ones."""

    calls: int = 24
    errors: int = 3


@dataclass
class Usage:
    """Tokens of one chain: what its model was given (a server counts the chat again each time), and what it wrote."""

    read: int = 0
    written: int = 0

    def add(self, read: int, written: int) -> None:
        self.read += read
        self.written += written


@dataclass(frozen=True)
class Step:
    """One call as the model wrote it, the engine's one-line answer, and the error kind if it was rejected."""

    call: str
    result: str
    error: ErrorKind | None


@dataclass(frozen=True)
class Chain:
    """A finished chain and its labels.

    `solved`: right answer and stopped. `sound`: solved, every call accepted, and the answer follows from what the
    chain derived.
    """

    problem_id: str
    steps: tuple[Step, ...]
    outcome: str
    answer: str | None
    solved: bool
    sound: bool

    def record(self, **extra: Any) -> dict[str, Any]:
        """JSON-able form; `extra` (such as source or sample) is stored beside it."""
        steps = [[step.call, step.result, step.error] for step in self.steps]
        return {**extra, **vars(self), "steps": steps}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Chain:
        values = {name: record[name] for name in cls.__dataclass_fields__}
        return cls(**{**values, "steps": tuple(Step(*step) for step in record["steps"])})

    def transcript(self) -> str:
        """The chain for a reader: one line per call, rejected ones marked, and how it ended."""
        lines = [f"{'!' if step.error else ' '} {step.call:36} -> {step.result}" for step in self.steps]
        return "\n".join([*lines, "", f"outcome {self.outcome}, solved {self.solved}, sound {self.sound}"])

    def messages(self) -> list[Message]:
        """The completion: assistant calls and user results in turn, ending with the last call."""
        turns = [[_message("assistant", step.call), _message("user", step.result)] for step in self.steps]
        return [message for turn in turns for message in turn][:-1]


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


class Episode:
    """One chain in the making."""

    def __init__(self, task: Task, problem: Problem, toolset: str | None = None, limits: Limits = Limits()):
        self.task, self.problem, self.toolset, self.limits = task, problem, toolset, limits
        self.state = task.start(problem, toolset)
        self.steps: list[Step] = []
        self.cut = False  # set by whoever drives the episode when the model's context is full
        self.usage = Usage()  # counted by whoever drives the episode

    @property
    def tools(self) -> type[Toolset]:
        return type(self.state)

    @property
    def finished(self) -> bool:
        errors = sum(step.error is not None for step in self.steps)
        return self.cut or self.state.stopped or errors >= self.limits.errors or len(self.steps) >= self.limits.calls

    def step(self, text: str) -> Step:
        """Run one assistant message as a call. What is run is what is recorded: one harmless line."""
        text = text.strip()
        call = one_line(text, MAX_CALL_CHARACTERS)
        result = self.state.call(call if len(text) <= MAX_CALL_CHARACTERS else text)  # too long: say so
        self.steps.append(Step(call, result.text, result.error))
        return self.steps[-1]

    def chain(self) -> Chain:
        """The chain as it stands, labelled."""
        right = self.task.is_correct(self.problem, self.state.answer)
        solved = right and self.state.stopped
        clean = all(step.error is None for step in self.steps)
        sound = solved and clean and self.state.answer_follows()
        return Chain(self.problem.id, tuple(self.steps), self._outcome(right), self.state.answer, solved, sound)

    def _outcome(self, right: bool) -> str:
        if self.state.stopped:
            if self.state.answer is None:
                return "no_answer"
            return "solved" if right else "wrong_answer"
        if sum(step.error is not None for step in self.steps) >= self.limits.errors:
            return "too_many_errors"
        return "too_long" if self.state.answer is None else "no_stop"


def run_calls(
    task: Task, problem: Problem, calls: Iterable[str], toolset: str | None = None, limits: Limits = Limits()
) -> Chain:
    """The chain of a fixed list of calls, cut where the agent would have ended it."""
    episode = Episode(task, problem, toolset, limits)
    for call in calls:
        if episode.finished:
            break
        episode.step(call)
    return episode.chain()


def prompt(
    task: Task, problem: Problem, toolset: str | None = None, call_format: CallFormat = "python"
) -> list[Message]:
    """The prompt x_i: everything static first (a prefix cache serves it to all problems), the problem last."""
    tools = type(task.start(problem, toolset))
    name = next(name for name, kind in task.toolsets.items() if kind is tools)
    return [_message("user", f"{_static_prompt(task, name, call_format)}\n\nProblem: {problem.question}")]


@cache
def _static_prompt(task: Task, toolset: str, call_format: CallFormat) -> str:
    example, tools = task.example(), task.toolsets[toolset]
    steps = run_calls(task, example, task.gold_calls(example, toolset=toolset), toolset).steps
    if call_format == "python":
        written, functions = [step.call for step in steps], [tools.help()]
        rule = "Every message of yours is exactly one function call; the reply is its result. Functions:"
    else:  # the model's own template lists the functions
        written = [json.dumps(tool_calls.as_request(tools, step.call), ensure_ascii=False) for step in steps]
        rule, functions = "Every message of yours is exactly one tool call; the reply is its result.", []
    lines = [line for call, step in zip(written, steps, strict=True) for line in (call, step.result)]
    return "\n".join([task.instruction, rule, *functions, "", f"Example problem: {example.question}", *lines[:-1]])


def exchange(episode: Episode, call_format: CallFormat = "python") -> list[Message]:
    """The last step as the two messages that continue the chat: what the model said, and the result."""
    step = episode.steps[-1]
    if call_format == "tools":
        return tool_calls.exchange(episode.tools, step.call, step.result, len(episode.steps))
    return [_message("assistant", step.call), _message("user", step.result)]

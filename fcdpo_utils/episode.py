"""One chain in the making, the chain it becomes with its labels, and how both are written as a chat.

Whoever proposes the calls (a scripted teacher, a local model, a server) feeds them to `Episode.step`. Labels come only
from what the chain's own calls returned. Knows no model and no tokens.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from typing import Any, ClassVar, Self

from fcdpo_utils.calls import MAX_CALL_CHARACTERS, ErrorKind, as_line, one_line, without_roles
from fcdpo_utils.numbers import is_stated, numbers_in
from fcdpo_utils.problems import Problem, Task
from fcdpo_utils.settings import Limits
from fcdpo_utils.tokens import Message, Schemas
from fcdpo_utils.tools import ABSTAINED, Functions, Toolset

OUTCOMES = ("solved", "wrong_answer", "abstained", "no_answer", "no_stop", "too_many_errors", "too_long")


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

    def messages(self) -> list[Message]:
        """The two turns of the chat, in plain text."""
        return [{"role": "assistant", "content": self.call}, {"role": "user", "content": self.result}]


@dataclass(frozen=True)
class Chain:
    """A finished chain and its labels.

    `solved`: right answer and stopped. `sound`: solved, every call accepted, the answer follows from what the chain
    derived, and every number that entered a call was stated: by the question, as a constant of the task or by an
    earlier result. `recovered`: sound but for rejected calls, which had no effect.
    """

    problem_id: str
    steps: tuple[Step, ...]
    outcome: str
    answer: str | None
    solved: bool
    sound: bool
    recovered: bool = False

    @property
    def valid(self) -> bool:
        """Sound, or recovered."""
        return self.sound or self.recovered

    def record(self, **extra: Any) -> dict[str, Any]:
        """JSON-able form; `extra` (such as source or sample) is stored beside it."""
        return {**extra, **vars(self), "steps": [[step.call, step.result, step.error] for step in self.steps]}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Self:
        values = {name: record[name] for name in cls.__dataclass_fields__ if name in record}
        return cls(**values | {"steps": tuple(Step(*step) for step in record["steps"])})

    def transcript(self) -> str:
        """The chain for a reader: one line per call, rejected ones marked, and how it ended."""
        lines = [f"{'!' if step.error else ' '} {step.call:36} -> {step.result}" for step in self.steps]
        return "\n".join([*lines, "", f"outcome {self.outcome}, solved {self.solved}, sound {self.sound}"])

    def messages(self) -> list[Message]:
        """The completion: assistant calls and user results in turn, ending with the last call."""
        return [message for step in self.steps for message in step.messages()][:-1]


class Episode:
    """One chain in the making."""

    def __init__(self, task: Task, problem: Problem, limits: Limits = Limits()):
        self.task, self.problem, self.limits = task, problem, limits
        self.state = task.start(problem)
        self.state.shown = self.tools = type(self.state).shown_as(problem.functions)
        self.state.hints = limits.hints
        self.steps: list[Step] = []
        self.cut = False  # set by whoever drives the episode when the model's context is full
        self.usage = Usage()  # counted by whoever drives the episode

    @property
    def finished(self) -> bool:
        errors = sum(step.error is not None for step in self.steps)
        return self.cut or self.state.stopped or errors >= self.limits.errors or len(self.steps) >= self.limits.calls

    def step(self, text: str) -> Step:
        """Run one assistant message as a call. What is run is what is recorded: one harmless line."""
        call = as_line(text)
        result = self.state.call(call if len(text.strip()) <= MAX_CALL_CHARACTERS else text)  # too long: say so
        self.steps.append(Step(call, result.text, result.error))
        return self.steps[-1]

    @property
    def right(self) -> bool:
        """Whether the answer so far is right: that a function is missing, where one is."""
        told = self.state.answer == ABSTAINED
        return told == self.problem.missing and (told or self.task.is_correct(self.problem, self.state.answer))

    def chain(self) -> Chain:
        """The chain as it stands, labelled."""
        solved = self.right and self.state.stopped
        valid = solved and (self.problem.missing or self.state.answer_follows()) and self.is_grounded()
        clean = all(step.error is None for step in self.steps)
        return Chain(
            problem_id=self.problem.id,
            steps=tuple(self.steps),
            outcome=self._outcome(),
            answer=None if self.state.answer is None else one_line(str(self.state.answer), MAX_CALL_CHARACTERS),
            solved=solved,
            sound=valid and clean,
            recovered=valid and not clean,
        )

    def is_grounded(self) -> bool:
        """Whether every number in a call was stated before: else the answer could be guessed and then "computed"."""
        constants = {abs(Fraction(number)) for number in self.task.constants_of(self.problem)}
        stated = numbers_in(self.problem.question) | constants
        for call, result in self.state.derivations:
            if not is_stated([*call.args, *call.kwargs.values()], stated):
                return False
            stated |= numbers_in(result)
        return True

    def _outcome(self) -> str:
        if self.state.stopped:
            if self.state.answer is None:
                return "no_answer"
            return "solved" if self.right else "abstained" if self.state.answer == ABSTAINED else "wrong_answer"
        if sum(step.error is not None for step in self.steps) >= self.limits.errors:
            return "too_many_errors"
        return "too_long" if self.state.answer is None else "no_stop"


def run_calls(task: Task, problem: Problem, calls: Iterable[str], limits: Limits = Limits()) -> Chain:
    """The chain of a fixed list of calls, each by its method's name, cut where the agent would have ended it."""
    episode = Episode(task, problem, limits)
    shown = {name: new for name, new, _ in problem.functions + problem.withheld}
    for call in calls:
        if episode.finished:
            break
        episode.step(re.sub(r"\w+(?=\()", lambda name: shown.get(name[0], name[0]), call, count=1))
    return episode.chain()


class ChatFormat:
    """How a chain is written as a chat: here with calls as plain Python text. A subclass may write them otherwise."""

    rule: ClassVar[str] = "Every message of yours is exactly one function call; the reply is its result. Functions:"

    def schemas(self, tools: type[Toolset]) -> Schemas:
        """The functions as JSON schemas for the model's own chat template; None where the prompt lists them."""
        return None

    def written(self, tools: type[Toolset], call: str) -> str:
        """A call as the worked example shows it."""
        return call

    def read(self, tools: type[Toolset], text: str) -> str:
        """The Python call that a model's message says."""
        return text

    def exchange(self, tools: type[Toolset], step: Step, number: int) -> list[Message]:
        """Step `number` (from 1) as the messages that continue the chat: what the model said, and the result."""
        return step.messages()

    def any_exchange(self, result: str) -> list[Message]:
        """A reply that holds the word "!call!", and `result`: shows what a chat template writes around calls."""
        return [{"role": "assistant", "content": "!call!"}, {"role": "user", "content": result}]

    def prompt(self, task: Task, problem: Problem) -> list[Message]:
        """The prompt x_i: everything static first (a prefix cache serves it to all problems), the problem last."""
        static = _static_prompt(self, task, problem.toolset, problem.functions, problem.withheld)
        return [{"role": "user", "content": f"{static}\n\nProblem: {without_roles(problem.question)}"}]


@cache
def _static_prompt(chat: ChatFormat, task: Task, toolset: str | None, offered: Functions, withheld: Functions) -> str:
    """Instruction, functions and worked example: the same for all problems of `task` with the same functions."""
    shown = task.example()
    example = replace(shown, details=shown.details | {"toolset": toolset, "functions": offered + withheld})
    tools = Episode(task, example).tools
    steps = run_calls(task, example, task.gold_calls(example)).steps
    listed = [task.toolset(toolset).shown_as(offered).help()] if chat.schemas(tools) is None else []
    lines = [line for step in steps for line in (chat.written(tools, step.call), step.result)]
    question = f"Example problem{', with all functions' * bool(withheld)}: {without_roles(example.question)}"
    return "\n".join([task.instruction, chat.rule, *listed, "", question, *lines[:-1]])


PYTHON_CALLS = ChatFormat()
prompt = PYTHON_CALLS.prompt  # what students read

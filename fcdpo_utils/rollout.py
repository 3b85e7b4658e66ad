"""Many chains at once from one local model.

Every pass feeds each chain of a batch what it has pending (see `passes`). A finished chain leaves its place to the next
one, so the batch stays full to the end. Each chain draws from its own random stream, so what it says does not depend on
its neighbours (exactly so in fp32 up to ties; rounding in bf16 can tip a choice). Knows nothing of training.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fcdpo_utils.agent import CallFormat, Chain, Episode, prompt
from fcdpo_utils.functions import Toolset
from fcdpo_utils.memory import available_bytes, places
from fcdpo_utils.passes import ATTENTION, Passes, Row, new_recorder_on, slots_for
from fcdpo_utils.students import Shape
from fcdpo_utils.tokens import encode_text, render
from fcdpo_utils.tool_calls import read_message
from fcdpo_utils.trees import attention_in

_RESULT_TOKENS = 32  # of a function's result and the template around it, for an estimate


class ChatError(Exception):
    """One line: what the model's chat template cannot do."""


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0 is greedy. A turn longer than `turn_tokens` is cut and judged as it is.

    `call_format` "tools" lists the functions by the model's own chat template and reads its JSON calls. `cuda_graphs`
    records passes on a GPU and replays them (no effect on a CPU).
    """

    temperature: float = 0.0
    turn_tokens: int = 64
    batch_size: int = 64
    seed: int = 0
    call_format: CallFormat = "python"
    cuda_graphs: bool = False


@dataclass(kw_only=True)
class _Chain(Row):
    """A chain in the making: its random stream, and the tokens of the open turn."""

    episode: Episode
    stream: random.Random
    turn: list[int] = field(default_factory=list)


def rollout(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    episodes: Sequence[Episode],
    sampling: Sampling = Sampling(),
    samples: Sequence[int] | None = None,
    on_finished: Callable[[Episode], None] = lambda episode: None,
    admit: Callable[[], bool] = lambda: True,
) -> list[Chain]:
    """Let `model` act in every episode; returns the chains of those that were started, in the order given.

    `samples` numbers the episodes of a same problem (its random stream is seeded with seed, problem and sample).
    `on_finished` is called with each episode as it ends, `admit` before each starts, which may say no. Chains that
    would overflow the model's context are cut. Raises ChatError where the chat template knows no tool calls, ValueError
    where the model needs more than softmax attention in a sliding window.
    """
    numbers = samples or [0] * len(episodes)
    rows = [
        _Chain(episode=episode, stream=random.Random(f"{sampling.seed}/{episode.problem.id}/{number}"), pending=[])
        for episode, number in zip(episodes, numbers, strict=True)
    ]
    inner = model if isinstance(model, PreTrainedModel) else model.get_base_model()
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), attention_in(inner, ATTENTION):
            for tools, group in groupby(rows, lambda row: row.episode.tools):  # one static prompt each
                chat = Chat(tokenizer, sampling.call_format, tools)
                _run(inner, chat, list(group), sampling, on_finished, admit)
    finally:
        model.train(was_training)
    return [row.episode.chain() for row in rows if row.episode.finished]


def _run(
    model: PreTrainedModel,
    chat: Chat,
    rows: list[_Chain],
    sampling: Sampling,
    on_finished: Callable[[Episode], None],
    admit: Callable[[], bool],
) -> None:
    """`batch_size` rows at a time; the next one takes the place of one that finished."""
    asked = {row.episode.problem.id: row.episode for row in rows}  # many samples, one prompt
    prompts = {name: chat.prompt_ids(episode) for name, episode in asked.items()}
    shared = _common_prefix(list(prompts.values()))
    waiting = deque(rows)

    def start() -> _Chain:
        row = waiting.popleft()
        ids = prompts[row.episode.problem.id]
        row.pending, row.episode.usage.read = ids[shared:], len(ids)
        return row

    longest = max(map(len, prompts.values())) - shared
    longest += max(row.episode.limits.calls for row in rows) * (sampling.turn_tokens + _RESULT_TOKENS)
    new_recorder = new_recorder_on(model.device) if sampling.cuda_graphs else None
    longest = slots_for(longest, new_recorder is not None)
    together = min(_places(model, longest, sampling.batch_size, spare=int(new_recorder is not None)), len(rows))
    started = [start() for _ in range(together) if admit()]
    if not started:
        return
    room = model.config.max_position_embeddings - shared - sampling.turn_tokens
    with closing(Passes(model, next(iter(prompts.values()))[:shared], new_recorder)) as passes:
        while started:
            for row, token in zip(started, _choose(passes.feed(started), started, sampling), strict=True):
                row.turn.append(token)
                row.pending = [token]
                if token in chat.turn_ends or len(row.turn) >= sampling.turn_tokens:
                    _end_turn(chat, row, room)
                    if row.episode.finished:
                        on_finished(row.episode)
            for index, row in enumerate(started):
                if row.episode.finished and waiting and admit():
                    started[index] = start()
            started = _without_finished(started, passes)


def _without_finished(rows: list[_Chain], passes: Passes) -> list[_Chain]:
    """The rows still at work: the last ones take the places of finished ones, far less to copy than all that stay."""
    count = sum(not row.episode.finished for row in rows)
    targets = [index for index in range(count) if rows[index].episode.finished]
    sources = [index for index in range(count, len(rows)) if not rows[index].episode.finished]
    if targets:
        passes.move(sources, targets)
    for source, target in zip(sources, targets, strict=True):
        rows[target] = rows[source]
    return rows[:count]


def _places(model: PreTrainedModel, longest: int, wanted: int, spare: int) -> int:
    """How many chains advance together: as many as wanted, fewer where a GPU has no room for so many long ones."""
    available, shape = available_bytes(model.device), Shape.of(model.config)
    if available is None or shape is None:
        return wanted
    found = max(1, places(shape, longest, available, model.dtype.itemsize) - spare)
    if found < wanted:
        print(f"{found} chains at a time in place of {wanted}: {available / 1e9:.1f} GB are left", flush=True)
    return min(found, wanted)


def _choose(logits: Tensor, rows: list[_Chain], sampling: Sampling) -> list[int]:
    """One token per row: the most likely, or by inverting the cumulative distribution at the row's own uniform."""
    if sampling.temperature == 0:
        return logits.argmax(-1).tolist()
    uniform = torch.tensor([[row.stream.random()] for row in rows], device=logits.device)
    cumulative = (logits / sampling.temperature).softmax(-1).cumsum(-1)
    return torch.searchsorted(cumulative, uniform * cumulative[:, -1:]).clamp_(max=logits.shape[1] - 1)[:, 0].tolist()


def _end_turn(chat: Chat, row: _Chain, room: int) -> None:
    """Run the finished turn as a call and queue the template's text up to the next assistant turn."""
    ended = row.turn[-1] in chat.turn_ends
    step = row.episode.step(chat.read(row.turn[: len(row.turn) - ended]))
    between = chat.between_turns(step.result)
    # the template's own end of turn, whichever token the model said
    row.pending = between if ended else [*row.pending, *between]
    row.episode.usage.written += len(row.turn)
    row.episode.usage.read += len(between)
    row.turn = []
    row.episode.cut = row.cached + len(row.pending) >= room


class Chat:
    """A tokenizer's chat template with one toolset: the prompt, what stands between turns, and reading a turn."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, call_format: CallFormat, tools: type[Toolset]):
        self.tokenizer, self.call_format, self.tools = tokenizer, call_format, tools
        self.schemas = tools.schemas() if call_format == "tools" else None
        question = [{"role": "user", "content": "?"}]
        if self.schemas and self._render(question) == render(tokenizer, question, generate=True):
            raise ChatError("its chat template has no tool calls; use teacher.call_format=python")
        self.close = self._after_reply({"role": "assistant", "content": "!call!"}, "user", "?")[0]
        # the token that closes an assistant turn in this template, and the tokenizer's own end of text
        self.turn_ends = {self.close, tokenizer.eos_token_id}
        self.between_turns = cache(self._between_turns)  # results such as "Noted" recur
        try:
            self.between_turns("?")
        except (ValueError, TemplateError):  # no end of turn after the call, or no role "tool"
            raise ChatError(
                "its chat template cannot continue after a tool call; use teacher.call_format=python"
            ) from None

    def prompt_ids(self, episode: Episode) -> list[int]:
        messages = prompt(episode.task, episode.problem, episode.toolset, self.call_format)
        return encode_text(self.tokenizer, self._render(messages))

    def read(self, turn: list[int]) -> str:
        """The call that a turn's tokens say, without the one that closed it."""
        text = self.tokenizer.decode(turn, skip_special_tokens=False)
        return read_message(self.tools, text) if self.schemas else text

    def _between_turns(self, result: str) -> list[int]:
        """End of turn, the result, and the opening of the next assistant turn."""
        if not self.schemas:
            return self._after_reply({"role": "assistant", "content": "!call!"}, "user", result)
        asked = {"id": "call00001", "type": "function", "function": {"name": "f", "arguments": {"x": "!call!"}}}
        reply = {"role": "assistant", "content": "", "tool_calls": [asked]}
        ids = self._after_reply(reply, "tool", result)
        return ids[ids.index(self.close) :]  # the model itself wrote what closes the JSON

    def _after_reply(self, reply: dict[str, Any], role: str, result: str) -> list[int]:
        answer = {"role": role, "content": result}
        if role == "tool":
            answer |= {"tool_call_id": "call00001", "name": "f"}
        text = self._render([{"role": "user", "content": "?"}, reply, answer])
        return encode_text(self.tokenizer, text[text.index("!call!") + len("!call!") :])

    def _render(self, messages: list[dict[str, Any]]) -> str:
        return render(self.tokenizer, messages, generate=True, tools=self.schemas)


def _common_prefix(prompts: list[list[int]]) -> int:
    """How many leading tokens all prompts share, at least one token being left to each."""
    shortest = min(map(len, prompts)) - 1
    return next((i for i in range(shortest) if any(p[i] != prompts[0][i] for p in prompts)), shortest)

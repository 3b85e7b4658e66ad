"""Many chains at once from one local model.

Every pass feeds each chain of a batch what it has pending (see `decoding`). A finished chain leaves its place to the
next one, so the batch stays full to the end. Each chain draws from its own random stream, so what it says does not
depend on its neighbours (exactly so in fp32 up to ties; rounding in bf16 can tip a choice). Knows nothing of training.
"""

import random
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial

import torch
from jinja2 import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fcdpo_utils.engine.decoding import ATTENTION, DecodeEngine, PendingTokens
from fcdpo_utils.engine.memory import chains_that_fit
from fcdpo_utils.engine.trees import attention_in, common_prefix, unwrapped
from fcdpo_utils.episode import PYTHON_CALLS, Chain, ChatFormat, Episode
from fcdpo_utils.plain import Sampling, chain_stream, choose_tokens
from fcdpo_utils.tokens import Message, encode_text, render, turn_ends
from fcdpo_utils.tools import Toolset

_RESULT_TOKENS = 32  # of a function's result and the template around it, for an estimate


class ChatError(Exception):
    """One line: what the model's chat template cannot do."""


@dataclass(kw_only=True)
class _Chain(PendingTokens):
    """A chain in the making: how it is written, its random stream, and the tokens of the open turn."""

    episode: Episode
    chat: "Chat"
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
    """As `plain.rollout`, `sampling.batch_size` chains at a time. Chains that would overflow the context are cut.

    Raises ChatError where the chat template knows no tool calls, ValueError where the model needs more than softmax
    attention in a sliding window.
    """
    chat_of, rows, groups = cache(partial(Chat, tokenizer, sampling.chat_format)), [], defaultdict(list)
    for episode, sample in zip(episodes, samples or [0] * len(episodes), strict=True):
        stream = chain_stream(sampling.seed, episode.problem.id, sample)
        rows.append(_Chain(episode=episode, chat=chat_of(episode.tools), stream=stream, pending=[]))
        groups[type(episode.state)].append(rows[-1])  # prompts that begin alike, up to names drawn for a problem
    inner = unwrapped(model)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), attention_in(inner, ATTENTION):
            for group in groups.values():
                _run(inner, group, sampling, on_finished, admit)
    finally:
        model.train(was_training)
    return [row.episode.chain() for row in rows if row.episode.finished]


def _run(model: PreTrainedModel, rows: list[_Chain], sampling: Sampling, ended: Callable, admit: Callable) -> None:
    """`batch_size` rows at a time; the next one takes the place of one that finished."""
    asked = {row.episode.problem.id: row for row in rows}  # many samples, one prompt
    prompts = {name: row.chat.prompt_ids(row.episode) for name, row in asked.items()}
    # one token at least is left to each
    shared = min(common_prefix([*prompts.values()]), *(len(ids) - 1 for ids in prompts.values()))
    waiting = deque(rows)

    def start() -> _Chain:
        row = waiting.popleft()
        ids = prompts[row.episode.problem.id]
        row.pending, row.episode.usage.read = ids[shared:], len(ids)
        return row

    longest = max(map(len, prompts.values())) - shared
    longest += max(row.episode.limits.calls for row in rows) * (sampling.turn_tokens + _RESULT_TOKENS)
    together = min(chains_that_fit(model, longest, sampling.batch_size), len(rows))
    started = [start() for _ in range(together) if admit()]
    if not started:
        return
    room = model.config.max_position_embeddings - shared - sampling.turn_tokens
    engine = DecodeEngine(model, next(iter(prompts.values()))[:shared])
    while started:
        tokens = choose_tokens(engine.feed(started), sampling.temperature, [row.stream for row in started])
        for row, token in zip(started, tokens, strict=True):
            row.turn.append(token)
            row.pending = [token]
            if token in row.chat.turn_ends or len(row.turn) >= sampling.turn_tokens:
                _end_turn(row, room)
                if row.episode.finished:
                    ended(row.episode)
        for index, row in enumerate(started):
            if row.episode.finished and waiting and admit():
                started[index] = start()
        started = _without_finished(started, engine)


def _without_finished(rows: list[_Chain], engine: DecodeEngine) -> list[_Chain]:
    """The rows still at work: the last ones take the places of finished ones, far less to copy than all that stay."""
    count = sum(not row.episode.finished for row in rows)
    if targets := [index for index in range(count) if rows[index].episode.finished]:
        sources = [index for index in range(count, len(rows)) if not rows[index].episode.finished]
        engine.move(sources, targets)
        for source, target in zip(sources, targets, strict=True):
            rows[target] = rows[source]
    return rows[:count]


def _end_turn(row: _Chain, room: int) -> None:
    """Run the finished turn as a call and queue the template's text up to the next assistant turn."""
    chat, ended = row.chat, row.turn[-1] in row.chat.turn_ends
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

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chat_format: ChatFormat, tools: type[Toolset]):
        self.tokenizer, self.chat_format, self.tools = tokenizer, chat_format, tools
        self.schemas = chat_format.schemas(tools)
        question = [{"role": "user", "content": "?"}]
        if self.schemas and self._render(question) == render(tokenizer, question, generate=True):
            raise ChatError("its chat template has no tool calls; use teacher.call_format=python")
        self.turn_ends = turn_ends(tokenizer)
        self.close = self._after_call(PYTHON_CALLS, "?")[0]
        self.between_turns = cache(self._between_turns)  # results such as "Noted" recur
        try:
            self.between_turns("?")
        except (ValueError, TemplateError):  # no end of turn after the call, or no role "tool"
            problem = "its chat template cannot continue after a tool call; use teacher.call_format=python"
            raise ChatError(problem) from None

    def prompt_ids(self, episode: Episode) -> list[int]:
        messages = self.chat_format.prompt(episode.task, episode.problem)
        return encode_text(self.tokenizer, self._render(messages))

    def read(self, turn: list[int]) -> str:
        """The call that a turn's tokens say, without the one that closed it."""
        return self.chat_format.read(self.tools, self.tokenizer.decode(turn, skip_special_tokens=False))

    def _between_turns(self, result: str) -> list[int]:
        """End of turn, the result, and the opening of the next assistant turn."""
        ids = self._after_call(self.chat_format, result)
        return ids[ids.index(self.close) :]  # the model itself wrote what closes a call's JSON

    def _after_call(self, chat_format: ChatFormat, result: str) -> list[int]:
        text = self._render([{"role": "user", "content": "?"}, *chat_format.any_exchange(result)])
        return encode_text(self.tokenizer, text[text.index("!call!") + len("!call!") :])

    def _render(self, messages: list[Message]) -> str:
        return render(self.tokenizer, messages, generate=True, tools=self.schemas)

"""Many chains at once from one local model.

Every pass feeds each chain of a batch whatever it has pending: the token it just chose, or a whole function result as
forced tokens. The linear layers see all of it as one packed row without padding; each chain attends to its own cache
and to the prompt text that all share, which is computed and stored once. A finished chain leaves its place to the next
one, so the batch stays full to the end. Each chain draws from its own random stream, so what it says does not depend on
its neighbours (exactly so in fp32 up to ties; rounding in bf16 can tip a choice). Knows nothing of training.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache, CacheLayerMixin

from fcdpo_utils.agent import CallFormat, Chain, Episode, prompt
from fcdpo_utils.functions import Toolset
from fcdpo_utils.memory import available_bytes, places
from fcdpo_utils.students import Shape
from fcdpo_utils.tokens import encode_text, render
from fcdpo_utils.tool_calls import read_message
from fcdpo_utils.trees import attention_in, refuse_other_attention, too_far

ATTENTION = "shared_prefix"
_GROWTH = 64  # cache positions allocated at a time; products with a part of a buffer would copy it
_RESULT_TOKENS = 32  # of a function's result and the template around it, for an estimate
_PAIRS = 1 << 20  # of a query with a key, in one padded group of chunks: bounds its memory


class ChatError(Exception):
    """One line: what the model's chat template cannot do."""


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0 is greedy. A turn longer than `turn_tokens` is cut and judged as it is.

    `call_format` "tools" lists the functions by the model's own chat template and reads its JSON calls.
    """

    temperature: float = 0.0
    turn_tokens: int = 64
    batch_size: int = 64
    seed: int = 0
    call_format: CallFormat = "python"


@dataclass
class _Row:
    """Per-chain state: tokens still to be fed, tokens of the open turn, and how many are in the cache."""

    episode: Episode
    stream: random.Random
    pending: list[int]
    turn: list[int] = field(default_factory=list)
    cached: int = 0


@dataclass(frozen=True)
class _Chunks:
    """Rows that feed several tokens, of similar lengths, padded to the longest.

    `rows`: (c,), their cache rows. `tokens`: (c, length), places in the packed row; padding repeats the last. `real`:
    (t,), which of the c * length tokens are no padding (as indices: a GPU would wait at a mask, once a layer).
    `visible`: (c, length, slots), what each token sees of its own cache row.
    """

    rows: Tensor
    tokens: Tensor
    real: Tensor
    visible: Tensor


@dataclass(frozen=True)
class _Plan:
    """Which tokens of the packed row (length n) belong to which cache row.

    `rows`, `slots`: (n,), where each token is cached. `last`: (batch,), each row's last token in the packed row.
    `visible`: (batch, slots), what that last token sees.
    """

    rows: Tensor
    slots: Tensor
    last: Tensor
    visible: Tensor
    chunks: tuple[_Chunks, ...]


_Prefix = tuple[Tensor, Tensor] | None  # keys and values of the shared prompt text, (kv_heads, prefix, dim) each


class _RowLayer(CacheLayerMixin):
    """One layer's keys and values: a prefix stored once, (kv_heads, prefix, dim), and (batch, kv_heads, slots, dim)."""

    is_compileable = False

    def __init__(self) -> None:
        super().__init__()
        self.prefix: _Prefix = None
        self.buffers: list[Tensor] = []

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Nothing: `write` is called by the attention, which knows the plan."""
        return keys, values

    def write(self, keys: Tensor, values: Tensor, plan: _Plan) -> None:
        """Cache (1, kv_heads, n, dim) at the plan's rows and slots, growing the buffers where needed."""
        batch, slots = plan.visible.shape
        for index, new in enumerate((keys, values)):
            if len(self.buffers) <= index:
                self.buffers.append(new.new_zeros(batch, new.shape[1], slots, new.shape[3]))
            elif (old := self.buffers[index]).shape[2] < slots:
                more = old.new_zeros(*old.shape[:2], slots - old.shape[2], old.shape[3])
                self.buffers[index] = torch.cat([old, more], dim=2)
            self.buffers[index][plan.rows, :, plan.slots] = new[0].transpose(0, 1)

    def freeze_prefix(self, length: int) -> None:
        """What row 0 holds becomes the shared prefix."""
        self.prefix = tuple(buffer[0, :, :length].contiguous() for buffer in self.buffers)
        self.buffers = []

    def move(self, sources: list[int], targets: list[int], count: int) -> None:
        """Copy some rows to the places of others, and keep the first `count`: far less to copy than all that stay."""
        for buffer in self.buffers:
            buffer[targets] = buffer[sources]
        self.buffers = [buffer[:count] for buffer in self.buffers]

    def get_seq_length(self) -> int:
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_max_length(self) -> int:
        return -1


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    cache: Cache | None = None,
    plan: _Plan | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of a packed row over each token's own cache row and the shared prefix.

    query: (1, heads, n, dim); key, value: (1, kv_heads, n, dim). Returns (1, n, heads, dim). Raises ValueError where
    the model wants more than softmax attention in a sliding window.
    """
    refuse_other_attention(module, others)
    layer = cache.layers[module.layer_idx]
    layer.write(key, value, plan)
    kv_heads, dim = key.shape[1], key.shape[3]
    query = (query[0] * (dim**-0.5 if scaling is None else scaling)).unflatten(0, (kv_heads, -1))
    output = query.new_empty(query.shape[2], query.shape[0] * query.shape[1], dim)
    far = _far(plan, plan.last[:, None], layer.prefix, sliding_window)
    last = query[:, :, plan.last, None]
    output[plan.last] = _attend(last, layer.buffers, layer.prefix, plan.visible[:, None], far)[:, 0]
    for chunk in plan.chunks:
        own = [buffer[chunk.rows] for buffer in layer.buffers]
        far = _far(plan, chunk.tokens, layer.prefix, sliding_window)
        attended = _attend(query[:, :, chunk.tokens], own, layer.prefix, chunk.visible, far)
        output[chunk.tokens.flatten()[chunk.real]] = attended.flatten(0, 1)[chunk.real]
    return output[None], None


def _far(plan: _Plan, tokens: Tensor, prefix: _Prefix, window: int | None) -> Tensor | None:
    """Which keys lie outside the window of these tokens of the packed row, (rows, length, keys); None if none does."""
    before = 0 if prefix is None else prefix[0].shape[1]
    keys = before + plan.visible.shape[1]  # a key's place in prefix and cache row is its position
    if window is None or keys <= window:
        return None
    return too_far(plan.slots[tokens] + before, keys, window)


def _attend(query: Tensor, own: list[Tensor], prefix: _Prefix, visible: Tensor, far: Tensor | None) -> Tensor:
    """Some queries of each row over the row's own cache and the shared prefix.

    query: (kv_heads, groups, rows, length, dim); own keys and values: (rows, kv_heads, slots, dim); prefix: the same
    without rows; visible: (rows, length, slots); far: None, or which of all keys to leave out, prefix first. Returns
    (rows, length, heads, dim). Grouped heads are never copied, and the prefix meets the queries of all rows at once.
    """
    kv_heads, groups, rows, length, dim = query.shape
    by_row = query.permute(2, 0, 1, 3, 4)
    scores = (by_row.reshape(rows, kv_heads, -1, dim) @ own[0].transpose(2, 3)).unflatten(2, (groups, length))
    scores.masked_fill_(~visible[:, None, None], -torch.inf)
    if prefix is not None:
        shared = (query.reshape(kv_heads, -1, dim) @ prefix[0].transpose(1, 2)).unflatten(1, (groups, rows, length))
        scores = torch.cat([shared.permute(2, 0, 1, 3, 4), scores], dim=-1)
    if far is not None:
        scores.masked_fill_(far[:, None, None], -torch.inf)
    weights = scores.softmax(-1)
    before, weights = weights.split([weights.shape[-1] - visible.shape[2], visible.shape[2]], dim=-1)
    output = (weights.flatten(2, 3) @ own[1]).unflatten(2, (groups, length))
    if prefix is not None:
        shared = before.permute(1, 2, 0, 3, 4).reshape(kv_heads, -1, before.shape[-1]) @ prefix[1]
        output = output + shared.unflatten(1, (groups, rows, length)).permute(2, 0, 1, 3, 4)
    return output.permute(0, 3, 1, 2, 4).flatten(2, 3)


AttentionInterface.register(ATTENTION, shared_prefix_attention)


class _Batch:
    """The rows of one batch and their cache; `offset` is the length of the shared prefix."""

    def __init__(self, model: PreTrainedModel, rows: list[_Row], prefix: list[int]):
        self.model, self.rows, self.offset, self.slots = model, rows, 0, 0
        self.cache = Cache(layers=[_RowLayer() for _ in range(model.config.num_hidden_layers)])
        if prefix:
            self._feed([_Row(rows[0].episode, rows[0].stream, prefix)])
            for layer in self.cache.layers:
                layer.freeze_prefix(len(prefix))
            self.offset, self.slots = len(prefix), 0

    def advance(self) -> Tensor:
        """Feed what every row has pending; returns next-token logits, (rows, vocabulary) in float32."""
        return self._feed(self.rows)

    def drop_finished(self) -> None:
        """The last rows take the places of finished ones."""
        count = sum(not row.episode.finished for row in self.rows)
        targets = [index for index in range(count) if self.rows[index].episode.finished]
        sources = [index for index in range(count, len(self.rows)) if not self.rows[index].episode.finished]
        for source, target in zip(sources, targets, strict=True):
            self.rows[target] = self.rows[source]
        if count < len(self.rows):
            self.rows = self.rows[:count]
            for layer in self.cache.layers:
                layer.move(sources, targets, count)

    def _feed(self, rows: list[_Row]) -> Tensor:
        ids, owners, slots, last, chunks = [], [], [], [], []
        for index, row in enumerate(rows):
            if len(row.pending) > 1:
                chunks.append((len(row.pending), index, len(ids), row.cached))
            ids += row.pending
            owners += [index] * len(row.pending)
            slots += range(row.cached, row.cached + len(row.pending))
            last.append(len(ids) - 1)
            row.cached += len(row.pending)
            row.pending = []
        device = self.model.device
        lengths = torch.tensor([row.cached for row in rows])
        self.slots = max(self.slots, -(-int(lengths.max()) // _GROWTH) * _GROWTH)
        visible = (torch.arange(self.slots) < lengths[:, None]).to(device)
        places = [torch.tensor(x, device=device) for x in (owners, slots, last)]
        output = self.model(
            input_ids=torch.tensor([ids], device=device),
            position_ids=places[1][None] + self.offset,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=places[2],
            cache=self.cache,
            plan=_Plan(*places, visible, tuple(self._grouped(chunks))),
        )
        return output.logits[0].float()

    def _grouped(self, chunks: list[tuple[int, int, int, int]]) -> Iterator[_Chunks]:
        """Chunks (length, row, start, cached) in groups of similar length."""
        group: list[tuple[int, int, int, int]] = []
        for chunk in sorted(chunks):
            pairs = (len(group) + 1) * chunk[0] * (self.slots + self.offset)
            if group and (chunk[0] > 2 * group[0][0] or pairs > _PAIRS):
                yield self._padded(group)
                group = []
            group.append(chunk)
        if group:
            yield self._padded(group)

    def _padded(self, group: list[tuple[int, int, int, int]]) -> _Chunks:
        lengths, rows, starts, cached = torch.tensor(group).T
        place = torch.arange(int(lengths.max()))[None]
        real = (place < lengths[:, None]).flatten().nonzero()[:, 0]
        seen = (cached[:, None] + place).to(self.model.device)
        tokens = starts[:, None] + place.minimum(lengths[:, None] - 1)
        slots = torch.arange(self.slots, device=self.model.device)
        rows, tokens, real = (x.to(self.model.device) for x in (rows, tokens, real))
        return _Chunks(rows, tokens, real, slots <= seen[:, :, None])


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
        _Row(episode, random.Random(f"{sampling.seed}/{episode.problem.id}/{number}"), [])
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
    rows: list[_Row],
    sampling: Sampling,
    on_finished: Callable[[Episode], None],
    admit: Callable[[], bool],
) -> None:
    """`batch_size` rows at a time; the next one takes the place of one that finished."""
    asked = {row.episode.problem.id: row.episode for row in rows}  # many samples, one prompt
    prompts = {name: chat.prompt_ids(episode) for name, episode in asked.items()}
    shared = _common_prefix(list(prompts.values()))
    waiting = deque(rows)

    def start() -> _Row:
        row = waiting.popleft()
        ids = prompts[row.episode.problem.id]
        row.pending, row.episode.usage.read = ids[shared:], len(ids)
        return row

    longest = max(map(len, prompts.values())) - shared
    longest += max(row.episode.limits.calls for row in rows) * (sampling.turn_tokens + _RESULT_TOKENS)
    together = min(_places(model, longest, sampling.batch_size), len(rows))
    started = [start() for _ in range(together) if admit()]
    if not started:
        return
    batch = _Batch(model, started, next(iter(prompts.values()))[:shared])
    room = model.config.max_position_embeddings - batch.offset - sampling.turn_tokens
    while batch.rows:
        for row, token in zip(batch.rows, _choose(batch.advance(), batch.rows, sampling), strict=True):
            row.turn.append(token)
            row.pending = [token]
            if token in chat.turn_ends or len(row.turn) >= sampling.turn_tokens:
                _end_turn(chat, row, room)
                if row.episode.finished:
                    on_finished(row.episode)
        for index, row in enumerate(batch.rows):
            if row.episode.finished and waiting and admit():
                batch.rows[index] = start()
        batch.drop_finished()


def _places(model: PreTrainedModel, longest: int, wanted: int) -> int:
    """How many chains advance together: as many as wanted, fewer where a GPU has no room for so many long ones."""
    available, shape = available_bytes(model.device), Shape.of(model.config)
    if available is None or shape is None:
        return wanted
    found = places(shape, longest, available, model.dtype.itemsize)
    if found < wanted:
        print(f"{found} chains at a time in place of {wanted}: {available / 1e9:.1f} GB are left", flush=True)
    return min(found, wanted)


def _choose(logits: Tensor, rows: list[_Row], sampling: Sampling) -> list[int]:
    """One token per row: the most likely, or by inverting the cumulative distribution at the row's own uniform."""
    if sampling.temperature == 0:
        return logits.argmax(-1).tolist()
    uniform = torch.tensor([[row.stream.random()] for row in rows], device=logits.device)
    cumulative = (logits / sampling.temperature).softmax(-1).cumsum(-1)
    return torch.searchsorted(cumulative, uniform * cumulative[:, -1:]).clamp_(max=logits.shape[1] - 1)[:, 0].tolist()


def _end_turn(chat: Chat, row: _Row, room: int) -> None:
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

"""Many chains at once from one local model.

All chains of a batch advance one token per step through one key-value cache. The prompt text that they share is
computed once and stored once; a function's result is pushed in as forced tokens while other rows go on sampling;
finished rows leave the batch. Each chain draws from its own random stream, so what it says does not depend on its
neighbours (exactly so in fp32 up to ties; rounding in bf16 can tip a sample). Knows nothing of training.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache, CacheLayerMixin

from fcdpo_utils.agent import Chain, Episode, prompt
from fcdpo_utils.tokens import encode_text, render

ATTENTION = "shared_prefix"
_GROWTH = 64  # cache positions allocated at a time
_COMPACT_AT = 7 / 8  # rows are dropped once fewer than this share is alive


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0 is greedy. A turn longer than `turn_tokens` is cut and judged as it is."""

    temperature: float = 0.0
    turn_tokens: int = 64
    batch_size: int = 64
    seed: int = 0


@dataclass
class _Row:
    """Per-chain state: tokens still to be fed, tokens of the open turn, and where the row stands."""

    episode: Episode
    stream: random.Random
    position: int
    forced: deque[int] = field(default_factory=deque)
    turn: list[int] = field(default_factory=list)


class _SuffixLayer(CacheLayerMixin):
    """Keys and values of one layer: a prefix stored once, (kv_heads, prefix, dim), and a growing suffix per row."""

    is_compileable = False

    def __init__(self) -> None:
        super().__init__()
        self.prefix: tuple[Tensor, Tensor] | None = None
        self.buffers: list[Tensor] = []
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append (batch, kv_heads, new, dim) in place; returns views of the whole suffix."""
        self.lazy_initialization(keys, values)
        end = self.length + keys.shape[2]
        if not self.buffers or end > self.buffers[0].shape[2]:
            room = (*keys.shape[:2], end - self.length + _GROWTH, keys.shape[3])
            old = [b[:, :, : self.length] for b in self.buffers] or [x.new_empty(room)[:, :, :0] for x in (keys, values)]
            self.buffers = [torch.cat([b, b.new_empty(room)], dim=2) for b in old]
        for buffer, new in zip(self.buffers, (keys, values), strict=True):
            buffer[:, :, self.length : end] = new
        self.length = end
        return self.buffers[0][:, :, :end], self.buffers[1][:, :, :end]

    def freeze_prefix(self) -> None:
        """What was cached so far (one row) becomes the shared prefix."""
        self.prefix = tuple(buffer[0, :, : self.length].contiguous() for buffer in self.buffers)
        self.buffers, self.length = [], 0

    def keep(self, rows: Tensor) -> None:
        self.buffers = [buffer[rows] for buffer in self.buffers]

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

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
    visible: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention over the shared prefix and each row's own suffix, in transformers' attention interface.

    query: (batch, heads, new, dim); key, value: (batch, kv_heads, suffix, dim); visible: (batch, new, suffix).
    Grouped heads are never copied; the prefix meets the queries of all rows in one product.
    """
    (batch, heads, new, dim), kv_heads = query.shape, key.shape[1]
    scale = dim**-0.5 if scaling is None else scaling
    own = query.reshape(batch, kv_heads, -1, dim)
    scores = (own @ key.transpose(2, 3)).float().mul_(scale).view(batch, kv_heads, -1, new, key.shape[2])
    scores.masked_fill_(~visible[:, None, None], -torch.inf)
    prefix = cache.layers[module.layer_idx].prefix
    if prefix is not None:
        shared = own.transpose(0, 1).reshape(kv_heads, -1, dim)
        before = (shared @ prefix[0].transpose(1, 2)).float().mul_(scale)
        before = before.view(kv_heads, batch, -1, new, before.shape[-1]).transpose(0, 1)
        scores = torch.cat([before, scores], dim=-1)
    weights = scores.softmax(-1).to(value.dtype)
    split = 0 if prefix is None else prefix[0].shape[1]
    output = weights[..., split:].reshape(batch, kv_heads, -1, key.shape[2]) @ value
    if prefix is not None:
        shared = weights[..., :split].transpose(0, 1).reshape(kv_heads, -1, split) @ prefix[1]
        output = output + shared.view(kv_heads, batch, -1, dim).transpose(0, 1)
    return output.reshape(batch, heads, new, dim).transpose(1, 2), None


AttentionInterface.register(ATTENTION, shared_prefix_attention)


class _Batch:
    """The rows of one batch, their cache and the mask of what each row may see."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[_Row], prefix: list[int]):
        self.model, self.tokenizer, self.rows = model, tokenizer, rows
        self.device = model.device
        self.cache = Cache(layers=[_SuffixLayer() for _ in range(model.config.num_hidden_layers)])
        self.visible = torch.ones(1, 0, dtype=torch.bool, device=self.device)
        if prefix:
            self._forward(torch.tensor([prefix]), torch.arange(len(prefix))[None], torch.ones(1, len(prefix)).bool())
            for layer in self.cache.layers:
                layer.freeze_prefix()
        self.visible = self.visible.new_ones(len(rows), 0)

    def prefill(self, suffixes: list[list[int]]) -> Tensor:
        """Feed each row's own prompt, left-padded; returns next-token logits (rows, vocabulary)."""
        width = max(map(len, suffixes))
        ids = torch.zeros(len(suffixes), width, dtype=torch.long)
        real = torch.zeros(len(suffixes), width, dtype=torch.bool)
        positions = torch.zeros(len(suffixes), width, dtype=torch.long)
        for index, (row, suffix) in enumerate(zip(self.rows, suffixes, strict=True)):
            ids[index, width - len(suffix) :] = torch.tensor(suffix)
            real[index, width - len(suffix) :] = True
            positions[index, width - len(suffix) :] = row.position + torch.arange(len(suffix))
            row.position += len(suffix)
        return self._forward(ids, positions, real)

    def step(self, tokens: list[int]) -> Tensor:
        """Feed one token per row; returns next-token logits (rows, vocabulary)."""
        positions = torch.tensor([[row.position] for row in self.rows])
        for row in self.rows:
            row.position += 1
        return self._forward(torch.tensor(tokens)[:, None], positions, torch.ones(len(tokens), 1).bool())

    def keep(self, alive: list[int]) -> None:
        self.rows = [self.rows[index] for index in alive]
        index = torch.tensor(alive, device=self.device)
        self.visible = self.visible[index]
        for layer in self.cache.layers:
            layer.keep(index)

    def _forward(self, ids: Tensor, positions: Tensor, real: Tensor) -> Tensor:
        seen, new = self.visible.shape[1], ids.shape[1]
        self.visible = torch.cat([self.visible.expand(len(ids), -1), real.to(self.device)], dim=1)
        order = torch.arange(seen + new, device=self.device)
        causal = order <= seen + torch.arange(new, device=self.device)[:, None]
        # a padded query sees itself, or its softmax would be over nothing
        visible = self.visible[:, None] & causal | (order == seen + torch.arange(new, device=self.device)[:, None])
        output = self.model(
            input_ids=ids.to(self.device),
            position_ids=positions.to(self.device),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            cache=self.cache,
            visible=visible,
        )
        return output.logits[:, -1].float()


def rollout(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    episodes: Sequence[Episode],
    sampling: Sampling = Sampling(),
    samples: Sequence[int] | None = None,
    on_finished: Callable[[Episode], None] = lambda episode: None,
) -> list[Chain]:
    """Let `model` act in every episode; returns their chains in the order given.

    `samples` numbers the episodes of a same problem (its random stream is seeded with seed, problem and sample).
    `on_finished` is called with each episode as it ends. Chains that would overflow the model's context are cut.
    """
    numbers = samples or [0] * len(episodes)
    inner = model if isinstance(model, PreTrainedModel) else model.get_base_model()
    before, inner.config._attn_implementation = inner.config._attn_implementation, ATTENTION
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for start in range(0, len(episodes), sampling.batch_size):
                batch = slice(start, start + sampling.batch_size)
                rows = [
                    _Row(episode, random.Random(f"{sampling.seed}/{episode.problem.id}/{number}"), 0)
                    for episode, number in zip(episodes[batch], numbers[batch], strict=True)
                ]
                _run_batch(inner, tokenizer, rows, sampling, on_finished)
    finally:
        inner.config._attn_implementation = before
        model.train(was_training)
    return [episode.chain() for episode in episodes]


def _run_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[_Row],
    sampling: Sampling,
    on_finished: Callable[[Episode], None],
) -> None:
    prompts = [_prompt_ids(tokenizer, row.episode) for row in rows]
    shared = _common_prefix(prompts)
    for row in rows:
        row.position = shared
    batch = _Batch(model, tokenizer, rows, prompts[0][:shared])
    logits = batch.prefill([ids[shared:] for ids in prompts])
    turn_ends = _end_of_turn_ids(tokenizer)
    while True:
        wanted = _choose(logits, batch.rows, sampling)
        tokens = [row.forced.popleft() if row.forced else _take(row, token) for row, token in zip(batch.rows, wanted)]
        for row in batch.rows:
            if row.turn and (row.turn[-1] in turn_ends or len(row.turn) >= sampling.turn_tokens):
                _end_turn(tokenizer, row, turn_ends, model.config.max_position_embeddings)
                if row.episode.finished:
                    on_finished(row.episode)
        alive = [index for index, row in enumerate(batch.rows) if not row.episode.finished]
        if not alive:
            return
        if len(alive) < _COMPACT_AT * len(batch.rows):
            batch.keep(alive)
            tokens = [tokens[index] for index in alive]
        logits = batch.step(tokens)


def _take(row: _Row, token: int) -> int:
    """A token the model chose; a finished row that waits to be dropped keeps none."""
    if not row.episode.finished:
        row.turn.append(token)
    return token


def _choose(logits: Tensor, rows: list[_Row], sampling: Sampling) -> list[int]:
    """One token per row: the most likely, or by inverting the cumulative distribution at the row's own uniform."""
    if sampling.temperature == 0:
        return logits.argmax(-1).tolist()
    uniform = torch.tensor([[0.0 if row.forced else row.stream.random()] for row in rows], device=logits.device)
    cumulative = (logits / sampling.temperature).softmax(-1).cumsum(-1)
    return torch.searchsorted(cumulative, uniform * cumulative[:, -1:]).clamp_(max=logits.shape[1] - 1)[:, 0].tolist()


def _end_turn(tokenizer: PreTrainedTokenizerBase, row: _Row, turn_ends: set[int], context: int) -> None:
    """Run the finished turn as a call and queue the template's text up to the next assistant turn."""
    ended = row.turn[-1] in turn_ends
    step = row.episode.step(tokenizer.decode(row.turn[: len(row.turn) - ended], skip_special_tokens=False))
    between = _between_turns(tokenizer, step.result)
    row.forced.extend(between[1:] if ended else between)
    row.turn = []
    if row.position + len(row.forced) + 2 >= context:
        row.episode.cut = True


def _between_turns(tokenizer: PreTrainedTokenizerBase, result: str) -> list[int]:
    """End of turn, the result as a user turn, and the opening of the next assistant turn."""
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!call!"}]
    before = render(tokenizer, turns)
    after = render(tokenizer, [*turns, {"role": "user", "content": result}], generate=True)
    return encode_text(tokenizer, after[before.rindex("!call!") + len("!call!") :])


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, episode: Episode) -> list[int]:
    return encode_text(tokenizer, render(tokenizer, prompt(episode.task, episode.problem, episode.toolset), generate=True))


def _end_of_turn_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The token that closes an assistant turn in this template, and the tokenizer's own end of text."""
    return {_between_turns(tokenizer, "?")[0], tokenizer.eos_token_id}


def _common_prefix(prompts: list[list[int]]) -> int:
    """How many leading tokens all prompts share, at least one token being left to each."""
    shortest = min(map(len, prompts)) - 1
    return next((i for i in range(shortest) if any(p[i] != prompts[0][i] for p in prompts)), shortest)

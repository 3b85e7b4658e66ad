"""Many chains at once from one local model.

Every pass feeds each chain of a batch whatever it has pending: the token it just chose, or a whole function result as
forced tokens. The linear layers see all of it as one packed row without padding; each chain attends to its own cache
and to the prompt text that all share, which is computed and stored once. Finished chains leave the batch. Each chain
draws from its own random stream, so what it says does not depend on its neighbours (exactly so in fp32 up to ties;
rounding in bf16 can tip a choice). Knows nothing of training.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache, CacheLayerMixin

from fcdpo_utils.agent import Chain, Episode, prompt
from fcdpo_utils.tokens import encode_text, render
from fcdpo_utils.trees import causal_weights

ATTENTION = "shared_prefix"
_GROWTH = 64  # cache positions allocated at a time


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0 is greedy. A turn longer than `turn_tokens` is cut and judged as it is."""

    temperature: float = 0.0
    turn_tokens: int = 64
    batch_size: int = 64
    seed: int = 0


@dataclass
class _Row:
    """Per-chain state: tokens still to be fed, tokens of the open turn, and how many are in the cache."""

    episode: Episode
    stream: random.Random
    pending: list[int]
    turn: list[int] = field(default_factory=list)
    cached: int = 0


@dataclass(frozen=True)
class _Plan:
    """Which tokens of the packed row (length n) belong to which cache row.

    `rows`, `slots`: (n,), where each token is cached. `last`: (batch,), each row's last token in the packed row.
    `visible`: (batch, slots), what that last token sees. `chunks`: (row, start, end, cached) of rows that feed several.
    """

    rows: Tensor
    slots: Tensor
    last: Tensor
    visible: Tensor
    chunks: tuple[tuple[int, int, int, int], ...]


class _RowLayer(CacheLayerMixin):
    """One layer's keys and values: a prefix stored once, (kv_heads, prefix, dim), and (batch, kv_heads, slots, dim)."""

    is_compileable = False

    def __init__(self) -> None:
        super().__init__()
        self.prefix: tuple[Tensor, Tensor] | None = None
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
                self.buffers.append(new.new_zeros(batch, new.shape[1], slots + _GROWTH, new.shape[3]))
            elif self.buffers[index].shape[2] < slots:
                old = self.buffers[index]
                self.buffers[index] = torch.cat([old, old.new_zeros(*old.shape[:2], _GROWTH + slots, old.shape[3])], 2)
            self.buffers[index][plan.rows, :, plan.slots] = new[0].transpose(0, 1)

    def freeze_prefix(self, length: int) -> None:
        """What row 0 holds becomes the shared prefix."""
        self.prefix = tuple(buffer[0, :, :length].contiguous() for buffer in self.buffers)
        self.buffers = []

    def keep(self, rows: Tensor) -> None:
        self.buffers = [buffer[rows] for buffer in self.buffers]

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
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of a packed row over each token's own cache row and the shared prefix.

    query: (1, heads, n, dim); key, value: (1, kv_heads, n, dim). Returns (1, n, heads, dim).
    """
    layer = cache.layers[module.layer_idx]
    layer.write(key, value, plan)
    kv_heads, dim = key.shape[1], key.shape[3]
    query = (query[0] * (dim**-0.5 if scaling is None else scaling)).unflatten(0, (kv_heads, -1))
    output = query.new_empty(query.shape[2], query.shape[0] * query.shape[1], dim)
    output[plan.last] = _last_tokens(query[:, :, plan.last], layer, plan.visible).flatten(1, 2)
    for row, start, end, cached in plan.chunks:
        keys, values = (_history(layer, index, row, cached + end - start) for index in (0, 1))
        weights = causal_weights(query[:, :, start:end], keys)
        output[start:end] = (weights @ values).view(kv_heads, -1, end - start, dim).permute(2, 0, 1, 3).flatten(1, 2)
    return output[None], None


def _history(layer: _RowLayer, index: int, row: int, length: int) -> Tensor:
    """Keys (0) or values (1) that one row has seen, (kv_heads, prefix + length, dim)."""
    own = layer.buffers[index][row, :, :length]
    return own if layer.prefix is None else torch.cat([layer.prefix[index], own], dim=1)


def _last_tokens(query: Tensor, layer: _RowLayer, visible: Tensor) -> Tensor:
    """One query per row, (kv_heads, groups, batch, dim) -> (batch, kv_heads, groups, dim).

    Grouped heads are never copied, and the prefix meets the queries of all rows in one product.
    """
    (kv_heads, groups, batch, dim), slots = query.shape, visible.shape[1]
    keys, values = (buffer[:, :, :slots] for buffer in layer.buffers)
    scores = query.permute(2, 0, 1, 3) @ keys.transpose(2, 3)
    scores.masked_fill_(~visible[:, None, None], -torch.inf)
    if layer.prefix is None:
        return scores.softmax(-1) @ values
    shared = (query.reshape(kv_heads, -1, dim) @ layer.prefix[0].transpose(1, 2)).view(kv_heads, groups, batch, -1)
    weights = torch.cat([shared.permute(2, 0, 1, 3), scores], dim=-1).softmax(-1)
    before, own = weights.split([shared.shape[-1], slots], dim=-1)
    prefix = (before.permute(1, 2, 0, 3).reshape(kv_heads, -1, shared.shape[-1]) @ layer.prefix[1]).view(query.shape)
    return own @ values + prefix.permute(2, 0, 1, 3)


AttentionInterface.register(ATTENTION, shared_prefix_attention)


class _Batch:
    """The rows of one batch and their cache; `offset` is the length of the shared prefix."""

    def __init__(self, model: PreTrainedModel, rows: list[_Row], prefix: list[int]):
        self.model, self.rows, self.offset = model, rows, 0
        self.cache = Cache(layers=[_RowLayer() for _ in range(model.config.num_hidden_layers)])
        if prefix:
            self._feed([_Row(rows[0].episode, rows[0].stream, prefix)])
            for layer in self.cache.layers:
                layer.freeze_prefix(len(prefix))
            self.offset = len(prefix)

    def advance(self) -> Tensor:
        """Feed what every row has pending; returns next-token logits, (rows, vocabulary) in float32."""
        return self._feed(self.rows)

    def keep(self, alive: list[int]) -> None:
        self.rows = [self.rows[index] for index in alive]
        for layer in self.cache.layers:
            layer.keep(torch.tensor(alive, dtype=torch.long, device=self.model.device))

    def _feed(self, rows: list[_Row]) -> Tensor:
        ids, owners, slots, last, chunks = [], [], [], [], []
        for index, row in enumerate(rows):
            if len(row.pending) > 1:
                chunks.append((index, len(ids), len(ids) + len(row.pending), row.cached))
            ids += row.pending
            owners += [index] * len(row.pending)
            slots += range(row.cached, row.cached + len(row.pending))
            last.append(len(ids) - 1)
            row.cached += len(row.pending)
            row.pending = []
        device = self.model.device
        lengths = torch.tensor([row.cached for row in rows])
        visible = (torch.arange(int(lengths.max())) < lengths[:, None]).to(device)
        places = [torch.tensor(x, device=device) for x in (owners, slots, last)]
        output = self.model(
            input_ids=torch.tensor([ids], device=device),
            position_ids=places[1][None] + self.offset,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=places[2],
            cache=self.cache,
            plan=_Plan(*places, visible, tuple(chunks)),
        )
        return output.logits[0].float()


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
                    _Row(episode, random.Random(f"{sampling.seed}/{episode.problem.id}/{number}"), [])
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
    for row, ids in zip(rows, prompts, strict=True):
        row.pending = ids[shared:]
    batch = _Batch(model, rows, prompts[0][:shared])
    turn_ends = _end_of_turn_ids(tokenizer)
    room = model.config.max_position_embeddings - batch.offset - sampling.turn_tokens
    while batch.rows:
        for row, token in zip(batch.rows, _choose(batch.advance(), batch.rows, sampling), strict=True):
            row.turn.append(token)
            row.pending = [token]
            if token in turn_ends or len(row.turn) >= sampling.turn_tokens:
                _end_turn(tokenizer, row, turn_ends, room)
                if row.episode.finished:
                    on_finished(row.episode)
        alive = [index for index, row in enumerate(batch.rows) if not row.episode.finished]
        if len(alive) < len(batch.rows):
            batch.keep(alive)


def _choose(logits: Tensor, rows: list[_Row], sampling: Sampling) -> list[int]:
    """One token per row: the most likely, or by inverting the cumulative distribution at the row's own uniform."""
    if sampling.temperature == 0:
        return logits.argmax(-1).tolist()
    uniform = torch.tensor([[row.stream.random()] for row in rows], device=logits.device)
    cumulative = (logits / sampling.temperature).softmax(-1).cumsum(-1)
    return torch.searchsorted(cumulative, uniform * cumulative[:, -1:]).clamp_(max=logits.shape[1] - 1)[:, 0].tolist()


def _end_turn(tokenizer: PreTrainedTokenizerBase, row: _Row, turn_ends: set[int], room: int) -> None:
    """Run the finished turn as a call and queue the template's text up to the next assistant turn."""
    ended = row.turn[-1] in turn_ends
    step = row.episode.step(tokenizer.decode(row.turn[: len(row.turn) - ended], skip_special_tokens=False))
    between = _between_turns(tokenizer, step.result)
    # the template's own end of turn, whichever token the model said
    row.pending = between if ended else [*row.pending, *between]
    row.turn = []
    row.episode.cut = row.cached + len(row.pending) >= room


def _between_turns(tokenizer: PreTrainedTokenizerBase, result: str) -> list[int]:
    """End of turn, the result as a user turn, and the opening of the next assistant turn."""
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!call!"}]
    before = render(tokenizer, turns)
    after = render(tokenizer, [*turns, {"role": "user", "content": result}], generate=True)
    return encode_text(tokenizer, after[before.rindex("!call!") + len("!call!") :])


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, episode: Episode) -> list[int]:
    return encode_text(
        tokenizer, render(tokenizer, prompt(episode.task, episode.problem, episode.toolset), generate=True)
    )


def _end_of_turn_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The token that closes an assistant turn in this template, and the tokenizer's own end of text."""
    return {_between_turns(tokenizer, "?")[0], tokenizer.eos_token_id}


def _common_prefix(prompts: list[list[int]]) -> int:
    """How many leading tokens all prompts share, at least one token being left to each."""
    shortest = min(map(len, prompts)) - 1
    return next((i for i in range(shortest) if any(p[i] != prompts[0][i] for p in prompts)), shortest)

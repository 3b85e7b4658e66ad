"""Log-probabilities of many completions at the price of their distinct tokens.

Completions share their prompt, prompts of a task their instructions, and a mistaken chain often its first calls with a
correct one. A `TokenTree` packs such sequences into one row in which every shared prefix stands once; in attention each
token sees just its own ancestors. All else (the linear layers, where the time goes) runs on the row without padding,
and gradients flow through shared prefixes. Equals one pass per sequence. Knows nothing of preferences.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, PreTrainedModel

from fcdpo_utils.engine.lora import adapters_by_products
from fcdpo_utils.tokens import Tokens

Spans = tuple[tuple[int, int], ...]
Segments = tuple[Spans, ...]
ATTENTION = "token_tree"
_TILE_ROWS = 256  # query rows of one attention tile: small enough to stay in a CPU cache
LOGIT_CHUNK = 512  # policy tokens whose (chunk, vocabulary) logits exist at one time
_OTHER_ATTENTION = ("softcap", "s_aux", "sinks", "position_bias", "indices", "block_indices")  # transformers' names
_NOT_SUPPORTED = "not plain softmax attention: choose another student (fcdpo_utils/students.yaml lists some)"


@dataclass(frozen=True)
class TokenTree:
    """Sequences packed into one row.

    `input_ids`, `position_ids`: (1, row). `segments`: spans of the row, each behind those it continues, from the root
    on. `predecessors`, `targets`: (scored,) for each scored token, where it is predicted from and what it is. `owners`,
    `scored`: for each (sequence, policy token), which sequence and which scored token, so that `sequence log-prob =
    index_add(owners, token log-prob[scored])`.
    """

    input_ids: Tensor
    position_ids: Tensor
    segments: Segments
    predecessors: Tensor
    targets: Tensor
    owners: Tensor
    scored: Tensor
    sequences: int

    def __len__(self) -> int:
        return self.input_ids.shape[1]

    def to(self, device: torch.device | str) -> Self:
        return replace(self, **{k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)})


def build_tree(sequences: Sequence[Tokens]) -> TokenTree:
    """Pack `sequences` depth first, so that every common prefix stands once. Each needs at least one policy token."""
    tokens = [list(zip(sequence.ids, sequence.policy, strict=True)) for sequence in sequences]
    ids: list[int] = []
    positions: list[int] = []
    segments: list[Spans] = []
    predecessors: dict[int, int] = {}  # place of a policy token in the row -> place of the token before it
    paths: list[list[int]] = [[] for _ in sequences]  # places of each sequence's policy tokens

    def add(group: list[int], depth: int, ancestors: Spans, before: int) -> None:
        """Append what all of `group` share from `depth` on, then each of the branches after it."""
        end, start = depth + common_prefix([tokens[member][depth:] for member in group]), len(ids)
        for place, (token, policy) in enumerate(tokens[group[0]][depth:end], start=start):
            ids.append(token)
            positions.append(depth + place - start)
            if policy:
                predecessors[place] = before if place == start else place - 1
                for member in group:
                    paths[member].append(place)
        if end > depth:
            ancestors, before = (*ancestors, (start, len(ids))), len(ids) - 1
            segments.append(ancestors)
        branches: dict[tuple[int, bool], list[int]] = {}
        for member in group:
            if len(tokens[member]) > end:
                branches.setdefault(tokens[member][end], []).append(member)
        for branch in branches.values():
            add(branch, end, ancestors, before)

    add(list(range(len(sequences))), 0, (), -1)
    scored = {place: number for number, place in enumerate(predecessors)}
    return TokenTree(
        input_ids=torch.tensor([ids]),
        position_ids=torch.tensor([positions]),
        segments=tuple(segments),
        predecessors=torch.tensor(list(predecessors.values())),
        targets=torch.tensor([ids[place] for place in predecessors]),
        owners=torch.tensor([owner for owner, path in enumerate(paths) for _ in path]),
        scored=torch.tensor([scored[place] for path in paths for place in path]),
        sequences=len(sequences),
    )


def common_prefix(sequences: Sequence[Sequence[Any]]) -> int:
    """How many leading items all of the sequences share: as many as their first and last in order do."""
    first, last = min(sequences), max(sequences)
    return next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))


class _TreeAttention(torch.autograd.Function):
    """Exact attention of every token over its ancestors and itself, tile by tile.

    query: (kv_heads, groups, row, dim), scaled; key, value: (kv_heads, row, dim): grouped-query heads are never copied.
    The backward pass computes each tile's probabilities again: memory grows with the row alone.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, segments: Segments, window: int | None) -> Tensor:
        output = torch.empty_like(query)
        for rows, keys in _tiles(segments):
            weights = causal_weights(query[:, :, rows], _seen(key, keys), window)
            output[:, :, rows] = (weights @ _seen(value, keys)).view_as(output[:, :, rows])
        ctx.save_for_backward(query, key, value)
        ctx.segments, ctx.window = segments, window
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        grad_query, exact = torch.empty_like(query), torch.promote_types(key.dtype, torch.float32)
        grad_key, grad_value = (x.new_zeros(x.shape, dtype=exact) for x in (key, value))
        for rows, keys in _tiles(ctx.segments):
            seen = _seen(key, keys)
            weights, upstream = causal_weights(query[:, :, rows], seen, ctx.window), grad[:, :, rows].flatten(1, 2)
            _add_to_seen(grad_value, weights.transpose(1, 2) @ upstream, keys)
            slope = upstream @ _seen(value, keys).transpose(1, 2)
            slope = torch.ops.aten._softmax_backward_data(slope, weights, -1, slope.dtype)
            grad_query[:, :, rows] = (slope @ seen).view_as(grad_query[:, :, rows])
            _add_to_seen(grad_key, slope.transpose(1, 2) @ query[:, :, rows].flatten(1, 2), keys)
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), None, None


def _tiles(segments: Segments) -> Iterator[tuple[slice, Spans]]:
    """(query rows, spans of keys); the rows are the last keys of the last span, and causal among themselves."""
    for *ancestors, (first, stop) in segments:
        for start in range(first, stop, _TILE_ROWS):
            end = min(start + _TILE_ROWS, stop)
            yield slice(start, end), (*ancestors, (first, end))


def _seen(states: Tensor, spans: Spans) -> Tensor:
    """(kv_heads, row, dim) -> (kv_heads, keys, dim), the keys of one tile."""
    return torch.cat([states[:, a:b] for a, b in spans], dim=1)


def _add_to_seen(states: Tensor, change: Tensor, spans: Spans) -> None:
    """The transpose of `_seen`: add (kv_heads, keys, dim) where the keys came from."""
    for (a, b), part in zip(spans, change.split([b - a for a, b in spans], dim=1), strict=True):
        states[:, a:b] += part


def causal_weights(query: Tensor, keys: Tensor, window: int | None = None) -> Tensor:
    """Softmax weights of queries that are the last of the keys and causal among themselves.

    query: (kv_heads, groups, rows, dim), scaled; keys: (kv_heads, keys, dim), from the root on, so that a key's place
    is its position; window: how many keys a query sees at most. Returns (kv_heads, groups * rows, keys).
    """
    scores, rows, count = query.flatten(1, 2) @ keys.transpose(1, 2), query.shape[2], keys.shape[1]
    by_row = scores.view(*query.shape[:3], -1)
    own = by_row[..., count - rows + 1 :]
    own.masked_fill_(torch.ones(rows, rows - 1, dtype=torch.bool, device=own.device).triu(), -torch.inf)
    if window is not None and count > window:
        by_row.masked_fill_(too_far(torch.arange(count - rows, count, device=keys.device), count, window), -torch.inf)
    return scores.softmax(-1)


def too_far(positions: Tensor, keys: int, window: int) -> Tensor:
    """Which of `keys` keys, from 0 on, lie outside a window that ends at each of `positions`: (*positions, keys)."""
    return torch.arange(keys, device=positions.device) <= positions[..., None] - window


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    segments: Segments = (),
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of each token over its ancestors and itself, as transformers' attention interface wants it.

    query: (1, heads, row, dim); key, value: (1, kv_heads, row, dim). Returns (1, row, heads, dim).
    """
    refuse_other_attention(module, others)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    grouped = (query[0] * scale).unflatten(0, (key.shape[1], -1))
    with torch.autocast(query.device.type, enabled=False):  # as the backward pass: in the types that came
        output = _TreeAttention.apply(grouped, key[0], value[0], segments, sliding_window)
    return output.flatten(0, 1).transpose(0, 1)[None], None


AttentionInterface.register(ATTENTION, tree_attention)


def refuse_other_attention(module: nn.Module, options: dict[str, Any]) -> None:
    """Raise ValueError where `options`, from a model's attention layer, ask for more than plain softmax attention."""
    if asked := [name for name in _OTHER_ATTENTION if options.get(name) is not None]:
        raise ValueError(f"{type(module).__name__} needs {asked[0]}, {_NOT_SUPPORTED}")


class _TokenLogProbs(torch.autograd.Function):
    """log softmax(hidden @ weight.T)[target] per row, with the gradient of `hidden` made in the forward pass.

    hidden: (n, d), weight: (vocabulary, d) frozen, targets: (n,). Returns (n,) in float32 or wider. Logits exist
    for one chunk at a time and are not made again for the backward pass: d logp/d hidden = weight[target] - p @ weight.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        log_probs, directions = [], []
        for rows, wanted in zip(hidden.split(LOGIT_CHUNK), targets.split(LOGIT_CHUNK), strict=True):
            logits = (rows @ weight.T).to(torch.promote_types(weight.dtype, torch.float32))
            normaliser = logits.logsumexp(-1, keepdim=True)
            log_probs.append(logits.gather(1, wanted[:, None])[:, 0] - normaliser[:, 0])
            if hidden.requires_grad:
                probabilities = logits.sub_(normaliser).exp_().to(weight.dtype)
                directions.append(weight[wanted] - probabilities @ weight)
        ctx.save_for_backward(torch.cat(directions) if directions else hidden.new_empty(0))
        return torch.cat(log_probs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (directions,) = ctx.saved_tensors
        return grad[:, None].to(directions.dtype) * directions, None, None


def sequence_log_probs(model: nn.Module, tree: TokenTree) -> Tensor:
    """Sum of policy-token log-probabilities of each sequence, shape (sequences,), in float32 or wider.

    `model` is a causal LM from transformers, bare, under PEFT or under a distributed wrapper. Its output head must
    not be trained. Equals one ordinary causal pass per sequence up to rounding.
    """
    inner = unwrapped(model)
    head = inner.get_output_embeddings()
    inner.set_output_embeddings(nn.Identity())  # hidden states in place of logits
    try:
        with while_training(model):
            hidden = model(
                input_ids=tree.input_ids,
                position_ids=tree.position_ids,
                segments=tree.segments,
                logits_to_keep=tree.predecessors,
                use_cache=False,
            ).logits[0]
    finally:
        inner.set_output_embeddings(head)
    log_probs = _TokenLogProbs.apply(hidden, head.weight.to(hidden.dtype), tree.targets)
    totals = log_probs.new_zeros(tree.sequences)
    return totals.index_add(0, tree.owners, log_probs[tree.scored])


def split_packs(sequences: Sequence[Tokens], pack_tokens: int) -> list[tuple[TokenTree, slice]]:
    """Trees of consecutive sequences, each of at most `pack_tokens` tokens where one sequence alone fits."""
    parts, start = [], 0
    while start < len(sequences):
        stop, tree = start + 1, build_tree(sequences[start : start + 1])
        while stop < len(sequences) and len(larger := build_tree(sequences[start : stop + 1])) <= pack_tokens:
            stop, tree = stop + 1, larger
        parts.append((tree, slice(start, stop)))
        start = stop
    return parts


def log_probs(model: nn.Module, sequences: Sequence[Tokens], pack_tokens: int) -> tuple[Tensor, int, int]:
    """Log-probability of each sequence, (sequences,); the tokens passed; and in how many passes.

    Flat memory: what does not fit in one pack is split, and each part's activations are computed again in its own
    backward pass. That is "log-probabilities first, then one weighted backward per part", the same gradient.
    """
    device = next(model.parameters()).device
    whole = build_tree(sequences)
    if len(whole) <= pack_tokens:
        return sequence_log_probs(model, whole.to(device)), len(whole), 1
    parts = split_packs(sequences, pack_tokens)
    each = [checkpoint(sequence_log_probs, model, tree.to(device), use_reentrant=False) for tree, _ in parts]
    return torch.cat(each), sum(len(tree) for tree, _ in parts), len(parts)


def unwrapped(model: nn.Module) -> PreTrainedModel:
    """The model within accelerate's and PEFT's wrappers."""
    while not isinstance(model, PreTrainedModel):
        model = model.module if hasattr(model, "module") else model.get_base_model()
    return model


@contextmanager
def while_training(model: nn.Module) -> Iterator[None]:
    """Use the fast layers inside, for backward passes too where they are computed again (gradient checkpointing)."""
    with attention_in(unwrapped(model), ATTENTION), adapters_by_products():
        yield


@contextmanager
def attention_in(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Use the registered attention `name` inside. Raises ValueError where the model would not use it in every layer."""
    kinds = set(getattr(model.config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds or not model._supports_attention_backend:
        raise ValueError(f"{type(model).__name__} has layers of its own kind, {_NOT_SUPPORTED}")
    before, model.config._attn_implementation = model.config._attn_implementation, name
    try:
        yield
    finally:
        model.config._attn_implementation = before

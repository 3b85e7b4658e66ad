"""One pass of a model over many chains at once.

Each chain feeds whatever it has pending: the token it just chose, or a whole function result as forced tokens. The
linear layers see all of it as one packed row without padding; each chain attends to its own KV slots and to the text
that all share, which is computed and stored once. Knows nothing of what chains mean.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from fcdpo_utils.engine.trees import refuse_other_attention, too_far

ATTENTION = "shared_prefix"
_GROWTH = 64  # KV slots allocated at a time; products with a part of a buffer would copy it
_PAIRS = 1 << 20  # of a query with a key, in one padded group of prefill chunks: bounds its memory


@dataclass(kw_only=True)
class PendingTokens:
    """A chain's tokens that are still to be fed, and how many are in the cache."""

    pending: list[int]
    cached: int = 0


@dataclass(frozen=True)
class PrefillChunk:
    """Chains that feed several tokens, all but the last of each, of similar lengths, padded to the longest.

    `chains`: (c,) or a slice, their rows of the cache. `tokens`: (c, length), places in the packed row; padding repeats
    the last token, and so its result. `visible`: (c, length, slots), what each token sees of its own KV slots.
    """

    chains: Tensor | slice
    tokens: Tensor
    visible: Tensor


@dataclass(frozen=True)
class BatchPlan:
    """Which tokens of the packed row (length n) belong to which chain.

    `chains`, `slots`: (n,), where each token is cached. `last`: (batch,), each chain's last token in the packed row.
    `visible`: (batch, slots), what that last token sees. Of two chains with 2 and 1 tokens cached that feed 3 and 1:

        chains [0, 0, 0, 1], slots [2, 3, 4, 1], last [2, 3], one chunk with tokens [[0, 1]]
    """

    chains: Tensor
    slots: Tensor
    last: Tensor
    visible: Tensor
    chunks: tuple[PrefillChunk, ...]


_Prefix = tuple[Tensor, Tensor] | None  # keys and values of the shared prompt text, (kv_heads, prefix, dim) each


class LayerCache:
    """One layer's keys and values: a prefix stored once, (kv_heads, prefix, dim), and (batch, kv_heads, slots, dim)."""

    def __init__(self) -> None:
        self.prefix: _Prefix = None
        self.buffers: list[Tensor] = []

    def write(self, keys: Tensor, values: Tensor, plan: BatchPlan) -> None:
        """Cache (1, kv_heads, n, dim) at the plan's chains and slots; buffers grow where needed."""
        batch, slots = plan.visible.shape
        for index, new in enumerate((keys, values)):
            if len(self.buffers) <= index:
                self.buffers.append(new.new_zeros(batch, new.shape[1], slots, new.shape[3]))
            elif (old := self.buffers[index]).shape[2] < slots:
                more = old.new_zeros(*old.shape[:2], slots - old.shape[2], old.shape[3])
                self.buffers[index] = torch.cat([old, more], dim=2)
            self.buffers[index][plan.chains, :, plan.slots] = new[0].transpose(0, 1)


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    cache: Sequence[LayerCache] = (),
    plan: BatchPlan | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of a packed row over each token's own KV slots and the shared prefix.

    query: (1, heads, n, dim); key, value: (1, kv_heads, n, dim). Returns (1, n, heads, dim).
    """
    refuse_other_attention(module, others)
    layer = cache[module.layer_idx]
    layer.write(key, value, plan)
    kv_heads, dim = key.shape[1], key.shape[3]
    query = (query[0] * (dim**-0.5 if scaling is None else scaling)).unflatten(0, (kv_heads, -1))
    output = query.new_empty(query.shape[2], query.shape[0] * query.shape[1], dim)
    last = PrefillChunk(slice(len(plan.visible)), plan.last[:, None], plan.visible[:, None])
    for chunk in (last, *plan.chunks):
        own = [buffer[chunk.chains] for buffer in layer.buffers]
        places, asked = plan.slots[chunk.tokens], query[:, :, chunk.tokens]
        output[chunk.tokens] = _attend(asked, own, layer.prefix, chunk.visible, places, sliding_window)
    return output[None], None


def _attend(
    query: Tensor, own: list[Tensor], prefix: _Prefix, visible: Tensor, slots: Tensor, window: int | None
) -> Tensor:
    """Some queries of each chain over the chain's own KV slots and the shared prefix.

    query: (kv_heads, groups, chains, length, dim); own keys and values: (chains, kv_heads, slots, dim); prefix: the
    same without chains; visible: (chains, length, slots); slots: (chains, length), the queries' own. Returns (chains,
    length, heads, dim). Grouped heads are never copied; the prefix meets the queries of all chains at once.
    """
    kv_heads, groups, chains, length, dim = query.shape
    by_chain = query.permute(2, 0, 1, 3, 4)
    scores = (by_chain.reshape(chains, kv_heads, -1, dim) @ own[0].transpose(2, 3)).unflatten(2, (groups, length))
    scores.masked_fill_(~visible[:, None, None], -torch.inf)
    if prefix is not None:
        shared = (query.reshape(kv_heads, -1, dim) @ prefix[0].transpose(1, 2)).unflatten(1, (groups, chains, length))
        scores = torch.cat([shared.permute(2, 0, 1, 3, 4), scores], dim=-1)
    keys, shared_keys = scores.shape[-1], scores.shape[-1] - visible.shape[2]
    if window is not None and keys > window:  # a key's place in prefix and KV slots is its position
        scores.masked_fill_(too_far(slots + shared_keys, keys, window)[:, None, None], -torch.inf)
    weights = scores.softmax(-1)
    before, weights = weights.split([shared_keys, visible.shape[2]], dim=-1)
    output = (weights.flatten(2, 3) @ own[1]).unflatten(2, (groups, length))
    if prefix is not None:
        shared = before.permute(1, 2, 0, 3, 4).reshape(kv_heads, -1, before.shape[-1]) @ prefix[1]
        output = output + shared.unflatten(1, (groups, chains, length)).permute(2, 0, 1, 3, 4)
    return output.permute(0, 3, 1, 2, 4).flatten(2, 3)


AttentionInterface.register(ATTENTION, shared_prefix_attention)


class DecodeEngine:
    """Passes over a batch, none larger than the first, with their cache; `offset`: length of the shared `prefix`."""

    def __init__(self, model: PreTrainedModel, prefix: list[int]):
        self.model, self.offset, self.slots = model, 0, 0
        self.cache = [LayerCache() for _ in range(model.config.num_hidden_layers)]
        if prefix:
            self.feed([PendingTokens(pending=prefix)])
            for layer in self.cache:
                layer.prefix = tuple(buffer[0, :, : len(prefix)].contiguous() for buffer in layer.buffers)
                layer.buffers = []
            self.offset, self.slots = len(prefix), 0

    def feed(self, chains: Sequence[PendingTokens]) -> Tensor:
        """Feed what every chain has pending; returns next-token logits, (batch, vocabulary) in float32."""
        longest = max(chain.cached + len(chain.pending) for chain in chains)
        self.slots = max(self.slots, -(-longest // _GROWTH) * _GROWTH)
        ids, plan = self._plan(chains)
        options = {"use_cache": False, "logits_to_keep": plan.last, "cache": self.cache, "plan": plan}
        output = self.model(input_ids=ids[None], position_ids=plan.slots[None] + self.offset, **options)
        for chain in chains:
            chain.cached += len(chain.pending)
            chain.pending = []
        return output.logits[0].float()

    def move(self, sources: list[int], targets: list[int]) -> None:
        """Copy what some chains have cached to the places of others."""
        for buffer in (buffer for layer in self.cache for buffer in layer.buffers):
            buffer[targets] = buffer[sources]

    def _plan(self, chains: Sequence[PendingTokens]) -> tuple[Tensor, BatchPlan]:
        """The packed row, (n,), and its plan."""
        ids, owners, slots, last, prefills = [], [], [], [], []
        for index, chain in enumerate(chains):
            if len(chain.pending) > 1:
                prefills.append((len(chain.pending) - 1, index, len(ids), chain.cached))
            ids += chain.pending
            owners += [index] * len(chain.pending)
            slots += range(chain.cached, chain.cached + len(chain.pending))
            last.append(len(ids) - 1)
        device = self.model.device
        lengths = torch.tensor([chain.cached + len(chain.pending) for chain in chains])
        visible = (torch.arange(self.slots) < lengths[:, None]).to(device)
        ids, *places = (torch.tensor(x, device=device) for x in (ids, owners, slots, last))
        return ids, BatchPlan(*places, visible, tuple(self._chunks(prefills)))

    def _chunks(self, prefills: list[tuple[int, int, int, int]]) -> Iterator[PrefillChunk]:
        """(length, chain, start in the packed row, tokens cached), in groups of similar length."""
        group: list[tuple[int, int, int, int]] = []
        for prefill in sorted(prefills):
            pairs = (len(group) + 1) * prefill[0] * (self.slots + self.offset)
            if group and (prefill[0] > 2 * group[0][0] or pairs > _PAIRS):
                yield self._padded(group)
                group = []
            group.append(prefill)
        if group:
            yield self._padded(group)

    def _padded(self, group: list[tuple[int, int, int, int]]) -> PrefillChunk:
        lengths, chains, starts, cached = torch.tensor(group, device=self.model.device).T
        place = torch.arange(max(group)[0], device=chains.device).minimum(lengths[:, None] - 1)
        slots = torch.arange(self.slots, device=chains.device)
        return PrefillChunk(chains, starts[:, None] + place, slots <= (cached[:, None] + place)[:, :, None])

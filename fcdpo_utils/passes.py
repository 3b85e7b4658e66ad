"""One pass of a model over many chains at once.

Each chain feeds whatever it has pending: the token it just chose, or a whole function result as forced tokens. The
linear layers see all of it as one packed row without padding; each chain attends to its own cache and to the text that
all share, which is computed and stored once. On a GPU, passes of a shape that comes again can be recorded and replayed
(CUDA graphs): a small model's kernels end sooner than Python can start the next. Knows nothing of what chains mean.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from fcdpo_utils.trees import refuse_other_attention, too_far

ATTENTION = "shared_prefix"
_GROWTH = 64  # cache positions allocated at a time; products with a part of a buffer would copy it
_GROWTH_RECORDED = 256  # each growth makes all recordings anew
_PAIRS = 1 << 20  # of a query with a key, in one padded group of chunks: bounds its memory
_CHUNK = 32  # most tokens of a chunk of a recorded pass
_CHUNKS = 8  # most chunks of a recorded pass; what exceeds one of the two is not recorded
_MET = 2  # times that a shape is passed before it is recorded

Pass = Callable[[], Tensor]
Recorder = Callable[[Pass], Pass]
NewRecorder = Callable[[], Recorder]


@dataclass(kw_only=True)
class Row:
    """A chain's tokens that are still to be fed, and how many are in the cache."""

    pending: list[int]
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
    """One layer's keys and values: a prefix stored once, (kv_heads, prefix, dim), and (rows, kv_heads, slots, dim).

    `spare`: rows beyond those of the largest batch, for padding; nobody reads them.
    """

    is_compileable = False

    def __init__(self) -> None:
        super().__init__()
        self.prefix: _Prefix = None
        self.spare = 0
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
                self.buffers.append(new.new_zeros(batch + self.spare, new.shape[1], slots, new.shape[3]))
            elif (old := self.buffers[index]).shape[2] < slots:
                more = old.new_zeros(*old.shape[:2], slots - old.shape[2], old.shape[3])
                self.buffers[index] = torch.cat([old, more], dim=2)
            self.buffers[index][plan.rows, :, plan.slots] = new[0].transpose(0, 1)

    def freeze_prefix(self, length: int) -> None:
        """What row 0 holds becomes the shared prefix."""
        self.prefix = tuple(buffer[0, :, :length].contiguous() for buffer in self.buffers)
        self.buffers = []

    def move(self, sources: list[int], targets: list[int]) -> None:
        """Copy some rows to the places of others."""
        for buffer in self.buffers:
            buffer[targets] = buffer[sources]

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
    last, own = query[:, :, plan.last, None], [buffer[: len(plan.visible)] for buffer in layer.buffers]
    output[plan.last] = _attend(last, own, layer.prefix, plan.visible[:, None], far)[:, 0]
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


def slots_for(tokens: int, recorded: bool) -> int:
    """How many places a cache row gets for so many tokens."""
    growth = _GROWTH_RECORDED if recorded else _GROWTH
    return -(-tokens // growth) * growth


class Passes:
    """Passes over the rows of one batch, with their cache; `offset` is the length of the `prefix` that all share.

    No pass may have more rows than the first. `new_recorder`: see `new_recorder_on`; None: nothing is recorded. `close`
    it after use: it and its recordings refer to each other, so their memory would wait for the garbage collection.
    """

    def __init__(self, model: PreTrainedModel, prefix: list[int], new_recorder: NewRecorder | None = None):
        self.model, self.offset, self.slots = model, 0, 0
        self.cache = Cache(layers=[_RowLayer() for _ in range(model.config.num_hidden_layers)])
        self.recordings: _Recordings | None = None
        if prefix:
            self.feed([Row(pending=prefix)])
            for layer in self.cache.layers:
                layer.freeze_prefix(len(prefix))
            self.offset, self.slots = len(prefix), 0
        if new_recorder is not None:
            self.recordings = _Recordings(self, new_recorder)
            for layer in self.cache.layers:
                layer.spare = 1

    def feed(self, rows: Sequence[Row]) -> Tensor:
        """Feed what every row has pending; returns next-token logits, (rows, vocabulary) in float32."""
        longest = max(row.cached + len(row.pending) for row in rows)
        self.slots = max(self.slots, slots_for(longest, self.recordings is not None))
        logits = self.recordings.feed(rows) if self.recordings else None
        if logits is None:
            logits = self._feed(rows)
        for row in rows:
            row.cached += len(row.pending)
            row.pending = []
        return logits

    def close(self) -> None:
        """Let go of all recordings."""
        self.recordings = None

    def move(self, sources: list[int], targets: list[int]) -> None:
        """Copy what some rows have cached to the places of others."""
        for layer in self.cache.layers:
            layer.move(sources, targets)

    def logits(self, ids: Tensor, plan: _Plan) -> Tensor:
        """Pass a packed row, (n,); returns logits after each row's last token, (rows, vocabulary) in float32."""
        output = self.model(
            input_ids=ids[None],
            position_ids=plan.slots[None] + self.offset,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=plan.last,
            cache=self.cache,
            plan=plan,
        )
        return output.logits[0].float()

    def _feed(self, rows: Sequence[Row]) -> Tensor:
        ids, owners, slots, last, chunks = [], [], [], [], []
        for index, row in enumerate(rows):
            if len(row.pending) > 1:
                chunks.append((len(row.pending), index, len(ids), row.cached))
            ids += row.pending
            owners += [index] * len(row.pending)
            slots += range(row.cached, row.cached + len(row.pending))
            last.append(len(ids) - 1)
        device = self.model.device
        lengths = torch.tensor([row.cached + len(row.pending) for row in rows])
        visible = (torch.arange(self.slots) < lengths[:, None]).to(device)
        ids, *places = (torch.tensor(x, device=device) for x in (ids, owners, slots, last))
        return self.logits(ids, _Plan(*places, visible, tuple(self._grouped(chunks))))

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


class _Recordings:
    """The recorded passes of a batch, by their shape: (rows, chunks)."""

    def __init__(self, passes: Passes, new_recorder: NewRecorder):
        self.passes, self.new_recorder = passes, new_recorder
        self.record: Recorder | None = new_recorder()
        self.most = self.width = self.slots = 0  # rows of the largest batch and of those to come; places in a cache row
        self.met: Counter[tuple[int, int]] = Counter()
        self.made: dict[tuple[int, int], _Recorded] = {}

    def feed(self, rows: Sequence[Row]) -> Tensor | None:
        """As `Passes.feed`, by the smallest recording that holds these rows; None where there is none, or not yet."""
        if self.record is None:
            return None
        if self.slots < self.passes.slots:
            self._start_anew()
        shape = self._shape(rows)
        if shape is None:
            return None
        self.met[shape] += 1
        if self.met[shape] <= _MET:
            return None
        if shape not in self.made:
            self.made[shape] = _Recorded(self.passes, self.most, *shape)
        recorded = self.made[shape]
        recorded.fill(rows)
        try:
            recorded.replay = recorded.replay or self.record(recorded.run)
        except RuntimeError as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            print(f"recording a pass failed, going on without: {reason}", flush=True)
            self.record = None
            self.made.clear()
            return recorded.run()[: len(rows)]
        return recorded.replay()[: len(rows)]

    def _start_anew(self) -> None:
        """After the cache has grown: recordings know the smaller one, and a pool without graphs takes no new ones."""
        self.slots = self.passes.slots
        self.met.clear()
        self.made.clear()
        self.record = self.new_recorder()

    def _shape(self, rows: Sequence[Row]) -> tuple[int, int] | None:
        """(rows, chunks) of the smallest pass that holds what these rows have pending; None if it is not recorded."""
        self.most = self.most or len(rows)
        self.width = self.width or len(rows)
        while 2 * len(rows) <= self.width:
            self.width //= 2
        chunks = [len(row.pending) for row in rows if len(row.pending) > 1]
        if len(chunks) > _CHUNKS or max(chunks, default=0) > _CHUNK:
            return None
        return self.width, 1 << (len(chunks) - 1).bit_length() if chunks else 0


class _Recorded:
    """A pass of up to `rows` rows, of which up to `chunks` feed several tokens: its tensors keep shape and address.

    The packed row is a token for each row, then the chunks, 32 tokens each. What a pass does not use is padding, cached
    in row `spare`.
    """

    def __init__(self, passes: Passes, spare: int, rows: int, chunks: int):
        self.passes, self.spare, self.rows, self.chunks = passes, spare, rows, chunks
        self.tokens = rows + chunks * _CHUNK
        sizes = [self.tokens] * 3 + [rows] * 2 + [chunks, chunks * _CHUNK]
        self.input = torch.zeros(sum(sizes), dtype=torch.long, device=passes.model.device)
        self.parts = self.input.split(sizes)
        self.replay: Pass | None = None

    def fill(self, rows: Sequence[Row]) -> None:
        """Write what these rows have pending into the input: its parts are what `run` takes them for."""
        ids, owners, slots = [0] * self.tokens, [self.spare] * self.tokens, [0] * self.tokens
        last, lengths = list(range(self.rows)), [1] * self.rows
        chunk_rows, seen = [0] * self.chunks, [0] * (self.chunks * _CHUNK)
        chunk = 0
        for index, row in enumerate(rows):
            count, start = len(row.pending), index
            if count > 1:
                first = chunk * _CHUNK
                chunk_rows[chunk], seen[first : first + count] = index, range(row.cached, row.cached + count)
                start = self.rows + first
                chunk += 1
            own = slice(start, start + count)
            ids[own], owners[own], slots[own] = row.pending, [index] * count, range(row.cached, row.cached + count)
            last[index], lengths[index] = start + count - 1, row.cached + count
        self.input.copy_(torch.tensor([*ids, *owners, *slots, *last, *lengths, *chunk_rows, *seen]))

    def run(self) -> Tensor:
        """The pass, as tensor operations alone."""
        ids, owners, slots, last, lengths, chunk_rows, seen = self.parts
        places = torch.arange(self.passes.slots, device=self.input.device)
        chunks = ()
        if self.chunks:
            tokens = torch.arange(self.rows, self.tokens, device=self.input.device)
            visible = places <= seen.view(self.chunks, _CHUNK, 1)
            chunks = (_Chunks(chunk_rows, tokens.view(self.chunks, _CHUNK), tokens - self.rows, visible),)
        return self.passes.logits(ids, _Plan(owners, slots, last, places < lengths[:, None], chunks))


def new_recorder_on(device: torch.device) -> NewRecorder | None:
    """What makes a recorder: it records a pass of fixed shapes, and returns what replays it. None on a CPU."""
    return partial(cuda_graphs, device) if device.type == "cuda" else None


def cuda_graphs(device: torch.device) -> Recorder:
    """Records passes as CUDA graphs that share their memory: use what one returns before the next is replayed.

    A stream of its own: PyTorch frees the workspaces of a stream's matrix products with any graph that was recorded on
    it. And no garbage collection meanwhile: to free another graph would break the recording.
    """
    pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)

    def record(run: Pass) -> Pass:
        graph, before, collecting = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device), gc.isenabled()
        gc.disable()
        try:
            with torch.cuda.device(device), torch.cuda.graph(graph, pool=pool, stream=stream):
                output = run()
        finally:
            torch.cuda.set_stream(before)  # a recording that fails leaves its own
            if collecting:
                gc.enable()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay

    return record

"""How much memory a training, and a rollout, takes, told before it takes it.

Counts the tensors alive at the peak of a step of grouped DPO on LoRA adapters, for decoders of the Llama family. The
tests hold the count against what torch allocates on a CPU. A share of the free memory is left to allocators, libraries
and the gradients of Phi-3's fused matrices, which the count misses (13 % of its packs). Knows dimensions only.
"""

from bisect import bisect_right
from dataclasses import dataclass
from typing import Self

import torch
from peft import PeftModel
from transformers import PretrainedConfig, PreTrainedModel

from fcdpo_utils.engine.trees import LOGIT_CHUNK
from fcdpo_utils.settings import TrainingSettings

MARGIN = 0.08  # of the free memory: fragments between tensors, workspaces of CUDA's libraries
# NF4: half a byte, an 8-bit scale for 64 weights, a float32 scale for 256 of those scales (arXiv 2305.14314, section 3)
NF4_BYTES = 1 / 2 + 1 / 64 + 4 / (64 * 256)


@dataclass(frozen=True)
class ModelDims:
    """The numbers of a model's config.json. `tied`: the output head is the embedding; `biases`: attention has some.

    `window`: how many keys a token attends to, None for all; `head_dim`: a head's width where it is not hidden / heads.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    tied: bool = False
    biases: bool = False
    window: int | None = None
    head_dim: int | None = None

    @classmethod
    def of(cls, config: PretrainedConfig) -> Self | None:
        """The numbers of a configuration; None for what is no dense decoder like Llama, Mistral, Qwen2, Phi-3."""
        config = config.get_text_config()
        experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
        if experts or not hasattr(config, "intermediate_size"):
            return None
        heads, hidden, head_dim = config.num_attention_heads, config.hidden_size, getattr(config, "head_dim", None)
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        numbers = (config.num_hidden_layers, hidden, heads, kv_heads, config.intermediate_size, config.vocab_size)
        kinds = bool(config.tie_word_embeddings), config.model_type == "qwen2", getattr(config, "sliding_window", None)
        return cls(*numbers, *kinds, None if head_dim == hidden // heads else head_dim)

    def widths(self) -> tuple[int, int]:
        """Of what attention makes of a token: of all its queries, and of its keys (or its values)."""
        head = self.head_dim or self.hidden // self.heads
        return head * self.heads, head * self.kv_heads

    def parameters(self) -> tuple[int, int]:
        """Weights of the layers' matrices (quantised in 4 bits, adapted by LoRA), and all others (never quantised)."""
        query, key = self.widths()
        attention, biases = 2 * self.hidden * (query + key), query + 2 * key if self.biases else 0
        tables = (1 if self.tied else 2) * self.vocabulary * self.hidden
        others = tables + self.layers * (2 * self.hidden + biases) + self.hidden
        return self.layers * (attention + 3 * self.hidden * self.intermediate), others

    def weights_bytes(self, four_bit: bool, width: int = 2) -> int:
        """Memory of the frozen weights: the matrices in NF4, the rest (or all of them) in values of `width` bytes."""
        matrices, others = self.parameters()
        return round(matrices * (NF4_BYTES if four_bit else width) + others * width)


@dataclass(frozen=True)
class TrainingMemory:
    """The memory of a student's training, in bytes. `checkpointing`: only each layer's input is kept.

    `width`: bytes of a value in which products are computed; with 4 the figures are a few percent too high.
    """

    dims: ModelDims
    four_bit: bool
    rank: int
    checkpointing: bool
    width: int = 2

    @property
    def trainable(self) -> int:
        """Parameters of the adapters: `rank` times inputs and outputs of a layer's seven matrices."""
        dims = self.dims
        return dims.layers * self.rank * (7 * dims.hidden + 2 * sum(dims.widths()) + 3 * dims.intermediate)

    def fixed(self) -> int:
        """Adapters in float32, their gradient and Adam's two moments (16 bytes), and copies in the computing type."""
        return (16 + self.width) * self.trainable

    def pack(self, tokens: int, scored: int | None = None) -> int:
        """Activations of a pack of `tokens`, `scored` of them the policy's (None: all), at the peak of both passes."""
        dims, width = self.dims, self.width
        hidden, inner = dims.hidden, dims.intermediate
        # of a layer, per token: two norms in float32 with their results, queries, what attention gives, keys and
        # values, gate, its activation, up, their product, and what goes between the two matrices of each adapter
        mlp = 4 * width * inner
        layer = 8 * hidden + width * (2 * hidden + 2 * sum(dims.widths()) + 7 * self.rank) + mlp + 8
        # at the peak of its backward pass an MLP holds three gradients of its width, where one of its tensors is gone
        # already (or, in a short pack, one gradient and the matrix that was dequantised), a norm five in float32
        matrix = width * hidden * inner if self.four_bit else 0
        mlp_backward = tokens * width * hidden + max(tokens * 2 * width * inner, matrix + tokens * width * inner)
        norm_backward = tokens * 20 * hidden
        # the output head meets the scored tokens, some at a time: logits and their exponentials. All is float32, as the
        # trainer's mixed precision hands over the hidden states: so a copy of the head is there, too
        scored = tokens if scored is None else scored
        head = min(scored, LOGIT_CHUNK) * dims.vocabulary * 8 + (4 * tokens + 8 * scored) * hidden
        head += dims.vocabulary * hidden * 4 if width < 4 else 0
        if not self.checkpointing:
            return tokens * dims.layers * layer + max(mlp_backward, norm_backward, head)
        # one layer at a time is complete; at the norm in its middle, its MLP is gone
        backward = tokens * layer + max(mlp_backward, norm_backward - tokens * mlp)
        return tokens * dims.layers * width * hidden + max(backward, head)

    def total(self, tokens: int) -> int:
        """Weights, adapters and a pack of `tokens` together."""
        return self.dims.weights_bytes(self.four_bit, self.width) + self.fixed() + self.pack(tokens)

    def longest_pack(self, available: int) -> int:
        """How many tokens a pack may have with `available` bytes besides the frozen weights; 0 if none fits."""
        room = int(available * (1 - MARGIN)) - self.fixed()
        return bisect_right(range(1, 1 << 20), room, key=self.pack)  # nobody asks for a million tokens in one pack


def fit(model: PreTrainedModel | PeftModel, longest: int, training: TrainingSettings) -> TrainingSettings:
    """`training` with packs, and with the checkpointing that "auto" stands for, that fit the memory beside `model`.

    `longest`: tokens of the longest chat, which is never split; ValueError where it does not fit. Shorter packs are
    said in a line. What TRL's own trainer and other families take, nobody tells: on a GPU "auto" then checkpoints.
    """
    asked, available = training.gradient_checkpointing, available_bytes(model.device)
    dims, four_bit = ModelDims.of(model.config), bool(getattr(model, "is_loaded_in_4bit", False))
    if available is None or dims is None or training.trainer == "stock":
        on_a_gpu = available is not None
        return training.model_copy(update={"gradient_checkpointing": on_a_gpu if asked == "auto" else asked})
    wanted, room, checkpointing = max(training.pack_tokens, longest), 0, False
    for checkpointing in (False, True) if asked == "auto" else (asked,):
        memory = TrainingMemory(dims, four_bit, training.lora_rank, checkpointing, model.dtype.itemsize)
        room = memory.longest_pack(available)
        if room >= wanted:
            break
    left = f"the {available / 1e9:.1f} GB left beside the student hold {room} tokens at once"
    if room < longest:
        ways = [(checkpointing, "training.gradient_checkpointing=auto"), (four_bit, "student.four_bit=true")]
        way = next((way for used, way in ways if not used), "a smaller training.lora_rank, or a smaller student")
        raise ValueError(f"the longest chain has {longest} tokens, and {left}: try {way}")
    if room < wanted:
        print(f"training.pack_tokens: {room} in place of {training.pack_tokens}; {left}", flush=True)
    fitted = {"pack_tokens": min(room, training.pack_tokens), "gradient_checkpointing": checkpointing}
    return training.model_copy(update=fitted)


def chains_that_fit(model: PreTrainedModel, tokens: int, wanted: int) -> int:
    """How many chains of up to `tokens` advance together: as many as wanted, fewer where a GPU has no room for them."""
    available, dims = available_bytes(model.device), ModelDims.of(model.config)
    if available is None or dims is None:
        return wanted
    # keys and values in all layers, and one layer's again while it grows; what is small beside them is in the margin
    each = 2 * dims.widths()[1] * tokens * model.dtype.itemsize * (dims.layers + 1)
    found = max(1, int(available * (1 - MARGIN) / each))
    if found < wanted:
        print(f"{found} chains at a time in place of {wanted}: {available / 1e9:.1f} GB are left", flush=True)
    return min(found, wanted)


def available_bytes(device: torch.device) -> int | None:
    """What this process can still allocate on a GPU; None on a CPU, which swaps rather than fails."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    allocated = torch.cuda.memory_allocated(device)
    cached = torch.cuda.memory_reserved(device) - allocated
    capped = int(torch.cuda.get_per_process_memory_fraction(device) * total) - allocated
    return min(free + cached, capped)

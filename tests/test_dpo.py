"""The grouped DPO loss and its trainer as a specification; TRL's trainer on expanded pairs is the oracle."""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from hypothesis import example, given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from peft.helpers import disable_input_dtype_casting
from torch.nn.functional import logsigmoid
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from fcdpo_utils.dpo import (
    BlockDataset,
    GroupSampler,
    ReferenceCache,
    batch_log_probs,
    build_trainer,
    curve,
    float32_adapters,
    grouped_dpo_loss,
    last_checkpoint,
    lora_config,
    model_digest,
    pair_dataset,
    reference_log_probs,
)
from fcdpo_utils.preferences import Block
from fcdpo_utils.profiles import Settings, load_settings
from fcdpo_utils.tokens import Tokens
from fcdpo_utils.trees import tree_attention_in

REWARDS = st.lists(st.floats(-20, 20), min_size=1, max_size=6)


def chain(prompt: int, *tail: int) -> Tokens:
    """A prompt of four tokens, one policy token, one environment token, then policy tokens."""
    return Tokens((1, 9, prompt, 8, 30, 31, *tail), (False, False, False, False, True, False, *[True] * len(tail)), 4)


TOKENS = [chain(20, 40), chain(20, 41, 42), chain(20, 43), chain(20, 44, 45, 46), chain(21, 40), chain(21, 47, 48)]
BLOCKS = [Block("a", (0, 1), (2, 3)), Block("b", (4,), (5,))]
PAIRS = [(0, 2), (0, 3), (1, 2), (1, 3), (4, 5)]


def settings_of(*overrides: str) -> Settings:
    common = ["training.prompts_per_step=2", "training.save_steps=1", "training.learning_rate=0.01"]
    return load_settings("smoke", [*common, *overrides])


def blocks_of(settings: Settings) -> BlockDataset:
    caps = (settings.preferences.max_chosen, settings.preferences.max_rejected)
    return BlockDataset(TOKENS, BLOCKS, ["t", "t"], *caps, settings.training.block_weight, settings.seed)


def trainer_of(model, tokenizer: PreTrainedTokenizerBase, folder: Path, *overrides: str):
    settings = settings_of(*overrides)
    folder.mkdir(exist_ok=True)
    return build_trainer(model, tokenizer, blocks_of(settings), settings, folder, folder / "cache.jsonl", PAIRS)


@pytest.fixture
def student(tiny_model: LlamaForCausalLM) -> LlamaForCausalLM:
    return tiny_model.float()


# The loss


def test_an_untrained_policy_has_loss_log_2() -> None:
    assert grouped_dpo_loss(torch.zeros(3), torch.zeros(2)).item() == pytest.approx(0.6931, abs=1e-4)


@given(REWARDS, REWARDS, st.sampled_from([0.0, 0.1, 0.4]))
def test_the_grouped_loss_is_the_mean_over_all_pairs(
    chosen: list[float], rejected: list[float], smoothing: float
) -> None:
    w, l = torch.tensor(chosen, dtype=torch.float64), torch.tensor(rejected, dtype=torch.float64)
    terms = [-(1 - smoothing) * logsigmoid(a - b) - smoothing * logsigmoid(b - a) for a in w for b in l]
    assert grouped_dpo_loss(w, l, smoothing).item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-9)


@given(REWARDS, REWARDS)
def test_its_gradient_is_the_formula_of_the_method(chosen: list[float], rejected: list[float]) -> None:
    w = torch.tensor(chosen, dtype=torch.float64, requires_grad=True)
    l = torch.tensor(rejected, dtype=torch.float64)
    (got,) = torch.autograd.grad(grouped_dpo_loss(w, l), w)
    expected = -torch.sigmoid(l[None, :] - w.detach()[:, None]).sum(1) / (len(w) * len(l))
    assert torch.allclose(got, expected, rtol=1e-9, atol=1e-12)


# Blocks


def test_prompts_without_both_kinds_are_left_out() -> None:
    data = BlockDataset(TOKENS, [Block("x", (0,), ()), *BLOCKS], ["t"] * 3, 8, 8)
    assert len(data) == 2
    with pytest.raises(ValueError, match="no prompt has both"):
        BlockDataset(TOKENS, [Block("x", (0,), ())], ["t"], 8, 8)


def test_large_blocks_are_sampled_anew_each_epoch() -> None:
    data = BlockDataset(TOKENS, [Block("x", (0, 1), (2, 3, 4, 5))], ["t"], 1, 2)
    drawn = set()
    for epoch in range(20):
        data.set_epoch(epoch)
        item = data[0]
        assert (len(item["chosen"]), len(item["rejected"])) == (1, 2) and data[0] == item
        drawn.add((*item["chosen"], *item["rejected"]))
    assert len(drawn) > 5


def test_without_augmentation_the_same_chains_are_drawn_and_paired_in_order() -> None:
    wide = [Block("x", (0, 1), (2, 3, 4, 5))]
    augmented, original = (BlockDataset(TOKENS, wide, ["t"], 2, 3, all_pairs=pairs) for pairs in (True, False))
    assert original[0]["chosen"] == augmented[0]["chosen"] == [0, 1]
    assert original[0]["rejected"] == augmented[0]["rejected"][:2]
    assert BlockDataset(TOKENS, BLOCKS, ["t", "t"], 8, 8, "pairs", all_pairs=False).weights == [2 / 1.5, 1 / 1.5]


@given(st.lists(st.tuples(st.floats(-20, 20), st.floats(-20, 20)), min_size=1, max_size=6), st.sampled_from([0.0, 0.2]))
def test_the_loss_without_augmentation_is_the_mean_over_pairs_of_equal_place(
    pairs: list[tuple[float, float]], smoothing: float
) -> None:
    chosen, rejected = (torch.tensor(side, dtype=torch.float64) for side in zip(*pairs, strict=True))
    alone = [grouped_dpo_loss(w[None], l[None], smoothing) for w, l in zip(chosen, rejected, strict=True)]
    assert torch.allclose(grouped_dpo_loss(chosen, rejected, smoothing, False), torch.stack(alone).mean())


def test_weights_make_the_mean_over_all_pairs_of_the_data_set() -> None:
    assert BlockDataset(TOKENS, BLOCKS, ["t", "t"], 8, 8, "pairs").weights == [4 / 2.5, 1 / 2.5]
    assert BlockDataset(TOKENS, BLOCKS, ["t", "t"], 8, 8, "prompts").weights == [1.0, 1.0]


def test_batches_hold_one_task_each() -> None:
    groups = ["a"] * 10 + ["b"] * 7
    sampler = GroupSampler(BlockDataset(TOKENS, [Block("x", (0,), (2,))] * 17, groups, 8, 8), 4, seed=0)
    order = list(sampler)
    assert sorted(order) == list(range(17))
    batches = [order[i : i + 4] for i in range(0, 12, 4)]
    assert all(len({groups[i] for i in batch}) == 1 for batch in batches)
    sampler.set_epoch(1)
    assert list(sampler) != order


# Against expanded pairs


@st.composite
def ragged_blocks(draw: st.DrawFn) -> tuple[list[Tokens], int]:
    """(sequences, k): a prompt, then k chosen and some rejected chains, with environment tokens inside."""
    k, l = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    prompt = draw(st.lists(st.integers(3, 9), min_size=1, max_size=30))
    sequences = []
    for _ in range(k + l):
        body = draw(st.lists(st.tuples(st.integers(3, 9), st.booleans()), max_size=10))
        ids = (*prompt, *(i for i, _ in body), 10)
        sequences.append(Tokens(ids, (*[False] * len(prompt), *(p for _, p in body), True), len(prompt)))
    return sequences, k


def expanded_loss(model, sequences: list[Tokens], k: int, reference: torch.Tensor, beta: float) -> torch.Tensor:
    """The definition: every pair on its own, two passes each."""

    def log_prob(tokens: Tokens) -> torch.Tensor:
        log_probs = model(torch.tensor([tokens.ids])).logits[0].log_softmax(-1)
        return sum(log_probs[t - 1, tokens.ids[t]] for t in range(1, len(tokens.ids)) if tokens.policy[t])

    losses = [
        -logsigmoid(beta * (log_prob(sequences[w]) - reference[w]) - beta * (log_prob(sequences[r]) - reference[r]))
        for w in range(k)
        for r in range(k, len(sequences))
    ]
    return torch.stack(losses).mean()


@pytest.mark.parametrize("row_tokens", [10_000, 16], ids=["one-pass", "flat-memory"])
def test_loss_and_every_gradient_equal_those_of_expanded_pairs_in_fp32(
    student: LlamaForCausalLM, row_tokens: int
) -> None:
    torch.manual_seed(1)
    model = get_peft_model(student, lora_config(settings_of().training))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    parameters = [p for p in model.parameters() if p.requires_grad]

    same = Tokens((3, 10), (False, True), 1)  # as likely as the longer one: nothing to learn from this block

    @settings(max_examples=25, deadline=None)
    @given(ragged_blocks(), st.integers(0, 99))
    @example(([same, same, Tokens((3, 3, 10), (False, False, True), 1)], 2), 0)
    def check(block: tuple[list[Tokens], int], seed: int) -> None:
        sequences, k = block
        noise = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            now = batch_log_probs(model, sequences, 10_000)[0]
        reference = now + 5 * torch.randn(len(sequences), generator=noise)
        expected = expanded_loss(model, sequences, k, reference, beta=0.1)
        log_probs, _, _ = batch_log_probs(model, sequences, row_tokens)
        rewards = 0.1 * (log_probs - reference)
        got = grouped_dpo_loss(rewards[:k], rewards[k:])
        assert got.item() == pytest.approx(expected.item(), rel=1e-5)
        # Terms of equal size may cancel, down to zero: what is left then is the rounding of the terms.
        term = torch.autograd.grad(rewards[0], parameters, retain_graph=True)
        rounding = 1e-6 * torch.cat([t.flatten() for t in term]).norm()
        pairs = zip(torch.autograd.grad(got, parameters), torch.autograd.grad(expected, parameters), strict=True)
        for ours, theirs in pairs:
            assert (ours - theirs).norm() <= 1e-5 * theirs.norm() + rounding

    check()


@pytest.mark.parametrize("row_tokens", [10_000, 16], ids=["one-pass", "flat-memory"])
def test_the_loss_equals_trls_on_the_same_pairs_and_mask(
    student: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, row_tokens: int
) -> None:
    """TRL expands, pads and masks the pairs and computes the reference by itself, all in fp32."""
    trainer = trainer_of(student, tokenizer, tmp_path, "training.trainer=stock", "training.sft_weight=0")
    torch.manual_seed(1)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    trainer.model.eval()

    @settings(max_examples=25, deadline=None)
    @given(ragged_blocks())
    def check(block: tuple[list[Tokens], int]) -> None:
        sequences, k = block
        pairs = list(product(range(k), range(k, len(sequences))))
        with torch.no_grad():
            inputs = trainer.data_collator(list(pair_dataset(sequences, pairs)))
            theirs = trainer.compute_loss(trainer.model, inputs)
            now = batch_log_probs(trainer.model, sequences, row_tokens)[0]
            with trainer.model.disable_adapter():
                reference = batch_log_probs(trainer.model, sequences, row_tokens)[0]
        rewards = trainer.beta * (now - reference)
        assert grouped_dpo_loss(rewards[:k], rewards[k:]).item() == pytest.approx(theirs.item(), rel=1e-5)

    check()


def test_the_flat_memory_mode_splits_what_does_not_fit(student: LlamaForCausalLM) -> None:
    whole, tokens, passes = batch_log_probs(student, TOKENS, 10_000)
    split, more_tokens, more_passes = batch_log_probs(student, TOKENS, 12)
    assert passes == 1 and more_passes > 1 and more_tokens > tokens
    assert torch.allclose(whole, split, atol=1e-5)


def test_the_flat_memory_mode_says_so_once(
    student: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = trainer_of(student, tokenizer, tmp_path, "training.row_tokens=64", "training.epochs=2")
    trainer.settings = trainer.settings.model_copy(update={"row_tokens": 12})
    trainer.train()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "flat memory" in line]
    assert line.startswith("a batch exceeds training.row_tokens = 12: flat memory,")
    assert all(row["passes"] > 1 for row in trainer.state.log_history if "loss" in row)


def test_first_losses_and_metrics_equal_trls_on_the_same_pairs(
    student: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """One step over all pairs, mean over pairs; both start from the same adapter."""
    base = {name: value.clone() for name, value in student.state_dict().items()}
    rows = {}
    for kind, size in (("grouped", 2), ("stock", 5)):
        student.load_state_dict(base, strict=False)
        overrides = [f"training.trainer={kind}", f"training.prompts_per_step={size}", "training.sft_weight=0"]
        trainer = trainer_of(student, tokenizer, tmp_path / kind, *overrides, "training.block_weight=pairs")
        trainer.train()
        rows[kind] = curve(trainer)[0]
        student = trainer.model.unload()
    assert rows["grouped"]["loss"] == pytest.approx(math.log(2), rel=1e-5)
    for name in ("loss", "rewards/margins", "logps/chosen", "logps/rejected"):
        assert rows["grouped"][name] == pytest.approx(rows["stock"][name], rel=1e-4, abs=1e-5), name


def test_training_with_ours_and_with_trls_gives_the_same_adapter(
    student: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    weights = {}
    for kind, size in (("grouped", 2), ("stock", 5)):
        overrides = [f"training.trainer={kind}", f"training.prompts_per_step={size}", "training.sft_weight=0"]
        more = ["training.epochs=3", "training.block_weight=pairs"]
        trainer = trainer_of(student, tokenizer, tmp_path / kind, *overrides, *more)
        trainer.train()
        weights[kind] = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
        student = trainer.model.unload()
    moved = sum(float(w.norm()) for n, w in weights["grouped"].items() if "lora_B" in n)
    assert moved > 0.01
    for name, weight in weights["grouped"].items():
        assert torch.allclose(weight, weights["stock"][name], atol=2e-4), name


def test_environment_tokens_enter_no_stock_log_probability(tokenizer: PreTrainedTokenizerBase) -> None:
    (row,) = pair_dataset(TOKENS, [(1, 3)])
    assert row["prompt_ids"] == [1, 9, 20, 8]
    assert row["chosen_ids"] == [30, 31, 41, 42] and row["chosen_policy"] == [1, 0, 1, 1]
    assert row["rejected_ids"] == [30, 31, 44, 45, 46] and row["rejected_policy"] == [1, 0, 1, 1, 1]


# Reference cache


def test_reference_values_are_computed_once_per_distinct_completion(student: LlamaForCausalLM, tmp_path: Path) -> None:
    cache = ReferenceCache(tmp_path / "c.jsonl", model_digest(student))
    first = reference_log_probs(student, [*TOKENS, TOKENS[0]], cache, 100)
    assert len((tmp_path / "c.jsonl").read_text().splitlines()) == len(TOKENS)
    again = ReferenceCache(tmp_path / "c.jsonl", model_digest(student))

    class Untouchable(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, *_: object) -> None:
            raise AssertionError("a cached value was computed again")

    assert reference_log_probs(Untouchable(), [*TOKENS, TOKENS[0]], again, 100) == first


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line[:-9],
        lambda line: "not json",
        lambda line: json.dumps({**json.loads(line), "log_prob": -1.0}),
        lambda line: json.dumps({**json.loads(line), "key": "0" * 64}),
        lambda line: line.replace("log_prob", "logprob"),
    ],
    ids=["torn", "not-json", "altered-value", "altered-key", "other-field"],
)
def test_damaged_entries_are_computed_again(student: LlamaForCausalLM, tmp_path: Path, damage) -> None:
    path = tmp_path / "c.jsonl"
    first = reference_log_probs(student, TOKENS, ReferenceCache(path, "base"), 100)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], damage(lines[-1])]))
    cache = ReferenceCache(path, "base")
    assert len(cache.values) == len(TOKENS) - 1
    assert reference_log_probs(student, TOKENS, cache, 100) == pytest.approx(first, abs=1e-5)
    assert len(ReferenceCache(path, "base").values) == len(TOKENS)


def test_entries_of_another_model_are_not_used(student: LlamaForCausalLM, tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    reference_log_probs(student, TOKENS, ReferenceCache(path, model_digest(student)), 100)
    before = model_digest(student)
    with torch.no_grad():
        student.get_input_embeddings().weight[0, 0] += 1
    assert model_digest(student) != before
    other = ReferenceCache(path, model_digest(student))
    assert all(other.key(tokens) not in other.values for tokens in TOKENS)


# Training


def test_a_killed_run_resumes_to_the_weights_of_an_unbroken_one(
    student: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    class Killed(Exception):
        pass

    def weights(trainer) -> dict[str, torch.Tensor]:
        return {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}

    options = ("training.epochs=6", "training.prompts_per_step=1", "preferences.max_rejected=1")
    unbroken = trainer_of(student, tokenizer, tmp_path / "a", *options)
    unbroken.train()
    expected, rows = weights(unbroken), curve(unbroken)
    student = unbroken.model.unload()

    broken = trainer_of(student, tokenizer, tmp_path / "b", *options)
    step = broken.training_step

    def fail_at_seven(*args, **kwargs):
        if broken.state.global_step == 7:
            raise Killed
        return step(*args, **kwargs)

    broken.training_step = fail_at_seven
    with pytest.raises(Killed):
        broken.train()
    student = broken.model.unload()
    resumed = trainer_of(student, tokenizer, tmp_path / "b", *options)
    (tmp_path / "b" / "checkpoint-9999").mkdir()  # what a kill while saving leaves
    resumed.train(resume_from_checkpoint=last_checkpoint(tmp_path / "b"))
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(resumed).items())
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
        for name, weight in model.named_parameters():
            if "lora_B" in name:  # zero in a fresh adapter, and then A has no gradient
                torch.nn.init.normal_(weight, std=0.02)
        float32_adapters(model)
        with tree_attention_in(model), disable_input_dtype_casting(model):
            with torch.autocast("cpu", dtype, enabled=kind == dtype):
                rewards = 0.1 * batch_log_probs(model, TOKENS[:4], 10**6)[0]
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


def test_a_stock_run_with_label_smoothing_is_refused(
    student: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="label_smoothing"):
        trainer_of(student, tokenizer, tmp_path, "training.trainer=stock", "training.label_smoothing=0.1")


def test_adapters_are_trained_in_float32_whatever_the_base(student: LlamaForCausalLM) -> None:
    model = get_peft_model(student.to(torch.bfloat16), lora_config(settings_of().training))
    float32_adapters(model)
    kinds = {(p.requires_grad, p.dtype) for p in model.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}


def test_pairs_load_in_plain_datasets() -> None:
    assert isinstance(pair_dataset(TOKENS, PAIRS), Dataset) and len(pair_dataset(TOKENS, PAIRS)) == 5

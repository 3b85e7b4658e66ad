"""TRL's `DPOTrainer` with the grouped loss: the same options, log names, checkpoints and resume, another loss pass.

TRL's own trainer on the expanded pairs stays selectable (`training.trainer=stock`) and is the oracle of the tests.
Knows tokens and settings; nothing of tasks, chains' meaning, or what makes passes fast (see `plain.Engine`).
"""

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig, PeftModel
from peft.helpers import disable_input_dtype_casting
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainerState
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from fcdpo_utils.dataset import GroupBatch, GroupDataset, TaskSampler
from fcdpo_utils.loss import grouped_dpo_loss, log_odds, sft_loss
from fcdpo_utils.plain import Engine, ProgressCallback
from fcdpo_utils.preferences import Pair
from fcdpo_utils.settings import Settings, TrainingSettings
from fcdpo_utils.tokens import Tokens

_DATA = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


class GroupedDPOTrainer(DPOTrainer):
    """Trains on prompt groups. `reference`: log p_ref by index of the completion; `engine` computes the policy's."""

    def __init__(
        self, *args: Any, reference: dict[int, float], settings: TrainingSettings, engine: Engine, **kwargs: Any
    ):
        self.reference, self.settings, self.engine = reference, settings, engine
        self.said_flat_memory, self.totals = False, {"num_tokens": 0, "num_pairs": 0}
        self.groups: GroupDataset = kwargs.pop("train_dataset")
        rows = Dataset.from_dict({"group": list(range(len(self.groups)))})  # TRL insists on its type
        super().__init__(*args, train_dataset=rows, data_collator=self.groups.collate, **kwargs)
        if "ref" in self.model.peft_config:  # TRL's copy of an adapter that is trained further: we have its values
            self.model.delete_adapter("ref")

    def _prepare_dataset(self, *_: Any) -> GroupDataset:
        return self.groups  # tokenised already, once per chain

    def _get_train_sampler(self, train_dataset: GroupDataset | None = None) -> Sampler[int]:
        return TaskSampler(self.groups, self.settings.prompts_per_step, self.args.seed)  # however many share a step

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        with self.engine.while_training(model), disable_input_dtype_casting(model):
            return super().training_step(model, *args, **kwargs)

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool) -> Tensor:
        batch: GroupBatch = inputs["batch"]
        log_probs, tokens, passes = self.engine.log_probs(model, batch.sequences, self.settings.pack_tokens)
        if passes > 1:
            self._say_flat_memory(tokens, passes)
            self._metrics["train"]["passes"].append(passes)
        reference = log_probs.new_tensor([self.reference[index] for index in batch.completions])
        rewards, options, losses = self.beta * (log_probs - reference), self.settings, []
        lengths = log_probs.new_tensor([sum(sequence.policy) for sequence in batch.sequences])
        scores = {"sigmoid_norm": rewards / lengths, "orpo": log_odds(log_probs, lengths)}.get(options.loss, rewards)
        for chosen, rejected in batch.sides():
            loss = options.sft_weight * sft_loss(log_probs[chosen], lengths[chosen])
            if options.dpo_weight:
                paired = grouped_dpo_loss(scores[chosen], scores[rejected], self.groups.all_pairs, options.loss)
                loss = options.dpo_weight * paired + loss
            losses.append(loss)
        self._record(batch, log_probs.detach(), rewards.detach(), tokens)
        return torch.stack(losses).mean()

    def _say_flat_memory(self, tokens: int, passes: int) -> None:
        if not self.said_flat_memory:
            limit = f"exceeds training.pack_tokens = {self.settings.pack_tokens}: flat memory"
            print(f"a batch {limit}, {tokens} tokens in {passes} parts, each recomputed", flush=True)
        self.said_flat_memory = True

    def _record(self, batch: GroupBatch, log_probs: Tensor, rewards: Tensor, tokens: int) -> None:
        """TRL's metric names; means are over the pairs of all processes in one pass, then, as in TRL, over passes.

        Without rejected chains they are means over the chosen ones, and 0 for what only pairs have.
        """
        metrics, places = self._metrics["train"], range(len(rewards))
        pair_up = product if self.groups.all_pairs else zip
        pairs = [pair for w, l in batch.sides() for pair in pair_up(places[w], places[l])]
        sides = zip(*pairs, strict=True) if pairs else (places, [])
        chosen, rejected = (torch.tensor(side, device=rewards.device, dtype=torch.long) for side in sides)
        margins = rewards[chosen] - rewards[rejected] if pairs else rewards[rejected]
        values = {
            "rewards/chosen": rewards[chosen],
            "rewards/rejected": rewards[rejected],
            "rewards/margins": margins,
            "rewards/accuracies": margins > 0,
            "logps/chosen": log_probs[chosen],
            "logps/rejected": log_probs[rejected],
        }
        counts = torch.tensor([tokens, len(pairs), len(chosen)], dtype=torch.float64, device=rewards.device)
        sums = torch.stack([value.double().sum() for value in values.values()])
        all_tokens, all_pairs, all_chosen, *totals = self.accelerator.reduce(torch.cat([counts, sums])).tolist()
        for name, count in (("num_tokens", all_tokens), ("num_pairs", all_pairs)):
            logged = max((row.get(name, 0) for row in self.state.log_history), default=0)  # before a kill, perhaps
            self.totals[name] = int(max(self.totals[name], logged) + count)
            metrics[name] = [self.totals[name]]
        for name, total in zip(values, totals, strict=True):
            metrics[name].append(total / all_chosen)


# ---- TRL's own trainer


class PolicyMaskCollator(DataCollatorForPreference):
    """TRL's pair collator with the environment's tokens taken out of `completion_mask`.

    Rows carry `chosen_policy` and `rejected_policy`, one flag per completion token:

        prompt_ids [1, 2], chosen_ids [3, 4, 5], chosen_policy [1, 0, 1] -> completion_mask [0, 0, 1, 0, 1]
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        output = super().torch_call(examples)
        sides = [(example, "chosen") for example in examples] + [(example, "rejected") for example in examples]
        for row, (example, side) in enumerate(sides):
            start, flags = len(example["prompt_ids"]), torch.tensor(example[f"{side}_policy"])
            output["completion_mask"][row, start : start + len(flags)] *= flags
        return output


class StockDPOTrainer(DPOTrainer):
    """TRL's trainer on expanded pairs that were tokenised beforehand, with the environment's tokens masked."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset


def pair_dataset(tokens: Sequence[Tokens], pairs: Sequence[Pair]) -> Dataset:
    """Expanded (chosen, rejected) pairs in the columns of TRL's collator, plus the policy flags."""

    def row(chosen: Tokens, rejected: Tokens) -> dict[str, list[int]]:
        start = min(chosen.prompt_length, rejected.prompt_length)
        columns = {"prompt_ids": list(chosen.ids[:start])}
        for side, sequence in (("chosen", chosen), ("rejected", rejected)):
            columns[f"{side}_ids"] = list(sequence.ids[start:])
            columns[f"{side}_policy"] = [int(flag) for flag in sequence.policy[start:]]
        return columns

    return Dataset.from_list([row(tokens[chosen], tokens[rejected]) for chosen, rejected in pairs])


# ---- building either


def distributed_state(**options: Any) -> PartialState:
    """This process among those that `accelerate launch` started, or alone; `options` count in the first call.

    Without a GPU accelerate sees the others only where it is told that the CPU is meant.
    """
    return PartialState(cpu=not torch.cuda.is_available(), **options)


def share_of_a_step(training: TrainingSettings, count: int) -> tuple[int, int]:
    """(batch size, gradient accumulation steps) of each of `count` processes, which take a step together.

    Raises ValueError where a step's prompts cannot be shared evenly.
    """
    together = training.prompts_per_step * training.accumulation
    if together % count:
        product_of = "training.prompts_per_step x training.accumulation"
        raise ValueError(f"{product_of} is {together}: choose a multiple of {count}, the number of processes")
    prompts = math.gcd(training.prompts_per_step, together // count)
    return prompts, together // count // prompts


def training_arguments(settings: Settings, output_dir: Path, steps: int, dtype: torch.dtype) -> DPOConfig:
    """TRL's configuration for these settings; mixed precision only where the device profits from it."""
    training, cuda = settings.training, torch.cuda.is_available()
    batch_size, accumulation = share_of_a_step(training, distributed_state().num_processes)
    args = DPOConfig(
        output_dir=str(output_dir),
        learning_rate=training.learning_rate,
        warmup_steps=math.ceil(training.warmup * steps),
        num_train_epochs=training.epochs,
        max_steps=training.steps or -1,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        beta=training.beta,
        loss_type=[training.loss, "sft"],
        loss_weights=[training.dpo_weight, training.sft_weight],
        bf16=dtype == torch.bfloat16,
        fp16=cuda and dtype == torch.float16,
        use_cpu=not cuda,
        gradient_checkpointing=training.gradient_checkpointing is True,  # what "auto" stands for: `Engine.fit`
        dataloader_pin_memory=cuda,
        save_steps=training.save_steps,
        seed=settings.seed,
        report_to=settings.report_to,
        **_DATA["fixed"],
    )
    args._n_gpu = min(args.n_gpu, 1)  # the student is on one; TRL refuses to see two, as on Kaggle's 2xT4
    return args


def build_trainer(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    groups: GroupDataset,
    settings: Settings,
    output_dir: Path,
    cache: Path,
    engine: Engine,
    progress: ProgressCallback = lambda done, total: None,
) -> DPOTrainer:
    """The trainer that `settings.training.trainer` names, ready to `train()`.

    The reference is `model` as it is given (or 0, where `training.dpo_weight` is): a base model, which gets a fresh
    adapter, or one with a trainable adapter, which is trained further. grouped trains on `groups`, stock on all their
    pairs; the engine may keep references in the file `cache`. Raises ValueError where a chat does not fit into memory.
    """
    training, stock = settings.training, settings.training.trainer == "stock"
    data = pair_dataset(groups.tokens, groups.pairs()) if stock else groups
    share = training.prompts_per_step * training.accumulation / len(data)  # of an epoch, in a step
    steps = training.steps or math.ceil(training.epochs / share)
    used = groups.used_completions(math.ceil(steps * share if training.steps else training.epochs))
    training = engine.fit(model, max(len(groups.tokens[index].ids) for index in used), training)
    settings = settings.model_copy(update={"training": training})
    args = training_arguments(settings, output_dir, steps, model.dtype)
    fresh, given = lora_config(training), {}
    if isinstance(model, PeftModel):
        float32_adapters(model)
        fresh, given = None, {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    common = {"model": model, "args": args, "train_dataset": data, "processing_class": tokenizer, "peft_config": fresh}
    torch.manual_seed(settings.seed)  # the adapters' initial weights
    if stock:
        trainer = StockDPOTrainer(data_collator=PolicyMaskCollator(pad_token_id=tokenizer.pad_token_id), **common)
    else:
        values, sequences = [0.0] * len(used), [groups.tokens[index] for index in used]
        mixed = isinstance(model, PeftModel) and model.dtype != torch.float32  # adapters compute in the base's type
        as_in_training = torch.autocast(model.device.type, model.dtype, enabled=mixed)
        if training.dpo_weight:  # the first process stores them for the others
            with distributed_state().main_process_first(), disable_input_dtype_casting(model), as_in_training:
                values = engine.reference_log_probs(model, sequences, training.pack_tokens, cache, progress)
        reference = dict(zip(used, values, strict=True))
        trainer = GroupedDPOTrainer(reference=reference, settings=training, engine=engine, **common)
    float32_adapters(trainer.model)
    for name, weight in given.items():  # TRL rounds the adapters of quantised models
        trainer.model.get_parameter(name).data.copy_(weight)
    return trainer


def lora_config(training: TrainingSettings) -> LoraConfig:
    """LoRA on every linear layer but the output head."""
    return LoraConfig(
        r=training.lora_rank, lora_alpha=training.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def float32_adapters(model: nn.Module) -> None:
    """Keep trainable weights in float32; autocast still computes products in the base model's type.

    Small updates vanish in bf16 weights, the fp16 gradient scaler refuses any but float32, and TRL casts the adapters
    of quantised models to bf16 unconditionally.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def last_checkpoint(folder: Path) -> str | None:
    """The newest complete checkpoint in `folder`; one that a kill left half-written is passed over."""
    complete = []
    for path in folder.glob("checkpoint-*/trainer_state.json"):  # written last
        with suppress(ValueError):
            json.loads(path.read_text(encoding="utf-8"))
            complete.append(path.parent)
    return str(max(complete, key=lambda path: int(path.name.rpartition("-")[2]))) if complete else None


class StepProgress(TrainerCallback):
    """Reports optimiser steps to a progress callback."""

    def __init__(self, progress: ProgressCallback):
        self.progress = progress

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        self.progress(state.global_step, state.max_steps)


def curve(trainer: DPOTrainer) -> list[dict[str, float]]:
    """One row per logged step, resumed runs included: step, loss, margins, chosen and rejected log-probabilities."""
    logged = [row for row in trainer.state.log_history if "loss" in row]
    totals = [{name: int(row.get(name, 0)) for name in ("num_tokens", "num_pairs")} for row in logged]
    return [{name: row[name] for name in _DATA["curve"]} | total for row, total in zip(logged, totals, strict=True)]

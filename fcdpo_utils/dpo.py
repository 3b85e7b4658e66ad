"""DPO on all pairs of a prompt, for the price of its distinct tokens.

For a prompt with correct completions W and incorrect ones L, direct preference optimisation (arXiv 2305.18290, eq. 7)
on the augmented set Da means

    s_w = beta * (log p(w) - log p_ref(w)),  s_l likewise,  loss = mean over W x L of -log sigmoid(s_w - s_l).

The loss depends on |W| + |L| log-probabilities only, so each completion is passed once (and what completions share,
once: see `trees`), not once per pair. `GroupedDPOTrainer` is TRL's `DPOTrainer` with that loss; TRL's own trainer on
the expanded pairs stays selectable and is the oracle of the tests. Knows nothing of tasks or chains' meaning.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig, PeftModel
from peft.helpers import disable_input_dtype_casting
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torch.utils.checkpoint import checkpoint
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback, TrainerState
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from fcdpo_utils import store
from fcdpo_utils.memory import TrainingMemory, available_bytes
from fcdpo_utils.preferences import Block
from fcdpo_utils.profiles import Settings, TrainingSettings
from fcdpo_utils.students import Shape
from fcdpo_utils.tokens import Tokens
from fcdpo_utils.trees import TokenTree, build_tree, sequence_log_probs, tree_attention_in

Progress = Callable[[int, int], None]


def grouped_dpo_loss(chosen: Tensor, rejected: Tensor, label_smoothing: float = 0.0, all_pairs: bool = True) -> Tensor:
    """Mean DPO loss over all pairs of one prompt, or (D*) over the pairs of equal place.

    chosen: (k,), rejected: (l,), the rewards s = beta * (log p - log p_ref). Returns a scalar. With label smoothing
    e the pair counts as wrong with probability e (conservative DPO). Equal rewards give log 2 = 0.6931.
    """
    margins = chosen[:, None] - rejected[None, :] if all_pairs else chosen - rejected
    loss = -(1 - label_smoothing) * logsigmoid(margins)
    if label_smoothing:
        loss = loss - label_smoothing * logsigmoid(-margins)
    return loss.mean()


# ---- blocks as a data set


@dataclass(frozen=True)
class BlockBatch:
    """Some prompts with their completions. Sequences are numbered block by block, chosen before rejected.

    `sequences`: tokenised chats. `completions`: their indices in the data set. `sizes`: (k, l) of each block.
    `weights`: how much each block counts, 1 on average over the data set.
    """

    sequences: tuple[Tokens, ...]
    completions: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    weights: tuple[float, ...]

    def rows(self) -> Iterator[tuple[slice, slice]]:
        """The chosen and the rejected rows of each block."""
        start = 0
        for k, l in self.sizes:
            yield slice(start, start + k), slice(start + k, start + k + l)
            start += k + l


class BlockDataset(torch.utils.data.Dataset):
    """One item per prompt that has both kinds; large blocks are sampled anew each epoch.

    `tokens`: the tokenised chat of every completion. `groups`: the task of each block; a batch holds one task, so
    that its prompts share their instructions. `all_pairs`: of the chains drawn, as in Da; else (D*) they are paired in
    order, and those left over are not used.
    """

    def __init__(
        self,
        tokens: Sequence[Tokens],
        blocks: Sequence[Block],
        groups: Sequence[str],
        max_chosen: int,
        max_rejected: int,
        weight: str = "prompts",
        seed: int = 0,
        all_pairs: bool = True,
    ):
        kept = [(block, group) for block, group in zip(blocks, groups, strict=True) if block.usable]
        if not kept:
            raise ValueError("no prompt has both a correct and an incorrect chain; more teacher.samples may help")
        self.tokens, self.seed, self.epoch, self.all_pairs = tokens, seed, 0, all_pairs
        self.blocks = [block for block, _ in kept]
        self.groups = [group for _, group in kept]
        self.caps = (max_chosen, max_rejected)
        count = math.prod if all_pairs else min
        pairs = [count((len(block.chosen), len(block.rejected))) for block in self.blocks]
        mean = sum(pairs) / len(pairs)
        self.weights = [count / mean if weight == "pairs" else 1.0 for count in pairs]

    def __len__(self) -> int:
        return len(self.blocks)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index >= len(self):
            raise IndexError(index)  # ends iteration
        block, rng = self.blocks[index], random.Random(f"{self.seed}/{self.epoch}/{index}")
        picked = [
            sorted(rng.sample(indices, cap)) if len(indices) > cap else list(indices)
            for indices, cap in zip((block.chosen, block.rejected), self.caps, strict=True)
        ]
        if not self.all_pairs:
            picked = [side[: min(map(len, picked))] for side in picked]
        return {"chosen": picked[0], "rejected": picked[1], "weight": self.weights[index]}

    def used_completions(self, epochs: int) -> list[int]:
        """Indices of all completions that are drawn in so many epochs."""
        before, used = self.epoch, {}
        for epoch in range(epochs):
            self.set_epoch(epoch)
            used |= {index: None for item in self for index in (*item["chosen"], *item["rejected"])}
        self.set_epoch(before)
        return list(used)

    def collate(self, items: list[dict[str, Any]]) -> dict[str, BlockBatch]:
        indices = [index for item in items for index in (*item["chosen"], *item["rejected"])]
        sizes = tuple((len(item["chosen"]), len(item["rejected"])) for item in items)
        sequences = tuple(self.tokens[index] for index in indices)
        return {"batch": BlockBatch(sequences, tuple(indices), sizes, tuple(item["weight"] for item in items))}


class GroupSampler(Sampler[int]):
    """Indices in random order such that each run of `batch_size` of them is of one group where it can be."""

    def __init__(self, blocks: BlockDataset, batch_size: int, seed: int):
        self.blocks, self.batch_size, self.seed = blocks, batch_size, seed

    def __len__(self) -> int:
        return len(self.blocks)

    def set_epoch(self, epoch: int) -> None:
        """Also tells the data set, which draws from large blocks anew each epoch."""
        self.blocks.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        rng = random.Random(f"{self.seed}/{self.blocks.epoch}")
        whole, rest = [], []
        for group in sorted(set(self.blocks.groups)):
            members = [index for index, name in enumerate(self.blocks.groups) if name == group]
            rng.shuffle(members)
            full = len(members) - len(members) % self.batch_size
            whole += [members[i : i + self.batch_size] for i in range(0, full, self.batch_size)]
            rest += members[full:]
        rng.shuffle(whole)
        yield from (index for batch in whole for index in batch)
        yield from rest


# ---- log-probabilities


def split_rows(sequences: Sequence[Tokens], row_tokens: int) -> list[tuple[TokenTree, slice]]:
    """Trees of consecutive sequences, each of at most `row_tokens` tokens where one sequence alone fits."""
    parts, start = [], 0
    while start < len(sequences):
        stop, tree = start + 1, build_tree(sequences[start : start + 1])
        while stop < len(sequences):
            larger = build_tree(sequences[start : stop + 1])
            if len(larger) > row_tokens:
                break
            stop, tree = stop + 1, larger
        parts.append((tree, slice(start, stop)))
        start = stop
    return parts


def batch_log_probs(model: nn.Module, sequences: Sequence[Tokens], row_tokens: int) -> tuple[Tensor, int, int]:
    """Log-probability of each sequence, (sequences,); the tokens passed; and in how many passes.

    Flat memory: what does not fit in one row is split, each part's activations are dropped and computed again in its
    own backward pass. That is "log-probabilities first, then one weighted backward per part", the same gradient.
    """
    device = next(model.parameters()).device
    whole = build_tree(sequences)
    if len(whole) <= row_tokens:
        return sequence_log_probs(model, whole.to(device)), len(whole), 1
    parts = split_rows(sequences, row_tokens)
    log_probs = [checkpoint(sequence_log_probs, model, tree.to(device), use_reentrant=False) for tree, _ in parts]
    return torch.cat(log_probs), sum(len(tree) for tree, _ in parts), len(parts)


class ReferenceCache:
    """Reference log-probabilities on disk, keyed by content: base weights and tokens.

    Reused across seeds, ranks and runs. Lines that are torn, altered or of another model are passed over, so their
    values are computed again.
    """

    def __init__(self, path: Path, base: str):
        self.path, self.base = path, base
        path.parent.mkdir(parents=True, exist_ok=True)
        self.values: dict[str, float] = {}
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        for line in lines:
            try:
                record = json.loads(line)
                key, value, check = record["key"], float(record["log_prob"]), record["check"]
            except (ValueError, KeyError, TypeError):
                continue
            if check == self._check(key, value) and math.isfinite(value):
                self.values[key] = value

    def key(self, tokens: Tokens) -> str:
        return store.digest(self.base, str(tokens.ids), str(tokens.policy))

    def _check(self, key: str, value: float) -> str:
        return store.digest(key, repr(value))[:16]

    def add(self, sequences: Sequence[Tokens], log_probs: Sequence[float]) -> None:
        new = dict(zip(map(self.key, sequences), log_probs, strict=True))
        self.values |= new
        if _is_torn(self.path):
            store.write(self.path, self.path.read_text(encoding="utf-8", errors="replace") + "\n")
        store.append(self.path, ({"key": k, "log_prob": v, "check": self._check(k, v)} for k, v in new.items()))

    def __getitem__(self, tokens: Tokens) -> float:
        return self.values[self.key(tokens)]


def _is_torn(path: Path) -> bool:
    """Whether a file ends within a line."""
    if not path.exists() or not path.stat().st_size:
        return False
    with open(path, "rb") as file:
        file.seek(-1, 2)
        return file.read() != b"\n"


def model_digest(model: PreTrainedModel | PeftModel) -> str:
    """SHA-256 over the names, types and bytes of all weights, an adapter's included."""
    parts: list[str | bytes] = []
    for name, weight in sorted(model.state_dict().items()):
        if isinstance(weight, Tensor):
            flat = weight.detach().cpu().contiguous().flatten()
            parts += [name, str(weight.dtype), store.digest(flat.view(torch.uint8).numpy().tobytes())]
    return store.digest(*parts)


def reference_log_probs(
    model: nn.Module,
    sequences: Sequence[Tokens],
    cache: ReferenceCache,
    row_tokens: int,
    progress: Progress = lambda done, total: None,
) -> list[float]:
    """Log-probability of each sequence under `model` as it stands, computed where the cache has none."""
    missing = [s for s in {cache.key(s): s for s in sequences}.values() if cache.key(s) not in cache.values]
    parts, done = split_rows(missing, row_tokens), len(sequences) - len(missing)
    device = next(model.parameters()).device
    with torch.no_grad():
        for tree, part in parts:
            cache.add(missing[part], sequence_log_probs(model, tree.to(device)).tolist())
            done += part.stop - part.start
            progress(done, len(sequences))
    return [cache[s] for s in sequences]


# ---- trainers


class GroupedDPOTrainer(DPOTrainer):
    """TRL's DPO trainer on blocks: the same options, log names, checkpoints and resume, another loss pass."""

    def __init__(self, *args: Any, reference: dict[int, float], settings: TrainingSettings, **kwargs: Any):
        self.reference, self.settings, self.said_flat_memory = reference, settings, False
        self._total_train_pairs = 0
        self.blocks: BlockDataset = kwargs.pop("train_dataset")
        rows = Dataset.from_dict({"block": list(range(len(self.blocks)))})  # TRL insists on its type
        super().__init__(*args, train_dataset=rows, data_collator=self.blocks.collate, **kwargs)
        if "ref" in self.model.peft_config:  # TRL's copy of an adapter that is trained further: we have its values
            self.model.delete_adapter("ref")

    def _prepare_dataset(self, *_: Any) -> BlockDataset:
        return self.blocks  # tokenised already, once per chain

    def _get_train_sampler(self, train_dataset: BlockDataset | None = None) -> Sampler[int]:
        return GroupSampler(self.blocks, self.settings.prompts_per_step, self.args.seed)  # however many share a step

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        with tree_attention_in(model), disable_input_dtype_casting(model):
            return super().training_step(model, *args, **kwargs)

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool) -> Tensor:
        batch: BlockBatch = inputs["batch"]
        log_probs, tokens, passes = batch_log_probs(model, batch.sequences, self.settings.row_tokens)
        if passes > 1:
            self._say_flat_memory(tokens, passes)
        reference = log_probs.new_tensor([self.reference[index] for index in batch.completions])
        rewards = self.beta * (log_probs - reference)
        lengths = log_probs.new_tensor([sum(sequence.policy) for sequence in batch.sequences])
        losses = [
            weight
            * (
                self.settings.dpo_weight
                * grouped_dpo_loss(
                    rewards[chosen], rewards[rejected], self.settings.label_smoothing, self.blocks.all_pairs
                )
                - self.settings.sft_weight * log_probs[chosen].sum() / lengths[chosen].sum()
            )
            for (chosen, rejected), weight in zip(batch.rows(), batch.weights, strict=True)
        ]
        self._record(batch, log_probs.detach(), rewards.detach(), tokens)
        return torch.stack(losses).mean()

    def _say_flat_memory(self, tokens: int, passes: int) -> None:
        """Once in words, then in TRL's metrics."""
        if not self.said_flat_memory:
            limit = f"training.row_tokens = {self.settings.row_tokens}"
            print(
                f"a batch exceeds {limit}: flat memory, {tokens} tokens in {passes} parts, each recomputed", flush=True
            )
        self.said_flat_memory = True
        self._metrics["train"]["passes"].append(passes)

    def _record(self, batch: BlockBatch, log_probs: Tensor, rewards: Tensor, tokens: int) -> None:
        """TRL's metric names; means are over the pairs of all processes in one pass, then, as in TRL, over passes."""
        metrics = self._metrics["train"]
        pair_up = product if self.blocks.all_pairs else zip
        pairs = [pair for sides in batch.rows() for pair in pair_up(*map(_indices, sides))]
        chosen, rejected = (torch.tensor(side, device=rewards.device) for side in zip(*pairs, strict=True))
        margins = rewards[chosen] - rewards[rejected]
        values = {
            "rewards/chosen": rewards[chosen],
            "rewards/rejected": rewards[rejected],
            "rewards/margins": margins,
            "rewards/accuracies": margins > 0,
            "logps/chosen": log_probs[chosen],
            "logps/rejected": log_probs[rejected],
        }
        counts = torch.tensor([tokens, len(pairs)], dtype=torch.float64, device=rewards.device)
        sums = torch.stack([value.double().sum() for value in values.values()])
        total_tokens, total_pairs, *totals = self.accelerator.reduce(
            torch.cat([counts, sums])
        ).tolist()  # all processes
        self._total_train_tokens = max(self._total_train_tokens, self._logged("num_tokens")) + int(total_tokens)
        self._total_train_pairs = max(self._total_train_pairs, self._logged("num_pairs")) + int(total_pairs)
        metrics["num_tokens"], metrics["num_pairs"] = [self._total_train_tokens], [self._total_train_pairs]
        for name, total in zip(values, totals, strict=True):
            metrics[name].append(total / total_pairs)

    def _logged(self, name: str) -> int:
        """The last total of that name, of a run that was killed."""
        return int(max((row.get(name, 0) for row in self.state.log_history), default=0))


def _indices(rows: slice) -> range:
    return range(rows.start, rows.stop)


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

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = [*self._signature_columns, "chosen_policy", "rejected_policy"]


def pair_dataset(tokens: Sequence[Tokens], pairs: Sequence[tuple[int, int]]) -> Dataset:
    """Expanded (chosen, rejected) pairs in the columns of TRL's collator, plus the policy flags."""

    def row(chosen: Tokens, rejected: Tokens) -> dict[str, list[int]]:
        start = min(chosen.prompt_length, rejected.prompt_length)
        return {
            "prompt_ids": list(chosen.ids[:start]),
            "chosen_ids": list(chosen.ids[start:]),
            "rejected_ids": list(rejected.ids[start:]),
            "chosen_policy": [int(flag) for flag in chosen.policy[start:]],
            "rejected_policy": [int(flag) for flag in rejected.policy[start:]],
        }

    return Dataset.from_list([row(tokens[chosen], tokens[rejected]) for chosen, rejected in pairs])


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
        adam_beta2=0.99,  # runs of a few hundred steps: the default 0.999 would remember the first gradients throughout
        lr_scheduler_type="linear",
        warmup_steps=math.ceil(training.warmup * steps),
        num_train_epochs=training.epochs,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        beta=training.beta,
        loss_type=["sigmoid", "sft"],
        loss_weights=[training.dpo_weight, training.sft_weight],
        max_length=None,
        bf16=dtype == torch.bfloat16,
        fp16=cuda and dtype == torch.float16,
        use_cpu=not cuda,
        gradient_checkpointing=training.gradient_checkpointing is True,  # what "auto" stands for: `fit_to_device`
        dataloader_pin_memory=cuda,
        logging_steps=1,
        save_steps=training.save_steps,
        save_total_limit=1,
        # a collective in every forward pass: processes that split batches into different numbers of parts would hang
        ddp_broadcast_buffers=False,
        seed=settings.seed,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=training.trainer == "stock",
    )
    args._n_gpu = min(args.n_gpu, 1)  # the student is on one; TRL refuses to see two, as on Kaggle's 2xT4
    return args


def fit_to_device(model: PreTrainedModel | PeftModel, longest: int, training: TrainingSettings) -> TrainingSettings:
    """`training` with rows, and with the checkpointing that "auto" stands for, that fit the memory beside `model`.

    `longest`: tokens of the longest chat, which is never split. Says in one line where rows become shorter than asked.
    Raises ValueError where the longest chat does not fit. What TRL's own trainer takes, and students of other families,
    nobody tells: on a GPU "auto" then checkpoints.
    """
    asked, available = training.gradient_checkpointing, available_bytes(model.device)
    shape, four_bit = Shape.of(model.config), bool(getattr(model, "is_loaded_in_4bit", False))
    if available is None or shape is None or training.trainer == "stock":
        on_a_gpu = available is not None
        return training.model_copy(update={"gradient_checkpointing": on_a_gpu if asked == "auto" else asked})
    wanted, room, checkpointing = max(training.row_tokens, longest), 0, False
    for checkpointing in (False, True) if asked == "auto" else (asked,):
        memory = TrainingMemory(shape, four_bit, training.lora_rank, checkpointing, model.dtype.itemsize)
        room = memory.longest_row(available)
        if room >= wanted:
            break
    left = f"the {available / 1e9:.1f} GB left beside the student hold {room} tokens at once"
    if room < longest:
        ways = [
            *(() if checkpointing else ("training.gradient_checkpointing=auto",)),
            *(() if four_bit else ("student.four_bit=true",)),
            "a smaller training.lora_rank, or a smaller student",
        ]
        raise ValueError(f"the longest chain has {longest} tokens, and {left}: try {ways[0]}")
    if room < wanted:
        print(f"training.row_tokens: {room} in place of {training.row_tokens}; {left}", flush=True)
    return training.model_copy(
        update={"row_tokens": min(room, training.row_tokens), "gradient_checkpointing": checkpointing}
    )


def lora_config(training: TrainingSettings) -> LoraConfig:
    """LoRA on every linear layer but the output head."""
    return LoraConfig(
        r=training.lora_rank, lora_alpha=training.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def build_trainer(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    blocks: BlockDataset,
    settings: Settings,
    output_dir: Path,
    cache: Path,
    pairs: Sequence[tuple[int, int]],
    progress: Progress = lambda done, total: None,
) -> DPOTrainer:
    """The trainer that `settings.training.trainer` names, ready to `train()`.

    The reference is `model` as it is given: a base model, which gets a fresh adapter, or one with a trainable adapter,
    which is trained further. grouped trains on `blocks`, stock on the expanded `pairs`. Reference log-probabilities of
    the grouped trainer come from, and go to, the file `cache`.
    """
    used = blocks.used_completions(math.ceil(settings.training.epochs))
    training = fit_to_device(model, max(len(blocks.tokens[index].ids) for index in used), settings.training)
    settings = settings.model_copy(update={"training": training})
    items = len(blocks) if training.trainer == "grouped" else len(pairs)
    per_step = training.prompts_per_step * training.accumulation
    args = training_arguments(settings, output_dir, math.ceil(items * training.epochs / per_step), model.dtype)
    adapter, given = lora_config(training), {}
    if isinstance(model, PeftModel):
        float32_adapters(model)
        adapter, given = None, {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    common = {"model": model, "args": args, "processing_class": tokenizer, "peft_config": adapter}
    torch.manual_seed(settings.seed)  # the adapters' initial weights
    if training.trainer == "stock":
        if training.label_smoothing:
            raise ValueError("setting training.label_smoothing: TRL's sigmoid loss has none; use trainer=grouped or 0")
        collator = PolicyMaskCollator(pad_token_id=tokenizer.pad_token_id)
        trainer = StockDPOTrainer(train_dataset=pair_dataset(blocks.tokens, pairs), data_collator=collator, **common)
    else:
        sequences = [blocks.tokens[index] for index in used]
        with distributed_state().main_process_first(), _as_in_training(model):  # the others read what it has stored
            reference_cache = ReferenceCache(cache, model_digest(model))
            values = reference_log_probs(model, sequences, reference_cache, training.row_tokens, progress)
        reference = dict(zip(used, values, strict=True))
        trainer = GroupedDPOTrainer(train_dataset=blocks, reference=reference, settings=training, **common)
    trainer.remove_callback(PrinterCallback)  # every step is a row of the curve already
    float32_adapters(trainer.model)
    for name, weight in given.items():  # TRL rounds the adapters of quantised models
        trainer.model.get_parameter(name).data.copy_(weight)
    return trainer


@contextmanager
def _as_in_training(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """A trained adapter computes in the base's type, as under the trainer's autocast; a base model as it is."""
    if not isinstance(model, PeftModel):
        yield
        return
    mixed = model.dtype != torch.float32
    with disable_input_dtype_casting(model), torch.autocast(model.device.type, model.dtype, enabled=mixed):
        yield


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


def progress_callback(progress: Progress) -> TrainerCallback:
    """Reports optimiser steps to `progress`."""

    class Report(TrainerCallback):
        def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
            progress(state.global_step, state.max_steps)

    return Report()


def curve(trainer: DPOTrainer) -> list[dict[str, float]]:
    """One row per logged step, resumed runs included: step, loss, margins, chosen and rejected log-probabilities."""
    totals = ("num_tokens", "num_pairs")
    names = ("loss", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected", "learning_rate")
    return [
        {"step": row["step"], **{name: row[name] for name in names}, **{name: int(row.get(name, 0)) for name in totals}}
        for row in trainer.state.log_history
        if "loss" in row
    ]

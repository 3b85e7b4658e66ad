"""One DPO epoch over all pairs of a prompt: stock TRL, stock TRL with precomputed references, and ours.

    python benchmarks/dpo.py                       sizes k = l = 1, 2, 4, 8, 16; a table, a plot and a JSON file
    python benchmarks/dpo.py --sizes 8 --json F    one size
    python benchmarks/dpo.py --to-accuracy         instead, what a user feels: held-out accuracy over minutes

Same process, model, completions, pairs and mask for all three. Every time includes the reference log-probabilities
and building the trainer. The embedded student on prompts and chains of the demo; `gpu.py` does the same at
Mistral-7B's shape.
"""

import argparse
import ctypes
import gc
import json
import math
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import to_accuracy
import torch
from datasets import disable_progress_bars
from transformers import PreTrainedModel, PrinterCallback

from fcdpo_utils import engine
from fcdpo_utils.dataset import GroupDataset
from fcdpo_utils.episode import Chain, prompt, run_calls
from fcdpo_utils.lab.settings import load_settings
from fcdpo_utils.preferences import Completion, Pair, Preferences, PromptGroup
from fcdpo_utils.problems import TASKS, Problem
from fcdpo_utils.settings import PreferenceSettings, Settings, StudentSettings
from fcdpo_utils.students import load_student
from fcdpo_utils.teacher import SampleRequest
from fcdpo_utils.teachers.scripted import ScriptedTeacher
from fcdpo_utils.tokens import Tokens, encode_chat
from fcdpo_utils.trainer import (
    PolicyMaskCollator,
    StockDPOTrainer,
    build_trainer,
    curve,
    float32_adapters,
    lora_config,
    pair_dataset,
    training_arguments,
)
from fcdpo_utils.weights import choose_dtype

CUDA = torch.cuda.is_available()
METHODS = ("trl", "trl_precomputed", "ours")
TIMED_PAIRS = {"trl": 16, "trl_precomputed": 64}  # of more, TRL gets a sample, and the others cost as much per pair


# ---- the work


def demo_group(tokenizer: Any, size: int) -> list[Tokens]:
    """`size` correct and `size` incorrect distinct chains of a logic problem of the demo of middle length."""
    task = TASKS["fol"]
    problems = sorted(task.generate(31, "train", 0, levels=(1, 2, 3)), key=lambda p: len(p.question))
    problem = problems[len(problems) // 2]
    return [encode_chat(tokenizer, prompt(task, problem) + chain.messages()) for chain in _chains(problem, size)]


def _chains(problem: Problem, size: int) -> list[Any]:
    """Chosen then rejected: gold chains in other orders or with another look at the goal; the teacher's mistakes."""
    task, rng = TASKS[problem.task], random.Random(0)
    found: dict[bool, dict[tuple, Any]] = {True: {}, False: {}}
    query = f'Query("{problem.details["goal"]}")'
    teacher = ScriptedTeacher(error_rate=1.0)
    for number in range(200 * size):
        calls = task.gold_calls(problem, rng if number else None)
        for _ in range(rng.randint(0, 2) if number else 0):
            calls.insert(rng.randrange(len(calls) - 2), query)
        for chain in (run_calls(task, problem, calls), teacher.sample(SampleRequest(task, problem, number)).chain):
            found[chain.sound].setdefault(chain.steps, chain)
        if min(map(len, found.values())) >= size:
            return [chain for kind in (True, False) for chain in list(found[kind].values())[:size]]
    raise ValueError(f"fewer than {size} distinct chains of each kind")


# ---- the three methods


def run_ours(
    model: PreTrainedModel, tokenizer: Any, tokens: list[Tokens], groups: list[PromptGroup], settings: Settings
) -> Any:
    nothing = Chain("p", (), "no_answer", None, False, False)  # what the chains say does not matter, their tokens do
    completions = tuple(Completion("p", "task", True, nothing) for _ in tokens)
    size = max(len(group.chosen) for group in groups)
    options = PreferenceSettings(max_chosen=size, max_rejected=size)
    with tempfile.TemporaryDirectory() as folder:
        data = GroupDataset(Preferences(completions, tuple(groups)), tokens, options)
        cache = Path(folder) / "cache.jsonl"
        trainer = build_trainer(model, tokenizer, data, settings, Path(folder), cache, engine)
        trainer.train()
    return trainer


def run_trl(
    model: PreTrainedModel,
    tokenizer: Any,
    tokens: list[Tokens],
    pairs: list[Pair],
    settings: Settings,
    precompute: bool,
    batch: int = 1,
) -> Any:
    """TRL on the pairs, `batch` at a time, with one optimiser step: on a CPU four at once took as long per pair as one,
    and three times the memory."""
    with tempfile.TemporaryDirectory() as folder:
        args = training_arguments(settings, Path(folder), 1, model.dtype)
        args.precompute_ref_log_probs = precompute
        args.per_device_train_batch_size = args.precompute_ref_batch_size = batch
        args.gradient_accumulation_steps = math.ceil(len(pairs) / batch)
        torch.manual_seed(settings.seed)
        trainer = StockDPOTrainer(
            model=model,
            args=args,
            processing_class=tokenizer,
            peft_config=lora_config(settings.training),
            train_dataset=pair_dataset(tokens, pairs),
            data_collator=PolicyMaskCollator(pad_token_id=tokenizer.pad_token_id),
        )
        float32_adapters(trainer.model)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trainer


# ---- measuring


def measured(work: Callable[[], Any]) -> tuple[float, int, Any]:
    """(seconds, peak bytes, result)."""
    gc.collect()
    if CUDA:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # restart the peak of resident memory
    start = time.perf_counter()
    result = work()
    _wait()
    seconds = time.perf_counter() - start
    return seconds, torch.cuda.max_memory_allocated() if CUDA else _peak_resident(), result


def _peak_resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def product_flops(dtype: torch.dtype) -> float:
    """FLOP/s of large matrix products, into memory that is there already."""
    size = 8192 if CUDA else 1024
    a, out = (torch.randn(size, size, dtype=dtype, device="cuda" if CUDA else "cpu") for _ in range(2))
    return 2 * size**3 * repeats_per_second(lambda: torch.mm(a, a, out=out))


def repeats_per_second(work: Callable[[], Any], repeats: int = 20) -> float:
    for _ in range(3):
        work()
    _wait()
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    _wait()
    return repeats / (time.perf_counter() - started)


def _wait() -> None:
    if CUDA:
        torch.cuda.synchronize()


def useful_flops(model: PreTrainedModel, passed: int, scored: int) -> float:
    """Forward of the reference, forward and input gradients of the policy: three products with every weight.

    `passed` tokens meet the layers, `scored` ones the output head. LoRA, attention and recomputation are not counted.
    """
    config = model.config
    width, inner = config.hidden_size, config.intermediate_size
    values = config.num_key_value_heads * width // config.num_attention_heads
    layer = 2 * width * width + 2 * width * values + 3 * width * inner
    return 3 * 2 * (config.num_hidden_layers * layer * passed + config.vocab_size * width * scored)


def work_of(
    method: str,
    model: PreTrainedModel,
    tokenizer: Any,
    tokens: list[Tokens],
    pairs: list[Pair],
    settings: Settings,
) -> Callable[[], Any]:
    """The training run of one method; TRL's on `pairs`, ours on the whole group."""
    if method == "ours":
        size = len(tokens) // 2
        group = PromptGroup("p", tuple(range(size)), tuple(range(size, 2 * size)))
        return partial(run_ours, model, tokenizer, tokens, [group], settings)
    return partial(run_trl, model, tokenizer, tokens, pairs, settings, method == "trl_precomputed")


def measure_size(model: PreTrainedModel, tokenizer: Any, size: int, repeats: int, peak: float) -> dict[str, Any]:
    """One row of the report: medians of `repeats` runs; TRL's long ones (k = l of 4 and more) run once."""
    tokens = demo_group(tokenizer, size)
    settings = load_settings("cpu", ["training.prompts_per_step=1", "training.pack_tokens=6000"])
    pairs = list(product(range(size), range(size, 2 * size)))
    row: dict[str, Any] = {"k": size, "l": size, "pairs": len(pairs)}
    base = model
    for method in METHODS:
        seconds, memory = [], 0
        sample = random.Random(0).sample(pairs, min(TIMED_PAIRS.get(method, len(pairs)), len(pairs)))
        for _ in range(repeats if method == "ours" or size < 4 else 1):
            took, peak_bytes, trainer = measured(work_of(method, base, tokenizer, tokens, sample, settings))
            loss, passed = trainer.state.log_history[0]["loss"], curve(trainer)[-1]["num_tokens"]
            base = trainer.model.unload()
            if len(sample) < len(pairs):
                first, _, trainer = measured(work_of(method, base, tokenizer, tokens, sample[:1], settings))
                base = trainer.model.unload()
                took += (took - first) / (len(sample) - 1) * (len(pairs) - len(sample))
            seconds.append(took)
            memory = max(memory, peak_bytes)
            print(f"  k = l = {size}: {method} {took:.1f} s", flush=True)
        row[f"pairs_timed_{method}"] = len(sample)
        row[f"seconds_{method}"] = round(statistics.median(seconds), 3)
        row[f"memory_{method}"] = memory
        row[f"loss_{method}"] = loss
    scored = sum(map(sum, (t.policy for t in tokens)))
    row["tokens_ours"], row["tokens_trl"] = int(passed), size * sum(len(t.ids) for t in tokens)
    row["ratio"] = round(row["seconds_trl_precomputed"] / row["seconds_ours"], 2)
    row["pairs_per_second_ours"] = round(len(pairs) / row["seconds_ours"], 2)
    row["peak_share"] = round(useful_flops(base, row["tokens_ours"], scored) / row["seconds_ours"] / peak, 3)
    return row


def plot(rows: Sequence[dict[str, Any]], path: Path, device: str) -> None:
    """How the cost of an epoch grows with k = l."""
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    sizes = [row["k"] for row in rows]
    names = {"trl": "TRL", "trl_precomputed": "TRL, references precomputed", "ours": "grouped (ours)"}
    for method, color in zip(METHODS, ("#9aa0a6", "#4c78a8", "#f58518"), strict=True):
        axes.plot(sizes, [row[f"seconds_{method}"] for row in rows], "o-", color=color, label=names[method])
    axes.set(xscale="log", yscale="log", xlabel="k = l, chains of each kind", ylabel="seconds for all k · l pairs")
    axes.set_xticks(sizes, list(map(str, sizes)))
    axes.minorticks_off()
    axes.legend(frameon=False)
    axes.set_title(device, loc="left", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="default: outputs/benchmark_dpo.json, or ..._to_accuracy.json")
    parser.add_argument("--to-accuracy", action="store_true", help="accuracy over minutes; see to_accuracy.py")
    parser.add_argument("--steps", type=int, default=32, help="of ours, two prompts each (--to-accuracy)")
    parser.add_argument("--every", type=int, default=4, help="steps between evaluations (--to-accuracy)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2], help="pairs a step of TRL (--to-accuracy)")
    parser.add_argument("--start", type=Path, help="an adapter to go on from (--to-accuracy)")
    parser.add_argument("--set", nargs="+", default=[], help="settings, such as seed=1 (--to-accuracy)")
    options = parser.parse_args()
    options.json = options.json or Path(f"outputs/benchmark_{'to_accuracy' if options.to_accuracy else 'dpo'}.json")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")  # transformers announces renamed settings at every run
    disable_progress_bars()
    device = torch.cuda.get_device_name() if CUDA else f"{torch.get_num_threads()} CPU cores"
    device += f", SmolLM2-135M, {choose_dtype('auto')}"
    if options.to_accuracy:
        return to_accuracy.main(options, device)
    model, tokenizer = load_student(StudentSettings())
    peak = product_flops(model.dtype)
    print(f"{device}; measured matrix product: {peak / 1e12:.2f} TFLOP/s", flush=True)
    rows = []
    for size in options.sizes:
        rows.append(measure_size(model, tokenizer, size, options.repeats, peak))
        print(rows[-1], flush=True)
        options.json.write_text(json.dumps({"device": device, "peak_flops": peak, "rows": rows}, indent=2) + "\n")
    if len(rows) > 1:
        plot(rows, options.json.with_suffix(".png"), device)


if __name__ == "__main__":
    main()

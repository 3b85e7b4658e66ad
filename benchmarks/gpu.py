"""What this project does on a CUDA machine, at Mistral-7B's shape with random weights: nothing is downloaded.

    python benchmarks/gpu.py                               all of it, into benchmarks/results/<device>.json
    python benchmarks/gpu.py --cap-gb 15                   with so much of the GPU's memory: what a T4 leaves
    python benchmarks/gpu.py --only training rollouts      some parts; the others stay in the file
    python benchmarks/gpu.py --tiny --json FILE            a rehearsal on any machine, with two narrow layers

hardware: what copies and matrix products reach. training: DPO on all pairs of blocks of 8 x 8 chains (a prompt of 600
tokens, completions of 250), ours against TRL, and what the memory model told. rollouts: chains of ten turns of 32
tokens, ours against microchain's Agent and against `generate` on the whole batch. pipeline: the demo's profile.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from datasets import disable_progress_bars
from dpo import CUDA, matmul_peak, measured, run_ours, run_trl, useful_flops
from rollouts import TASK, microchain_chain, ours
from safetensors.torch import save_file
from transformers import (
    AutoTokenizer,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from fcdpo_utils import store
from fcdpo_utils.agent import Limits, prompt
from fcdpo_utils.dpo import fit_to_device
from fcdpo_utils.memory import TrainingMemory
from fcdpo_utils.models import embedded_student, four_bit, free_memory, quiet
from fcdpo_utils.preferences import Block
from fcdpo_utils.profiles import load_settings
from fcdpo_utils.provenance import ROOT, commit
from fcdpo_utils.students import STUDENTS, Shape
from fcdpo_utils.tasks import Problem
from fcdpo_utils.tokens import Tokens, encode_text, render

DEVICE = "cuda" if CUDA else "cpu"
HALF = torch.float16 if CUDA and torch.cuda.get_device_capability()[0] < 8 else torch.bfloat16
CHAINS = 8  # correct ones of a prompt, and as many incorrect ones
TURNS, TURN_TOKENS = 10, 32  # microchain gives up after ten tries
TRL_BATCHES = (1, 2, 4)  # pairs passed together


# ---- the model


def random_student(shape: Shape, vocabulary: int, folder: Path, quantised: bool) -> PreTrainedModel:
    """Mistral's architecture with random weights, in NF4 or 16 bits.

    Written to `folder` one layer at a time and loaded from there, as real weights are: no moment needs all of them in
    16 bits. The vocabulary is the embedded student's, so that its tokenizer fits.
    """
    config = MistralConfig(
        vocab_size=vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        sliding_window=None,
        dtype=HALF,
    )
    if not (folder / "config.json").exists():
        _write_weights(config, folder)
    options = {"quantization_config": four_bit(HALF)} if quantised else {}
    return MistralForCausalLM.from_pretrained(folder, dtype=HALF, device_map=DEVICE, **options)


def _write_weights(config: MistralConfig, folder: Path) -> None:
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in MistralForCausalLM(config).state_dict().items()}
    files: dict[str, dict[str, torch.Size]] = {}
    for name, size in shapes.items():
        layer = name.split(".")[2] if name.startswith("model.layers.") else "others"
        files.setdefault(f"{layer}.safetensors", {})[name] = size
    generator = torch.Generator(DEVICE).manual_seed(0)
    for file, weights in files.items():
        tensors = {
            name: torch.empty(size, dtype=HALF, device=DEVICE).normal_(0, 0.02, generator=generator).cpu()
            if len(size) > 1
            else torch.ones(size, dtype=HALF)
            for name, size in weights.items()
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, weights in files.items() for name in weights}}
    store.write_json(folder / "model.safetensors.index.json", index)
    config.save_pretrained(folder)


# ---- the parts


def hardware() -> dict[str, Any]:
    """What the machine reaches: copies of large blocks, and large matrix products."""
    block = torch.empty((1 << 30) if CUDA else (1 << 26), dtype=torch.uint8, device=DEVICE)
    seconds = min(measured(block.clone)[0] for _ in range(5))
    report = {"copy_gb_per_second": round(2 * block.nbytes / seconds / 1e9, 1)}  # read and written
    for dtype in dict.fromkeys((HALF, torch.float16) if CUDA else (HALF,)):
        report[f"{str(dtype).removeprefix('torch.')}_tflops"] = round(matmul_peak(dtype) / 1e12, 2)
    return report


def random_blocks(count: int, vocabulary: int, prompt_tokens: int, completion_tokens: int) -> tuple[list, list]:
    """Tokens and blocks: random chains in turns of 15 policy and 10 environment tokens, each prompt its own."""
    rng, tokens, blocks = random.Random(0), [], []
    policy = tuple(index % 25 < 15 for index in range(completion_tokens))
    flags = (*[False] * prompt_tokens, *policy)
    for number in range(count):
        start = tuple(rng.randrange(10, vocabulary) for _ in range(prompt_tokens))
        first = len(tokens)
        for _ in range(2 * CHAINS):
            ids = (*start, *(rng.randrange(10, vocabulary) for _ in policy))
            tokens.append(Tokens(ids, flags, prompt_tokens))
        chosen = tuple(range(first, first + CHAINS))
        blocks.append(Block(str(number), chosen, tuple(range(first + CHAINS, first + 2 * CHAINS))))
    return tokens, blocks


def training(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tiny: bool) -> dict[str, Any]:
    """An epoch on all pairs of some blocks: ours, and TRL with precomputed references on a sample of the pairs.

    Each time includes building the trainer and the references. TRL's other pairs cost as much as those of the sample.
    """
    count, sizes = (2, (60, 50)) if tiny else (8, (600, 250))
    tokens, blocks = random_blocks(count, model.config.vocab_size, *sizes)
    settings = load_settings("cpu", ["training.prompts_per_step=1", "training.row_tokens=6000"])
    pairs = [pair for block in blocks for pair in product(block.chosen, block.rejected)]
    sample = random.Random(0).sample(pairs, 8 if tiny else 32)
    resolved = fit_to_device(model, sum(sizes), settings.training)
    peak = matmul_peak(HALF)
    run_ours(model, tokenizer, tokens, blocks[:1], settings).model.unload()  # warm up
    seconds, memory, trainer = measured(partial(run_ours, model, tokenizer, tokens, blocks, settings))
    passed = int(trainer._total_train_tokens)
    trainer.model.unload()
    told = TrainingMemory(
        Shape.of(model.config), True, settings.training.lora_rank, bool(resolved.gradient_checkpointing), HALF.itemsize
    )
    scored = sum(map(sum, (sequence.policy for sequence in tokens)))
    report = {
        "pairs": len(pairs),
        "gradient_checkpointing": resolved.gradient_checkpointing,
        "row_tokens": resolved.row_tokens,
        "seconds": round(seconds, 2),
        "tokens_per_second": round(passed / seconds),
        "pairs_per_second": round(len(pairs) / seconds, 2),
        "share_of_peak": round(useful_flops(model, passed, scored) / seconds / peak, 3),
        "peak_gb": round(memory / 1e9, 2),
        "told_gb": round(told.total(min(passed // count, resolved.row_tokens)) / 1e9, 2),
    }
    fixed = settings.model_copy(update={"training": resolved})
    for batch in TRL_BATCHES:
        trl = partial(run_trl, model, tokenizer, tokens, settings=fixed, precompute=True, batch=batch)
        try:
            once, _, trainer = measured(partial(trl, pairs=sample[:batch]))
            trainer.model.unload()
            took, memory, trainer = measured(partial(trl, pairs=sample))
            trainer.model.unload()
        except torch.OutOfMemoryError:
            report[f"trl_batch_{batch}"] = "out of memory"
            break  # its adapters stay on the model, which is not used any more
        total = took + (took - once) / (len(sample) - batch) * (len(pairs) - len(sample))
        if total < report.get("trl_seconds", float("inf")):  # TRL gets the batch that suits it best
            report |= {"trl_seconds": round(total, 2), "trl_batch": batch, "trl_peak_gb": round(memory / 1e9, 2)}
            report |= {"ratio_to_trl": round(total / seconds, 1)}
    return report


def rollouts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tiny: bool) -> dict[str, Any]:
    """Chains per second. Random weights write no calls, so every chain is ten refused turns, for all three alike."""
    batch = 4 if tiny else 64
    problems = TASK.generate(batch, "test", 0, levels=(2, 3, 4, 5))
    few, limits = problems[: 1 if tiny else 2], Limits(TURNS, TURNS)
    work: dict[str, tuple[list[Problem], Callable[[], Any]]] = {
        "ours": (problems, lambda: ours(model, tokenizer, problems, batch, limits)),
        "generate_batch": (problems, lambda: generate_loop(model, tokenizer, problems)),
        "microchain": (few, lambda: [microchain_chain(model, tokenizer, problem) for problem in few]),
    }
    report: dict[str, Any] = {"batch": batch}
    with torch.inference_mode():
        ours(model, tokenizer, few, 1, limits)  # warm up
        for name, (asked, run) in work.items():
            with contextlib.redirect_stdout(io.StringIO()):
                seconds, memory, _ = measured(run)
            report[f"{name}_chains_per_second"] = round(len(asked) / seconds, 3)
            report[f"{name}_peak_gb"] = round(memory / 1e9, 2)
    report["ratio_to_microchain"] = round(report["ours_chains_per_second"] / report["microchain_chains_per_second"], 1)
    report["ratio_to_generate"] = round(
        report["ours_chains_per_second"] / report["generate_batch_chains_per_second"], 1
    )
    return report


def generate_loop(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, problems: list[Problem]) -> None:
    """transformers' `generate` on the whole batch, turn by turn, each time with the whole chats."""
    chats = [encode_text(tokenizer, render(tokenizer, prompt(TASK, problem), True)) for problem in problems]
    for _ in range(TURNS):
        longest = max(map(len, chats))
        ids = torch.tensor([[tokenizer.pad_token_id] * (longest - len(chat)) + chat for chat in chats], device=DEVICE)
        mask = torch.tensor([[0] * (longest - len(chat)) + [1] * len(chat) for chat in chats], device=DEVICE)
        options = {"max_new_tokens": TURN_TOKENS, "min_new_tokens": TURN_TOKENS, "do_sample": False}
        replies = model.generate(ids, attention_mask=mask, pad_token_id=tokenizer.pad_token_id, **options)
        chats = [chat + reply for chat, reply in zip(chats, replies[:, longest:].tolist(), strict=True)]


def pipeline(tiny: bool) -> dict[str, Any]:
    """The demo's profile from problems to metrics, and whether its metrics are within the CPU baseline's tolerance."""
    profile = "smoke" if tiny else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        run_dir = f"{folder}/{profile}"
        command = [sys.executable, "-m", "fcdpo_utils.pipeline.cli"]
        started = time.perf_counter()
        done = subprocess.run([*command, "run", "--profile", profile, "--run-dir", run_dir], cwd=ROOT, check=False)
        seconds = time.perf_counter() - started
        if done.returncode:
            return {"failed": f"fcdpo run ended with {done.returncode}"}
        check = subprocess.run([*command, "check", run_dir], cwd=ROOT, capture_output=True, text=True, check=False)
        metrics = store.read_json(Path(run_dir) / "metrics.json")
    return {
        "profile": profile,
        "seconds": round(seconds, 1),
        "within_baseline": check.returncode == 0,
        "stages": metrics["stages"],
        "sound_after": {name: task["after"]["sound"] for name, task in metrics["tasks"].items()},
    }


# ---- all of it

PARTS = ("hardware", "training", "rollouts", "pipeline")


def device_name(cap_gb: float | None) -> str:
    if not CUDA:
        return f"{torch.get_num_threads()} CPU cores"
    capped = f", {cap_gb:g} GB of it" if cap_gb else ""
    return torch.cuda.get_device_name() + capped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--cap-gb", type=float, help="use so much of the GPU's memory (1e9 bytes)")
    parser.add_argument("--tiny", action="store_true", help="two narrow layers; any machine")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not (CUDA or options.tiny):
        parser.error("no CUDA device here; --tiny rehearses on a CPU")
    if options.cap_gb and CUDA:
        share = options.cap_gb * 1e9 / torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(share, 1.0))
    warnings.simplefilter("ignore")
    disable_progress_bars()
    name = device_name(options.cap_gb)
    path = options.json or ROOT / "benchmarks" / "results" / f"{store.slug(name)}.json"
    report = store.read_json(path) if path.exists() else {}
    report |= {"device": name, "torch": torch.__version__, "commit": commit()}
    for part, result in _results(options):
        report[part] = result
        print(json.dumps({part: result}), flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        store.write_json(path, report)


def _results(options: argparse.Namespace) -> Any:
    """(part, figures) of the parts asked for, one after the other: what was measured survives what fails later."""
    if "hardware" in options.only:
        yield "hardware", hardware()
    if {"training", "rollouts"} & {*options.only}:
        shape = Shape(2, 64, 4, 2, 256, 0) if options.tiny else STUDENTS["mistral-7b"].shape
        tokenizer = AutoTokenizer.from_pretrained(embedded_student())
        folder = Path(tempfile.mkdtemp())
        try:
            yield from _model_results(options, partial(random_student, shape, len(tokenizer), folder), tokenizer)
        finally:
            shutil.rmtree(folder)
    if "pipeline" in options.only:
        yield "pipeline", pipeline(options.tiny)


def _model_results(
    options: argparse.Namespace, student: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase
) -> Any:
    with quiet():
        if "training" in options.only:
            yield "training", training(student(quantised=True), tokenizer, options.tiny)
            free_memory()
        if "rollouts" not in options.only:
            return
        for name, quantised in (("rollouts_nf4", True), ("rollouts_16_bit", False)):
            try:
                yield name, rollouts(student(quantised=quantised), tokenizer, options.tiny)
            except torch.OutOfMemoryError:
                yield name, {"failed": "out of memory"}
            free_memory()


if __name__ == "__main__":
    main()

"""What this project does on a CUDA machine, at Mistral-7B's shape with random weights: nothing is downloaded.

    python benchmarks/gpu.py                               all of it, into benchmarks/results/<device>.json
    python benchmarks/gpu.py --cap-gb 15 --half float16    with so much of the GPU's memory and in fp16, as on a T4
    python benchmarks/gpu.py --only training rollouts      some parts; the others stay in the file
    python benchmarks/gpu.py --tiny --json FILE            a rehearsal on any machine, with two narrow layers

hardware: what copies and matrix products reach. training: DPO on all pairs of groups of 8 x 8 chains (a prompt of 600
tokens, completions of 250), ours against TRL, and what the memory model told. rollouts: chains of ten turns of 32
tokens, ours against microchain's Agent and against `generate` on the whole batch. pipeline: the demo's profile. What
fails is recorded as failed, with its reason, and loses nothing else.
"""

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
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from datasets import disable_progress_bars
from dpo import CUDA, measured, product_flops, repeats_per_second, run_ours, run_trl, useful_flops
from peft.tuners.tuners_utils import BaseTunerLayer
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
from fcdpo_utils.engine.memory import ModelDims, TrainingMemory, fit
from fcdpo_utils.engine.rollout import Chat
from fcdpo_utils.episode import PYTHON_CALLS, Limits, prompt
from fcdpo_utils.fingerprint import ROOT
from fcdpo_utils.lab.grid import slug
from fcdpo_utils.lab.settings import load_settings
from fcdpo_utils.pipeline.manifest import commit
from fcdpo_utils.preferences import Pair, PromptGroup
from fcdpo_utils.problems import Problem
from fcdpo_utils.settings import Settings
from fcdpo_utils.students import embedded_student, four_bit, free_memory
from fcdpo_utils.tokens import Tokens, encode_text, render
from fcdpo_utils.trainer import curve
from fcdpo_utils.weights import known_students

DEVICE = "cuda" if CUDA else "cpu"
CHAINS = 8  # correct ones of a prompt, and as many incorrect ones
TURNS, TURN_TOKENS = 10, 32  # microchain gives up after ten tries
TRL_BATCHES = (1, 2, 4)  # pairs passed together
REFUSED = "Error: this is not a function call"  # about as long as what a refused turn is told


def attempt(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The figures of one measurement, or why it failed."""
    try:
        return work()
    except (RuntimeError, ValueError) as error:  # out of memory is a RuntimeError
        free_memory()
        return {"failed": f"{type(error).__name__}: {(str(error) or '?').splitlines()[0][:200]}"}


# ---- the model


def random_student(
    dims: ModelDims, vocabulary: int, folder: Path, half: torch.dtype, quantised: bool
) -> PreTrainedModel:
    """Mistral's architecture with random weights, in NF4 or 16 bits.

    Written to `folder` one layer at a time and loaded from there, as real weights are: no moment needs all of them in
    16 bits. The vocabulary is the embedded student's, so that its tokenizer fits.
    """
    config = MistralConfig(
        vocab_size=vocabulary,
        hidden_size=dims.hidden,
        intermediate_size=dims.intermediate,
        num_hidden_layers=dims.layers,
        num_attention_heads=dims.heads,
        num_key_value_heads=dims.kv_heads,
        sliding_window=None,
        dtype=half,
    )
    if not (folder / "config.json").exists():
        _write_weights(config, folder, half)
    options = {"quantization_config": four_bit(half)} if quantised else {}
    return MistralForCausalLM.from_pretrained(folder, dtype=half, device_map=DEVICE, **options)


def _write_weights(config: MistralConfig, folder: Path, half: torch.dtype) -> None:
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in MistralForCausalLM(config).state_dict().items()}
    files: dict[str, dict[str, torch.Size]] = {}
    for name, size in shapes.items():
        layer = name.split(".")[2] if name.startswith("model.layers.") else "others"
        files.setdefault(f"{layer}.safetensors", {})[name] = size
    generator = torch.Generator(DEVICE).manual_seed(0)
    for file, weights in files.items():
        tensors = {
            name: torch.empty(size, dtype=half, device=DEVICE).normal_(0, 0.02, generator=generator).cpu()
            if len(size) > 1
            else torch.ones(size, dtype=half)
            for name, size in weights.items()
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, weights in files.items() for name in weights}}
    store.write_json(folder / "model.safetensors.index.json", index)
    config.save_pretrained(folder)


# ---- the parts


def hardware() -> dict[str, Any]:
    """What the machine reaches: copies of large blocks, and large matrix products."""
    source = torch.ones((1 << 30) if CUDA else (1 << 26), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    rate = repeats_per_second(lambda: target.copy_(source))
    report = {"copy_gb_per_second": round(2 * source.nbytes * rate / 1e9, 1)}  # read and written
    for half in (torch.float16, torch.bfloat16) if CUDA else (torch.float32,):
        report[f"{str(half).removeprefix('torch.')}_tflops"] = round(product_flops(half) / 1e12, 2)
    return report


def random_groups(
    count: int, vocabulary: int, prompt_tokens: int, completion_tokens: int
) -> tuple[list[Tokens], list[PromptGroup]]:
    """Tokens and groups: random chains in turns of 15 policy and 10 environment tokens, each prompt its own."""
    rng, tokens, groups = random.Random(0), [], []
    policy = tuple(index % 25 < 15 for index in range(completion_tokens))
    flags = (*[False] * prompt_tokens, *policy)
    for number in range(count):
        start = tuple(rng.randrange(10, vocabulary) for _ in range(prompt_tokens))
        first = len(tokens)
        for _ in range(2 * CHAINS):
            ids = (*start, *(rng.randrange(10, vocabulary) for _ in policy))
            tokens.append(Tokens(ids, flags, prompt_tokens))
        chosen = tuple(range(first, first + CHAINS))
        groups.append(PromptGroup(str(number), chosen, tuple(range(first + CHAINS, first + 2 * CHAINS))))
    return tokens, groups


def training(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tiny: bool) -> dict[str, Any]:
    """An epoch on all pairs of some groups: ours, and TRL with precomputed references on a sample of the pairs.

    Building a trainer takes seconds, and that of one group or a few pairs is subtracted: `pairs_per_second` is what
    a long run does. `seconds` is the whole of ours.
    """
    count, sizes = (6, (100, 120)) if tiny else (8, (600, 250))
    tokens, groups = random_groups(count, model.config.vocab_size, *sizes)
    settings = load_settings("cpu", ["training.prompts_per_step=1", "training.pack_tokens=6000"])
    pairs = [pair for group in groups for pair in product(group.chosen, group.rejected)]
    report: dict[str, Any] = {"pairs": len(pairs)}
    report |= attempt(lambda: _ours(model, tokenizer, tokens, groups, settings))
    sample = random.Random(0).sample(pairs, 8 if tiny else 32)
    trials = []
    for checkpointing, batch in list(product((False, True), TRL_BATCHES))[: 2 if tiny else None]:
        model.gradient_checkpointing_disable()  # a trainer leaves it on
        change = {"gradient_checkpointing": checkpointing}
        own = settings.model_copy(update={"training": settings.training.model_copy(update=change)})
        run = partial(run_trl, model, tokenizer, tokens, settings=own, precompute=True, batch=batch)
        trials.append({**change, "batch": batch, **attempt(partial(_trl, run, sample, batch))})
        if "failed" in trials[-1]:
            _drop_adapters(model)
    report["trl"] = trials
    rates = [trial["pairs_per_second"] for trial in trials if "failed" not in trial]
    if rates and "failed" not in report:  # TRL gets what suits it best
        report["ratio_to_trl"] = round(report["pairs_per_second"] / max(rates), 1)
    return report


def _ours(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tokens: list[Tokens],
    groups: list[PromptGroup],
    settings: Settings,
) -> dict[str, Any]:
    half, count = model.dtype, len(groups)
    fitted = fit(model, max(len(sequence.ids) for sequence in tokens), settings.training)
    run = partial(run_ours, model, tokenizer, tokens, settings=settings)
    run(groups=groups[:1]).model.unload()  # warm up
    once, _, trainer = measured(partial(run, groups=groups[:1]))
    trainer.model.unload()
    del trainer
    seconds, memory, trainer = measured(partial(run, groups=groups))
    passed = curve(trainer)[-1]["num_tokens"]
    trainer.model.unload()
    each = (seconds - once) / (count - 1)  # a group
    checkpointing = bool(fitted.gradient_checkpointing)
    told = TrainingMemory(ModelDims.of(model.config), True, fitted.lora_rank, checkpointing, half.itemsize)
    scored = sum(map(sum, (sequence.policy for sequence in tokens)))
    flops = useful_flops(model, passed, scored) / count
    pack = min(passed // count, fitted.pack_tokens)
    return {
        "gradient_checkpointing": checkpointing,
        "pack_tokens": fitted.pack_tokens,
        "seconds": round(seconds, 2),
        "tokens_per_second": round(passed / count / each),
        "pairs_per_second": round(CHAINS * CHAINS / each, 2),
        "share_of_peak": round(flops / each / product_flops(half), 3),
        "peak_gb": round(memory / 1e9, 2),
        "told_gb": round(told.total(pack) / 1e9, 2),
    }


def _trl(run: Callable[..., Any], sample: list[Pair], batch: int) -> dict[str, Any]:
    run(pairs=sample[:batch]).model.unload()  # warm up
    once, _, trainer = measured(partial(run, pairs=sample[:batch]))
    trainer.model.unload()
    del trainer
    seconds, memory, trainer = measured(partial(run, pairs=sample))
    trainer.model.unload()
    if seconds <= once:
        raise ValueError("too short to be measured")
    rate = (len(sample) - batch) / (seconds - once)
    return {"pairs_per_second": round(rate, 2), "peak_gb": round(memory / 1e9, 2)}


def _drop_adapters(model: PreTrainedModel) -> None:
    """What a training that failed has left in the model."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BaseTunerLayer):
                setattr(parent, name, child.get_base_layer())
    free_memory()


def rollouts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tiny: bool) -> dict[str, Any]:
    """Chains per second. Random weights write no calls, so a chain is ten refused turns of 32 tokens for all three.

    microchain's chats are a little shorter: of a reply that it cannot read it keeps nothing.
    """
    batch, turn = (4, 4) if tiny else (64, TURN_TOKENS)
    problems = TASK.generate(batch, "test", 0, levels=(2, 3, 4, 5))
    few, limits = problems[: 1 if tiny else 2], Limits(calls=TURNS, errors=TURNS)
    work: dict[str, tuple[list[Problem], Callable[[], Any]]] = {
        "ours": (problems, lambda: ours(model, tokenizer, problems, batch, limits, turn)),
        "microchain": (few, lambda: [microchain_chain(model, tokenizer, problem, turn) for problem in few]),
        "generate": (problems, lambda: generate_loop(model, tokenizer, problems, turn)),
    }
    report: dict[str, Any] = {"batch": batch}
    with torch.inference_mode():
        for name, (asked, run) in work.items():
            report[name] = attempt(partial(_rate, run, len(asked)))
    for name in ("microchain", "generate"):
        if "failed" not in report["ours"] and "failed" not in report[name]:
            ratio = report["ours"]["chains_per_second"] / report[name]["chains_per_second"]
            report[f"ratio_to_{name}"] = round(ratio, 1)
    return report


def _rate(run: Callable[[], Any], chains: int) -> dict[str, Any]:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        run()  # warm up
        seconds, memory, _ = measured(run)
    lines = said.getvalue().splitlines()
    notable = [line for line in lines if "chains at a time" in line]
    figures = {"chains_per_second": round(chains / seconds, 3), "peak_gb": round(memory / 1e9, 2)}
    return figures | ({"said": notable[-1]} if notable else {})


def generate_loop(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, problems: list[Problem], turn_tokens: int
) -> None:
    """transformers' `generate` on the whole batch, turn by turn, each time with the whole chats."""
    chats = [encode_text(tokenizer, render(tokenizer, prompt(TASK, problem), True)) for problem in problems]
    between = Chat(tokenizer, PYTHON_CALLS, TASK.toolset(None)).between_turns(REFUSED)
    for _ in range(TURNS):
        longest = max(map(len, chats))
        ids = torch.tensor([[tokenizer.pad_token_id] * (longest - len(chat)) + chat for chat in chats], device=DEVICE)
        mask = torch.tensor([[0] * (longest - len(chat)) + [1] * len(chat) for chat in chats], device=DEVICE)
        options = {"max_new_tokens": turn_tokens, "min_new_tokens": turn_tokens, "do_sample": False}
        replies = model.generate(ids, attention_mask=mask, pad_token_id=tokenizer.pad_token_id, **options)
        chats = [chat + reply + between for chat, reply in zip(chats, replies[:, longest:].tolist(), strict=True)]


def pipeline(tiny: bool) -> dict[str, Any]:
    """The demo's profile from problems to metrics, and whether its metrics are within the CPU baseline's tolerance."""
    profile = "smoke" if tiny else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        run_dir = f"{folder}/{profile}"
        command = [sys.executable, "-m", "fcdpo_utils.pipeline.cli"]
        started = time.perf_counter()
        chosen = ["--profile", profile, "--run-dir", run_dir]
        done = subprocess.run([*command, "run", *chosen], cwd=ROOT, check=False)
        seconds = time.perf_counter() - started
        if done.returncode:
            raise RuntimeError(f"fcdpo run ended with {done.returncode}")
        check = subprocess.run([*command, "check", run_dir], cwd=ROOT, capture_output=True, text=True, check=False)
        metrics = store.read_json(Path(run_dir) / "metrics.json")
    return {
        "profile": profile,
        "seconds": round(seconds, 1),
        "within_baseline": check.returncode == 0,
        "check": check.stdout.splitlines() if check.returncode else [],
        "stages": metrics["stages"],
        "sound_after": {name: task["after"]["sound"] for name, task in metrics["tasks"].items()},
    }


# ---- all of it

PARTS = ("hardware", "training", "rollouts", "pipeline")


def device_name(options: argparse.Namespace) -> str:
    if not CUDA:
        return f"{torch.get_num_threads()} CPU cores"
    capped = f" {options.cap_gb:g} GB of it" if options.cap_gb else ""
    return f"{torch.cuda.get_device_name()}{capped} {options.half}"


def main() -> None:
    old = CUDA and torch.cuda.get_device_capability()[0] < 8
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--cap-gb", type=float, help="use so much of the GPU's memory (1e9 bytes)")
    parser.add_argument("--half", choices=("bfloat16", "float16"), default="float16" if old else "bfloat16")
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
    name = device_name(options)
    path = options.json or ROOT / "benchmarks" / "results" / f"{slug(name)}.json"
    report = store.read_json(path) if path.exists() else {}
    report["device"] = name
    made_by = {"commit": commit(), "torch": torch.__version__}  # of this part: others may be older
    for part, result in _results(options):
        report[part] = result | made_by
        print(json.dumps({part: result}), flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        store.write_json(path, report)


def _results(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """(part, figures) of the parts asked for, one after the other."""
    if "hardware" in options.only:
        yield "hardware", attempt(hardware)
    if {"training", "rollouts"} & {*options.only}:
        real = ModelDims(**known_students()["mistral-7b"]["dims"])
        dims = ModelDims(2, 64, 4, 2, 256, 0) if options.tiny else real
        tokenizer = AutoTokenizer.from_pretrained(embedded_student())
        folder = Path(tempfile.mkdtemp())
        half = getattr(torch, options.half) if CUDA else torch.float32  # 16 bits take some CPUs a hundred times as long
        student = partial(random_student, dims, len(tokenizer), folder, half)
        parts = [("training", training, True)] if "training" in options.only else []
        if "rollouts" in options.only:
            parts += [("rollouts_nf4", rollouts, True), ("rollouts_16_bit", rollouts, False)]
        try:
            for name, part, quantised in parts:
                yield name, attempt(partial(_on_student, part, student, quantised, tokenizer, options.tiny))
                free_memory()
        finally:
            shutil.rmtree(folder)
    if "pipeline" in options.only and not options.cap_gb:  # the cap is this process's own
        yield "pipeline", attempt(partial(pipeline, options.tiny))


def _on_student(
    part: Callable[..., dict[str, Any]], student: Callable[..., PreTrainedModel], quantised: bool, *others: Any
) -> dict[str, Any]:
    return part(student(quantised=quantised), *others)


if __name__ == "__main__":
    main()

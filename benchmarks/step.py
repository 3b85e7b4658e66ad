"""What a training step would gain from fewer passes over memory: as built, and computed in other ways, in turn.

    python benchmarks/step.py [--steps 12] [--variants peft flash ...] [--threads 1] [--json F]

Each step of the demo's warm-up (two prompts, one correct chain each; the embedded student in this machine's fastest
type) is taken once by each variant, one after the other, so that a machine's moods meet them all; prints the median of
the ratios, and the share of the measured peak of matrix products that is useful work. Variants joined by a comma are
used together; one whose gradients differ from the built ones ends the program. `peft`: PEFT's own pass of a LoRA layer,
in place of products alone; the others are not built into the package: docs/history.md says what they gave.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from dpo import product_flops, useful_flops
from peft import PeftModel, get_peft_model
from peft.helpers import disable_input_dtype_casting
from torch import Tensor
from torch.nn.functional import silu
from transformers.models.llama import modeling_llama as llama

from fcdpo_utils import engine
from fcdpo_utils.engine import lora, trees
from fcdpo_utils.episode import prompt, run_calls
from fcdpo_utils.lab.settings import load_settings
from fcdpo_utils.problems import TASKS
from fcdpo_utils.students import load_student
from fcdpo_utils.tokens import Tokens, encode_chat
from fcdpo_utils.trainer import float32_adapters, lora_config

FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


# ---- other ways to compute the same


class FlashAttention(torch.autograd.Function):
    """As the package's tree attention, by torch's flash kernel for the CPU; knows no windows, as the student."""

    @staticmethod
    def _tile(states: tuple[Tensor, ...], rows: slice, keys: Any) -> tuple[list[Tensor], dict]:
        """A tile's queries (of all groups in one head), keys and values, with a batch of 1; the kernel's options."""
        query, key, value = states
        parts = [query[:, :, rows].flatten(1, 2)[None], *(trees._seen(x, keys)[None] for x in (key, value))]
        count, length = parts[1].shape[2], rows.stop - rows.start
        mask = query.new_full((length, count), -torch.inf).triu_(count - length + 1)
        return parts, {"attn_mask": mask.repeat(query.shape[1], 1), "scale": 1.0}

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, segments: Any, _: None) -> Tensor:
        output, normalisers = torch.empty_like(query), []
        for rows, keys in trees._tiles(segments):
            parts, options = FlashAttention._tile((query, key, value), rows, keys)
            part, normaliser = FLASH(*parts, **options)
            output[:, :, rows] = part.view_as(output[:, :, rows])
            normalisers.append(normaliser)
        ctx.save_for_backward(query, key, value, output, *normalisers)
        ctx.segments = segments
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, *normalisers = ctx.saved_tensors
        grads = [torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32)) for x in (query, key, value)]
        for (rows, keys), normaliser in zip(trees._tiles(ctx.segments), normalisers, strict=True):
            parts, options = FlashAttention._tile((query, key, value), rows, keys)
            upstream, made = (x[:, :, rows].flatten(1, 2)[None] for x in (grad, output))
            slopes = FLASH_BACKWARD(upstream, *parts, made, normaliser, 0.0, False, **options)
            grads[0][:, :, rows] = slopes[0].view_as(query[:, :, rows])
            for total, slope in zip(grads[1:], slopes[1:], strict=True):
                trees._add_to_seen(total, slope[0], keys)
        return *(total.to(x.dtype) for total, x in zip(grads, (query, key, value), strict=True)), None, None


class Norm(torch.autograd.Function):
    """RMSNorm whose weight is frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        rows = x.float()
        mean_square = torch.linalg.vector_norm(rows, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        inverse = mean_square.add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (rows * inverse).to(x.dtype) * weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        slope, rows = (grad * weight).float(), x.float()
        along = (slope * rows).sum(-1, keepdim=True).mul_(inverse.square() / x.shape[-1])
        return slope.addcmul_(rows, along, value=-1).mul_(inverse).to(x.dtype), None, None


class Gated(torch.autograd.Function):
    """silu(gate) * up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), silu(gate).mul_(grad)


def _gated_by(product: Any) -> Any:
    return lambda mlp, x: mlp.down_proj(product(mlp.gate_proj(x), mlp.up_proj(x)))


@torch.compile(dynamic=True)
def compiled_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    rows = x.float()
    return weight * (rows * torch.rsqrt(rows.pow(2).mean(-1, keepdim=True) + epsilon)).to(x.dtype)


@torch.compile(dynamic=True)
def compiled_gate(gate: Tensor, up: Tensor) -> Tensor:
    return silu(gate) * up


VARIANTS: dict[str, list[tuple[Any, str, Any]]] = {  # what is replaced, by what
    "built": [],
    "peft": [(lora, "_forward", lora._PEFT_FORWARD)],
    "flash": [(trees, "_TreeAttention", FlashAttention)],
    "norms": [
        (llama.LlamaRMSNorm, "forward", lambda norm, x: Norm.apply(x, norm.weight, norm.variance_epsilon)),
        (llama.LlamaMLP, "forward", _gated_by(Gated.apply)),
    ],
    "compile": [
        (llama.LlamaRMSNorm, "forward", lambda norm, x: compiled_norm(x, norm.weight, norm.variance_epsilon)),
        (llama.LlamaMLP, "forward", _gated_by(compiled_gate)),
        (llama, "apply_rotary_pos_emb", torch.compile(llama.apply_rotary_pos_emb, dynamic=True)),
    ],
}


@contextmanager
def variant(names: str) -> Iterator[None]:
    with ExitStack() as replaced:
        for place in (place for name in names.split(",") for place in VARIANTS[name]):
            replaced.enter_context(patch.object(*place))
        yield


# ---- the work


def student_and_steps(count: int) -> tuple[PeftModel, list[list[Tokens]]]:
    """The student with fresh adapters, and the sequences of `count` steps, of both tasks of the demo."""
    settings = load_settings("cpu")
    model, tokenizer = load_student(settings.student)
    found = []
    for name in settings.tasks:
        task = TASKS[name]
        problems = list(task.generate(count + count % 2, "train", 0, levels=settings.tasks[name].levels))
        chats = [prompt(task, one) + run_calls(task, one, task.gold_calls(one)).messages() for one in problems]
        found += [[encode_chat(tokenizer, chat) for chat in chats[at : at + 2]] for at in range(0, len(chats), 2)]
    torch.manual_seed(0)
    model = get_peft_model(model, lora_config(settings.training)).train()
    float32_adapters(model)
    return model, random.Random(0).sample(found, count)


def gradients(model: PeftModel, sequences: list[Tokens]) -> None:
    """The passes of one step, forward and backward."""
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=model.dtype == torch.bfloat16)
    with engine.while_training(model), disable_input_dtype_casting(model), autocast:
        log_probs, *_ = engine.log_probs(model, sequences, 4000)
        (-log_probs.sum() / sum(sum(one.policy) for one in sequences)).backward()


def difference(model: PeftModel, sequences: list[Tokens], name: str) -> float:
    """Relative distance of a variant's gradients from the built ones; compiles, where something is to be compiled."""
    found = []
    for one in ("built", name):
        with variant(one):
            gradients(model, sequences)
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]))
        model.zero_grad()
    return float((found[1] - found[0]).norm() / found[0].norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--variants", nargs="+", default=["peft", "flash", "norms", "flash,norms"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("outputs/benchmark_step.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, steps = student_and_steps(options.steps)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    seconds: dict[str, list[float]] = {name: [] for name in ("built", *options.variants)}
    for name in options.variants:
        if (far := difference(model, steps[0], name)) > (1e-4 if model.dtype == torch.float32 else 0.1):
            raise SystemExit(f"{name}: gradients differ by {far:.1e}")
    peaks = []
    for number, sequences in enumerate(steps):
        peaks.append(product_flops(model.dtype))
        order = [*seconds.items()][:: 1 if number % 2 else -1]  # who comes first meets cold caches
        for name, taken in order:
            started = time.perf_counter()
            with variant(name):
                gradients(model, sequences)
            optimiser.step()
            optimiser.zero_grad()
            taken.append(time.perf_counter() - started)
    peak, built, rows = statistics.median(peaks), seconds["built"], [trees.build_tree(one) for one in steps]
    # two products with every frozen weight, where a step with references has three
    useful = 2 / 3 * useful_flops(model, sum(map(len, rows)), sum(len(row.targets) for row in rows))
    report: dict[str, Any] = {"dtype": str(model.dtype), "threads": options.threads, "peak": peak, "variants": {}}
    print(f"{options.steps} steps, {model.dtype}, {options.threads} thread(s), products at {peak / 1e9:.0f} GFLOP/s")
    for name, taken in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(built, taken, strict=True))
        figures = {"seconds": statistics.mean(taken), "ratio": ratio, "share_of_peak": useful / sum(taken) / peak}
        report["variants"][name] = figures
        line = "{seconds:.2f} s a step, ratio {ratio:.3f}, {share_of_peak:.0%} of the peak"
        print(f"{name:20} {line.format(**figures)}", flush=True)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

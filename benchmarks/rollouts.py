"""Chains per second: our rollouts in a batch and one at a time, and microchain-python's Agent, the paper's engine.

    python benchmarks/rollouts.py [--adapter outputs/cpu/adapter] [--merge] [--batch 256] [--json F]
    python benchmarks/rollouts.py --llama-python VENV/bin/python     instead: tokens a second, ours and llama.cpp

One process, one model, the same arithmetic problems and functions, greedy decoding. The batch gets all problems, the
slow ones the first sixteenth of them (levels of difficulty take turns). With --merge the adapter becomes part of the
weights first, for all three. microchain drives transformers'
`generate` with the whole chat at every step, as its own generators do. Without an adapter the student writes no calls,
and chains end at their second error (microchain: after its own ten tries).

Against llama.cpp: the embedded student without an adapter, from the same GGUF file, six turns a chain whatever it says,
results fed back. The same `rollout` drives both: only the passes are llama.cpp's (llama_peer.py), which computes with
the quantised weights and 8-bit activations where ours computes with the dequantised ones.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import matplotlib.pyplot as plt
import torch
from microchain import LLM, Agent, Engine, Function
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fcdpo_utils.engine.decoding import PendingTokens
from fcdpo_utils.engine.rollout import rollout
from fcdpo_utils.episode import Chain, Episode, Limits, prompt
from fcdpo_utils.plain import Sampling
from fcdpo_utils.problems import TASKS, Problem
from fcdpo_utils.settings import StudentSettings
from fcdpo_utils.students import EMBEDDED_PACKAGE, load_student
from fcdpo_utils.tokens import encode_text, render

TASK = TASKS["arithmetic"]
LIMITS = Limits(calls=24, errors=2)
TURN_TOKENS = 32
LLAMA_LIMITS = Limits(calls=6, errors=6)  # an untrained student writes no calls
LLAMA_CELLS = 1024  # of one chain: the prompt, and six turns with their results


def operation(name: str, example: list[float], episode: Episode) -> Function:
    """A microchain function of two numbers, or one for Answer, that acts on our episode."""

    def two(self: Function, a: float, b: float) -> str:
        return episode.step(f"{name}({a}, {b})").result

    def one(self: Function, a: float) -> str:
        return episode.step(f"{name}({a})").result

    call = two if len(example) == 2 else one
    call.__annotations__ = {"a": float, "b": float} if len(example) == 2 else {"a": float}  # types, not strings
    return type(name, (Function,), {"description": name, "example_args": example, "__call__": call})()


class Stop(Function):
    """Ends microchain's loop."""

    description = "Stop"
    example_args: list[str] = []

    def __call__(self) -> str:
        self.engine.stop()
        return "Stopped"


def microchain_chain(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, problem: Problem, turn_tokens: int = TURN_TOKENS
) -> Chain:
    """One chain by microchain's Agent."""
    episode, engine = Episode(TASK, problem, LIMITS), Engine()
    for name in ("Sum", "Subtract", "Multiply", "Divide"):
        engine.register(operation(name, [6, 2], episode))
    engine.register(operation("Answer", [4], episode))
    engine.register(Stop())

    def generate(text: str, stop: Any = None) -> str:
        ids = torch.tensor([encode_text(tokenizer, text)], device=model.device)
        options = {"max_new_tokens": turn_tokens, "do_sample": False, "attention_mask": torch.ones_like(ids)}
        reply = model.generate(ids, pad_token_id=tokenizer.pad_token_id, **options)[0, ids.shape[1] :]
        return tokenizer.decode(reply, skip_special_tokens=True)

    agent = Agent(llm=LLM(generator=generate, templates=[lambda chat: render(tokenizer, chat, True)]), engine=engine)
    assert engine.help  # microchain insists on it
    agent.prompt = prompt(TASK, problem)[0]["content"]
    agent.run(iterations=LIMITS.calls)
    if agent.do_stop:
        episode.step("Stop()")
    return episode.chain()


def ours(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: list[Problem],
    batch: int,
    limits: Limits = LIMITS,
    turn_tokens: int = TURN_TOKENS,
) -> list[Chain]:
    episodes = [Episode(TASK, problem, limits) for problem in problems]
    return rollout(model, tokenizer, episodes, Sampling(0.0, turn_tokens, batch))


# ---- llama.cpp


class LlamaEngine:
    """llama.cpp in place of `DecodeEngine`; `peer`: a process of llama_peer.py, `spent`: its seconds of each pass."""

    def __init__(self, peer: subprocess.Popen, spent: list[float], model: PreTrainedModel, prefix: list[int]):
        self.peer, self.spent = peer, spent
        spent.clear()
        self._ask("prefix", prefix)

    def feed(self, chains: Sequence[PendingTokens]) -> torch.Tensor:
        """(batch, tokens), 1 at the most likely token."""
        tokens = self._ask("feed", *([chain.cached, chain.pending] for chain in chains))
        for chain in chains:
            chain.cached += len(chain.pending)
            chain.pending = []
        return torch.nn.functional.one_hot(torch.tensor(tokens))

    def move(self, sources: list[int], targets: list[int]) -> None:
        self._ask("move", sources, targets)

    def _ask(self, *message: Any) -> list[int]:
        self.peer.stdin.write(json.dumps(message) + "\n")
        self.peer.stdin.flush()
        answer = json.loads(self.peer.stdout.readline() or sys.exit("llama.cpp: the process ended, see above"))
        self.spent.append(answer["seconds"])
        return answer["tokens"]


def timed(student: tuple[Any, Any], problems: list[Problem], batch: int) -> tuple[float, float, list[Chain]]:
    """Tokens written in a second, seconds, chains; after a short run to warm up."""
    for asked in (problems[:2], problems):
        episodes = [Episode(TASK, problem, LLAMA_LIMITS) for problem in asked]
        started = time.perf_counter()
        chains = rollout(*student, episodes, Sampling(0.0, TURN_TOKENS, batch))
        seconds = time.perf_counter() - started
    return sum(episode.usage.written for episode in episodes) / seconds, seconds, chains


def timed_llama(command: list[str], student: tuple[Any, Any], problems: list[Problem], batch: int) -> dict[str, Any]:
    """Its tokens a second, the chains, and the share of the time that passed outside of its process."""
    spent: list[float] = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer:
        replaced = partial(LlamaEngine, peer, spent)
        with mock.patch.object(sys.modules[rollout.__module__], "DecodeEngine", replaced):
            rate, seconds, chains = timed(student, problems, batch)
        peer.stdin.close()
    return {"llama.cpp": round(rate, 1), "outside": round(1 - sum(spent) / seconds, 3), "chains": chains}


def against_llama(python: str, batches: list[int], path: Path) -> None:
    """A row for each batch size; llama.cpp with the faster of its two kinds of KV cache."""
    probe = [python, "-c", "import llama_cpp; print(llama_cpp.__version__)"]
    found = shutil.which(python) and subprocess.run(probe, capture_output=True, text=True, check=False)
    if not found or found.returncode:
        return print(f"llama.cpp: skipped, {python} cannot import llama_cpp (pip install llama-cpp-python)")
    package = importlib.util.find_spec(EMBEDDED_PACKAGE).submodule_search_locations[0]
    file = next(Path(package).rglob("*.gguf"))
    student, rows = load_student(StudentSettings()), []
    for batch in batches:
        problems = TASK.generate(max(8, 2 * batch), "test", 0, levels=(2, 3, 4, 5))
        rate, _, chains = timed(student, problems, batch)
        row = {"batch": batch, "problems": len(problems), "ours": round(rate, 1), "llama.cpp": 0.0}
        for cache in ("separate", "unified"):
            numbers = map(str, (torch.get_num_threads(), batch, LLAMA_CELLS))
            command = [python, str(Path(__file__).with_name("llama_peer.py")), str(file), *numbers, cache]
            theirs = timed_llama(command, student, problems, batch)
            pairs = list(zip(chains, theirs.pop("chains"), strict=True))
            print(f"  batch {batch}, {cache} KV cells: {theirs}", flush=True)
            if theirs["llama.cpp"] > row["llama.cpp"]:
                row |= {**theirs, "kv_cache": cache, "same_chains": sum(a.steps == b.steps for a, b in pairs)}
                row["same_first_turns"] = sum(a.steps[0] == b.steps[0] for a, b in pairs)
        rows.append({**row, "ratio": round(row["ours"] / row["llama.cpp"], 2)})
        print(json.dumps(rows[-1]), flush=True)
        device = f"{torch.get_num_threads()} CPU cores, {student[0].dtype}"
        report = {"llama_cpp_python": found.stdout.strip(), "gguf": file.name, "device": device, "rows": rows}
        path.write_text(json.dumps(report, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--merge", action="store_true", help="the adapter into the weights")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--problems", type=int, default=256)
    parser.add_argument("--json", type=Path, help="default: outputs/benchmark_rollouts.json, or ..._llama.json")
    parser.add_argument("--llama-python", metavar="PATH", help="a Python that has llama-cpp-python")
    parser.add_argument("--llama-batches", type=int, nargs="+", default=[1, 16, 64])
    options = parser.parse_args()
    options.json = options.json or Path(f"outputs/benchmark_{'llama' if options.llama_python else 'rollouts'}.json")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    if options.llama_python:
        return against_llama(options.llama_python, options.llama_batches, options.json)
    model, tokenizer = load_student(StudentSettings(), adapter=options.adapter)
    if options.merge:
        model = model.merge_and_unload()
    problems = TASK.generate(options.problems, "test", 0, levels=(2, 3, 4, 5))
    few = problems[: max(1, options.problems // 16)]
    work = {
        "batch": (problems, lambda: ours(model, tokenizer, problems, options.batch)),
        "batch_1": (few, lambda: ours(model, tokenizer, few, 1)),
        "microchain": (few, lambda: [microchain_chain(model, tokenizer, problem) for problem in few]),
    }
    rates, chains = {}, {}
    with torch.inference_mode():
        ours(model, tokenizer, few[:2], 2)  # warm up
        for name, (asked, run) in work.items():
            started = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                chains[name] = run()
            rates[name] = round(len(asked) / (time.perf_counter() - started), 4)
            print(
                f"{name}: {rates[name]} chains/s, {sum(c.sound for c in chains[name])} of {len(asked)} sound",
                flush=True,
            )
    same = sum(a.steps == b.steps for a, b in zip(chains["microchain"], chains["batch"], strict=False))
    report = {
        "ratio_vs_microchain": round(rates["batch"] / rates["microchain"], 1),
        "ratio_vs_batch_1": round(rates["batch"] / rates["batch_1"], 1),
        "chains_per_second": rates,
        "same_chains_as_microchain": f"{same} of {len(few)}",
        "batch": options.batch,
        "adapter": "merged" if options.merge else "beside the weights" if options.adapter else "none",
        "device": f"{torch.get_num_threads()} CPU cores, {model.dtype}"
        if model.device.type == "cpu"
        else str(model.device),
    }
    print(json.dumps(report))
    options.json.write_text(json.dumps(report, indent=2) + "\n")
    plot(rates, options.batch, options.json.with_suffix(".png"))


def plot(rates: dict[str, float], batch: int, path: Path) -> None:
    """Chains per second of each."""
    figure, axes = plt.subplots(figsize=(6, 2), layout="constrained")
    labels = {"batch": f"rollouts, batch {batch}", "batch_1": "rollouts, batch 1", "microchain": "microchain's Agent"}
    bars = axes.barh([labels[name] for name in rates], list(rates.values()), color=["#f58518", "#f7b267", "#9aa0a6"])
    axes.bar_label(bars, padding=3)
    axes.invert_yaxis()
    axes.set(xlabel="chains per second", xscale="log")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()

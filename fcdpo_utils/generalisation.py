"""The trained student outside its training: deeper and differently worded problems, other functions, other puzzles.

And what it forgot: the log-likelihood of plain chat before and after. Knows nothing of notebooks or figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fcdpo_utils.agent import Chain
from fcdpo_utils.artifacts import Report, evaluate_student, evaluation_identity
from fcdpo_utils.evaluation import mcnemar
from fcdpo_utils.profiles import ProbeSettings, Settings, TaskSettings
from fcdpo_utils.tasks import TASKS, Problem
from fcdpo_utils.tokens import encode_chat


def probe_problems(probe: ProbeSettings, seed: int) -> list[Problem]:
    """The problems of one probe; the same arguments give the same problems."""
    return TASKS[probe.task].generate(probe.test, probe.split, seed, levels=probe.levels)


def probe_settings(probe: ProbeSettings, settings: Settings) -> Settings:
    """The run's settings with the toolset of the probe, by default that of the run, and room for long chains."""
    toolset = probe.toolset or (settings.tasks[probe.task].toolset if probe.task in settings.tasks else None)
    task = TaskSettings(train=0, test=probe.test, levels=probe.levels, toolset=toolset)
    limits = settings.limits.model_copy(update={"calls": settings.generalisation.calls})
    return settings.model_copy(update={"tasks": {probe.task: task}, "limits": limits})


def ask(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    probe: ProbeSettings,
    settings: Settings,
    path: Path,
    adapter: Path | None,
    progress: Report,
) -> list[Chain]:
    """Greedy chains of a student on a probe, kept in `path`; `adapter` is where its weights came from."""
    own = probe_settings(probe, settings)
    identity = evaluation_identity(own, adapter)
    return evaluate_student(model, tokenizer, probe_problems(probe, settings.seed), own, path, identity, progress)


@dataclass(frozen=True)
class ChatTurn:
    """One question of plain chat and a reference answer."""

    question: str
    answer: str


def chat_turns() -> list[ChatTurn]:
    """The fixed set of plain chat in `plain_chat.yaml`, which no training uses."""
    text = files("fcdpo_utils").joinpath("plain_chat.yaml").read_text(encoding="utf-8")
    return [ChatTurn(**turn) for turn in yaml.safe_load(text)]


@torch.no_grad()
def answer_log_likelihoods(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, turns: Sequence[ChatTurn]
) -> list[float]:
    """Mean log-likelihood per token (nats) of each reference answer, its end of turn included."""
    values = []
    for turn in turns:
        messages = [{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.answer}]
        tokens = encode_chat(tokenizer, messages)
        logits = model(torch.tensor([tokens.ids], device=model.device)).logits[0].float().log_softmax(-1)
        answer = [index for index, policy in enumerate(tokens.policy) if policy]
        values.append(sum(logits[i - 1, tokens.ids[i]].item() for i in answer) / len(answer))
    return values


def forgetting(before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
    """Mean log-likelihoods (nats per token) before and after, and an exact sign test on which answers lost."""
    test = mcnemar([b > a for b, a in zip(before, after, strict=True)], [a > b for b, a in zip(before, after)])  # noqa: B905
    means = {"before": sum(before) / len(before), "after": sum(after) / len(after)}
    return {"n": len(before), **means, "likelier": test.gained, "less_likely": test.lost, "p": test.p}

"""The trained student outside its training: deeper and differently worded problems, other functions, another puzzle.

And what it forgot: the log-likelihood of plain chat (`generalisation.yaml`) before and after. Knows nothing of
notebooks or figures.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fcdpo_utils import engine
from fcdpo_utils.chains import Evaluation
from fcdpo_utils.evaluation import mcnemar
from fcdpo_utils.lab.settings import OODSettings, RunSettings
from fcdpo_utils.loss import sequence_log_prob
from fcdpo_utils.problems import TASKS, Problem
from fcdpo_utils.tasks.making import with_functions
from fcdpo_utils.tokens import Message, encode_chat


def ood_problems(ood: OODSettings, settings: RunSettings) -> list[Problem]:
    """The problems of one out-of-distribution set; the same arguments give the same problems."""
    problems = TASKS[ood.task].generate(ood.test, ood.split, settings.seed, levels=ood.levels)
    own = settings.tasks[ood.task].toolset[:1] if ood.task in settings.tasks else ()
    return with_functions(problems, settings.seed, ood.toolset or own, ood.naming, ood.missing)


def ood_evaluation(ood: OODSettings, settings: RunSettings, path: Path, adapter: Path | None) -> Evaluation:
    """Greedy chains of a student on a set, with room for long ones; `adapter` is where its weights come from."""
    own = settings.changed([f"limits.calls={settings.generalisation.calls}"])
    return Evaluation(ood_problems(ood, settings), own, path, engine, adapter)


def plain_chats() -> list[list[Message]]:
    """The fixed set of plain chat, which no training uses: a question and a reference answer each."""
    turns = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    roles = {"user": "question", "assistant": "answer"}
    return [[{"role": role, "content": turn[part]} for role, part in roles.items()] for turn in turns]


@torch.no_grad()
def answer_log_likelihoods(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, chats: Sequence[list[Message]]
) -> list[float]:
    """Mean log-likelihood per token (nats) of each reference answer, its end of turn included."""
    encoded = [encode_chat(tokenizer, chat) for chat in chats]
    return [sequence_log_prob(model, tokens).item() / sum(tokens.policy) for tokens in encoded]


def forgetting(before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
    """Mean log-likelihoods (nats per token) before and after, and an exact sign test on which answers lost."""
    pairs = list(zip(before, after, strict=True))
    test = mcnemar([b > a for b, a in pairs], [a > b for b, a in pairs])
    means = {"before": sum(before) / len(before), "after": sum(after) / len(after)}
    return {"n": len(before), **means, "likelier": test.gained, "less_likely": test.lost, "p": test.p}

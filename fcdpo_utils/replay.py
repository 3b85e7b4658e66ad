"""Plain chat kept while a student learns to call functions: its own answers to some questions, trained on as well.

Training on one kind of text makes others less likely. A small share of the untouched student's own answers, in its own
words, holds it near what it was (self-distillation, as in arXiv 2402.13669). Questions are in `replay.yaml`; the check
of what was forgotten asks others (`lab.generalisation`).
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
import yaml
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fcdpo_utils.episode import Chain, Step
from fcdpo_utils.preferences import Completion, Preferences, PromptGroup
from fcdpo_utils.tokens import Message, render

TASK = "plain chat"
MAX_ANSWER = 64  # tokens


def questions(count: int) -> list[str]:
    """Raises ValueError where there are not so many."""
    known = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    if count > len(known):
        raise ValueError(f"training.replay: at most {len(known)} questions, got {count}")
    return known[:count]


@torch.no_grad()
def own_answers(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, chats: Sequence[list[Message]]
) -> list[str]:
    """Greedy answers of the student as it was before any training."""
    texts = [render(tokenizer, chat, generate=True) for chat in chats]
    batch = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
    with model.disable_adapter() if isinstance(model, PeftModel) else nullcontext():
        written = model.generate(**batch.to(model.device), do_sample=False, max_new_tokens=MAX_ANSWER)
    answers = tokenizer.batch_decode(written[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [_whole(answer.strip()) for answer in answers]


def _whole(answer: str) -> str:
    """An answer up to the end of its last whole sentence, where it has one."""
    return answer[: answer.rfind(".") + 1] or answer


def with_replay(
    preferences: Preferences,
    prompts: Mapping[str, list[Message]],
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
) -> tuple[Preferences, dict[str, list[Message]]]:
    """The data and the prompts with `count` plain questions more, each a group of one chosen "chain": its answer."""
    chats = {f"chat-{number:03}": [{"role": "user", "content": text}] for number, text in enumerate(questions(count))}
    completions, groups = [*preferences.completions], [*preferences.groups]
    for name, answer in zip(chats, own_answers(model, tokenizer, [*chats.values()]), strict=True):
        chain = Chain(name, (Step(answer, "", None),), "solved", None, True, True)
        groups.append(PromptGroup(name, (len(completions),), ()))
        completions.append(Completion(name, TASK, True, chain))
    return Preferences(tuple(completions), tuple(groups)), {**prompts, **chats}

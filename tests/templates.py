"""The chat templates and special tokens of the known students' families, put on the embedded student's tokenizer.

The templates are written anew after the shape of each family's rendering: whitespace, default system line, what they
refuse, and what they write after the last turn. Special tokens have the flags they have in the family's own tokenizer:
Phi-3's swallow the white space after them, and its end of turn is no token that the tokenizer has a name for.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

from transformers import AddedToken, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Family:
    """`template` None is the tokenizer's own; `between` is what stands between two calls, {} being the result.

    `named`: special tokens by role, such as eos_token. `others`: special tokens without one. `swallowing`: whether
    these take the white space after them along.
    """

    template: str | None
    end_of_turn: str
    between: str
    named: dict[str, str]
    others: tuple[str, ...] = ()
    swallowing: bool = False


_ALTERNATE = (
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
)
_SYSTEM = "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_BETWEEN_CHATML = "<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"

FAMILIES = {
    "smollm2": Family(None, "<|im_end|>", _BETWEEN_CHATML, {}),
    "qwen2.5": Family(
        _SYSTEM + _CHATML,
        "<|im_end|>",
        _BETWEEN_CHATML,
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    ),
    "mistral": Family(
        "{{ bos_token }}{% for m in messages %}"
        + _ALTERNATE
        + "{% if m.role == 'user' %} [INST] {{ m.content }} [/INST]"
        "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        "</s>",
        "</s> [INST] {} [/INST]",
        {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"},
    ),
    "mistral, first release": Family(
        "{{ bos_token }}{% for m in messages %}"
        + _ALTERNATE
        + "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% elif m.role == 'assistant' %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        "</s>",
        "</s>[INST] {} [/INST]",
        {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"},
    ),
    "llama-3": Family(
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{{ m.content | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        "<|eot_id|>",
        "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": "<|eot_id|>"},
        ("<|start_header_id|>", "<|end_header_id|>"),
    ),
    "phi-3": Family(
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
        "<|end|>",
        "<|end|>\n<|user|>\n{}<|end|>\n<|assistant|>\n",
        {"bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        ("<|user|>", "<|assistant|>", "<|end|>"),
        swallowing=True,
    ),
}


def speaking(tokenizer: PreTrainedTokenizerBase, family: Family) -> PreTrainedTokenizerBase:
    """A copy of `tokenizer` with the family's template and special tokens, and no names for other ones."""
    changed = copy.deepcopy(tokenizer)
    if family.template is None:
        return changed
    options = {"normalized": False, "special": True, "rstrip": family.swallowing}
    changed.add_tokens([AddedToken(text, **options) for text in family.others], special_tokens=True)
    changed.add_special_tokens({"additional_special_tokens": [], **family.named})
    changed.chat_template = family.template
    return changed

"""Tokenised chats as a specification: which tokens are the policy's, for the chat templates of the students."""

from __future__ import annotations

import copy

import pytest
from transformers import PreTrainedTokenizerBase

from fcdpo_utils.tokens import encode_chat, render

# The shape of each family's rendering: whitespace, the beginning-of-text token and the end-of-turn token.
TEMPLATES = {
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "mistral": (
        "<s>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% elif m.role == 'assistant' %}{{ m.content }}</s>"
        "{% else %}{{ raise_exception('only user and assistant roles are supported') }}{% endif %}{% endfor %}"
    ),
    "llama-3": (
        "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{{ m.content | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    "phi-3": (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}<|endoftext|>{% endif %}"
    ),
}
SPECIAL = ["<s>", "</s>", "[INST]", "[/INST]", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"]
SPECIAL += ["<|eot_id|>", "<|user|>", "<|assistant|>", "<|end|>"]
END_OF_TURN = {"chatml": "<|im_end|>", "mistral": "</s>", "llama-3": "<|eot_id|>", "phi-3": "<|end|>"}

CALLS = ["Sum(2, 3)", 'Answer("5")', "Stop()"]
CHAT = [
    {"role": "user", "content": "What is 2 + 3?"},
    {"role": "assistant", "content": CALLS[0]},
    {"role": "user", "content": "5"},
    {"role": "assistant", "content": CALLS[1]},
    {"role": "user", "content": "Answer recorded"},
    {"role": "assistant", "content": CALLS[2]},
]


@pytest.fixture(params=sorted(TEMPLATES))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def student(tokenizer: PreTrainedTokenizerBase, family: str) -> PreTrainedTokenizerBase:
    changed = copy.deepcopy(tokenizer)
    changed.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", *SPECIAL]})
    changed.chat_template = TEMPLATES[family]
    return changed


def test_the_policy_tokens_are_the_calls_with_their_end_of_turn(student: PreTrainedTokenizerBase, family: str) -> None:
    tokens = encode_chat(student, CHAT)
    said = student.decode([i for i, policy in zip(tokens.ids, tokens.policy, strict=True) if policy])
    assert said.replace(" ", "") == "".join(call + END_OF_TURN[family] for call in CALLS).replace(" ", "")


def test_a_chat_is_tokenised_once_as_the_text_of_its_template(student: PreTrainedTokenizerBase) -> None:
    tokens = encode_chat(student, CHAT)
    whole = student(render(student, CHAT), add_special_tokens=False)["input_ids"]
    assert list(tokens.ids) == whole[: len(tokens.ids)] and len(tokens.ids) == len(tokens.policy)
    if student.bos_token in whole:
        assert whole.count(student.bos_token_id) <= len(CHAT)


def test_nothing_follows_the_last_policy_token(student: PreTrainedTokenizerBase) -> None:
    assert encode_chat(student, CHAT).policy[-1]


def test_the_prompt_ends_where_the_first_call_begins(student: PreTrainedTokenizerBase) -> None:
    tokens = encode_chat(student, CHAT)
    assert tokens.policy.index(True) == tokens.prompt_length
    assert (
        student.decode(tokens.ids[: tokens.prompt_length]).rstrip() == render(student, CHAT[:1], generate=True).rstrip()
    )


def test_a_template_without_a_system_role_needs_none(tokenizer: PreTrainedTokenizerBase) -> None:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = TEMPLATES["mistral"]
    with pytest.raises(Exception, match="only user and assistant roles"):
        render(changed, [{"role": "system", "content": "x"}])
    assert render(changed, CHAT).count("<s>") == 1


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(ValueError, match="rewrites earlier turns"):
        encode_chat(changed, CHAT)

"""Tokenised chats as a specification: which tokens are the policy's, for the chat templates of the students."""

import copy

import pytest
from templates import FAMILIES, Family, speaking
from transformers import PreTrainedTokenizerBase

from fcdpo_utils.tokens import encode_chat, render

CALLS = ["Sum(2, 3)", 'Answer("5")', "Stop()"]
CHAT = [
    {"role": "user", "content": "What is 2 + 3?"},
    {"role": "assistant", "content": CALLS[0]},
    {"role": "user", "content": "5"},
    {"role": "assistant", "content": CALLS[1]},
    {"role": "user", "content": "Answer recorded"},
    {"role": "assistant", "content": CALLS[2]},
]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture
def student(tokenizer: PreTrainedTokenizerBase, family: Family) -> PreTrainedTokenizerBase:
    return speaking(tokenizer, family)


def test_the_policy_tokens_are_the_calls_with_their_end_of_turn(
    student: PreTrainedTokenizerBase, family: Family
) -> None:
    tokens = encode_chat(student, CHAT)
    said = student.decode([i for i, policy in zip(tokens.ids, tokens.policy, strict=True) if policy])
    assert said.replace(" ", "") == "".join(call + family.end_of_turn for call in CALLS).replace(" ", "")


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
    before, asked = student.decode(tokens.ids[: tokens.prompt_length]), render(student, CHAT[:1], generate=True)
    assert "".join(before.split()) == "".join(asked.split())  # Phi-3's tokens swallow line ends


def test_a_masked_turn_is_the_policys_no_more_and_nothing_else_changes(student: PreTrainedTokenizerBase) -> None:
    plain, masked = encode_chat(student, CHAT), encode_chat(student, CHAT, masked_turns=[1])
    assert (masked.ids, masked.prompt_length) == (plain.ids, plain.prompt_length)
    gone = [index for index, (p, m) in enumerate(zip(plain.policy, masked.policy, strict=True)) if p and not m]
    assert CALLS[1] in student.decode([plain.ids[index] for index in gone]) and gone == [*range(gone[0], gone[-1] + 1)]
    assert sum(masked.policy) + len(gone) == sum(plain.policy)


def test_a_template_without_a_system_role_needs_none(tokenizer: PreTrainedTokenizerBase) -> None:
    changed = speaking(tokenizer, FAMILIES["mistral, first release"])
    with pytest.raises(Exception, match="roles must alternate"):
        render(changed, [{"role": "system", "content": "x"}, *CHAT])
    assert render(changed, CHAT).count("<s>") == 1


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(ValueError, match="rewrites earlier turns"):
        encode_chat(changed, CHAT)

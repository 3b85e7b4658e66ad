"""Chat messages -> token ids and a policy mask, by the student's own chat template.

A chain is tokenised once, as a whole. Assistant turns are found by rendering the template turn by turn and mapping
character spans to tokens, so it works for any template whose rendering only ever grows. Knows nothing of losses.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a chain and its labels need no tokenizer
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]
Prompts = dict[str, list[Message]]  # by problem id
Schemas = list[dict[str, Any]] | None  # of functions, for a chat template that knows tools


@dataclass(frozen=True)
class Tokens:
    """One tokenised chat. `ids` and `policy` have shape (seq,); `prompt_length` counts the tokens of the prompt.

    `policy[t]` is True where token t was the model's to choose: the assistant's text and its end-of-turn token.
    """

    ids: tuple[int, ...]
    policy: tuple[bool, ...]
    prompt_length: int


def render(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], generate: bool = False, tools: Schemas = None
) -> str:
    """The chat as text; `generate` appends what opens an assistant turn, `tools` are JSON schemas for the template."""
    return tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=generate)


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of rendered text; no special tokens are added, for the template has written them already."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def encode_chat(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], masked_turns: Iterable[int] = ()
) -> Tokens:
    """Tokenise one chat whose first assistant turn starts the completion.

    `masked_turns`: the assistant turns, from 0, whose tokens do not count as the policy's, such as rejected calls in a
    chain to learn from. Raises ValueError where the template rewrites earlier turns (its rendering is not a prefix of
    the longer one).
    """
    spans = _assistant_spans(tokenizer, messages)
    text = render(tokenizer, messages)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    # not `all_special_ids`: Phi-3's tokenizer has no name for <|end|>
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    policy = [False] * len(ids)
    turns: list[list[int]] = [[] for _ in spans]
    for turn, (start, end) in zip(turns, spans, strict=True):
        for index in (i for i, (left, right) in enumerate(offsets) if start <= left < end and right > left):
            turn.append(index)
            policy[index] = True
            if ids[index] in special:  # the end of turn; calls have none
                break
    prompt_length = next((i for i, (left, _) in enumerate(offsets) if spans and left >= spans[0][0]), len(ids))
    if spans and spans[-1][1] == len(text):  # what the template writes after the last end of turn predicts nothing
        last = max(index for index, chosen in enumerate(policy) if chosen)
        ids, policy = ids[: last + 1], policy[: last + 1]
    for index in (index for turn in masked_turns for index in turns[turn]):
        policy[index] = False
    return Tokens(tuple(ids), tuple(policy), prompt_length)


def turn_ends(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end a model's turn: what closes an assistant turn in its template, and its end of text."""
    chat = [{"role": role, "content": text} for role, text in (("user", "?"), ("assistant", "!call!"), ("user", "?"))]
    return {encode_text(tokenizer, render(tokenizer, chat).partition("!call!")[2])[0], tokenizer.eos_token_id}


def unmasked(tokens: Tokens) -> Tokens:
    """The same chat with all of its completion the policy's, results and role markers included."""
    return replace(tokens, policy=tuple(index >= tokens.prompt_length for index in range(len(tokens.ids))))


def _assistant_spans(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> list[tuple[int, int]]:
    """The (start, end) characters of each assistant turn in the rendered chat."""
    spans = []
    for index in (index for index, message in enumerate(messages) if message["role"] == "assistant"):
        before = render(tokenizer, messages[:index], generate=True)
        after = render(tokenizer, messages[: index + 1])
        if not after.startswith(before):
            raise ValueError("this chat template rewrites earlier turns; its assistant tokens cannot be located")
        spans.append((len(before), len(after)))
    return spans

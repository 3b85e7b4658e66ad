"""Plain chat that a student is kept to: its own answers, beside the chains."""

from __future__ import annotations

import pytest
from small import GROUPS, adapted, data_of, preferences_of, random_llama
from transformers import PreTrainedTokenizerBase

from fcdpo_utils.lab.generalisation import plain_chats
from fcdpo_utils.preferences import PromptGroup
from fcdpo_utils.replay import TASK, own_answers, questions, with_replay


def test_no_question_of_the_check_is_trained_on() -> None:
    asked = {chat[0]["content"] for chat in plain_chats()}
    assert len(asked) == 100 and not asked & set(questions(60))
    with pytest.raises(ValueError, match=r"^training.replay: at most 60 questions, got 61$"):
        questions(61)


def test_answers_are_those_of_the_student_before_any_training(tokenizer: PreTrainedTokenizerBase) -> None:
    model = random_llama(len(tokenizer))
    chats = [[{"role": "user", "content": text}] for text in questions(3)]
    answers = own_answers(model, tokenizer, chats)
    assert [own_answers(model, tokenizer, [chat])[0] for chat in chats] == answers  # padding changes nothing
    assert own_answers(adapted(model), tokenizer, chats) == answers


def test_each_answer_is_a_group_of_its_own_and_needs_no_rejected_chain(tokenizer: PreTrainedTokenizerBase) -> None:
    before = preferences_of(GROUPS)
    data, prompts = with_replay(before, {"a": []}, random_llama(len(tokenizer)), tokenizer, 2)
    assert data.groups[:2] == before.groups and data.completions[:6] == before.completions
    assert [(g.chosen, g.rejected) for g in data.groups[2:]] == [((6,), ()), ((7,), ())]
    assert {c.task for c in data.completions[6:]} == {TASK} and list(prompts) == ["a", "chat-000", "chat-001"]


@pytest.mark.parametrize("pairs", ["augmented", "original"])
def test_it_is_drawn_beside_pairs_and_only_its_likelihood_counts(pairs: str) -> None:
    groups = [*GROUPS, PromptGroup("chat", (1,), ())]
    data = data_of(groups, tasks=["fol", "fol", TASK], pairs=pairs)
    assert len(data) == 3 and data[2] == {"chosen": [1], "rejected": []}
    assert len(data_of(groups, tasks=["fol"] * 3, pairs=pairs)) == 2

"""Prompt groups as a data set: which completions are drawn, in which order, and as which batch."""

import pytest
from small import GROUPS, TOKENS, data_of

from fcdpo_utils.dataset import TaskSampler, kinds
from fcdpo_utils.preferences import PromptGroup


def test_prompts_without_both_kinds_are_left_out() -> None:
    assert len(data_of([PromptGroup("x", (0,), ()), *GROUPS])) == 2
    with pytest.raises(ValueError, match="no prompt has both"):
        data_of([PromptGroup("x", (0,), ())])


def test_large_groups_are_sampled_anew_each_epoch() -> None:
    data = data_of([PromptGroup("x", (0, 1), (2, 3, 4, 5))], max_chosen=1, max_rejected=2)
    drawn = set()
    for epoch in range(20):
        data.set_epoch(epoch)
        item = data[0]
        assert (len(item["chosen"]), len(item["rejected"])) == (1, 2) and data[0] == item
        drawn.add((*item["chosen"], *item["rejected"]))
    assert len(drawn) > 5


def test_used_completions_are_those_that_some_epoch_draws() -> None:
    data = data_of([PromptGroup("x", (0, 1), (2, 3, 4, 5))], max_chosen=1, max_rejected=1)
    data.set_epoch(7)
    drawn = set()
    for epoch in range(3):
        other = data_of([PromptGroup("x", (0, 1), (2, 3, 4, 5))], max_chosen=1, max_rejected=1)
        other.set_epoch(epoch)
        drawn |= {*other[0]["chosen"], *other[0]["rejected"]}
    assert set(data.used_completions(3)) == drawn and data.epoch == 7


def test_without_augmentation_the_same_chains_are_drawn_and_paired_in_order() -> None:
    wide = [PromptGroup("x", (0, 1), (2, 3, 4, 5))]
    augmented, original = (
        data_of(wide, pairs=pairs, max_chosen=2, max_rejected=3) for pairs in ("augmented", "original")
    )
    assert original[0]["chosen"] == augmented[0]["chosen"] == [0, 1]
    assert original[0]["rejected"] == augmented[0]["rejected"][:2] and len(augmented[0]["rejected"]) == 3


def test_a_batch_numbers_its_sequences_group_by_group() -> None:
    data = data_of(GROUPS)
    batch = data.collate([data[0], data[1]])["batch"]
    assert batch.completions == (0, 1, 2, 3, 4, 5) and batch.sizes == ((2, 2), (1, 1))
    assert batch.sequences == tuple(TOKENS)
    assert [(TOKENS[w], TOKENS[l]) for w, l in batch.sides()] == [(TOKENS[:2], TOKENS[2:4]), (TOKENS[4:5], TOKENS[5:])]


def test_batches_hold_one_task_each() -> None:
    tasks = ["a"] * 10 + ["b"] * 7
    groups = [PromptGroup(str(number), (2 * number,), (2 * number + 1,)) for number in range(17)]
    sampler = TaskSampler(data_of(groups, TOKENS[:1] * 34, tasks), 4, seed=0)
    order = list(sampler)
    assert sorted(order) == list(range(17))
    batches = [order[i : i + 4] for i in range(0, 12, 4)]
    assert all(len({tasks[i] for i in batch}) == 1 for batch in batches)
    sampler.set_epoch(1)
    assert list(sampler) != order


def test_prompts_that_share_their_functions_are_kinds_of_a_task() -> None:
    a, b, c = ([start, *range(100, 170)] for start in (1, 2, 3))  # as long as a few lines of functions
    ids = [[7, *a, 8], [7, *b, 8], [7, *a, 9], [7, *c, 8], [7, *b, 9, 9]]
    found = kinds(["t"] * 5, ids)
    assert found[0] == found[2] and found[1] == found[4] and found[0] != found[1] and found[3] == ("t", ())
    assert kinds(["t", "u"], [[7, *a], [7, *a]]) == [("t", ()), ("u", ())]  # all of a task share all there is
    assert kinds(["t"] * 3, [[7, *a, 1], [7, *a, 2], [7, *a, 3]]) == [("t", ())] * 3

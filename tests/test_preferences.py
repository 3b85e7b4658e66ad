"""Preference data as a specification: which chains become completions, and which pairs they make."""

import tracemalloc
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcdpo_utils import store
from fcdpo_utils.arithmetic import Arithmetic
from fcdpo_utils.episode import Chain, Step, prompt
from fcdpo_utils.preferences import (
    Preferences,
    PromptGroup,
    build_preferences,
    export_rows,
    load_preferences,
    save_preferences,
)
from fcdpo_utils.teacher import SampleRequest
from fcdpo_utils.teachers.scripted import ScriptedTeacher


def chain(problem: str, call: str, solved: bool = False, sound: bool = False) -> Chain:
    """A chain of one call; chains of one problem are distinct where their calls are."""
    steps = (Step(call, "ok", None), Step("Stop()", "Stopped", None))
    return Chain(problem, steps, "solved" if solved else "wrong_answer", "1", solved, sound)


def built(*chains: Chain, label: str = "sound") -> Preferences:
    return build_preferences([("fol", one) for one in chains], label)


@st.composite
def labelled_chains(draw: st.DrawFn) -> list[tuple[str, Chain]]:
    """Chains of up to four problems with many repetitions; equal steps have equal labels, as when they are run."""
    keys = draw(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 9)), max_size=30))
    return [("fol", chain(problem, f"Call({n})", solved=n < 6, sound=n < 3)) for problem, n in keys]


def expected_counts(chains: list[tuple[str, Chain]], label: str) -> list[tuple[int, int]]:
    """(|W|, |L|) of each problem, counted without the code under test."""
    kinds: dict[str, tuple[set, set]] = {}
    for _, one in chains:
        kinds.setdefault(one.problem_id, (set(), set()))[0 if getattr(one, label) else 1].add(one.steps)
    return [(len(w), len(losers)) for w, losers in kinds.values()]


GOOD = [chain("p", f"Good({n})", True, True) for n in range(3)]
LUCKY = [chain("p", f"Lucky({n})", True, False) for n in range(2)]
BAD = [chain("p", f"Bad({n})") for n in range(2)]


# Pairs


def test_augmentation_pairs_every_correct_chain_with_every_incorrect_one() -> None:
    preferences = built(GOOD[0], BAD[0], GOOD[1], BAD[1], GOOD[2])
    assert preferences.groups == (PromptGroup("p", chosen=(0, 2, 4), rejected=(1, 3)),)
    assert list(preferences.augmented_pairs()) == [(0, 1), (0, 3), (2, 1), (2, 3), (4, 1), (4, 3)]


def test_the_original_pairs_take_the_chains_in_order_and_each_once() -> None:
    assert list(built(GOOD[0], BAD[0], GOOD[1], BAD[1], GOOD[2]).original_pairs()) == [(0, 1), (2, 3)]


def test_pairs_never_cross_problems() -> None:
    preferences = built(chain("a", "x", True, True), chain("b", "y"))
    assert list(preferences.augmented_pairs()) == list(preferences.original_pairs()) == []


def test_no_chains_make_no_pairs() -> None:
    assert built() == Preferences((), ())


labels = st.sampled_from(["sound", "solved"])


@given(labelled_chains(), labels)
def test_the_augmented_set_has_the_sum_of_products_of_pairs(chains: list, label: str) -> None:
    pairs = list(build_preferences(chains, label).augmented_pairs())
    assert len(pairs) == len(set(pairs)) == sum(w * losers for w, losers in expected_counts(chains, label))


@given(labelled_chains(), labels)
def test_the_original_set_uses_each_chain_at_most_once(chains: list, label: str) -> None:
    preferences = build_preferences(chains, label)
    pairs = list(preferences.original_pairs())
    used = [index for pair in pairs for index in pair]
    assert len(used) == len(set(used))
    assert len(pairs) == sum(min(counts) for counts in expected_counts(chains, label))


@given(labelled_chains(), labels)
def test_the_original_pairs_are_among_the_augmented(chains: list, label: str) -> None:
    preferences = build_preferences(chains, label)
    assert set(preferences.original_pairs()) <= set(preferences.augmented_pairs())


@given(labelled_chains(), labels)
def test_a_pair_is_a_correct_and_an_incorrect_chain_of_one_problem(chains: list, label: str) -> None:
    preferences = build_preferences(chains, label)
    for chosen, rejected in preferences.augmented_pairs():
        winner, loser = preferences.completions[chosen], preferences.completions[rejected]
        assert winner.problem_id == loser.problem_id
        assert getattr(winner.chain, label) and not getattr(loser.chain, label)


# Completions


@given(labelled_chains())
def test_every_distinct_chain_is_one_completion(chains: list) -> None:
    completions = build_preferences(chains).completions
    keys = [(c.problem_id, c.chain.steps) for c in completions]
    assert len(keys) == len(set(keys)) and set(keys) == {(one.problem_id, one.steps) for _, one in chains}


@given(labelled_chains())
def test_every_completion_is_in_exactly_one_group(chains: list) -> None:
    preferences = build_preferences(chains)
    indices = [i for group in preferences.groups for i in group.chosen + group.rejected]
    assert sorted(indices) == list(range(len(preferences.completions)))


def test_a_repeated_chain_is_dropped() -> None:
    assert built(GOOD[0], BAD[0], GOOD[0], BAD[0]) == built(GOOD[0], BAD[0])


def test_equal_chains_of_two_problems_are_both_kept() -> None:
    assert len(built(chain("a", "x"), chain("b", "x")).completions) == 2


def test_chains_that_differ_only_in_an_error_are_distinct() -> None:
    step = Step("x", "ok", None)
    failed = Chain("p", (Step("x", "ok", "refused"),), "too_long", None, False, False)
    assert len(built(Chain("p", (step,), "too_long", None, False, False), failed).completions) == 2


def test_groups_keep_the_order_of_the_problems_also_when_chains_are_mixed() -> None:
    preferences = built(chain("b", "1"), chain("a", "1"), chain("b", "2", True, True))
    assert [group.problem_id for group in preferences.groups] == ["b", "a"]
    assert [c.problem_id for c in preferences.completions] == ["b", "b", "a"]


def test_a_completion_knows_its_task() -> None:
    assert build_preferences([("arithmetic", GOOD[0])]).completions[0].task == "arithmetic"


# The label rule


@pytest.mark.parametrize(("label", "chosen"), [("sound", 3), ("solved", 5)])
def test_a_lucky_chain_is_chosen_only_by_the_rule_solved(label: str, chosen: int) -> None:
    group = built(*GOOD, *LUCKY, *BAD, label=label).groups[0]
    assert (len(group.chosen), len(group.rejected)) == (chosen, 7 - chosen)


def test_sound_is_the_rule_by_default() -> None:
    assert build_preferences([("fol", LUCKY[0])]).completions[0].correct is False


@pytest.mark.parametrize(("chains", "usable"), [(GOOD, False), (BAD, False), ([GOOD[0], BAD[0]], True)])
def test_a_group_is_usable_when_it_has_both_kinds(chains: list[Chain], usable: bool) -> None:
    assert built(*chains).groups[0].usable is usable


# Statistics


def test_the_statistics_count_problems_without_pairs() -> None:
    preferences = built(*GOOD, *BAD, chain("only good", "x", True, True), chain("only bad", "x"), GOOD[0])
    assert preferences.statistics() == {
        "problems": 3,
        "chains": 7,
        "correct": 4,
        "incorrect": 3,
        "only_correct": 1,
        "only_incorrect": 1,
        "pairs_original": 2,
        "pairs_augmented": 6,
    }


@given(labelled_chains())
def test_the_statistics_add_up(chains: list) -> None:
    preferences = build_preferences(chains)
    counts = preferences.statistics()
    assert counts["correct"] + counts["incorrect"] == counts["chains"] == len(preferences.completions)
    usable = sum(group.usable for group in preferences.groups)
    assert usable + counts["only_correct"] + counts["only_incorrect"] == counts["problems"]
    assert counts["pairs_original"] == len(list(preferences.original_pairs()))
    assert counts["pairs_augmented"] == len(list(preferences.augmented_pairs()))


# Export


@pytest.fixture(scope="module")
def exported() -> tuple[Preferences, list[dict]]:
    """Rows of every augmented pair of real teacher chains."""
    task = Arithmetic()
    problems = task.generate(6, "train", seed=1)
    requests = [SampleRequest(task, problem, number) for problem in problems for number in range(6)]
    chains = [(task.name, ScriptedTeacher().sample(request).chain) for request in requests]
    preferences = build_preferences(chains)
    prompts = {problem.id: prompt(task, problem) for problem in problems}
    return preferences, list(export_rows(preferences, preferences.augmented_pairs(), prompts))


def test_there_is_one_row_for_each_pair(exported: tuple[Preferences, list[dict]]) -> None:
    preferences, rows = exported
    assert len(rows) == len(list(preferences.augmented_pairs())) > 10


def test_a_row_is_its_pair_in_messages(exported: tuple[Preferences, list[dict]]) -> None:
    preferences, rows = exported
    for (chosen, rejected), row in zip(preferences.augmented_pairs(), rows, strict=True):
        assert row["chosen"] == preferences.completions[chosen].chain.messages()
        assert row["rejected"] == preferences.completions[rejected].chain.messages()


def test_chosen_and_rejected_start_and_end_with_the_assistant(exported: tuple[Preferences, list[dict]]) -> None:
    for row in exported[1]:
        assert [message["role"] for message in row["prompt"]] == ["user"]
        for name in ("chosen", "rejected"):
            assert row[name][0]["role"] == row[name][-1]["role"] == "assistant"
            assert {message["role"] for message in row[name][1::2]} <= {"user"}


def test_rows_are_read_by_datasets_as_they_were(exported: tuple[Preferences, list[dict]]) -> None:
    datasets = pytest.importorskip("datasets")
    loaded = datasets.Dataset.from_list(exported[1])
    assert sorted(loaded.column_names) == ["chosen", "prompt", "rejected"]
    assert loaded.to_list() == exported[1]


def test_only_the_given_pairs_are_exported(exported: tuple[Preferences, list[dict]]) -> None:
    preferences, rows = exported
    prompts = {group.problem_id: [] for group in preferences.groups}
    original = list(preferences.original_pairs())
    assert len(list(export_rows(preferences, original, prompts))) == len(original) < len(rows)


# Files


def no_prompts(preferences: Preferences) -> dict[str, list]:
    return {group.problem_id: [] for group in preferences.groups}


def test_what_is_saved_is_loaded(exported: tuple[Preferences, list[dict]], tmp_path: Path) -> None:
    preferences, _ = exported
    save_preferences(tmp_path, preferences, no_prompts(preferences))
    assert load_preferences(tmp_path) == preferences


def test_stored_groups_are_indices_of_stored_completions(
    exported: tuple[Preferences, list[dict]], tmp_path: Path
) -> None:
    preferences, rows = exported
    save_preferences(tmp_path, preferences, no_prompts(preferences))
    completions, groups = (store.read(tmp_path / f"{name}.jsonl") for name in ("completions", "groups"))
    pairs = [pair for group in groups for pair in product(group["chosen"], group["rejected"])]
    written = store.read(tmp_path / "preferences_augmented.jsonl")
    assert len(pairs) == len(written) == len(rows) > 0
    for (w, l), row in zip(pairs, written, strict=True):
        chosen, rejected = completions[w], completions[l]
        assert chosen["correct"] and not rejected["correct"] and chosen["problem_id"] == rejected["problem_id"]
        assert [message["content"] for message in row["chosen"]][::2] == [step[0] for step in chosen["steps"]]
        assert [message["content"] for message in row["rejected"]][::2] == [step[0] for step in rejected["steps"]]


def test_the_pairs_of_a_prompt_with_a_thousand_incorrect_chains_are_written_in_flat_memory(tmp_path: Path) -> None:
    """16,000 pairs with long prompts: the file is far larger than what is held."""
    chains = [("fol", chain("p", f"Good({n})", True, True)) for n in range(16)]
    preferences = build_preferences([*chains, *(("fol", chain("p", f"Bad({n})")) for n in range(1000))])
    prompts = {"p": [{"role": "user", "content": "x" * 2000}]}
    tracemalloc.start()
    try:
        save_preferences(tmp_path, preferences, prompts)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (tmp_path / "preferences_augmented.jsonl").stat().st_size > 32e6
    assert peak < 4e6

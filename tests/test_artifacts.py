"""Artifacts of a run as a specification: what is kept, what is made again, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from fcdpo_utils import store
from fcdpo_utils.agent import Chain, Episode
from fcdpo_utils.artifacts import (
    ADAPTER_FILE,
    evaluate_student,
    evaluation_identity,
    load_chains,
    load_preferences,
    load_problems,
    make_chains,
    prompts_of,
    save_preferences,
    save_problems,
    tokenise,
    tokens_written,
    training_identity,
)
from fcdpo_utils.preferences import Preferences, build_preferences
from fcdpo_utils.profiles import Settings, load_settings
from fcdpo_utils.rollout import Chat
from fcdpo_utils.tasks import TASKS, Problem, make_problems
from fcdpo_utils.tokens import encode_chat

SMOKE = load_settings("smoke")
SHORT = load_settings("smoke", ["evaluation.turn_tokens=8", "limits.calls=2"])


def silent(done: int, total: int, note: str) -> None:
    """No progress."""


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    return [problem for name in SMOKE.tasks for problem in make_problems(name, SMOKE.tasks[name], SMOKE.seed)]


@pytest.fixture
def train(problems: list[Problem]) -> list[Problem]:
    return [problem for problem in problems if problem.split == "train"]


def test_problems_come_back_as_they_were_saved(problems: list[Problem], tmp_path: Path) -> None:
    save_problems(tmp_path / "p.jsonl", problems)
    splits = [load_problems(tmp_path / "p.jsonl", split) for split in ("train", "test")]
    assert sorted(p.id for p in problems) == sorted(p.id for part in splits for p in part)
    assert all(p in problems for part in splits for p in part)


def test_chains_of_a_killed_run_are_completed_to_those_of_an_unbroken_one(train: list[Problem], tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    make_chains(whole, train, SMOKE, silent)
    for cut in (0.2, 0.5, 0.9):
        broken.write_bytes(whole.read_bytes()[: int(cut * whole.stat().st_size)])  # inside a record
        make_chains(broken, train, SMOKE, silent)
        assert broken.read_bytes() == whole.read_bytes()
    assert len(load_chains(whole)) == SMOKE.teacher.samples * len(train)


def test_chains_of_other_settings_are_not_mixed_in(train: list[Problem], tmp_path: Path) -> None:
    path, old = tmp_path / "c.jsonl", tmp_path / "c.jsonl.old"
    make_chains(path, train, SMOKE, silent)
    first = store.read(path)
    make_chains(path, train, load_settings("smoke", ["teacher.error_rate=0.9"]), silent)
    assert store.read(old) == first and len(store.read(path)) == len(first)
    assert {record["key"] for record in store.read(path)}.isdisjoint(record["key"] for record in first)


def test_chains_of_other_problems_are_not_mixed_in(train: list[Problem], tmp_path: Path) -> None:
    """The same identities, another seed; and fewer problems than before."""
    path = tmp_path / "c.jsonl"
    make_chains(path, train, SMOKE, silent)
    other = [p for p in make_problems("fol", SMOKE.tasks["fol"], 7) if p.split == "train"]
    assert {p.id for p in other} <= {p.id for p in train}
    make_chains(path, other[:3], SMOKE, silent)
    records = store.read(path)
    assert len(records) == 3 * SMOKE.teacher.samples
    assert {r["problem_id"] for r in records} == {p.id for p in other[:3]}


def test_more_samples_keep_the_chains_that_are_there(train: list[Problem], tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    make_chains(path, train, SMOKE, silent)
    first = store.read(path)
    make_chains(path, train, load_settings("smoke", ["teacher.samples=6"]), silent)
    made = store.read(path)
    assert [record for record in made if record["number"] < 4] == first and len(made) == 6 * len(train)
    assert not (tmp_path / "c.jsonl.old").exists()


@pytest.fixture
def run_dir(train: list[Problem], tmp_path: Path) -> Path:
    make_chains(tmp_path / "chains.jsonl", train, SMOKE, silent)
    preferences = build_preferences(load_chains(tmp_path / "chains.jsonl"))
    save_preferences(tmp_path, preferences, prompts_of(train, SMOKE))
    assert load_preferences(tmp_path) == preferences
    return tmp_path


def test_stored_pairs_are_indices_of_stored_completions(run_dir: Path) -> None:
    completions = store.read(run_dir / "completions.jsonl")
    pairs = store.read(run_dir / "pairs_augmented.jsonl")
    rows = store.read(run_dir / "preferences_augmented.jsonl")
    assert len(pairs) == len(rows) > 0
    for pair, row in zip(pairs, rows, strict=True):
        chosen, rejected = completions[pair["chosen"]], completions[pair["rejected"]]
        assert chosen["correct"] and not rejected["correct"] and chosen["problem_id"] == rejected["problem_id"]
        assert [m["content"] for m in row["chosen"]][::2] == [step[0] for step in chosen["steps"]]


def test_training_is_identified_by_data_settings_and_start(run_dir: Path, train: list[Problem], tmp_path: Path) -> None:
    preferences, prompts = load_preferences(run_dir), prompts_of(train, SMOKE)
    (tmp_path / ADAPTER_FILE).write_bytes(b"weights")
    fewer = Preferences(preferences.completions, preferences.blocks[1:])
    other = load_settings("smoke", ["training.beta=0.2"])
    identities = [
        training_identity(preferences, prompts, SMOKE),
        training_identity(preferences, prompts, other),
        training_identity(fewer, prompts, SMOKE),
        training_identity(preferences, {**prompts, "p": []}, SMOKE),
        training_identity(preferences, prompts, SMOKE, tmp_path),
    ]
    assert len(set(identities)) == len(identities)
    assert training_identity(load_preferences(run_dir), prompts, SMOKE) == identities[0]


def test_an_evaluation_is_identified_by_student_decoding_and_weights(tmp_path: Path) -> None:
    (tmp_path / ADAPTER_FILE).write_bytes(b"weights")
    trained = evaluation_identity(SMOKE, tmp_path)
    (tmp_path / ADAPTER_FILE).write_bytes(b"other weights")
    other = load_settings("smoke", ["evaluation.turn_tokens=20"])
    identities = [trained, evaluation_identity(SMOKE, tmp_path), evaluation_identity(SMOKE), evaluation_identity(other)]
    assert len(set(identities)) == 4


def test_an_interrupted_evaluation_goes_on_where_it_stopped(
    problems: list[Problem], tiny_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    path, test = tmp_path / "c.jsonl", [problem for problem in problems if problem.split == "test"][:3]

    def evaluate(settings: Settings, identity: str = "a") -> tuple[list[Chain], int]:
        made = []
        chains = evaluate_student(
            tiny_model, tokenizer, test, settings, path, identity, lambda done, *_: made.append(done)
        )
        return chains, len(made)

    first, made = evaluate(SHORT)
    assert made == 3 and [chain.problem_id for chain in first] == [problem.id for problem in test]
    calls = [len(chain.steps) for chain in first]
    assert all(n <= written <= 8 * n for n, written in zip(calls, tokens_written(path).values(), strict=True))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1][:20])  # killed while the second record was written
    assert evaluate(SHORT) == (first, 2)
    assert evaluate(SHORT) == (first, 0)
    assert evaluate(SHORT, identity="another student") == (first, 3)


def test_without_the_mask_results_count_as_the_students_words(
    run_dir: Path, train: list[Problem], tokenizer: PreTrainedTokenizerBase
) -> None:
    preferences, prompts = load_preferences(run_dir), prompts_of(train, SMOKE)
    masked, whole = (tokenise(preferences, prompts, tokenizer, mask) for mask in (True, False))
    for first, second in zip(masked, whole, strict=True):
        assert first.ids == second.ids and sum(first.policy) < sum(second.policy)
        assert not any(second.policy[: second.prompt_length]) and all(second.policy[second.prompt_length :])


def test_the_agents_view_and_the_trainers_view_of_a_chain_are_the_same_tokens(
    run_dir: Path, train: list[Problem], tokenizer: PreTrainedTokenizerBase
) -> None:
    """What is trained is what a rollout feeds: prompt, calls, results, turn by turn."""
    preferences, prompts = load_preferences(run_dir), prompts_of(train, SMOKE)
    by_id = {problem.id: problem for problem in train}
    for completion in preferences.completions[:20]:
        problem = by_id[completion.problem_id]
        trained = encode_chat(tokenizer, prompts[problem.id] + completion.chain.messages())
        episode = Episode(TASKS[problem.task], problem)
        chat = Chat(tokenizer, "python", episode.tools)
        fed = list(chat.prompt_ids(episode))
        for step in completion.chain.steps:
            fed += tokenizer(step.call, add_special_tokens=False)["input_ids"] + chat.between_turns(step.result)
        assert list(trained.ids) == fed[: len(trained.ids)]

"""Chains of a run as a specification: what is kept, what is made again, and what is refused."""

from pathlib import Path

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from fcdpo_utils import engine, plain, store
from fcdpo_utils.chains import Evaluation, load_chains, prompts_of
from fcdpo_utils.engine.rollout import Chat
from fcdpo_utils.episode import PYTHON_CALLS, Chain, Episode
from fcdpo_utils.lab.settings import load_settings
from fcdpo_utils.preferences import Preferences, build_preferences
from fcdpo_utils.problems import TASKS, Problem, load_problems, save_problems
from fcdpo_utils.settings import Settings
from fcdpo_utils.tasks.making import make_problems
from fcdpo_utils.teacher import Admit, OnSample, SampleRequest, Teacher
from fcdpo_utils.teachers import build_teacher
from fcdpo_utils.teachers.making import make_chains as make_chains_with
from fcdpo_utils.tokens import encode_chat
from fcdpo_utils.train import tokenise
from fcdpo_utils.weights import ADAPTER_FILE

SMOKE = load_settings("smoke")
SHORT = load_settings("smoke", ["evaluation.turn_tokens=8", "limits.calls=2"])


def silent(done: int, total: int, note: str = "") -> None:
    """No progress."""


def make_chains(path: Path, problems: list[Problem], settings: Settings) -> list[tuple[str, int]]:
    """Make what `path` lacks; returns (problem, number) of each sample that the teacher was asked for."""
    asked: list[tuple[str, int]] = []

    class Asked:
        """The teacher of the settings, watched."""

        def __init__(self, teacher: Teacher):
            self.teacher = teacher

        def run(self, requests: list[SampleRequest], on_sample: OnSample, admit: Admit) -> None:
            asked.extend((request.problem.id, request.number) for request in requests)
            self.teacher.run(requests, on_sample, admit)

    make_chains_with(path, problems, settings, lambda own: Asked(build_teacher(own)), silent)
    return asked


def samples(count: int, *more: str) -> Settings:
    return load_settings("smoke", [f"teacher.samples={count}", *more])


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
    make_chains(whole, train, SMOKE)
    for cut in (0.2, 0.5, 0.9):
        broken.write_bytes(whole.read_bytes()[: int(cut * whole.stat().st_size)])  # inside a record
        make_chains(broken, train, SMOKE)
        assert broken.read_bytes() == whole.read_bytes()
    assert len(load_chains(whole)) == SMOKE.teacher.samples * len(train)


def test_chains_of_other_settings_are_not_mixed_in(train: list[Problem], tmp_path: Path) -> None:
    path, old = tmp_path / "c.jsonl", tmp_path / "c.jsonl.old"
    make_chains(path, train, SMOKE)
    first = store.read(path)
    make_chains(path, train, load_settings("smoke", ["teacher.error_rate=0.9"]))
    assert store.read(old) == first and len(store.read(path)) == len(first)
    assert {record["key"] for record in store.read(path)}.isdisjoint(record["key"] for record in first)


def test_chains_of_other_problems_are_not_mixed_in(train: list[Problem], tmp_path: Path) -> None:
    """The same identities, another seed; and fewer problems than before."""
    path = tmp_path / "c.jsonl"
    make_chains(path, train, SMOKE)
    other = [p for p in make_problems("fol", SMOKE.tasks["fol"], 7) if p.split == "train"]
    assert {p.id for p in other} <= {p.id for p in train}
    make_chains(path, other[:3], SMOKE)
    records = store.read(path)
    assert len(records) == 3 * SMOKE.teacher.samples
    assert {r["problem_id"] for r in records} == {p.id for p in other[:3]}


def test_more_samples_keep_the_chains_that_are_there(train: list[Problem], tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    make_chains(path, train, SMOKE)
    first = store.read(path)
    make_chains(path, train, load_settings("smoke", ["teacher.samples=6"]))
    made = store.read(path)
    assert [record for record in made if record["number"] < 4] == first and len(made) == 6 * len(train)
    assert not (tmp_path / "c.jsonl.old").exists()


def test_fewer_samples_and_then_more_again_make_nothing_twice(
    train: list[Problem], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is not wanted waits in the other file, and comes back when it is wanted again."""
    path, old = tmp_path / "c.jsonl", tmp_path / "c.jsonl.old"
    assert len(make_chains(path, train, samples(8))) == 8 * len(train)
    whole = path.read_bytes()
    assert make_chains(path, train, samples(4)) == []
    few, line = path.read_bytes(), f"{4 * len(train)} records of c.jsonl are of other problems or settings; now in "
    assert capsys.readouterr().out == f"{line}c.jsonl.old\n"
    assert [r["number"] for r in store.read(path)] == [0, 1, 2, 3] * len(train)
    assert {r["number"] for r in store.read(old)} == {4, 5, 6, 7} and len(store.read(old)) == 4 * len(train)
    for _ in range(2):
        assert make_chains(path, train, samples(8)) == [] and path.read_bytes() == whole
        assert make_chains(path, train, samples(4)) == [] and path.read_bytes() == few
        assert len(store.read(old)) == 4 * len(train)  # none waits twice


def test_samples_that_are_not_asked_for_wait_in_peace(
    train: list[Problem], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are moved once, and cost no budget in later runs."""
    path, enough = tmp_path / "c.jsonl", samples(8, "teacher.min_per_label=1", "teacher.concurrency=1")
    make_chains(path, train, samples(8))
    make_chains(path, train, enough)
    few = path.read_bytes()
    left = len(few.splitlines())
    assert left < 8 * len(train) and "records of c.jsonl" in capsys.readouterr().out
    capped = samples(8, "teacher.min_per_label=1", "teacher.concurrency=1", f"teacher.max_chains={left + 1}")
    assert make_chains(path, train, enough) == [] and make_chains(path, train, capped) == []
    assert path.read_bytes() == few and capsys.readouterr().out == ""


def test_a_task_of_a_notebook_has_chains_too(
    train: list[Problem], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(TASKS["arithmetic"]), "__module__", "__main__")
    own = [problem for problem in train if problem.task == "arithmetic"]
    assert len(make_chains(tmp_path / "c.jsonl", own, samples(1))) == len(own)


def test_chains_of_other_settings_come_back_with_these_settings(train: list[Problem], tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    first, other = samples(2), samples(3, "teacher.error_rate=0.9")
    make_chains(path, train, first)
    before = path.read_bytes()
    assert len(make_chains(path, train, other)) == 3 * len(train)
    assert make_chains(path, train, first) == [] and path.read_bytes() == before
    assert make_chains(path, train, other) == []


def test_what_a_kill_left_in_both_files_is_not_there_twice(train: list[Problem], tmp_path: Path) -> None:
    path, old = tmp_path / "c.jsonl", tmp_path / "c.jsonl.old"
    make_chains(path, train, samples(4))
    whole = path.read_bytes()
    store.append(old, (record for record in store.read(path) if record["number"] > 1))  # and then it was killed
    make_chains(path, train, samples(2))
    assert len(store.read(old)) == 2 * len(train)
    assert make_chains(path, train, samples(4)) == [] and path.read_bytes() == whole


@pytest.fixture(scope="module")
def preferences(problems: list[Problem], tmp_path_factory: pytest.TempPathFactory) -> Preferences:
    path = tmp_path_factory.mktemp("chains") / "chains.jsonl"
    make_chains(path, [problem for problem in problems if problem.split == "train"], SMOKE)
    return build_preferences(load_chains(path))


# A student's chains


@pytest.fixture
def asked(problems: list[Problem]) -> list[Problem]:
    return [problem for problem in problems if problem.split == "test"][:3]


def test_an_evaluation_is_of_student_decoding_weights_and_engine(asked: list[Problem], tmp_path: Path) -> None:
    def key(settings: Settings = SMOKE, room: plain.Engine = engine, adapter: Path | None = None) -> str:
        return Evaluation(asked, settings, tmp_path / "c.jsonl", room, adapter).keys[asked[0].id]

    (tmp_path / ADAPTER_FILE).write_bytes(b"weights")
    trained = key(adapter=tmp_path)
    (tmp_path / ADAPTER_FILE).write_bytes(b"other weights")
    others = [load_settings("smoke", [change]) for change in ("evaluation.turn_tokens=20", "limits.calls=9")]
    keys = [trained, key(adapter=tmp_path), key(), *map(key, others), key(room=plain)]
    assert len(set(keys)) == len(keys) and key() == key()


def test_an_interrupted_evaluation_goes_on_where_it_stopped(
    asked: list[Problem], tiny_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    path = tmp_path / "c.jsonl"

    def evaluate(settings: Settings = SHORT) -> tuple[list[Chain], int]:
        made: list[int] = []
        evaluation = Evaluation(asked, settings, path, engine)
        chains = evaluation.run(tiny_model, tokenizer, lambda done, *_: made.append(done))
        assert evaluation.finished and Evaluation(asked, settings, path, engine).chains() == chains
        return chains, len(made)

    first, made = evaluate()
    assert made == 3 and [chain.problem_id for chain in first] == [problem.id for problem in asked]
    written = Evaluation(asked, SHORT, path, engine).tokens_written()
    assert all(len(chain.steps) <= written[chain.problem_id] <= 8 * len(chain.steps) for chain in first)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1][:20])  # killed while the second record was written
    assert evaluate() == (first, 2)
    assert evaluate() == (first, 0)
    other = load_settings("smoke", ["evaluation.turn_tokens=9", "limits.calls=2"])
    assert evaluate(other)[1] == 3
    assert evaluate() == (first, 0)  # they waited


def test_without_the_mask_results_count_as_the_students_words(
    preferences: Preferences, train: list[Problem], tokenizer: PreTrainedTokenizerBase
) -> None:
    prompts = prompts_of(train)
    masked, whole = (tokenise(preferences, prompts, tokenizer, mask) for mask in (True, False))
    for first, second in zip(masked, whole, strict=True):
        assert first.ids == second.ids and sum(first.policy) < sum(second.policy)
        assert not any(second.policy[: second.prompt_length]) and all(second.policy[second.prompt_length :])


def test_the_agents_view_and_the_trainers_view_of_a_chain_are_the_same_tokens(
    preferences: Preferences, train: list[Problem], tokenizer: PreTrainedTokenizerBase
) -> None:
    """What is trained is what a rollout feeds: prompt, calls, results, turn by turn."""
    prompts = prompts_of(train)
    by_id = {problem.id: problem for problem in train}
    for completion in preferences.completions[:20]:
        problem = by_id[completion.problem_id]
        trained = encode_chat(tokenizer, prompts[problem.id] + completion.chain.messages())
        episode = Episode(TASKS[problem.task], problem)
        chat = Chat(tokenizer, PYTHON_CALLS, episode.tools)
        fed = list(chat.prompt_ids(episode))
        for step in completion.chain.steps:
            fed += tokenizer(step.call, add_special_tokens=False)["input_ids"] + chat.between_turns(step.result)
        assert list(trained.ids) == fed[: len(trained.ids)]

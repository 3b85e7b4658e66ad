"""Further training as a specification: one function trains like notebook 04, a round starts where the last ended."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from fcdpo_utils import rounds, store
from fcdpo_utils import train as training
from fcdpo_utils.agent import Limits, run_calls
from fcdpo_utils.artifacts import (
    ADAPTER_FILE,
    load_chains,
    make_chains,
    prompts_of,
    save_preferences,
    save_problems,
)
from fcdpo_utils.dpo import GroupedDPOTrainer, last_checkpoint
from fcdpo_utils.preferences import build_preferences
from fcdpo_utils.profiles import Settings, load_settings
from fcdpo_utils.tasks import TASKS, Problem, make_problems
from fcdpo_utils.train import train_student

FAST = ["student.dtype=float32"]


def silent(label: str):
    return lambda done, total, note="": None


@pytest.fixture
def small_student(tiny_model, tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Students are two-layer models of the embedded one's vocabulary, the same each time."""
    state = {name: weight.clone() for name, weight in tiny_model.float().state_dict().items()}

    def load(settings, adapter=None, trainable=False):
        torch.manual_seed(1)
        model = type(tiny_model)(tiny_model.config)
        model.load_state_dict(state)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, adapter, is_trainable=trainable)
        return model, tokenizer

    monkeypatch.setattr(training, "load_student", load)
    monkeypatch.setattr(training, "REFERENCES", Path("unused"))


@pytest.fixture
def run(tmp_path: Path, small_student: None, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The data of a smoke run and a place for an adapter."""
    monkeypatch.setattr(training, "REFERENCES", tmp_path / "references.jsonl")
    settings = load_settings("smoke", FAST)
    made = [p for name, task in settings.tasks.items() for p in make_problems(name, task, 0) if p.split == "train"]
    make_chains(tmp_path / "chains.jsonl", made, settings, silent(""))
    data = build_preferences(load_chains(tmp_path / "chains.jsonl"))
    return SimpleNamespace(folder=tmp_path / "a", data=data, prompts=prompts_of(made, settings), settings=settings)


def trained(run: SimpleNamespace, settings: Settings | None = None, start: Path | None = None, name: str = "a") -> dict:
    folder = run.folder.with_name(name)
    folder.mkdir(exist_ok=True)
    return train_student(folder, run.data, run.prompts, settings or run.settings, silent, start)


def test_a_fresh_adapter_starts_at_the_loss_of_an_untrained_student(run: SimpleNamespace) -> None:
    summary = trained(run, load_settings("smoke", [*FAST, "training.sft_weight=0"]))
    assert summary["loss_first"] == pytest.approx(0.6931, abs=1e-3)
    assert (run.folder / "adapter" / ADAPTER_FILE).exists()
    assert store.read_json(run.folder / "training.json") == summary


def test_what_is_trained_already_is_not_trained_again(run: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    first = trained(run)
    monkeypatch.setattr(training, "load_student", None)
    assert trained(run) == first
    with pytest.raises(TypeError):  # other settings would train
        trained(run, load_settings("smoke", [*FAST, "training.beta=0.3"]))


@pytest.mark.parametrize("damage", ["missing", "another"])
def test_a_record_counts_only_beside_its_own_adapter(run: SimpleNamespace, damage: str) -> None:
    first = trained(run)
    weights = run.folder / "adapter" / ADAPTER_FILE
    weights.unlink() if damage == "missing" else weights.write_bytes(b"of other settings")
    assert trained(run) == first and store.file_digest(weights) == first["adapter"]


def test_nothing_but_adapter_and_record_is_left_of_a_training(run: SimpleNamespace) -> None:
    trained(run)
    training.drop_checkpoints(run.folder)
    assert {path.name for path in run.folder.iterdir()} == {"adapter", "training.json"}


def test_a_round_goes_on_from_the_last_adapter_with_it_as_the_reference(run: SimpleNamespace) -> None:
    trained(run)
    start = run.folder / "adapter"
    again = trained(run, load_settings("smoke", [*FAST, "training.sft_weight=0", "seed=1"]), start, "b")
    assert again["loss_first"] == pytest.approx(0.6931, abs=1e-3)  # not the loss against the untrained student
    before, after = (load_file(folder / ADAPTER_FILE) for folder in (start, run.folder.with_name("b") / "adapter"))
    assert before.keys() == after.keys()
    moved = [float((after[name] - before[name]).norm() / before[name].norm()) for name in before if "lora_A" in name]
    assert 0 < max(moved) < 0.5  # from where it was: matrices drawn anew would be as far apart as they are long


def test_a_round_keeps_one_adapter(run: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(GroupedDPOTrainer, "train", lambda self, **_: seen.append(list(self.model.peft_config)))
    monkeypatch.setattr(training, "training_summary", lambda *_: {})
    trained(run)
    trained(run, start=run.folder / "adapter", name="b")
    assert seen == [["default"], ["default"]]
    assert not (run.folder.with_name("b") / "adapter" / "ref").exists()


def test_the_student_is_the_teacher_of_a_round() -> None:
    settings = load_settings("smoke", ["rounds.levels={fol: [3, 5]}", "rounds.samples=6"])
    own = rounds.round_settings(2, settings, Path("adapter"))
    assert (own.teacher.kind, own.teacher.model, own.teacher.adapter) == ("local", "embedded", "adapter")
    assert (own.teacher.samples, own.teacher.temperature) == (6, 0.7)
    assert own.tasks["fol"].levels == (3, 5) and own.tasks["arithmetic"].levels == settings.tasks["arithmetic"].levels
    assert {task.train for task in own.tasks.values()} == {3}
    assert own.training.learning_rate == 0.05 * settings.training.learning_rate
    assert own.limits.errors == 1 and own.limits.calls == settings.limits.calls


def questions(problems: list[Problem]) -> dict[str, set[str]]:
    return {task: {p.question for p in problems if p.task == task} for task in ("fol", "arithmetic")}


def test_a_round_has_new_problems_and_none_of_a_held_out_form() -> None:
    settings = load_settings("cpu", ["rounds.train=60"])
    first = [p for name, task in settings.tasks.items() for p in make_problems(name, task, settings.seed)]
    own = rounds.round_settings(2, settings, Path("adapter"))
    made = rounds.new_problems(own, questions(first))
    assert len(made) == 2 * 60 and not {p.question for p in made} & {p.question for p in first}
    held_out = {(p.task, p.canonical) for p in first if p.split == "test"}
    assert held_out.isdisjoint((p.task, p.canonical) for p in made)


def test_problems_that_are_known_already_are_replaced() -> None:
    """Rows of a file are drawn again in every round; what was trained on is passed over."""
    own = rounds.round_settings(2, load_settings("smoke"), Path("adapter"))
    first = rounds.new_problems(own, questions([]))
    again = rounds.new_problems(own, questions(first))
    assert len(again) == len(first) and not {p.question for p in again} & {p.question for p in first}


def test_a_round_without_pairs_leaves_the_student_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings("smoke", ["rounds.train=2", "tasks={fol: {train: 1, test: 1, levels: [1]}}"])
    save_problems(tmp_path / "problems.jsonl", [])
    store.write_records(tmp_path / "chains.jsonl", [])
    monkeypatch.setattr(rounds, "train_student", None)

    def make(path: Path, problems: list, own: Settings, report: object) -> None:  # a student that never writes a call
        chains = [run_calls(TASKS[p.task], p, ["What?"] * 2, None, Limits(4, 2)) for p in problems]
        store.write_records(path, [chain.record(task="fol") for chain in chains])

    monkeypatch.setattr(rounds, "make_chains", make)
    (made,) = rounds.run_rounds(settings, tmp_path, silent)
    assert made.training == {} and made.adapter == tmp_path / "adapter" and made.statistics["correct"] == 0
    assert made.sampled()["pass@k"]["1"]["estimate"] == 0


def test_a_round_trains_on_its_own_chains_and_on_some_of_the_first_round(
    run: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings("smoke", ["rounds.train=2", "rounds.replay=2"])
    save_problems(
        tmp_path / "problems.jsonl", [p for name, task in settings.tasks.items() for p in make_problems(name, task, 0)]
    )
    sampled_with = []

    def make(path: Path, problems: list, own: Settings, report: object) -> None:  # a sound chain and one with an error
        sampled_with.append(own.limits.errors)
        chains = [
            run_calls(TASKS[p.task], p, calls, None, Limits(24, own.limits.errors))
            for p in problems
            for calls in (TASKS[p.task].gold_calls(p), ["What?", "Stop()"])
        ]
        tasks = {p.id: p.task for p in problems}
        store.write_records(path, [chain.record(task=tasks[chain.problem_id]) for chain in chains])

    def train(folder, preferences, prompts, own, progress, start):
        assert {block.problem_id for block in preferences.blocks} == prompts.keys()
        return {"tasks": [(block.problem_id, len(block.rejected)) for block in preferences.blocks if block.usable]}

    monkeypatch.setattr(rounds, "make_chains", make)
    monkeypatch.setattr(rounds, "train_student", train)
    (made,) = rounds.run_rounds(settings, tmp_path, silent)
    own = [name for name, _ in made.training["tasks"] if name.endswith("-round-2")]
    replayed = {name for name, _ in made.training["tasks"]} - set(own)
    usable = {block.problem_id for block in run.data.blocks if block.usable}
    assert len(own) == 4 and len(replayed) == 4 and replayed <= usable
    assert sum(name.startswith("fol") for name in replayed) == 2
    assert sampled_with == [1] and made.statistics["problems"] == 4  # what is replayed is not counted as made
    assert all(len(chain.steps) == 1 for chains in made.chains.values() for chain in chains if not chain.sound)


# The command


def test_the_command_trains_a_run_and_leaves_notebook_04_its_last_step(
    run: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_preferences(tmp_path, run.data, run.prompts)
    made = [p for name, task in run.settings.tasks.items() for p in make_problems(name, task, 0)]
    save_problems(tmp_path / "problems.jsonl", made)
    assert training.main(["--profile", "smoke", "--set", FAST[0], "--run-dir", str(tmp_path)]) == 0
    record = store.read_json(tmp_path / "training.json")
    assert f"{record['steps']} steps, {record['pairs']} pairs" in capsys.readouterr().out
    checkpoint = last_checkpoint(tmp_path / "checkpoints" / record["identity"])
    assert checkpoint is not None and checkpoint.endswith(f"checkpoint-{record['steps']}")


def test_the_command_says_in_one_line_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert training.main(["--profile", "smoke", "--run-dir", str(tmp_path)]) == 1
    assert training.main(["--profile", "nope"]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"train: run 03 first: blocks.jsonl is missing in {tmp_path}"
    assert second.startswith("train: unknown profile 'nope'")

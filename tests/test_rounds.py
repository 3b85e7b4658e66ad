"""Further training as a specification: one function trains like notebook 04, a round starts where the last ended."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from fcdpo_utils import rounds, store, training
from fcdpo_utils.artifacts import ADAPTER_FILE, load_chains, make_chains, prompts_of
from fcdpo_utils.dpo import GroupedDPOTrainer
from fcdpo_utils.preferences import build_preferences
from fcdpo_utils.profiles import Settings, load_settings
from fcdpo_utils.tasks import make_problems
from fcdpo_utils.training import train_student

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


def train(run: SimpleNamespace, settings: Settings | None = None, start: Path | None = None, name: str = "a") -> dict:
    folder = run.folder.with_name(name)
    folder.mkdir(exist_ok=True)
    return train_student(folder, run.data, run.prompts, settings or run.settings, silent, start)


def test_a_fresh_adapter_starts_at_the_loss_of_an_untrained_student(run: SimpleNamespace) -> None:
    summary = train(run, load_settings("smoke", [*FAST, "training.sft_weight=0"]))
    assert summary["loss_first"] == pytest.approx(0.6931, abs=1e-3)
    assert (run.folder / "adapter" / ADAPTER_FILE).exists()
    assert store.read_json(run.folder / "training.json") == summary


def test_what_is_trained_already_is_not_trained_again(run: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train(run)
    monkeypatch.setattr(training, "load_student", None)
    assert train(run) == first
    with pytest.raises(TypeError):  # other settings would train
        train(run, load_settings("smoke", [*FAST, "training.beta=0.3"]))


def test_a_round_goes_on_from_the_last_adapter_with_it_as_the_reference(run: SimpleNamespace) -> None:
    train(run)
    start = run.folder / "adapter"
    again = train(run, load_settings("smoke", [*FAST, "training.sft_weight=0", "seed=1"]), start, "b")
    assert again["loss_first"] == pytest.approx(0.6931, abs=1e-3)  # not the loss against the untrained student
    before, after = (load_file(folder / ADAPTER_FILE) for folder in (start, run.folder.with_name("b") / "adapter"))
    assert before.keys() == after.keys()
    moved = [float((after[name] - before[name]).norm() / before[name].norm()) for name in before if "lora_A" in name]
    assert 0 < max(moved) < 0.5  # from where it was: matrices drawn anew would be as far apart as they are long


def test_a_round_keeps_one_adapter(run: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(GroupedDPOTrainer, "train", lambda self, **_: seen.append(list(self.model.peft_config)))
    monkeypatch.setattr(training, "training_summary", lambda *_: {})
    train(run)
    train(run, start=run.folder / "adapter", name="b")
    assert seen == [["default"], ["default"]]
    assert not (run.folder.with_name("b") / "adapter" / "ref").exists()


def test_the_student_is_the_teacher_of_a_round() -> None:
    settings = load_settings("smoke", ["rounds.levels={fol: [3, 5]}", "rounds.samples=6"])
    own = rounds.round_settings(2, settings, Path("adapter"))
    assert (own.teacher.kind, own.teacher.model, own.teacher.adapter) == ("local", "embedded", "adapter")
    assert (own.teacher.samples, own.teacher.temperature) == (6, 0.7)
    assert own.tasks["fol"].levels == (3, 5) and own.tasks["arithmetic"].levels == settings.tasks["arithmetic"].levels
    assert {task.train for task in own.tasks.values()} == {3}
    assert own.training.learning_rate == settings.rounds.learning_rate


def test_rounds_have_new_problems_and_none_of_the_held_out_ones() -> None:
    settings = load_settings("cpu")
    questions = []
    for number in (2, 3):
        own = rounds.round_settings(number, settings, Path("adapter"))
        made = [p for name, task in own.tasks.items() for p in make_problems(name, task, own.seed)]
        questions.append({problem.question for problem in made})
        canonicals = {(problem.task, problem.canonical) for problem in made}
    first = [p for name, task in settings.tasks.items() for p in make_problems(name, task, settings.seed)]
    assert questions[0].isdisjoint(questions[1])
    assert canonicals.isdisjoint((p.task, p.canonical) for p in first if p.split == "test")

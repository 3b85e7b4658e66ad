"""The training of one student as a specification: as notebook 04 trains, from an adapter on, and by the command."""

import csv
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from small import SmokeData, silent

from fcdpo_utils import engine, plain, store
from fcdpo_utils import train as training
from fcdpo_utils.lab.settings import load_settings
from fcdpo_utils.pipeline.cli import main
from fcdpo_utils.preferences import Preferences, load_preferences, save_preferences
from fcdpo_utils.problems import save_problems
from fcdpo_utils.settings import Settings
from fcdpo_utils.train import TrainingSummary, train_student, training_fingerprint
from fcdpo_utils.trainer import GroupedDPOTrainer, last_checkpoint
from fcdpo_utils.weights import ADAPTER_FILE

pytestmark = pytest.mark.xdist_group("train")
FAST = ["student.dtype=float32"]
SETTINGS = load_settings("smoke", [*FAST, "training.sft_weight=0"])


def trained(data: SmokeData, folder: Path, settings: Settings = SETTINGS, start: Path | None = None) -> TrainingSummary:
    folder.mkdir(exist_ok=True)
    return train_student(folder, data.preferences, data.prompts, settings, engine, silent, start)


@pytest.fixture(scope="module")
def _finished(smoke_data: SmokeData, load_small_student, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "load_student", load_small_student)
        patch.setattr(training, "REFERENCES", folder / "references.sqlite")
        trained(smoke_data, folder / "run")
    return folder / "run"


@pytest.fixture
def finished(_finished: Path, small_student: None, tmp_path: Path) -> Path:
    """A copy of the folder of a finished training."""
    return shutil.copytree(_finished, tmp_path / "run")


def summary_in(folder: Path) -> TrainingSummary:
    return TrainingSummary(**store.read_json(folder / "training.json"))


def test_a_fresh_adapter_starts_at_the_loss_of_an_untrained_student(finished: Path) -> None:
    assert summary_in(finished).loss_first == pytest.approx(0.6931, abs=1e-3)


def test_the_summary_is_that_of_data_and_curve(finished: Path, smoke_data: SmokeData) -> None:
    summary = summary_in(finished)
    with open(finished / "training_curve.csv", newline="", encoding="utf-8") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    usable = [group for group in smoke_data.preferences.groups if group.usable]
    assert summary.prompts == len(usable) and summary.steps == len(rows)
    assert (summary.pairs, summary.tokens) == (rows[-1]["num_pairs"], rows[-1]["num_tokens"])
    assert summary.loss_first == rows[0]["loss"] and summary.loss_end == rows[-1]["loss"]
    assert summary.adapter == store.file_digest(finished / "adapter" / ADAPTER_FILE)


def test_what_is_trained_already_is_not_trained_again(
    finished: Path, smoke_data: SmokeData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "load_student", None)
    assert trained(smoke_data, finished) == summary_in(finished)
    with pytest.raises(TypeError):  # other settings would train
        trained(smoke_data, finished, load_settings("smoke", [*FAST, "training.beta=0.3"]))


@pytest.mark.parametrize("damage", ["missing", "another"])
def test_a_record_counts_only_beside_its_own_adapter(finished: Path, smoke_data: SmokeData, damage: str) -> None:
    first, weights = summary_in(finished), finished / "adapter" / ADAPTER_FILE
    weights.unlink() if damage == "missing" else weights.write_bytes(b"of other settings")
    assert trained(smoke_data, finished) == first and store.file_digest(weights) == first.adapter


def test_nothing_but_adapter_record_and_curve_is_left_of_a_training(finished: Path) -> None:
    training.drop_checkpoints(finished)
    assert {path.name for path in finished.iterdir()} == {"adapter", "training.json", "training_curve.csv"}


def test_a_round_goes_on_from_the_last_adapter_with_it_as_the_reference(
    finished: Path, smoke_data: SmokeData, tmp_path: Path
) -> None:
    start, settings = finished / "adapter", load_settings("smoke", [*FAST, "training.sft_weight=0", "seed=1"])
    again = trained(smoke_data, tmp_path / "b", settings, start)
    assert again.loss_first == pytest.approx(0.6931, abs=1e-3)  # not the loss against the untrained student
    before, after = (load_file(folder / ADAPTER_FILE) for folder in (start, tmp_path / "b" / "adapter"))
    assert before.keys() == after.keys()
    moved = [float((after[name] - before[name]).norm() / before[name].norm()) for name in before if "lora_A" in name]
    assert 0 < max(moved) < 0.5  # from where it was: matrices drawn anew would be as far apart as they are long


def test_a_round_keeps_one_adapter(
    finished: Path, smoke_data: SmokeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(GroupedDPOTrainer, "train", lambda self, **_: seen.append(list(self.model.peft_config)))
    row = {"loss": 0.0, "rewards/margins": 0.0, "rewards/chosen": 0.0, "num_pairs": 1, "num_tokens": 1}
    monkeypatch.setattr(training, "curve", lambda trainer: [row])
    trained(smoke_data, tmp_path / "a")
    trained(smoke_data, tmp_path / "b", start=finished / "adapter")
    assert seen == [["default"], ["default"]]
    assert not (tmp_path / "b" / "adapter" / "ref").exists()


def test_a_training_is_identified_by_data_settings_engine_and_start(smoke_data: SmokeData, tmp_path: Path) -> None:
    preferences, prompts = smoke_data.preferences, smoke_data.prompts
    (tmp_path / ADAPTER_FILE).write_bytes(b"weights")
    fewer = Preferences(preferences.completions, preferences.groups[1:])
    save_preferences(tmp_path, preferences, prompts)

    def key(
        data: Preferences = preferences,
        asked: dict = prompts,
        settings: Settings = SETTINGS,
        room: plain.Engine = engine,
        start: Path | None = None,
    ) -> str:
        return training_fingerprint(data, asked, settings, room, start)

    changes = ("training.beta=0.2", "seed=1", "preferences.max_chosen=3", "student.dtype=bfloat16")
    others = [key(settings=load_settings("smoke", [*FAST, "training.sft_weight=0", change])) for change in changes]
    found = [key(), key(fewer), key(asked={**prompts, "p": []}), key(room=plain), key(start=tmp_path), *others]
    assert len(set(found)) == len(found)
    assert key(load_preferences(tmp_path)) == found[0]


# The command


def test_the_command_trains_a_run_and_leaves_notebook_04_its_last_step(
    smoke_data: SmokeData, small_student: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_preferences(tmp_path, smoke_data.preferences, smoke_data.prompts)
    save_problems(tmp_path / "problems.jsonl", list(smoke_data.problems))
    shutil.copy(smoke_data.chains, tmp_path / "chains.jsonl")
    options = ["--profile", "smoke", "--set", FAST[0], "--set", "own_chains.samples=0", "--run-dir", str(tmp_path)]
    assert main(["train", *options]) == 0
    record, warmed_up = (store.read_json(tmp_path / place / "training.json") for place in (".", "warm_up"))
    assert warmed_up["pairs"] == 0 < record["pairs"] and (tmp_path / "warm_up" / "adapter" / ADAPTER_FILE).exists()
    assert f"{record['steps']} steps, {record['pairs']} pairs" in capsys.readouterr().out
    checkpoint = last_checkpoint(tmp_path / "checkpoints" / record["fingerprint"])
    assert checkpoint is not None and checkpoint.endswith(f"checkpoint-{record['steps']}")


def test_the_command_says_in_one_line_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--profile", "smoke", "--run-dir", str(tmp_path)]) == 1
    assert main(["train", "--profile", "nope"]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"fcdpo: run 03 first: groups.jsonl is missing in {tmp_path}"
    assert second.startswith("fcdpo: unknown profile 'nope'")


@pytest.mark.parametrize(("chosen", "margin", "displaced"), [(-0.1, 1.0, True), (0.1, 1.0, False), (-0.1, -0.2, False)])
def test_a_rising_margin_with_falling_chosen_chains_is_told(chosen: float, margin: float, displaced: bool) -> None:
    row = {"loss": 1.0, "rewards/margins": margin, "rewards/chosen": chosen, "num_tokens": 1}
    facts = {"fingerprint": "", "adapter": "", "student": "", "trainer": "", "prompts": 1, "pairs": 1}
    assert TrainingSummary.of([row], **facts).displaced is displaced

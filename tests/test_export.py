"""What a finished run gives to others as a specification: adapter, data, merged weights, and what their cards say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from datasets import load_dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM

from fcdpo_utils import store
from fcdpo_utils.pipeline import export, publish
from fcdpo_utils.pipeline.cli import main
from fcdpo_utils.pipeline.stage import start_stage
from fcdpo_utils.settings import StudentSettings
from fcdpo_utils.students import load_student


@pytest.fixture(scope="module")
def exported(smoke_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "run"
    shutil.copytree(smoke_run, folder)
    assert main(["export", str(folder), "--merged"]) == 0
    return folder / "export"


def front_matter(card: Path) -> dict:
    return yaml.safe_load(card.read_text(encoding="utf-8").split("---")[1])


def test_the_adapter_names_its_base_model_and_no_folder_of_this_machine(exported: Path) -> None:
    config = json.loads((exported / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    card = front_matter(exported / "adapter" / "README.md")
    assert (card["base_model"], card["license"]) == (config["base_model_name_or_path"], "apache-2.0")


def test_adapter_and_merged_weights_are_the_trained_student(exported: Path, smoke_run: Path) -> None:
    ids = torch.arange(20, 40)[None]
    base, _ = load_student(StudentSettings(dtype="float32"))
    merged = AutoModelForCausalLM.from_pretrained(exported / "merged", dtype=torch.float32)
    with torch.no_grad():
        untrained = base(ids).logits
        trained = PeftModel.from_pretrained(base, exported / "adapter")(ids).logits
        assert (trained - untrained).abs().max() > 0.05
        assert (merged(ids).logits - trained).norm() < 0.3 * (trained - untrained).norm()  # bf16 weights


def test_the_cards_hold_the_results_of_the_run(exported: Path, smoke_run: Path) -> None:
    metrics = store.read_json(smoke_run / "metrics.json")
    for name in ("adapter", "merged"):
        text = (exported / name / "README.md").read_text(encoding="utf-8")
        for task, result in metrics["tasks"].items():
            assert f"| {task} | {result['n']} | {100 * result['before']['sound']:.1f} % |" in text
        assert metrics["commit"] in text
    assert f"| {metrics['dataset']['problems']} |" in (exported / "dataset" / "README.md").read_text(encoding="utf-8")


def test_the_data_set_loads_by_its_card(exported: Path, tmp_path: Path) -> None:
    config = front_matter(exported / "dataset" / "README.md")["configs"][0]
    file = str(exported / "dataset" / config["data_files"])
    rows = load_dataset("json", data_files=file, split="train", cache_dir=str(tmp_path))
    assert set(rows.column_names) == {"prompt", "chosen", "rejected"} and len(rows) > 0


RESULT = {"n": 3, "before": {"sound": 0.0}, "after": {"sound": 0.5, "sound_ci95": [0.1, 0.9]}, "mcnemar": {"p": 0.5}}
METRICS = {
    "profile": "smoke",
    "seed": 0,
    "commit": "abc",
    "tasks": {"fol": RESULT},
    "dataset": {"problems": 1, "chains": 2, "correct": 1, "pairs_original": 1, "pairs_augmented": 1},
    "training": {"student": "135 M parameters", "prompts": 1, "pairs": 1, "steps": 1},
}


def run_by_hand(folder: Path, *overrides: str) -> Path:
    """What the notebooks leave behind, each run by hand with these overrides, as far as an export reads it."""
    for name in ("02_teacher_chains", "03_preference_data", "04_student_training"):
        start_stage(name, "smoke", str(folder), overrides).record()
    store.write_json(folder / "metrics.json", METRICS)
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_model.safetensors").touch()
    store.write_json(folder / "adapter" / "adapter_config.json", {"base_model_name_or_path": "/home/me/secret"})
    for name in ("augmented", "original"):
        (folder / f"preferences_{name}.jsonl").touch()
    return folder


def test_notebooks_run_by_hand_can_be_exported(tmp_path: Path) -> None:
    assert main(["export", str(run_by_hand(tmp_path, "training.beta=0.7", "preferences.label=solved"))]) == 0
    assert "| 0.7, " in (tmp_path / "export" / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "when it is solved." in (tmp_path / "export" / "dataset" / "README.md").read_text(encoding="utf-8")


def test_a_card_tells_the_settings_of_the_stage_that_used_them(tmp_path: Path) -> None:
    run_by_hand(tmp_path)
    start_stage("03_preference_data", "smoke", str(tmp_path), "preferences.label=solved training.beta=0.7").record()
    assert main(["export", str(tmp_path)]) == 0
    assert "| 0.1, " in (tmp_path / "export" / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "when it is solved." in (tmp_path / "export" / "dataset" / "README.md").read_text(encoding="utf-8")


def test_a_record_without_settings_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = run_by_hand(tmp_path) / "03_record.json"
    store.write_json(record, {"run": "by hand"})
    assert main(["export", str(tmp_path)]) == 1
    record.unlink()
    assert main(["export", str(tmp_path)]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"fcdpo: {record} holds no settings of this version; run 03 again"
    assert second == f"fcdpo: run 03 first: 03_record.json is missing in {tmp_path}"


def test_of_local_models_only_the_last_part_of_their_path_is_published(tmp_path: Path) -> None:
    places = [tmp_path / "secret" / name for name in ("my-student", "my-teacher", "my-adapter")]
    for place in places:
        place.mkdir(parents=True)
    names = ("student.source", "teacher.model", "teacher.adapter")
    overrides = [f"{name}={place}" for name, place in zip(names, places, strict=True)]
    run = run_by_hand(tmp_path / "run", "teacher.kind=local", *overrides)
    assert main(["export", str(run)]) == 0
    texts = {path.name: path.read_text(encoding="utf-8") for path in (run / "export").rglob("*") if path.is_file()}
    assert not [name for name, text in texts.items() if "secret" in text]
    assert front_matter(run / "export" / "adapter" / "README.md")["base_model"] == "my-student"
    assert "| teacher | local, my-teacher with my-adapter |" in (run / "export" / "dataset" / "README.md").read_text()


@pytest.mark.parametrize(("task", "licence"), [("fol", "apache-2.0"), ("folio", "cc-by-sa-4.0")])
def test_data_made_from_folio_keep_its_licence(task: str, licence: str, tmp_path: Path) -> None:
    export.export(run_by_hand(tmp_path, f"tasks={{{task}: {{train: 1, test: 1, levels: [1]}}}}"))
    assert front_matter(tmp_path / "export" / "dataset" / "README.md")["license"] == licence


@pytest.mark.parametrize("address", ["", "https://example.com/me/mine"])
def test_cards_name_the_address_only_where_there_is_one(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "address", lambda: address)
    export.export(run_by_hand(tmp_path))
    for kind in ("adapter", "dataset"):
        text = (tmp_path / "export" / kind / "README.md").read_text(encoding="utf-8")
        assert f"[fcdpo]({address})" in text if address else "https://" not in text


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"),
        ("gpt2", "gpt2"),
        ("/gone/models/mine", "mine"),
        ("../models/mine", "mine"),
        ("models/of/mine", "mine"),
        ("tests/runs.py", "runs.py"),
    ],
)
def test_a_hub_id_is_published_as_it_is_and_a_path_is_not(
    source: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    assert export.public_name(source) == name


def test_a_run_that_is_not_finished_has_nothing_to_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("fcdpo: run 05 first: metrics.json is missing")

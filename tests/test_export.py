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
from fcdpo_utils.models import load_student
from fcdpo_utils.pipeline import export
from fcdpo_utils.pipeline.cli import main
from fcdpo_utils.profiles import StudentSettings


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
        assert (merged(ids).logits - trained).abs().max() < 0.3 * (trained - untrained).abs().max()  # bf16 weights


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


def test_a_run_that_is_not_finished_has_nothing_to_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("fcdpo: run 05 first: metrics.json is missing")


def test_pushing_names_the_repositories_after_what_is_in_them(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []

    class Hub:
        def create_repo(self, name: str, repo_type: str, exist_ok: bool) -> str:
            done.append(("create", name, repo_type))
            return f"hub/{name}"

        def upload_folder(self, repo_id: str, repo_type: str, folder_path: Path) -> None:
            done.append(("upload", repo_id, folder_path.name))

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert export.push([exported / "adapter", exported / "dataset"], "me/mine") == [
        "hub/me/mine",
        "hub/me/mine-preferences",
    ]
    assert done == [
        ("create", "me/mine", "model"),
        ("upload", "me/mine", "adapter"),
        ("create", "me/mine-preferences", "dataset"),
        ("upload", "me/mine-preferences", "dataset"),
    ]


def test_a_refusing_hub_is_one_line(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hub:
        def create_repo(self, *_: object, **__: object) -> str:
            raise OSError("401 Unauthorized\nlong story")

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    with pytest.raises(ValueError, match="^cannot push adapter to the hub: 401 Unauthorized$"):
        export.push([exported / "adapter"], "me/mine")

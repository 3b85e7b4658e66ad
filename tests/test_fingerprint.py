"""One rule for what is up to date: code room by room, model bytes and the number format, and nothing else."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small import SmokeData
from transformers import LlamaForCausalLM

from fcdpo_utils import chains, engine, store, train
from fcdpo_utils import fingerprint as fingerprints
from fcdpo_utils.chains import Evaluation
from fcdpo_utils.engine import references
from fcdpo_utils.engine.references import key_of, weights_fingerprint
from fcdpo_utils.fingerprint import content_of, fingerprint
from fcdpo_utils.lab.settings import load_settings
from fcdpo_utils.pipeline import manifest
from fcdpo_utils.settings import StudentSettings
from fcdpo_utils.teachers import build_teacher, making
from fcdpo_utils.teachers.making import make_chains
from fcdpo_utils.tokens import Tokens
from fcdpo_utils.train import training_fingerprint
from fcdpo_utils.weights import ADAPTER_FILE, student_fingerprint


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package whose code may be changed."""
    copy = tmp_path / "fcdpo_utils"
    shutil.copytree(fingerprints.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(fingerprints, "PACKAGE", copy)
    monkeypatch.setattr(fingerprints, "ROOT", tmp_path)
    return copy


def code_of(*rooms: str) -> str:
    return fingerprints.code_of.__wrapped__(*rooms)  # without what it remembers


@pytest.mark.parametrize(
    ("changed", "counts"),
    [
        ("train.py", True),
        ("loss.py", True),
        ("calls.py", True),
        ("students.yaml", True),
        ("engine/trees.py", False),
        ("profiles/cpu.yaml", False),
        ("views/plots.py", False),
        ("__init__.py", False),
    ],
)
def test_a_room_depends_on_what_it_imports_and_on_nothing_else(package: Path, changed: str, counts: bool) -> None:
    before = code_of("fcdpo_utils.train")
    with open(package / changed, "a") as file:
        file.write("# changed\n")
    assert (code_of("fcdpo_utils.train") != before) is counts


def test_equal_parts_are_equal_in_any_order_and_any_change_counts() -> None:
    parts = {"seed": 0, "settings": {"beta": 0.1}}
    assert fingerprint(parts) == fingerprint(dict(reversed(parts.items()))) != fingerprint(parts | {"seed": 1})


def test_the_number_format_is_part_of_a_student() -> None:
    names = [student_fingerprint(StudentSettings(dtype=dtype)) for dtype in ("float32", "bfloat16")]
    assert len(set(names)) == 2
    assert student_fingerprint(StudentSettings(dtype="float32", four_bit=True)) not in names


def test_what_is_up_to_date_is_told_without_loading_torch(tmp_path: Path) -> None:
    """A run asks before every stage. Where torch may have a GPU, only torch knows what "auto" is."""
    (tmp_path / "cpu_dtype").write_text("bfloat16")
    dtype = "auto" if fingerprints.package_versions()["torch"].endswith("+cpu") else "bfloat16"
    code = f"""
import sys
from pathlib import Path
from fcdpo_utils.lab.settings import load_settings
from fcdpo_utils.pipeline import cli, manifest
settings = load_settings("smoke", ["student.dtype={dtype}"])
parts = [manifest.fingerprint(spec, settings, Path({str(tmp_path)!r})) for spec in manifest.STAGES]
print(sum("student" in each for each in parts), sys.modules.keys() & {{"torch", "peft"}})"""
    environment = os.environ | {"FCDPO_CACHE": str(tmp_path)}
    options = {"capture_output": True, "text": True, "env": environment, "cwd": fingerprints.ROOT}
    done = subprocess.run([sys.executable, "-c", code], check=False, **options)
    assert (done.stdout, done.stderr) == ("2 set()\n", "")


def test_copied_weights_are_the_same_and_a_changed_byte_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "CACHE", tmp_path / "cache")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "weights").write_bytes(b"123")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert content_of(tmp_path / "a") == content_of(tmp_path / "b")
    (tmp_path / "b" / "weights").write_bytes(b"124")
    assert content_of(tmp_path / "a") != content_of(tmp_path / "b")


def test_a_student_in_a_folder_is_its_bytes_wherever_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "CACHE", tmp_path / "cache")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "model.safetensors").write_bytes(b"123")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    first, second = (StudentSettings(source=str(tmp_path / name), dtype="float32") for name in "ab")
    assert student_fingerprint(first) == student_fingerprint(second)
    (tmp_path / "b" / "model.safetensors").write_bytes(b"124")
    assert student_fingerprint(first) != student_fingerprint(second)
    adapters = []
    for weights in (b"1", b"2"):
        (tmp_path / ADAPTER_FILE).write_bytes(weights)
        adapters.append(student_fingerprint(first, tmp_path))
    assert len({*adapters, student_fingerprint(first)}) == 3


def everything_kept(folder: Path, data: SmokeData, model: torch.nn.Module) -> dict[str, str]:
    """What a stage, a chain, an evaluated chain, a training and a reference log-probability are kept under."""
    settings, problems = load_settings("smoke"), list(data.problems[:1])
    make_chains(folder / "chains.jsonl", problems, settings, build_teacher, lambda *_: None)
    (record, *_) = store.read(folder / "chains.jsonl")
    return {
        "stage": manifest.fingerprint(manifest.STAGES[3], settings, folder)["code"],
        "chain": record["key"],
        "evaluated": Evaluation(problems, settings, folder / "after.jsonl", engine).keys[problems[0].id],
        "training": training_fingerprint(data.preferences, data.prompts, settings, engine),
        "reference": key_of(weights_fingerprint(model), Tokens((1, 2), (False, True), 1)),
    }


def test_code_counts_in_all_that_is_kept_by_the_same_rule(
    smoke_data: SmokeData, few_words_model: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for code in ("of yesterday", "of today", "of today"):
        for room in (chains, making, train, references):
            monkeypatch.setattr(room, "code_of", lambda *rooms, code=code: code)
        monkeypatch.setattr(manifest, "code_behind", lambda *_, code=code: fingerprint({"code": code}))
        folder = tmp_path / str(len(found))
        folder.mkdir()
        found.append(everything_kept(folder, smoke_data, few_words_model))
    assert found[1] == found[2]
    assert all(found[0][name] != found[1][name] for name in found[0])
    assert all(re.fullmatch("[0-9a-f]{16}", value) for value in found[0].values())

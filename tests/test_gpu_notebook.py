"""Notebook 00, which runs the others on a lent machine: what it is made of, and that it ends with results."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from runs import ROOT

from fcdpo_utils.engine.memory import MARGIN, ModelDims, TrainingMemory
from fcdpo_utils.lab.settings import load_settings
from fcdpo_utils.weights import known

NOTEBOOK = ROOT / "notebooks" / "00_run_on_a_gpu.ipynb"


def cells(kind: str) -> list[dict]:
    return [c for c in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == kind]


def test_it_is_committed_without_outputs_in_small_cells() -> None:
    for cell in cells("code"):
        assert cell["outputs"] == [] and cell["execution_count"] is None
        assert len(cell["source"]) <= 11 and max(len(line) for line in cell["source"]) <= 88
    assert len(cells("markdown")) >= len(cells("code"))


def test_nothing_but_the_set_up_stands_before_the_package_is_there() -> None:
    sources = ["".join(cell["source"]) for cell in cells("code")]
    setup = next(place for place, source in enumerate(sources) if "hosted_setup" in source)
    assert not any("fcdpo_utils" in source for source in sources[:setup])


def test_the_quick_profile_fits_a_t4_by_the_memory_model_and_by_its_operations() -> None:
    """An estimate, as the profile says: operations of training at a tenth of a T4's 65 TFLOP/s in half precision."""
    settings = load_settings("t4-quick")
    shape = ModelDims(**known(settings.student.source)["dims"])
    told = TrainingMemory(shape, True, settings.training.lora_rank, checkpointing=True)
    assert told.total(settings.training.pack_tokens) < (1 - MARGIN) * 15e9
    prompts = sum(task.train for task in settings.tasks.values())
    weights = 1.5e9
    tokens = prompts * (350 + (settings.preferences.max_chosen + settings.preferences.max_rejected) * 120)
    assert 8 * weights * tokens / 6.5e12 / 60 < settings.expected_minutes[3] < 45
    assert math.fsum(settings.expected_minutes) <= 45 and settings.teacher.kind == "scripted"


@pytest.mark.slow
def test_it_goes_on_where_a_run_stopped_and_ends_with_report_and_adapter(smoke_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(smoke_run, tmp_path / "smoke")
    (folder / "report.html").unlink(missing_ok=True)
    command = [sys.executable, "-m", "papermill", str(NOTEBOOK), str(tmp_path / "out.ipynb"), "-k", "python3"]
    command += ["-p", "profile", "smoke", "-p", "run_dir", str(folder), "--cwd", str(ROOT / "notebooks")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "out.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "".join("".join(out.get("text", "")) for cell in made for out in cell.get("outputs", []))
    assert ("no GPU" in text) == (subprocess.getstatusoutput("nvidia-smi")[0] != 0)
    assert text.count("up to date, skipped") == 5 and "task, sound" in text
    assert (folder / "report.html").exists() and (folder / "export" / "adapter" / "adapter_model.safetensors").exists()

"""Runs of the five notebooks as a specification: what a run leaves behind, and how it fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from datasets import load_dataset

from fcdpo_utils import pipeline, store
from fcdpo_utils.pipeline import STAGES, StageError, main, results_table, start_stage

ROOT = Path(__file__).parents[1]


def fcdpo(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fcdpo_utils.pipeline", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, **options)


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All five notebooks under papermill with the profile `smoke`, once for all tests."""
    folder = tmp_path_factory.mktemp("runs") / "smoke"
    done = fcdpo("run", "--profile", "smoke", "--run-dir", str(folder))
    assert done.returncode == 0, done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    return folder


# What a run leaves behind


@pytest.mark.slow
def test_the_metrics_hold_what_is_promised(smoke_run: Path) -> None:
    metrics = json.loads((smoke_run / "metrics.json").read_text())
    assert metrics["profile"] == "smoke" and metrics["seed"] == 0 and metrics["commit"]
    assert set(metrics["tasks"]) == {"fol", "arithmetic"}
    for result in metrics["tasks"].values():
        assert result["n"] >= 3
        for when in ("before", "after"):
            low, high = result[when]["sound_ci95"]
            assert 0 <= low <= result[when]["sound"] <= result[when]["solved"] <= 1 and low < high <= 1
        assert set(result["mcnemar"]) >= {"gained", "lost", "p"}
    data = metrics["dataset"]
    assert (
        data["chains"] == data["correct"] + data["incorrect"] and data["pairs_augmented"] >= data["pairs_original"] > 0
    )
    assert metrics["training"]["steps"] > 1
    assert set(metrics["stages"]) == set(STAGES) and all(s["seconds"] > 0 for s in metrics["stages"].values())


@pytest.mark.slow
def test_the_run_says_where_it_is_and_ends_with_a_table(smoke_run: Path) -> None:
    text = (smoke_run / "stdout.txt").read_text()
    for number, name in enumerate(STAGES, start=1):
        assert f"[{number}/5] {name}" in text
    assert text.endswith(f"results: {smoke_run}\n") and results_table(smoke_run) in text


@pytest.mark.slow
def test_an_untrained_policy_starts_at_log_2_and_margin_0(smoke_run: Path) -> None:
    first = (smoke_run / "training_curve.csv").read_text().splitlines()[:2]
    row = dict(zip(*(line.split(",") for line in first), strict=True))
    assert abs(float(row["rewards/margins"])) < 0.1 and float(row["loss"]) > 0.69


@pytest.mark.slow
def test_the_exported_pairs_load_in_plain_datasets(smoke_run: Path) -> None:
    metrics = json.loads((smoke_run / "metrics.json").read_text())
    for name in ("original", "augmented"):
        rows = load_dataset("json", data_files=str(smoke_run / f"preferences_{name}.jsonl"), split="train")
        assert len(rows) == metrics["dataset"][f"pairs_{name}"]
        assert set(rows.column_names) == {"prompt", "chosen", "rejected"}
        assert rows[0]["chosen"][0]["role"] == "assistant" and rows[0]["prompt"][-1]["role"] == "user"


@pytest.mark.slow
def test_figures_and_executed_notebooks_are_there(smoke_run: Path) -> None:
    assert len(list(smoke_run.glob("*.png"))) >= 3
    for name in STAGES:
        notebook = json.loads((smoke_run / "notebooks" / f"{name}.ipynb").read_text())
        assert any(cell.get("outputs") for cell in notebook["cells"])


@pytest.mark.slow
def test_the_same_seed_gives_the_same_artifacts(smoke_run: Path, tmp_path: Path) -> None:
    """A second run in a folder of its own: chains and pairs byte for byte, and the metrics but for times."""
    again = tmp_path / "again"
    assert fcdpo("run", "--profile", "smoke", "--run-dir", str(again)).returncode == 0
    for name in ("problems", "chains", "completions", "blocks", "pairs_augmented", "preferences_augmented"):
        assert (again / f"{name}.jsonl").read_bytes() == (smoke_run / f"{name}.jsonl").read_bytes(), name
    assert (again / "training_curve.csv").read_bytes() == (smoke_run / "training_curve.csv").read_bytes()
    first, second = (json.loads((folder / "metrics.json").read_text()) for folder in (smoke_run, again))
    for metrics in (first, second):
        del metrics["stages"]
    assert first == second


# How a run fails: one line, exit code not 0, nothing lost


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["run", "--profile", "gpu"], "unknown profile 'gpu'; expected one of cpu, smoke"),
        (["run", "--profile", "smoke", "--set", "teacher.sample=8"], "setting teacher.sample: unknown setting"),
        (["run", "--profile", "smoke", "--set", "seed=x"], "setting seed: input should be a valid integer"),
        (["run", "--profile", "smoke", "--set", "seed"], "override 'seed': expected name=value"),
    ],
)
def test_a_wrong_setting_is_one_line(arguments: list[str], line: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    (got,) = capfd.readouterr().err.splitlines()
    assert got.startswith(f"fcdpo: {line}")


def test_an_unwritable_folder_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["run", "--profile", "smoke", "--run-dir", str(tmp_path / "file" / "run")]) == 1
    (got,) = capfd.readouterr().err.splitlines()
    assert got == f"fcdpo: cannot write to run directory {tmp_path}/file/run: not a directory"


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage, line",
    [
        ("02_teacher_chains", "run 01 first: problems.jsonl is missing"),
        ("03_preference_data", "run 02 first: chains.jsonl is missing"),
        ("04_student_training", "run 03 first: completions.jsonl is missing"),
        ("05_evaluation_and_plots", "run 04 first: adapter_model.safetensors is missing"),
    ],
)
def test_a_stage_without_its_input_names_the_one_before(stage: str, line: str, tmp_path: Path) -> None:
    if stage[:2] in ("03", "05"):
        (tmp_path / "problems.jsonl").write_text("")
    if stage[:2] == "05":
        for name in ("completions", "blocks"):
            (tmp_path / f"{name}.jsonl").write_text("")
    command = [sys.executable, "-m", "papermill", f"{stage}.ipynb", str(tmp_path / "out.ipynb"), "-k", "python3"]
    command += ["-p", "profile", "smoke", "-p", "run_dir", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    options = {"cwd": ROOT / "notebooks", "env": environment, "check": False}
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 1 and line in done.stderr


NOTEBOOK = {
    "nbformat": 4,
    "nbformat_minor": 5,
    "metadata": {"kernelspec": {"name": "foreign", "display_name": "x", "language": "python"}},
}


def stage_of(folder: Path, monkeypatch: pytest.MonkeyPatch, *sources: str) -> Path:
    """A one-stage pipeline whose notebook has these code cells after its parameters; returns its run directory."""
    parameters = 'profile = "smoke"\nrun_dir = ""\noverrides = ""'
    cells = [
        {"cell_type": "code", "id": f"c{n}", "metadata": {}, "source": source, "outputs": [], "execution_count": None}
        for n, source in enumerate([parameters, *sources])
    ]
    cells[0]["metadata"] = {"tags": ["parameters"]}
    (folder / "01_only.ipynb").write_text(json.dumps({**NOTEBOOK, "cells": cells}))
    monkeypatch.setattr(pipeline, "NOTEBOOKS", folder)
    monkeypatch.setattr(pipeline, "STAGES", ("01_only",))
    return folder / "run"


RECORD = (
    "from fcdpo_utils.pipeline import start_stage\n"
    "stage = start_stage('01_only', profile, run_dir, overrides)\n"
    "from fcdpo_utils import store\nstore.write_json(stage.path('metrics.json'), {})\n"
    "stage.record()"
)


@pytest.mark.parametrize(
    "source, line",
    [
        ("raise ValueError('what is wrong')", "stage 01_only failed: ValueError: what is wrong"),
        ("import sys; sys.exit(0)", "stage 01_only ended before its last cell, without an error"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "stage 01_only failed: the kernel died"),
    ],
    ids=["exception", "early exit", "killed kernel"],
)
def test_a_stage_that_does_not_finish_fails_the_run(
    source: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stage_of(tmp_path, monkeypatch, source, RECORD)
    with pytest.raises(StageError) as error:
        pipeline.run("smoke", run_dir=folder)
    assert str(error.value).startswith(line) and len(str(error.value).splitlines()) == 1


@pytest.mark.slow
def test_an_interrupted_run_is_one_line_and_keeps_what_was_done(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fcdpo_utils.pipeline", "run", "--profile", "smoke", "--run-dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        while not (tmp_path / "01_record.json").exists():
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    line = "fcdpo: interrupted; what was finished is kept, run the same command to go on"
    assert errors.split("\n") == ["", line, ""]
    assert store.read(tmp_path / "problems.jsonl")


def test_a_record_of_an_earlier_run_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = stage_of(tmp_path, monkeypatch, RECORD)
    pipeline.run("smoke", run_dir=folder)
    assert (folder / "01_record.json").exists()
    stage_of(tmp_path, monkeypatch, "import sys; sys.exit(0)", RECORD)
    with pytest.raises(StageError, match="ended before its last cell"):
        pipeline.run("smoke", run_dir=folder)


def test_a_relative_run_directory_is_where_the_caller_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage_of(tmp_path, monkeypatch, RECORD)
    monkeypatch.chdir(tmp_path)
    assert pipeline.run("smoke", run_dir=Path("here")) == tmp_path / "here"
    assert (tmp_path / "here" / "01_record.json").exists()


def test_the_time_left_does_not_count_what_an_earlier_run_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 20.0])
    stage = start_stage("02_teacher_chains", "smoke", str(tmp_path))
    monkeypatch.setattr(pipeline.time, "monotonic", lambda: next(clock))
    report = stage.progress("chains")
    report(91, 100)
    report(92, 100)
    assert json.loads((tmp_path / "progress.json").read_text())["left_seconds"] == 80


def test_a_run_by_hand_writes_where_a_pipeline_run_would(tmp_path: Path) -> None:
    stage = start_stage("02_teacher_chains", "smoke", str(tmp_path))
    stage.record(chains=3)
    record = store.read_json(tmp_path / "02_record.json")
    assert record.pop("peak_gib") > 0 and record == {"run": "by hand", "chains": 3}
    assert yaml.safe_load(stage.settings.table())["profile"] == "smoke"

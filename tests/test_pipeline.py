"""Runs of the five notebooks as a specification: what a run leaves behind, and how it fails."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import IPython
import nbformat
import pytest
from browser import measured, needs_chromium
from datasets import load_dataset
from nbclient import NotebookClient
from runs import FCDPO, fcdpo

from fcdpo_utils import store
from fcdpo_utils.lab.settings import PROFILES, load_settings
from fcdpo_utils.pipeline import manifest, runner, stage
from fcdpo_utils.pipeline.cli import main
from fcdpo_utils.pipeline.manifest import StageSpec
from fcdpo_utils.pipeline.runner import StageError, results_table
from fcdpo_utils.pipeline.stage import start_stage

ROOT = Path(__file__).parents[1]
STAGES = [spec.name for spec in manifest.STAGES]


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
def test_processes_that_share_the_tests_do_not_each_make_the_run(
    smoke_run: Path, request: pytest.FixtureRequest
) -> None:
    """xdist tells groups by the name of a test; with a pytest that it does not know, they fall apart in silence."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("one process runs all tests")
    assert request.node.nodeid.endswith("@smoke")


def test_executed_notebooks_hold_no_warnings(smoke_run: Path) -> None:
    for name in STAGES:
        cells = store.read_json(smoke_run / "notebooks" / f"{name}.ipynb")["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        assert [output["text"] for output in outputs if output.get("name") == "stderr"] == [], name


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


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """A run that Ctrl-C ended in its second stage: its folder, its exit code and what it said on stderr."""
    folder = tmp_path_factory.mktemp("interrupted") / "run"
    command = [*FCDPO, "run", "--profile", "smoke", "--run-dir", str(folder)]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    listen = partial(signal.signal, signal.SIGINT, signal.default_int_handler)  # a background shell makes children deaf
    with subprocess.Popen(command, cwd=ROOT, preexec_fn=listen, **pipes) as process:
        while not (folder / "01_record.json").exists():
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    return folder, process.returncode, errors


@pytest.mark.slow
@pytest.mark.xdist_group("smoke")  # the test after it goes on with this run
def test_an_interrupted_run_is_one_line_and_keeps_what_was_done(interrupted: tuple[Path, int, str]) -> None:
    folder, code, errors = interrupted
    assert code == 130
    line = "fcdpo: interrupted; what was finished is kept, run the same command to go on"
    assert errors.split("\n") == ["", line, ""]
    assert store.read(folder / "problems.jsonl")


@pytest.mark.slow
def test_a_run_interrupted_and_killed_at_random_moments_ends_with_the_artifacts_of_the_unbroken_one(
    smoke_run: Path, interrupted: tuple[Path, int, str], request: pytest.FixtureRequest
) -> None:
    """The same seed in another folder, kill -9 again and again: all artifacts byte for byte, metrics but for times.

    Two kills, while the student is trained and evaluated, or as many in any stage as `--kills` says.
    """
    rng, folder, killed = random.Random(17), interrupted[0], 0
    command, taken = [*FCDPO, "run", "--profile", "smoke", "--run-dir", str(folder)], manifest.load(smoke_run)["stages"]
    for reached in sorted(rng.choices(STAGES[1:], k=request.config.getoption("--kills"))):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT) as process:
            while reached not in manifest.load(folder).get("stages", {}):
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.2)
            time.sleep(rng.uniform(0.2, 0.7) * taken[reached]["seconds"])
            killed += process.poll() is None
            process.kill()
    assert killed
    done = fcdpo("run", "--profile", "smoke", "--run-dir", str(folder))
    assert done.returncode == 0, done.stderr
    for spec in manifest.STAGES:
        for name, value in manifest.digests(smoke_run, spec.outputs).items():
            if name != "metrics.json" and not name.endswith("adapter_config.json"):  # times; a folder's name
                assert store.file_digest(folder / name) == value, name
    first, second = (store.read_json(path / "metrics.json") for path in (smoke_run, folder))
    for metrics in (first, second):
        del metrics["stages"]
    assert first == second


@pytest.mark.slow
def test_a_second_run_does_nothing(smoke_run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = (smoke_run / "manifest.json").read_bytes()
    assert main(["run", "--profile", "smoke", "--run-dir", str(smoke_run)]) == 0
    assert capfd.readouterr().out.count("up to date, skipped") == 5
    assert (smoke_run / "manifest.json").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "override, stages",
    [
        ("training.learning_rate=3e-3", ["04"]),
        ("evaluation.turn_tokens=20", ["04", "05"]),
        ("preferences.label=solved", ["03", "04"]),
        ("teacher.error_rate=0.4", ["02"]),
        ("seed=1", ["01", "02", "04", "05"]),
    ],
)
def test_a_changed_setting_reruns_the_stages_that_depend_on_it(smoke_run: Path, override: str, stages: list) -> None:
    """Directly; the stages after them rerun because their inputs change."""
    settings = load_settings("smoke", [override])
    entry = manifest.load(smoke_run)
    changed = {spec.name[:2]: manifest.changes(spec, settings, smoke_run, entry) for spec in manifest.STAGES}
    direct = [name for name, reasons in changed.items() if any(r.startswith("settings") for r in reasons)]
    assert direct == stages


@pytest.mark.slow
def test_the_manifest_says_what_made_the_run(smoke_run: Path) -> None:
    made = store.read_json(smoke_run / "manifest.json")
    assert made["profile"] == "smoke" and made["seed"] == 0 and made["settings"]["teacher"]["samples"] == 4
    assert made["commit"] and made["dirty"] in (True, False)
    assert set(made["packages"]) >= {"torch", "transformers", "trl"} and made["machine"]["cores"] > 0
    for name in STAGES:
        entry = made["stages"][name]
        assert (
            entry["papermill_exit"] == 0 and entry["seconds"] > 0 and entry["peak_gib"] > 0 and entry["attempts"] == 1
        )
        for path, value in entry["outputs"].items():
            assert store.file_digest(smoke_run / path) == value


@pytest.mark.slow
def test_a_run_that_is_not_whole_gets_no_report(
    smoke_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(smoke_run, tmp_path / "run")
    made = manifest.load(folder)
    del made["stages"]["05_evaluation_and_plots"]
    manifest.save(folder, made)
    assert main(["report", str(folder)]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(
        "fcdpo: no report of a run that is not whole: 05_evaluation_and_plots: papermill exit is missing"
    )


@pytest.mark.slow
def test_a_stage_run_by_hand_since_is_run_again(smoke_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(smoke_run, tmp_path / "run")
    store.write_json(folder / "03_record.json", store.read_json(folder / "03_record.json") | {"run": "by hand"})
    settings = load_settings("smoke")
    changed = {
        spec.name[:2]: manifest.changes(spec, settings, folder, manifest.load(folder)) for spec in manifest.STAGES
    }
    assert {name: reasons for name, reasons in changed.items() if reasons} == {"03": ["run by hand since"]}


@pytest.mark.slow
def test_the_report_is_one_file_that_shows_chains_and_escapes_them(smoke_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(smoke_run, tmp_path / "run")
    record = store.read(folder / "chains_before.jsonl")[0]
    record["steps"][0][0] = "<script>alert(1)</script>"
    store.write_records(folder / "chains_before.jsonl", [record, *store.read(folder / "chains_before.jsonl")[1:]])
    made = manifest.load(folder)
    made["stages"][STAGES[-1]]["outputs"] |= manifest.digests(folder, ["chains_before.jsonl"])
    manifest.save(folder, made)
    assert main(["report", str(folder)]) == 0
    text = (folder / "report.html").read_text()
    assert "<script>alert(1)" not in text and "\\u003cscript>alert(1)" in text
    assert "\\u003cscript>alert(1)" in (folder / "chains.html").read_text()
    assert text.count("data:image/png;base64,") >= 6 and not re.search(r'(src|href)="(?!data:)', text)
    assert (
        "Chains of calls, step by step" in text
        and "Settings" in text
        and store.read_json(folder / "metrics.json")["commit"] in text
    )


def test_notebooks_run_by_hand_get_a_report_that_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """With the records and artifacts that the notebooks leave behind, as far as the page shows them."""
    for name in STAGES:
        start_stage(name, "smoke", str(tmp_path), "training.beta=0.7").record()
    for name in ("problems", "chains_before", "chains_after"):
        (tmp_path / f"{name}.jsonl").touch()
    training = {"student": "135 M parameters", "steps": 3}
    metrics = {"profile": "smoke", "seed": 0, "commit": "abc", "tasks": {}, "dataset": {}, "training": training}
    store.write_json(tmp_path / "metrics.json", metrics)
    assert main(["report", str(tmp_path)]) == 0
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "run by hand" in text and "&#34;beta&#34;: 0.7" in text.replace('"', "&#34;") and "SHA-256" not in text
    (tmp_path / "02_record.json").unlink()
    assert main(["report", str(tmp_path)]) == 1
    assert capfd.readouterr().err == f"fcdpo: run 02 first: 02_record.json is missing in {tmp_path}\n"


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("width", [400, 1280])
def test_the_report_fits_the_window(smoke_run: Path, tmp_path: Path, width: int) -> None:
    """Headless Chromium measures the page after layout: nothing sticks out sideways, every figure is loaded."""
    assert main(["report", str(smoke_run)]) == 0
    page = shutil.copy(smoke_run / "report.html", tmp_path)
    found = measured(Path(page), width, tmp_path)
    assert found["over"] == found["broken"] == 0 and found["height"] > 1500


# How a run fails: one line, exit code not 0, nothing lost


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["run", "--profile", "gpu"], "unknown profile 'gpu'; expected one of ablations, cpu, "),
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


@pytest.mark.parametrize("spec", [*manifest.STAGES, *manifest.FURTHER], ids=lambda spec: spec.name)
def test_every_input_of_a_notebook_names_the_stage_that_makes_it(spec: StageSpec) -> None:
    cells = store.read_json(manifest.NOTEBOOKS / f"{spec.name}.ipynb")["cells"]
    code = "\n".join(manifest.source_of(cell) for cell in cells if cell["cell_type"] == "code")
    constants = dict(re.findall(r'^(\w+) = "([^"]+)"$', code, re.M))
    asked = re.findall(r'stage\.input\((f?"[^"]+"|\w+), "(\d\d)"\)', code)
    assert len(asked) == code.count("stage.input(") and bool(asked) == bool(spec.inputs)
    for expression, number in asked:
        name = constants.get(expression) or expression.strip('f"').format(**constants)
        (maker,) = (stage for stage in manifest.STAGES if stage.name.startswith(number))
        assert any(fnmatch(name, made) for made in (*maker.outputs, f"{number}_record.json")), name
        assert maker.name < spec.name


@pytest.mark.slow
def test_a_stage_without_its_input_names_the_one_before(tmp_path: Path) -> None:
    done = by_hand(tmp_path, "-p", "profile", "smoke", "-p", "run_dir", str(tmp_path), stage="02_teacher_chains")
    assert done.returncode == 1 and "run 01 first: problems.jsonl is missing" in done.stderr
    for number, name in (("03", "completions.jsonl"), ("04", "adapter/adapter_model.safetensors")):
        with pytest.raises(store.StoreError, match=f"^run {number} first: {name.split('/')[-1]} is missing in "):
            start_stage("05_evaluation_and_plots", "smoke", str(tmp_path)).input(name, number)


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
    monkeypatch.setattr(manifest, "NOTEBOOKS", folder)
    monkeypatch.setattr(manifest, "STAGES", (StageSpec("01_only", ("seed",), (), ("metrics.json",)),))
    return folder / "run"


RECORD = (
    "from fcdpo_utils.pipeline.stage import start_stage\n"
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
        runner.run("smoke", run_dir=folder)
    assert str(error.value).startswith(line) and len(str(error.value).splitlines()) == 1
    assert manifest.load(folder)["stages"]["01_only"]["papermill_exit"] in (1, 138)  # papermill's own of a dead kernel


def test_a_cell_that_takes_too_long_fails_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = stage_of(tmp_path, monkeypatch, "import time; time.sleep(60)", RECORD)
    with pytest.raises(StageError, match="stage 01_only failed: a cell took longer than --cell-timeout"):
        runner.run("smoke", run_dir=folder, cell_timeout=2)


def test_a_papermill_that_does_not_start_fails_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = stage_of(tmp_path, monkeypatch, RECORD)
    monkeypatch.setattr(runner, "_PAPERMILL", "raise ImportError('no papermill here')")
    with pytest.raises(StageError, match="stage 01_only failed: ImportError: no papermill here"):
        runner.run("smoke", run_dir=folder)


def test_notebooks_run_in_their_own_folder_and_leave_what_they_make_where_the_caller_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage_of(tmp_path, monkeypatch, "import os; assert os.path.exists('01_only.ipynb'), os.getcwd()", RECORD)
    caller = tmp_path / "caller"
    caller.mkdir()
    monkeypatch.chdir(caller)
    assert runner.run("smoke", run_dir=Path("here")) == caller / "here"
    assert (caller / "here" / "01_record.json").exists()


@pytest.mark.parametrize(
    "source",
    ['profile = "smoke"', 'profile = "smoke"\nrun_dir = "x" + profile\noverrides = ""', "profile ="],
    ids=["a parameter is missing", "a derived value", "a syntax error"],
)
def test_a_parameters_cell_that_papermill_would_misread_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    folder = stage_of(tmp_path, monkeypatch, RECORD)
    path = tmp_path / "01_only.ipynb"
    notebook = json.loads(path.read_text())
    notebook["cells"][0]["source"] = source
    path.write_text(json.dumps(notebook))
    with pytest.raises(StageError, match="needs one cell tagged 'parameters' that assigns plain literals"):
        runner.run("smoke", run_dir=folder)
    assert not folder.exists()


def test_a_notebook_without_a_tagged_cell_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = stage_of(tmp_path, monkeypatch, RECORD)
    path = tmp_path / "01_only.ipynb"
    path.write_text(path.read_text().replace('"parameters"', '"parameter"'))
    with pytest.raises(StageError, match="needs one cell tagged 'parameters'"):
        runner.run("smoke", run_dir=folder)


def by_hand(
    tmp_path: Path, *parameters: str, stage: str = "01_function_definition"
) -> subprocess.CompletedProcess[str]:
    """papermill alone on one notebook."""
    command = [sys.executable, "-m", "papermill", f"{stage}.ipynb", str(tmp_path / "out.ipynb")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    options = {"cwd": ROOT / "notebooks", "env": environment, "capture_output": True, "text": True}
    return subprocess.run([*command, *parameters], check=False, **options)


def test_a_misspelt_parameter_by_hand_stops_the_notebook(tmp_path: Path) -> None:
    done = by_hand(tmp_path, "-p", "profil", "smoke", "-p", "run_dir", str(tmp_path))
    assert done.returncode == 1
    assert "unknown parameter 'profil'; expected one of profile, run_dir, overrides" in done.stderr


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path: Path) -> None:
    """5e-6 is a string in YAML 1.1, which papermill passes on."""
    overrides = "training.learning_rate=5e-6 training.gradient_checkpointing=true"
    done = by_hand(tmp_path, "-p", "profile", "smoke", "-p", "run_dir", str(tmp_path), "-p", "overrides", overrides)
    assert done.returncode == 0, done.stderr
    training = store.read_json(tmp_path / "01_record.json")["settings"]["training"]
    assert training["learning_rate"] == 5e-6 and training["gradient_checkpointing"] is True


def test_two_runs_in_one_folder_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = stage_of(tmp_path, monkeypatch, RECORD)
    folder.mkdir()
    with stage.lock(folder / "run.lock"), pytest.raises(store.StoreError, match="another run is at work in"):
        runner.run("smoke", run_dir=folder)


def test_a_killed_run_frees_its_folder(tmp_path: Path) -> None:
    hold = f"""
import time
from pathlib import Path
from fcdpo_utils.pipeline import stage
held = stage.lock(Path({str(tmp_path / "run.lock")!r}))
print("held", flush=True)
time.sleep(60)"""
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(store.StoreError, match=f"^another run is at work in {tmp_path}; wait for it or stop it$"):
            stage.lock(tmp_path / "run.lock")
        process.kill()
        process.wait()
    with stage.lock(tmp_path / "run.lock"):
        pass


def test_what_only_unix_has_is_not_needed_to_run_the_notebooks() -> None:
    """As on Windows: neither `fcntl` nor `resource` can be imported."""
    code = """
import sys
import psutil  # has its own module for each system
sys.modules |= {"fcntl": None, "resource": None}
from fcdpo_utils.pipeline import stage
from fcdpo_utils.pipeline import runner
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_only_and_from_want_the_stages_before(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["run", "--profile", "smoke", "--run-dir", str(tmp_path)]
    assert main([*options, "--from", "04"]) == 1
    assert main([*options, "--only", "99"]) == 1
    first, second = capfd.readouterr().err.splitlines()
    assert first == "fcdpo: stage 01_function_definition is not up to date (not finished yet); run it first"
    assert second.startswith("fcdpo: unknown stage '99'; expected one of 01, 02, 03")


def test_only_runs_a_stage_that_is_up_to_date_once_more_and_a_record_of_before_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stage_of(tmp_path, monkeypatch, RECORD)
    runner.run("smoke", run_dir=folder)
    first = manifest.load(folder)["stages"]["01_only"]["run"]
    runner.run("smoke", run_dir=folder)
    assert manifest.load(folder)["stages"]["01_only"]["run"] == first
    runner.run("smoke", run_dir=folder, only="01")
    assert manifest.load(folder)["stages"]["01_only"]["run"] != first
    assert (folder / "01_record.json").exists()
    stage_of(tmp_path, monkeypatch, "import sys; sys.exit(0)", RECORD)
    with pytest.raises(StageError, match="ended before its last cell"):
        runner.run("smoke", run_dir=folder)


def test_doctor_looks_at_what_a_run_needs(capfd: pytest.CaptureFixture[str]) -> None:
    main(["doctor"])
    lines = capfd.readouterr().out.splitlines()
    names = [line[3:21].strip() for line in lines]
    expected = ["python", "packages", "embedded student", "processor", "memory", "disk", "hub", "CPU products", "GPU"]
    profiles = [f"profile {path.stem}" for path in sorted(PROFILES.glob("*.yaml"))]
    assert names == expected + profiles and len(profiles) > 8
    assert all(line.startswith(("ok ", "NO ")) for line in lines)
    assert "a CUDA GPU of 9 GB (layers not checkpointed from 45 GB on), mistralai/Mistral-7B" in lines[-1]  # t4


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Its only value is what stages take for the time, in seconds."""
    now = [0.0]
    monkeypatch.setattr(stage, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_the_time_left_does_not_count_what_an_earlier_run_did(tmp_path: Path, clock: list[float]) -> None:
    report = start_stage("02_teacher_chains", "smoke", str(tmp_path)).progress("chains")
    for clock[0], done in ((10.0, 91), (20.0, 92)):
        report(done, 100, "36 % sound")
    text = (tmp_path / stage.PROGRESS).read_text()
    assert re.fullmatch(r"chains \|#+\d? *\| 92/100, 36 % sound, 01:20 left", text)


def test_what_a_stage_prints_of_its_progress_is_one_line_without_times(
    tmp_path: Path, clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    report = start_stage("02_teacher_chains", "smoke", str(tmp_path)).progress("chains")
    for clock[0] in range(0, 400, 40):
        report(1 + int(clock[0]) // 40, 10, "36 % sound")
    assert capsys.readouterr().out == "chains 10/10, 36 % sound\n"


def test_an_open_notebook_shows_a_bar_that_leaves_the_line_alone(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text in one place, which IPython's display updates; papermill's notebooks print."""
    shown: list[str] = []
    place = SimpleNamespace(update=lambda data, raw: shown.append(data["text/plain"]))
    monkeypatch.setattr(IPython.display, "display", lambda display_id: place)
    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(kernel=None, user_ns={"In": []}))
    bars = start_stage("02_teacher_chains", "smoke", str(tmp_path))
    report = bars.progress("chains")
    for done, clock[0] in ((1, 1.0), (2, 1.1), (3, 2.0), (4, 2.1)):
        report(done, 4)
    assert [text.split("|")[-1] for text in shown] == [" 1/4, 00:03 left", " 3/4, 00:00 left", "chains 4/4"]
    monkeypatch.setenv(stage.RUN_TOKEN, "of a run")
    bars.progress("chains")(4, 4)
    assert len(shown) == 3


@pytest.mark.slow
@pytest.mark.parametrize("token", [None, "of a run"], ids=["by hand", "a run"])
def test_a_real_notebook_stores_the_line_and_neither_times_nor_widgets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    source = (
        "import time\nfrom fcdpo_utils.pipeline.stage import start_stage\n"
        f"report = start_stage('02_teacher_chains', 'smoke', {str(tmp_path)!r}).progress('chains')\n"
        "for done in (1, 2, 3):\n    time.sleep(0.3)\n    report(done, 3, 'all sound')"
    )
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv(stage.RUN_TOKEN, token) if token else monkeypatch.delenv(stage.RUN_TOKEN, raising=False)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    done = NotebookClient(notebook, kernel_name="python3").execute()
    (output,) = done.cells[0].outputs
    text = output["text"] if token else output["data"]
    assert text == ("chains 3/3, all sound\n" if token else {"text/plain": "chains 3/3, all sound"})
    assert "widgets" not in done.metadata


class Ending:
    """A process that ends after it was looked at so often."""

    def __init__(self, looks: int):
        self.looks = looks

    def poll(self) -> int | None:
        self.looks -= 1
        return None if self.looks >= 0 else 0


@pytest.mark.parametrize("terminal", [True, False], ids=["a terminal", "a log"])
def test_a_terminal_has_a_bar_and_a_log_a_line_now_and_then(
    tmp_path: Path, terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda *_, **__: os.terminal_size((70, 24)))
    bar = "chains |#####     | 1200/2400, 36 % sound, 00:38 left"
    runner._watch(Ending(2), "[2/5] 02_teacher_chains", tmp_path, 2400)
    (tmp_path / stage.PROGRESS).write_text(bar)
    runner._watch(Ending(3), "[2/5] 02_teacher_chains", tmp_path, 2400)
    said = capsys.readouterr().out
    waiting, working = "[2/5] 02_teacher_chains: running, then about 40 min", f"[2/5]: {bar}, then about 40 min"
    if terminal:
        assert said == 2 * f"\r\x1b[K{waiting}" + 3 * f"\r\x1b[K{working[:69]}"  # never wraps: one line, drawn anew
    else:
        assert said == f"{waiting}\n{working}\n"


def test_a_run_by_hand_writes_where_a_pipeline_run_would(tmp_path: Path) -> None:
    stage = start_stage("02_teacher_chains", "smoke", str(tmp_path))
    stage.record(chains=3)
    record = store.read_json(tmp_path / "02_record.json")
    assert record.pop("settings") == load_settings("smoke").model_dump(mode="json")
    assert record.pop("peak_gib") > 0 and record == {"run": "by hand", "chains": 3}

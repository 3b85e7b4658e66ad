"""Planted defects, each of which must be caught: by a test of `make test`, or by `fcdpo check` on a finished run.

The last lines of the module's output are the table of what caught which (`pytest tests/test_mutations.py -s`).
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forks import run_module
from runs import ROOT

from fcdpo_utils import store
from fcdpo_utils.fingerprint import CACHE
from fcdpo_utils.pipeline import baselines, manifest

CAUGHT: list[tuple[str, str]] = []

# (defect, module, its text, what it becomes, the test file and the tests that must fail)
CODE = [
    (
        "the sign of the loss flipped",
        "loss.py",
        "-logsigmoid(chosen - rejected)",
        "-logsigmoid(rejected - chosen)",
        "test_loss.py",
        "formula_of_the_method",
    ),
    ("the environment mask dropped", "tokens.py", "policy = [False]", "policy = [True]", "test_tokens.py", "policy"),
    (
        "correct and incorrect swapped",
        "preferences.py",
        "labels = [getattr(",
        "labels = [not getattr(",
        "test_preferences.py",
        "pair",
    ),
    (
        "pairs in step instead of all pairs",
        "preferences.py",
        "product(group.",
        "zip(group.",
        "test_preferences.py",
        "augment",
    ),
    (
        "held-out problems in the training split",
        "tasks/logic/theories.py",
        'if split != "ood_words" and split_of(form)',
        "if False and split_of(form)",
        "test_fol.py",
        "split",
    ),
    (
        "rejected calls ignored in 'sound'",
        "episode.py",
        "sound=valid and clean",
        "sound=valid",
        "test_episode.py",
        "labelled",
    ),
    (
        "the scale of LoRA left out of a gradient",
        "engine/lora.py",
        "(grad.T @ low).mul_(ctx.scale)",
        "grad.T @ low",
        "test_lora.py",
        "gives_what_it_gives_outside",
    ),
    (
        "references of another model reused",
        "engine/references.py",
        '{"model": base, "ids"',
        '{"ids"',
        "test_references.py",
        "another_model",
    ),
    ("intervals too narrow", "evaluation.py", "/ (4 * trials**2)", "/ (8 * trials**2)", "test_evaluation.py", "wilson"),
    (
        "a killed kernel counts as done",
        "pipeline/runner.py",
        "if exit_code != 0:",
        "if False:",
        "test_pipeline.py",
        "does_not_finish",
    ),
    (
        "unknown settings accepted",
        "settings.py",
        'extra="forbid"',
        'extra="ignore"',
        "test_profiles.py",
        "unknown",
    ),
]


@pytest.fixture(scope="module", autouse=True)
def table(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        print()
        for defect, by in CAUGHT:
            print(f"  {defect:44} caught by {by}")


@pytest.mark.slow
@pytest.mark.xdist_group("forks")
@pytest.mark.parametrize("defect, module, text, other, tests, names", CODE, ids=[row[0] for row in CODE])
def test_a_defect_in_the_code_fails_a_test(
    defect: str, module: str, text: str, other: str, tests: str, names: str, tmp_path: Path
) -> None:
    path = copy_of_the_checkout(tmp_path) / "fcdpo_utils" / module
    source = path.read_text(encoding="utf-8")
    assert text in source, f"{module} has changed; plant the defect anew"
    path.write_text(source.replace(text, other), encoding="utf-8")
    done = run_tests(tmp_path, [tests], names)
    assert done.returncode == 1, done.stdout[-2000:]  # 1: tests ran and failed
    failed = next(line for line in done.stdout.splitlines() if line.startswith("FAILED"))
    CAUGHT.append((defect, "make test: " + failed.split("::")[1].split(" - ")[0]))


@pytest.mark.slow
@pytest.mark.xdist_group("forks")
def test_without_a_defect_these_tests_pass_in_a_copy(tmp_path: Path) -> None:
    """So that a failure above is the defect's."""
    names = " or ".join(sorted({row[5] for row in CODE if row[4] != "test_references.py"}))
    done = run_tests(
        copy_of_the_checkout(tmp_path), sorted({row[4] for row in CODE if row[4] != "test_references.py"}), names
    )
    assert done.returncode == 0, done.stdout[-2000:]


def copy_of_the_checkout(folder: Path) -> Path:
    for part in ("fcdpo_utils", "tests", "notebooks", "pyproject.toml"):
        (shutil.copytree if (ROOT / part).is_dir() else shutil.copy)(ROOT / part, folder / part)
    return folder


def run_tests(folder: Path, files: list[str], names: str) -> subprocess.CompletedProcess[str]:
    arguments = ["-q", "-x", "-p", "no:cacheprovider", "-m", "not slow", "-k", names]
    files = [f"tests/{name}" for name in files]
    return run_module("pytest", *arguments, *files, root=folder, cwd=folder, FCDPO_CACHE=str(CACHE))


def truncate(run: Path) -> None:
    path = run / "chains.jsonl"
    path.write_bytes(path.read_bytes()[:-200])


def swap_adapter(run: Path) -> None:
    """Weights of the same shape that were not trained here."""
    path = run / "adapter" / "adapter_model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-64] + bytes(64))


def other_problems(run: Path) -> None:
    records = store.read(run / "problems.jsonl")
    records[0]["answer"] = "False" if records[0]["answer"] == "True" else "True"
    store.write_records(run / "problems.jsonl", records)
    sign(run)


def stale_chains(run: Path) -> None:
    """Evaluated before, shown as after."""
    shutil.copy(run / "chains_before.jsonl", run / "chains_after.jsonl")


def stale_record(run: Path) -> None:
    record = store.read_json(run / "04_record.json")
    store.write_json(run / "04_record.json", record | {"run": "another"})


def other_settings(run: Path) -> None:
    """The manifest says that another learning rate was used than stage 04 saw."""
    made = manifest.load(run)
    made["settings"]["training"]["learning_rate"] = 1.0
    manifest.save(run, made)


def killed_kernel(run: Path) -> None:
    made = manifest.load(run)
    made["stages"]["05_evaluation_and_plots"]["papermill_exit"] = 138
    manifest.save(run, made)


def metric(*path: str, value: object) -> Callable[[Path], None]:
    """A program that computes a wrong number, and signs it as its own."""

    def plant(run: Path) -> None:
        metrics = store.read_json(run / "metrics.json")
        place = metrics
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = value
        (run / "metrics.json").write_text(json.dumps(metrics))
        sign(run)

    return plant


def sign(run: Path) -> None:
    """Make the manifest agree with the files, as if the run itself had made them so."""
    made = manifest.load(run)
    for spec in manifest.STAGES:
        entry = made["stages"][spec.name]
        entry["outputs"] = manifest.digests(run, (*spec.outputs, manifest.executed(spec)))
        inputs = {f"input {name}": value for name, value in manifest.digests(run, spec.inputs).items()}
        entry["depends_on"] |= inputs
    manifest.save(run, made)


RUNS = [
    ("a truncated artifact", truncate, "02_teacher_chains: artifacts"),
    ("a swapped adapter", swap_adapter, "04_student_training: artifacts"),
    ("other problems than the baseline's", other_problems, "artifacts.problems.jsonl"),
    ("chains of another evaluation", stale_chains, "05_evaluation_and_plots: artifacts"),
    ("a record of another run", stale_record, "04_student_training: record of run"),
    ("settings of another run", other_settings, "04_student_training: settings"),
    ("a kernel that was killed", killed_kernel, "05_evaluation_and_plots: papermill exit"),
    ("a loss that got worse", metric("training", "loss_end", value=9.0), "training.loss_end"),
    ("a margin of the wrong sign", metric("training", "margin_end", value=-3.0), "training.margin_end"),
    ("a metric that is not a number", metric("training", "loss_end", value=float("nan")), "training.loss_end"),
    ("a metric that is zero", metric("dataset", "pairs_augmented", value=0), "dataset.pairs_augmented"),
    ("a metric that is missing", metric("training", "loss_first", value=None), "training.loss_first"),
    ("a chain too few", metric("dataset", "chains", value=1), "dataset.chains"),
]


@pytest.mark.slow
@pytest.mark.parametrize("defect, plant, row", RUNS, ids=[row[0] for row in RUNS])
def test_a_defect_in_a_run_fails_the_check(
    defect: str, plant: Callable[[Path], None], row: str, smoke_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(smoke_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "datasets_cache"))
    baselines.update(run, tmp_path / "baseline.json")
    assert all(found.passed for found in baselines.check(run, tmp_path / "baseline.json"))
    plant(run)
    failed = [found.name for found in baselines.check(run, tmp_path / "baseline.json") if not found.passed]
    assert row in failed
    CAUGHT.append((defect, f"fcdpo check: {row}"))


@pytest.mark.slow
def test_the_smoke_run_passes_its_committed_baseline(smoke_run: Path) -> None:
    rows = baselines.check(smoke_run, baselines.baseline_of(smoke_run))
    assert all(row.passed for row in rows), baselines.table(rows)

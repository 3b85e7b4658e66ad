"""`fcdpo check` as a specification: what passes, what fails, and what a new baseline is made of."""

from __future__ import annotations

import json
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest

from fcdpo_utils import store
from fcdpo_utils.pipeline import baselines, manifest
from fcdpo_utils.pipeline.cli import main
from fcdpo_utils.pipeline.manifest import StageSpec

METRICS = {
    "profile": "smoke",
    "dataset": {"chains": 37, "pairs_original": 0},
    "tasks": {"fol": {"n": 3, "after": {"sound": 0.6, "solved": 0.7}, "before": {"sound": 0.5}}},
    "training": {"loss_first": 2.0, "loss_end": 1.0, "margin_end": 0.5},
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run of one stage, and its baseline beside it."""
    spec = StageSpec("01_only", ("seed",), (), ("metrics.json",))
    monkeypatch.setattr(manifest, "STAGES", (spec,))
    folder = tmp_path / "run"
    (folder / "notebooks").mkdir(parents=True)
    (folder / "notebooks" / "01_only.ipynb").write_text("{}")
    store.write_json(folder / "metrics.json", METRICS)
    store.write_json(folder / "01_record.json", {"run": "a"})
    entry = {"papermill_exit": 0, "run": "a", "depends_on": {"settings of seed": manifest.setting_digest(0)}}
    manifest.save(folder, {"profile": "smoke", "settings": {"seed": 0}, "stages": {"01_only": entry}})
    sign(folder)
    baselines.update(folder, tmp_path / "baseline.json")
    return folder


def sign(folder: Path) -> None:
    """Let the manifest agree with the files."""
    made = manifest.load(folder)
    entry = made["stages"]["01_only"]
    entry["outputs"] = manifest.digests(folder, ("metrics.json", "notebooks/*.ipynb"))
    manifest.save(folder, made)


def change(folder: Path, name: str, value: object) -> None:
    metrics = store.read_json(folder / "metrics.json")
    *path, last = name.split(".")
    place = metrics
    for part in path:
        place = place[part]
    place[last] = value
    (folder / "metrics.json").write_text(json.dumps(metrics))
    sign(folder)


def failed(folder: Path) -> list[str]:
    return [row.name for row in baselines.check(folder, folder.parent / "baseline.json") if not row.passed]


def test_an_unchanged_run_passes(run: Path) -> None:
    assert failed(run) == []


@pytest.mark.parametrize(
    "name, value, passes",
    [
        ("tasks.fol.after.sound", 0.9, True),  # better is fine
        ("tasks.fol.after.sound", 0.5, True),  # worse within the tolerance
        ("tasks.fol.after.sound", 0.4, False),
        ("training.loss_end", 0.1, True),
        ("training.loss_end", 1.3, False),
        ("training.loss_first", 2.04, True),
        ("training.loss_first", 1.7, False),  # near: better is not fine
        ("training.margin_end", 0.04, False),
        ("dataset.chains", 38, False),
        ("dataset.chains", "37", False),
    ],
)
def test_a_metric_is_judged_by_its_direction_and_tolerance(run: Path, name: str, value: object, passes: bool) -> None:
    change(run, name, value)
    assert failed(run) == ([] if passes else [name])


@pytest.mark.parametrize("value", [0, 0.0, None, math.nan, math.inf, -math.inf, "", [], False])
@pytest.mark.parametrize(
    "name", ["tasks.fol.after.sound", "training.loss_end", "training.loss_first", "dataset.chains"]
)
def test_zero_missing_and_nan_never_pass(run: Path, name: str, value: object) -> None:
    change(run, name, value)
    assert name in failed(run)


def test_what_is_zero_or_has_no_rule_is_not_in_a_baseline(run: Path) -> None:
    names = set(store.read_json(run.parent / "baseline.json")["metrics"])
    assert "dataset.pairs_original" not in names and "tasks.fol.before.sound" not in names
    assert {"dataset.chains", "tasks.fol.n", "tasks.fol.after.sound", "training.loss_end"} <= names


def test_an_empty_baseline_does_not_pass(run: Path) -> None:
    store.write_json(run.parent / "baseline.json", {"profile": "smoke", "metrics": {}})
    assert failed(run) == ["metrics"]


def test_a_run_of_another_profile_does_not_pass(run: Path) -> None:
    store.write_json(run.parent / "baseline.json", store.read_json(run.parent / "baseline.json") | {"profile": "cpu"})
    assert failed(run) == ["profile"]


def test_an_altered_artifact_fails_and_makes_no_baseline(run: Path) -> None:
    (run / "notebooks" / "01_only.ipynb").write_text("{ }")
    assert failed(run) == ["01_only: artifacts"]
    with pytest.raises(
        ValueError, match=r"no baseline from a broken run: 01_only: artifacts is notebooks/01_only.ipynb"
    ):
        baselines.update(run, run.parent / "baseline.json")


def test_the_command_prints_the_table_and_its_verdict(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["check", str(run), "--baseline", str(run.parent / "baseline.json")]
    assert main(options) == 0
    change(run, "training.loss_end", 1.3)
    assert main(options) == 1
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.startswith("training.loss_end") and "FAILED" in line]
    assert line.split() == ["training.loss_end", "1", "1.3", "(+0.3)", "at", "most", "1.2", "FAILED"]
    second = lines[len(lines) // 2 :]  # of the second check: what failed comes first
    assert second.index(line) == 1 and second[-2].startswith(
        "stages, records, artifacts, inputs, settings: 5 checks ok"
    )
    assert lines[-1].endswith(", 1 failed")


def test_ci_servers_and_step_summaries_get_the_same_verdict(run: Path) -> None:
    change(run, "training.loss_end", 1.3)
    place, junit, summary = run.parent, run.parent / "out.xml", run.parent / "summary.md"
    summary.write_text("before\n")
    options = ["check", str(run), "--baseline", str(place / "baseline.json")]
    assert main([*options, "--junit", str(junit), "--markdown", str(summary)]) == 1
    suite = ElementTree.fromstring(junit.read_text())
    count = len(baselines.check(run, place / "baseline.json"))
    assert (suite.get("tests"), suite.get("failures"), len(suite)) == (str(count), "1", count)
    (case,) = [case for case in suite if len(case)]
    assert case.get("name") == "training.loss_end" and "allowed at most 1.2" in case[0].get("message")
    lines = summary.read_text().splitlines()
    assert lines[:2] == ["before", f"{count} checks, 1 failed"]
    assert lines[-1] == "| training.loss_end | 1 | 1.3 (+0.3) | at most 1.2 |"


def test_update_shows_what_changed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(run, "training.loss_end", 1.3)
    assert main(["check", str(run), "--baseline", str(run.parent / "baseline.json"), "--update"]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first == "training.loss_end: 1 -> 1.3" and last.startswith("1 changes in")
    assert failed(run) == []


def test_a_folder_without_a_manifest_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"fcdpo: run fcdpo run first: manifest.json is missing in {tmp_path}\n"

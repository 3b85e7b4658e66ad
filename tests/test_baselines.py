"""`fcdpo check` as a specification: what passes, what fails, and what a new baseline is made of."""

from __future__ import annotations

import json
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from fcdpo_utils import store
from fcdpo_utils.episode import Chain, Step
from fcdpo_utils.evaluation import mcnemar
from fcdpo_utils.fingerprint import ROOT
from fcdpo_utils.lab.settings import load_settings
from fcdpo_utils.pipeline import baselines, manifest
from fcdpo_utils.pipeline.cli import main
from fcdpo_utils.pipeline.manifest import StageSpec
from fcdpo_utils.problems import Problem, save_problems

METRICS = {
    "profile": "smoke",
    "dataset": {"chains": 37, "pairs_original": 0},
    "tasks": {"fol": {"n": 3, "after": {"sound": 0.6, "solved": 0.7}, "before": {"sound": 0.5}}},
    "training": {"loss_first": 2.0, "loss_end": 1.0, "margin_end": 0.5},
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run of one stage, and its baseline beside it."""
    spec = StageSpec("01_only", ("seed",), (), ("metrics.json", "*.jsonl"))
    monkeypatch.setattr(manifest, "STAGES", (spec,))
    folder = tmp_path / "run"
    (folder / "notebooks").mkdir(parents=True)
    (folder / "notebooks" / "01_only.ipynb").write_text("{}")
    store.write_json(folder / "metrics.json", METRICS)
    store.write_json(folder / "01_record.json", {"run": "a"})
    entry = {"papermill_exit": 0, "run": "a", "depends_on": {"settings of seed": store.digest(store.dump(0))}}
    manifest.save(folder, {"profile": "smoke", "settings": {"seed": 0}, "stages": {"01_only": entry}})
    sign(folder)
    baselines.update(folder, tmp_path / "baseline.json")
    return folder


def sign(folder: Path) -> None:
    """Let the manifest agree with the files."""
    made = manifest.load(folder)
    entry = made["stages"]["01_only"]
    entry["outputs"] = manifest.digests(folder, ("metrics.json", "*.jsonl", "notebooks/*.ipynb"))
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
    line = r"no baseline of a run that is not whole: 01_only: artifacts is notebooks/01_only.ipynb"
    with pytest.raises(store.StoreError, match=line):
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
    rows = baselines.check(run, place / "baseline.json")
    assert summary.read_text() == f"before\n```\n{baselines.table(rows)}\n```\n"


def test_update_shows_what_changed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(run, "training.loss_end", 1.3)
    assert main(["check", str(run), "--baseline", str(run.parent / "baseline.json"), "--update"]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first == "training.loss_end: 1 -> 1.3" and last.startswith("1 changes in")
    assert failed(run) == []


def test_a_folder_without_a_manifest_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"fcdpo: run fcdpo run first: manifest.json is missing in {tmp_path}\n"


# What is yours to edit


def test_the_rules_are_those_of_the_file_at_every_check(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So --update, which knows nothing of them, resets none that was edited; and what has no rule is not judged."""
    change(run, "training.loss_end", 1.3)
    assert failed(run) == ["training.loss_end"]
    baseline = run.parent / "baseline.json"
    assert "tolerance" not in baseline.read_text() and "0.2" not in baseline.read_text()
    rules = {**baselines._RULES, "training.loss_end": {"direction": "lower", "tolerance": 0.35}}
    monkeypatch.setattr(baselines, "_RULES", rules)
    assert failed(run) == []
    baselines.update(run, baseline)
    change(run, "training.loss_end", 1.7)
    assert failed(run) == ["training.loss_end"]
    monkeypatch.setattr(baselines, "_RULES", {name: rules[name] for name in rules if name != "training.loss_end"})
    assert failed(run) == []
    monkeypatch.setattr(baselines, "_RULES", {})
    assert failed(run) == ["metrics"]


def test_the_rules_file_is_complete_and_update_leaves_it_alone(run: Path) -> None:
    path = Path(baselines.__file__).with_suffix(".yaml")
    before = path.read_bytes()
    assert main(["check", str(run), "--baseline", str(run.parent / "baseline.json"), "--update"]) == 0
    assert path.read_bytes() == before
    for pattern, rule in yaml.safe_load(before).items():
        assert rule["direction"] in ("exact", "near", "higher", "lower"), pattern
        assert rule.keys() <= {"direction", "tolerance", "growth", "alpha"}, pattern
        assert (rule["direction"] == "exact") == (len(rule) == 1), pattern


@pytest.mark.parametrize("path", sorted((ROOT / "outputs" / "baselines").glob("*.json")), ids=lambda path: path.stem)
def test_every_committed_baseline_reads_and_all_its_metrics_have_rules(path: Path) -> None:
    baseline = store.read_json(path)
    assert baseline["profile"] == path.stem.split("-")[0] and len(baseline["metrics"]) > 20
    assert all(baselines.rule_of(name) and baselines._counts(value) for name, value in baseline["metrics"].items())
    for name, marks in baseline.get("outcomes", {}).items():
        task = name.split(".")[1]
        assert {*marks} <= {*"01"} and len(marks) == baseline["metrics"][f"tasks.{task}.n"]


def test_a_baseline_of_an_earlier_version_is_one_line(run: Path) -> None:
    old = {"profile": "smoke", "metrics": {"training.loss_end": {"expected": 1.0, "direction": "lower"}}}
    store.write_json(run.parent / "baseline.json", old)
    with pytest.raises(store.StoreError, match="baseline.json is not a baseline; make it again with --update"):
        failed(run)


# The same held-out problems


def solve(run: Path, marks: str, questions: str = "problem {}") -> None:
    """Let the trained student have solved these of the held-out problems soundly, and sign it."""
    names = [f"p{number}" for number in range(len(marks))]
    problems = [Problem(name, "fol", "test", 1, questions.format(name), "3", name) for name in names]
    save_problems(run / "problems.jsonl", [Problem("train", "fol", "train", 1, "", "3", ""), *problems])
    steps = (Step("Answer(3)", "Answer recorded: 3", None),)
    made = {"0": ("wrong_answer", "3", False, False), "1": ("solved", "3", True, True)}
    chains = [Chain(name, steps, *made[mark]) for name, mark in zip(names, marks, strict=True)]
    store.write_records(run / "chains_after.jsonl", [chain.record() for chain in reversed(chains)])  # as they ended
    for label in ("solved", "sound"):
        change(run, f"tasks.fol.after.{label}", marks.count("1") / len(marks))


def with_outcomes(run: Path, marks: str) -> Path:
    solve(run, marks)
    baselines.update(run, run.parent / "baseline.json")
    return run.parent / "baseline.json"


def marks(both: int, lost: int, gained: int, neither: int) -> tuple[str, str]:
    """The outcomes before and after."""
    return "1" * (both + lost) + "0" * (gained + neither), "1" * both + "0" * lost + "1" * gained + "0" * neither


PAIRED = ["tasks.fol.after.solved", "tasks.fol.after.sound"]


def test_a_baseline_holds_which_held_out_problems_were_solved(run: Path) -> None:
    outcomes = store.read_json(with_outcomes(run, "110101"))["outcomes"]
    assert outcomes == dict.fromkeys(PAIRED, "110101")  # in the order of the problems, not in that of the chains
    assert failed(run) == []


@pytest.mark.parametrize(
    ("counts", "passes"),
    [
        ((100, 5, 0, 15), True),  # p = 0.0625
        ((100, 6, 0, 14), False),  # 5 points, within the flat tolerance; p = 0.031
        ((60, 30, 16, 14), True),  # 11.7 points; p = 0.054
        ((60, 30, 14, 16), False),  # 13.3 points; p = 0.023
        ((60, 20, 6, 34), False),
        ((60, 6, 20, 34), True),  # better, and significantly: fine
    ],
)
def test_soundness_fails_where_more_problems_were_lost_than_chance_explains(
    run: Path, counts: tuple[int, int, int, int], passes: bool
) -> None:
    before, after = marks(*counts)
    with_outcomes(run, before)
    solve(run, after)
    test = mcnemar([*map(int, before)], [*map(int, after)])
    assert passes == (test.lost <= test.gained or test.p > 0.05)
    assert failed(run) == ([] if passes else PAIRED)


def test_the_table_shows_the_paired_test(run: Path) -> None:
    before, after = marks(60, 20, 6, 34)
    with_outcomes(run, before)
    solve(run, after)
    rows = {row.name: row for row in baselines.check(run, run.parent / "baseline.json")}
    assert rows[PAIRED[1]][1:] == ("0.6667", "0.55, +6 -20, p 0.0094", "p > 0.05 if lost", False)


def test_the_tolerance_counts_without_outcomes_and_for_other_problems(run: Path) -> None:
    before, after = marks(100, 6, 0, 14)
    path = with_outcomes(run, before)
    solve(run, after)
    assert failed(run) == PAIRED
    baseline = store.read_json(path)
    store.write_json(path, {name: baseline[name] for name in ("profile", "metrics")})
    assert failed(run) == []  # 5 points of 12
    store.write_json(path, baseline)
    solve(run, after, "another problem {}")
    assert failed(run) == ["artifacts.problems.jsonl"]


def test_soundness_that_the_chains_do_not_show_fails(run: Path) -> None:
    with_outcomes(run, "110101")
    change(run, "tasks.fol.after.sound", 0.9)
    assert failed(run) == ["tasks.fol.after.sound: the chains'"]


def test_chains_that_do_not_read_fail_as_an_artifact(run: Path) -> None:
    with_outcomes(run, "110101")
    (run / "chains_after.jsonl").write_text("{")
    assert baselines.outcomes(run) == {} and failed(run) == ["01_only: artifacts"]


# Which baseline


def test_a_run_with_other_settings_has_a_baseline_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = []
    same = [[], ["expected_minutes=[1]", "report_to=none"]]  # neither changes what is computed
    for overrides in (*same, ["training.beta=0.5"], ["training.beta=0.7"]):
        manifest.save(tmp_path, manifest.head(load_settings("smoke", overrides), overrides))
        places.append(baselines.baseline_of(tmp_path))
    assert places[0] == places[1] == ROOT / "outputs" / "baselines" / "smoke.json"
    assert len({*places}) == 3 and all(path.name.startswith("smoke") for path in places)
    assert main(["check", str(tmp_path)]) == 2  # not compared with the profile's, which is there
    line = f"run fcdpo check --update first: {places[3].name} is missing in {places[3].parent}"
    assert capsys.readouterr().err == f"fcdpo: {line}\n"


# From night to night


def test_each_check_appends_a_line_to_the_trend(run: Path) -> None:
    made = manifest.load(run) | {"commit": "abc"}
    manifest.save(run, made)
    trend, options = run.parent / "trend.jsonl", ["check", str(run), "--baseline", str(run.parent / "baseline.json")]
    assert main([*options, "--trend", str(trend)]) == 0
    change(run, "training.loss_end", 1.3)
    assert main([*options, "--trend", str(trend)]) == 1
    first, second = store.read(trend)
    assert first["metrics"]["training.loss_end"] == 1.0 and second["metrics"]["training.loss_end"] == 1.3
    assert first["failed"] == [] and second["failed"] == ["training.loss_end"] and second["commit"] == "abc"
    assert first["date"] <= second["date"] and first["date"].endswith("+00:00")
    assert not any(name.startswith("artifacts") for name in first["metrics"])

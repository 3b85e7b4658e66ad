"""Two runs beside each other: what differs, whether more than chance, which problems flipped."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from fcdpo_utils import store
from fcdpo_utils.episode import Chain, Step
from fcdpo_utils.evaluation import mcnemar
from fcdpo_utils.pipeline import manifest
from fcdpo_utils.pipeline.cli import main
from fcdpo_utils.pipeline.compare import answered_by_both, compare, differences, paired
from fcdpo_utils.pipeline.stage import start_stage
from fcdpo_utils.problems import Problem, save_problems


def run_in(folder: Path, sound: dict[str, bool], beta: float = 0.1, questions: str = "{}?") -> Path:
    """A run whose trained student solved these problems; ids starting with "a" are arithmetic, others logic."""
    folder.mkdir()
    task = {name: "arithmetic" if name.startswith("a") else "fol" for name in sound}
    problems = [Problem(name, task[name], "test", 1, questions.format(name), "3", name) for name in sound]
    save_problems(folder / "problems.jsonl", problems)
    steps = (Step("Answer(3)", "Answer recorded: 3", None),)
    outcome = {True: "solved", False: "wrong_answer"}
    chains = [Chain(name, steps, outcome[good], "3", good, good).record(key="k") for name, good in sound.items()]
    store.write_records(folder / "chains_after.jsonl", random.Random(beta).sample(chains, len(chains)))
    tasks = {"fol": {"n": 3, "after": {"sound": beta}}}
    store.write_json(folder / "metrics.json", {"tasks": tasks, "stages": {"01": {"seconds": beta}}})
    start_stage("05_evaluation_and_plots", "smoke", str(folder), f"training.beta={beta}").record()
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    names = [f"{letter}{number}" for letter in "af" for number in range(40)]
    rng = random.Random(3)
    first, second = ({name: rng.random() < share for name in names} for share in (0.3, 0.8))
    return run_in(tmp_path / "one", first), run_in(tmp_path / "two", second, beta=0.5)


def test_the_flipped_problems_are_those_that_differ_in_the_stored_chains(runs: tuple[Path, Path]) -> None:
    stored = []
    for run in runs:
        lines = (run / "chains_after.jsonl").read_text(encoding="utf-8").splitlines()
        stored.append({record["problem_id"]: record["sound"] for record in map(json.loads, lines)})
    differing = {name for name in stored[0] if stored[0][name] != stored[1][name]}
    lines = "\n".join(compare(*runs)).partition("problems that flipped: ")[2].splitlines()[1 : len(differing) + 1]
    assert {line.split()[1] for line in lines} == differing and 20 < len(differing) < 70
    assert all((line.split()[0] == "gained") == stored[1][line.split()[1]] for line in lines)
    for task, letter in (("arithmetic", "a"), ("fol", "f")):
        names = [name for name in stored[0] if name[0] == letter]
        test = mcnemar(*([side[name] for name in names] for side in stored))
        sums = [sum(side[name] for name in names) for side in stored]
        assert paired(answered_by_both(*runs))[task] == (40, *sums, test)


def test_settings_and_judged_metrics_are_named_where_they_differ(runs: tuple[Path, Path]) -> None:
    found = differences(*runs)
    assert found == {"settings": [("training.beta", 0.1, 0.5)], "metrics": [("tasks.fol.after.sound", 0.1, 0.5)]}
    assert [len(rows) for rows in differences(runs[0], runs[0]).values()] == [0, 0]


def test_both_chains_of_flipped_problems_are_shown(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    lines = "\n".join(compare(*runs, show=2))
    assert lines.count("first:\n") == lines.count("second:\n") == 2 and "Answer(3)" in lines
    assert main(["compare", *map(str, runs), "--show", "0"]) == 0
    output = capsys.readouterr().out
    assert "first:\n" not in output and "\nproblems that flipped: " in output


def test_runs_that_share_no_problem_are_one_line(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = run_in(tmp_path / "three", {"a0": True}, questions="What is {}?")
    assert main(["compare", str(runs[0]), str(other)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "asked no problem in common" in line
    (other / "chains_after.jsonl").unlink()
    assert main(["compare", str(runs[0]), str(other)]) == 1
    assert capsys.readouterr().err.startswith("fcdpo: run 05 first: chains_after.jsonl")


def test_a_run_whose_files_do_not_belong_together_is_refused(runs: tuple[Path, Path]) -> None:
    """Problems made anew keep their ids: only the manifest knows that the chains are of others."""
    manifest.save(runs[1], {"profile": "smoke", "settings": {}, "stages": {}})
    with pytest.raises(store.StoreError, match="no comparison of a run that is not whole: 01_function_definition"):
        answered_by_both(*runs)

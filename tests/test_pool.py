"""Several seeds of one experiment: pooled outcomes, and the power of the test on them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from fcdpo_utils import store
from fcdpo_utils.evaluation import mcnemar
from fcdpo_utils.lab.pool import markdown, pooled, power
from fcdpo_utils.pipeline.cli import main


def run_in(folder: Path, **variants: str) -> Path:
    """A run whose notebook 06 had these variants, with one letter a problem: s sound, - not."""
    rows = [{"name": name} for name in variants]
    folder.mkdir()
    store.write_json(folder / "ablations.json", {"commit": "abc", "variants": rows})
    problems = [{"id": f"p{i}", "task": ("fol", "arithmetic")[i % 2]} for i in range(8)]
    store.write_records(folder / "problems.jsonl", problems)
    for name, outcomes in variants.items():
        records = [{"problem_id": f"p{i}", "sound": letter == "s"} for i, letter in enumerate(outcomes)]
        (folder / "ablations" / name).mkdir(parents=True)
        ordered = records if name == "full" else records[::-1]  # problems are matched by name
        store.write_records(folder / "ablations" / name / "chains.jsonl", ordered)
    return folder


def test_outcomes_of_all_runs_are_tested_together(tmp_path: Path) -> None:
    first = run_in(tmp_path / "a", full="ss--", other="ssss")
    second = run_in(tmp_path / "b", full="s---", other="ssss", extra="----")
    full, other = pooled([first, second])
    assert (full["name"], full["n"], full["sound"], full["runs"]) == ("full", 8, 3 / 8, [0.5, 0.25])
    assert (other["gained"], other["lost"]) == (5, 0)
    assert other["p"] == other["p_holm"] == mcnemar([False] * 5, [True] * 5).p
    assert "| other | 100.0% | 67.6% to 100.0% | 100%, 100% | 5 | 0 | 0.062 | 0.062 |" in markdown([full, other])


def test_one_task_alone_and_another_variant_to_compare_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [run_in(tmp_path / name, full="ss-s", other="s-ss", third="--s-") for name in "ab"]
    first, second, third = pooled(runs, task="fol", against="third")
    assert [row["name"] for row in (first, second, third)] == ["third", "full", "other"]
    assert first["n"] == 4 and first["runs"] == [0.5, 0.5] and (second["gained"], second["lost"]) == (2, 2)
    saved = tmp_path / "fol"
    assert main(["pool", *map(str, runs), "--task", "fol", "--against", "other", "--save", str(saved)]) == 0
    assert capsys.readouterr().out.splitlines()[2].startswith("| other | 100.0% |")
    rows = pooled(runs, task="fol", against="other")
    kept = {"commits": ["abc"], "task": "fol", "variants": rows}
    assert store.read_json(saved.with_suffix(".json")) == kept and saved.with_suffix(".png").stat().st_size > 5_000
    with pytest.raises(ValueError, match="no variant 'fourth' in common, but full, other, third"):
        pooled(runs, against="fourth")
    with pytest.raises(ValueError, match="no problems of task 'gsm8k'"):
        pooled(runs, task="gsm8k")


def test_runs_without_a_variant_in_common_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [run_in(tmp_path / "a", full="s", one="s"), run_in(tmp_path / "b", full="s", two="s")]
    with pytest.raises(ValueError, match="no two variants in common"):
        pooled(runs)
    assert main(["pool", str(tmp_path / "c")]) == 1 and capsys.readouterr().err.startswith("fcdpo: run 06 first: ")


@pytest.mark.parametrize(("n", "difference", "churn"), [(100, 0.1, 0.05), (60, 0.2, 0.1), (80, 0.0, 0.1)])
def test_the_power_is_what_a_simulation_finds(n: int, difference: float, churn: float) -> None:
    rng, found, trials = random.Random(0), 0, 2_000
    for _ in range(trials):
        draws = [rng.random() for _ in range(n)]
        before = [draw < churn for draw in draws]  # lost
        after = [churn <= draw < 2 * churn + difference for draw in draws]  # gained
        found += mcnemar(before, after).p < 0.05
    assert power(n, difference, churn) == pytest.approx(found / trials, abs=0.035)

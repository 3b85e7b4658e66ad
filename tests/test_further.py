"""Notebooks 06 to 08 on a finished smoke run: they run, keep what they did, and say what they found from numbers."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from runs import fcdpo

from fcdpo_utils import store
from fcdpo_utils.pipeline import baselines, manifest, runner
from fcdpo_utils.pipeline.runner import StageError

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
FURTHER = {spec.name[:2]: spec for spec in manifest.FURTHER}


@pytest.fixture(scope="module")
def further_run(smoke_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the smoke run with 06, 07 and 08 run on top; none of its first five stages may run again."""
    folder = tmp_path_factory.mktemp("further") / "smoke"
    shutil.copytree(smoke_run, folder)
    for number in FURTHER:
        done = fcdpo("run", "--profile", "smoke", "--run-dir", str(folder), "--only", number)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("up to date, skipped") == len(FURTHER[number].needs)
    return folder


@pytest.mark.slow
def test_the_ablations_compare_every_arm_on_the_same_problems(further_run: Path) -> None:
    made = store.read_json(further_run / "ablations.json")
    assert [row["arm"] for row in made["arms"]] == ["full method", "D*, as many steps", "1 correct and 1 incorrect"]
    assert {row["n"] for row in made["arms"]} == {7}
    assert len({row["steps"] for row in made["arms"]}) == 1  # the smoke grid's arms all take as many steps
    assert {path.name for path in further_run.glob("ablations_*.png")} == {
        "ablations_augmentation.png",
        "ablations_chains.png",
        "ablations_counts.png",
    }


@pytest.mark.slow
def test_the_probes_are_checked_for_contamination_and_compared_in_pairs(further_run: Path) -> None:
    made = store.read_json(further_run / "generalisation.json")
    assert made["probes"]["ordering"]["n"] == 2 and made["chat"]["n"] >= 20
    overlaps = [found for by_set in made["contamination"].values() for found in by_set.values()]
    assert len(overlaps) == 2 * 3 and not any(found["duplicates"] for found in overlaps)


@pytest.mark.slow
def test_a_round_is_tested_against_the_round_before(further_run: Path) -> None:
    made = store.read_json(further_run / "rounds.json")
    assert [test["name"] for test in made["tests"]] == ["fol", "arithmetic", "longer proofs"]
    assert list(made["sampled"]["2"]["pass@k"]) == ["1", "2", "4"]
    assert made["sound"]["fol"][0]["trials"] == 3


@pytest.mark.slow
def test_a_run_with_further_stages_is_whole_and_skips_them_next_time(further_run: Path) -> None:
    assert all(row.passed for row in baselines.integrity(further_run))
    done = fcdpo("run", "--profile", "smoke", "--run-dir", str(further_run), "--only", "08")
    assert done.returncode == 0 and done.stdout.count("up to date, skipped") == 5
    (further_run / "rounds.json").write_text("{}")
    assert "08_rounds: artifacts" in [row.name for row in baselines.integrity(further_run) if not row.passed]


def test_a_further_stage_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        StageError, match=re.escape("unknown stage '9'; expected one of 01, 02, 03, 04, 05, 06, 07, 08")
    ):
        runner.run("smoke", run_dir=tmp_path, only="9")
    with pytest.raises(StageError, match=re.escape("(those from 06 on with --only)")):
        runner.run("smoke", run_dir=tmp_path, start="06")


@pytest.mark.parametrize("number", sorted(FURTHER))
def test_no_result_is_typed_by_hand(number: str) -> None:
    """Shares, p-values and counts of problems come from the run: the text around the cells holds none."""
    notebook = json.loads((NOTEBOOKS / f"{FURTHER[number].name}.ipynb").read_text(encoding="utf-8"))
    texts = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    numbers = [n for text in texts for n in re.findall(r"\d+(?:\.\d+)? ?%|p ?[=<] ?0?\.\d+", text)]
    assert set(numbers) <= {"p < 0.05", "5 %", "95 %"}, numbers

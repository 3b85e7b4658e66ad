"""Notebooks 06 to 09 on a finished smoke run: they run, keep what they did, and say what they found from numbers."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import papermill
import pytest

from fcdpo_utils import engine, store
from fcdpo_utils.chains import prompts_of
from fcdpo_utils.lab.settings import load_settings
from fcdpo_utils.onpolicy import preference_data
from fcdpo_utils.pipeline import baselines, manifest, runner
from fcdpo_utils.pipeline.cli import main
from fcdpo_utils.pipeline.runner import StageError
from fcdpo_utils.problems import load_problems
from fcdpo_utils.teachers.own import prepare
from fcdpo_utils.train import training_fingerprint
from fcdpo_utils.weights import ADAPTER_FILE

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
FURTHER = {spec.name[:2]: spec for spec in manifest.FURTHER}


@pytest.fixture(scope="module")
def further_run(smoke_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the smoke run with 06 to 09 run on top; none of its first five stages may run again.

    06 finds what the students wrote that 05 evaluated, and asks only those that it trains with another setting.
    """
    folder = tmp_path_factory.mktemp("further") / "smoke"
    shutil.copytree(smoke_run, folder)
    for variant, when in (("full-method", "after"), ("warm-up-only", "warm_up")):
        (folder / "ablations" / variant).mkdir(parents=True)
        shutil.copy(folder / f"chains_{when}.jsonl", folder / "ablations" / variant / "chains.jsonl")
    for number in FURTHER:
        with redirect_stdout(StringIO()) as output:
            assert main(["run", "--profile", "smoke", "--run-dir", str(folder), "--only", number]) == 0
        assert output.getvalue().count("up to date, skipped") == len(FURTHER[number].needs)
    return folder


@pytest.mark.slow
def test_the_ablations_compare_every_variant_on_the_same_problems(further_run: Path) -> None:
    rows = store.read_json(further_run / "ablations.json")["variants"]
    assert [row["name"] for row in rows] == ["full method", "warm-up only", "D*", "1 correct and 1 incorrect"]
    assert {row["n"] for row in rows} == {7}
    assert len({row["steps"] for row in rows[:3]}) == 1 and rows[1]["pairs"] < rows[0]["pairs"]
    assert {path.name for path in further_run.glob("ablations_*.png")} == {
        "ablations_augmentation.png",
        "ablations_chains.png",
        "ablations_counts.png",
        "ablations_warm-up.png",
    }


@pytest.mark.slow
def test_the_out_of_distribution_sets_are_checked_for_contamination_and_compared_in_pairs(further_run: Path) -> None:
    made = store.read_json(further_run / "generalisation.json")
    assert made["sets"]["ordering"]["n"] == 2
    overlaps = [found for by_set in made["contamination"].values() for found in by_set.values()]
    assert len(overlaps) == 2 * 4 and not any(found["duplicates"] for found in overlaps)


@pytest.mark.nightly  # they train
@pytest.mark.parametrize("number", ["06", "07", "09"])
def test_the_answers_to_their_exercises_run(further_run: Path, tmp_path: Path, number: str) -> None:
    name = f"{FURTHER[number].name}.ipynb"
    parameters = {"profile": "smoke", "run_dir": str(further_run)}
    papermill.execute_notebook(
        NOTEBOOKS / "solutions" / name, tmp_path / name, parameters, cwd=str(tmp_path), progress_bar=False
    )


@pytest.mark.slow
def test_a_further_stage_says_when_it_is_stale_and_never_spoils_the_pipeline(further_run: Path) -> None:
    settings = load_settings("smoke")
    for spec in manifest.FURTHER:
        assert manifest.changes(spec, settings, further_run, manifest.load(further_run)) == []
    (further_run / "generalisation.json").write_text("{}")
    changed = manifest.changes(FURTHER["07"], settings, further_run, manifest.load(further_run))
    assert changed == ["output generalisation.json"]
    assert all(row.passed for row in baselines.integrity(further_run))  # of 01 to 05
    assert set(store.read_json(further_run / "metrics.json")["stages"]) == {spec.name for spec in manifest.STAGES}


@pytest.mark.slow
def test_the_same_functions_train_what_notebook_04_trains(further_run: Path, smoke_run: Path) -> None:
    """06 trains the full method once more: the same weights. What it starts from and what 05 evaluated serves again."""
    settings = load_settings("smoke")
    again, first = (
        store.read_json(run / "training.json") for run in (further_run / "ablations/full-method", smoke_run)
    )
    start = prepare(further_run, settings, engine, lambda label: lambda *_: None)
    data = preference_data(start.problems, start.teachers, start.own, settings)
    prompts = prompts_of(load_problems(smoke_run / "problems.jsonl", "train"))
    assert first.pop("fingerprint") == training_fingerprint(data, prompts, settings, engine, start.adapter)
    assert again.pop("fingerprint") and again == first and first["adapter"]  # the digest of the weights
    for name in ("own_chains.jsonl", f"warm_up/adapter/{ADAPTER_FILE}"):
        assert (further_run / name).stat().st_mtime_ns == (smoke_run / name).stat().st_mtime_ns, name
    assert list(further_run.glob("ablations/dstar/chains.jsonl")) and not list(further_run.glob("ablations/*/*.old"))


def test_a_broken_further_stage_does_not_stop_the_pipeline(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("{}")
    done = {spec.name: {"seconds": 1.0, "peak_gib": 1.0, "attempts": 1} for spec in manifest.STAGES}
    runner._add_times(tmp_path, done | {"06_ablations": {"papermill_exit": None}})
    assert set(store.read_json(tmp_path / "metrics.json")["stages"]) == set(done)


def test_a_further_stage_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        StageError, match=re.escape("unknown stage '10'; expected one of 01, 02, 03, 04, 05, 06, 07, 08, 09")
    ):
        runner.run("smoke", run_dir=tmp_path, only="10")
    with pytest.raises(StageError, match=re.escape("(those from 06 on with --only)")):
        runner.run("smoke", run_dir=tmp_path, start="06")


@pytest.mark.parametrize("number", sorted(FURTHER))
def test_no_result_is_typed_by_hand(number: str) -> None:
    """Shares, p-values and counts of problems come from the run: the text around the cells holds none."""
    notebook = json.loads((NOTEBOOKS / f"{FURTHER[number].name}.ipynb").read_text(encoding="utf-8"))
    texts = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    numbers = [n for text in texts for n in re.findall(r"\d+(?:\.\d+)? ?%|p ?[=<] ?0?\.\d+", text)]
    assert set(numbers) <= {"p < 0.05", "5 %", "95 %"}, numbers

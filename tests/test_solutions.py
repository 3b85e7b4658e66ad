"""The worked answers to the exercises: every exercise of those notebooks has one, and it runs."""

import json
import re
from pathlib import Path

import papermill
import pytest
from test_notebooks import cells, tagged

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
SOLUTIONS = sorted((NOTEBOOKS / "solutions").glob("*.ipynb"))


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_every_exercise_has_its_answer(path: Path) -> None:
    asking, answering = (json.loads(p.read_text(encoding="utf-8")) for p in (NOTEBOOKS / path.name, path))
    (exercises,) = (text for text in cells(asking, "markdown") if text.startswith("## Exercises"))
    asked = re.findall(r"^(\d)\. ", exercises, re.MULTILINE)
    answered = re.findall(r"^## (\d)\. ", "\n".join(cells(answering, "markdown")), re.MULTILINE)
    assert answered == asked


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_the_answer_runs(path: Path, smoke_run: Path, tmp_path: Path) -> None:
    of_a_run = tagged(json.loads(path.read_text(encoding="utf-8")), "parameters")
    parameters = {"profile": "smoke", "run_dir": str(smoke_run)} if of_a_run else {}
    papermill.execute_notebook(path, tmp_path / path.name, parameters, cwd=str(tmp_path), progress_bar=False)

"""The worked answers to the exercises: every exercise of every notebook has one, and it runs."""

import json
import re
from pathlib import Path

import papermill
import pytest
from test_notebooks import NOTEBOOKS, cells, tagged

SOLUTIONS = [path.parent / "solutions" / path.name for path in NOTEBOOKS]
OF_MORE = ("06", "07", "09")  # they need more than a smoke run: test_further runs them


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_every_exercise_has_its_answer(path: Path) -> None:
    asking, answering = (json.loads(p.read_text(encoding="utf-8")) for p in (path.parents[1] / path.name, path))
    (exercises,) = (text for text in cells(asking, "markdown") if text.startswith("## Exercises"))
    asked = re.findall(r"^(\d)\. ", exercises, re.MULTILINE)
    answered = re.findall(r"^## (\d)\. ", "\n".join(cells(answering, "markdown")), re.MULTILINE)
    assert answered == asked and f"](solutions/{path.name})" in exercises


@pytest.mark.parametrize(
    "path", [path for path in SOLUTIONS if path.stem[:2] not in OF_MORE], ids=lambda path: path.stem
)
def test_the_answer_runs(path: Path, smoke_run: Path, tmp_path: Path) -> None:
    of_a_run = tagged(json.loads(path.read_text(encoding="utf-8")), "parameters")
    parameters = {"profile": "smoke", "run_dir": str(smoke_run)} if of_a_run else {}
    papermill.execute_notebook(path, tmp_path / path.name, parameters, cwd=str(tmp_path), progress_bar=False)

"""The worked answers to the exercises: every exercise of those notebooks has one, and it runs."""

import json
import re
from pathlib import Path

import papermill
import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
SOLUTIONS = sorted((NOTEBOOKS / "solutions").glob("*.ipynb"))


def markdown(path: Path) -> list[str]:
    return ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "markdown"]


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_every_exercise_has_its_answer(path: Path) -> None:
    (exercises,) = (text for text in markdown(NOTEBOOKS / path.name) if text.startswith("## Exercises"))
    asked = re.findall(r"^(\d)\. ", exercises, re.MULTILINE)
    answered = re.findall(r"^## (\d)\. ", "\n".join(markdown(path)), re.MULTILINE)
    assert answered == asked


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_the_answer_runs(path: Path, smoke_run: Path, tmp_path: Path) -> None:
    tagged = any("parameters" in c["metadata"].get("tags", []) for c in json.loads(path.read_text())["cells"])
    parameters = {"profile": "smoke", "run_dir": str(smoke_run)} if tagged else {}
    papermill.execute_notebook(path, tmp_path / path.name, parameters, cwd=str(tmp_path), progress_bar=False)

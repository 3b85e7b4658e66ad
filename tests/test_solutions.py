"""The worked answers to the exercises: every exercise of every notebook has one, and it runs."""

import json
import re
import tempfile
from pathlib import Path

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
def test_the_answer_runs(
    path: Path, smoke_run: Path, small_student: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cells one after the other, in this process; where they train, a small student."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    names = {"__name__": "__main__"}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for source in cells(notebook, "code"):
        exec(compile(source, path.name, "exec"), names)
        if source in tagged(notebook, "parameters"):
            names |= {"profile": "smoke", "run_dir": str(smoke_run)}

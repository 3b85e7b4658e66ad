"""The notebooks as their readers meet them: structure, cell sizes, and no leftovers."""

from __future__ import annotations

import ast
import json
import re
import statistics
from pathlib import Path

import pytest

from fcdpo_utils.profiles import load_settings

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("0*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request: pytest.FixtureRequest) -> dict:
    return json.loads(request.param.read_text(encoding="utf-8"))


def cells(notebook: dict, kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def tagged(notebook: dict, tag: str) -> list[str]:
    return ["".join(c["source"]) for c in notebook["cells"] if tag in c["metadata"].get("tags", [])]


def test_notebooks_are_numbered_without_a_gap() -> None:
    assert [path.stem[:2] for path in NOTEBOOKS] == [f"{number:02}" for number in range(1, 9)]


def test_sources_are_committed_without_outputs(notebook: dict) -> None:
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert "papermill" not in notebook["metadata"] and "widgets" not in notebook["metadata"]


def test_cells_are_small_enough_to_follow(notebook: dict) -> None:
    lines = [len(source.splitlines()) for source in cells(notebook, "code")]
    assert statistics.median(lines) <= 8 and max(lines) <= 40
    assert statistics.quantiles(lines, n=10)[-1] <= 25
    assert 1.2 <= len(cells(notebook, "markdown")) / len(lines) <= 2
    assert max(len(line) for source in cells(notebook, "code") for line in source.splitlines()) < 88


def test_one_parameters_cell_of_plain_literals(notebook: dict) -> None:
    (source,) = tagged(notebook, "parameters")
    assignments = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(source).body}
    title = cells(notebook, "markdown")[0]
    profile = "ablations" if title.startswith("# 06") else "cpu"
    assert assignments == {"profile": profile, "run_dir": "", "overrides": ""}


def test_overrides_in_the_text_work_as_they_are_printed(notebook: dict) -> None:
    (source,) = tagged(notebook, "parameters")
    profile = ast.literal_eval(ast.parse(source).body[0].value)
    for text in cells(notebook, "markdown"):
        for overrides in re.findall(r'`overrides = "(.*)"`', text):
            load_settings(profile, overrides)


def test_a_reader_finds_goal_place_recap_and_exercises(notebook: dict) -> None:
    text = "\n".join(cells(notebook, "markdown"))
    for part in ("You will be able to", "You are here", "## Imports", "## Record results", "## Recap", "## Exercises"):
        assert part in text, part
    assert text.startswith("# 0") and "Open in Colab" in text


def test_the_completion_record_is_the_last_code_cell(notebook: dict) -> None:
    assert "stage.record(" in cells(notebook, "code")[-1]


def test_no_helper_is_copied_between_notebooks() -> None:
    names: dict[str, str] = {}
    for path in NOTEBOOKS:
        for source in cells(json.loads(path.read_text(encoding="utf-8")), "code"):
            code = "\n".join(line for line in source.splitlines() if not line.strip().startswith(("!", "%")))
            for node in ast.walk(ast.parse(code)) if "COLAB" not in code else ():
                if isinstance(node, ast.FunctionDef):
                    assert node.name not in names, f"{node.name} is in {names[node.name]} and in {path.stem}"
                    names[node.name] = path.stem

"""The notebooks as their readers meet them: structure, cell sizes, and no leftovers."""

from __future__ import annotations

import ast
import json
import re
import statistics
from pathlib import Path

import nbformat
import pytest
from nbconvert import HTMLExporter

from fcdpo_utils.lab.settings import PROFILES, load_settings

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("0[1-9]*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request: pytest.FixtureRequest) -> dict:
    return json.loads(request.param.read_text(encoding="utf-8"))


def cells(notebook: dict, kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def tagged(notebook: dict, tag: str) -> list[str]:
    return ["".join(c["source"]) for c in notebook["cells"] if tag in c["metadata"].get("tags", [])]


def test_notebooks_are_numbered_without_a_gap() -> None:
    assert [path.stem[:2] for path in NOTEBOOKS] == [f"{number:02}" for number in range(1, 10)]


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


def opening(notebook: dict) -> list[dict]:
    """The cells that stand before the first numbered section."""
    first = next(i for i, cell in enumerate(notebook["cells"]) if "".join(cell["source"]).startswith("## 1. "))
    return notebook["cells"][:first]


def test_a_notebook_opens_with_its_question_a_drawing_and_three_aims(notebook: dict) -> None:
    text = "\n".join(cells({"cells": opening(notebook)}, "markdown"))
    question, drawing, after = text.split("```")
    assert question.startswith("# 0") and "?" in question
    aims = after.partition("**You will be able to**")[2]
    assert aims.count("\n- ") == 3 and re.search(r"minute.* GB", aims, re.S)
    number = text[2:4]
    marked, here = re.search(r"(.*)\n(.*you are here.*)", drawing).groups()
    assert here.index("^") <= marked.index(number) < here.rindex("^")
    assert drawing.isascii() and max(map(len, drawing.splitlines())) <= 92


def test_little_code_stands_before_the_first_idea(notebook: dict) -> None:
    code = cells({"cells": opening(notebook)}, "code")
    assert len(code) <= 4
    lines = [line for source in code for line in source.splitlines() if line.strip() and line[0] != "#"]
    assert len(lines) <= 15


@pytest.mark.parametrize("profile", sorted(path.stem for path in PROFILES.glob("*.yaml")))
def test_few_settings_are_shown(notebook: dict, profile: str) -> None:
    assert len(shown_settings(notebook, profile).splitlines()) <= 15


def shown_settings(notebook: dict, profile: str) -> str:
    """What the cell that starts the stage prints."""
    (names,) = re.findall(r"print\((?:stage\.)?settings\.table\((.*?)\)\)", "\n".join(cells(notebook, "code")), re.S)
    return load_settings(profile).table(*ast.literal_eval(f"[{names}]"))


def test_the_set_up_cell_is_hidden_in_a_rendered_page(notebook: dict) -> None:
    page, _ = HTMLExporter().from_notebook_node(nbformat.reads(json.dumps(notebook), as_version=4))
    assert "runpy" not in page and "start_stage" in page


def test_the_first_idea_is_on_the_first_screen(notebook: dict) -> None:
    """Lines of the page, at 1280 x 900; two for the space around a cell. A browser showed 01 end at line 39 of 44."""
    count = len(shown_settings(notebook, "cpu").splitlines())
    for cell in opening(notebook):
        if "setup" not in cell["metadata"].get("tags", []):
            count += "".join(cell["source"]).count("\n") + 2
    assert count <= 44


def test_a_notebook_ends_with_recap_and_exercises(notebook: dict) -> None:
    titles = re.findall(r"^## (?!\d)(.*)", "\n".join(cells(notebook, "markdown")), re.M)
    assert titles == ["Record results", "Recap", "Exercises"]


def test_five_questions_before_the_exercises_have_folded_answers(notebook: dict) -> None:
    texts = cells(notebook, "markdown")
    (place,) = (place for place, text in enumerate(texts) if text.startswith("### Five questions"))
    assert texts[place + 1].startswith("## Exercises")
    folded = r"<details><summary>(\d)\. [^\n]+\?(?: \([^\n]+\))?</summary>\n\n[^\n]{20,}\n\n</details>"
    assert re.findall(folded, texts[place]) == [*"12345"] and texts[place].count("<details>") == 5


def test_the_completion_record_is_the_last_code_cell(notebook: dict) -> None:
    assert "stage.record(" in cells(notebook, "code")[-1]


def test_no_helper_is_copied_between_notebooks() -> None:
    names: dict[str, str] = {}
    for path in [*NOTEBOOKS, *NOTEBOOKS[0].parent.glob("solutions/*.ipynb")]:
        for source in cells(json.loads(path.read_text(encoding="utf-8")), "code"):
            code = "\n".join(line for line in source.splitlines() if not line.strip().startswith(("!", "%")))
            for node in ast.walk(ast.parse(code)) if "COLAB" not in code else ():
                if isinstance(node, ast.FunctionDef):
                    assert node.name not in names, f"{node.name} is in {names[node.name]} and in {path}"
                    names[node.name] = str(path)

"""The house: three rings, budgets of lines, imports that point inward, small functions.

The files directly under `fcdpo_utils/` are the story, `engine/` is what makes it fast, other folders are satellites.
`pytest -k budget -s` prints the lines of each.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import fcdpo_utils
from fcdpo_utils import engine, plain

PACKAGE = Path(fcdpo_utils.__file__).parent
ROOMS = sorted(PACKAGE.rglob("*.py"))
# The house is meant to have 3,200 lines of story and 7,200 in all: what a room loses, its ring's budget loses too.
BUDGETS = {"story": 3_200, "engine": 1_000, "all": 9_330}
FOLDERS = ("story", "engine", "tasks", "teachers", "lab", "views", "pipeline")  # an import only points to the left
LONGEST_FUNCTION = 45


def folder_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return "story" if len(parts) == 1 else parts[0]


def lines_of(ring: str) -> int:
    return sum(len(path.read_text().splitlines()) for path in ROOMS if ring in ("all", folder_of(path)))


@pytest.mark.parametrize("ring", BUDGETS)
def test_the_budget_of_lines_holds(ring: str) -> None:
    print(f"{ring}: {lines_of(ring)} lines of {BUDGETS[ring]}")
    assert lines_of(ring) <= BUDGETS[ring]


def imported_rooms(tree: ast.AST) -> Iterator[str]:
    """Each room or folder directly under the package that is imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE.name:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith(f"{PACKAGE.name}.")]
        else:
            continue
        yield from (name.split(".")[1] for name in names)


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_inward(path: Path) -> None:
    if path == PACKAGE / "__init__.py":
        pytest.skip("the package itself plugs the tasks in, so that they are known by name")
    own = FOLDERS.index(folder_of(path))
    for room in imported_rooms(ast.parse(path.read_text())):
        assert FOLDERS.index(room if room in FOLDERS else "story") <= own, f"{path.name} imports {room}, further out"


def test_the_story_is_listed_in_reading_order() -> None:
    listed = re.findall(r"^    ([a-z]+)  ", fcdpo_utils.__doc__, re.M)
    assert sorted(listed) == sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def test_the_imports_of_the_story_form_no_circle() -> None:
    rooms = {path.stem: path for path in PACKAGE.glob("*.py") if path.stem != "__init__"}
    uses = {name: set(imported_rooms(ast.parse(path.read_text()))) & rooms.keys() for name, path in rooms.items()}
    assert list(TopologicalSorter(uses).static_order())  # raises CycleError


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_functions_are_short_and_public_ones_are_described(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{path.name} does not say what it is for"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno + 1 <= LONGEST_FUNCTION, f"{path.name}: {node.name}"


@pytest.mark.parametrize("name", sorted(plain.Engine.__annotations__))
def test_the_engine_offers_what_its_plain_form_does(name: str) -> None:
    fast, slow = (list(inspect.signature(getattr(module, name)).parameters) for module in (engine, plain))
    assert fast == slow

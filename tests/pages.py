"""Tables that a page of docs/ holds between two marks, written there by the test that knows them."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "field.md"


def marks(name: str) -> tuple[str, str]:
    return f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"


def written(name: str) -> str:
    """What the page has between the marks of that name."""
    begin, end = marks(name)
    return PAGE.read_text(encoding="utf-8").split(begin)[1].split(end)[0]


def write(name: str, table: str) -> None:
    text, (begin, end) = PAGE.read_text(encoding="utf-8"), marks(name)
    PAGE.write_text(text.replace(begin + written(name) + end, begin + table + end), encoding="utf-8")

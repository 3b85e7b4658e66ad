"""A task of one's own as a user writes it: its file, its problems, and who solves them outside the package."""

from __future__ import annotations

import json
import re
from pathlib import Path

TASK = '''
from fcdpo_utils import Number, ToolError, Toolset, own_task, tool
from fcdpo_utils.numbers import format_number

EXTRA = {"north": 3, "south": 5, "island": 9}


class Shipping(Toolset):
    @tool("Base(3)")
    def Base(self, weight: Number) -> str:
        """Price of one parcel by its weight in kg."""
        return format_number(4 + 2 * weight)

    @tool('Zone("north", 10)')
    def Zone(self, zone: str, price: Number) -> str:
        """Price with the surcharge of a zone."""
        if zone not in EXTRA:
            raise ToolError(f"zone must be one of {', '.join(EXTRA)}")
        return format_number(price + EXTRA[zone])

    @tool("Parcels(2, 13)")
    def Parcels(self, count: int, price: Number) -> str:
        """Price of several equal parcels."""
        return format_number(count * price)


task = own_task(
    "shipping",
    tools=Shipping,
    instruction="Find the price. Use numbers of the problem and earlier results.",
    problems="shipping.jsonl",
    example=(
        "Send 2 parcels of 30 kg each to the north. What is the price?",
        ["Base(30)", 'Zone("north", 64)', "Parcels(2, 67)", "Answer(134)", "Stop()"],
    ),
    answer="number",
)
'''


def solve(question: str) -> list[str]:
    """The calls that solve a question, found from its text alone."""
    count, weight, zone = re.search(r"(\d+) parcels of (\d+) kg each to the (\w+)", question).groups()
    base = 4 + 2 * int(weight)
    each = base + {"north": 3, "south": 5, "island": 9}[zone]
    total = int(count) * each
    return [f"Base({weight})", f'Zone("{zone}", {base})', f"Parcels({count}, {each})", f"Answer({total})", "Stop()"]


def rows(gold: bool = True) -> list[dict]:
    made = []
    for count in (2, 3, 4, 5):
        for weight in range(1, 9):
            for zone in ("north", "south", "island"):
                question = f"Send {count} parcels of {weight} kg each to the {zone}. What is the price?"
                calls = solve(question)
                answer = calls[-2].removeprefix("Answer(").removesuffix(")")
                made.append({"question": question, "answer": answer, **({"calls": calls} if gold else {})})
    return made


def write_task(folder: Path, *edits: tuple[str, str], rows: list | None = None, gold: bool = True) -> Path:
    """`my_task.py`, with parts of its text replaced, and its problems; returns the file of the task."""
    text = TASK
    for old, new in edits:
        assert old in text, old
        text = text.replace(old, new)
    folder.mkdir(parents=True, exist_ok=True)
    made = globals()["rows"](gold) if rows is None else rows
    lines = [row if isinstance(row, str) else json.dumps(row) for row in made]
    (folder / "shipping.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    (folder / "my_task.py").write_text(text, encoding="utf-8")
    return folder / "my_task.py"

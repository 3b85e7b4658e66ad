"""What a grid of experiments needs: a file name for each, p-values that may be read side by side, and a table."""

import re
from collections.abc import Sequence
from typing import Any


def slug(name: str) -> str:
    """A name for a file: small letters, digits, and dots and dashes between them ("D*, twice" -> "dstar-twice").

    Never hidden, and never another folder as ".." would be; "" where no letter or digit is left.
    """
    return re.sub(r"[^a-z0-9.]+", "-", name.lower().replace("*", "star")).strip("-.")


def holm(p_values: Sequence[float], tests: int | None = None) -> list[float]:
    """The p-values adjusted for their number, in the same order (Holm 1979).

    Rejecting those below 0.05 then keeps the chance of any false rejection below 5 %, however the tests depend on each
    other. `tests`: how many were planned, where some came to no p-value; those count as if theirs were 1.
    """
    planned, largest = len(p_values) if tests is None else tests, 0.0
    adjusted = [0.0] * len(p_values)
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, p_values[index] * (planned - rank)))
        adjusted[index] = largest
    return adjusted


def table(rows: Sequence[dict[str, Any]], *own: str) -> str:
    """Variants as a Markdown table, `own` columns included; a row that has `failed` says why in place of figures."""
    lines = [["variant", "sound", "95 %", *own, "gained", "lost", "p", "p adj."], ["---"] * (7 + len(own))]
    for row in rows:
        cells = [row["name"], f"failed: {row.get('failed')}"]
        if "failed" not in row:
            low, high = row["sound_ci95"]
            cells = [row["name"], f"{row['sound']:.1%}", f"{low:.1%} to {high:.1%}", *(row[name] for name in own)]
        if "p_holm" in row:
            cells += [row["gained"], row["lost"], f"{row['p']:.2g}", f"{row['p_holm']:.2g}"]
        lines.append([str(cell).replace("|", "/") for cell in cells] + [""] * (len(lines[0]) - len(cells)))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

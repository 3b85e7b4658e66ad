"""What a grid of experiments needs: a file name for each, and p-values that may be read side by side."""

import re
from collections.abc import Sequence


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

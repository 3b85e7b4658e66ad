"""What is learnt from beside what is asked, over all tasks: the tables of overlaps in docs/field.md.

Data sets are read where they lie beside the repository; of what is not there, no row is written. Run as a script it
writes the tables anew; a path is GSM8K's test file, or that of any other set in its form.
"""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path

import pages
from test_folio import DATA
from test_gsm8k import REAL_FILE
from test_gsm_symbolic import TASK, templates

from fcdpo_utils.lab.contamination import overlap
from fcdpo_utils.problems import TASKS, split_of
from fcdpo_utils.tasks.folio import FOLIO
from fcdpo_utils.tasks.gsm8k import GSM8K

GENERATED = {"arithmetic": (2, 3, 4, 5), "fol": (1, 2, 3), "ordering": (1, 2, 3), "drills": (3, 4)}
GENERATED["gsm_symbolic"] = (2, 3, 4, 5, 6)
COUNTS = {"train": 300, "test": 100}
Texts = dict[str, list[str]]  # by task
MASKED_N = 8  # words in a row: without names and numbers, more of what is left is said by chance alone


def questions(gsm8k: Path, folio: Path) -> tuple[Texts, Texts]:
    """The texts that are learnt from and those that are asked, by task; GSM8K's one file by the split of its hash."""
    sides: dict[str, Texts] = {"train": {}, "test": {}}
    for split, texts in sides.items():
        for name, levels in GENERATED.items():
            made = TASKS[name].generate(COUNTS[split], split, 0, levels=levels)
            texts[name] = ["; ".join(problem.details.get("said", [problem.question])) for problem in made]
        if gsm8k.exists():
            rows = GSM8K().load_rows(gsm8k)
            texts["gsm8k"] = [row["question"] for row in rows if split_of(GSM8K().canonical(row)) == split]
        file = folio / {"train": "train.jsonl", "test": "validation_part.jsonl"}[split]
        if file.exists():
            texts["folio"] = list(map(FOLIO().question, FOLIO().load_rows(file)))
    return sides["train"], sides["test"]


def masked(text: str) -> str:
    """The text with names and numbers alike: a template's wording is what is left of it.

    A name is a word with a capital that begins no sentence, or begins one and is said elsewhere, too.
    """
    names = set(re.findall(r"(?<=[a-z,] )[A-Z][a-z]+", text)) | set(re.findall(r"\b[A-Z][a-z]+(?='s\b)", text))
    text = re.sub(r"\b(?:" + "|".join(sorted(names) or ["(?!)"]) + r")\b", "Someone", text)
    return re.sub(r"[$\u20ac\u00a3]?\d[\d,.]*(?<=\d)%?", "0", text)


def table(sources: Texts, sets: Texts, n: int) -> str:
    """A row for each source: of each set, the texts that are there word for word, and that share `n` words in a row."""
    lines = ["| learnt from | " + " | ".join(f"{name} ({len(texts):,})" for name, texts in sets.items()) + " |"]
    lines += ["|---" * (len(sets) + 1) + "|"]
    for source, learnt in sources.items():
        found = [overlap(learnt, asked, n) for asked in sets.values()]
        cells = " | ".join(f"{one.duplicates} / {one.sharing}" for one in found)
        lines.append(f"| {source} ({len(learnt):,}) | {cells} |")
    return "\n".join([*lines, ""])


def wording(gsm8k: Path) -> str:
    """How many of GSM-Symbolic's templates say what a row of GSM8K's file says, but for names and numbers."""
    rows = [masked(row["question"]) for row in GSM8K().load_rows(gsm8k)]
    drawn: Texts = {"train": [], "test": []}
    for number, made in templates().items():
        drawn[split_of(f"{TASK.name} {number}")].append(masked(made(random.Random(number))["question"]))
    return table({f"{gsm8k.name}": rows}, {f"templates, {split}": texts for split, texts in drawn.items()}, MASKED_N)


if __name__ == "__main__":
    pages.write("contamination", table(*questions(REAL_FILE, DATA), 13))
    pages.write("wording", wording(Path(sys.argv[1]) if sys.argv[1:] else REAL_FILE))

"""Tasks whose problems are the rows of a data set: read from JSONL files or from the hub, kept apart by split.

A source of its own for tests is a benchmark and asked whole; one file alone is split by a hash. Counts how many rows
become chains, and why the others do not. Knows nothing of what a row says.
"""

import json
import random
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from fcdpo_utils.problems import Problem, Task, check_request, split_of

CONVERTED = "converted"
File = str | Path | None  # a JSONL file, None is the hub
Levels = Sequence[int]
Row = dict[str, Any]


class RowTask(Task):
    """`hub`: the data set there, and its configuration. `hub_test`: its split for tests.

    `fields`: the texts that each row has; those of `lists` may also be lists of texts.
    """

    hub: ClassVar[tuple[str, ...]]
    hub_test: ClassVar[str] = "test"
    fields: ClassVar[tuple[str, ...]]
    lists: ClassVar[tuple[str, ...]] = ()
    levels: ClassVar[Levels]

    @abstractmethod
    def convert(self, row: Row) -> tuple[Problem | None, str]:
        """The problem of a row, without id and split, and `CONVERTED`; or why it has no gold chain.

        A problem without one can be asked still, where there is one.
        """

    @abstractmethod
    def canonical(self, row: Row) -> str:
        """What no two splits may share."""

    def question(self, row: Row) -> str:
        """What makes two rows of a file the same."""
        return self.canonical(row)

    def problems(self, rows: Iterable[Row], split: str, levels: Levels | None) -> Iterator[Problem]:
        """Problems without their ids: with a gold chain and of one of `levels`; where it is None, all there are."""
        for problem, outcome in map(self.convert, rows):
            if problem and (levels is None or (outcome == CONVERTED and problem.level in levels)):
                yield replace(problem, split=split)

    def generate(
        self, count: int, split: str, seed: int, levels: Levels = (), path: File = None, test_path: File = None
    ) -> list[Problem]:
        """`count` rows, drawn by `seed`: training rows from `path` or the hub, test rows from `test_path` or the hub.

        Test rows of such a source are all asked, at any level. With `path` alone both splits are drawn from it, by the
        hash of `canonical`, among the rows that convert. `levels`: none are all.
        Raises ValueError for an unknown split or level, or where there are fewer such rows.
        """
        levels = levels or self.levels
        check_request(self.name, split, levels, self.levels)
        benchmark = split == "test" and (path is None or test_path is not None)
        rows = self._rows_of(split, path, test_path) if count else []
        random.Random(f"{seed} {split}").shuffle(rows)
        found = islice(self.problems(rows, split, None if benchmark else levels), count)
        problems = [replace(p, id=f"{self.name}-{split}-{number:04d}") for number, p in enumerate(found, start=1)]
        if len(problems) < count:
            source = (test_path if benchmark else path) or self.hub[0]
            raise ValueError(f"{self.name}: {count} {split} problems asked for, only {len(problems)} in {source}")
        return problems

    def _rows_of(self, split: str, path: File, test_path: File) -> list[Row]:
        """The rows that `split` may use: no canonical form is in both."""
        shared = path is not None and test_path is None
        asked = [] if shared else self.load_rows(test_path, self.hub_test)
        if split == "test" and not shared:
            return asked
        rows = list({self.question(row): row for row in self.load_rows(path)}.values())  # a question once
        forms = map(self.canonical, rows if shared else asked)
        others = {form for form in forms if not shared or split_of(form) != split}
        return [row for row in rows if self.canonical(row) not in others]

    def load_rows(self, path: File = None, hub_split: str = "train") -> list[Row]:
        """Rows of a JSONL file, or of that split of the hub's data set where `path` is None.

        Raises FileNotFoundError, ValueError (naming file and line) or ConnectionError, each with one line.
        """
        if path is None:
            import datasets  # slow to import, and only this way of loading needs it

            try:
                return list(datasets.load_dataset(*self.hub, split=hub_split))
            except Exception as error:  # the client raises many kinds when offline
                tried = f"cannot load {self.hub[0]} from the hub ({type(error).__name__})"
                raise ConnectionError(f"{self.name}: {tried}; set tasks.{self.name}.path") from None
        if not Path(path).is_file():
            raise FileNotFoundError(f"{self.name}: no file {path}; expected JSONL, each line with {self._form}")
        try:
            return [self._row(row, f"{path} {place}") for place, row in json_lines(Path(path))]
        except UnicodeDecodeError:
            raise ValueError(f"{self.name}: {path} is not UTF-8 text; expected JSONL") from None

    @property
    def _form(self) -> str:
        return " and ".join(f'"{field}"' for field in self.fields)

    def _row(self, row: Any, place: str) -> Row:
        told = [(field, row.get(field)) for field in self.fields] if isinstance(row, dict) else [("", None)]
        texts = [value if field in self.lists and isinstance(value, list) else [value] for field, value in told]
        if not all(listed and all(isinstance(text, str) for text in listed) for listed in texts):
            raise ValueError(f"{self.name}: {place}: expected an object with text {self._form}, got {str(row)[:40]!r}")
        return row

    def report(self, path: Path) -> str:
        """How many rows of a file convert, and how many do not by reason: lines of count, share and reason."""
        return table(Counter(self.convert(row)[1] for row in self.load_rows(path)), CONVERTED, "rows")


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Where each line of a JSONL file is, and what it holds: its text where that is not JSON."""
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        row: Any = line
        with suppress(ValueError, RecursionError):
            row = json.loads(line)
        if line.strip():
            yield f"line {number}", row


def table(counts: Counter[str], first: str, total: str) -> str:
    """Counts as lines of count, share and reason: `first`, then the most frequent; the last line is their sum."""
    counted = {first: counts[first]} | dict(counts.most_common())
    lines = [f"{count:6d}  {count / max(counts.total(), 1):6.1%}  {reason}" for reason, count in counted.items()]
    return "\n".join([*lines, f"{counts.total():6d}  100.0%  {total}"])

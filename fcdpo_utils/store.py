"""Files of a run: append-only JSONL records that survive being killed, and artifacts written all at once.

Knows where bytes go and nothing of what they mean.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Record = dict[str, Any]
# UTF-8 has no bytes for half a surrogate pair, which a model may write: it becomes its escape, which JSON reads back
_ESCAPED = "backslashreplace"


class StoreError(Exception):
    """One line: which file, what is wrong with it, what to do."""


def dump(value: Any) -> str:
    """JSON on one line, the same text for the same value."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text.encode(errors=_ESCAPED).decode()


def append(path: Path, records: Iterable[Record]) -> None:
    """Append records and flush them to the disk; a record is either whole or (killed midway) repaired by `read`."""
    with _explained(path), open(path, "a", encoding="utf-8") as file:
        for record in records:
            file.write(dump(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(path: Path, repair: bool = False) -> list[Record]:
    """All records of a JSONL file. A torn last line is cut off when `repair` is set; else it is an error."""
    return list(iterate(path, repair))


def iterate(path: Path, repair: bool = False) -> Iterator[Record]:
    """`read`, one record at a time."""
    good_bytes = 0
    with _explained(path), open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                record = None
            if isinstance(record, dict):
                yield record
                good_bytes += len(line)
            elif repair and not file.read(1):
                print(f"{path.name}: the torn last line {number} was removed")
                os.truncate(path, good_bytes)
            else:
                raise StoreError(f"{path.name}: line {number} is not a JSON record; delete the file to make it again")


def write(path: Path, text: str | Iterable[str]) -> None:
    """Replace `path` with a text, or its parts one by one: readers see the old file or the new one, never a part."""
    partial = path.with_name(path.name + ".partial")
    with _explained(path):
        with open(partial, "w", encoding="utf-8", errors=_ESCAPED) as file:
            file.writelines([text] if isinstance(text, str) else text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)


def write_records(path: Path, records: Iterable[Record]) -> None:
    """A whole JSONL file at once; the records are taken one by one."""
    write(path, (dump(record) + "\n" for record in records))


def write_json(path: Path, value: Any) -> None:
    """A whole, readable JSON file at once."""
    write(path, json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file."""
    with _explained(path):
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise StoreError(f"{path.name} is not JSON ({error}); delete it to make it again") from None


def require(path: Path, made_by: str) -> Path:
    """`path`, or the one line that says which stage to run first."""
    if not path.exists():
        raise StoreError(f"run {made_by} first: {path.name} is missing in {path.parent}")
    return path


def digest(*parts: str | bytes) -> str:
    """SHA-256 of the parts in order."""
    state = hashlib.sha256()
    for part in parts:
        state.update(part.encode(errors="surrogatepass") if isinstance(part, str) else part)
        state.update(b"\0")
    return state.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with _explained(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise StoreError(f"cannot use {path}: {reason}") from None

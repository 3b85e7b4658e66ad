"""One rule for what is up to date: it was made by the same code, settings, inputs and model.

All that a run keeps (a stage, a chain, an adapter, an evaluated chain, a reference log-probability) is kept with the
fingerprint of its parts. Code counts room by room: a room and all that it imports, so that a new figure retrains
nothing. Knows files and values, nothing of what they mean.
"""

import ast
import importlib.metadata
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from fcdpo_utils import store

PACKAGE = Path(__file__).parent
ROOT = PACKAGE.parent
CACHE = Path(os.environ.get("FCDPO_CACHE", ROOT / ".cache"))
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets", "papermill", "ipykernel")
PACKAGES += ("z3-solver", "lark", "reasoning-gym")  # who decides and states problems


def fingerprint(parts: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that are equal for equal parts: name -> anything that JSON can hold."""
    return store.digest(store.dump(parts))[:16]


# ---- code


@cache
def code_of(*rooms: str) -> str:
    """Of the named modules, of all modules of this package that they import, and of the packages under them."""
    return code_behind("", *rooms)


def code_behind(source: str, *rooms: str) -> str:
    """The same for the modules that a notebook's code imports, and for `rooms`."""
    files = files_of(*_imported(ast.parse(source)), *rooms)
    lines = {path.relative_to(ROOT).as_posix(): store.file_digest(path) for path in files}
    lines |= {room: "" for room in rooms if not room.startswith(PACKAGE.name)}  # a user's: the name holds a digest
    return fingerprint({"code": lines, "packages": package_versions()})


def files_of(*rooms: str | Path) -> list[Path]:
    """The files of these modules (by name, or the files), of all modules here that they import, and their data."""
    found, waiting = set(), [room if isinstance(room, Path) else _path_of(room) for room in rooms]
    while waiting:
        path = waiting.pop()
        if path not in found and path.exists():  # a name in a module is none; nor is a notebook, whose cells count
            found.add(path)
            waiting += _imported(ast.parse(path.read_bytes()))
    data = [path.with_suffix(".yaml") for path in found]  # a room's data have its name
    return sorted([*found, *(path for path in data if path.exists())])


def _imported(tree: ast.AST) -> Iterable[Path]:
    """The files of this package that some code imports; not its own `__init__`, which only plugs things in."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE.name:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith(f"{PACKAGE.name}.")]
        else:
            continue
        yield from (path for path in map(_path_of, names) if path != PACKAGE / "__init__.py")


def _path_of(room: str) -> Path:
    place = ROOT.joinpath(*room.split("."))
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


@cache
def package_versions() -> dict[str, str]:
    """Installed versions of the packages that results depend on."""
    found = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def content_of(source: Path) -> str:
    """Of the bytes of a file, or of all files in a folder. Large files are read once: what they hold is remembered."""
    files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    known_path = CACHE / "digests.json"
    known = store.read_json(known_path) if known_path.exists() else {}
    digests, before = {}, len(known)
    for path in files:
        stat = path.stat()
        seen = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
        if seen not in known:
            known[seen] = store.file_digest(path)
        digests[path.relative_to(source).as_posix()] = known[seen]
    if len(known) > before:
        CACHE.mkdir(parents=True, exist_ok=True)
        store.write_json(known_path, known)
    return fingerprint(digests)

"""`fcdpo publish`: writes where this repository is published into all files that name it, or takes it out of them.

pyproject.toml holds the address; the badges of notebook 00, the line of set-up cells that clones, and the README's are
made from it. No file may name an address that nobody has registered: whoever takes it would run code beside users' data
and tokens.
"""

import json
import re
import tomllib
from pathlib import Path

from fcdpo_utils import store
from fcdpo_utils.fingerprint import ROOT

UNPUBLISHED = 'raise SystemExit(f"upload or attach a checkout of fcdpo: {places[1:]}")'
_BADGES = (
    "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/{place}/blob/{tag}/notebooks/{name})",
    "[![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)]"
    "(https://kaggle.com/kernels/welcome?src=https://github.com/{place}/blob/{tag}/notebooks/{name})",
)


def address(root: Path = ROOT) -> str:
    """Where the repository is published; "" where it is not."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project.get("urls", {}).get("Repository", "")


def publish(url: str, tag: str = "main", root: Path = ROOT) -> str:
    """Let all files name `url` at `tag`, in place of another one, or no address where `url` is empty; returns which."""
    found = re.fullmatch(r"https://github\.com/(\w[\w.-]*/\w[\w.-]*?)(\.git)?/?", url)
    if (url and not found) or not re.fullmatch(r"\w[\w./-]*", tag):
        raise ValueError(f"cannot publish {tag!r} at {url!r}; expected a tag and https://github.com/<owner>/<name>")
    place = found[1] if found else ""
    url = place and f"https://github.com/{place}"
    entry = url and f'Repository = "{url}"\n'
    _substitute(root / "pyproject.toml", r"(?<=\[project\.urls\]\n)(Repository = .*\n)?", entry)
    _substitute(root / "README.md", r"git clone \S+ fcdpo", f"git clone {url or 'URL-OF-THIS-REPOSITORY'} fcdpo")
    line = f"!git clone -q --depth 1 -b {tag} {url} fcdpo" if url else UNPUBLISHED
    for path in (root / "notebooks").glob("*.ipynb"):
        notebook = store.read_json(path)
        opens = url and path.name.startswith("00")  # each badge opens a machine of its own: only one notebook is whole
        badges = "\n\n" + "\n".join(_BADGES).format(place=place, tag=tag, name=path.name) if opens else ""
        for cell in notebook["cells"]:
            text = "".join(cell["source"])
            if cell is notebook["cells"][0]:
                text = re.sub(r"\n+\[!\[Open in .*", "", text) + badges
            if "setup" in cell["metadata"].get("tags", []):
                text = re.sub(r"(if not found:\n +).*", lambda found: found[1] + line, text)
            cell["source"] = text.splitlines(keepends=True)
        store.write(path, json.dumps(notebook, ensure_ascii=False, indent=1) + "\n")
    return f"published at {url}" if url else "not published"


def _substitute(path: Path, pattern: str, text: str) -> None:
    """At the one place of a file that has the pattern."""
    new, places = re.subn(pattern, text, path.read_text(encoding="utf-8"))
    if places != 1:
        raise ValueError(f"{path.name}: {pattern} is there {places} times, expected once")
    store.write(path, new)

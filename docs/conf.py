"""The book: the executed notebooks of a run and the pages of docs/ as one site.

`python docs/conf.py RUN` (`make book`) lays them out as in the repository, where their links lead, and builds
RUN/book/index.html. Sphinx reads the rest of this file.
"""

import json
import re
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sphinx.application import Sphinx
from sphinx.cmd.build import main

ROOT = Path(__file__).resolve().parents[1]
PAGES = "results architecture grouped-loss own-task teachers gpu hosted ci teaching field microchain history".split()

project, author, root_doc = "fcdpo", "The fcdpo authors", "README"
extensions = ["myst_nb"]
html_theme, html_title = "furo", "fcdpo"
html_show_copyright = html_show_sphinx = html_copy_source = False
highlight_language = "none"  # of blocks that name none; cells are highlighted as what they are
nb_execution_mode = "off"  # papermill has run them
nb_ipywidgets_js = {}  # no request to anywhere
myst_heading_anchors = 3
html_show_sourcelink = False
suppress_warnings = ["misc.highlighting_failure"]  # of cells with lines that only IPython reads


def _lead_to_all(app: Sphinx, name: str, source: list[str]) -> None:
    """The README is the first page; in the book it gets a table of contents."""
    if name != root_doc:
        return

    def made(folder: str) -> list[str]:
        return [f"{folder}/{path.stem}" for path in sorted(Path(app.srcdir, folder).glob("*.ipynb"))]

    parts = {"Notebooks": made("notebooks"), "Pages": [f"docs/{page}" for page in PAGES]}
    parts["Solutions"] = made("notebooks/solutions")
    for caption, pages in parts.items():
        source[0] += "\n".join([f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n", *pages, "```\n"])


def setup(app: Sphinx) -> None:
    app.connect("source-read", _lead_to_all)


def _prepare(cells: list[dict[str, Any]]) -> None:
    """Leave the run's parameters out; let figures have the words before them as their text."""
    words = ""
    for cell in cells:
        if cell["cell_type"] == "markdown":
            words = " ".join(re.sub(r"[#*`$]", "", "".join(cell["source"])).split())
        elif "injected-parameters" in cell["metadata"].get("tags", []):
            cell["metadata"]["tags"].append("remove-cell")
        else:
            cell["metadata"]["mystnb"] = {"image": {"alt": words[:300]}}


def build(run: Path) -> int:
    """Build the book of a run; returns Sphinx's exit code, which is not 0 for any warning."""
    book = run / "book"
    with TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        shutil.copytree(ROOT / "docs", source / "docs", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "README.md", source)
        solutions = Path("notebooks", "solutions")
        shutil.copytree(ROOT / solutions, source / solutions)  # as they are: the tests run them
        for path in sorted((run / "notebooks").glob("*.ipynb")):
            text = path.read_text(encoding="utf-8")
            made_in = json.loads(text)["metadata"].get("papermill", {}).get("parameters", {}).get("run_dir", "")
            if Path(made_in).is_absolute():
                text = text.replace(made_in, f"outputs/{run.name}")
            notebook = json.loads(text)
            _prepare(notebook["cells"])
            (source / "notebooks" / path.name).write_text(json.dumps(notebook), encoding="utf-8")
        code = main(["-q", "-W", "--keep-going", "-c", str(ROOT / "docs"), str(source), f"{folder}/html"])
        if not Path(folder, "html", "README.html").exists():
            return code or 1
        shutil.rmtree(book, ignore_errors=True)
        shutil.copytree(f"{folder}/html", book, ignore=shutil.ignore_patterns("_sources", ".*"))
    shutil.copy(book / "README.html", book / "index.html")
    return code


if __name__ == "__main__":
    if len(sys.argv) != 2 or not list(Path(sys.argv[1]).glob("notebooks/*.ipynb")):
        sys.exit("expected the folder of a finished run, such as outputs/cpu: make demo, then make book")
    sys.exit(build(Path(sys.argv[1])))

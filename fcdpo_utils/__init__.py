"""Teach a small language model to reason with function calls (arXiv 2410.18890)."""

import logging
import os
import warnings

# One process trains on one GPU: TRL refuses to see two, as on Kaggle's 2xT4. `accelerate launch` gives each its own.
if "LOCAL_RANK" not in os.environ:
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")

# A reader of a notebook would take these for our errors. With the pinned versions they say nothing useful: papermill
# shows no widgets, the deprecated name is transformers' own use, and the missing kernel is an optional one.
warnings.filterwarnings("ignore", message="IProgress not found")
warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*deprecated", category=FutureWarning)
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

"""Teach a small language model to reason with function calls (arXiv 2410.18890)."""

import logging
import warnings

# A reader of a notebook would take these for our errors. With the pinned versions they say nothing useful: papermill
# shows no widgets, the deprecated name is transformers' own use, and the missing kernel is an optional one.
warnings.filterwarnings("ignore", message="IProgress not found")
warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*deprecated", category=FutureWarning)
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

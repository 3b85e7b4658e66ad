"""The `fcdpo` command as tests start it: in a process of its own, from the checkout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROBLEMS = 0  # how many each generator makes in its tests: set from `--problems`
FCDPO = [sys.executable, "-m", "fcdpo_utils.pipeline.cli"]


def fcdpo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*FCDPO, *arguments], capture_output=True, text=True, cwd=ROOT, check=False)

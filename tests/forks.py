"""Python modules run in processes that start at once: forks of one that has imported what is slow to import.

That is what libraries hold and nothing of this package, so that a fork is as fresh as any new process. This file, run,
is the one that waits: it reads a line of JSON for each process and answers with its exit code.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from functools import cache
from importlib import import_module
from pathlib import Path

SLOW = ("datasets", "matplotlib.pyplot", "openai", "peft", "transformers.models.llama", "trl.trainer.dpo_trainer")


@cache
def _waiting() -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, __file__], text=True, **pipes)
    atexit.register(process.communicate)  # it ends when its input does
    return process


def run_module(
    module: str, *arguments: str, root: Path, cwd: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    """`python -m MODULE ARGUMENTS` in `cwd` with the package in `root` and these environment variables."""
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / name) for name in ("stdout", "stderr")]
        environment = {**os.environ, "PYTHONPATH": str(root), **variables}
        job = {"module": module, "arguments": arguments, "cwd": str(cwd), "environment": environment, "files": files}
        process = _waiting()
        print(json.dumps(job), file=process.stdin, flush=True)
        code = int(process.stdout.readline())
        said = (Path(file).read_text(encoding="utf-8") for file in files)
        return subprocess.CompletedProcess([module, *arguments], code, *said)


def _become(module: str, arguments: list[str], cwd: str, environment: dict[str, str], files: list[str]) -> int:
    """Be that process; returns its exit code."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number, file in enumerate([os.devnull, *files]):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT if number else os.O_RDONLY), number)
    sys.path[0], sys.argv = environment["PYTHONPATH"], [module, *arguments]
    code: object = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else int(code is not None)


def _wait() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import may say is no answer
    for name in SLOW:
        import_module(name)
    for line in sys.stdin:
        if child := os.fork():
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)
        else:
            os._exit(_become(**json.loads(line)))


if __name__ == "__main__":
    _wait()

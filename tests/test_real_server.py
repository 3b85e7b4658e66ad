"""The server teacher against a real server: `transformers serve` with the embedded student, killed generators included.

`pytest --kills 20 tests/test_real_server.py` kills as often as the project promises to survive (about five minutes).
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from runs import ROOT

from fcdpo_utils import store
from fcdpo_utils.students import embedded_student
from fcdpo_utils.weights import choose_dtype

pytestmark = pytest.mark.slow
PROBLEMS, SAMPLES = 6, 4
# A process that makes chains, prints a line for each, and is killed by the test.
GENERATE = """
import sys
from pathlib import Path
from fcdpo_utils.teachers.making import make_chains
from fcdpo_utils.lab.settings import load_settings
from fcdpo_utils.problems import TASKS
from fcdpo_utils.teachers import build_teacher
problems = TASKS["arithmetic"].generate(6, "train", seed=3, levels=(2, 3))
settings = load_settings("smoke", sys.argv[2:])
make_chains(Path(sys.argv[1]), problems, settings, build_teacher, lambda *line: print(*line, flush=True))
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The model as a folder that samples (the server obeys its generation_config), served on loopback."""
    folder = tmp_path_factory.mktemp("served") / "student"
    folder.mkdir()
    for file in embedded_student().iterdir():
        if file.name != "generation_config.json":
            (folder / file.name).symlink_to(file)
    config = {"do_sample": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    (folder / "generation_config.json").write_text(json.dumps(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("transformers"), "serve", folder, "--device", "cpu"]
    dtype = choose_dtype("auto")  # the other one is slow on some processors
    command += ["--dtype", dtype, "--host", "127.0.0.1", "--port", str(port)]
    log = open(folder.parent / "log", "w")  # noqa: SIM115
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}  # it answers in threads of its own
    process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, env=environment)
    try:
        for _ in range(240):
            assert process.poll() is None, (folder.parent / "log").read_text()[-2000:]
            try:
                urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"http://127.0.0.1:{port}/health")
                break
            except OSError:
                time.sleep(0.5)
        yield f"teacher.base_url=http://127.0.0.1:{port}/v1 teacher.model={folder}"
    finally:
        process.kill()
        process.wait()


@pytest.mark.nightly  # test_server_teacher breaks one off whose server is scripted
def test_a_killed_generator_resumes_to_exactly_the_wanted_chains(
    server: str, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    path, kills, rng = tmp_path / "chains.jsonl", pytestconfig.getoption("--kills"), random.Random(0)
    settings = [*server.split(), "teacher.kind=server", f"teacher.samples={SAMPLES}", "teacher.turn_tokens=8"]
    settings += ["teacher.concurrency=2", "limits.calls=2", "limits.errors=2"]
    command = [sys.executable, "-c", GENERATE, str(path), *settings]
    environment = {**os.environ, "NO_PROXY": "127.0.0.1", "PYTHONPATH": str(ROOT)}

    def generate(lines: int | None) -> int:
        """Run until done, or kill a moment after `lines` more chains; returns the exit code."""
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        for seen, _ in enumerate(process.stdout, start=1):
            if seen == lines:
                time.sleep(rng.uniform(0, 1))
                process.kill()
        return process.wait()

    for kill in range(kills):
        assert generate(rng.randint(1, max(1, PROBLEMS * SAMPLES // (kills + 1)))) == -9, f"kill {kill} came too late"
    assert generate(None) == 0
    records = store.read(path)  # raises where a line is torn
    keys = [(record["problem_id"], record["number"]) for record in records]
    problems = {problem_id for problem_id, _ in keys}
    assert len(problems) == PROBLEMS and sorted(keys) == sorted(product(problems, range(SAMPLES)))
    assert len({str(record["steps"]) for record in records}) > PROBLEMS * SAMPLES // 2  # it samples
    assert all(len(record["steps"]) >= 2 and sum(record["tokens"]) > 200 for record in records)

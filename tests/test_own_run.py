"""The whole walk with a task of one's own: file, check, plan, five stages, report, export and questions.

It has no gold chains; its teacher is a server on loopback that works out calls from the text of a problem, and now and
then stops too early. (A real model there, `test_real_server.py`, is at 0 % before training, so no pairs would come.)
Its student is a small one from a folder; the embedded one takes the same way in `smoke_run`.
All of it happens in a folder outside the checkout, with the installed command; no file of the package is touched.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from forks import run_module
from own_tasks import solve, write_task
from runs import ROOT
from test_server_teacher import Handler

from fcdpo_utils import store
from fcdpo_utils.settings import StudentSettings

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("forks")]
PROFILE = """
tasks: {shipping: {file: my_task.py, train: 6, test: 4}}
teacher: {kind: server, model: a-model, samples: 6, prices: [0.5, 1.5]}
limits: {calls: 8, errors: 2}
student: {source: STUDENT, dtype: float32}
training: {learning_rate: 1.0e-3, prompts_per_step: 2, lora_rank: 4, lora_alpha: 8}
evaluation: {batch_size: 4, turn_tokens: 16}
warm_up: {share: 0.5, prompts_per_step: 2}
own_chains: {samples: 2}
ablations: [{question: augmentation, name: "D*", change: [preferences.pairs=original]}]
expected_minutes: [0.2, 0.2, 0.2, 0.7, 0.7]
"""
QUESTION = "Send 7 parcels of 20 kg each to the island. What is the price?"


class Solver(Handler):
    """Says the next call of the problem in the prompt; one in eight times it stops at once."""

    def answer(self, request: dict, fault: str | None) -> tuple[str, int]:
        turns = [message["content"] for message in request["messages"]]
        calls = solve(turns[0].rpartition("Problem: ")[2])
        early = request["temperature"] and random.Random(request["seed"]).random() < 1 / 8
        said = "Stop()" if early else [*calls, "Stop()"][min(len(turns) // 2, len(calls))]
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}
        body = {"id": "x", "object": "chat.completion", "created": 0, "model": "a-model", "choices": [choice]}
        body |= {"usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}}
        return json.dumps(body), 200


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    running = ThreadingHTTPServer(("127.0.0.1", 0), Solver)
    running.requests, running.connections, running.faults = [], [], iter(())
    running.daemon_threads = True
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"teacher.base_url=http://127.0.0.1:{running.server_port}/v1"
    running.shutdown()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, load_small_student: Callable[..., tuple]) -> Path:
    """A folder with the task, its problems, a profile and a student, as a user has them."""
    folder = tmp_path_factory.mktemp("mine")
    write_task(folder, gold=False)
    for part in load_small_student(StudentSettings()):
        part.save_pretrained(folder / "student")
    (folder / "mine.yaml").write_text(PROFILE.replace("STUDENT", str(folder / "student")), encoding="utf-8")
    return folder


def fcdpo(place: Path, *arguments: str) -> str:
    done = run_module("fcdpo_utils.pipeline.cli", *arguments, root=ROOT, cwd=place, NO_PROXY="127.0.0.1")
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def package() -> dict[str, str]:
    files = [path for folder in ("fcdpo_utils", "notebooks") for path in (ROOT / folder).rglob("*") if path.is_file()]
    return {str(path): store.file_digest(path) for path in files if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def run(place: Path, server: str) -> Path:
    before = package()
    fcdpo(place, "task", "check", "my_task.py")
    output = fcdpo(place, "run", "--profile", "mine.yaml", "--run-dir", "run", "--set", server)
    assert "shipping" in output and "results: " in output and package() == before
    return place / "run"


def text_of(run: Path, notebook: str) -> str:
    cells = store.read_json(run / "notebooks" / f"{notebook}.ipynb")["cells"]
    return "".join("".join(out.get("text", "")) for cell in cells for out in cell.get("outputs", []))


def test_a_plan_comes_before_the_first_call(place: Path, server: str) -> None:
    lines = fcdpo(place, "plan", "--profile", "mine.yaml", "--run-dir", "new").splitlines()
    lines = lines[[line[:4] for line in lines].index("task") :]  # before it, the first time, the student's conversion
    name, prompts, chains, tokens, read, written = (word.replace(",", "") for word in lines[1].split())
    assert (name, prompts, chains) == ("shipping", "6", "36") and 150 < int(tokens) < 400
    cost = (int(read) * 0.5 + int(written) * 1.5) / 1e6
    assert 36 * 5 * int(tokens) < int(read) < 36 * 8 * int(tokens)  # five calls, the chat again for each
    assert lines[2] == f"price at teacher.prices=[0.5, 1.5], of a million tokens: {cost:.2f}"
    assert lines[-3] == " 50% of chains sound: 6 of 6 prompts mixed, at best"


def test_the_five_stages_run_and_say_where_gold_chains_are_missing(run: Path) -> None:
    (result,) = store.read_json(run / "metrics.json")["tasks"].values()
    assert result["n"] == 4 and result["warm_up"]["sound"] <= 1
    text = text_of(run, "02_teacher_chains")
    assert "no gold chains in shipping: the worked example of its prompt" in text
    assert "teacher: server, share of chains with a mistake: as it comes" in text
    chains = store.read(run / "chains.jsonl")
    assert len(chains) == 36 and {chain["source"] for chain in chains} == {"server"}
    assert 5 < sum(chain["sound"] for chain in chains) < 31
    assert {problem["task"] for problem in store.read(run / "problems.jsonl")} == {"shipping"}


def test_a_second_run_is_up_to_date_and_a_plan_knows_what_was_made(run: Path, place: Path, server: str) -> None:
    arguments = ["--profile", "mine.yaml", "--run-dir", "run", "--set", server]
    assert fcdpo(place, "run", *arguments).count("up to date, skipped") == 5
    sound = [chain["sound"] for chain in store.read(run / "chains.jsonl")]
    last = fcdpo(place, "plan", *arguments).splitlines()[-1]
    assert last.startswith(f"{sum(sound) / len(sound):4.0%} of chains sound so far: ")


def test_report_and_export_of_a_profile_by_path_name_no_folder_of_this_machine(run: Path, place: Path) -> None:
    fcdpo(place, "report", "run")
    assert "shipping" in (run / "report.html").read_text(encoding="utf-8")
    fcdpo(place, "export", "run")
    for folder in ("adapter", "dataset"):
        card = (run / "export" / folder / "README.md").read_text(encoding="utf-8")
        assert "| profile, seed, commit | `mine`, 0, " in card and str(place) not in card


def test_a_question_is_answered_call_by_call(run: Path, place: Path, server: str) -> None:
    lines = fcdpo(place, "ask", "run", "--task", "shipping", QUESTION, "--set", server).splitlines()
    calls = [line.split(" -> ")[0].strip() for line in lines[:-1]]
    assert calls == solve(QUESTION)
    assert lines[-1] == "answer: 371, which follows from the calls"
    for options in ([], ["--untouched", "--temperature", "0.7"]):
        lines = fcdpo(place, "ask", "run", "--task", "shipping", QUESTION, *options).splitlines()
        assert len(lines) > 1 and all(" -> " in line for line in lines[:-1])
        assert lines[-1].startswith(("answer: ", "no answer"))


def test_variants_of_the_method_run_for_it(run: Path, place: Path, server: str) -> None:
    fcdpo(place, "run", "--profile", "mine.yaml", "--run-dir", "run", "--set", server, "--only", "06")
    rows = store.read_json(run / "ablations.json")["variants"]
    assert [row["name"] for row in rows] == ["full method", "warm-up only", "D*"] and {row["n"] for row in rows} == {4}

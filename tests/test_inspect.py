"""The folder for Inspect as a specification: it stands alone, and a model's chains have the same labels there as here.

`make inspect` makes an environment of its own, with inspect_ai and nothing of ours. Where it is not there, what runs
Inspect is skipped; the nightly job has it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from own_tasks import write_task
from runs import ROOT
from test_export import run_by_hand
from test_real_server import server  # noqa: F401 (a fixture)

from fcdpo_utils.episode import Chain, run_calls
from fcdpo_utils.evaluation import wilson
from fcdpo_utils.fingerprint import CACHE
from fcdpo_utils.lab.settings import load_settings
from fcdpo_utils.pipeline.cli import main
from fcdpo_utils.pipeline.stage import start_stage
from fcdpo_utils.plain import Sampling
from fcdpo_utils.problems import TASKS, Problem, load_problems, save_problems
from fcdpo_utils.settings import Limits
from fcdpo_utils.tasks.making import make_problems
from fcdpo_utils.teacher import Sample, SampleRequest
from fcdpo_utils.teachers.server import ServerTeacher
from fcdpo_utils.teachers.tool_calls import as_request

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
PYTHON = CACHE / f"inspect-{EXTRAS['inspect'][0].partition('==')[2]}" / "bin" / "python"
needs_inspect = pytest.mark.skipif(not PYTHON.exists(), reason=f"no {PYTHON.parents[1].name}; make inspect makes it")
LIMITS = Limits(calls=12, errors=2)

# Prints the labels of a folder's gold chains, and which of these it had to import.
ALONE = """
import sys
sys.path.insert(0, "")
from fcdpo_utils import episode, problems
from fcdpo_utils.tasks.logic.task import FirstOrderLogic
from pathlib import Path
problems.register(FirstOrderLogic())
asked = [problem for problem in problems.load_problems(Path("problems.jsonl"), "test") if problem.task == "fol"]
print([episode.run_calls(problems.TASKS["fol"], one, problems.TASKS["fol"].gold_calls(one)).sound for one in asked])
print(sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "transformers", "numpy", "jinja2"}))
"""
# What Inspect reports of its tasks when a model says what a file holds: by question, its messages in turn.
MOCKED = """
import json, sys
from inspect_ai import eval
from inspect_ai.model import ModelOutput, ModelUsage, get_model
script, mode, logs = sys.argv[1:]
said = json.load(open(script, encoding="utf-8"))
def answer(input, tools, tool_choice, config):
    assert bool(tools) == (mode == "tools") and config.temperature == 0
    turn = sum(message.role == "assistant" for message in input)
    what = said[input[0].text.rpartition("Problem: ")[2]][turn]
    text = isinstance(what, str)
    output = ModelOutput.from_content("m", what) if text else ModelOutput.for_tool_call("m", **what)
    output.usage = ModelUsage()  # or Inspect wants the network, to count tokens
    return output
mock = get_model("mockllm/model", custom_outputs=answer)
eval("fcdpo_tasks.py", model=mock, task_args={"mode": mode}, log_dir=logs, log_format="json", display="none")
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder, of a run with two tasks of this package and a user's own."""
    folder = tmp_path_factory.mktemp("inspect")
    tasks = "{arithmetic: {train: 0, test: 4, levels: [2]}, fol: {train: 0, test: 3, levels: [1]}, shipping: {train: 0,"
    tasks = f"tasks={tasks} test: 3, file: {write_task(folder / 'own')}}}}}"
    run = run_by_hand(folder / "run", tasks)
    stage = start_stage("05_evaluation_and_plots", "smoke", str(run), [tasks])
    stage.record()
    made = [one for name, given in stage.settings.tasks.items() for one in make_problems(name, given, 0)]
    save_problems(run / "problems.jsonl", made)
    assert main(["export", str(run), "--inspect"]) == 0
    return run / "export" / "inspect"


def inspect(folder: Path, *command: str, **environment: str) -> None:
    """Run Python in Inspect's environment, in `folder`; it knows nothing of this checkout."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    done = subprocess.run([PYTHON, *command], cwd=folder, env=kept, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def results(logs: Path) -> dict[str, dict]:
    found = [json.loads(path.read_text(encoding="utf-8")) for path in logs.glob("*.json")]
    assert {log["status"] for log in found} == {"success"}
    return {log["eval"]["task"]: log for log in found}


def chains(logs: Path) -> dict[str, Chain]:
    """By problem id, with the values of both scorers held against the chain's own labels."""
    samples = [sample for log in results(logs).values() for sample in log["samples"]]
    for sample in samples:
        told = {label: sample["scores"][label]["value"] for label in ("solved", "sound")}
        assert told == {label: sample["store"]["chain"][label] for label in told}
    return {sample["id"]: Chain.from_record(sample["store"]["chain"]) for sample in samples}


def said(problem: Problem, number: int) -> list[str]:
    """Calls of three kinds in turn: a gold chain; the same with a stumble; a guess that says nothing but the answer."""
    task = TASKS[problem.task]
    calls = task.gold_calls(problem)
    return [calls, ["Nothing(1)", *calls], ["I think", calls[-2], "Stop()", "Stop()"]][number % 3]


def test_its_modules_run_chains_without_torch(exported: Path) -> None:
    options = {"cwd": exported, "capture_output": True, "text": True, "check": True}
    done = subprocess.run([sys.executable, "-I", "-B", "-c", ALONE], **options)
    assert done.stdout.splitlines() == ["[True, True, True]", "[]"]


def test_it_holds_held_out_problems_and_no_path_of_this_machine(exported: Path) -> None:
    texts = {path.relative_to(exported).as_posix(): path.read_text(encoding="utf-8") for path in exported.rglob("*.*")}
    assert {"fcdpo_tasks.py", "problems.jsonl", "task_shipping.py"} <= texts.keys()
    assert not [name for name, text in texts.items() if str(ROOT) in text or str(exported.parents[2]) in text]


@needs_inspect
@pytest.mark.parametrize("mode", ["text", "tools"])
def test_the_same_messages_make_the_same_chains_in_inspect(mode: str, exported: Path, tmp_path: Path) -> None:
    asked = load_problems(exported / "problems.jsonl", "test")
    calls = {problem.id: said(problem, number) for number, problem in enumerate(asked)}
    ours = {one.id: run_calls(TASKS[one.task], one, calls[one.id], limits=LIMITS) for one in asked}
    assert len({(chain.outcome, chain.sound, chain.recovered) for chain in ours.values()}) >= 3
    spoken = {
        one.question: [(mode == "tools" and _arguments(one, call)) or call for call in calls[one.id]] for one in asked
    }
    (tmp_path / "said.json").write_text(json.dumps(spoken), encoding="utf-8")
    inspect(exported, "-c", MOCKED, str(tmp_path / "said.json"), mode, str(tmp_path / "logs"))
    assert chains(tmp_path / "logs") == ours
    for name, log in results(tmp_path / "logs").items():
        for score in log["results"]["scores"]:
            metrics = {metric: given["value"] for metric, given in score["metrics"].items()}
            labels = [getattr(chain, score["name"]) for key, chain in ours.items() if key.startswith(f"{name}-")]
            expected = wilson(sum(labels), len(labels))
            assert metrics["accuracy"] == pytest.approx(expected.estimate)
            assert metrics["lower"] == pytest.approx(expected.low, abs=1e-9)
            assert metrics["upper"] == pytest.approx(expected.high, abs=1e-9)


def _arguments(problem: Problem, call: str) -> dict | None:
    """A call as a tool call; None for what is none."""
    asked = as_request(TASKS[problem.task].toolset(None), call)
    return asked and {"tool_name": asked["name"], "tool_arguments": asked["arguments"]}


@needs_inspect
def test_an_unknown_mode_is_one_line(exported: Path) -> None:
    command = [PYTHON, "-c", "import fcdpo_tasks; fcdpo_tasks.held_out('fol', 'json')"]
    done = subprocess.run(command, cwd=exported, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "ValueError: mode must be one of text, tools, got 'json'"


@needs_inspect
@pytest.mark.nightly
def test_a_served_student_answers_inspect_as_it_answers_us(
    server: str,  # noqa: F811
    exported: Path,
    tmp_path: Path,
) -> None:
    teacher = load_settings("smoke", ["teacher.kind=server", *server.split()]).teacher
    samples: list[Sample] = []
    ours = ServerTeacher(teacher.base_url, teacher.model, Sampling(turn_tokens=16, batch_size=1))
    asked = load_problems(exported / "problems.jsonl", "test")
    requests = [SampleRequest(TASKS[one.task], one, 0, limits=LIMITS) for one in asked]
    ours.run(requests, samples.append)
    command = ["-m", "inspect_ai", "eval", "fcdpo_tasks.py", "--model", f"openai-api/local/{teacher.model}"]
    command += ["--log-dir", str(tmp_path), "--log-format", "json", "--display", "none", "--max-connections", "1"]
    inspect(exported, *command, LOCAL_BASE_URL=teacher.base_url, LOCAL_API_KEY="none", NO_PROXY="127.0.0.1")
    assert chains(tmp_path) == {sample.problem.id: sample.chain for sample in samples}

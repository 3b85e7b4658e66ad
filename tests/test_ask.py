"""Questions to a student or a stand-in as a specification: what is shown, what is refused, who is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from fcdpo_utils import store
from fcdpo_utils.lab.settings import load_settings
from fcdpo_utils.pipeline import ask as ask_module
from fcdpo_utils.pipeline.ask import ask, ask_run, problem_of
from fcdpo_utils.pipeline.cli import main
from fcdpo_utils.problems import TASKS, Problem
from fcdpo_utils.settings import Limits
from fcdpo_utils.teacher import OnSample, Sample, SampleRequest

EGGS = "Tom has 3 boxes of 12 eggs and breaks 5. How many are left?"
RIGHT = ["Multiply(3, 12)", "Subtract(36, 5)", "Answer(31)", "Stop()"]


@dataclass
class Says:
    """A model that says these calls, and looks at the screen before each."""

    calls: Sequence[str]
    look: Callable[[], object] = lambda: None

    def run(self, requests: Sequence[SampleRequest], on_sample: OnSample, admit: object = None) -> None:
        (request,) = requests
        self.asked, episode = request, request.episode()
        for call in self.calls:
            self.look()
            if not episode.finished:
                episode.step(call)
        on_sample(Sample(request.problem, request.number, "test", episode.chain()))


def asked(task: str, question: str = EGGS) -> Problem:
    return problem_of(TASKS[task], question)


def test_calls_and_results_appear_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[str] = []
    chain = ask(Says(RIGHT, lambda: seen.append(capsys.readouterr().out)), asked("arithmetic"))
    assert [line.split() for line in seen[1:]] == [
        ["Multiply(3,", "12)", "->", "36"],
        ["Subtract(36,", "5)", "->", "31"],
        ["Answer(31)", "->", "Answer", "recorded"],
    ]
    assert capsys.readouterr().out.endswith("answer: 31, which follows from the calls\n")
    assert chain.answer == "31" and len(chain.steps) == 4


@pytest.mark.parametrize(
    ("calls", "line"),
    [
        (["Answer(31)", "Stop()"], "answer: 31, which does not follow from the calls"),
        (["Sum(30, 1)", "Answer(31)", "Stop()"], "answer: 31, which does not follow from the calls"),
        (["Multiply(3, 12)", "Answer(36)"], "answer: 36, which follows from the calls (no_stop)"),
        (["Stop()"], "no answer"),
        (["31", "31", "31"], "no answer (too_many_errors)"),
    ],
)
def test_the_last_line_says_what_came_out(calls: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    ask(Says(calls), asked("arithmetic"))
    assert capsys.readouterr().out.splitlines()[-1] == line


def test_rejected_calls_are_marked(capsys: pytest.CaptureFixture[str]) -> None:
    ask(Says(["Divide(3, 0)", *RIGHT]), asked("arithmetic"), Limits(errors=2))
    lines = capsys.readouterr().out.splitlines()
    assert [line[0] for line in lines] == ["!", " ", " ", " ", " ", "a"]


def test_logic_is_asked_in_formulas_and_put_in_english(capsys: pytest.CaptureFixture[str]) -> None:
    said = Says(['Fact("big(Lisa)")', 'Rule("big(x) -> guard(x)")', 'Apply("R1", "F1")', 'Query("guard(Lisa)")', 'Conclude("True")', "Stop()"])  # fmt: skip  # noqa: E501
    ask(said, asked("fol", "big(Lisa); big(x) -> guard(x); guard(Lisa)"))
    assert capsys.readouterr().out.splitlines()[-1] == "answer: True, which follows from the calls"
    question = said.asked.problem.question
    assert question.startswith("Lisa is big. ") and question.endswith(" Statement: Lisa is a guard.")


@pytest.mark.parametrize(
    ("task", "question", "line"),
    [
        ("fol", "Lisa is big. Is she a guard?", "fol: English cannot be read here; ask in formulas such as "),
        ("fol", "", "fol: English cannot be read here; ask in formulas such as "),
        ("folio", "Cat(tom); Cat(tom)", "folio: its problems cannot be read from text"),
        ("drills", "12 plus 8", "drills: its problems cannot be read from text"),
    ],
)
def test_what_a_task_cannot_read_is_one_line(task: str, question: str, line: str) -> None:
    with pytest.raises(ValueError) as caught:
        problem_of(TASKS[task], question)
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)


# Of a run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What `ask` reads of a run: records and the adapter's folder."""
    for stage in ("01", "04"):
        settings = load_settings("smoke", ["limits.calls=5"]).model_dump(mode="json")
        store.write_json(tmp_path / f"{stage}_record.json", {"settings": settings})
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").touch()
    return tmp_path


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list:
    """Which students were loaded, with which adapter, and how they sample; they say the right calls."""
    found: list = []
    monkeypatch.setattr(ask_module, "load_student", lambda *source: source)

    def teacher(student: object, adapter: Path | None, sampling: object) -> Says:
        found.append((student.source, adapter, sampling.temperature, sampling.seed))
        return Says(RIGHT)

    monkeypatch.setattr(ask_module, "LocalTeacher", teacher)
    return found


def test_the_trained_student_is_asked_unless_it_is_to_be_untouched(run: Path, loaded: list) -> None:
    assert ask_run(run, "arithmetic", EGGS).answer == "31"
    ask_run(run, "arithmetic", EGGS, untouched=True, temperature=0.7, set=["seed=3"])
    assert loaded == [("embedded", run / "adapter", 0.0, 0), ("embedded", None, 0.7, 3)]


def test_the_command_asks_as_the_function_does(run: Path, loaded: list, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", str(run), "--task", "arithmetic", EGGS, "--temperature", "0.5"]) == 0
    assert loaded == [("embedded", run / "adapter", 0.5, 0)]
    assert capfd.readouterr().out.splitlines()[-1] == "answer: 31, which follows from the calls"


def test_a_run_is_asked_with_its_first_toolset(run: Path, loaded: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        ask_module, "LocalTeacher", lambda *_: Says(['Calculate("3 * 12 - 5")', "Answer(31)", "Stop()"])
    )
    assert ask_run(run, "arithmetic", EGGS, set=["tasks.arithmetic.toolset=[expression, steps]"]).answer == "31"
    assert ask_run(run, "arithmetic", EGGS).steps[0].error == "unknown_function"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--task", "chess"], "unknown task 'chess'; expected one of arithmetic, ordering, fol, gsm8k"),
        (["--task", "fol"], "fol: English cannot be read here; ask in formulas such as "),
        (["--task", "fol", "--set", "teacher.samples=2"], "the scripted teacher knows no new problems; set teacher."),
        (["--task", "fol", "--set", "teacher.kin=local"], "setting teacher.kin: unknown setting"),
    ],
)
def test_a_question_that_cannot_be_put_is_one_line(
    run: Path, loaded: list, arguments: list[str], line: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["ask", str(run), EGGS, *arguments]) == 1
    (got,) = capfd.readouterr().err.splitlines()
    assert got.startswith(f"fcdpo: {line}")


def test_a_run_that_is_not_trained_says_what_to_run(run: Path, loaded: list, capfd: pytest.CaptureFixture[str]) -> None:
    (run / "adapter" / "adapter_config.json").unlink()
    assert main(["ask", str(run), EGGS, "--task", "arithmetic"]) == 1
    (run / "04_record.json").unlink()
    assert main(["ask", str(run), EGGS, "--task", "arithmetic"]) == 1
    assert main(["ask", str(run), EGGS, "--task", "arithmetic", "--untouched"]) == 0
    first, second = capfd.readouterr().err.splitlines()
    assert first.startswith("fcdpo: run 04 first: adapter_config.json is missing in ")
    assert second.startswith("fcdpo: run 04 first: 04_record.json is missing in ")

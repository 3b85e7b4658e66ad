"""Tasks of one's own as a specification: what a file may say, each fault in one line, and how runs know them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from own_tasks import rows, solve, write_task

from fcdpo_utils import Number, Toolset, own_task, store, tool
from fcdpo_utils.chains import load_chains
from fcdpo_utils.episode import prompt, run_calls
from fcdpo_utils.fingerprint import code_of
from fcdpo_utils.lab.settings import RunSettings, load_settings
from fcdpo_utils.pipeline import manifest
from fcdpo_utils.pipeline.cli import main
from fcdpo_utils.pipeline.stage import open_run_dir
from fcdpo_utils.problems import TASKS, Problem, rooms_of, split_of
from fcdpo_utils.settings import Settings, SettingsError
from fcdpo_utils.tasks.making import make_problems
from fcdpo_utils.tasks.own import OwnTask, OwnTaskError, load
from fcdpo_utils.teachers import build_teacher
from fcdpo_utils.teachers.making import make_chains


@pytest.fixture(autouse=True)
def _tasks_of_the_package_alone() -> Iterator[None]:
    before = dict(TASKS)
    yield
    TASKS.clear()
    TASKS.update(before)


def settings_of(file: Path, *overrides: str, train: int = 6, test: int = 4) -> RunSettings:
    return load_settings("smoke", [f"tasks={{shipping: {{file: {file}, train: {train}, test: {test}}}}}", *overrides])


def checked(file: Path, capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, output and errors of `fcdpo task check`."""
    code = main(["task", "check", str(file)])
    return code, *capfd.readouterr()


# A file that is whole


def test_a_whole_task_has_no_faults_and_shows_its_prompt(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, output, errors = checked(write_task(tmp_path), capfd)
    assert code == 0 and errors == "" and output.endswith("\nno faults\n")
    text, _, facts = output.partition("\n\nThat prompt has ")
    (problem, *_), _ = TASKS["shipping"].read()
    assert text == prompt(TASKS["shipping"], problem)[0]["content"]
    assert 150 < int(facts.split()[0]) < 400 and "96 problems, " in facts and "96 with calls" in facts


def test_the_prompt_lists_own_functions_first_and_the_answer_that_the_example_calls(tmp_path: Path) -> None:
    load(str(write_task(tmp_path)))
    names = list(TASKS["shipping"].toolset(None).functions())
    assert names == ["Base", "Zone", "Parcels", "Answer", "Reasoning", "Stop"]


def test_gold_calls_of_rows_are_sound_and_only_they_are_needed_by_the_scripted_teacher(tmp_path: Path) -> None:
    settings = settings_of(write_task(tmp_path))
    problems = make_problems("shipping", settings.tasks["shipping"], 0)
    assert [p.split for p in problems] == ["train"] * 6 + ["test"] * 4
    for problem in problems:
        assert run_calls(TASKS["shipping"], problem, TASKS["shipping"].gold_calls(problem)).sound


def test_a_task_may_be_a_notebooks_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(globals(), "__file__")  # a cell has none

    class Doubling(Toolset):
        @tool("Double(2)")
        def Double(self, value: Number) -> str:
            """Twice the value."""
            return str(2 * value)

    made = [{"question": f"Twice {n}?", "answer": 2 * n, "level": 1 + n % 2} for n in range(1, 60)]
    example = "Twice 100?", ["Double(100)", "Answer(200)", "Stop()"]
    own_task("doubling", Doubling, "Double it.", made, example, "number")
    settings = load_settings("smoke", ["tasks={doubling: {train: 5, test: 2, levels: [2]}}"])
    problems = make_problems("doubling", settings.tasks["doubling"], 0)
    assert len(problems) == 7 and {problem.level for problem in problems} == {2}
    before = code_of(*rooms_of(["doubling"]))

    class Doubling(Toolset):
        @tool("Double(2)")
        def Double(self, value: Number) -> str:
            """Twice the value."""
            return str(3 * value)

    own_task("doubling", Doubling, "Double it.", made, example, "number")
    assert code_of(*rooms_of(["doubling"])) != before  # other functions: chains made before do not count


# Answers


@pytest.mark.parametrize(
    ("how", "answer", "right", "wrong"),
    [
        ('"number"', "1,250.50", "$1250.5", "1251"),
        ('"exact"', "a  blue whale", "a blue whale", "A blue whale"),
        ("lambda problem, answer: answer in problem.answer", "red or blue", "red", "green"),
    ],
)
def test_how_answers_are_compared(tmp_path: Path, how: str, answer: str, right: str, wrong: str) -> None:
    load(str(write_task(tmp_path, ('answer="number"', f"answer={how}"))))
    problem = Problem("p", "shipping", "train", 1, "?", answer, "?")
    task = TASKS["shipping"]
    assert [task.is_correct(problem, said) for said in (right, wrong, None)] == [True, False, False]


def test_a_fault_in_a_users_function_costs_a_call_or_a_chain_and_nothing_else(tmp_path: Path) -> None:
    edits = (
        ("return format_number(count * price)", "return count / 0"),
        ('answer="number"', "answer=lambda p, a: a == '134' or 1 / 0"),
    )
    load(str(write_task(tmp_path, *edits)))
    task, (question, *_) = TASKS["shipping"], (row["question"] for row in rows())
    chain = run_calls(task, Problem("p", "shipping", "train", 1, question, "1", "p"), solve(question))
    (failed,) = [step for step in chain.steps if step.error]
    assert failed.result == "Error: Parcels failed (ZeroDivisionError)" and chain.outcome == "wrong_answer"


# Splits


def test_splits_are_by_the_hash_of_the_question_and_stay_when_rows_are_added(tmp_path: Path) -> None:
    few, many = write_task(tmp_path / "a", rows=rows()[:60]), write_task(tmp_path / "b")
    (before,), (after,) = load(str(few)), load(str(many))
    first, second = ({p.id: p for p in task.read()[0]} for task in (before, after))
    assert first.items() <= second.items()
    assert all(p.split == split_of(p.canonical) for p in second.values()) and {"train", "test"} == {
        p.split for p in second.values()
    }


def test_a_larger_request_holds_a_smaller_one_and_the_seed_picks(tmp_path: Path) -> None:
    (task,) = load(str(write_task(tmp_path)))
    assert task.generate(20, "train", 0)[:7] == task.generate(7, "train", 0) != task.generate(7, "train", 1)


def test_more_than_there_are_is_one_line(tmp_path: Path) -> None:
    (task,) = load(str(write_task(tmp_path)))
    with pytest.raises(OwnTaskError, match=r"^shipping: 90 test problems asked for, only \d+ of 96 rows are of that"):
        task.generate(90, "test", 0)


# Broken files: one clear line each

NUMBER, GENERATED = 'answer="number"', 'problems="shipping.jsonl"'
BASE = '    @tool("Base(3)")\n    def Base(self, weight: Number) -> str:'
HELP = '\n        """Price of one parcel by its weight in kg."""'
EXAMPLE = '["Base(30)", \'Zone("north", 64)\', "Parcels(2, 67)", "Answer(134)", "Stop()"]'
BROKEN = {
    "no docstring": ((HELP, ""), "my_task.py: shipping: Base: a tool needs a docstring and an"),
    "unannotated argument": (("weight: Number", "weight"), "my_task.py: shipping: Base: a tool needs a docstring and"),
    "argument of no kind": (("weight: Number", "weight: dict"), "my_task.py: shipping: Base: a tool's parameters must"),
    "unknown annotation": (("weight: Number", "weight: 'Weight'"), "my_task.py: shipping: NameError: name 'Weight'"),
    "no function": (("class Shipping(Toolset):", "class Other(Toolset):"), "my_task.py line "),
    "tools of nothing": (("tools=Shipping", "tools=Toolset"), "my_task.py: shipping: no method is marked with @tool"),
    "tools that are none": (("tools=Shipping", "tools=dict"), "my_task.py: shipping: tools must be a subclass of"),
    "tools that do not start": (
        ("class Shipping(Toolset):", "class Shipping(Toolset):\n    def __init__(self, table):\n        pass\n"),
        "my_task.py: shipping: Shipping.__init__() missing 1 required positional argument: 'table'",
    ),
    "another function's example": (('@tool("Base(3)")', '@tool("Bass(3)")'),  "shipping: the example of Base, 'Bass("),
    "an example of no call": (('@tool("Base(3)")', '@tool("Base(\'x\')")'), "shipping: the example of Base, "),
    "the name to abstain by": (
        (BASE, f'    @tool("Unable()")\n    def Unable(self) -> str:\n        """No."""\n        return ""\n\n{BASE}'),
        "my_task.py: shipping: Unable is a name that every toolset uses itself; rename yours",
    ),
    "a name of the toolset's": (
        (BASE, f'    @tool("help()")\n    def help(self) -> str:\n        """No."""\n        return ""\n\n{BASE}'),
        "my_task.py: shipping: help is a name that every toolset uses itself; rename yours",
    ),
    "a function that nobody calls yet, and fails": (
        (BASE, f'    @tool("Tax()")\n    def Tax(self) -> str:\n        """Tax."""\n        return 19\n\n{BASE}'),
        "shipping: the example of Tax, 'Tax()', fails: Error: Tax failed (",
    ),
    "a function that remembers": (
        (BASE, '    @tool("Next()")\n    def Next(self) -> str:\n        """One more."""\n'
         f'        EXTRA["none"] = EXTRA.get("none", 0) + 1\n        return str(EXTRA["none"])\n\n{BASE}'),
        "shipping: the example of Next, 'Next()', gives '1', then '2': what a chain changes belongs in self, made in",
    ),
    "an answer that fails": ((NUMBER, "answer=lambda p, a: p['a'] == a"), "my_task.py: shipping: TypeError: 'Problem'"),
    "generator of nothing": ((GENERATED, "problems=lambda: []"), "shipping: problems: there are none"),
    "generator that fails": ((GENERATED, "problems=lambda: 1 / 0"), "shipping: problems: ZeroDivisionError: "),
    "no file of problems": ((GENERATED, 'problems="x.jsonl"'), "shipping: problems: FileNotFoundError: [Errno 2]"),
    "unsound example": (("Parcels(2, 67)", "Parcels(2, 66)"), "shipping: the example is not sound: "),
    "rejected example": (('"Base(30)"', '"Bse(30)"'), "shipping: the example is not sound: Bse(30) was answered "),
    "example without an answer": (('"Answer(134)", ', ""), "shipping: the example is not sound: they end in no_answer"),
    "example of one text": ((EXAMPLE, '"Base(30)"'), "my_task.py: shipping: example must be a question and a list of"),
    "example without calls": ((EXAMPLE, "[]"), "my_task.py: shipping: example must be a question and a list of calls"),
    "a guess that counts": (
        (BASE, f"    def answer_follows(self):\n        return True\n\n{BASE}"),
        "shipping: a guess would count as sound: Answer(134) Stop()",
    ),
    "name of the package": (('"shipping",', '"fol",'), "my_task.py: fol: the name is taken by a task of this package"),
    "name that is none": (('"shipping",', '"My Task",'), "my_task.py: own_task: a name has small letters"),
    "unknown answer": ((NUMBER, 'answer="text"'), 'my_task.py: shipping: answer must be "number", "exact" or a'),
    "does not import": (
        ("from fcdpo_utils import Number", "import nowhere\nfrom fcdpo_utils import Number"),
        "my_task.py line 2: ModuleNotFoundError: No module named 'nowhere'",
    ),
    "does not parse": (("EXTRA = {", "EXTRA = {{"), "my_task.py line "),
    "exits": (("EXTRA = {", "raise SystemExit\nEXTRA = {"), "my_task.py line 5: SystemExit"),
    "no task": (("task = own_task(", "task = dict("), "my_task.py line "),
}  # fmt: skip


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_file_is_one_clear_line(fault: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    edit, line = BROKEN[fault]
    code, output, errors = checked(write_task(tmp_path, edit), capfd)
    if errors:  # it is no task at all
        (got,) = errors.splitlines()
        got = got.removeprefix("fcdpo: ")
    else:
        *_, got, count = output.splitlines()
        assert count == "1 faults" and output.count("\nshipping: ") == 2
    assert code == 1 and got.startswith(line) and len(got) < 300 and "Traceback" not in output + errors


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, _, errors = checked(tmp_path / "x.py", capfd)
    assert code == 1 and errors == f"fcdpo: no file {tmp_path / 'x.py'}; expected Python that calls own_task\n"


GOOD, ASKED = rows()[0], "Send 2 parcels of 30 kg each to the north.  What is the price?"


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ("{broken", 'expected {"question": text, "answer": text or number}, got {broken'),
        ([1], 'expected {"question": text, "answer": text or number}, got [1]'),
        ({"question": "How much?"}, 'expected {"question": text, "answer": text or number}, got '),
        ({"question": " ", "answer": 1}, 'expected {"question": text, "answer": text or number}, got '),
        ({"question": "How much?", "answer": True}, 'expected {"question": text, "answer": text or number}, got '),
        ({"question": "How much?", "answer": "about 3"}, "its answer 'about 3' is not right by answer='number'"),
        ({"question": "How much?", "answer": 3, "calls": "Base(3)"}, "calls must be a list of texts, got Base(3)"),
        ({"question": "How much?", "answer": 3, "level": 0}, "level must be a number from 1, got 0"),
        (GOOD | {"question": "Send 2 parcels.", "answer": "18"}, "its calls are not sound: 18 is no result of a call"),
        (GOOD | {"question": GOOD["question"] + " "}, "asks the same as shipping.jsonl line 1"),
        (GOOD | {"calls": ["Base(1)", "Stop()"], "question": "1 kg?"}, "its calls are not sound: they end in no_a"),
        (GOOD | {"calls": ["Bse(1)"], "question": "1 kg?"}, "its calls are not sound: Bse(1) was answered 'Error: no "),
        (GOOD | {"question": ASKED, "answer": 134, "calls": None}, "asks the same as the example"),
    ],
)  # fmt: skip
def test_each_faulty_row_is_one_line_with_its_number(
    row: object, line: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = write_task(tmp_path, rows=[GOOD, row, rows()[1], row])
    code, output, _ = checked(file, capfd)
    *_, first, second, count = output.splitlines()
    assert code == 1 and count == "2 faults"
    assert first.startswith(f"shipping: shipping.jsonl line 2: {line}") and second.startswith(
        "shipping: shipping.jsonl line 4"
    )
    with pytest.raises(OwnTaskError, match=r"line 2: .*\(2 faulty rows in all; see fcdpo task check\)$"):
        TASKS["shipping"].generate(1, "train", 0)


# Teachers


def made(file: Path, folder: Path, *overrides: str) -> list:
    settings = settings_of(file, *overrides)
    problems = make_problems("shipping", settings.tasks["shipping"].model_copy(update={"test": 0}), 0)
    make_chains(folder / "chains.jsonl", problems, settings, build_teacher, lambda *_: None)
    return load_chains(folder / "chains.jsonl")


def test_the_scripted_teacher_makes_mistakes_that_fit_every_task(tmp_path: Path) -> None:
    chains = made(write_task(tmp_path), tmp_path, "teacher.samples=12")
    sources = {record["source"] for record in store.read(tmp_path / "chains.jsonl")}
    assert sources == {"gold", "skipped_step", "bad_syntax", "unknown_function", "no_stop"}
    assert 0.4 < sum(chain.sound for _, chain in chains) / len(chains) < 0.6


def test_without_calls_the_scripted_teacher_says_what_to_add(tmp_path: Path) -> None:
    with pytest.raises(OwnTaskError) as caught:
        made(write_task(tmp_path, gold=False), tmp_path)
    fix = 'add "calls" to its row, or let a model be the teacher (teacher.kind=server or local)'
    assert str(caught.value).partition(" has no gold chain; ")[2] == fix


def test_chains_of_changed_functions_do_not_count(tmp_path: Path) -> None:
    first = made(write_task(tmp_path), tmp_path)
    assert made(write_task(tmp_path), tmp_path) == first and not (tmp_path / "chains.jsonl.old").exists()
    made(
        write_task(tmp_path, ('"""Price of several equal', "# note\n        " + '"""Price of several equal')), tmp_path
    )
    assert len(store.read(tmp_path / "chains.jsonl.old")) == len(first)


# How runs know them


def test_a_task_may_import_what_is_beside_it(tmp_path: Path) -> None:
    (tmp_path / "its_prices.py").write_text("BASE = 4\n")
    file = write_task(tmp_path, ("EXTRA = {", "from its_prices import BASE\nEXTRA = {"), ("(4 + 2", "(BASE + 2"))
    before = list(sys.path)
    (task,) = load(str(file))
    assert not [*task.faults()] and sys.path == before


def test_the_answer_of_a_row_is_not_the_rounding_of_a_float(tmp_path: Path) -> None:
    (task,) = load(str(write_task(tmp_path, rows=[{"question": "6 for 0.35 each?", "answer": 6 * 0.35}])))
    (problem,), faults = task.read()
    assert problem.answer == "2.1" and not faults


def test_a_relative_file_is_where_the_command_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_task(tmp_path)
    monkeypatch.chdir(tmp_path)
    settings = load_settings("smoke", ["tasks.shipping={file: my_task.py, train: 1, test: 1}"])
    assert settings.tasks["shipping"].file == str(tmp_path / "my_task.py") and set(settings.tasks) > {"fol"}
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_settings("smoke", ["tasks.shipping={file: ~/my_task.py, train: 1, test: 1}"]) == settings
    with pytest.raises(OwnTaskError, match=f"no file {tmp_path}/none.py"):
        load_settings("smoke", ["tasks.shipping={file: none.py, train: 1, test: 1}"])
    monkeypatch.chdir("/")
    monkeypatch.setenv("FCDPO_STARTED_IN", str(tmp_path))  # as in the notebooks of a run
    assert load_settings("smoke", ["tasks.shipping={file: my_task.py, train: 1, test: 1}"]) == settings


PROFILE = """
tasks: {shipping: {file: tasks/my_task.py, train: 4, test: 2}}
expected_minutes: [1, 1, 1, 1, 1]
"""


def test_a_profile_may_be_a_file_and_names_tasks_beside_it(tmp_path: Path) -> None:
    write_task(tmp_path / "tasks")
    (tmp_path / "mine.yaml").write_text(PROFILE, encoding="utf-8")
    settings = load_settings(str(tmp_path / "mine.yaml"))
    assert settings.profile == "mine" and settings.tasks["shipping"].file == str(tmp_path / "tasks" / "my_task.py")
    assert make_problems("shipping", settings.tasks["shipping"], 0)
    folder = open_run_dir(str(tmp_path / "mine.yaml"))
    assert folder == manifest.ROOT / "outputs" / "mine"
    (folder / "progress.txt").unlink()
    folder.rmdir()


@pytest.mark.parametrize("text", ["- a", "{", "", "tasks: {a: [}"])
def test_a_profile_that_is_no_settings_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match=r"mine.yaml: cannot be read as YAML; expected settings such as seed: 0$"):
        load_settings(str(tmp_path / "mine.yaml"))


def test_a_profile_of_ones_own_has_a_name_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "cpu.yaml").write_text(PROFILE, encoding="utf-8")
    with pytest.raises(SettingsError, match=r"cpu is the name of a shipped one; rename the file$"):
        load_settings(str(tmp_path / "cpu.yaml"))


@pytest.mark.parametrize(
    ("tasks", "line"),
    [
        (
            "{chess: {train: 1, test: 1}}",
            "setting tasks.chess: input should be one of arithmetic, ordering, fol, gsm8k",
        ),
        ("{freight: {train: 1, test: 1, file: FILE}}", "setting tasks.freight: input should be one of "),
        ("{fol: {train: 1, test: 1, levels: [1], file: FILE}}", "setting tasks.fol: input should be one of "),
        ("{fol: {train: 1, test: 1}}", "setting tasks.fol.levels: field required"),
        ("{fol: {train: 1, test: 1, levels: [1], path: x}}", "setting tasks.fol.path: only gsm8k and folio read"),
        ("{shipping: {train: 1, test: 1, file: FILE, test_path: x}}", "setting tasks.shipping.test_path: only gsm8k"),
        ("{shipping: {train: 1, test: 1, file: nowhere.py}}", "no file "),
        ("{shipping: {train: 1, test: 1, files: FILE}}", "setting tasks.shipping.files: unknown setting"),
    ],
)
def test_a_task_that_nobody_knows_is_one_line(tmp_path: Path, tasks: str, line: str) -> None:
    file = write_task(tmp_path)
    with pytest.raises(ValueError) as caught:
        load_settings("smoke", [f"tasks={tasks.replace('FILE', str(file))}"])
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("generalisation.sets=[{name: a, task: chess, levels: [1]}]", "setting generalisation.sets.0.task: input sh"),
        ("generalisation.sets=[{name: a, task: gsm8k, levels: [1]}]", "setting generalisation.sets.0.task: input sho"),
    ],
)
def test_other_settings_that_name_tasks_name_known_ones(override: str, line: str) -> None:
    with pytest.raises(SettingsError, match=f"^{line}".replace("[", r"\[")):
        load_settings("smoke", [override])


def test_a_run_does_not_start_on_an_example_that_would_teach_a_mistake(tmp_path: Path) -> None:
    file = write_task(tmp_path, ("Parcels(2, 67)", "Parcels(2, 66)"))
    with pytest.raises(SettingsError, match="^shipping: the example is not sound: "):
        settings_of(file)


def test_settings_of_a_finished_run_are_read_without_running_its_task_files(tmp_path: Path) -> None:
    settings = settings_of(write_task(tmp_path))
    store.write_json(tmp_path / "04_record.json", {"settings": settings.model_dump(mode="json")})
    write_task(tmp_path, ("EXTRA = {", "raise SystemExit\nEXTRA = {"))
    assert manifest.recorded_settings(tmp_path, "04") == settings


def test_stages_depend_on_the_file_and_its_problems(tmp_path: Path) -> None:
    settings = settings_of(write_task(tmp_path))

    def parts(stage: int) -> dict:
        return manifest.fingerprint(manifest.STAGES[stage], settings, tmp_path)

    first, second = parts(0), parts(1)
    write_task(tmp_path, rows=rows()[:50])
    assert parts(0) != first and parts(1) == second  # it reads what 01 made of them
    (tmp_path / "count.txt").write_text("2")
    read = "problems=lambda: [{'question': '?', 'answer': open(__file__.replace('my_task.py', 'count.txt')).read()}]"
    settings = settings_of(write_task(tmp_path, (GENERATED, read)))
    first = parts(0)
    (tmp_path / "count.txt").write_text("3")
    assert manifest.differing(parts(0), first) == ["rows of shipping"]  # the same code, other rows
    settings = settings_of(write_task(tmp_path, (GENERATED, "problems=lambda: 1 / 0")))
    assert parts(0).keys() == first.keys()  # 01 says what is wrong, in one line
    settings = settings_of(write_task(tmp_path))
    first, second = parts(0), parts(1)
    load(str(write_task(tmp_path, ("4 + 2 * weight", "4 + 2 * weight + 0"))))
    assert parts(0)["code"] != first["code"] and parts(1)["code"] != second["code"]


def test_own_settings_are_settings() -> None:
    assert issubclass(RunSettings, Settings) and not isinstance(TASKS["fol"], OwnTask)
    assert json.loads(json.dumps(load_settings("smoke").model_dump(mode="json")))["tasks"]["fol"]["file"] is None


# The plan


def planned(capfd: pytest.CaptureFixture[str], *overrides: str, run_dir: Path) -> list[str]:
    options = [argument for override in overrides for argument in ("--set", override)]
    assert main(["plan", "--profile", "smoke", *options, "--run-dir", str(run_dir)]) == 0
    return capfd.readouterr().out.splitlines()


def test_a_plan_asks_nobody_and_needs_no_key(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = write_task(tmp_path, gold=False)
    server = "teacher.kind=server", "teacher.key_env=NO_SUCH_KEY", "teacher.samples=2", "teacher.prices=[2, 10]"
    lines = planned(capfd, f"tasks={{shipping: {{file: {file}, train: 10, test: 4}}}}", *server, run_dir=tmp_path)
    name, prompts, chains, tokens, read, written = (word.replace(",", "") for word in lines[1].split())
    assert (name, prompts, chains) == ("shipping", "10", "20")
    turns = 5  # of the worked example: the prompt is read five times, and what came before a call each time again
    assert turns * 20 * int(tokens) < int(read) < 1.5 * turns * 20 * int(tokens) and int(written) > 20 * turns * 3
    cost = (2 * int(read) + 10 * int(written)) / 1e6
    assert lines[2] == f"price at teacher.prices=[2.0, 10.0], of a million tokens: {cost:.2f}"
    assert lines[4:] == [
        " 10% of chains sound: 2 of 10 prompts mixed, at best",
        " 30% of chains sound: 4 of 10 prompts mixed, at best",
        " 50% of chains sound: 5 of 10 prompts mixed, at best",
        " 70% of chains sound: 4 of 10 prompts mixed, at best",
        " 90% of chains sound: 2 of 10 prompts mixed, at best",
    ]


def test_a_plan_takes_the_share_of_sound_chains_from_those_made(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store.write_records(tmp_path / "chains.jsonl", [{"sound": True}] * 3 + [{"sound": False}])
    lines = planned(capfd, "teacher.samples=2", run_dir=tmp_path)
    assert lines[3].endswith(": nothing, for the scripted teacher is no model")
    assert lines[-1] == " 75% of chains sound so far: 4 of 12 prompts mixed, at best"  # 12 * (1 - 9/16 - 1/16) = 4.5

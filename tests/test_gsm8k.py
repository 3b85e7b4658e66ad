"""Conversion of GSM8K rows to chains as a specification, on rows written for these tests.

The real file is read where it lies beside the repository, and never copied.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from fcdpo_utils.tasks import gsm8k
from fcdpo_utils.tasks.arithmetic import split_of
from fcdpo_utils.tasks.gsm8k import GSM8K, ConversionFailure, conversion_report, convert_row, load_rows, report_table

REAL_FILE = Path(__file__).parents[2] / "shared/data/gsm8k/train.jsonl"
TASK = GSM8K()


def row(answer: str, question: str = "How many?") -> dict[str, str]:
    return {"question": question, "answer": answer}


def rows(count: int) -> list[dict[str, str]]:
    """Small rows of one to seven steps that convert."""
    made = []
    for index in range(count):
        total, lines = index + 1, []
        for _ in range(index % 7 + 1):
            lines.append(f"That makes <<{total}+2={total + 2}>>{total + 2}.")
            total += 2
        made.append(row("\n".join([*lines, f"#### {total}"]), f"Sue has {index + 1} pens and finds more. How many?"))
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(made) + "\n" for made in rows(80)), encoding="utf-8")
    return file


# What converts


@pytest.mark.parametrize(
    ("answer", "steps"),
    [
        ("Half is 48/2 = <<48/2=24>>24.\n#### 24", [["Divide", "48", "2"]]),
        ("<<2*3=6>>6 and <<6+1=7>>7\n#### 7", [["Multiply", "2", "3"], ["Sum", "6", "1"]]),
        ("<<100-50-15=35>>35\n#### 35", [["Subtract", "100", "50"], ["Subtract", "50", "15"]]),
        ("<<2+3*4=14>>14\n#### 14", [["Multiply", "3", "4"], ["Sum", "2", "12"]]),
        ("<<(2+3)*4=20>>20\n#### 20", [["Sum", "2", "3"], ["Multiply", "5", "4"]]),
        ("<<1/3*12=4>>4\n#### 4", [["Divide", "1", "3"], ["Multiply", "1/3", "12"]]),
        ("<<20%*60=12>>12\n#### 12", [["Divide", "20", "100"], ["Multiply", "0.2", "60"]]),
        ("<<$1,200/2=$600>>600\n#### $600", [["Divide", "1200", "2"]]),
        ("<<3x4=12>>12\n#### 12", [["Multiply", "3", "4"]]),
        ("<<3 × 4=12>>12\n#### 12", [["Multiply", "3", "4"]]),
        ("<<12÷4=3>>3\n#### 3", [["Divide", "12", "4"]]),
        ("<<12//4=3>>3\n#### 3", [["Divide", "12", "4"]]),
        ("<<08*.50=4.00>>4\n#### 4", [["Multiply", "8", "0.5"]]),
        ("<<-5+3*+4=7>>7\n#### 7", [["Multiply", "3", "4"], ["Sum", "-5", "12"]]),
        ("<<5=5>>5 and <<5+1=6>>6\n#### 6", [["Sum", "5", "1"]]),
        ("<<2000*3=6000>>6,000\n#### 6,000", [["Multiply", "2000", "3"]]),
    ],
)
def test_annotations_become_steps_in_the_order_of_evaluation(answer: str, steps: list[list[str]]) -> None:
    assert convert_row(row(answer)) == steps


@pytest.mark.parametrize(
    ("answer", "steps"),
    [
        ("<<2*5=10>>10\nShe has $48 − $10 = $38 left.\n#### 38", [["Multiply", "2", "5"], ["Subtract", "48", "10"]]),
        ("160*5 = 800 now.\nSo <<800+60=860>>860\n#### 860", [["Multiply", "160", "5"], ["Sum", "800", "60"]]),
        ("12 red cups + 3 blue cups = 15 cups\n#### 15", [["Sum", "12", "3"]]),
    ],
)
def test_equations_without_annotation_are_read_too(answer: str, steps: list[list[str]]) -> None:
    assert convert_row(row(answer)) == steps


def test_an_equation_beside_its_own_annotation_counts_once() -> None:
    assert convert_row(row("He sold 48/2 = <<48/2=24>>24 clips.\n#### 24")) == [["Divide", "48", "2"]]


def test_an_equation_that_does_not_hold_is_passed_over() -> None:
    assert convert_row(row("As 10 * 0.5 = 10, no.\n<<10/2=5>>5\n#### 5")) == [["Divide", "10", "2"]]


def test_an_equation_after_the_answer_does_not_spoil_the_annotations() -> None:
    assert convert_row(row("<<10/2=5>>5\nCheck: 5 * 2 = 10\n#### 5")) == [["Divide", "10", "2"]]


# What does not


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("<<1+1=2>>2", "no answer after ####"),
        ("<<1+1=2>>2\n#### two", "no answer after ####"),
        ("So 3x = 9 and x = 3.\n#### 3", "no calculation to read"),
        ("So x = <<3=3>>3.\n#### 3", "no calculation to read"),
        ("<<3+y=5>>5\n#### 5", "an annotation cannot be read"),
        ("<<2**3=8>>8\n#### 8", "an annotation cannot be read"),
        ("<<1/0=0>>0\n#### 0", "an annotation cannot be read"),
        ("<<1+1>>2\n#### 2", "an annotation cannot be read"),
        ("<<10/3=3.33>>3.33\n#### 3.33", "an annotation does not equal its own expression"),
        ("<<2+2=4>>4\n#### 5", "the last result is not the answer"),
        ("<<2*4=8>>8 or <<2*3=6>>6: the larger.\n#### 8", "the last result is not the answer"),
    ],
)
def test_a_row_without_a_chain_says_why(answer: str, reason: str) -> None:
    outcome = convert_row(row(answer))
    assert isinstance(outcome, ConversionFailure) and outcome == reason


def test_the_report_counts_rows_by_outcome() -> None:
    report = conversion_report([*rows(3), row("x = 3\n#### 3"), row("<<2+2=4>>4\n#### 5"), row("y = 3\n#### 3")])
    assert list(report.items()) == [
        ("converted", 3),
        ("no calculation to read", 2),
        ("the last result is not the answer", 1),
    ]
    assert report_table(report).splitlines() == [
        "     3   50.0%  converted",
        "     2   33.3%  no calculation to read",
        "     1   16.7%  the last result is not the answer",
        "     6  100.0%  rows",
    ]


def test_the_report_of_no_rows_is_empty_not_an_error() -> None:
    assert report_table(conversion_report([])).splitlines()[-1].split() == ["0", "100.0%", "rows"]


def test_the_command_prints_the_report_of_a_file(path: Path) -> None:
    done = report_command(str(path))
    assert done.returncode == 0 and done.stdout.splitlines()[0] == "    80  100.0%  converted"


def test_the_command_ends_with_one_line_where_there_is_no_file() -> None:
    done = report_command("nowhere.jsonl")
    assert done.returncode == 1 and done.stderr.splitlines() == [
        'fcdpo: gsm8k: no file nowhere.jsonl; expected JSONL with a "question" and an "answer" on each line'
    ]


def report_command(argument: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fcdpo_utils.pipeline.cli", "gsm8k", argument]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)


# What the problems are


def test_problems_are_sound_numbered_and_at_most_six_steps_long(path: Path) -> None:
    problems = TASK.generate(30, "train", seed=0, path=path)
    assert [problem.id for problem in problems[:2]] == ["gsm8k-train-0001", "gsm8k-train-0002"]
    assert {problem.level for problem in problems} == {1, 2, 3, 4, 5, 6}
    for problem in problems:
        assert (problem.task, len(problem.details["steps"])) == ("gsm8k", problem.level)
        state = TASK.start(problem)
        assert [call for call in TASK.gold_calls(problem) if state.call(call).error] == []
        assert state.stopped and state.answer_follows() and TASK.is_correct(problem, state.answer)


def test_the_same_arguments_give_the_same_problems(path: Path) -> None:
    assert TASK.generate(9, "train", 5, path=path) == TASK.generate(9, "train", 5, path=path)
    assert TASK.generate(9, "train", 5, path=path) != TASK.generate(9, "train", 6, path=path)


def test_splits_share_no_question(path: Path) -> None:
    train = {problem.canonical for seed in range(5) for problem in TASK.generate(15, "train", seed, path=path)}
    test = {problem.canonical for seed in range(5) for problem in TASK.generate(15, "test", seed, path=path)}
    assert {split_of(canonical) for canonical in train} == {"train"}
    assert {split_of(canonical) for canonical in test} == {"test"}


def test_only_the_levels_asked_for_come(path: Path) -> None:
    assert {problem.level for problem in TASK.generate(8, "train", 0, levels=(2, 3), path=path)} == {2, 3}


def test_too_few_rows_is_one_line(path: Path) -> None:
    with pytest.raises(ValueError, match=r"^gsm8k: 900 test problems asked for, only \d+ in .*rows\.jsonl$"):
        TASK.generate(900, "test", 0, path=path)


def test_a_wrong_split_is_one_line(path: Path) -> None:
    with pytest.raises(ValueError, match=r"^gsm8k: split must be one of train, test, got 'dev'$"):
        TASK.generate(1, "dev", 0, path=path)


def test_a_level_beyond_six_is_one_line(path: Path) -> None:
    with pytest.raises(ValueError, match=r"^gsm8k: levels must be some of 1, 2, 3, 4, 5, 6 \(numbers of steps\)"):
        TASK.generate(1, "train", 0, levels=(7,), path=path)


# Where the rows come from


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "line 2 is not JSON: '{broken'"),
        ("[1]", 'line 2: expected an object with text "question" and "answer", got \'[1]\''),
        ('{"question": "?"}', 'line 2: expected an object with text "question" and "answer"'),
        ('{"question": "?", "answer": 3}', 'line 2: expected an object with text "question" and "answer"'),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row("#### 1")) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        load_rows(file)
    assert str(caught.value).startswith(f"gsm8k: {file} {message}")


def test_a_row_may_hold_a_unicode_line_separator(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row("a\u2028b"), ensure_ascii=False) + "\n", encoding="utf-8")
    assert load_rows(file) == [row("a\u2028b")]


def test_a_file_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"rows.jsonl is not UTF-8 text; expected JSONL$"):
        load_rows(file)


def test_a_missing_file_is_one_line() -> None:
    with pytest.raises(FileNotFoundError, match=r"^gsm8k: no file nowhere\.jsonl; expected JSONL"):
        TASK.generate(1, "train", 0, path="nowhere.jsonl")


def test_without_a_path_the_rows_are_the_train_split_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, config: str, split: str) -> list[dict[str, str]]:
        assert (name, config, split) == ("openai/gsm8k", "main", "train")
        return rows(3)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert load_rows() == rows(3)


def test_a_hub_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        raise OSError("a page\nof text")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(
        ConnectionError, match=r"^gsm8k: cannot load openai/gsm8k from the hub \(OSError\); pass GSM8K=PATH$"
    ):
        TASK.generate(1, "train", 0)


# The real file


@pytest.fixture(scope="module")
def real_rows() -> list[dict[str, str]]:
    if not REAL_FILE.is_file():
        pytest.skip(f"the real GSM8K train file is not at {REAL_FILE}")
    return load_rows(REAL_FILE)


def test_the_real_file_converts_as_measured(real_rows: list[dict[str, str]]) -> None:
    report = conversion_report(real_rows)
    print(report_table(report))
    assert report == {
        "converted": 7094,
        "the last result is not the answer": 210,
        "no calculation to read": 169,
    }


@pytest.mark.parametrize("toolset", list(TASK.toolsets))
def test_real_problems_are_sound_and_most_mistakes_end_wrong(
    real_rows: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch, toolset: str
) -> None:
    monkeypatch.setattr(gsm8k, "load_rows", lambda path: real_rows)
    problems = TASK.generate(200, "test", 0)
    for problem in problems:
        state = TASK.start(problem, toolset)
        assert [call for call in TASK.gold_calls(problem, toolset=toolset) if state.call(call).error] == []
        assert state.stopped and state.answer_follows() and TASK.is_correct(problem, state.answer)
    assert mistaken_share_wrong(problems, toolset) > 0.9


def mistaken_share_wrong(problems: list, toolset: str) -> float:
    rng, wrong = random.Random(0), []
    for problem in problems:
        for mistake in TASK.mistakes.values():
            calls = mistake(problem, TASK.gold_calls(problem, toolset=toolset), rng)
            state = TASK.start(problem, toolset)
            if calls is not None:
                assert [call for call in calls if state.call(call).error] == []
                wrong.append(not TASK.is_correct(problem, state.answer))
    return sum(wrong) / len(wrong)

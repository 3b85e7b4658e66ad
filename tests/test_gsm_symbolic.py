"""GSM-Symbolic's templates as a specification: which become gold chains, and that none is both learnt from and asked.

`make test` installs `reasoning-gym`, without the packages that its other tasks need; where it is not there, what draws
from its templates is skipped.
"""

from __future__ import annotations

import random
import sys
import tomllib
from collections import Counter
from importlib.util import find_spec

import pages
import pytest
from runs import ROOT

from fcdpo_utils.episode import run_calls
from fcdpo_utils.problems import TASKS, Problem
from fcdpo_utils.tasks import gsm_symbolic
from fcdpo_utils.tasks.gsm_symbolic import GSMSymbolic, templates
from fcdpo_utils.tasks.rows import CONVERTED, table

TASK, DRAWS = GSMSymbolic(), 40
pytestmark = pytest.mark.xdist_group("gsm_symbolic")
needs_package = pytest.mark.skipif(not find_spec("reasoning_gym"), reason="no reasoning-gym; make test installs it")


@needs_package
@pytest.mark.parametrize(("split", "count"), [("train", 88), ("test", 42)])
def test_problems_are_sound_numbered_and_of_all_templates_of_their_split(split: str, count: int) -> None:
    problems = TASK.generate(count, split, seed=0)
    assert [problem.id for problem in problems[:2]] == [f"gsm_symbolic-{split}-000{number}" for number in (1, 2)]
    assert {(problem.task, problem.split) for problem in problems} == {("gsm_symbolic", split)}
    assert len({problem.question for problem in problems}) == count
    assert len({problem.canonical for problem in problems}) >= count // 3  # in turn, not the easiest alone
    for problem in problems:
        assert problem.level == len(problem.details["steps"])
        assert run_calls(TASK, problem, TASK.gold_calls(problem)).sound


@needs_package
def test_no_template_is_learnt_from_and_asked() -> None:
    used = {split: {problem.canonical for problem in TASK.generate(60, split, 0)} for split in ("train", "test")}
    assert not used["train"] & used["test"]


@needs_package
def test_the_same_arguments_give_the_same_problems() -> None:
    assert TASK.generate(9, "test", 5, levels=(2, 3)) == TASK.generate(9, "test", 5, levels=(2, 3))
    assert TASK.generate(9, "test", 5) != TASK.generate(9, "test", 6)


@needs_package
def test_of_the_package_nothing_but_templates_is_run() -> None:
    assert len(templates()) == 85
    assert not [name for name in sys.modules if name.startswith("reasoning_gym")]


@needs_package
@pytest.mark.slow
def test_the_page_has_this_table() -> None:
    assert pages.written("gsm-symbolic") == counted()


# Templates written here


def drawn(monkeypatch: pytest.MonkeyPatch, solution: str, answer: str = "8") -> tuple[Problem | None, str]:
    made = {"question": "Ann has 3 pens, Bob 5 more.", "answer": answer, "metadata": {"answer_cot": solution}}
    monkeypatch.setattr(gsm_symbolic, "templates", lambda: {7: lambda rng: made})
    return TASK.draw(7, random.Random(0))


@pytest.mark.parametrize(
    "solution",
    ["3 + 5 = 8\n#### 8", "\u20ac3 + \u20ac5 = \u20ac8\n#### 8", "3 red pens/box + 5 pens/box = 8 pens/box.\n#### 8"],
)
def test_currencies_and_units_of_equations_are_passed_over(monkeypatch: pytest.MonkeyPatch, solution: str) -> None:
    problem, why = drawn(monkeypatch, solution)
    assert (problem.details["steps"], why) == ([["Sum", "3", "5"]], CONVERTED)


@pytest.mark.parametrize(
    ("solution", "answer", "why"),
    [
        ("3 * 5 = 14\n14 - 6 = 8\n#### 8", "8", "an equation does not hold, or cannot be read"),
        ("5 = 5 pens\n3 + 5 = 8\n#### 8", "8", "an equation does not hold, or cannot be read"),
        ("Half of it is 4.\n4 + 4 = 8\n#### 8", "8", "a number comes from nowhere"),
        ("3 + 5 = 8\n#### 8", "9", "the solution gives another answer"),
        ("It is 8.\n#### 8", "8", "no calculation to read"),
    ],
)
def test_what_is_no_chain_says_why(monkeypatch: pytest.MonkeyPatch, solution: str, answer: str, why: str) -> None:
    assert drawn(monkeypatch, solution, answer) == (None, why)


def test_too_few_problems_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn(monkeypatch, "3 + 5 = 8\n8 + 5 = 13\n#### 13", "13")  # one template, without any other name or number
    split, other = ("train", "test") if TASK.draw(7, random.Random(0))[0].split == "train" else ("test", "train")
    for asked, there in ((split, 1), (other, 0)):
        with pytest.raises(ValueError, match=rf"^gsm_symbolic: 2 {asked} problems asked for, only {there} found$"):
            TASK.generate(2, asked, 0)


@pytest.mark.parametrize(("split", "levels", "what"), [("dev", (2,), "split"), ("test", (9,), "levels")])
def test_an_unknown_split_or_level_is_one_line(split: str, levels: tuple[int, ...], what: str) -> None:
    with pytest.raises(ValueError, match=rf"^gsm_symbolic: {what} must be "):
        TASK.generate(1, split, 0, levels)


def test_without_the_package_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (pinned,) = project["optional-dependencies"]["gsm-symbolic"]
    monkeypatch.setattr(gsm_symbolic, "find_spec", lambda name: None)
    monkeypatch.setattr(gsm_symbolic, "templates", templates.__wrapped__)
    with pytest.raises(ValueError, match=rf"^gsm_symbolic: needs reasoning-gym; pip install --no-deps {pinned}$"):
        TASKS["gsm_symbolic"].generate(1, "train", 0)


def counted() -> str:
    """`DRAWS` of each template, by outcome and by the template's split."""
    rng, counts, whole, some = random.Random(0), Counter(), 0, 0
    for number in templates():
        outcomes = Counter(str(TASK.draw(number, rng)[1]) for _ in range(DRAWS))
        counts += outcomes
        some, whole = some + (CONVERTED in outcomes), whole + (set(outcomes) == {CONVERTED})
    header = f"{len(templates())} templates: {some} give chains, {whole} at every draw\n"
    return f"```\n{header}{table(counts, CONVERTED, 'draws')}\n```\n"


if __name__ == "__main__":
    pages.write("gsm-symbolic", counted())

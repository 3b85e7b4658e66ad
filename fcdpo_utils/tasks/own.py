"""A task of one's own, from one file or one notebook cell: functions, problems, one worked example; no gold chains.

A task's file is its user's code and runs as such, when a run or a check names it; what a model writes is never
evaluated. Knows nothing of models or runs.
"""

import inspect
import re
import runpy
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcdpo_utils import store
from fcdpo_utils.arithmetic import NumberTools, parse_answer
from fcdpo_utils.episode import run_calls
from fcdpo_utils.fingerprint import PACKAGE
from fcdpo_utils.numbers import answers_equal
from fcdpo_utils.problems import TASKS, Problem, Task, check_request, folded, register, split_of
from fcdpo_utils.settings import Limits
from fcdpo_utils.tasks.rows import json_lines
from fcdpo_utils.tools import Toolset, tool

SHIPPED: set[str] = set()  # names that are taken: the tasks of this package
Rows = str | Path | Iterable[dict[str, Any]] | Callable[[], Iterable[dict[str, Any]]]
Check = str | Callable[[Problem, str], bool]


class OwnTaskError(ValueError):
    """One line: what is wrong with a task of one's own, and where."""


def _require(holds: object, fault: str) -> None:
    if not holds:
        raise OwnTaskError(fault)


def _told(error: BaseException) -> str:
    """An error in one line; of one in a user's code also its kind."""
    text, place = " ".join(str(error).split())[:200], traceback.extract_tb(error.__traceback__)[-1].filename
    return text if Path(place).is_relative_to(PACKAGE) else f"{type(error).__name__}: {text}".rstrip(": ")


def own_task(
    name: str,
    tools: type[Toolset],
    instruction: str,
    problems: Rows,
    example: tuple[str, Sequence[str]],
    answer: Check = "exact",
    constants: Sequence[int | str] = (),
) -> "OwnTask":
    """Make a task and let runs know it by `name`. Raises `OwnTaskError`, one line, where it cannot be one.

    `tools`: where the example calls `Answer` and they have none, they get one. `problems`: rows with "question" and
    "answer", and perhaps "calls" (a gold chain, for the scripted teacher) and "level" (from 1); a JSONL file (relative
    to the file that calls this), a list, or a function that gives them. `example`: a question and the calls that solve
    it, shown in every prompt. `answer`: how one is compared, "number", "exact" (text, up to spaces), or a function
    (problem, answer) -> bool. `constants`: numbers that may enter a call although nothing states them.
    """
    simple = re.fullmatch("[a-z_][a-z0-9_]*", str(name))
    _require(simple, f"own_task: a name has small letters, digits and _, got {name!r}")
    _require(name not in SHIPPED, f"{name}: the name is taken by a task of this package")
    how = f'answer must be "number", "exact" or a function (problem, answer), got {answer!r}'
    _require(answer in ("number", "exact") or callable(answer), f"{name}: {how}")
    kind = isinstance(tools, type) and issubclass(tools, Toolset)
    _require(kind, f"{name}: tools must be a subclass of Toolset, got {str(tools)[:60]}")
    try:
        question, calls = example
        if {type(text) for text in (question, *calls)} != {str} or isinstance(calls, str) or not calls:
            raise TypeError("example must be a question and a list of calls, all of them text")
        tools = _with_answer(tools, next((call for call in calls if call.startswith("Answer(")), ""), answer)
        state = tools()
        state.question = question
        for call in calls:
            state.call(call)  # what it answers is the example's answer
        shown = Problem(f"{name}-example", name, "example", 1, question, str(state.answer), "", {"calls": [*calls]})
        if callable(answer):  # it fails here, or unseen in every chain
            answer(shown, shown.answer)
    except Exception as error:
        raise OwnTaskError(f"{name}: {_told(error)}") from None
    file = sys._getframe(1).f_globals.get("__file__")
    register(OwnTask(name, {tools.__name__: tools}, str(instruction), problems, shown, answer, file, tuple(constants)))
    return TASKS[name]


class _WordTools(Toolset):
    @tool('Answer("Paris")')
    def Answer(self, text: str) -> str:
        """Record the final answer."""
        self.answer = text
        return "Answer recorded"


def _with_answer(tools: type[Toolset], said: str, answer: Check) -> type[Toolset]:
    """`tools`, with an Answer where they have none and the example calls it. Raises TypeError where they are none."""
    methods = {own: getattr(tools, own) for own in tools.functions() if own not in Toolset.functions()}
    if taken := methods.keys() & {*dir(Toolset())}:
        raise TypeError(f"{min(taken)} is a name that every toolset uses itself; rename yours")
    if not methods:
        raise TypeError('no method is marked with @tool("Example(1)")')
    if not said or "Answer" in methods:
        return tools
    in_words = answer != "number" and ('"' in said or "'" in said)
    methods["Answer"] = _WordTools.Answer if in_words else NumberTools.Answer
    return type(tools.__name__, (tools,), methods | {"__module__": tools.__module__})


@dataclass(eq=False)
class OwnTask(Task):
    """What `own_task` makes. `shown`: the worked example. `file`: where it is defined, None for a notebook's cell."""

    name: str
    toolsets: dict[str, type[Toolset]]
    instruction: str
    problems: Rows
    shown: Problem
    answer: Check
    file: str | None
    constants: tuple[int | str, ...] = ()

    @property
    def own_code(self) -> list[str]:
        """The task's name with a digest of its file, or of its cell's functions; and the rooms that they extend."""
        kinds = self.toolset(None).__mro__
        parts = [part for kind in kinds for part in vars(kind).values() if inspect.isfunction(part)]
        code = store.file_digest(Path(self.file)) if self.file else ""
        with suppress(OSError, TypeError):  # no source to be had
            code = code or store.digest(*map(inspect.getsource, [*parts, *filter(callable, [self.answer])]))
        return [f"{self.name} {code[:16]}", *{kind.__module__ for kind in kinds}]

    def example(self) -> Problem:
        return self.shown

    def solution(self, problem: Problem, rng: Any = None) -> list[str]:
        """The row's own calls. Raises `OwnTaskError` where it has none."""
        fix = 'add "calls" to its row, or let a model be the teacher (teacher.kind=server or local)'
        _require(problem.details.get("calls"), f"{self.name}: {problem.id} has no gold chain; {fix}")
        return list(problem.details["calls"])

    def is_correct(self, problem: Problem, answer: str | None) -> bool:
        with suppress(Exception):  # a fault in a user's function costs a chain, not a night of them; a check finds it
            if answer is None or callable(self.answer):
                return answer is not None and bool(self.answer(problem, answer))
            if self.answer == "exact":
                return str(answer).split() == problem.answer.split()
            return answers_equal(parse_answer(str(answer)), parse_answer(problem.answer))
        return False

    def generate(self, count: int, split: str, seed: int, levels: Sequence[int] = ()) -> list[Problem]:
        """`count` problems of `split`, which the hash of a question decides; of `levels`, or all. `seed` picks.

        More rows change neither the split nor the id of those that were there. Raises `OwnTaskError` for rows with
        faults, or too few of them.
        """
        check_request(self.name, split, (1,), (1,))
        problems, faults = self.read() if count else ([], [])
        _require(not faults, f"{[*faults, ''][0]} ({len(faults)} faulty rows in all; see fcdpo task check)")
        among = [p for p in problems if p.split == split and (not levels or p.level in levels)]
        have = f"only {len(among)} of {len(problems)} rows are of that split (of ten, about 7 train, 3 test) and level"
        _require(count <= len(among), f"{self.name}: {count} {split} problems asked for, {have}; ask for fewer")
        return sorted(among, key=lambda p: store.digest(f"{seed}", p.canonical))[:count]

    def read(self) -> tuple[list[Problem], list[str]]:
        """The problems of all rows that can be used, and the faults of the others, one line each."""
        found: dict[str, tuple[str, Problem]] = {folded(self.shown.question): ("the example", self.shown)}
        faults, rows = [], []
        try:
            rows = self._rows()
            _require(rows, "there are none")
        except Exception as error:  # of a file, or of a user's generator
            faults.append(f"{self.name}: problems: {_told(error)}")
        for place, row in rows:
            try:
                problem = self._problem(row)
                twin = found.setdefault(problem.canonical, (place, problem))
                _require(twin[1] is problem, f"asks the same as {twin[0]}")
            except OwnTaskError as error:
                faults.append(f"{self.name}: {place}: {error}")
        return [problem for _, problem in found.values()][1:], faults

    def _rows(self) -> list[tuple[str, Any]]:
        """Where each row is, and what is there."""
        if isinstance(self.problems, str | Path):
            path = Path(self.file or "here").parent / self.problems
            return [(f"{path.name} {place}", row) for place, row in json_lines(path)]
        rows = self.problems() if callable(self.problems) else self.problems
        return [(f"row {number}", row) for number, row in enumerate(rows, start=1)]

    def _problem(self, row: Any) -> Problem:
        """A row as a problem. Raises `OwnTaskError`: what is wrong with it."""
        given = row if isinstance(row, dict) else {}
        question, answer, calls, level = map(given.get, ("question", "answer", "calls", "level"))
        whole = isinstance(question, str) and question.strip() and type(answer) in (str, int, float)
        _require(whole, f'expected {{"question": text, "answer": text or number}}, got {str(row)[:60]}')
        listed = calls is None or (isinstance(calls, list) and {type(call) for call in calls} <= {str})
        _require(listed, f"calls must be a list of texts, got {str(calls)[:60]}")
        _require(level is None or (type(level) is int and level > 0), f"level must be a number from 1, got {level!r}")
        canonical, details = folded(question), {"calls": calls} if calls else {}
        split = split_of(canonical)
        text = f"{answer:.12g}" if isinstance(answer, float) else str(answer).strip()  # 6 * 0.35 is 2.1
        name = f"{self.name}-{split}-{store.digest(canonical)[:10]}"
        problem = Problem(name, self.name, split, level or 1, question.strip(), text, canonical, details)
        right = self.is_correct(problem, problem.answer)
        _require(right, f"its answer {problem.answer[:40]!r} is not right by answer={self.answer!r}")
        why = self._unsound(problem, calls) if calls else ""
        _require(not why, f"its calls are not sound: {why}")
        return problem

    def _unsound(self, problem: Problem, calls: Sequence[str]) -> str:
        """Why a chain of these calls is not sound, in words; "" where it is."""
        chain = run_calls(self, problem, calls, limits=Limits(calls=len(calls) + 1))
        rejected = next((f"{step.call} was answered {step.result!r}; " for step in chain.steps if step.error), "")
        if chain.solved and not chain.sound:
            return f"{rejected}{chain.answer} is no result of a call, or a call has a number that nothing states"
        return "" if chain.sound else f"{rejected}they end in {chain.outcome}, the answer being {chain.answer}"

    def faults(self) -> Iterator[str]:
        """What is wrong with the functions' help and the worked example, one line each; `read` tells of the rows."""
        functions, calls = self.toolset(None).functions(), self.shown.details["calls"]
        own = [function for name, function in functions.items() if name not in Toolset.functions()]
        for function in own:
            said = f"{self.name}: the example of {function.name}, {function.example!r},"
            first, again = (self.start(self.shown).call(function.example) for _ in range(2))
            if not function.example.startswith(f"{function.name}(") or first.error not in (None, "refused"):
                yield f"{said} is no call of it: {first.text}"
            elif first.text.startswith(f"Error: {function.name} failed ("):
                yield f"{said} fails: {first.text}; return text, or raise ToolError"
            elif first != again:
                was = f"{first.text!r}, then {again.text!r}"
                yield f"{said} gives {was}: what a chain changes belongs in self, made in __init__"
        if why := self._unsound(self.shown, calls):
            yield f"{self.name}: the example is not sound: {why}"
            return
        state = self.start(self.shown)
        end = calls[next(place for place, call in enumerate(calls) if state.call(call) and state.answer is not None) :]
        echoes = [end[0].replace(end[0].partition("(")[0], f.name, 1) for f in own if len(f.types) == 1]
        guesses = [end, *([echo, *end] for echo in echoes)]  # the answer alone, or said before it is given
        if guess := next((guess for guess in guesses if not self._unsound(self.shown, guess)), None):
            yield f"{self.name}: a guess would count as sound: {' '.join(guess)}"


def load(path: str) -> list[OwnTask]:
    """The tasks that a file defines, known by name from here on. Runs the file: it is its user's own code."""
    for name in [name for name, task in TASKS.items() if getattr(task, "file", None) == path]:
        del TASKS[name]
    file = Path(path)
    _require(file.suffix == ".py" and file.is_file(), f"no file {file}; expected Python that calls own_task")
    sys.path.insert(0, str(file.parent))  # as Python does: it may import what is beside it
    try:
        runpy.run_path(path, run_name=f"task_{file.stem}")
    except OwnTaskError as error:
        raise OwnTaskError(f"{file.name}: {error}") from None
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1]
        raise OwnTaskError(f"{file.name} line {line}: {_told(error)}") from None
    finally:
        sys.path.remove(str(file.parent))
    made = [task for task in TASKS.values() if getattr(task, "file", None) == path]
    _require(made, f"{file.name} defines no task; expected task = own_task(...)")
    return made

"""A student, or whoever stands in for it, asked one question: its calls and their results appear one by one.

The functions run as in training; what the model writes is never evaluated. Reads the records and adapter of a run.
"""

import random
from collections.abc import Sequence
from pathlib import Path

from fcdpo_utils import store
from fcdpo_utils.episode import Chain, Episode, Step
from fcdpo_utils.lab.settings import know_tasks
from fcdpo_utils.pipeline import manifest
from fcdpo_utils.plain import Sampling
from fcdpo_utils.problems import TASKS, Problem, Task
from fcdpo_utils.settings import Limits
from fcdpo_utils.students import load_student
from fcdpo_utils.tasks.drills import Drills
from fcdpo_utils.tasks.folio import FOLIO
from fcdpo_utils.tasks.logic.formulas import parse_formula
from fcdpo_utils.tasks.logic.theories import say
from fcdpo_utils.teacher import Sample, SampleRequest, Teacher
from fcdpo_utils.teachers import LocalTeacher, build_teacher
from fcdpo_utils.tools import ToolError


class _Shown(Episode):
    def step(self, text: str) -> Step:
        step = super().step(text)
        print(f"{'!' if step.error else ' '} {step.call:36} -> {step.result}", flush=True)
        return step


def ask(model: Teacher, problem: Problem, limits: Limits = Limits()) -> Chain:
    """Let `model` answer: each call is printed as it comes (`!`: rejected), then the answer. Returns the chain.

    Nobody knows what is right here: of its labels only the printed one counts, whether the answer follows. Raises
    `TeacherError` where the model cannot be asked.
    """
    task, made = TASKS[problem.task], list[Sample]()
    shown = _Shown(task, problem, limits)

    class Question(SampleRequest):
        def episode(self) -> Episode:
            return shown

    model.run([Question(task, problem, 0, limits)], made.append)
    chain, stopped = made[0].chain, "" if shown.state.stopped else f" ({made[0].chain.outcome})"
    follows = chain.answer is not None and shown.state.answer_follows() and shown.is_grounded()
    how = "which follows from the calls" if follows else "which does not follow from the calls"
    print(f"no answer{stopped}" if chain.answer is None else f"answer: {chain.answer}, {how}{stopped}")
    return chain


def problem_of(task: Task, question: str, toolset: str | None = None) -> Problem:
    """A question without an answer, for logic in formulas. Raises ValueError for one that `task` cannot read."""
    details = {}
    if task.name == "fol":
        *premises, goal = (part.strip() for part in question.split(";"))
        try:
            *told, last = (say(parse_formula(text), random.Random(0)) for text in (*premises, goal))
        except ToolError as error:
            form = '"big(Lisa); big(x) -> guard(x); guard(Lisa)", the statement last'
            raise ValueError(f"fol: English cannot be read here; ask in formulas such as {form} ({error})") from None
        question, details = " ".join([*told, f"Statement: {last}"]), {"premises": premises, "goal": goal}
    if isinstance(task, FOLIO | Drills):
        raise ValueError(f"{task.name}: its problems cannot be read from text; ask another task")
    return Problem("question", task.name, "asked", 1, question, "", "", details | {"toolset": toolset})


def ask_run(
    run: Path, task: str, question: str, untouched: bool = False, temperature: float = 0.0, set: Sequence[str] = ()
) -> Chain:
    """Ask the student of a run, trained or `untouched`; greedy at temperature 0, else sampled by the seed.

    `set` changes settings of the run: those of `teacher` let that model (kind local or server) stand in.
    """
    settings = manifest.recorded_settings(run, "01" if untouched else "04").changed(set)
    know_tasks(settings)
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; expected one of {', '.join(TASKS)}")
    if any(change.startswith("teacher.") for change in set):
        if settings.teacher.kind == "scripted":
            raise ValueError("the scripted teacher knows no new problems; set teacher.kind=server or local")
        teacher = settings.teacher.model_copy(update={"temperature": temperature})
        model = build_teacher(settings.model_copy(update={"teacher": teacher}))
    else:
        adapter = None if untouched else store.require(run / "adapter" / "adapter_config.json", "04").parent
        sampling = Sampling(temperature, settings.evaluation.turn_tokens, 1, settings.seed)
        model = LocalTeacher(*load_student(settings.student, adapter), sampling)
    toolset = settings.tasks[task].toolset[:1] if task in settings.tasks else ()
    return ask(model, problem_of(TASKS[task], question, *toolset), settings.limits)

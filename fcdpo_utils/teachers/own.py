"""The student as a teacher: its own chains on problems that it was not warmed up on, labelled by running them."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from fcdpo_utils.chains import load_chains
from fcdpo_utils.episode import run_calls
from fcdpo_utils.onpolicy import Chains, split_problems, warm_up
from fcdpo_utils.plain import Engine, Progress
from fcdpo_utils.problems import TASKS, Problem, load_problems
from fcdpo_utils.settings import Limits, Settings, TeacherSettings
from fcdpo_utils.teachers import build_teacher
from fcdpo_utils.teachers.making import make_chains
from fcdpo_utils.trainer import distributed_state


def own_chains(
    path: Path, problems: list[Problem], settings: Settings, adapter: Path | None, progress: Progress
) -> Chains:
    """Chains that the student with `adapter` samples, kept in `path`; none where the settings want none.

    By default a chain ends at its first error: what an untrained student writes after one is noise.
    """
    student, options = settings.student, settings.own_chains
    if not options.samples:
        return []
    given = student.model_dump(exclude={"source"}) | options.model_dump(exclude={"errors", "mended"})
    given |= {"adapter": adapter and str(adapter), "turn_tokens": settings.evaluation.turn_tokens}
    concurrency = settings.evaluation.batch_size
    teacher = TeacherSettings(kind="local", model=student.source, concurrency=concurrency, **given)
    limits = settings.limits.model_copy(update={"errors": options.errors})
    own = settings.model_copy(update={"teacher": teacher, "limits": limits})
    make_chains(path, problems, own, build_teacher, progress("own chains"))
    made = load_chains(path)
    return [*made, *mended(made, problems, settings.limits)] if options.mended else made


def mended(chains: Chains, problems: Iterable[Problem], limits: Limits) -> Chains:
    """The student's chains up to their first rejected call, each with how the teacher goes on from there.

    Only of those that begin as the teacher's solution does, so that what follows it belongs to what came before. Each
    is valid in the end; its rejected call is the student's own, as in DAgger (Ross et al., arXiv 1011.0686).
    """
    by_id, found = {problem.id: problem for problem in problems}, []
    for name, chain in chains:
        place = next((place for place, step in enumerate(chain.steps) if step.error), None)
        if place is None:
            continue
        task, problem, calls = TASKS[name], by_id[chain.problem_id], [step.call for step in chain.steps[: place + 1]]
        try:
            solution = task.gold_calls(problem)
        except ValueError:  # it has none
            continue
        gold = [step.call for step in run_calls(task, problem, solution).steps]
        whole = run_calls(task, problem, [*calls, *gold[place:]], limits)
        if calls[:-1] == gold[:place] and whole.recovered:
            found.append((name, whole))
    return found


class Start(NamedTuple):
    """What preference training starts from: the student's adapter if any, new problems, the chains of both authors."""

    adapter: Path | None
    problems: list[Problem]
    teachers: Chains
    own: Chains


def prepare(run_dir: Path, settings: Settings, engine: Engine, progress: Progress) -> Start:
    """The warm-up and the student's own chains of a run whose teacher is done; what is made is not made again."""
    first, rest = split_problems(load_problems(run_dir / "problems.jsonl", "train"), settings)
    teachers = load_chains(run_dir / "chains.jsonl")
    adapter = warm_up(run_dir / "warm_up", first, teachers, settings, engine, progress)
    with distributed_state().main_process_first():  # it makes the chains, the others find them
        own = own_chains(run_dir / "own_chains.jsonl", rest, settings, adapter, progress)
    return Start(adapter, rest, teachers, own)

"""The student as a teacher: its own chains on problems that it was not warmed up on, labelled by running them."""

from pathlib import Path
from typing import NamedTuple

from fcdpo_utils.chains import load_chains
from fcdpo_utils.onpolicy import Chains, split_problems, warm_up
from fcdpo_utils.plain import Engine, Progress
from fcdpo_utils.problems import Problem, load_problems
from fcdpo_utils.settings import Settings, TeacherSettings
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
    given = student.model_dump(exclude={"source"}) | options.model_dump(exclude={"errors"})
    given |= {"adapter": adapter and str(adapter), "turn_tokens": settings.evaluation.turn_tokens}
    concurrency = settings.evaluation.batch_size
    teacher = TeacherSettings(kind="local", model=student.source, concurrency=concurrency, **given)
    limits = settings.limits.model_copy(update={"errors": options.errors})
    own = settings.model_copy(update={"teacher": teacher, "limits": limits})
    make_chains(path, problems, own, build_teacher, progress("own chains"))
    return load_chains(path)


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

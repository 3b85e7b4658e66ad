"""`fcdpo compare A B`: what differs between two runs, whether more than chance, and which problems flipped."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fcdpo_utils.episode import Chain
from fcdpo_utils.evaluation import McNemar, mcnemar
from fcdpo_utils.pipeline import baselines, manifest


class Answered(NamedTuple):
    """One held-out problem and what the trained students of both runs made of it."""

    task: str
    question: str
    first: Chain
    second: Chain


def answered_by_both(first: Path, second: Path) -> list[Answered]:
    """The problems that both runs asked, in the order of the first. Raises ValueError where there are none."""
    for run in (first, second):
        baselines.require_whole(run, "comparison")
    of_runs = map(baselines.answered, (first, second))
    sides = [{(problem["task"], problem["question"]): chain for problem, chain in run} for run in of_runs]
    if not (shared := [key for key in sides[0] if key in sides[1]]):
        raise ValueError(f"{first} and {second} asked no problem in common; compare runs of the same tasks and seed")
    return [Answered(*key, *(side[key] for side in sides)) for key in shared]


def flipped(answered: list[Answered]) -> list[Answered]:
    """Those that one student solved soundly and the other did not."""
    return [each for each in answered if each.first.sound != each.second.sound]


def paired(answered: list[Answered]) -> dict[str, tuple[int, int, int, McNemar]]:
    """By task: problems, sound in the first and in the second run, and McNemar's test between them."""
    tests = {}
    for task in dict.fromkeys(each.task for each in answered):
        sound = [(each.first.sound, each.second.sound) for each in answered if each.task == task]
        first, second = zip(*sound, strict=True)
        tests[task] = len(sound), sum(first), sum(second), mcnemar(first, second)
    return tests


def differences(first: Path, second: Path) -> dict[str, list[tuple[str, Any, Any]]]:
    """Settings, and metrics that a baseline would hold, by name where the two runs differ."""
    runs, found = (first, second), {}
    settings = [manifest.flat(manifest.recorded_settings(run, "05").model_dump(mode="json")) for run in runs]
    for kind, sides in (("settings", settings), ("metrics", [baselines.judged(run) for run in runs])):
        found[kind] = [(name, *(side.get(name) for side in sides)) for name in manifest.differing(*sides)]
    return found


def compare(first: Path, second: Path, show: int = 3) -> Iterator[str]:
    """The comparison in lines; both chains of the first `show` flipped problems."""
    answered = answered_by_both(first, second)
    for kind, rows in differences(first, second).items():
        yield f"{kind} that differ: {len(rows)}"
        yield from (f"  {name}: {before} -> {after}" for name, before, after in rows)
    yield f"{'task, sound':14}{'problems':>9}{'first':>9}{'second':>9}{'gained':>8}{'lost':>6}{'p':>9}"
    for task, (count, before, after, test) in paired(answered).items():
        shares = f"{before / count:>9.1%}{after / count:>9.1%}"
        yield f"{task:14}{count:>9}{shares}{test.gained:>8}{test.lost:>6}{test.p:>9.2g}"
    differing = flipped(answered)
    yield f"problems that flipped: {len(differing)}"
    yield from (f"  {'gained' if each.second.sound else 'lost  '} {each.first.problem_id}" for each in differing)
    for each in differing[:show]:
        yield f"\n{each.first.problem_id}: {each.question}\n\nfirst:\n{each.first.transcript()}"
        yield f"\nsecond:\n{each.second.transcript()}"

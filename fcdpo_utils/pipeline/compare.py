"""`fcdpo compare A B`: what differs between two runs, whether more than chance, and which problems flipped."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fcdpo_utils.episode import Chain
from fcdpo_utils.evaluation import McNemar, mcnemar
from fcdpo_utils.pipeline import baselines, manifest
from fcdpo_utils.views import viewer

Answers = dict[tuple[str, str], tuple[Chain, Chain]]  # by (task, question): what the students of both runs made of it


def answered_by_both(first: Path, second: Path) -> Answers:
    """The problems that both runs asked, in the order of the first. Raises ValueError where there are none."""
    sides = []
    for run in (first, second):
        baselines.require_whole(run, "comparison")
        problems, chains = viewer.of_run(run, ["after"])
        sides.append({(p.task, p.question): chain for p, chain in zip(problems, chains["after"], strict=True)})
    if not (shared := {key: (sides[0][key], sides[1][key]) for key in sides[0] if key in sides[1]}):
        raise ValueError(f"{first} and {second} asked no problem in common; compare runs of the same tasks and seed")
    return shared


def paired(answers: Answers) -> dict[str, tuple[int, int, int, McNemar]]:
    """By task: problems, sound in the first and in the second run, and McNemar's test between them."""
    tests = {}
    for name in dict.fromkeys(task for task, _ in answers):
        pairs = [pair for (task, _), pair in answers.items() if task == name]
        first, second = ([chain.sound for chain in side] for side in zip(*pairs, strict=True))
        tests[name] = len(pairs), sum(first), sum(second), mcnemar(first, second)
    return tests


def differences(first: Path, second: Path) -> dict[str, list[tuple[str, Any, Any]]]:
    """Settings, and metrics that a baseline would hold, by name where the two runs differ."""
    runs, found = (first, second), {}
    settings = [manifest.flat(manifest.recorded_settings(run, "05").model_dump(mode="json")) for run in runs]
    for kind, sides in (("settings", settings), ("metrics", [baselines.judged(run) for run in runs])):
        found[kind] = [(name, *(side.get(name) for side in sides)) for name in manifest.differing(*sides)]
    return found


def compare(first: Path, second: Path, show: int = 3) -> Iterator[str]:
    """The comparison in lines; both chains of the first `show` problems that one student solved soundly alone."""
    answers = answered_by_both(first, second)
    for kind, rows in differences(first, second).items():
        yield f"{kind} that differ: {len(rows)}"
        yield from (f"  {name}: {before} -> {after}" for name, before, after in rows)
    yield f"{'task, sound':14}{'problems':>9}{'first':>9}{'second':>9}{'gained':>8}{'lost':>6}{'p':>9}"
    for task, (count, before, after, test) in paired(answers).items():
        shares = f"{before / count:>9.1%}{after / count:>9.1%}"
        yield f"{task:14}{count:>9}{shares}{test.gained:>8}{test.lost:>6}{test.p:>9.2g}"
    flipped = [(question, *pair) for (_, question), pair in answers.items() if pair[0].sound != pair[1].sound]
    yield f"problems that flipped: {len(flipped)}"
    yield from (f"  {'gained' if after.sound else 'lost  '} {before.problem_id}" for _, before, after in flipped)
    for question, before, after in flipped[:show]:
        yield f"\n{before.problem_id}: {question}\n\nfirst:\n{before.transcript()}"
        yield f"\nsecond:\n{after.transcript()}"

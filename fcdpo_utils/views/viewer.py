"""A viewer of chains: each held-out problem, call by call, all students in lockstep. HTML and JavaScript, no kernel.

What models wrote reaches the page as JSON and is shown as text, so none of it is ever markup.
"""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fcdpo_utils import store
from fcdpo_utils.episode import Chain
from fcdpo_utils.problems import Problem, load_problems

STUDENTS = ("before", "warm_up", "after")


def fragment(problems: Sequence[Problem], chains: Mapping[str, Sequence[Chain]]) -> str:
    """The viewer as a part of a page: one chain of each student, by name, for each problem, in the same order."""

    def shown(student: str, chain: Chain) -> dict[str, Any]:
        steps = [[step.call, step.result, step.error] for step in chain.steps]
        outcome, name = "sound" if chain.sound else chain.outcome, student.replace("_", " ")
        return {"student": name, "outcome": outcome, "sound": chain.sound, "steps": steps}

    rows = [
        {name: getattr(problem, name) for name in ("id", "task", "level", "question", "answer")}
        | {"chains": [shown(student, made[place]) for student, made in chains.items()]}
        for place, problem in enumerate(problems)
    ]
    data = store.dump(rows).replace("<", "\\u003c")  # so that no text ends the script that holds it
    return Path(__file__).with_suffix(".html").read_text(encoding="utf-8").replace('"DATA"', data)


def page(problems: Sequence[Problem], chains: Mapping[str, Sequence[Chain]]) -> str:
    """The viewer as a page of its own."""
    whole = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return whole.replace("VIEWER", fragment(problems, chains))


def frame(problems: Sequence[Problem], chains: Mapping[str, Sequence[Chain]], height: int = 640) -> str:
    """The page in a frame, for a notebook's output."""
    style = f"width: 100%; height: {height}px; border: 0"
    inner = html.escape(page(problems, chains))
    return f'<div><iframe title="chains, step by step" style="{style}" srcdoc="{inner}"></iframe></div>'


def of_run(run_dir: Path, students: Sequence[str] = ()) -> tuple[list[Problem], dict[str, list[Chain]]]:
    """The held-out problems of a run and the chains of these students, by default of all that 05 asked, in their order.

    Raises StoreError where 05 has not run.
    """
    problems = load_problems(store.require(run_dir / "problems.jsonl", "01"), "test")
    if not students:
        results = store.read_json(store.require(run_dir / "metrics.json", "05"))["tasks"].values()
        students = [when for when in STUDENTS if when != "warm_up" or any(when in result for result in results)]
    files = {when: store.require(run_dir / f"chains_{when}.jsonl", "05") for when in students}
    made = {when: {record["problem_id"]: record for record in store.iterate(path)} for when, path in files.items()}
    asked = [problem for problem in problems if all(problem.id in records for records in made.values())]
    return asked, {when: [Chain.from_record(records[p.id]) for p in asked] for when, records in made.items()}

"""GSM-Symbolic (Mirzadeh et al., arXiv 2410.05229) as chains: word problems from the templates of `reasoning-gym`.

Each template is a test question of GSM8K with other names and numbers. Some templates are for training and others are
held out, so that what is asked was never learnt with other numbers. The solution that comes with a question says
its equations in words and units; those that hold become gold calls, as for GSM8K, and the chain must run soundly.
Of the package only the templates are run: neither its scorers nor what it imports.
"""

import random
import re
from ast import literal_eval
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from runpy import run_path
from types import SimpleNamespace
from typing import Any

from fcdpo_utils.arithmetic import Arithmetic
from fcdpo_utils.episode import run_calls
from fcdpo_utils.problems import Problem, check_request, folded, split_of
from fcdpo_utils.tasks.gsm8k import GSM8K, equations_in
from fcdpo_utils.tasks.rows import CONVERTED

PACKAGE = "reasoning_gym"
MIN_ROUNDS = 20  # through all templates, before fewer problems than were asked for are all
_UNITS = re.compile(r"[\u20ac\u00a3]|(?<=[\d)])(?: [a-z]+)*/[a-z]+", re.IGNORECASE)  # "3 pens/box": GSM8K has few such


@cache
def templates() -> dict[int, Callable[[random.Random], dict[str, Any]]]:
    """The templates by their numbers, without those that the package itself lists as flawed.

    Raises ValueError, one line, where it is not installed.
    """
    from unittest.mock import patch  # slow to import

    if not (spec := find_spec(PACKAGE)):
        raise ValueError("gsm_symbolic: needs reasoning-gym; pip install --no-deps reasoning-gym==0.1.25")
    root, found = Path(spec.submodule_search_locations[0]), {}
    folder, parts = root / "arithmetic" / "gsm_symbolic", SimpleNamespace(**run_path(str(root / "utils.py")))
    # to import the package runs all of it, which needs eleven others; its templates use two functions
    with patch.dict("sys.modules", {PACKAGE: parts, f"{PACKAGE}.utils": parts}):
        for path in sorted(folder.glob("generators_*.py")):
            found |= {int(name[9:]): made for name, made in run_path(str(path)).items() if name.startswith("generate_")}
    listed = re.search(r"tasks_need_fix = (\[.*?\])", (folder / "gsm_symbolic.py").read_text(encoding="utf-8"), re.S)
    return {number: found[number] for number in sorted(found.keys() - set(literal_eval(listed[1])))}


class GSMSymbolic(Arithmetic):
    """Templates of real wording; level is the number of gold steps."""

    name, levels, constants = "gsm_symbolic", GSM8K.levels[1:], GSM8K.constants

    def draw(self, template: int, rng: random.Random) -> tuple[Problem | None, str]:
        """One problem of a template, without its id, and `CONVERTED`; or why it has no gold chain."""
        drawn = templates()[template](rng)
        solution = _UNITS.sub("", drawn["metadata"]["answer_cot"])
        if any("=" in line and not equations_in(line) for line in solution.splitlines()):
            return None, "an equation does not hold, or cannot be read"
        problem, why = GSM8K().convert({"question": drawn["question"], "answer": solution})
        if why != CONVERTED:
            return None, why
        if problem.details["constants"]:
            return None, "a number comes from nowhere"
        canonical, details = f"{self.name} {template}", {"steps": problem.details["steps"], "template": template}
        problem = replace(problem, task=self.name, split=split_of(canonical), canonical=canonical, details=details)
        if not self.is_correct(problem, drawn["answer"]):
            return None, "the solution gives another answer"
        return (problem, why) if run_calls(self, problem, self.gold_calls(problem)).sound else (None, "not sound")

    def generate(self, count: int, split: str, seed: int, levels: Sequence[int] = ()) -> list[Problem]:
        """`count` problems of distinct questions, from the templates of `split` in turn; `levels`: none are all.

        Raises ValueError for an unknown split or level, without the package, or where no more such are found.
        """
        check_request(self.name, split, levels := levels or self.levels, self.levels)
        own = [number for number in templates() if split_of(f"{self.name} {number}") == split] if count else []
        rng, found = random.Random(f"{seed} {split}"), {}
        for number in own * (MIN_ROUNDS + count):
            if len(found) == count:
                break
            problem, _ = self.draw(number, rng)
            if problem and problem.level in levels:
                found.setdefault(folded(problem.question), problem)
        if len(found) < count:
            raise ValueError(f"{self.name}: {count} {split} problems asked for, only {len(found)} found")
        return [replace(p, id=f"{self.name}-{split}-{n:04d}") for n, p in enumerate(found.values(), start=1)]

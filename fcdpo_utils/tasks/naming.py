"""Names drawn for the functions of a problem, so that a student must read what its prompt offers.

Natural names come from `naming.yaml`, in several cases; invented ones are made of syllables. Those of training problems
and those of held-out ones never meet. Order and descriptions are drawn, too. Knows nothing of problems or chains.
"""

import random
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from fcdpo_utils import store
from fcdpo_utils.settings import Naming
from fcdpo_utils.tools import Functions, Toolset

WORDS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
_MIX = {"fixed": 2, "natural": 4, "invented": 4}  # shares in "mixed"
_VERBS = {"train": ("do", "run", "call", "get", "my"), "held_out": ("use", "try", "make")}
_CASES = (
    "_".join,
    lambda words: "".join(word.capitalize() for word in words),
    lambda words: words[0] + "".join(word.capitalize() for word in words[1:]),
)


def draw_names(tools: type[Toolset], naming: Naming, held_out: bool, seed: str, unable: bool = False) -> Functions:
    """How the functions of one problem are shown; () where they keep their names. The same arguments draw the same.

    "mixed": fixed names for one problem in five, else natural or invented ones. `unable`: also the one to abstain by.
    """
    rng = random.Random(f"names/{seed}")
    kind = rng.choices([*_MIX], [*_MIX.values()])[0] if naming == "mixed" else naming
    functions, pool = tools.functions(), "held_out" if held_out else "train"
    functions = functions | {"Unable": tools.UNABLE} if unable else functions
    if kind == "fixed":
        return tuple((name, name, function.doc) for name, function in functions.items() if unable)
    taken, shown = set(functions), []
    ours = tools.__module__.partition(".")[0] == __name__.partition(".")[0]
    for name in rng.sample(sorted(functions), len(functions)):
        # a user's function of the same name may do something else
        words = WORDS.get(name, {}) if ours or hasattr(Toolset, name) else {}
        names = _natural(name, words, pool, rng) if kind == "natural" else _invented(held_out, rng)
        new = next(new for new in names if new not in taken)
        taken.add(new)
        shown.append((name, new, rng.choice([functions[name].doc, *words.get("says", {}).get(pool, ())])))
    return tuple(shown)


def _natural(name: str, words: dict[str, list[str]], pool: str, rng: random.Random) -> Iterator[str]:
    """Synonyms, or for a user's function a verb and the words of its own name, in one case or another."""
    own = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().replace("_", " ")
    phrases = words.get(pool) or [f"{verb} {own}" for verb in _VERBS[pool]]
    while True:
        yield rng.choice(_CASES)(rng.choice(phrases).split())


def _invented(held_out: bool, rng: random.Random) -> Iterator[str]:
    """Two or three syllables; a digest tells the two pools apart."""
    while True:
        name = "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.choice((2, 2, 3))))
        if (store.digest(name) < "4") == held_out:
            yield rng.choice((name, name.capitalize()))

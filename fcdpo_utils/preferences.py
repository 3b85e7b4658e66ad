"""Preference data: distinct labelled completions and the pairs made of them.

D* uses each chain once, paired in order. Da, the augmented set of arXiv 2410.18890, pairs every correct chain of a
prompt with every incorrect one: |Da| = sum over prompts of |W| * |L|. Completions are stored once
(`completions.jsonl`), and the groups of a prompt as indices into them (`groups.jsonl`); both sets are also written out
as rows that plain `datasets` and plain TRL read (`preferences_*.jsonl`). Knows nothing of models.
"""

import random
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from fcdpo_utils import store
from fcdpo_utils.episode import Chain
from fcdpo_utils.tokens import Prompts

Pair = tuple[int, int]  # indices of a chosen and a rejected completion
Label = Literal["sound", "valid", "solved", "shuffled"]


@dataclass(frozen=True)
class Completion:
    """One distinct chain of a prompt; `correct` by the label rule of the data set."""

    problem_id: str
    task: str
    correct: bool
    chain: Chain


@dataclass(frozen=True)
class PromptGroup:
    """All completions of one prompt, as indices: `chosen` are the correct ones (W), `rejected` the others (L)."""

    problem_id: str
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]

    @property
    def usable(self) -> bool:
        return bool(self.chosen and self.rejected)


@dataclass(frozen=True)
class Preferences:
    """Completions and their groups, in the order of the problems."""

    completions: tuple[Completion, ...]
    groups: tuple[PromptGroup, ...]

    def original_pairs(self) -> Iterator[Pair]:
        """D*: each completion in at most one pair."""
        return (pair for group in self.groups for pair in zip(group.chosen, group.rejected, strict=False))

    def augmented_pairs(self) -> Iterator[Pair]:
        """Da: every correct completion of a prompt with every incorrect one."""
        return (pair for group in self.groups for pair in product(group.chosen, group.rejected))

    def statistics(self) -> dict[str, int]:
        """Counts for the record, the prompts that give no pair included."""
        correct = sum(completion.correct for completion in self.completions)
        return {
            "problems": len(self.groups),
            "chains": len(self.completions),
            "correct": correct,
            "incorrect": len(self.completions) - correct,
            "only_correct": sum(bool(group.chosen) and not group.rejected for group in self.groups),
            "only_incorrect": sum(bool(group.rejected) and not group.chosen for group in self.groups),
            "pairs_original": sum(min(len(group.chosen), len(group.rejected)) for group in self.groups),
            "pairs_augmented": sum(len(group.chosen) * len(group.rejected) for group in self.groups),
        }


def build_preferences(
    chains: Iterable[tuple[str, Chain]], label: Label = "sound", by: Callable = attrgetter("problem_id")
) -> Preferences:
    """Group (task, chain) `by` prompt, drop repeated chains, and label the rest; "shuffled": labels dealt anew."""
    grouped: dict[Hashable, dict[tuple, tuple[str, Chain]]] = {}
    for task, chain in chains:
        grouped.setdefault(by(chain), {}).setdefault(chain.steps, (task, chain))
    completions: list[Completion] = []
    groups = []
    for distinct in grouped.values():
        start, problem_id = len(completions), next(iter(distinct.values()))[1].problem_id
        labels = [getattr(chain, "sound" if label == "shuffled" else label) for _, chain in distinct.values()]
        if label == "shuffled":
            random.Random(problem_id).shuffle(labels)
        pairs = zip(distinct.values(), labels, strict=True)
        completions += [Completion(problem_id, task, correct, chain) for (task, chain), correct in pairs]
        numbered = range(start, len(completions))
        chosen = tuple(index for index in numbered if completions[index].correct)
        groups.append(PromptGroup(problem_id, chosen, tuple(i for i in numbered if not completions[i].correct)))
    return Preferences(tuple(completions), tuple(groups))


def export_rows(preferences: Preferences, pairs: Iterable[Pair], prompts: Prompts) -> Iterator[dict[str, Any]]:
    """Rows with `prompt`, `chosen` and `rejected` messages, one at a time: all of them may not fit into memory."""
    for pair in pairs:
        w, l = (preferences.completions[index] for index in pair)
        yield {"prompt": prompts[w.problem_id], "chosen": w.chain.messages(), "rejected": l.chain.messages()}


def save_preferences(run_dir: Path, preferences: Preferences, prompts: Prompts) -> None:
    """Write completions, groups, and D* and Da as rows of messages."""
    completions = (c.chain.record(task=c.task, correct=c.correct) for c in preferences.completions)
    store.write_records(run_dir / "completions.jsonl", completions)
    store.write_records(run_dir / "groups.jsonl", map(vars, preferences.groups))
    for name, pairs in (("original", preferences.original_pairs()), ("augmented", preferences.augmented_pairs())):
        store.write_records(run_dir / f"preferences_{name}.jsonl", export_rows(preferences, pairs, prompts))


def load_preferences(run_dir: Path) -> Preferences:
    """What `save_preferences` wrote."""
    stored = store.iterate(run_dir / "completions.jsonl")
    completions = [Completion(r["problem_id"], r["task"], r["correct"], Chain.from_record(r)) for r in stored]
    stored = store.iterate(run_dir / "groups.jsonl")
    groups = [PromptGroup(r["problem_id"], tuple(r["chosen"]), tuple(r["rejected"])) for r in stored]
    return Preferences(tuple(completions), tuple(groups))

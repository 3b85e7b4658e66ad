"""Preference data: distinct labelled completions and the pairs made of them.

D* uses each chain once, paired in order. Da, the augmented set of arXiv 2410.18890, pairs every correct chain of a
prompt with every incorrect one: |Da| = sum over prompts of |W| * |L|. Completions are stored once; pairs are
indices into them. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from fcdpo_utils.agent import Chain
from fcdpo_utils.tokens import Message

LabelRule = Literal["sound", "solved"]


@dataclass(frozen=True)
class Completion:
    """One distinct chain of a prompt; `correct` by the label rule of the data set."""

    problem_id: str
    task: str
    correct: bool
    chain: Chain


@dataclass(frozen=True)
class Block:
    """All completions of one prompt, as indices: `chosen` are the correct ones (W), `rejected` the others (L)."""

    problem_id: str
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]

    @property
    def usable(self) -> bool:
        return bool(self.chosen and self.rejected)


@dataclass(frozen=True)
class Preferences:
    """Completions and their blocks, in the order of the problems."""

    completions: tuple[Completion, ...]
    blocks: tuple[Block, ...]

    def original_pairs(self) -> list[tuple[int, int]]:
        """D*: (chosen, rejected) index pairs, each completion at most once."""
        return [pair for block in self.blocks for pair in zip(block.chosen, block.rejected, strict=False)]

    def augmented_pairs(self) -> list[tuple[int, int]]:
        """Da: every (chosen, rejected) index pair of every prompt."""
        pairs = [pair for block in self.blocks for pair in product(block.chosen, block.rejected)]
        assert len(pairs) == sum(len(block.chosen) * len(block.rejected) for block in self.blocks)
        return pairs

    def statistics(self) -> dict[str, int]:
        """Counts for the record, the prompts that give no pair included."""
        correct = sum(completion.correct for completion in self.completions)
        return {
            "problems": len(self.blocks),
            "chains": len(self.completions),
            "correct": correct,
            "incorrect": len(self.completions) - correct,
            "only_correct": sum(bool(b.chosen) and not b.rejected for b in self.blocks),
            "only_incorrect": sum(bool(b.rejected) and not b.chosen for b in self.blocks),
            "pairs_original": len(self.original_pairs()),
            "pairs_augmented": len(self.augmented_pairs()),
        }


def build_preferences(chains: Iterable[tuple[str, Chain]], label: LabelRule = "sound") -> Preferences:
    """Group (task, chain) by prompt, drop repeated chains, and label the rest."""
    groups: dict[str, dict[tuple, tuple[str, Chain]]] = {}
    for task, chain in chains:
        groups.setdefault(chain.problem_id, {}).setdefault(chain.steps, (task, chain))
    completions: list[Completion] = []
    blocks = []
    for problem_id, distinct in groups.items():
        start = len(completions)
        completions += [Completion(problem_id, task, getattr(chain, label), chain) for task, chain in distinct.values()]
        numbered = range(start, len(completions))
        chosen = tuple(i for i in numbered if completions[i].correct)
        blocks.append(Block(problem_id, chosen, tuple(i for i in numbered if not completions[i].correct)))
    return Preferences(tuple(completions), tuple(blocks))


def export_rows(
    preferences: Preferences, pairs: Sequence[tuple[int, int]], prompts: dict[str, list[Message]]
) -> Iterable[dict[str, Any]]:
    """Rows with `prompt`, `chosen` and `rejected` messages, as plain `datasets` and plain TRL read them."""
    for chosen, rejected in pairs:
        problem_id = preferences.completions[chosen].problem_id
        yield {
            "prompt": prompts[problem_id],
            "chosen": preferences.completions[chosen].chain.messages(),
            "rejected": preferences.completions[rejected].chain.messages(),
        }

"""Prompt groups as a data set: what the grouped trainer draws, and in which order.

An item is one prompt with some of its completions. Knows indices and tokens, nothing of losses or models.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os.path import commonprefix

from torch.utils.data import Dataset, Sampler

from fcdpo_utils.preferences import Pair, Preferences
from fcdpo_utils.settings import PreferenceSettings
from fcdpo_utils.tokens import Tokens

Item = dict[str, list[int]]  # "chosen" and "rejected": indices of completions


@dataclass(frozen=True)
class GroupBatch:
    """Some prompts with their completions. Sequences are numbered group by group, chosen before rejected:

        items [{"chosen": [4, 7], "rejected": [5]}, {"chosen": [9], "rejected": [8]}]
        -> completions (4, 7, 5, 9, 8), sizes ((2, 1), (1, 1)), sides (0:2, 2:3), (3:4, 4:5)

    `sequences`: the tokenised chat of each. `completions`: its index in the data. `sizes`: (k, l) of each group.
    """

    sequences: tuple[Tokens, ...]
    completions: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]

    def sides(self) -> Iterator[tuple[slice, slice]]:
        """Where the chosen and the rejected sequences of each group are."""
        start = 0
        for k, l in self.sizes:
            yield slice(start, start + k), slice(start + k, start + k + l)
            start += k + l


class GroupDataset(Dataset):
    """One item per prompt that has both kinds of chains; large groups are sampled anew each epoch.

    `tokens`: the tokenised chat of every completion. `options`: how many chains of each kind are drawn, and whether
    they are paired with all of the other kind (Da) or in order, those left over not being used (D*). Without rejected
    ones (`max_rejected` 0) a prompt needs none. Raises ValueError where no prompt has what it needs.
    """

    def __init__(self, preferences: Preferences, tokens: Sequence[Tokens], options: PreferenceSettings, seed: int = 0):
        paired = options.max_rejected > 0
        self.groups = [group for group in preferences.groups if group.usable or (group.chosen and not paired)]
        if not self.groups:
            needed = "both a correct and an incorrect" if paired else "a correct"
            raise ValueError(f"no prompt has {needed} chain; more teacher.samples may help")
        first = [group.chosen[0] for group in self.groups]
        self.kinds = kinds([preferences.completions[one].task for one in first], [tokens[one].ids for one in first])
        self.preferences, self.tokens, self.seed, self.epoch = preferences, tokens, seed, 0
        self.caps = (options.max_chosen, options.max_rejected)
        self.all_pairs = options.pairs == "augmented" or not paired

    def __len__(self) -> int:
        return len(self.groups)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> Item:
        return self.draw(index, self.epoch)

    def draw(self, index: int, epoch: int) -> Item:
        """The completions of one prompt in some epoch."""
        group, rng = self.groups[index], random.Random(f"{self.seed}/{epoch}/{index}")
        chosen, rejected = (
            sorted(rng.sample(indices, cap)) if len(indices) > cap else list(indices)
            for indices, cap in zip((group.chosen, group.rejected), self.caps, strict=True)
        )
        if not self.all_pairs:
            fewer = min(len(chosen), len(rejected))
            chosen, rejected = chosen[:fewer], rejected[:fewer]
        return {"chosen": chosen, "rejected": rejected}

    def used_completions(self, epochs: int) -> list[int]:
        """Indices of all completions that are drawn in so many epochs."""
        items = (self.draw(index, epoch) for epoch in range(epochs) for index in range(len(self)))
        return list(dict.fromkeys(completion for item in items for side in item.values() for completion in side))

    def pairs(self) -> list[Pair]:
        """All pairs one by one, D* or Da: what TRL's own trainer passes."""
        return list(self.preferences.augmented_pairs() if self.all_pairs else self.preferences.original_pairs())

    def collate(self, items: list[Item]) -> dict[str, GroupBatch]:
        completions = tuple(index for item in items for side in item.values() for index in side)
        sizes = tuple((len(item["chosen"]), len(item["rejected"])) for item in items)
        return {"batch": GroupBatch(tuple(self.tokens[index] for index in completions), completions, sizes)}


def kinds(tasks: Sequence[str], ids: Sequence[Sequence[int]]) -> list[tuple]:
    """Which prompts begin alike: (task, tokens), the latter () but where some share far more than the whole task."""
    prompts = list(zip(tasks, ids, strict=True))
    common = {name: commonprefix([own for task, own in prompts if task == name]) for name in set(tasks)}  # noqa: RUF071
    keys = [(task, tuple(own[: len(common[task]) + 64])) for task, own in prompts]  # a few lines of functions more
    counts = Counter(keys)
    return [key if counts[key] > 1 else (key[0], ()) for key in keys]


class TaskSampler(Sampler[int]):
    """Indices in random order such that each run of `batch_size` of them is of one kind where it can be.

    The prompts of a task share their instructions, and some also their functions; a batch passes those once.
    """

    def __init__(self, dataset: GroupDataset, batch_size: int, seed: int):
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Also tells the data set, which draws from large groups anew each epoch."""
        self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        rng = random.Random(f"{self.seed}/{self.dataset.epoch}")
        whole, rest = [], []
        for kind in sorted(set(self.dataset.kinds)):
            members = [index for index, name in enumerate(self.dataset.kinds) if name == kind]
            rng.shuffle(members)
            full = len(members) - len(members) % self.batch_size
            whole += [members[start : start + self.batch_size] for start in range(0, full, self.batch_size)]
            rest += members[full:]
        rng.shuffle(whole)
        yield from (index for batch in whole for index in batch)
        yield from rest

"""A language model on this machine as the teacher: many chains at once through `rollout`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fcdpo_utils.agent import Episode
from fcdpo_utils.rollout import Sampling, rollout
from fcdpo_utils.teachers.base import Job, Sample


@dataclass(frozen=True)
class LocalTeacher:
    """Samples chains from `model`; each has its own random stream from (seed, problem, number)."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sampling: Sampling

    def run(self, jobs: Sequence[Job], keep: Callable[[Sample], None]) -> None:
        episodes = [job.episode() for job in jobs]
        numbers = {id(episode): job.number for episode, job in zip(episodes, jobs, strict=True)}

        def finished(episode: Episode) -> None:
            keep(Sample(episode.problem, numbers[id(episode)], "local", episode.chain()))

        rollout(self.model, self.tokenizer, episodes, self.sampling, [job.number for job in jobs], finished)

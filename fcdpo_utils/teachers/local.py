"""A language model on this machine as the teacher: many chains at once through `rollout`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fcdpo_utils.agent import Episode
from fcdpo_utils.rollout import ChatError, Sampling, rollout
from fcdpo_utils.teachers.base import Job, Sample, TeacherError


@dataclass(frozen=True)
class LocalTeacher:
    """Samples chains from `model`; each has its own random stream from (seed, problem, number)."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sampling: Sampling

    def run(
        self, jobs: Sequence[Job], keep: Callable[[Sample], None], admit: Callable[[], bool] = lambda: True
    ) -> None:
        episodes = [job.episode() for job in jobs]
        numbers = {id(episode): job.number for episode, job in zip(episodes, jobs, strict=True)}

        def finished(episode: Episode) -> None:
            keep(Sample(episode.problem, numbers[id(episode)], "local", episode.chain(), episode.usage))

        samples = [job.number for job in jobs]
        try:
            rollout(self.model, self.tokenizer, episodes, self.sampling, samples, finished, admit)
        except ChatError as error:
            raise TeacherError(f"{self.model.name_or_path}: {error}") from None

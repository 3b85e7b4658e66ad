"""Teachers that are language models, on this machine or behind a server, and the teacher of the settings."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fcdpo_utils.engine.rollout import ChatError, rollout
from fcdpo_utils.episode import Episode
from fcdpo_utils.plain import Sampling
from fcdpo_utils.settings import Settings, TeacherSettings
from fcdpo_utils.students import load_student
from fcdpo_utils.teacher import Admit, OnSample, Sample, SampleRequest, Teacher, TeacherError
from fcdpo_utils.teachers.scripted import ScriptedTeacher
from fcdpo_utils.teachers.tool_calls import FORMATS


@dataclass(frozen=True)
class LocalTeacher:
    """Samples chains from `model`, many at once; each has its own random stream from (seed, problem, number)."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sampling: Sampling

    def run(self, requests: Sequence[SampleRequest], on_sample: OnSample, admit: Admit = lambda: True) -> None:
        numbers = {request.episode(): request.number for request in requests}

        def finished(episode: Episode) -> None:
            on_sample(Sample(episode.problem, numbers[episode], "local", episode.chain(), episode.usage))

        try:
            rollout(self.model, self.tokenizer, [*numbers], self.sampling, [*numbers.values()], finished, admit)
        except ChatError as error:
            raise TeacherError(f"{self.model.name_or_path}: {error}") from None


def build_teacher(settings: Settings) -> Teacher:
    """The teacher of the settings. A local one loads its model: raises `ModelError` where it cannot.

    Raises `TeacherError` where `teacher.key_env` names no variable of the environment.
    """
    options = settings.teacher
    if options.kind == "scripted":
        return ScriptedTeacher(options.error_rate, options.variation, settings.seed)
    chat_format = FORMATS[options.call_format]
    sampling = Sampling(options.temperature, options.turn_tokens, options.concurrency, settings.seed, chat_format)
    if options.kind == "local":
        return LocalTeacher(*load_student(options.student, options.adapter and Path(options.adapter)), sampling)
    from fcdpo_utils.teachers.server import ServerTeacher  # slow to import

    return ServerTeacher(options.base_url, options.model, sampling, _key(options))


def _key(options: TeacherSettings) -> str:
    """What the environment variable `key_env` holds; "none" where none is named. Warns of a key sent in the clear."""
    if not options.key_env:
        return "none"
    key = os.environ.get(options.key_env, "").strip()
    if not key:
        raise TeacherError(f"teacher.key_env: the environment variable {options.key_env} is not set")
    url = urlsplit(options.base_url)
    this_machine = re.fullmatch(r"localhost|::1|127(\.\d+){3}", url.hostname or "")
    if url.scheme == "http" and not this_machine:
        print(f"warning: the key in {options.key_env} goes to {url.hostname} unencrypted; teacher.base_url: use https")
    return key

"""A model behind any OpenAI-compatible endpoint as the teacher (vLLM, llama.cpp, Ollama, TGI, hosted ones).

Many chains wait for the server at once. What the network or the server does wrong is retried or reported, and never
becomes a model's answer. The key comes from the environment (OPENAI_API_KEY) and is never written or printed.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx2
import openai
from openai.types.chat import ChatCompletion

from fcdpo_utils.agent import Episode, prompt
from fcdpo_utils.teachers.base import Job, Sample, TeacherError
from fcdpo_utils.tokens import Message

LONGEST_WAIT = 120.0  # seconds between two attempts, and the longest Retry-After that is obeyed
_TRANSIENT_STATUS = {408, 409, 425, 429}  # and 5xx; any other refusal would be the same the next time
_HINTS = {
    400: "the server refuses the request; check teacher.model",
    401: "the key is not accepted; set OPENAI_API_KEY",
    403: "the key may not use this model; check teacher.model and OPENAI_API_KEY",
    404: "no such model or path; check teacher.model and that teacher.base_url ends in /v1",
    422: "the server does not understand the request; check that it speaks the OpenAI chat API",
}
_TRANSIENT = (openai.APIConnectionError, openai.APIResponseValidationError, httpx2.HTTPError, ValueError)


class _GaveUp(Exception):
    """One chain failed again and again; the others go on."""


class _Refused(Exception):
    """A status that a repetition would not change."""

    def __init__(self, status: int):
        super().__init__(status)
        self.status = status


@dataclass(frozen=True)
class ServerTeacher:
    """`parallel` chains at a time; a request is tried `attempts` times, each for at most `timeout` seconds."""

    base_url: str
    model: str
    temperature: float = 0.7
    turn_tokens: int = 128
    parallel: int = 64
    seed: int = 0
    attempts: int = 8
    timeout: float = 120.0
    first_wait: float = 1.0

    def run(self, jobs: Sequence[Job], keep: Callable[[Sample], None]) -> None:
        running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task]] = []

        async def main() -> list[str]:
            running.append((asyncio.get_running_loop(), asyncio.current_task()))
            return await self._run(jobs, keep)

        with ThreadPoolExecutor(1) as outside:  # a notebook has an event loop of its own
            future = outside.submit(asyncio.run, main())
            try:
                failures = future.result()
            except BaseException:
                for loop, task in running:  # an interrupted cell must not go on asking in the background
                    if not future.done():
                        loop.call_soon_threadsafe(task.cancel)
                raise
        if failures:
            lost = f"{len(failures)} of {len(jobs)} chains could not be made"
            raise TeacherError(f"{lost} ({failures[0]}); those that were are kept, run again for the rest")

    async def _run(self, jobs: Sequence[Job], keep: Callable[[Sample], None]) -> list[str]:
        """All chains; returns why some failed. A fatal error, or nothing but failures, stops everything."""
        failures: list[str] = []
        given_up, waiting = 0, iter(jobs)  # in a row
        key = os.environ.get("OPENAI_API_KEY") or "none"
        options = {"base_url": self.base_url, "api_key": key, "max_retries": 0, "timeout": self.timeout}
        async with openai.AsyncOpenAI(**options) as client:

            async def worker() -> None:
                nonlocal given_up
                for job in waiting:  # workers share the iterator: each job is taken once
                    try:
                        episode = await self._chain(client, job)
                    except _GaveUp as error:
                        failures.append(str(error))
                        given_up += 1
                        if given_up >= min(self.parallel, len(jobs)):
                            down = f"{self.base_url} does not answer ({error}); is the server up?"
                            raise TeacherError(down) from None
                        continue
                    keep(Sample(job.problem, job.number, "server", episode.chain()))
                    given_up = 0

            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self.parallel, len(jobs))):
                        group.create_task(worker())
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None
        return failures

    async def _chain(self, client: openai.AsyncOpenAI, job: Job) -> Episode:
        episode, messages = job.episode(), prompt(job.task, job.problem, job.toolset)
        while not episode.finished:
            name = f"{self.seed}/{job.problem.id}/{job.number}/{len(episode.steps)}"
            try:
                step = episode.step(await self._answer(client, messages, name))
            except _Refused as error:
                episode.cut = error.status == 400 and bool(episode.steps)  # the chat outgrew the context
                if not episode.cut:
                    hint = _HINTS.get(error.status, "check teacher.base_url and teacher.model")
                    raise TeacherError(f"status {error.status} from {self.base_url}: {hint}") from None
                break
            messages = [
                *messages,
                {"role": "assistant", "content": step.call},
                {"role": "user", "content": step.result},
            ]
        return episode

    async def _answer(self, client: openai.AsyncOpenAI, messages: list[Message], name: str) -> str:
        """The model's next message; one cut for length is judged as it is. `name` seeds the request.

        An answer without text is asked for again with another seed; when there is never any, it is the model's.
        """
        jitter, reason, told, empty = random.Random(name), "", None, 0
        for attempt in range(self.attempts):
            if attempt:
                await asyncio.sleep(self._wait(attempt, told, jitter))
            told = None
            try:
                answer = await client.chat.completions.create(
                    model=self.model,
                    messages=messages,
                    temperature=self.temperature,
                    max_tokens=self.turn_tokens,
                    seed=int.from_bytes(hashlib.sha256(f"{name}/{attempt}".encode()).digest()[:4]) >> 1,
                )
            except openai.APIStatusError as error:
                if error.status_code < 500 and error.status_code not in _TRANSIENT_STATUS:
                    raise _Refused(error.status_code) from None
                reason, told = f"status {error.status_code}", error.response.headers.get("retry-after")
                continue
            except _TRANSIENT as error:
                reason = type(error).__name__
                continue
            choice = answer.choices[0] if isinstance(answer, ChatCompletion) and answer.choices else None
            if choice is not None and choice.message and choice.message.content:
                return choice.message.content
            empty += choice is not None
            reason = "an answer without text"
        if empty == self.attempts:
            return ""
        raise _GaveUp(f"last of {self.attempts} attempts: {reason}")

    def _wait(self, attempt: int, told: str | None, jitter: random.Random) -> float:
        """Seconds before the next attempt: what the server says, else doubling, half to one and a half times."""
        try:
            return min(float(told), LONGEST_WAIT) if told is not None else self._backoff(attempt, jitter)
        except ValueError:  # a date
            return self._backoff(attempt, jitter)

    def _backoff(self, attempt: int, jitter: random.Random) -> float:
        return min(self.first_wait * 2 ** (attempt - 1), LONGEST_WAIT) * jitter.uniform(0.5, 1.5)

"""A model behind any OpenAI-compatible endpoint as the teacher (vLLM, llama.cpp, Ollama, TGI, hosted ones).

Many chains wait for the server at once; the first calls of a problem's samples are asked for in one request where the
server honours `n`. What the network or the server does wrong is retried or reported, and never becomes a model's
answer. The key comes from the environment (OPENAI_API_KEY) and is never written or printed.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby, islice

import httpx2
import openai
from openai.types.chat import ChatCompletion, ChatCompletionMessage

from fcdpo_utils.agent import CallFormat, Episode, Usage, exchange, prompt
from fcdpo_utils.functions import Toolset
from fcdpo_utils.teachers.base import Job, Sample, TeacherError
from fcdpo_utils.tokens import Message
from fcdpo_utils.tool_calls import as_call, read_message

LONGEST_WAIT = 120.0  # seconds between two attempts, and the longest Retry-After that is obeyed
_MOST_CHOICES = 16  # asked for in one request
_TRANSIENT_STATUS = {408, 409, 425, 429}  # and 5xx; any other refusal would be the same the next time
_HINTS = {
    400: "the server refuses the request; check teacher.model, and for call_format=tools how the server was started",
    401: "the key is not accepted; set OPENAI_API_KEY",
    403: "the key may not use this model; check teacher.model and OPENAI_API_KEY",
    404: "no such model or path; check teacher.model and that teacher.base_url ends in /v1",
    422: "the server does not understand the request; check that it speaks the OpenAI chat API",
}
_TRANSIENT = (openai.APIConnectionError, openai.APIResponseValidationError, httpx2.HTTPError, ValueError)


class _GaveUp(Exception):
    """One chain failed again and again; the others go on."""


class _Refused(Exception):
    """A status that a repetition would not change; `too_long` when it is about the length of the chat."""

    def __init__(self, error: openai.APIStatusError):
        super().__init__(error.status_code)
        self.status = error.status_code
        text = error.response.text.lower()
        self.too_long = self.status in (400, 413) and any(word in text for word in ("context", "maximum", "too long"))


@dataclass
class _Work:
    """One run: its client, the free places, what failed, and whether the server honours `n`."""

    client: openai.AsyncOpenAI
    keep: Callable[[Sample], None]
    places: asyncio.Semaphore
    many: bool
    made: int = 0
    failed_in_a_row: int = 0
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ServerTeacher:
    """`parallel` chains at a time; a request is tried `attempts` times, each for at most `timeout` seconds."""

    base_url: str
    model: str
    temperature: float = 0.7
    turn_tokens: int = 128
    parallel: int = 64
    seed: int = 0
    call_format: CallFormat = "python"
    attempts: int = 8
    timeout: float = 120.0
    first_wait: float = 1.0

    def run(
        self, jobs: Sequence[Job], keep: Callable[[Sample], None], admit: Callable[[], bool] = lambda: True
    ) -> None:
        running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task]] = []

        async def main() -> _Work:
            running.append((asyncio.get_running_loop(), asyncio.current_task()))
            return await self._run(jobs, keep, admit)

        with ThreadPoolExecutor(1) as outside:  # a notebook has an event loop of its own
            future = outside.submit(asyncio.run, main())
            try:
                done = future.result()
            except BaseException:
                for loop, task in running:  # an interrupted cell must not go on asking in the background
                    if not future.done():
                        loop.call_soon_threadsafe(task.cancel)
                raise
        if done.failures and not done.made:
            raise TeacherError(self._is_down(done))
        if done.failures:
            lost = f"{len(done.failures)} of {len(jobs)} chains could not be made"
            raise TeacherError(f"{lost} ({done.failures[0]}); those that were are kept, run again for the rest")

    async def _run(self, jobs: Sequence[Job], keep: Callable[[Sample], None], admit: Callable[[], bool]) -> _Work:
        """All chains. A fatal error, or nothing but failures, stops everything."""
        key = os.environ.get("OPENAI_API_KEY") or "none"
        options = {"base_url": self.base_url, "api_key": key, "max_retries": 0, "timeout": self.timeout}
        async with openai.AsyncOpenAI(**options) as client:
            # greedy samples would all be the same, and vLLM refuses to make them
            work = _Work(client, keep, asyncio.Semaphore(self.parallel), many=self.temperature > 0)
            try:
                async with asyncio.TaskGroup() as group:
                    for _, of_one in groupby(jobs, lambda job: job.problem.id):
                        while some := list(islice(of_one, self._choices() if work.many else 1)):
                            started = []
                            for job in some:
                                await work.places.acquire()
                                if not admit():
                                    break
                                started.append(job)
                            if started:
                                group.create_task(self._open(work, started, group.create_task))
                            if len(started) < len(some):
                                return work  # leaving the group waits for what is under way
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None
        return work

    def _choices(self) -> int:
        """How many to ask for in one request: they wait for each other's places, so not for all of them."""
        return max(1, min(_MOST_CHOICES, self.parallel // 4))

    async def _open(self, work: _Work, jobs: Sequence[Job], start: Callable[[Coroutine], object]) -> None:
        """Samples of one problem: their first messages in one request where that works, then each goes its way."""
        openings = await self._openings(work, jobs) if work.many and len(jobs) > 1 else []
        for job in jobs:
            start(self._make(work, job, openings.pop() if openings else None))

    async def _openings(self, work: _Work, jobs: Sequence[Job]) -> list[_Answer]:
        """What one request for all gives; a chain left without asks for itself, and says what is wrong."""
        first = jobs[0]
        messages = prompt(first.task, first.problem, first.toolset, self.call_format)
        name = f"{self.seed}/{first.problem.id}/{[job.number for job in jobs]}/openings"
        try:
            answers = await self._ask(work.client, first.episode().tools, messages, name, 1, len(jobs))
        except _GaveUp:
            return []
        except _Refused:
            work.many = False
            return []
        openings = [answer for answer in answers if answer.text]
        work.many = work.many and len(openings) != 1  # one, whatever is asked: not again
        return openings

    async def _make(self, work: _Work, job: Job, opening: _Answer | None) -> None:
        """One chain, kept or counted as failed."""
        try:
            episode = await self._chain(work.client, job, opening)
        except _GaveUp as error:
            work.failures.append(str(error))
            work.failed_in_a_row += 1
            if work.failed_in_a_row >= self.parallel:
                raise TeacherError(self._is_down(work)) from None
        else:
            work.keep(Sample(job.problem, job.number, "server", episode.chain(), episode.usage))
            work.made += 1
            work.failed_in_a_row = 0
        finally:
            work.places.release()

    def _is_down(self, work: _Work) -> str:
        return f"{self.base_url} does not answer ({work.failures[-1]}); is the server up?"

    async def _chain(self, client: openai.AsyncOpenAI, job: Job, opening: _Answer | None) -> Episode:
        episode, messages = job.episode(), prompt(job.task, job.problem, job.toolset, self.call_format)
        while not episode.finished:
            name = f"{self.seed}/{job.problem.id}/{job.number}/{len(episode.steps)}"
            try:
                answer = opening or (await self._ask(client, episode.tools, messages, name, self.attempts))[0]
            except _Refused as error:
                episode.cut = error.too_long and bool(episode.steps)  # the chat outgrew the context
                if not episode.cut:
                    hint = _HINTS.get(error.status, "check teacher.base_url and teacher.model")
                    raise TeacherError(f"status {error.status} from {self.base_url}: {hint}") from None
                break
            opening = None
            episode.step(answer.text)
            episode.usage.add(answer.usage.read, answer.usage.written)
            messages = [*messages, *exchange(episode, self.call_format)]
        return episode

    async def _ask(
        self,
        client: openai.AsyncOpenAI,
        tools: type[Toolset],
        messages: list[Message],
        name: str,
        attempts: int,
        choices: int = 1,
    ) -> list[_Answer]:
        """The model's next message, or several; one cut for length is judged as it is. `name` seeds the requests.

        An answer without text is asked for again with another seed; when there is never any, it is the model's.
        """
        options = {"tools": tools.schemas()} if self.call_format == "tools" else {}
        if choices > 1:
            options["n"] = choices
        jitter, reason, told, empty, spent = random.Random(name), "", None, 0, Usage()
        for attempt in range(attempts):
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
                    **options,
                )
            except openai.APIStatusError as error:
                if error.status_code < 500 and error.status_code not in _TRANSIENT_STATUS:
                    raise _Refused(error) from None
                reason, told = f"status {error.status_code}", error.response.headers.get("retry-after")
                continue
            except _TRANSIENT as error:
                reason = type(error).__name__
                continue
            used = getattr(answer, "usage", None)
            spent.add(getattr(used, "prompt_tokens", None) or 0, getattr(used, "completion_tokens", None) or 0)
            if texts := _texts(answer, tools, self.call_format):
                each = spent.written // len(texts)
                return [_Answer(text, Usage(0 if index else spent.read, each)) for index, text in enumerate(texts)]
            empty += bool(isinstance(answer, ChatCompletion) and answer.choices)
            reason = "an answer without text"
        if empty == attempts:
            return [_Answer("", spent)]
        raise _GaveUp(f"last of {attempts} attempts: {reason}")

    def _wait(self, attempt: int, told: str | None, jitter: random.Random) -> float:
        """Seconds before the next attempt: what the server says, else doubling, half to one and a half times."""
        try:
            return min(float(told), LONGEST_WAIT) if told is not None else self._backoff(attempt, jitter)
        except ValueError:  # a date
            return self._backoff(attempt, jitter)

    def _backoff(self, attempt: int, jitter: random.Random) -> float:
        return min(self.first_wait * 2 ** (attempt - 1), LONGEST_WAIT) * jitter.uniform(0.5, 1.5)


@dataclass(frozen=True)
class _Answer:
    """One choice of a server: the call it says, and its share of the request's tokens."""

    text: str
    usage: Usage


def _texts(answer: object, tools: type[Toolset], call_format: CallFormat) -> list[str]:
    """What the choices say as Python calls, of whatever the server sent; those that say nothing are left out."""
    if not isinstance(answer, ChatCompletion):
        return []
    texts = []
    for choice in answer.choices or ():
        with suppress(AttributeError, TypeError):  # the client checks no types
            texts.append(_text(choice.message, tools, call_format))
    return [text for text in texts if isinstance(text, str) and text]


def _text(message: ChatCompletionMessage, tools: type[Toolset], call_format: CallFormat) -> str | None:
    """What a message says; words beside a tool call are no part of it."""
    if call_format == "python" or (not message.content and not message.tool_calls):
        return message.content
    if message.tool_calls:
        asked = [call.function for call in message.tool_calls]
        return "; ".join(as_call(tools, function.name, function.arguments) for function in asked)
    return read_message(tools, message.content)

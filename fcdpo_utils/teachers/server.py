"""A model behind any OpenAI-compatible endpoint as the teacher (vLLM, llama.cpp, Ollama, TGI, hosted ones).

Many chains wait for the server at once; its prefix cache serves what their prompts share. What the network or the
server does wrong is retried or reported, and never becomes a model's answer. The key is never written or printed.
"""

import asyncio
import random
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import openai
from anyio.from_thread import start_blocking_portal

from fcdpo_utils.episode import ChatFormat, Episode
from fcdpo_utils.plain import Sampling
from fcdpo_utils.teacher import Admit, OnSample, Sample, SampleRequest, TeacherError
from fcdpo_utils.teachers.tool_calls import as_call
from fcdpo_utils.tokens import Message
from fcdpo_utils.tools import Toolset

_HINTS = {
    400: "the server refuses the request; check teacher.model, and for call_format=tools how the server was started",
    401: "the key is not accepted; set teacher.key_env to the environment variable that holds it",
    403: "the key may not use this model; check teacher.model and the key that teacher.key_env names",
    404: "no such model or path; check teacher.model and that teacher.base_url ends in /v1",
}


class _GaveUp(Exception):
    """One chain failed again and again; the others go on."""


@dataclass(frozen=True)
class ServerTeacher:
    """`sampling.batch_size` chains at a time; each message is one request with a seed of its own.

    A request that takes longer than `timeout` seconds, breaks off or gets a status 408, 409, 429 or 5xx is repeated by
    the client up to `retries` times: after the Retry-After of the server (up to two minutes), else after 0.5 s that
    double up to 8 s, so that 20 are two minutes. An answer without text is asked for `attempts` times, with new seeds.
    """

    base_url: str
    model: str
    sampling: Sampling
    key: str = field(default="none", repr=False)
    retries: int = 20
    attempts: int = 8
    timeout: float = 120.0

    def run(self, requests: Sequence[SampleRequest], on_sample: OnSample, admit: Admit = lambda: True) -> None:
        with start_blocking_portal() as portal:  # a notebook has a loop of its own; an interrupt cancels what is here
            portal.call(self._run, requests, on_sample, admit)

    async def _run(self, requests: Sequence[SampleRequest], on_sample: OnSample, admit: Admit) -> None:
        """All chains. A fatal error, or nothing but failures, stops everything."""
        waiting, workers = deque(requests), min(self.sampling.batch_size, len(requests))
        ended: list[str | None] = []  # of every chain that ended: why it could not be made, or None

        async def work() -> None:
            while waiting and admit():
                request = waiting.popleft()
                try:
                    episode = await self._episode(client, request)
                except _GaveUp as error:
                    ended.append(str(error))
                    if len(ended) >= workers and all(ended[-workers:]):
                        raise TeacherError(f"{self.base_url} does not answer ({error}); is the server up?") from None
                else:
                    on_sample(Sample(request.problem, request.number, "server", episode.chain(), episode.usage))
                    ended.append(None)

        timeout = openai.Timeout(self.timeout, connect=10.0)
        options = {"api_key": self.key, "timeout": timeout, "max_retries": self.retries}
        async with openai.AsyncOpenAI(base_url=self.base_url, **options) as client:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(workers):
                        group.create_task(work())
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None
        if failures := [reason for reason in ended if reason]:
            lost = f"{len(failures)} of {len(requests)} chains could not be made ({failures[0]})"
            raise TeacherError(f"{lost}; those that were are kept, run again for the rest")

    async def _episode(self, client: openai.AsyncOpenAI, request: SampleRequest) -> Episode:
        """One chain. Raises `_GaveUp` for what may be better next time, `TeacherError` for what will not."""
        episode, chat = request.episode(), self.sampling.chat_format
        messages = chat.prompt(request.task, request.problem)
        while not episode.finished:
            name = f"{self.sampling.seed}/{request.problem.id}/{request.number}/{len(episode.steps)}"
            try:
                step = episode.step(await self._next_call(client, episode, messages, name))
                messages += chat.exchange(episode.tools, step, len(episode.steps))
            except openai.APIConnectionError as error:
                raise _GaveUp(type(error).__name__) from None
            except openai.APIStatusError as error:
                status, text = error.status_code, error.response.text.lower()
                if status in (408, 409, 429) or status >= 500:
                    raise _GaveUp(f"status {status}") from None
                too_long = status in (400, 413) and any(word in text for word in ("context", "maximum", "too long"))
                episode.cut = too_long and bool(episode.steps)  # the chat outgrew the model's context
                if not episode.cut:
                    hint = _HINTS.get(status, "check teacher.base_url and teacher.model")
                    raise TeacherError(f"status {status} from {self.base_url}: {hint}") from None
        return episode

    async def _next_call(self, client: openai.AsyncOpenAI, episode: Episode, messages: list[Message], name: str) -> str:
        """What the model says; cut for length, it is judged as it is. Nothing at all, every time, is its answer too."""
        chat, empty = self.sampling.chat_format, 0
        for attempt in range(self.attempts):
            answer: object = None
            with suppress(openai.APIResponseValidationError, ValueError):  # no JSON, or half of it
                answer = await client.chat.completions.create(
                    model=self.model,
                    messages=messages,
                    temperature=self.sampling.temperature,
                    max_tokens=self.sampling.turn_tokens,
                    seed=random.Random(f"{name}/{attempt}").getrandbits(31),
                    tools=chat.schemas(episode.tools) or openai.omit,
                )
            used = getattr(answer, "usage", None)
            episode.usage.add(getattr(used, "prompt_tokens", None) or 0, getattr(used, "completion_tokens", None) or 0)
            if text := _text(answer, episode.tools, chat):
                return text
            empty += bool(getattr(answer, "choices", None))
        if empty == self.attempts:
            return ""
        raise _GaveUp(f"{self.attempts} answers without text")


def _text(answer: object, tools: type[Toolset], chat: ChatFormat) -> str:
    """The Python call that an answer says, whatever the server sent; "" where there is none."""
    with suppress(AttributeError, TypeError, IndexError):  # the client checks no types
        message = answer.choices[0].message
        if message.tool_calls and chat.schemas(tools):  # words beside a tool call are no part of it
            asked = [call.function for call in message.tool_calls]
            return "; ".join(as_call(tools, function.name, function.arguments) for function in asked)
        if isinstance(message.content, str):
            return chat.read(tools, message.content)
    return ""

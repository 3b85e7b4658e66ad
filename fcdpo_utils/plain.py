"""What the engine room does, in its plain form: one sequence at a time, one pass per token.

Training and evaluation take an `engine`: this module, or `fcdpo_utils.engine`, which has the same functions, gives the
same results (the tests hold it to these) and is some thirty times as fast. Read this one to see what is computed.
"""

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fcdpo_utils.episode import PYTHON_CALLS, Chain, ChatFormat, Episode
from fcdpo_utils.loss import sequence_log_prob
from fcdpo_utils.settings import TrainingSettings
from fcdpo_utils.tokens import Tokens, encode_text, render, turn_ends

ProgressCallback = Callable[..., None]  # (done, total) or (done, total, how it goes)
Progress = Callable[[str], ProgressCallback]  # makes a callback for a label, which says what is running


class Engine(Protocol):
    """The functions of this module, by name."""

    fit: Callable[..., TrainingSettings]
    log_probs: Callable[..., tuple[Tensor, int, int]]
    reference_log_probs: Callable[..., list[float]]
    while_training: Callable[..., AbstractContextManager]
    rollout: Callable[..., list[Chain]]


def fit(model: PreTrainedModel, longest: int, training: TrainingSettings) -> TrainingSettings:
    """The settings as memory allows them, `longest` being the tokens of the longest chat: unchanged here."""
    return training.model_copy(update={"gradient_checkpointing": training.gradient_checkpointing is True})


def log_probs(model: nn.Module, sequences: Sequence[Tokens], pack_tokens: int = 0) -> tuple[Tensor, int, int]:
    """Log-probability of each sequence, (sequences,), with gradient; the tokens passed; and in how many passes."""
    each = torch.stack([sequence_log_prob(model, tokens) for tokens in sequences])
    return each, sum(len(tokens.ids) for tokens in sequences), 1


def reference_log_probs(
    model: PreTrainedModel,
    sequences: Sequence[Tokens],
    pack_tokens: int,
    cache: Path,
    progress: ProgressCallback = lambda done, total: None,
) -> list[float]:
    """Log-probability of each sequence under `model` as it stands. `cache`: a file that the fast version keeps."""
    with torch.no_grad():
        return log_probs(model, sequences)[0].tolist()


def while_training(model: nn.Module) -> AbstractContextManager:
    """What must hold during a step, its backward pass included: nothing here."""
    return nullcontext()


@dataclass(frozen=True)
class Sampling:
    """How a model speaks. `temperature` 0 is greedy. A turn longer than `turn_tokens` is cut and judged as it is.

    `batch_size`: chains that advance together (one at a time here). `chat_format`: how calls are asked for and read.
    """

    temperature: float = 0.0
    turn_tokens: int = 64
    batch_size: int = 64
    seed: int = 0
    chat_format: ChatFormat = PYTHON_CALLS


def chain_stream(seed: int, problem_id: str, sample: int) -> random.Random:
    """A chain's own random numbers: what it says does not depend on its neighbours in a batch."""
    return random.Random(f"{seed}/{problem_id}/{sample}")


def rollout(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    episodes: Sequence[Episode],
    sampling: Sampling = Sampling(),
    samples: Sequence[int] | None = None,
    on_finished: Callable[[Episode], None] = lambda episode: None,
    admit: Callable[[], bool] = lambda: True,
) -> list[Chain]:
    """Let `model` act in every episode; returns the chains of those that were started, in the order given.

    `samples` numbers the episodes of a same problem. `on_finished` is called with each episode as it ends, `admit`
    before each starts, which may say no.
    """
    started = []
    for episode, sample in zip(episodes, samples or [0] * len(episodes), strict=True):
        if admit():
            solve(model, tokenizer, episode, sampling, chain_stream(sampling.seed, episode.problem.id, sample))
            on_finished(episode)
            started.append(episode)
    return [episode.chain() for episode in started]


@torch.inference_mode()
def solve(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    episode: Episode,
    sampling: Sampling,
    stream: random.Random,
) -> None:
    """One chain: the model writes a call, the functions answer, until the episode ends or the context is full."""
    chat, ends = sampling.chat_format, turn_ends(tokenizer)
    messages = chat.prompt(episode.task, episode.problem)
    while not episode.finished:
        text = render(tokenizer, messages, generate=True, tools=chat.schemas(episode.tools))
        ids = encode_text(tokenizer, text)
        turn = write_turn(model, ids, ends, sampling, stream)
        call = tokenizer.decode(turn[:-1] if turn[-1] in ends else turn)
        step = episode.step(chat.read(episode.tools, call))
        messages = [*messages, *chat.exchange(episode.tools, step, len(episode.steps))]
        episode.usage.add(len(ids), len(turn))
        episode.cut = len(ids) + 2 * sampling.turn_tokens >= model.config.max_position_embeddings


def write_turn(
    model: PreTrainedModel, ids: list[int], ends: set[int], sampling: Sampling, stream: random.Random
) -> list[int]:
    """The tokens that the model adds to `ids`, up to and with one of `ends`."""
    turn: list[int] = []
    while len(turn) < sampling.turn_tokens and not (turn and turn[-1] in ends):
        logits = model(torch.tensor([[*ids, *turn]], device=model.device)).logits[:, -1].float()
        turn += choose_tokens(logits, sampling.temperature, [stream])
    return turn


def choose_tokens(logits: Tensor, temperature: float, streams: Sequence[random.Random]) -> list[int]:
    """One token per row of (rows, vocabulary): the most likely, or the distribution's inverse at a uniform number."""
    if temperature == 0:
        return logits.argmax(-1).tolist()
    uniform = torch.tensor([[stream.random()] for stream in streams], device=logits.device)
    cumulative = (logits / temperature).softmax(-1).cumsum(-1)
    return torch.searchsorted(cumulative, uniform * cumulative[:, -1:]).clamp_(max=logits.shape[1] - 1)[:, 0].tolist()

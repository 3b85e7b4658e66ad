"""Small data and their plain definitions, which several test files share: six chains of two prompts, tiny trainings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from trl import DPOTrainer

from fcdpo_utils import engine
from fcdpo_utils.chains import load_chains, prompts_of
from fcdpo_utils.dataset import GroupDataset
from fcdpo_utils.engine.memory import ModelDims
from fcdpo_utils.episode import Chain, Step
from fcdpo_utils.lab.settings import load_settings
from fcdpo_utils.loss import expanded_dpo_loss, sequence_log_prob
from fcdpo_utils.plain import ProgressCallback
from fcdpo_utils.preferences import Completion, Preferences, PromptGroup, build_preferences
from fcdpo_utils.problems import Problem
from fcdpo_utils.settings import PreferenceSettings, Settings
from fcdpo_utils.tasks.making import make_problems
from fcdpo_utils.teachers import build_teacher
from fcdpo_utils.teachers.making import make_chains
from fcdpo_utils.tokens import Prompts, Tokens
from fcdpo_utils.trainer import build_trainer, lora_config
from fcdpo_utils.weights import known_students


def chain(prompt: int, *tail: int) -> Tokens:
    """A prompt of four tokens, one policy token, one environment token, then policy tokens."""
    return Tokens((1, 9, prompt, 8, 30, 31, *tail), (False, False, False, False, True, False, *[True] * len(tail)), 4)


TOKENS = [chain(20, 40), chain(20, 41, 42), chain(20, 43), chain(20, 44, 45, 46), chain(21, 40), chain(21, 47, 48)]
GROUPS = [PromptGroup("a", (0, 1), (2, 3)), PromptGroup("b", (4,), (5,))]
PAIRS = [(0, 2), (0, 3), (1, 2), (1, 3), (4, 5)]


def preferences_of(groups: list[PromptGroup], tasks: list[str] | None = None) -> Preferences:
    """Preferences with those groups; what their chains say does not matter."""
    tasks = tasks or ["t"] * len(groups)
    found: dict[int, Completion] = {}
    for group, task in zip(groups, tasks, strict=True):
        for index in (*group.chosen, *group.rejected):
            correct = index in group.chosen
            said = Chain(group.problem_id, (Step(f"Say({index})", "ok", None),), "solved", "1", correct, correct)
            found[index] = Completion(group.problem_id, task, correct, said)
    return Preferences(tuple(found.get(index) for index in range(max(found) + 1)), tuple(groups))


def data_of(
    groups: list[PromptGroup], tokens: list[Tokens] = TOKENS, tasks: list[str] | None = None, **options: Any
) -> GroupDataset:
    """`options`: those of `PreferenceSettings`."""
    return GroupDataset(preferences_of(groups, tasks), tokens, PreferenceSettings(**options))


def settings_of(*overrides: str) -> Settings:
    common = ["training.prompts_per_step=2", "training.save_steps=1", "training.learning_rate=0.01"]
    return load_settings("smoke", [*common, *overrides])


def trainer_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *overrides: str,
    groups: list[PromptGroup] = GROUPS,
    room: Any = engine,
) -> DPOTrainer:
    """A trainer on `TOKENS` with `settings_of(*overrides)`; `room`: its engine."""
    settings = settings_of(*overrides)
    data = GroupDataset(preferences_of(groups), TOKENS, settings.preferences, settings.seed)
    folder.mkdir(exist_ok=True)
    return build_trainer(model, tokenizer, data, settings, folder, folder / "cache.jsonl", room)


def random_llama(vocabulary: int) -> LlamaForCausalLM:
    """Two layers with grouped-query attention, in float64, the same each time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    return LlamaForCausalLM(config).double()


def adapted(model: PreTrainedModel, std: float = 0.1) -> PeftModel:
    """With the adapters that training uses, not at their start, where they change nothing."""
    torch.manual_seed(1)
    peft = get_peft_model(model, lora_config(settings_of().training)).to(model.dtype)
    stir(peft, std)
    return peft


def stir(model: nn.Module, std: float) -> None:
    """Adapters away from their start, so that all of them get a gradient."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=std)


def one_by_one(model: nn.Module, sequences: list[Tokens]) -> Tensor:
    """The definition: one ordinary causal pass per sequence, (sequences,)."""
    return torch.stack([sequence_log_prob(model, tokens) for tokens in sequences])


def gradients(model: nn.Module, value: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(value, [p for p in model.parameters() if p.requires_grad], retain_graph=True))


def expanded_loss(model: nn.Module, sequences: list[Tokens], k: int, reference: Tensor, beta: float) -> Tensor:
    """The definition: every pair of the first k and the other sequences on its own."""
    rewards = beta * (one_by_one(model, sequences) - reference)
    return expanded_dpo_loss(rewards[:k], rewards[k:])


def dims_of(name: str) -> ModelDims:
    """The dimensions of a known student."""
    return ModelDims(**known_students()[name]["dims"])


def config_of(architecture: str, dims: ModelDims, **more: object) -> PretrainedConfig:
    return getattr(transformers, architecture).config_class(
        num_hidden_layers=dims.layers,
        hidden_size=dims.hidden,
        num_attention_heads=dims.heads,
        num_key_value_heads=dims.kv_heads,
        intermediate_size=dims.intermediate,
        vocab_size=dims.vocabulary,
        tie_word_embeddings=dims.tied,
        sliding_window=dims.window,
        **more,
    )


def silent(label: str) -> ProgressCallback:
    """No progress."""
    return lambda done, total, note="": None


@dataclass(frozen=True)
class SmokeData:
    """What notebooks 01 to 03 make with the profile `smoke`: `chains` is the file of stored chains."""

    problems: tuple[Problem, ...]
    chains: Path
    preferences: Preferences
    prompts: Prompts


def smoke_data_in(folder: Path) -> SmokeData:
    settings = load_settings("smoke")
    problems = [problem for name, task in settings.tasks.items() for problem in make_problems(name, task, 0)]
    train, chains = [problem for problem in problems if problem.split == "train"], folder / "chains.jsonl"
    make_chains(chains, train, settings, build_teacher, silent(""))
    preferences = build_preferences(load_chains(chains))
    return SmokeData(tuple(problems), chains, preferences, prompts_of(train))


@st.composite
def families(draw: st.DrawFn, prompt_tokens: int = 30, fewest: int = 2, most: int = 8) -> list[Tokens]:
    """`fewest` to `most` ragged sequences over a small alphabet: they share a prompt, and prefixes by chance."""
    prompt = draw(st.lists(st.integers(3, 5), min_size=1, max_size=prompt_tokens))
    sequences = []
    for _ in range(draw(st.integers(fewest, most))):
        body = draw(st.lists(st.tuples(st.integers(3, 5), st.booleans()), max_size=12))
        ids = (*prompt, *(token for token, _ in body), 6)
        policy = (*[False] * len(prompt), *(flag for _, flag in body), True)
        sequences.append(Tokens(ids, policy, len(prompt)))
    return sequences

"""One process of data-parallel trainings of a tiny model, for `test_distributed.py`: [FOLDER STEPS SETTING... --]...

The adapters and the curve of the first training are left in its folder as `0.safetensors` and `0.json`, and so on.
"""

import sys
from itertools import groupby
from pathlib import Path

import torch
from safetensors.torch import save_file
from small import data_of
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)

from fcdpo_utils import engine
from fcdpo_utils.lab.settings import load_settings
from fcdpo_utils.preferences import PromptGroup
from fcdpo_utils.store import write_json
from fcdpo_utils.students import embedded_student
from fcdpo_utils.tokens import Tokens
from fcdpo_utils.trainer import build_trainer, curve, distributed_state, last_checkpoint


def chain(prompt: int, *tail: int) -> Tokens:
    """A prompt of four tokens, then policy tokens."""
    return Tokens((1, 9, prompt, 8, *tail), (False,) * 4 + (True,) * len(tail), 4)


class StopAfter(TrainerCallback):
    """Ends the training after so many steps, as if it had been killed; 0: not."""

    def __init__(self, steps: int):
        self.steps = steps

    def on_step_end(self, args: object, state: TrainerState, control: TrainerControl, **_: object) -> None:
        control.should_training_stop |= state.global_step == self.steps


def train(number: int, folder: Path, stop_after: int, changes: list[str]) -> None:
    """Three epochs over four groups of different sizes, one with long chains; goes on where there is a checkpoint."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, initializer_range=0.3, pad_token_id=2))
    tokens = [chain(20 + i // 4, *range(30 + i, 33 + i + i % 3)) for i in range(12)]
    tokens += [chain(23, *(30 + (i * place) % 31 for place in range(1, 50))) for i in range(12, 16)]
    sides = [((0, 1), (2, 3)), ((4,), (5, 6, 7)), ((8, 9, 10), (11,)), ((12,), (13,))]
    groups = [PromptGroup(str(i), *side) for i, side in enumerate(sides)]
    fixed = ["epochs=3", "learning_rate=0.01", "save_steps=1"]
    settings = load_settings("smoke", [f"training.{change}" for change in (*fixed, *changes)])
    data = data_of(groups, tokens)
    tokenizer = AutoTokenizer.from_pretrained(embedded_student())
    trainer = build_trainer(model, tokenizer, data, settings, folder / "c", folder / "references.sqlite", engine)
    trainer.add_callback(StopAfter(stop_after))
    trainer.train(resume_from_checkpoint=last_checkpoint(folder / "c"))
    if distributed_state().is_main_process:
        state = trainer.accelerator.unwrap_model(trainer.model).state_dict()
        lora = {name: weights.contiguous() for name, weights in state.items() if "lora" in name}
        save_file(lora, folder / f"{number}.safetensors")
        write_json(folder / f"{number}.json", curve(trainer))


if __name__ == "__main__":
    trainings = [list(words) for last, words in groupby(sys.argv[1:], "--".__eq__) if not last]
    for number, (folder, steps, *changes) in enumerate(trainings):
        train(number, Path(folder), int(steps), changes)

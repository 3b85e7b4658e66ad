"""One student trained on preference data, from tokens to adapter: the steps of notebook 04 as one function.

Ablation arms and further rounds train through it. Knows nothing of how the data were made or what comes after.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trl import DPOTrainer

from fcdpo_utils import store
from fcdpo_utils.artifacts import ADAPTER_FILE, Report, tokenise, training_identity
from fcdpo_utils.dpo import BlockDataset, build_trainer, curve, last_checkpoint, progress_callback
from fcdpo_utils.models import CACHE, describe, load_student
from fcdpo_utils.preferences import Preferences
from fcdpo_utils.profiles import Settings
from fcdpo_utils.tokens import Message, Tokens

REFERENCES = CACHE / "reference_log_probs.jsonl"


def block_dataset(preferences: Preferences, tokens: list[Tokens], settings: Settings) -> BlockDataset:
    """The blocks as a data set for the settings' pairs. Raises ValueError where no prompt has both kinds of chains."""
    blocks, options = preferences.blocks, settings.preferences
    tasks = {completion.problem_id: completion.task for completion in preferences.completions}
    return BlockDataset(
        tokens,
        blocks,
        [tasks[block.problem_id] for block in blocks],
        options.max_chosen,
        options.max_rejected,
        settings.training.block_weight,
        settings.seed,
        all_pairs=options.pairs == "augmented",
    )


def pairs_of(preferences: Preferences, settings: Settings) -> list[tuple[int, int]]:
    """D* or Da, as the settings say: what TRL's own trainer passes one by one."""
    original = settings.preferences.pairs == "original"
    return preferences.original_pairs() if original else preferences.augmented_pairs()


def training_summary(trainer: DPOTrainer, dataset: BlockDataset, pairs: int, settings: Settings) -> dict[str, Any]:
    """What the run was; loss and margin at the end are means over the last tenth of the steps.

    `pairs`: how many TRL's own trainer was given; the grouped one counts those that it draws.
    """
    rows, training = curve(trainer), settings.training
    end = rows[-math.ceil(len(rows) / 10) :]
    return {
        "trainer": training.trainer,
        "prompts": len(dataset),
        "pairs": pairs if training.trainer == "stock" else rows[-1]["num_pairs"],
        "steps": len(rows),
        "loss_first": rows[0]["loss"],
        "loss_end": sum(row["loss"] for row in end) / len(end),
        "margin_end": sum(row["rewards/margins"] for row in end) / len(end),
        "tokens": rows[-1]["num_tokens"],
    }


def train_student(
    folder: Path,
    preferences: Preferences,
    prompts: dict[str, list[Message]],
    settings: Settings,
    progress: Callable[[str], Report],
    start: Path | None = None,
) -> dict[str, Any]:
    """Train an adapter and save it in `folder/adapter`, a fresh one or `start` further; returns `training_summary`.

    What is finished is not done again, what was interrupted goes on from its last checkpoint; both only where data,
    settings and code are the same. `progress` makes a reporting function for a label.
    """
    identity = training_identity(preferences, prompts, settings, start)
    record, weights = folder / "training.json", folder / "adapter" / ADAPTER_FILE
    if record.exists() and weights.exists():
        done = store.read_json(record)
        if (done.get("identity"), done.get("adapter")) == (identity, store.file_digest(weights)):
            return done
    record.unlink(missing_ok=True)  # it never speaks of another adapter than the one beside it
    model, tokenizer = load_student(settings.student, start, trainable=True)
    student = describe(model)
    tokens = tokenise(preferences, prompts, tokenizer, settings.training.mask_results)
    dataset, pairs = block_dataset(preferences, tokens, settings), pairs_of(preferences, settings)
    checkpoints = folder / "checkpoints" / identity
    report = progress("reference chains")
    trainer = build_trainer(model, tokenizer, dataset, settings, checkpoints, REFERENCES, pairs, report)
    trainer.add_callback(progress_callback(progress("training step")))
    trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
    trainer.save_model(str(folder / "adapter"))
    made = {"identity": identity, "adapter": store.file_digest(weights), "student": student}
    summary = made | training_summary(trainer, dataset, len(pairs), settings)
    store.write_json(record, summary)
    shutil.rmtree(folder / "checkpoints")
    return summary

"""One student trained on preference data, from tokens to adapter: the steps of notebook 04 as one function.

Ablation arms and further rounds train through it, and so does a run on several GPUs, each with its share of every step:

    accelerate launch -m fcdpo_utils.train --profile paper

A step has the same prompts however many share it (but for the last one of an epoch that does not divide evenly, where
some come twice): notebook 04 then finds the last checkpoint of a finished training, and one that was interrupted goes
on with another number of GPUs, or one. Knows nothing of how the data were made or what comes after.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from trl import DPOTrainer

from fcdpo_utils import store
from fcdpo_utils.artifacts import (
    ADAPTER_FILE,
    Report,
    load_preferences,
    load_problems,
    prompts_of,
    tokenise,
    training_identity,
)
from fcdpo_utils.dpo import BlockDataset, build_trainer, curve, distributed_state, last_checkpoint, progress_callback
from fcdpo_utils.models import CACHE, ModelError, describe, free_memory, load_student
from fcdpo_utils.preferences import Preferences
from fcdpo_utils.profiles import Settings, SettingsError, load_settings
from fcdpo_utils.provenance import ROOT
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
    """D* or Da, as the settings say: what TRL's own trainer passes one by one. The grouped trainer draws its own."""
    if settings.training.trainer == "grouped":
        return []
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
    state = distributed_state()
    state.wait_for_everyone()  # all have looked
    if state.is_main_process:
        record.unlink(missing_ok=True)  # it never speaks of another adapter than the one beside it
    with state.main_process_first():  # which may have a file to convert
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
    state.wait_for_everyone()
    made = {"identity": identity, "adapter": store.file_digest(weights), "student": student}
    summary = made | training_summary(trainer, dataset, len(pairs), settings)
    if state.is_main_process:
        store.write_json(record, summary)
    return summary


def drop_checkpoints(folder: Path) -> None:
    """After a training that is not to be resumed: give back the disk and the memory that it took."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    free_memory()


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the student of a run whose notebooks 01 to 03 are done; returns the exit code."""
    parser = argparse.ArgumentParser(prog="accelerate launch -m fcdpo_utils.train", description=main.__doc__)
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="as for fcdpo run")
    parser.add_argument("--run-dir", type=Path, help="default: outputs/<profile>")
    options = parser.parse_args(arguments)
    distributed_state(
        timeout=timedelta(hours=6)
    )  # the others wait while the first one downloads, and passes the references
    try:
        settings = load_settings(options.profile, options.set)
        folder = options.run_dir or ROOT / "outputs" / options.profile
        store.require(folder / "blocks.jsonl", "03")
        prompts = prompts_of(load_problems(folder / "problems.jsonl", "train"), settings)
        made = train_student(folder, load_preferences(folder), prompts, settings, _print_progress)
    except (SettingsError, ModelError, store.StoreError, ValueError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 1
    if distributed_state().is_main_process:
        print(f"{made['steps']} steps, {made['pairs']} pairs, adapter in {folder / 'adapter'}")
    return 0


def _print_progress(label: str) -> Report:
    """A line for every twentieth part, from the main process alone."""

    def report(done: int, total: int, note: str = "") -> None:
        if distributed_state().is_main_process and done % max(total // 20, 1) == 0:
            print(f"{label} {done}/{total}", flush=True)

    return report


if __name__ == "__main__":
    sys.exit(main())

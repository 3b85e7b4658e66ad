"""One student trained on preference data, from tokens to adapter. The warm-up and all variants train through it, too.

Writes `adapter/`, `training.json` (what the training was) and `training_curve.csv` (one row a step) into a folder.
Knows nothing of how the data were made or what comes after.
"""

import csv
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Self

from transformers import PreTrainedTokenizerBase, PrinterCallback

from fcdpo_utils import store
from fcdpo_utils.dataset import GroupDataset
from fcdpo_utils.fingerprint import CACHE, code_of, fingerprint
from fcdpo_utils.plain import Engine, Progress
from fcdpo_utils.preferences import Preferences
from fcdpo_utils.settings import Settings
from fcdpo_utils.students import describe, free_memory, load_student
from fcdpo_utils.tokens import Prompts, Tokens, encode_chat, unmasked
from fcdpo_utils.trainer import StepProgress, build_trainer, curve, distributed_state, last_checkpoint
from fcdpo_utils.weights import ADAPTER_FILE, student_fingerprint

REFERENCES = CACHE / "reference_log_probs.sqlite"


@dataclass(frozen=True)
class TrainingSummary:
    """What a training was; loss, margin and chosen reward at the end are means over the last tenth of the steps.

    `pairs` and `tokens`: those that the loss saw; `fingerprint`: of all it depended on; `adapter`: SHA-256 of weights.
    """

    fingerprint: str
    adapter: str
    student: str
    trainer: str
    prompts: int
    pairs: int
    steps: int
    loss_first: float
    loss_end: float
    margin_end: float
    chosen_end: float
    tokens: int

    @property
    def displaced(self) -> bool:
        """Whether the margin rose while chosen chains grew less likely (likelihood displacement, arXiv 2410.08847)."""
        return self.chosen_end < 0 < self.margin_end

    @classmethod
    def of(cls, rows: Sequence[dict[str, float]], **facts: Any) -> Self:
        """From the curve's rows, and what they do not tell."""
        end = rows[-math.ceil(len(rows) / 10) :]
        columns = {"loss_end": "loss", "margin_end": "rewards/margins", "chosen_end": "rewards/chosen"}
        means = {name: fmean(row[column] for row in end) for name, column in columns.items()}
        return cls(**facts, **means, steps=len(rows), loss_first=rows[0]["loss"], tokens=rows[-1]["num_tokens"])


def tokenise(
    preferences: Preferences, prompts: Prompts, tokenizer: PreTrainedTokenizerBase, mask_results: bool = True
) -> list[Tokens]:
    """Every completion after its prompt, tokenised once; without `mask_results`, all its tokens are the policy's.

    A rejected call in a correct chain is masked as results are: nobody is taught to stumble.
    """
    tokens = []
    for c in preferences.completions:
        stumbles = [place for place, step in enumerate(c.chain.steps) if c.correct and step.error]
        tokens.append(encode_chat(tokenizer, prompts[c.problem_id] + c.chain.messages(), stumbles))
    return tokens if mask_results else [unmasked(sequence) for sequence in tokens]


def train_student(
    folder: Path,
    preferences: Preferences,
    prompts: Prompts,
    settings: Settings,
    engine: Engine,
    progress: Progress,
    start: Path | None = None,
) -> TrainingSummary:
    """Train an adapter and save it in `folder/adapter`, a fresh one or `start` further.

    What is finished is not done again, what was interrupted goes on from its last checkpoint; both only where data,
    settings, model and code are the same. `progress` makes a callback for a label.
    """
    identity = training_fingerprint(preferences, prompts, settings, engine, start)
    record, weights = folder / "training.json", folder / "adapter" / ADAPTER_FILE
    if done := finished_training(folder, identity):
        return done
    state = distributed_state()
    state.wait_for_everyone()  # all have looked
    if state.is_main_process:
        record.unlink(missing_ok=True)  # it never speaks of another adapter than the one beside it
    with state.main_process_first():  # which may have a file to convert
        model, tokenizer = load_student(settings.student, start, trainable=True)
    student = describe(model)
    tokens = tokenise(preferences, prompts, tokenizer, settings.training.mask_results)
    groups = GroupDataset(preferences, tokens, settings.preferences, settings.seed)
    checkpoints, report = folder / "checkpoints" / identity, progress("reference chains")
    trainer = build_trainer(model, tokenizer, groups, settings, checkpoints, REFERENCES, engine, report)
    trainer.remove_callback(PrinterCallback)  # every step is a row of the curve already
    trainer.add_callback(StepProgress(progress("training step")))
    trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
    trainer.save_model(str(folder / "adapter"))
    state.wait_for_everyone()
    rows = curve(trainer)
    made = {"fingerprint": identity, "adapter": store.file_digest(weights), "student": student}
    name = settings.training.trainer
    data = {"prompts": len(groups), "pairs": len(groups.pairs()) if name == "stock" else rows[-1]["num_pairs"]}
    summary = TrainingSummary.of(rows, **made, **data, trainer=name)
    if state.is_main_process:
        _save_curve(folder / "training_curve.csv", rows)
        store.write_json(record, vars(summary))
    return summary


def _save_curve(path: Path, rows: list[dict[str, float]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def training_fingerprint(
    preferences: Preferences, prompts: Prompts, settings: Settings, engine: Engine, start: Path | None = None
) -> str:
    """Of all that a training depends on: code, data, student, settings, seed, and the adapter that it goes on from."""
    return fingerprint(
        {
            "code": code_of(__name__, engine.__name__),
            "completions": [c.chain.record(correct=c.correct) for c in preferences.completions],
            "groups": [vars(group) for group in preferences.groups],
            "prompts": prompts,
            "student": student_fingerprint(settings.student, start),
            "preferences": settings.preferences.model_dump(),
            "training": settings.training.model_dump(),
            "seed": settings.seed,
        }
    )


def finished_training(folder: Path, identity: str) -> TrainingSummary | None:
    """What a finished training of that fingerprint left in `folder`, its adapter being as it was; else None."""
    record, weights = folder / "training.json", folder / "adapter" / ADAPTER_FILE
    if not (record.exists() and weights.exists()):
        return None
    done = store.read_json(record)
    same = (done.get("fingerprint"), done.get("adapter")) == (identity, store.file_digest(weights))
    return TrainingSummary(**done) if same else None


def drop_checkpoints(folder: Path) -> None:
    """After a training that is not to be resumed: give back the disk and the memory that it took."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    free_memory()

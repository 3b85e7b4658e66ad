"""One validated settings object per run: what its stages do. A profile names them, `a.b=c` overrides change them.

Every setting that a notebook uses comes from here; unknown names and wrong types are refused before anything runs.
"""

import os
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from fcdpo_utils.fingerprint import ROOT


class SettingsError(ValueError):
    """One line: the profile or setting that is wrong and what was expected."""


class SettingsGroup(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


STARTED_IN = "FCDPO_STARTED_IN"  # environment variable: the folder of the command that runs the notebooks


def _absolute(path: str) -> str:
    """From that folder or the checkout: notebooks and the command that runs them work in different folders."""
    here = os.path.join(os.environ.get(STARTED_IN) or os.getcwd(), os.path.expanduser(path))
    return str(ROOT / path) if (ROOT / path).is_file() and not os.path.isfile(here) else here


File = Annotated[str, AfterValidator(_absolute)]  # while hub ids stay as they are:
ModelSource = Annotated[str, AfterValidator(lambda name: str(ROOT / name) if (ROOT / name).exists() else name)]
Naming = Literal["fixed", "natural", "invented", "mixed"]
DType = Literal["auto", "float32", "bfloat16", "float16"]
Author = Literal["teacher", "student", "both"]
Toolsets = Annotated[tuple[str, ...], BeforeValidator(lambda name: (name,) if isinstance(name, str) else name or ())]


class TaskSettings(SettingsGroup):
    """How many problems of one task, and of which kind."""

    train: int = Field(ge=0, description="training problems")
    test: int = Field(ge=0, description="held-out problems")
    levels: tuple[int, ...] = Field(default=(), description="difficulty levels, taken in turn; of an own task: all")
    toolset: Toolsets = Field(default=(), description="a name, or several for problems in turn; () is the default one")
    naming: Naming = Field(default="fixed", description="of training problems: whose names their functions go by")
    share_names: int = Field(default=1, ge=1, description="so many have drawn names in common; a step passes them once")
    missing: float = Field(default=0.0, ge=0, le=1, description="share of them that lack a function they need")
    path: File | None = Field(default=None, description="of gsm8k and folio: a JSONL file; relative to the checkout")
    test_path: File | None = Field(default=None, description="another such file for the held-out problems")
    file: File | None = Field(default=None, description="of an own task: the Python file that defines it")


class StudentSettings(SettingsGroup):
    """The model that learns."""

    source: ModelSource = Field(default="embedded", description="'embedded', a folder, a hub id, or a .gguf in one")
    dtype: DType = "auto"
    four_bit: bool = Field(default=False, description="NF4 with double quantisation (QLoRA)")


class TeacherSettings(SettingsGroup):
    """Who makes the chains."""

    kind: Literal["scripted", "local", "server"] = "scripted"
    samples: int = Field(default=4, ge=1, description="chains per training problem, at most")
    min_per_label: int = Field(default=0, ge=0, description="stop at so many distinct chains of each kind; 0: never")
    error_rate: float = Field(default=0.5, ge=0, le=1, description="scripted: share of chains that get a mistake")
    variation: float = Field(default=0.3, ge=0, le=1, description="scripted: share of correct ones in another order")
    model: ModelSource = Field(default="embedded", description="local: as student.source; server: the name it serves")
    adapter: ModelSource | None = Field(default=None, description="local: the folder of a LoRA adapter on the model")
    dtype: DType = Field(default="auto", description="local")
    four_bit: bool = Field(default=False, description="local: NF4")
    call_format: Literal["python", "tools"] = Field(default="python", description="tools: the model's own template")
    base_url: str = Field(default="http://localhost:8000/v1", description="server: an OpenAI-compatible endpoint")
    key_env: str = Field(default="", pattern=r"^([A-Za-z_]\w*)?$", description="server: which variable has its key")
    temperature: float = Field(default=0.7, ge=0, description="local and server")
    turn_tokens: int = Field(default=128, ge=8, description="local and server: longest message")
    concurrency: int = Field(default=64, ge=1, description="local and server: chains that advance together")
    max_chains: int = Field(default=0, ge=0, description="chains of all problems together; 0: no limit")
    max_tokens: int = Field(default=0, ge=0, description="tokens read and written; 0: no limit")
    max_cost: float = Field(default=0.0, ge=0, description="in the currency of prices; 0: no limit")
    prices: tuple[float, float] = Field(default=(0.0, 0.0), description="of a million tokens read, and written")

    @property
    def student(self) -> StudentSettings:
        """A local teacher's model, as a student is named."""
        return StudentSettings(source=self.model, dtype=self.dtype, four_bit=self.four_bit)

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if self.adapter and self.kind != "local":
            raise ValueError(f"teacher.adapter: only a local teacher has one, this is a {self.kind} one")
        if self.max_cost and not any(self.prices):
            raise ValueError("teacher.max_cost: needs teacher.prices, of a million tokens read and written")
        return self


class Limits(SettingsGroup):
    """When an unfinished chain is ended (after `calls` calls, `errors` rejected ones), what a rejected one says."""

    calls: int = Field(default=24, ge=1)
    errors: int = Field(default=3, ge=1)
    hints: bool = Field(default=False, description="a rejected call says what would come near, where a task knows it")


class WarmUpSettings(SettingsGroup):
    """Supervised fine-tuning on the teacher's correct chains: for a student that cannot call functions yet."""

    share: float = Field(default=0.0, ge=0, lt=1, description="of each task's training problems, the first; 0: none")
    adapter: ModelSource | None = Field(default=None, description="start from this one instead: a further round")
    learning_rate: float = Field(default=2e-3, gt=0)
    epochs: float = Field(default=1.0, gt=0)
    prompts_per_step: int = Field(default=4, ge=1)


class OwnChainsSettings(SettingsGroup):
    """The warmed-up student's own chains, on problems that the warm-up left."""

    samples: int = Field(default=0, ge=0, description="of each problem; 0: only the teacher's chains are used")
    temperature: float = Field(default=1.0, gt=0)
    errors: int = Field(default=1, ge=1, description="a chain ends at so many; from 2 on some get up after one")
    mended: bool = Field(default=False, description="the teacher goes on after their errors; see label valid")


class PreferenceSettings(SettingsGroup):
    """How chains become pairs."""

    label: Literal["sound", "valid", "solved", "shuffled"] = Field(
        default="sound",
        description="what makes a chain 'chosen'; valid: sound but for rejected calls, which are masked; shuffled: "
        "chance, a control that must not help",
    )
    pairs: Literal["augmented", "original"] = Field(default="augmented", description="Da or D*")
    max_chosen: int = Field(default=8, ge=1, description="correct chains of a prompt used in one epoch")
    max_rejected: int = Field(default=8, ge=0, description="incorrect ones; 0: fine-tuning on correct chains alone")
    chosen_by: Author = Field(default="both", description="whose correct chains are used")
    rejected_by: Author = Field(default="both", description="whose incorrect chains are used")
    rejected: Literal["whole", "first_wrong", "step"] = Field(
        default="whole", description="first_wrong: cut after it; step: right against wrong call after the same prefix"
    )


class TrainingSettings(SettingsGroup):
    """DPO (arXiv 2305.18290) on LoRA adapters (arXiv 2106.09685)."""

    trainer: Literal["grouped", "stock"] = "grouped"
    learning_rate: float = Field(default=1e-3, gt=0)
    loss: Literal["sigmoid", "sigmoid_norm", "apo_zero", "orpo"] = Field(default="sigmoid", description="TRL's names")
    epochs: float = Field(default=1.0, gt=0)
    steps: int = Field(default=0, ge=0, description="optimiser steps in place of epochs; 0: epochs count")
    prompts_per_step: int = Field(default=4, ge=1)
    accumulation: int = Field(default=1, ge=1)
    beta: float = Field(default=0.1, gt=0)
    dpo_weight: float = Field(default=1.0, ge=0)
    sft_weight: float = Field(default=1.0, ge=0)
    mask_results: bool = Field(default=True, description="false: functions' results count as the student's own words")
    lora_rank: int = Field(default=16, ge=1)
    lora_alpha: int = Field(default=32, ge=1)
    warmup: float = Field(default=0.06, ge=0, lt=1, description="share of the steps")
    pack_tokens: int = Field(default=6_000, ge=64, description="tokens of one pass; larger batches are split")
    gradient_checkpointing: bool | Literal["auto"] = Field(default="auto", description="auto: where a GPU lacks room")
    save_steps: int = Field(default=20, ge=1)


class EvaluationSettings(SettingsGroup):
    """Greedy decoding of held-out problems."""

    batch_size: int = Field(default=64, ge=1)
    turn_tokens: int = Field(default=48, ge=8)


class Settings(SettingsGroup):
    """Everything a run depends on."""

    profile: str
    seed: int = 0
    tasks: dict[str, TaskSettings]
    limits: Limits = Limits()
    teacher: TeacherSettings = TeacherSettings()
    warm_up: WarmUpSettings = WarmUpSettings()
    own_chains: OwnChainsSettings = OwnChainsSettings()
    preferences: PreferenceSettings = PreferenceSettings()
    student: StudentSettings = StudentSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    report_to: Literal["none", "tensorboard", "trackio"] = Field(default="none", description="follows a training live")
    expected_minutes: tuple[float, ...] = Field(description="per stage, for the first estimate of what is left")

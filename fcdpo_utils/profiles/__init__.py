"""One validated settings object per run, from `<profile>.yaml` beside this file plus `a.b=c` overrides.

Every setting that a notebook uses comes from here; unknown names and wrong types are refused before anything runs.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fcdpo_utils.provenance import ROOT
from fcdpo_utils.store import slug

PROFILES = Path(__file__).parent


class SettingsError(ValueError):
    """One line: the profile or setting that is wrong and what was expected."""


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TaskSettings(_Group):
    """How many problems of one task, and of which kind."""

    train: int = Field(ge=0, description="training problems")
    test: int = Field(ge=0, description="held-out problems")
    levels: tuple[int, ...] = Field(description="difficulty levels, taken in turn")
    toolset: str | None = Field(default=None, description="None is the task's default toolset")
    path: str | None = Field(default=None, description="a JSONL file of GSM8K's form; relative to the checkout")
    test_path: str | None = Field(default=None, description="another such file for the held-out problems")

    @field_validator("path", "test_path")
    @classmethod
    def _absolute(cls, path: str | None) -> str | None:
        """Notebooks and the command that runs them work in different folders."""
        return None if path is None else str(ROOT / path)


def _model_source(source: str) -> str:
    """Hub ids and absolute paths stay; a folder or file in the checkout becomes absolute."""
    return str(ROOT / source) if (ROOT / source).exists() else source


ModelSource = Annotated[str, AfterValidator(_model_source)]
DType = Literal["auto", "float32", "bfloat16", "float16"]
ProbeTask = Literal["fol", "arithmetic", "knights_knaves", "ordering", "rewriting", "family"]
TaskName = Literal[ProbeTask, "gsm8k"]


class TeacherSettings(_Group):
    """Who makes the chains."""

    kind: Literal["scripted", "local", "server"] = "scripted"
    samples: int = Field(default=4, ge=1, description="chains per training problem, at most")
    enough: int = Field(default=0, ge=0, description="stop at so many distinct chains of each kind; 0: never")
    error_rate: float = Field(default=0.5, ge=0, le=1, description="scripted: share of chains that get a mistake")
    variation: float = Field(default=0.3, ge=0, le=1, description="scripted: share of correct ones in another order")
    model: ModelSource = Field(default="embedded", description="local: as student.source; server: the name it serves")
    adapter: ModelSource | None = Field(default=None, description="local: the folder of a LoRA adapter on the model")
    dtype: DType = Field(default="auto", description="local")
    four_bit: bool = Field(default=False, description="local: NF4")
    call_format: Literal["python", "tools"] = Field(
        default="python", description="local and server: calls as text, or by the model's own tool template"
    )
    base_url: str = Field(default="http://localhost:8000/v1", description="server: an OpenAI-compatible endpoint")
    temperature: float = Field(default=0.7, ge=0, description="local and server")
    turn_tokens: int = Field(default=128, ge=8, description="local and server: longest message")
    parallel: int = Field(default=64, ge=1, description="local and server: chains that advance together")
    max_chains: int = Field(default=0, ge=0, description="chains of all problems together; 0: no limit")
    max_tokens: int = Field(default=0, ge=0, description="tokens read and written; 0: no limit")
    max_cost: float = Field(default=0.0, ge=0, description="in the currency of prices; 0: no limit")
    prices: tuple[float, float] = Field(default=(0.0, 0.0), description="of a million tokens read, and written")

    @model_validator(mode="after")
    def _only_a_local_teacher_has_an_adapter(self) -> TeacherSettings:
        if self.adapter and self.kind != "local":
            raise ValueError(f"teacher.adapter: only a local teacher has one, this is a {self.kind} one")
        return self

    @model_validator(mode="after")
    def _a_cost_needs_prices(self) -> TeacherSettings:
        if self.max_cost and not any(self.prices):
            raise ValueError("teacher.max_cost: needs teacher.prices, of a million tokens read and written")
        return self


class LimitSettings(_Group):
    """When an unfinished chain is ended."""

    calls: int = Field(default=24, ge=1)
    errors: int = Field(default=3, ge=1)


class PreferenceSettings(_Group):
    """How chains become pairs."""

    label: Literal["sound", "solved"] = Field(default="sound", description="what makes a chain 'chosen'")
    pairs: Literal["augmented", "original"] = Field(default="augmented", description="Da or D*")
    max_chosen: int = Field(default=8, ge=1, description="correct chains of a prompt used in one epoch")
    max_rejected: int = Field(default=8, ge=1, description="incorrect chains of a prompt used in one epoch")


class StudentSettings(_Group):
    """The model that learns."""

    source: ModelSource = Field(default="embedded", description="'embedded', a folder, a hub id, or a .gguf in one")
    dtype: DType = "auto"
    four_bit: bool = Field(default=False, description="NF4 with double quantisation (QLoRA)")


class TrainingSettings(_Group):
    """DPO (arXiv 2305.18290) on LoRA adapters (arXiv 2106.09685)."""

    trainer: Literal["grouped", "stock"] = "grouped"
    learning_rate: float = Field(default=1e-3, gt=0)
    epochs: float = Field(default=1.0, gt=0)
    prompts_per_step: int = Field(default=4, ge=1)
    accumulation: int = Field(default=1, ge=1)
    beta: float = Field(default=0.1, gt=0)
    dpo_weight: float = Field(default=1.0, ge=0)
    sft_weight: float = Field(default=1.0, ge=0)
    mask_results: bool = Field(default=True, description="false: functions' results count as the student's own words")
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    block_weight: Literal["pairs", "prompts"] = Field(default="prompts", description="what the mean loss is over")
    lora_rank: int = Field(default=16, ge=1)
    lora_alpha: int = Field(default=32, ge=1)
    warmup: float = Field(default=0.06, ge=0, lt=1, description="share of the steps")
    row_tokens: int = Field(default=6_000, ge=64, description="tokens of one pass; larger batches are split")
    gradient_checkpointing: bool | Literal["auto"] = Field(
        default="auto", description="keep each layer's input only; auto: on a GPU where rows do not fit otherwise"
    )
    save_steps: int = Field(default=20, ge=1)


class EvaluationSettings(_Group):
    """Greedy decoding of held-out problems."""

    batch_size: int = Field(default=64, ge=1)
    turn_tokens: int = Field(default=48, ge=8)
    cuda_graphs: bool = Field(
        default=False, description="record passes on a GPU and replay them; not yet tried on a GPU"
    )


class ArmSettings(_Group):
    """One arm of the ablations: the full method with some settings changed."""

    question: str
    arm: str
    change: tuple[str, ...] = Field(description="as after --set, such as training.beta=0.5")

    @field_validator("change")
    @classmethod
    def _of_what_arms_do_not_share(cls, change: tuple[str, ...]) -> tuple[str, ...]:
        for override in change:
            if override.partition(".")[0] not in ("preferences", "training", "student"):
                raise ValueError(f"ablations: {override}: an arm changes preferences, training or student")
        return change


class ProbeSettings(_Group):
    """One set of problems outside what was trained on."""

    name: str
    task: ProbeTask
    split: Literal["test", "ood_words", "ood_depth"] = "test"
    levels: tuple[int, ...]
    test: int = Field(default=100, ge=1, description="problems")
    toolset: str | None = None


_LONGER = ProbeSettings(name="longer proofs", task="fol", split="ood_depth", levels=(4, 5, 6))
_PROBES = (
    _LONGER,
    ProbeSettings(name="other words", task="fol", split="ood_words", levels=(1, 2, 3)),
    ProbeSettings(name="logic, other functions", task="fol", levels=(1, 2, 3), toolset="decide"),
    ProbeSettings(name="arithmetic, other functions", task="arithmetic", levels=(2, 3, 4, 5), toolset="expression"),
    ProbeSettings(name="knights and knaves", task="knights_knaves", levels=(1, 2, 3)),
    ProbeSettings(name="ordering", task="ordering", levels=(1, 2, 3)),
    ProbeSettings(name="string rewriting", task="rewriting", levels=(1, 2, 3)),
    ProbeSettings(name="family relations", task="family", levels=(1, 2, 3)),
)


class GeneralisationSettings(_Group):
    """What the trained student is asked besides its own tasks."""

    probes: tuple[ProbeSettings, ...] = Field(default=_PROBES, min_length=1)
    calls: int = Field(default=40, ge=1, description="limits.calls for all probes: deep proofs are long")


class RoundSettings(_Group):
    """Further rounds, in which the student is its own teacher (iterative DPO)."""

    count: int = Field(default=2, ge=2, description="rounds altogether, the one of notebook 04 included")
    train: int = Field(default=120, ge=1, description="new problems of each task in each round")
    levels: dict[TaskName, tuple[int, ...]] = Field(default={"fol": (3, 5)}, description="of the new problems")
    samples: int = Field(default=8, ge=2, description="chains of each problem")
    replay: int = Field(default=40, ge=0, description="prompts of each task of the first round, trained on again")
    temperature: float = Field(default=0.7, gt=0)
    learning_rate_share: float = Field(default=0.05, gt=0, le=1, description="of training.learning_rate")
    probes: tuple[ProbeSettings, ...] = Field(
        default=(_LONGER.model_copy(update={"test": 200}),),
        description="asked after every round, besides the held-out tests",
    )


class Settings(_Group):
    """Everything a run depends on."""

    profile: str
    seed: int = 0
    tasks: dict[TaskName, TaskSettings]
    limits: LimitSettings = LimitSettings()
    teacher: TeacherSettings = TeacherSettings()
    preferences: PreferenceSettings = PreferenceSettings()
    student: StudentSettings = StudentSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    ablations: tuple[ArmSettings, ...] = ()
    generalisation: GeneralisationSettings = GeneralisationSettings()
    rounds: RoundSettings = RoundSettings()
    expected_minutes: tuple[float, ...] = Field(description="per stage, for the first estimate of what is left")

    @model_validator(mode="after")
    def _only_gsm8k_reads_a_file(self) -> Settings:
        for name, task in self.tasks.items():
            for field in ("path", "test_path"):
                if getattr(task, field) is not None and name != "gsm8k":
                    raise ValueError(f"tasks.{name}.{field}: only gsm8k reads a file")
        return self

    @model_validator(mode="after")
    def _arms_and_probes_make_sense(self) -> Settings:
        _require_distinct("ablations", ["full method", *(arm.arm for arm in self.ablations)])
        for group, probes in (("generalisation", self.generalisation.probes), ("rounds", self.rounds.probes)):
            _require_distinct(f"{group}.probes", ["tests", *self.tasks, *(probe.name for probe in probes)])
        for arm in self.ablations:
            try:
                self.changed(arm.change)
            except SettingsError as error:
                raise ValueError(f"ablations, arm {arm.arm!r}: {error}") from None
        return self

    def changed(self, overrides: Sequence[str]) -> Settings:
        """These settings with overrides such as `training.beta=0.5`, without arms. Raises `SettingsError`."""
        values = self.model_dump(mode="json") | {"ablations": ()}
        return _validated(values, overrides)

    def table(self, *also: str) -> str:
        """The settings of notebooks 01 to 05 as indented text, and those of the further ones that are named."""
        hidden = {"ablations", "generalisation", "rounds"} - {*also}
        return yaml.safe_dump(self.model_dump(mode="json", exclude=hidden), sort_keys=False).rstrip()


def load_settings(profile: str, overrides: str | Sequence[str] = ()) -> Settings:
    """Settings of `profile` with overrides such as `teacher.samples=8`: a list, or one string quoted as in a shell.

    Raises `SettingsError` with one line for an unknown profile or setting, or a value of the wrong type.
    """
    path = PROFILES / f"{profile}.yaml"
    known = sorted(p.stem for p in PROFILES.glob("*.yaml"))
    if profile not in known:
        raise SettingsError(f"unknown profile {profile!r}; expected one of {', '.join(known)}")
    values: dict[str, Any] = {"profile": profile, **yaml.safe_load(path.read_text(encoding="utf-8"))}
    return _validated(values, _words(overrides) if isinstance(overrides, str) else overrides)


def _require_distinct(group: str, names: Sequence[str]) -> None:
    """Names become files: ValueError where two would share one, or one would have none."""
    seen = {""}
    for name in names:
        if slug(name) in seen:
            raise ValueError(f"{group}: the name {name!r} is empty, or taken by another")
        seen.add(slug(name))


def _validated(values: dict[str, Any], overrides: Sequence[str]) -> Settings:
    for override in overrides:
        _set(values, override)
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        if first["type"] == "value_error":  # a check of several settings together says everything itself
            raise SettingsError(f"setting {first['ctx']['error']}") from None
        got = "" if first["type"] in ("missing", "extra_forbidden") else f", got {first['input']!r}"
        reason = "unknown setting" if first["type"] == "extra_forbidden" else first["msg"][0].lower() + first["msg"][1:]
        raise SettingsError(f"setting {place}: {reason}{got}") from None


def _words(overrides: str) -> list[str]:
    try:
        return shlex.split(overrides)
    except ValueError as error:
        raise SettingsError(f"overrides {overrides!r}: {str(error).lower()}") from None


def _set(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    *groups, last = name.split(".")
    if not equals or "" in (*groups, last):
        raise SettingsError(f"override {override!r}: expected name=value such as teacher.samples=8")
    for group in groups:
        values = values.setdefault(group, {})
        if not isinstance(values, dict):
            raise SettingsError(f"setting {name}: {group} is not a group of settings")
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise SettingsError(f"setting {name}: cannot read {text!r} as a value") from None

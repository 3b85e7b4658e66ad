"""Settings of the experiments beyond the five stages; all settings of a run, from a profile and overrides."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from fcdpo_utils.lab.grid import slug
from fcdpo_utils.problems import TASKS
from fcdpo_utils.settings import Naming, Settings, SettingsError, SettingsGroup, Toolsets
from fcdpo_utils.tasks import own
from fcdpo_utils.tasks.rows import RowTask

PROFILES = Path(__file__).parents[1] / "profiles"


class VariantSettings(SettingsGroup):
    """One variant of the full method, with some settings changed, or a grid of them: one for each combination."""

    question: str
    name: str = Field(description="of a grid: with {} for each value")
    change: tuple[str, ...] = Field(default=(), description="as after --set, such as training.beta=0.5")
    grid: dict[str, tuple[bool | int | float | str, ...]] = Field(default={}, description="a setting's values")
    together: bool = Field(default=False, description="the settings of the grid move together")

    def expanded(self) -> list[VariantSettings]:
        """The variants of a grid, its last setting varying fastest; itself where it has none.

        Raises ValueError for a setting that all variants share, and a name or values that do not fit the grid.
        """
        for change in (*self.change, *self.grid):
            if change.partition(".")[0] not in ("preferences", "training", "student"):
                raise ValueError(f"ablations: {change}: a variant changes preferences, training or student")
        if not self.grid:
            return [self]
        values, found = self.grid.values(), []
        try:
            for combination in zip(*values, strict=True) if self.together else product(*values):
                name = self.name.format(*combination)
                change = (*self.change, *map("{}={}".format, self.grid, combination))
                found.append(self.model_copy(update={"name": name, "change": change, "grid": {}}))
        except (ValueError, LookupError):
            raise ValueError(f"ablations: the name {self.name!r} or the values do not fit the grid") from None
        return found


class OODSettings(SettingsGroup):
    """One out-of-distribution set: problems outside what was trained on; without a toolset, the run's first one."""

    name: str
    task: str = Field(description="any but gsm8k and folio")
    split: Literal["test", "ood_words", "ood_depth"] = "test"
    levels: tuple[int, ...]
    test: int = Field(default=100, ge=1, description="problems")
    toolset: Toolsets = ()
    naming: Naming = "fixed"
    missing: float = Field(default=0.0, ge=0, le=1)


_SETS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


class GeneralisationSettings(SettingsGroup):
    """What the trained student is asked besides its own tasks."""

    sets: tuple[OODSettings, ...] = Field(default=tuple(OODSettings(**each) for each in _SETS), min_length=1)
    calls: int = Field(default=40, ge=1, description="limits.calls for all sets: deep proofs are long")


class RunSettings(Settings):
    """Everything a run depends on."""

    ablations: tuple[VariantSettings, ...] = ()
    generalisation: GeneralisationSettings = GeneralisationSettings()

    @model_validator(mode="after")
    def _variants_and_sets_make_sense(self) -> RunSettings:
        if self.own_chains.mended and self.preferences.label != "valid":
            raise ValueError("own_chains.mended: mended chains are incorrect ones, but for preferences.label=valid")
        if (self.training.trainer, self.training.loss) == ("stock", "orpo"):
            raise ValueError("training.loss: TRL's own DPO trainer knows no orpo; set training.trainer=grouped")
        names = (ood.name for ood in self.generalisation.sets)
        _require_distinct("generalisation.sets", ["tests", *self.tasks, *names])
        _require_distinct("ablations", ["full method", *(variant.name for variant in self.variants())])
        return self

    def variants(self) -> list[VariantSettings]:
        """All variants of `ablations`; the full method is left out of the grids."""
        full, found = self.changed(()) if self.ablations else self, []
        for entry in self.ablations:
            for variant in entry.expanded():
                try:
                    own = self.changed(variant.change)
                except SettingsError as error:
                    raise ValueError(f"ablations, variant {variant.name!r}: {error}") from None
                if own != full or not entry.grid:
                    found.append(variant)
        return found

    def changed(self, overrides: Sequence[str]) -> RunSettings:
        """These settings with overrides such as `training.beta=0.5`, without variants. Raises `SettingsError`."""
        return self.validated(self.model_dump(mode="json") | {"ablations": ()}, overrides)

    @classmethod
    def validated(cls, values: dict[str, Any], overrides: Sequence[str] = ()) -> Self:
        """Settings from plain values, changed by overrides such as `teacher.samples=8`. Raises `SettingsError`."""
        for override in overrides:
            _set(values, override)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            kind, place, message = first["type"], ".".join(map(str, first["loc"])), first["msg"]
            wrong = {
                "value_error": str(first.get("ctx", {}).get("error")),  # of several settings: says everything itself
                "missing": f"{place}: field required",
                "extra_forbidden": f"{place}: unknown setting",
            }.get(kind, f"{place}: {message[0].lower()}{message[1:]}, got {first['input']!r}")
            raise SettingsError(f"setting {wrong}") from None

    def table(self, *names: str) -> str:
        """Settings as text, one a line, each with its default where that is another value; without `names`, all.

        "training.beta" names one setting, "training" those of that group that are not at their defaults. A task is one
        line. Raises `SettingsError` for a name that is none.
        """
        leaves, defaults = _leaves(self), _leaves(type(self).model_construct())
        if unknown := {*names} - {*leaves} - {leaf.partition(".")[0] for leaf in leaves}:
            raise SettingsError(f"unknown setting {min(unknown)!r}")
        rows = {}
        for leaf, value in leaves.items():
            default = defaults.get(leaf, "")
            if not names or leaf in names or (leaf.partition(".")[0] in names and value != default):
                rows[leaf] = f"{value}  (default {default})" if value != default != "" else value
        width = max(map(len, rows), default=0)
        return "\n".join(f"{leaf:{width}}  {row}".rstrip() for leaf, row in rows.items())


def load_settings(profile: str, overrides: str | Sequence[str] = ()) -> RunSettings:
    """Settings of `profile` with overrides such as `teacher.samples=8`: a list, or one string quoted as in a shell.

    `profile`: the name of a shipped one, or the path of a .yaml file. Runs the files of own tasks (see `know_tasks`).
    Raises `SettingsError` with one line for an unknown profile or setting, or a value of the wrong type.
    """
    values = _profile(profile)
    try:
        changes = shlex.split(overrides) if isinstance(overrides, str) else overrides
    except ValueError as error:
        raise SettingsError(f"overrides {overrides!r}: {str(error).lower()}") from None
    settings = RunSettings.validated(values, changes)
    know_tasks(settings)
    if (name := settings.report_to) != "none" and find_spec(name) is None:
        raise SettingsError(f"setting report_to: {name} is not installed; pip install {name}")
    return settings


def _profile(profile: str) -> dict[str, Any]:
    """The values in a profile's file, and its name; files of tasks are relative to a profile of one's own."""
    known, path = sorted(p.stem for p in PROFILES.glob("*.yaml")), Path(profile)
    if own_one := path.suffix in (".yaml", ".yml") and path.is_file():
        if path.stem in known:
            raise SettingsError(f"profile {profile}: {path.stem} is the name of a shipped one; rename the file")
    elif profile not in known:
        raise SettingsError(f"unknown profile {profile!r}; expected one of {', '.join(known)}, or a .yaml file's path")
    try:
        text = (path if own_one else PROFILES / f"{profile}.yaml").read_text(encoding="utf-8")
        values = {**yaml.safe_load(text), "profile": path.stem if own_one else profile}
    except (yaml.YAMLError, UnicodeDecodeError, TypeError):
        raise SettingsError(f"profile {profile}: cannot be read as YAML; expected settings such as seed: 0") from None
    tasks = values.get("tasks") if own_one else None
    for task in tasks.values() if isinstance(tasks, dict) else ():
        if isinstance(task, dict) and isinstance(task.get("file"), str):
            task["file"] = str(path.parent.absolute() / task["file"])
    return values


def know_tasks(settings: RunSettings) -> None:
    """Make the tasks of one's own known by name, which runs their files; refuse what no task is, with one line."""
    tasks = [task for file in {t.file for t in settings.tasks.values() if t.file} for task in own.load(file)]
    for fault in (fault for task in tasks for fault in task.faults()):
        raise SettingsError(fault)
    of_rows = [task.name for task in TASKS.values() if isinstance(task, RowTask)]
    for name, task in settings.tasks.items():
        known, place = TASKS.get(name), f"setting tasks.{name}"
        if known is None or task.file != getattr(known, "file", None):
            raise SettingsError(f"{place}: input should be one of {', '.join(TASKS)}, or have the file that defines it")
        if not (task.levels or isinstance(known, own.OwnTask)):
            raise SettingsError(f"{place}.levels: field required")
        if name not in of_rows and (task.path or task.test_path):
            raise SettingsError(f"{place}.{'' if task.path else 'test_'}path: only {' and '.join(of_rows)} read a file")
    for place, ood in enumerate(settings.generalisation.sets):
        if ood.task not in (able := [name for name in TASKS if name not in of_rows]):
            where = f"setting generalisation.sets.{place}.task"
            raise SettingsError(f"{where}: input should be one of {', '.join(able)}, got {ood.task!r}")


def _require_distinct(group: str, names: Sequence[str]) -> None:
    """Names become files: ValueError where two would share one, or one would have none."""
    files = ["", *map(slug, names)]
    for place, name in enumerate(names, start=1):
        if files[place] in files[:place]:
            raise ValueError(f"{group}: the name {name!r} is taken by another, or has none of a-z and 0-9")


def _leaves(settings: RunSettings) -> dict[str, str]:
    """Every setting that has a value, by name and as text."""
    found = {}
    for name, value in settings:
        if isinstance(value, SettingsGroup | dict):
            found |= {f"{name}.{part}": _shown(own) for part, own in dict(value).items()}
        else:
            found[name] = _shown(value)
    return found


def _shown(value: Any) -> str:
    """A setting's value for a reader: as an override would have it; a task in one line, sets and variants by name."""
    if isinstance(value, SettingsGroup):
        return _shown(value.model_dump(exclude_defaults=True))
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(part)}" for name, part in value.items())
    if isinstance(value, tuple):
        return f"[{', '.join(part.name if isinstance(part, SettingsGroup) else str(part) for part in value)}]"
    return str(value)


def _set(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    *groups, last = name.split(".")
    if not equals or "" in (*groups, last):
        raise SettingsError(f"override {override!r}: expected name=value such as teacher.samples=8")
    if name == "profile":  # the rest of the profile's file would not follow
        raise SettingsError("setting profile: the profile is chosen by --profile")
    for group in groups:
        values = values.setdefault(group, {})
        if not isinstance(values, dict):
            raise SettingsError(f"setting {name}: {group} is not a group of settings")
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise SettingsError(f"setting {name}: cannot read {text!r} as a value") from None

"""Settings as a specification: every profile loads, and a wrong setting costs one line before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from fcdpo_utils.arithmetic import Arithmetic
from fcdpo_utils.lab import settings as settings_module
from fcdpo_utils.lab.settings import PROFILES, load_settings
from fcdpo_utils.settings import SettingsError
from fcdpo_utils.tasks.logic.task import FirstOrderLogic

SHIPPED = sorted(path.stem for path in PROFILES.glob("*.yaml"))
TASKS = {"fol": FirstOrderLogic(), "arithmetic": Arithmetic()}


def error_of(*overrides: str, profile: str = "smoke") -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(profile, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Profiles


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_profile_loads_and_knows_its_name(name: str) -> None:
    assert load_settings(name).profile == name


def test_the_demo_and_the_smoke_profile_are_shipped() -> None:
    assert {"cpu", "smoke"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_level_and_toolset_of_a_profile_exists(name: str) -> None:
    for task, chosen in load_settings(name).tasks.items():
        if task in TASKS:
            TASKS[task].generate(len(chosen.levels), "train", 0, levels=chosen.levels)
            assert {*chosen.toolset} <= TASKS[task].toolsets.keys()


@pytest.mark.parametrize("name", SHIPPED)
def test_every_setting_in_a_profile_has_the_value_of_its_file(name: str) -> None:
    written = yaml.safe_load((PROFILES / f"{name}.yaml").read_text(encoding="utf-8"))
    assert holds(load_settings(name).model_dump(mode="json"), written)


def holds(loaded: object, written: object) -> bool:
    """Whether `loaded` says what `written` says, and perhaps more."""
    if isinstance(written, dict):
        return all(key in loaded and holds(loaded[key], value) for key, value in written.items())
    if isinstance(written, list):
        return len(loaded) == len(written) and all(map(holds, loaded, written))
    return loaded == written


def test_an_unknown_profile_is_named_with_the_known_ones() -> None:
    line = f"unknown profile 'nope'; expected one of {', '.join(SHIPPED)}, or a .yaml file's path"
    assert error_of(profile="nope") == line


@pytest.mark.parametrize("name", ["../smoke", "smoke.yaml", "", "/etc/passwd", "__init__"])
def test_a_profile_is_a_known_name_or_an_existing_yaml_file(name: str) -> None:
    assert error_of(profile=name).startswith(f"unknown profile {name!r}; expected one of ")


def test_an_unknown_setting_in_a_profile_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (PROFILES / "smoke.yaml").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(text + "colour: blue\n", encoding="utf-8")
    monkeypatch.setattr(settings_module, "PROFILES", tmp_path)
    assert error_of(profile="mine") == "setting colour: unknown setting"


# Overrides


@pytest.mark.parametrize("text", ["5e-6", "5.0e-6", "0.000005", "5E-6"])
def test_a_number_in_scientific_notation_is_a_number(text: str) -> None:
    rate = load_settings("smoke", [f"training.learning_rate={text}"]).training.learning_rate
    assert type(rate) is float and rate == 5e-6


def test_an_override_changes_its_setting_and_no_other() -> None:
    before, after = load_settings("smoke").model_dump(), load_settings("smoke", ["teacher.samples=9"]).model_dump()
    assert after["teacher"].pop("samples") == 9 != before["teacher"].pop("samples")
    assert after == before


def test_overrides_are_a_list_or_one_string() -> None:
    text = "seed=7 tasks.fol.levels=[1,2]  preferences.pairs=original"
    settings = load_settings("smoke", text)
    assert settings == load_settings("smoke", text.split())
    assert (settings.seed, settings.tasks["fol"].levels, settings.preferences.pairs) == (7, (1, 2), "original")


def test_the_last_override_of_a_setting_wins() -> None:
    assert load_settings("smoke", "seed=1 seed=2").seed == 2


def test_an_override_can_set_what_the_profile_leaves_to_its_default() -> None:
    assert load_settings("smoke", "preferences.label=solved").preferences.label == "solved"


def test_an_override_can_add_a_task() -> None:
    settings = load_settings("smoke", ["tasks.gsm8k={train: 5, test: 3, levels: [2], path: /a=b.jsonl}"])
    assert settings.tasks["gsm8k"].path == "/a=b.jsonl"
    relative = load_settings("smoke", ["tasks.gsm8k={train: 5, test: 3, levels: [2], path: a.jsonl}"])
    assert relative.tasks["gsm8k"].path == str(Path(__file__).parents[1] / "a.jsonl")


def test_an_override_of_one_load_does_not_reach_the_next() -> None:
    load_settings("smoke", "teacher.samples=9 seed=5")
    assert (load_settings("smoke").teacher.samples, load_settings("smoke").seed) == (4, 0)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("nope=1", "setting nope: unknown setting"),
        ("nope.a=1", "setting nope: unknown setting"),
        ("teacher.sample=3", "setting teacher.sample: unknown setting"),
        ("tasks.fol.trains=3", "setting tasks.fol.trains: unknown setting"),
        ("tasks.gsm8k.train=3", "setting tasks.gsm8k.test: field required"),
    ],
)
def test_an_unknown_or_missing_setting_is_named(override: str, line: str) -> None:
    assert error_of(override) == line


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "teacher.samples=many",
            "setting teacher.samples: input should be a valid integer, unable to parse string as an integer, "
            "got 'many'",
        ),
        (
            "seed=1.5",
            "setting seed: input should be a valid integer, got a number with a fractional part, got 1.5",
        ),
        ("teacher.samples=", "setting teacher.samples: input should be a valid integer, got None"),
        ("teacher.samples=0", "setting teacher.samples: input should be greater than or equal to 1, got 0"),
        ("training.learning_rate=0", "setting training.learning_rate: input should be greater than 0, got 0"),
        ("training.trainer=fast", "setting training.trainer: input should be 'grouped' or 'stock', got 'fast'"),
        (
            "preferences.label=lucky",
            "setting preferences.label: input should be 'sound', 'valid', 'solved' or 'shuffled', got 'lucky'",
        ),
        ("tasks.fol.levels=2", "setting tasks.fol.levels: input should be a valid tuple, got 2"),
        ("tasks.fol.missing=2", "setting tasks.fol.missing: input should be less than or equal to 1, got 2"),
        ("tasks.fol.toolset=3", "setting tasks.fol.toolset: input should be a valid tuple, got 3"),
        ("training=3", "setting training: input should be a valid dictionary or instance of TrainingSettings, got 3"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected_and_what_came(override: str, line: str) -> None:
    assert error_of(override) == line


@pytest.mark.parametrize("override", ["seed", "=3", ".seed=3", "teacher.=3", "teacher..samples=3", "=", "--seed"])
def test_a_malformed_override_is_quoted_with_an_example(override: str) -> None:
    assert error_of(override) == f"override {override!r}: expected name=value such as teacher.samples=8"


@pytest.mark.parametrize("profile", ["cpu", "smoke"])
def test_an_override_does_not_choose_the_profile(profile: str) -> None:
    assert error_of(f"profile={profile}") == "setting profile: the profile is chosen by --profile"


def test_a_setting_is_not_a_group() -> None:
    assert error_of("seed.x=1") == "setting seed.x: seed is not a group of settings"


@pytest.mark.parametrize("text", ["[1", "@x", "{a: 1", '"a'])
def test_a_value_that_cannot_be_read_is_quoted(text: str) -> None:
    assert error_of(f"seed={text}") == f"setting seed: cannot read {text!r} as a value"


def test_only_the_first_of_several_errors_is_told() -> None:
    assert error_of("teacher.samples=0", "teacher.error_rate=2", "nope=1") == error_of("teacher.samples=0")


@pytest.mark.parametrize(
    ("text", "names"), [("expression", ("expression",)), ("[steps, expression]", ("steps", "expression")), ("", ())]
)
def test_a_toolset_is_one_name_or_several_or_none(text: str, names: tuple[str, ...]) -> None:
    settings = load_settings("smoke", [f"tasks.arithmetic.toolset={text}"])
    assert settings.tasks["arithmetic"].toolset == names
    assert type(settings).validated(settings.model_dump(mode="json")) == settings  # as a record keeps them


# The settings object


@pytest.mark.parametrize(
    ("group", "name"), [(None, "seed"), (None, "training"), ("training", "beta"), ("teacher", "samples"), (None, "new")]
)
def test_settings_are_frozen(group: str | None, name: str) -> None:
    settings = load_settings("smoke")
    with pytest.raises(ValidationError):
        setattr(getattr(settings, group) if group else settings, name, 1)


def test_the_table_without_names_shows_every_setting() -> None:
    settings = load_settings("cpu")
    shown = {line.split()[0] for line in settings.table().splitlines()}
    for group, values in settings.model_dump().items():
        names = {f"{group}.{name}" for name in values} if isinstance(values, dict) else {group}
        assert names <= shown


def test_the_table_shows_settings_that_are_named_and_of_groups_those_that_differ_with_their_defaults() -> None:
    settings = load_settings("smoke", ["limits.errors=3"])
    table = settings.table("tasks", "limits", "teacher.kind", "teacher.variation")
    assert [line.split(maxsplit=1) for line in table.splitlines()] == [
        ["tasks.fol", "train 6, test 3, levels [1]"],
        ["tasks.arithmetic", "train 6, test 4, levels [2]"],
        ["limits.calls", "12  (default 24)"],
        ["teacher.kind", "scripted"],
        ["teacher.variation", "0.2  (default 0.3)"],
    ]


def test_the_table_refuses_an_unknown_name() -> None:
    with pytest.raises(SettingsError, match="^unknown setting 'teacher.sample'$"):
        load_settings("smoke").table("tasks", "teacher.sample")


# Out-of-distribution sets


@pytest.mark.parametrize(
    ("ood", "line"),
    [
        ("{name: a, task: fol, split: train, levels: [1]}", "setting generalisation.sets.0.split: input should be"),
        ("{name: a, task: chess, levels: [1]}", "setting generalisation.sets.0.task: input should be"),
        ("{name: fol, task: fol, levels: [1]}", "setting generalisation.sets: the name 'fol' is taken by another"),
        ("{name: '??', task: fol, levels: [1]}", "setting generalisation.sets: the name"),
    ],
)
def test_an_out_of_distribution_set_that_would_mislead_is_refused(ood: str, line: str) -> None:
    assert error_of(f"generalisation.sets=[{ood}]").startswith(line)


def test_only_a_local_teacher_has_an_adapter() -> None:
    assert (
        error_of("teacher.adapter=x") == "setting teacher.adapter: only a local teacher has one, this is a scripted one"
    )
    assert load_settings("smoke", ["teacher.kind=local", "teacher.adapter=x"]).teacher.adapter == "x"


def test_a_training_is_reported_to_whom_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings("smoke").report_to == "none"
    monkeypatch.setattr(settings_module, "find_spec", lambda name: None)
    assert error_of("report_to=trackio") == "setting report_to: trackio is not installed; pip install trackio"
    assert error_of("report_to=paper").startswith(
        "setting report_to: input should be 'none', 'tensorboard' or 'trackio'"
    )
    monkeypatch.setattr(settings_module, "find_spec", lambda name: name)
    assert load_settings("smoke", ["report_to=tensorboard"]).report_to == "tensorboard"


def test_settings_that_do_not_agree_are_refused_in_one_line() -> None:
    line = "setting training.loss: TRL's own DPO trainer knows no orpo; set training.trainer=grouped"
    assert error_of("training.loss=orpo", "training.trainer=stock") == line
    line = "setting own_chains.mended: mended chains are incorrect ones, but for preferences.label=valid"
    assert error_of("own_chains.mended=true") == line
    assert load_settings("smoke", ["own_chains.mended=true", "preferences.label=valid"]).own_chains.mended

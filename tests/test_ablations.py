"""The ablations as a specification: what differs between arms, how they are compared, and what is concluded."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fcdpo_utils.ablations import ArmResult, arm_settings, arms_of, markdown, steps_per_epoch, table, verdict, with_holm
from fcdpo_utils.agent import Chain
from fcdpo_utils.artifacts import make_chains
from fcdpo_utils.evaluation import mcnemar
from fcdpo_utils.preferences import Preferences, build_preferences
from fcdpo_utils.profiles import ArmSettings, Settings, SettingsError, load_settings
from fcdpo_utils.tasks import make_problems

GRID = load_settings("ablations")
NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "06_ablations.ipynb"
QUESTIONS = {"augmentation", "loss", "label", "mask", "chains", "beta", "LoRA rank", "weights"}


def chains(outcomes: str) -> list[Chain]:
    """One chain per letter: s sound, - wrong."""
    return [
        Chain(f"p{i}", (), "solved" if c == "s" else "wrong_answer", "1", c == "s", c == "s")
        for i, c in enumerate(outcomes)
    ]


def result(arm: str, outcomes: str) -> ArmResult:
    training = {"steps": 7, "pairs": 9, "tokens": 100}
    return ArmResult(ArmSettings(question="q", arm=arm, change=()), training, chains(outcomes))


@pytest.mark.parametrize("profile", ["ablations", "paper"])
def test_the_grid_asks_every_question_with_one_change_an_arm(profile: str) -> None:
    settings = load_settings(profile)
    assert {arm.question for arm in settings.ablations} == QUESTIONS
    assert arms_of(settings)[0].change == ()
    for arm in settings.ablations:
        changed, before = settings.changed(arm.change).model_dump(), settings.model_dump()
        groups = [name for name in before if name != "ablations" and changed[name] != before[name]]
        assert len(groups) == 1, arm.arm  # one group of settings, so one ingredient


def test_the_whole_grid_has_all_numbers_of_chains() -> None:
    settings = load_settings("paper")
    own = [settings.changed(arm.change).preferences for arm in arms_of(settings) if arm.question != "label"]
    counts = {(options.max_chosen, options.max_rejected) for options in own}
    assert counts == {(k, l) for k in (1, 2, 4, 8, 16) for l in (1, 2, 4, 8, 16)}


@pytest.mark.parametrize(
    ("arms", "line"),
    [
        (
            "[{question: q, arm: a, change: [training.betta=1]}]",
            "ablations, arm 'a': setting training.betta: unknown setting",
        ),
        (
            "[{question: q, arm: a, change: []}, {question: q, arm: a, change: []}]",
            "ablations: two arms have the same name",
        ),
    ],
)
def test_a_wrong_arm_is_refused_before_anything_runs(arms: str, line: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(line)):
        load_settings("ablations", [f"ablations={arms}"])


def test_an_arm_with_as_many_steps_takes_exactly_as_many(tmp_path: Path) -> None:
    settings = GRID.changed(["tasks={fol: {train: 13, test: 1, levels: [1, 2]}}"])
    problems = [p for p in make_problems("fol", settings.tasks["fol"], 0) if p.split == "train"]
    make_chains(tmp_path / "chains.jsonl", problems, settings, lambda *_: None)
    from fcdpo_utils.artifacts import load_chains

    stored = load_chains(tmp_path / "chains.jsonl")

    def preferences(options: Settings) -> Preferences:
        return build_preferences(stored, options.preferences.label)

    arm = ArmSettings(question="q", arm="D*", change=("preferences.pairs=original",), same_steps=True)
    own = arm_settings(arm, settings, preferences)
    full = steps_per_epoch(preferences(settings), settings)
    per_epoch = steps_per_epoch(preferences(own), own)
    assert per_epoch > full  # one block for each pair of D*, so as many epochs would mean more steps
    assert full - 1 < own.training.epochs * per_epoch < full  # rounded up to whole steps by the trainer


def test_arms_are_compared_with_the_full_method_problem_by_problem() -> None:
    rows = table([result("full", "sss-----"), result("arm", "ss-sss--")])
    test = mcnemar([c == "s" for c in "sss-----"], [c == "s" for c in "ss-sss--"])
    assert (rows[1]["gained"], rows[1]["lost"], rows[1]["p"]) == (3, 1, test.p)
    assert rows[1]["n"] == 8 and rows[1]["sound"] == 5 / 8 and "p_holm" not in rows[0]


def test_p_values_are_adjusted_for_the_number_of_arms() -> None:
    """Worked by hand: 0.01 * 4, 0.02 * 3, 0.03 * 2, 0.04 * 1, none below the one before (Holm 1979)."""
    rows = with_holm([{"p": p} for p in (1.0, 0.04, 0.01, 0.03, 0.02)])
    assert [row.get("p_holm") for row in rows] == [None, *map(pytest.approx, (0.06, 0.04, 0.06, 0.06))]


@pytest.mark.parametrize(
    ("arm", "word"),
    [("-" * 20, "worse"), ("s" * 8 + "-" * 12, "no difference shown"), ("s" * 20, "better")],
)
def test_conclusions_follow_from_the_numbers(arm: str, word: str) -> None:
    rows = table([result("full", "s" * 10 + "-" * 10), result("the arm", arm)])
    sentence = verdict(rows[1], rows[0])
    assert sentence.startswith(f"the arm: {word}; ")
    assert f"{100 * rows[1]['sound']:.1f} % against 50.0 %" in sentence


def test_a_finding_that_the_correction_takes_back_is_said_to_be_one() -> None:
    rows = table([result("full", "s" * 10), *(result(f"arm {i}", "-" * 6 + "s" * 4) for i in range(4))])
    assert rows[1]["p"] < 0.05 < rows[1]["p_holm"]
    assert "worse by itself, but not once all arms are counted" in verdict(rows[1], rows[0])


def test_the_table_shows_every_arm() -> None:
    lines = markdown(table([result("full", "s-"), result("arm", "--")])).splitlines()
    assert len({line.count("|") for line in lines}) == 1 and len(lines) == 4
    assert "50.0%" in lines[2] and "0.0%" in lines[3]

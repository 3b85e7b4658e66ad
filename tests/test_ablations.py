"""The ablations as a specification: what differs between arms, how they are compared, and what is concluded."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fcdpo_utils import ablations
from fcdpo_utils.ablations import ArmResult, arms_of, markdown, table, verdict
from fcdpo_utils.agent import Chain
from fcdpo_utils.artifacts import ADAPTER_FILE, make_chains, save_problems
from fcdpo_utils.evaluation import mcnemar
from fcdpo_utils.preferences import Preferences
from fcdpo_utils.profiles import ArmSettings, Settings, SettingsError, load_settings
from fcdpo_utils.tasks import make_problems

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
        ("[{question: q, arm: a b, change: []}, {question: q, arm: A-B, change: []}]", "'A-B' is empty, or taken"),
        ("[{question: q, arm: full method, change: []}]", "ablations: the name 'full method' is empty, or taken"),
        ("[{question: q, arm: β, change: []}]", "ablations: the name 'β' is empty, or taken by another"),
        ("[{question: q, arm: a, change: [seed=3]}]", "seed=3: an arm changes preferences, training or student"),
    ],
)
def test_a_wrong_arm_is_refused_before_anything_runs(arms: str, line: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(line)):
        load_settings("ablations", [f"ablations={arms}"])


def test_the_ablations_refuse_what_they_cannot_compare() -> None:
    with pytest.raises(ValueError, match="profile cpu has no arms under ablations; use the profile ablations or paper"):
        arms_of(load_settings("cpu"))
    with pytest.raises(ValueError, match=re.escape("ablations need training.trainer=grouped")):
        arms_of(load_settings("ablations", ["training.trainer=stock"]))


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which arms were trained and evaluated; students are nothing here but the name of their pairs."""
    settings = load_settings("smoke")
    problems = [p for name, task in settings.tasks.items() for p in make_problems(name, task, 0)]
    save_problems(tmp_path / "problems.jsonl", problems)
    make_chains(tmp_path / "chains.jsonl", [p for p in problems if p.split == "train"], settings, lambda *_: None)
    log: list[str] = []

    def train(folder: Path, preferences: Preferences, prompts: dict, own: Settings, progress: object) -> dict:
        if own.preferences.max_chosen == 1:
            raise ValueError("no prompt has both")
        log.append(f"train {own.preferences.pairs}")
        (folder / "adapter").mkdir(exist_ok=True)
        (folder / "adapter" / ADAPTER_FILE).write_text(own.preferences.pairs)
        return {"steps": 1, "pairs": 1, "tokens": 1}

    def evaluate(model: str, tokenizer: None, problems: list, *_: object) -> list[Chain]:
        log.append(f"evaluate with {model}")
        return [Chain(p.id, (), "too_long", None, False, False) for p in problems]

    monkeypatch.setattr(ablations, "train_student", train)
    monkeypatch.setattr(
        ablations, "load_student", lambda student, adapter: ((adapter / ADAPTER_FILE).read_text(), None)
    )
    monkeypatch.setattr(ablations, "evaluate_student", evaluate)
    return log


def test_every_arm_is_trained_and_evaluated_with_its_own_adapter(trained: list[str], tmp_path: Path, capsys) -> None:
    results = list(ablations.run_arms(load_settings("smoke"), tmp_path, lambda label: None))
    assert trained == ["train augmented", "evaluate with augmented", "train original", "evaluate with original"]
    assert [result.arm.arm for result in results] == ["full method", "D*"]
    assert capsys.readouterr().out == "arm 3/3 (1 correct and 1 incorrect) is left out: no prompt has both\n"


def test_the_full_method_may_not_fail(trained: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no prompt has both"):
        list(ablations.run_arms(load_settings("smoke", ["preferences.max_chosen=1"]), tmp_path, lambda label: None))


def test_arms_are_compared_with_the_full_method_problem_by_problem() -> None:
    rows = table([result("full", "sss-----"), result("arm", "ss-sss--")])
    test = mcnemar([c == "s" for c in "sss-----"], [c == "s" for c in "ss-sss--"])
    assert (rows[1]["gained"], rows[1]["lost"], rows[1]["p"]) == (3, 1, test.p)
    assert rows[1]["n"] == 8 and rows[1]["sound"] == 5 / 8 and "p_holm" not in rows[0]


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
    assert "nominally worse, not significant after Holm's correction" in verdict(rows[1], rows[0])


def test_the_table_shows_every_arm() -> None:
    lines = markdown(table([result("full", "s-"), result("arm", "--")])).splitlines()
    assert len({line.count("|") for line in lines}) == 1 and len(lines) == 4
    assert "50.0%" in lines[2] and "0.0%" in lines[3]

"""The ablations as a specification: what differs between variants, how they are compared, and what is concluded."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from fcdpo_utils.episode import Chain, Episode
from fcdpo_utils.evaluation import mcnemar
from fcdpo_utils.lab import ablations, grid
from fcdpo_utils.lab.ablations import VariantResult, table, variants_of, verdict
from fcdpo_utils.lab.settings import VariantSettings, load_settings
from fcdpo_utils.preferences import Preferences
from fcdpo_utils.problems import save_problems
from fcdpo_utils.settings import Settings, SettingsError
from fcdpo_utils.tasks.making import make_problems
from fcdpo_utils.teachers import build_teacher
from fcdpo_utils.teachers.making import make_chains
from fcdpo_utils.train import TrainingSummary
from fcdpo_utils.weights import ADAPTER_FILE

QUESTIONS = {"augmentation", "loss", "label", "mask", "chains", "beta", "LoRA rank", "weights"}


def chains(outcomes: str) -> list[Chain]:
    """One chain per letter: s sound, - wrong."""
    return [
        Chain(f"p{i}", (), "solved" if c == "s" else "wrong_answer", "1", c == "s", c == "s")
        for i, c in enumerate(outcomes)
    ]


OVERRIDES = ["warm_up.share=0", "own_chains.samples=0"]
FROM_SCRATCH = load_settings("smoke", OVERRIDES)
TRAINING = TrainingSummary(
    *("fingerprint", "adapter", "student", "grouped"),
    **{"prompts": 3, "pairs": 9, "steps": 7, "tokens": 100},
    **{"loss_first": 0.7, "loss_end": 0.3, "margin_end": 1.0, "chosen_end": 0.1},
)


def result(name: str, outcomes: str, failure: str = "") -> VariantResult:
    variant = VariantSettings(question="q", name=name)
    return VariantResult(variant, None if failure else TRAINING, chains(outcomes), failure)


# Which variants there are


@pytest.mark.parametrize("profile", ["ablations", "paper"])
def test_the_variants_ask_every_question_with_one_change_each(profile: str) -> None:
    settings = load_settings(profile)
    full, *variants = variants_of(settings)
    assert {variant.question for variant in variants} == QUESTIONS
    assert full.change == ()
    for variant in variants:
        changed, before = settings.changed(variant.change).model_dump(), settings.model_dump()
        groups = [name for name in before if name != "ablations" and changed[name] != before[name]]
        assert len(groups) == 1, variant.name  # one group of settings, so one ingredient


@pytest.mark.parametrize(("profile", "count"), [("paper", 38), ("ablations", 13), ("smoke", 2), ("cpu", 0)])
def test_a_profile_has_so_many_variants(profile: str, count: int) -> None:
    assert len(load_settings(profile).variants()) == count


def test_the_whole_grid_has_all_numbers_of_chains() -> None:
    settings = load_settings("paper")
    own = [
        settings.changed(variant.change).preferences for variant in variants_of(settings) if variant.question != "label"
    ]
    counts = {(options.max_chosen, options.max_rejected) for options in own}
    assert counts == {(k, l) for k in (1, 2, 4, 8, 16) for l in (1, 2, 4, 8, 16)}


def changes_of(profile: str, *overrides: str) -> dict[str, tuple[str, ...]]:
    return {variant.name: variant.change for variant in load_settings(profile, overrides).variants()}


def test_a_grid_is_one_variant_for_each_combination_with_the_last_setting_varying_fastest() -> None:
    found = {name: change for name, change in changes_of("paper").items() if "correct" in name}
    assert found == {
        f"{k} correct and {l} incorrect": (f"preferences.max_chosen={k}", f"preferences.max_rejected={l}")
        for k in (1, 2, 4, 8, 16)
        for l in (1, 2, 4, 8, 16)
        if (k, l) != (8, 8)
    }
    assert list(found)[:2] == ["1 correct and 1 incorrect", "1 correct and 2 incorrect"]


def test_settings_of_a_grid_can_move_together() -> None:
    found = {name: change for name, change in changes_of("paper").items() if "rank" in name}
    assert found == {f"rank {r}": (f"training.lora_rank={r}", f"training.lora_alpha={2 * r}") for r in (4, 8, 32, 64)}


def test_other_single_variants_keep_their_names_and_changes() -> None:
    found = changes_of("ablations")
    assert list(found) == [
        *("D*", "SFT only", "DPO only", "chosen are the solved ones", "results count as the student's"),
        *(f"{k} correct and {l} incorrect" for k in (1, 4) for l in (1, 4)),
        *("beta 0.02", "beta 0.5", "rank 4", "NF4"),
    ]
    assert found["beta 0.02"] == ("training.beta=0.02",) and found["NF4"] == ("student.four_bit=true",)


def test_a_grid_leaves_out_the_full_method_whatever_that_is() -> None:
    full = "preferences.max_chosen=1", "preferences.max_rejected=2"
    found = changes_of("paper", *full)
    assert "1 correct and 2 incorrect" not in found and "8 correct and 8 incorrect" in found and len(found) == 38


@pytest.mark.parametrize(
    ("variants", "line"),
    [
        (
            "[{question: q, name: a, change: [training.betta=1]}]",
            "ablations, variant 'a': setting training.betta: unknown setting",
        ),
        (
            "[{question: q, name: a, grid: {training.beta: [0]}}]",
            "ablations, variant 'a': setting training.beta: input",
        ),
        ("[{question: q, name: a b}, {question: q, name: A-B}]", "the name 'A-B' is taken by another"),
        ("[{question: q, name: full method}]", "ablations: the name 'full method' is taken by another"),
        ("[{question: q, name: ..}]", "ablations: the name '..' is taken by another, or has none of a-z and 0-9"),
        ("[{question: q, name: β}]", "the name 'β' is taken by another, or has none of a-z and 0-9"),
        ("[{question: q, name: a, change: [seed=3]}]", "seed=3: a variant changes preferences, training or student"),
        ("[{question: q, name: a, grid: {seed: [3]}}]", "seed: a variant changes preferences, training or student"),
        ("[{question: q, name: a, grid: {training.beta: [1, 2]}}]", "ablations: the name 'a' is taken by another"),
        ("[{question: q, name: '{} {}', grid: {training.beta: [1]}}]", "the name '{} {}' or the values do not fit"),
        (
            "[{question: q, name: '{}', grid: {training.lora_rank: [1, 2], training.lora_alpha: [1]}, together: true}]",
            "ablations: the name '{}' or the values do not fit the grid",
        ),
    ],
)
def test_a_wrong_variant_is_refused_before_anything_runs(variants: str, line: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(line)):
        load_settings("ablations", [f"ablations={variants}"])


def test_the_ablations_refuse_what_they_cannot_compare() -> None:
    with pytest.raises(ValueError, match="profile cpu has no variants under ablations; use profile ablations or paper"):
        variants_of(load_settings("cpu"))
    with pytest.raises(ValueError, match=re.escape("ablations need training.trainer=grouped")):
        variants_of(load_settings("ablations", ["training.trainer=stock"]))


# Training and evaluating them


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which variants were trained and evaluated; students are nothing here but the name of their pairs."""
    settings = FROM_SCRATCH
    problems = [p for name, task in settings.tasks.items() for p in make_problems(name, task, 0)]
    save_problems(tmp_path / "problems.jsonl", problems)
    make_chains(
        tmp_path / "chains.jsonl", [p for p in problems if p.split == "train"], settings, build_teacher, lambda *_: None
    )
    log: list[str] = []

    def train(folder: Path, preferences: Preferences, prompts: dict, own: Settings, *_: object) -> TrainingSummary:
        if own.preferences.max_chosen == 1:
            raise ValueError("no prompt\nhas both")
        log.append(f"train {own.preferences.pairs}")
        (folder / "adapter").mkdir(exist_ok=True)
        (folder / "adapter" / ADAPTER_FILE).write_text(own.preferences.pairs)
        return TRAINING

    def rollout(model: str, tokenizer: None, episodes: list[Episode], *_: object, on_finished: Callable) -> None:
        log.append(f"evaluate with {model}")
        for episode in episodes:
            episode.cut = True
            on_finished(episode)

    monkeypatch.setattr(ablations, "train_student", train)
    monkeypatch.setattr(
        ablations, "load_student", lambda student, adapter: ((adapter / ADAPTER_FILE).read_text(), None)
    )
    monkeypatch.setattr(ablations.engine, "rollout", rollout)
    return log


def test_every_variant_is_trained_and_evaluated_with_its_own_adapter(trained: list[str], tmp_path: Path) -> None:
    results = list(ablations.run_variants(FROM_SCRATCH, tmp_path, lambda label: lambda *_: None))
    assert trained == ["train augmented", "evaluate with augmented", "train original", "evaluate with original"]
    assert [result.variant.name for result in results] == ["full method", "D*", "1 correct and 1 incorrect"]
    assert [len(result.chains) for result in results] == [7, 7, 0]


def test_what_is_evaluated_is_not_evaluated_again(trained: list[str], tmp_path: Path) -> None:
    first = list(ablations.run_variants(FROM_SCRATCH, tmp_path, lambda label: lambda *_: None))
    del trained[:]
    again = list(ablations.run_variants(FROM_SCRATCH, tmp_path, lambda label: lambda *_: None))
    assert [result.chains for result in again] == [result.chains for result in first]
    assert trained == ["train augmented", "train original"]  # which itself trains nothing twice


def test_a_variant_that_fails_says_why_in_one_line(trained: list[str], tmp_path: Path, capsys) -> None:
    *_, failed = ablations.run_variants(FROM_SCRATCH, tmp_path, lambda label: lambda *_: None)
    assert failed == VariantResult(failed.variant, None, [], "no prompt has both")
    assert capsys.readouterr().out == "variant 3/3 (1 correct and 1 incorrect) failed: no prompt has both\n"


def test_the_full_method_may_not_fail(trained: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no prompt\nhas both"):
        list(
            ablations.run_variants(
                load_settings("smoke", [*OVERRIDES, "preferences.max_chosen=1"]), tmp_path, lambda label: None
            )
        )


# What the numbers say


def test_variants_are_compared_with_the_full_method_problem_by_problem() -> None:
    rows = table([result("full", "sss-----"), result("variant", "ss-sss--")])
    test = mcnemar([c == "s" for c in "sss-----"], [c == "s" for c in "ss-sss--"])
    assert (rows[1]["gained"], rows[1]["lost"], rows[1]["p"]) == (3, 1, test.p)
    assert rows[1]["n"] == 8 and rows[1]["sound"] == 5 / 8 and "p_holm" not in rows[0]


@pytest.mark.parametrize(
    ("outcomes", "word"),
    [("-" * 20, "worse"), ("s" * 8 + "-" * 12, "no difference shown"), ("s" * 20, "better")],
)
def test_conclusions_follow_from_the_numbers(outcomes: str, word: str) -> None:
    rows = table([result("full", "s" * 10 + "-" * 10), result("the variant", outcomes)])
    sentence = verdict(rows[1], rows[0])
    assert sentence.startswith(f"the variant: {word}; ")
    assert f"{100 * rows[1]['sound']:.1f} % against 50.0 %" in sentence


def test_a_finding_that_the_correction_takes_back_is_said_to_be_one() -> None:
    rows = table([result("full", "s" * 10), *(result(f"variant {i}", "-" * 6 + "s" * 4) for i in range(4))])
    assert rows[1]["p"] < 0.05 < rows[1]["p_holm"]
    assert "nominally worse, not significant after Holm's correction" in verdict(rows[1], rows[0])


def test_a_variant_that_failed_has_a_row_and_a_sentence_with_its_reason_and_no_figures() -> None:
    rows = table([result("full", "s-"), result("lost", "", failure="no prompt has both"), result("other", "--")])
    assert rows[1] == {"question": "q", "name": "lost", "failed": "no prompt has both"}
    assert verdict(rows[1], rows[0]) == "lost: failed, so nothing follows; no prompt has both."


def test_the_correction_counts_variants_that_failed() -> None:
    full, other = result("full", "s" * 10), result("other", "-" * 8 + "ss")
    rows = table([full, result("lost", "", failure="why"), other, result("lost too", "", failure="why")])
    assert rows[2]["p_holm"] == pytest.approx(3 * rows[2]["p"])


def test_the_table_shows_every_variant() -> None:
    rows = table([result("full", "s-"), result("variant", "--"), result("lost", "", failure="a | b")])
    lines = grid.table(rows, "steps", "pairs").splitlines()
    assert len({line.count("|") for line in lines}) == 1 and len(lines) == 5
    assert "50.0%" in lines[2] and "0.0%" in lines[3] and "| lost | failed: a / b |" in lines[4]

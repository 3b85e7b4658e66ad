"""Training in stages: who is warmed up on what, where a chain goes wrong, and which chains are compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from small import SmokeData, settings_of, silent, smoke_data_in
from toolsets import using
from transformers import PreTrainedTokenizerBase

from fcdpo_utils import engine, plain, store
from fcdpo_utils.chains import load_chains
from fcdpo_utils.episode import Chain, prompt, run_calls
from fcdpo_utils.onpolicy import first_wrong, preference_data, split_problems, warm_up
from fcdpo_utils.preferences import Preferences
from fcdpo_utils.problems import TASKS, Problem
from fcdpo_utils.settings import Limits
from fcdpo_utils.tasks.making import with_functions
from fcdpo_utils.teachers import own as own_teacher
from fcdpo_utils.teachers.own import mended
from fcdpo_utils.train import tokenise

SETTINGS = settings_of()
GOLD = ["Sum(3, 4)", "Multiply(7, 2)", "Answer(14)", "Stop()"]
PROBLEM = Problem("p", "arithmetic", "train", 2, "Ann has 3 and 4 pens, and Bob has 2 times as many.", "14", "c")


def chain_of(*calls: str, problem: Problem = PROBLEM) -> Chain:
    return run_calls(TASKS[problem.task], problem, calls)


def data_of(own: list[Chain], *overrides: str, teacher: list[Chain] | None = None) -> Preferences:
    chains = [[("arithmetic", chain) for chain in side] for side in (teacher or [chain_of(*GOLD)], own)]
    return preference_data([PROBLEM], *chains, settings_of(*overrides))


def calls_of(data: Preferences, correct: bool) -> list[list[str]]:
    return [[step.call for step in c.chain.steps] for c in data.completions if c.correct == correct]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> SmokeData:
    return smoke_data_in(tmp_path_factory.mktemp("smoke"))


def test_the_warm_up_gets_the_first_share_of_every_task(smoke: SmokeData) -> None:
    problems = [problem for problem in smoke.problems if problem.split == "train"]
    first, rest = split_problems(problems, settings_of("warm_up.share=0.5"))
    assert [p.task for p in first] == ["fol"] * 3 + ["arithmetic"] * 3
    assert {p.id for p in first} | {p.id for p in rest} == {p.id for p in problems} and len(rest) == 6
    for none in ("warm_up.share=0", "warm_up.adapter=somewhere"):
        assert split_problems(problems, settings_of("warm_up.share=0.5", none)) == ([], problems)


WRONG = [
    (["Sum(3, 5)"], 0),
    (["Sum(3, 4)", "Multiply(7, 3)", "Answer(21)", "Stop()"], 1),
    (["Sum(3, 4)", "Answer(7)", "Stop()"], 1),  # 7 is on the way, but not the answer
    (["Sum(3, 4)", "Sum(3,"], 1),
    (['Reasoning("well")', "Sum(4, 3)", "Nothing()"], 2),  # a thought leads nowhere; another order is as good
    (["Sum(3, 4)", "Multiply(7, 2)"], None),
]


@pytest.mark.parametrize(("calls", "place"), WRONG, ids=[" ".join(calls) for calls, _ in WRONG])
def test_the_first_wrong_call_is_found(calls: list[str], place: int | None) -> None:
    right = {"Noted", *(step.result for step in chain_of(*GOLD).steps)}
    assert first_wrong(PROBLEM, chain_of(*calls), right) == place


def test_the_first_wrong_call_is_found_by_the_problems_own_functions() -> None:
    problem = using("expression", PROBLEM)
    chain = chain_of('Calculate("3 + 4")', 'Calculate("7 + 2")', "Answer(9)", "Stop()", problem=problem)
    assert first_wrong(problem, chain, {"7", "14"}) == 1


@pytest.mark.parametrize(("missing", "place"), [(True, None), (False, 0)])
def test_to_abstain_is_wrong_where_no_function_is_missing(missing: bool, place: int | None) -> None:
    functions = [(name, name, "") for name in ("Answer", "Stop", "Unable")]
    problem = replace(PROBLEM, details={"functions": functions, "missing": missing})
    chain = chain_of("Unable()", "Stop()", problem=problem)
    assert first_wrong(problem, chain, {"Answer recorded", "Stopped"}) == place and chain.sound == missing


def test_in_a_proof_every_accepted_step_is_right_and_a_wrong_conclusion_is_not(smoke: SmokeData) -> None:
    problem = next(problem for problem in smoke.problems if problem.task == "fol")
    gold = TASKS["fol"].gold_calls(problem)
    place = next(index for index, call in enumerate(gold) if call.startswith("Conclude"))
    other = next(label for label in ("True", "False") if label != problem.answer)
    wrong = run_calls(TASKS["fol"], problem, [*gold[:place], f'Conclude("{other}")', "Stop()"])
    assert first_wrong(problem, wrong, set()) == place


def test_rejected_chains_end_at_their_first_wrong_call_and_are_counted_once() -> None:
    own = [
        chain_of("Sum(3, 4)", "Multiply(7, 3)", "Answer(21)", "Stop()"),
        chain_of("Sum(3, 4)", "Multiply(7, 3)", "Stop()"),
    ]
    data = data_of(own, "preferences.rejected=first_wrong")
    assert calls_of(data, correct=False) == [["Sum(3, 4)", "Multiply(7, 3)"]]
    assert calls_of(data, correct=True) == [GOLD]
    assert len(calls_of(data_of(own, "preferences.rejected=whole"), correct=False)) == 2


def test_step_pairs_share_all_but_the_last_call() -> None:
    own = [chain_of("Sum(3, 4)", "Multiply(7, 3)", "Answer(21)", "Stop()"), chain_of("Sum(2,")]
    data = data_of(own, "preferences.rejected=step")
    pairs = [[data.completions[index].chain.steps for index in pair] for pair in data.augmented_pairs()]
    assert len(pairs) == 2
    for chosen, rejected in pairs:
        assert chosen[:-1] == rejected[:-1] and chosen[-1] != rejected[-1]
    assert {chosen[-1].call for chosen, _ in pairs} == {"Sum(3, 4)", "Multiply(7, 2)"}


def test_a_wrong_call_that_ends_its_chain_makes_a_step_pair_too() -> None:
    data = data_of([chain_of("Sum(3, 4)", "Multiply(7, 2)", "Answer(15)")], "preferences.rejected=step")
    ((chosen, rejected),) = data.augmented_pairs()
    last = [data.completions[index].chain.steps[-1].call for index in (chosen, rejected)]
    assert last == ["Answer(14)", "Answer(15)"]


STUMBLE = ["Sum(3, 4)", "Multiply(7 2)", *GOLD[1:]]


def test_a_chain_that_gets_up_may_be_chosen_and_what_was_rejected_is_masked(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    own = [chain_of(*STUMBLE), chain_of("Sum(3,")]
    assert calls_of(data_of(own), correct=True) == [GOLD]
    data = data_of(own, "preferences.label=valid")
    assert calls_of(data, correct=True) == [GOLD, STUMBLE]
    prompts = {PROBLEM.id: prompt(TASKS["arithmetic"], PROBLEM)}
    said = []
    for tokens in tokenise(data, prompts, tokenizer):
        said.append(tokenizer.decode([i for i, own in zip(tokens.ids, tokens.policy, strict=True) if own]))
    assert "Multiply(7 2)" not in said[1] and "Multiply(7, 2)" in said[1] and "Sum(3," in said[2]


def test_no_step_to_prefer_is_a_rejected_one() -> None:
    data = data_of([chain_of(*STUMBLE)], "preferences.rejected=step", "preferences.label=valid")
    chosen = [completion.chain.steps[-1] for completion in data.completions if completion.correct]
    assert chosen and not any(step.error for step in chosen)


def test_the_settings_say_whose_chains_are_used() -> None:
    own = [chain_of("Sum(4, 3)", *GOLD[1:]), chain_of("Sum(3,")]
    teacher = [chain_of(*GOLD), chain_of("Sum(9, 9)")]
    chosen = calls_of(data_of(own, "preferences.chosen_by=student", teacher=teacher), correct=True)
    assert chosen == [["Sum(4, 3)", *GOLD[1:]]]
    rejected = calls_of(data_of(own, "preferences.rejected_by=teacher", teacher=teacher), correct=False)
    assert rejected == [["Sum(9, 9)"]]


def test_shuffled_labels_keep_their_number_and_say_nothing_of_the_chain() -> None:
    own = [chain_of(f"Sum(3, {number})") for number in range(5, 25)]
    data = data_of(own, "preferences.label=shuffled", teacher=[chain_of(*GOLD), chain_of("Sum(4, 3)", *GOLD[1:])])
    correct = [completion.chain.sound for completion in data.completions if completion.correct]
    assert len(correct) == 2 and correct != [True, True]


def test_the_warm_up_trains_on_correct_chains_alone(tmp_path: Path, smoke: SmokeData) -> None:
    """With the grouped trainer, whichever the preferences have: TRL's own would pass all pairs."""
    settings = settings_of("warm_up.share=0.5", "training.lora_rank=2", "training.trainer=stock")
    first, _ = split_problems([p for p in smoke.problems if p.split == "train"], settings)
    run = settings, engine, silent
    adapter = warm_up(tmp_path / "warm_up", first, load_chains(smoke.chains), *run)
    assert adapter == tmp_path / "warm_up" / "adapter" and (adapter / "adapter_config.json").exists()
    made = store.read_json(tmp_path / "warm_up" / "training.json")
    assert made["prompts"] == 6 and made["pairs"] == 0 and made["margin_end"] == 0
    assert made["loss_first"] > 0
    assert warm_up(tmp_path / "none", [], [], *run) is None
    further = settings_of(f"warm_up.adapter={adapter}")
    assert warm_up(tmp_path / "none", first, [], further, plain, silent) == adapter


@pytest.mark.parametrize("naming", ["fixed", "invented"])
def test_the_teacher_goes_on_after_the_students_rejected_call(naming: str) -> None:
    (problem,) = with_functions(TASKS["fol"].generate(1, "train", 0, levels=(2,)), 0, naming=naming)
    gold = [step.call for step in run_calls(TASKS["fol"], problem, TASKS["fol"].gold_calls(problem)).steps]
    wrong = gold[0].replace("(", '("not ', 1).replace('"not "', '"not ')
    begun = chain_of(gold[0], gold[1], wrong, gold[0], problem=problem)
    astray = chain_of(gold[1], wrong, problem=problem)
    ((name, chain),) = mended(
        [("fol", begun), ("fol", astray), ("fol", chain_of(*gold, problem=problem))], [problem], Limits()
    )
    assert name == "fol" and chain.recovered and not chain.sound
    assert [step.call for step in chain.steps] == [*gold[:2], wrong, *gold[2:]] and chain.steps[2].error == "refused"
    assert mended([("fol", begun)], [problem], Limits(errors=1)) == []  # where an error ends a chain, none goes on
    hinted = mended([("fol", begun)], [problem], Limits(hints=True))[0][1]
    assert "it states" in hinted.steps[2].result


def test_own_chains_come_with_the_mended_ones_where_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    problem = replace(PROBLEM, details={"steps": [["Sum", "3", "4"], ["Multiply", "7", "2"]]})
    made = [("arithmetic", chain_of("Sum(3, 4)", "Divide(7, 0)"))]
    monkeypatch.setattr(own_teacher, "make_chains", lambda *_: None)
    monkeypatch.setattr(own_teacher, "load_chains", lambda _: made)
    asked = settings_of("own_chains.samples=1", "own_chains.mended=true", "preferences.label=valid")
    plain_ones, both = (
        own_teacher.own_chains(tmp_path / "x", [problem], settings, None, silent)
        for settings in (settings_of("own_chains.samples=1"), asked)
    )
    assert plain_ones == made and both[:1] == made and [chain.recovered for _, chain in both[1:]] == [True]


def test_no_chain_is_mended_where_no_solution_is_known() -> None:
    problem = replace(PROBLEM, task="gsm8k", details={"steps": [], "constants": []})
    begun = chain_of("Sum(3, 4)", "Divide(7, 0)", problem=problem)
    assert mended([("gsm8k", begun)], [problem], Limits()) == []

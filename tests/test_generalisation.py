"""Out-of-distribution sets and the forgetting check as a specification."""

from __future__ import annotations

import pytest
import torch

from fcdpo_utils.episode import run_calls
from fcdpo_utils.lab.generalisation import answer_log_likelihoods, forgetting, ood_problems, plain_chats
from fcdpo_utils.lab.settings import OODSettings, load_settings
from fcdpo_utils.problems import TASKS
from fcdpo_utils.tasks.making import make_problems

CPU = load_settings("cpu")
SETS = CPU.generalisation.sets


@pytest.mark.parametrize("ood", SETS, ids=lambda ood: ood.name)
def test_every_set_has_its_problems_and_none_that_was_trained(ood: OODSettings) -> None:
    problems = ood_problems(ood, CPU)
    assert len(problems) == ood.test >= 100 and {problem.task for problem in problems} == {ood.task}
    if ood.task in CPU.tasks:
        trained = [p for p in make_problems(ood.task, CPU.tasks[ood.task], CPU.seed) if p.split == "train"]
        assert {p.question for p in problems}.isdisjoint(p.question for p in trained)


@pytest.mark.parametrize("ood", SETS, ids=lambda ood: ood.name)
def test_gold_chains_of_a_set_fit_its_limits(ood: OODSettings) -> None:
    longest = max(len(TASKS[ood.task].gold_calls(problem)) for problem in ood_problems(ood, CPU))
    assert longest < CPU.generalisation.calls


def test_a_set_without_a_toolset_has_the_first_of_the_runs() -> None:
    run = load_settings("cpu", ["tasks.arithmetic.toolset=[expression, steps]"])
    toolsets = {ood.name: {problem.toolset for problem in ood_problems(ood, run)} for ood in SETS}
    assert toolsets["arithmetic, invented names"] == {"expression"} and toolsets["ordering"] == {None}
    assert toolsets["logic, other functions"] == {"decide"}
    for problem in ood_problems(SETS[-1], run):  # names are drawn for the functions that it has
        assert run_calls(TASKS["arithmetic"], problem, TASKS["arithmetic"].gold_calls(problem)).sound


@pytest.mark.parametrize("name", ["logic, a function is missing", "arithmetic, a function is missing"])
def test_a_set_lacks_functions_that_about_half_of_its_problems_need(name: str) -> None:
    (ood,) = (ood for ood in SETS if ood.name == name)
    problems = ood_problems(ood, CPU)
    assert 35 <= sum(problem.missing for problem in problems) <= 65
    chains = [run_calls(TASKS[ood.task], p, ["Unable()", "Stop()"]) for p in problems]
    assert {(p.missing, c.outcome, c.sound) for p, c in zip(problems, chains, strict=True)} == {
        (True, "solved", True),
        (False, "abstained", False),
    }


def test_likelihoods_are_means_over_the_answers_tokens(tiny_model, tokenizer) -> None:
    question, reference = chat = plain_chats()[0]
    opened = tokenizer.apply_chat_template([question], add_generation_prompt=True)["input_ids"]
    answer = tokenizer(reference["content"] + "<|im_end|>", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = tiny_model(torch.tensor([[*opened, *answer]])).logits[0].log_softmax(-1)
    by_hand = sum(logits[len(opened) + i - 1, token] for i, token in enumerate(answer)) / len(answer)
    assert answer_log_likelihoods(tiny_model, tokenizer, [chat]) == [pytest.approx(by_hand.item(), abs=1e-5)]


def test_the_plain_chat_is_a_fixed_set_of_distinct_questions() -> None:
    chats = plain_chats()
    assert len({question["content"] for question, _ in chats}) == len(chats) >= 20
    assert not any("(" in answer["content"] for _, answer in chats)  # no calls among them


def test_forgetting_is_tested_answer_by_answer() -> None:
    lost = forgetting([-1.0] * 10, [-2.0] * 9 + [-0.5])
    assert (lost["likelier"], lost["less_likely"]) == (1, 9)
    assert lost["after"] == pytest.approx(-1.85) and lost["p"] == pytest.approx(2 * 11 / 2**10)

"""Probes and the forgetting check as a specification."""

from __future__ import annotations

import pytest
import torch

from fcdpo_utils.generalisation import (
    answer_log_likelihoods,
    chat_turns,
    forgetting,
    probe_problems,
    probe_settings,
)
from fcdpo_utils.profiles import ProbeSettings, load_settings
from fcdpo_utils.tasks import TASKS, make_problems

CPU = load_settings("cpu")
PROBES = CPU.generalisation.probes


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)
def test_every_probe_has_its_problems_and_none_that_was_trained(probe: ProbeSettings) -> None:
    problems = probe_problems(probe, CPU.seed)
    assert len(problems) == probe.test >= 100 and {problem.task for problem in problems} == {probe.task}
    if probe.task in CPU.tasks:
        trained = [p for p in make_problems(probe.task, CPU.tasks[probe.task], CPU.seed) if p.split == "train"]
        assert {p.question for p in problems}.isdisjoint(p.question for p in trained)


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)
def test_gold_chains_of_a_probe_fit_its_limits(probe: ProbeSettings) -> None:
    own = probe_settings(probe, CPU)
    task = TASKS[probe.task]
    longest = max(len(task.gold_calls(p, toolset=probe.toolset)) for p in probe_problems(probe, CPU.seed))
    assert longest < own.limits.calls and own.tasks[probe.task].toolset == probe.toolset


def test_likelihoods_are_means_over_the_answers_tokens(tiny_model, tokenizer) -> None:
    turn = chat_turns()[0]
    messages = [{"role": "user", "content": turn.question}]
    opened = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    answer = tokenizer(turn.answer + "<|im_end|>", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = tiny_model(torch.tensor([[*opened, *answer]])).logits[0].log_softmax(-1)
    by_hand = sum(logits[len(opened) + i - 1, token] for i, token in enumerate(answer)) / len(answer)
    assert answer_log_likelihoods(tiny_model, tokenizer, [turn]) == [pytest.approx(by_hand.item(), abs=1e-5)]


def test_the_plain_chat_is_a_fixed_set_of_distinct_questions() -> None:
    turns = chat_turns()
    assert len({turn.question for turn in turns}) == len(turns) >= 20
    assert not any("(" in turn.answer for turn in turns)  # no calls among them


def test_forgetting_is_tested_answer_by_answer() -> None:
    lost = forgetting([-1.0] * 10, [-2.0] * 9 + [-0.5])
    assert (lost["likelier"], lost["less_likely"]) == (1, 9)
    assert lost["after"] == pytest.approx(-1.85) and lost["p"] == pytest.approx(2 * 11 / 2**10)

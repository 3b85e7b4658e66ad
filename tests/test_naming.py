"""Drawn names: pools that never meet, and chains that mean the same under any name."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import chain

import pytest
from small import settings_of

from fcdpo_utils.chains import keys_of
from fcdpo_utils.episode import Episode, prompt, run_calls
from fcdpo_utils.problems import TASKS, Problem
from fcdpo_utils.tasks.making import make_problems, with_functions
from fcdpo_utils.tasks.naming import WORDS, draw_names
from fcdpo_utils.teacher import SampleRequest
from fcdpo_utils.teachers.scripted import ScriptedTeacher
from fcdpo_utils.teachers.tool_calls import TOOL_CALLS
from fcdpo_utils.tools import Toolset, tool

TOOLSETS = [("arithmetic", "steps"), ("arithmetic", "expression"), ("fol", "deduction"), ("fol", "decide")]
TOOLSETS += [("drills", None), ("ordering", None)]
NAMINGS = ("natural", "invented")


def drawn(task: str, toolset: str | None, naming: str, count: int = 6, split: str = "train") -> list[Problem]:
    return with_functions(TASKS[task].generate(count, split, 0, levels=(2, 3)), 0, (toolset,), naming)


def names_of(problems: list[Problem]) -> set[str]:
    return {new for problem in problems for _, new, _ in problem.functions}


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize(("task", "toolset"), TOOLSETS)
def test_a_gold_chain_is_sound_under_any_names_and_shows_no_other(task: str, toolset: str | None, naming: str) -> None:
    for problem in drawn(task, toolset, naming):
        made = run_calls(TASKS[task], problem, TASKS[task].gold_calls(problem))
        assert made.sound and {step.call.partition("(")[0] for step in made.steps} <= names_of([problem])
        real = TASKS[task].toolset(toolset).functions()
        functions, _, example = prompt(TASKS[task], problem)[0]["content"].partition("\n\n")
        for line in [*functions.split("\n")[2:], *example.split("\n")]:
            assert line.partition("(")[0] not in real


@pytest.mark.parametrize(("task", "toolset"), TOOLSETS)
def test_names_of_held_out_problems_are_in_no_training_prompt(task: str, toolset: str | None) -> None:
    tools = TASKS[task].toolset(toolset)
    for naming in NAMINGS:
        seen, asked = (
            {
                new
                for number in range(400)
                for _, new, _ in draw_names(tools, naming, held_out, f"{number}", unable=True)
            }
            for held_out in (False, True)
        )
        assert len(seen) > 40 and len(asked) > 20
        assert not {name.lower().replace("_", "") for name in seen} & {name.lower().replace("_", "") for name in asked}


def test_every_function_that_ships_with_a_natural_pool_has_enough_of_both_kinds() -> None:
    for task, toolset in TOOLSETS[:-1]:
        for name in (*TASKS[task].toolset(toolset).functions(), "Unable"):
            train, held_out = ({*WORDS[name][pool]} for pool in ("train", "held_out"))
            assert len(train) >= 6 and len(held_out) >= 3 and not train & held_out


def test_the_same_arguments_draw_the_same_names_and_mixed_draws_all_kinds() -> None:
    assert drawn("fol", None, "natural") == drawn("fol", None, "natural")
    problems = drawn("arithmetic", None, "mixed", 100)
    fixed = [problem for problem in problems if not problem.functions]
    assert 8 <= len(fixed) <= 35
    first = [problem.functions[0][0] for problem in problems if problem.functions]
    assert set(first) == set(TASKS["arithmetic"].toolset(None).functions())  # the order is drawn, too


def test_a_function_goes_by_no_other_name_than_the_one_shown() -> None:
    (problem,) = drawn("arithmetic", None, "invented", 1)
    episode = Episode(TASKS["arithmetic"], problem)
    step = episode.step("Sum(2, 3)")
    known = step.result.partition("one of ")[2].split(", ")
    assert step.error == "unknown_function" and set(known) == names_of([problem])
    shown = {name: new for name, new, _ in problem.functions}
    assert f"Error: {shown['Sum']}: a must be a number" in episode.step(f'{shown["Sum"]}("x", 3)').result


def test_an_error_line_names_functions_as_they_are_shown() -> None:
    (problem,) = with_functions([TASKS["fol"].example()], 0, naming="natural")
    shown = {name: new for name, new, _ in problem.functions}
    step = Episode(TASKS["fol"], problem).step(f'{shown["Fact"]}("big(x) -> guard(x)")')
    assert step.result == f"Error: {shown['Fact']}: this is a rule; use {shown['Rule']}"


@pytest.mark.parametrize(("task", "toolset"), TOOLSETS)
def test_a_teacher_makes_the_same_chains_under_other_names(task: str, toolset: str | None) -> None:
    teacher = ScriptedTeacher(error_rate=0.5, variation=0.5)
    for problem in drawn(task, toolset, "invented"):
        plain = replace(problem, details={k: v for k, v in problem.details.items() if k != "functions"})
        for number in range(4):
            named, usual = (teacher.sample(SampleRequest(TASKS[task], p, number)) for p in (problem, plain))
            assert named.source == usual.source
            assert (named.chain.outcome, named.chain.sound) == (usual.chain.outcome, usual.chain.sound)
            assert [step.error for step in named.chain.steps] == [step.error for step in usual.chain.steps]


def test_native_tool_calls_show_drawn_names() -> None:
    (problem,) = drawn("arithmetic", None, "natural", 1)
    schemas = TOOL_CALLS.schemas(Episode(TASKS["arithmetic"], problem).tools)
    for schema, (_, new, says) in zip(schemas, problem.functions, strict=True):
        assert schema["function"]["name"] == new and schema["function"]["description"].startswith(says)


def test_a_setting_draws_names_for_training_problems_alone_and_they_survive_the_file() -> None:
    settings = settings_of("tasks.arithmetic.naming=invented")
    problems = make_problems("arithmetic", settings.tasks["arithmetic"], 0)
    assert {bool(problem.functions) for problem in problems if problem.split == "train"} == {True}
    assert not any(problem.functions for problem in problems if problem.split == "test")
    stored = Problem(**json.loads(json.dumps(vars(problems[0]))))
    assert stored.functions == problems[0].functions
    assert prompt(TASKS["arithmetic"], stored) == prompt(TASKS["arithmetic"], problems[0])


MIX = ["tasks.arithmetic.toolset=[steps, expression]", "tasks.arithmetic.levels=[2, 3]", "tasks.arithmetic.train=40"]


def test_several_toolsets_are_taken_in_turn_at_every_level_and_each_prompt_shows_its_own() -> None:
    problems = make_problems("arithmetic", settings_of(*MIX).tasks["arithmetic"], 0)
    turns = Counter((problem.split, problem.level, problem.toolset) for problem in problems)
    assert len(turns) == 8
    train = [problem.toolset for problem in problems if problem.split == "train"]
    assert train.count("expression") == train.count(None) == 20
    for problem in problems:
        said = {line.partition("(")[0] for line in prompt(TASKS["arithmetic"], problem)[0]["content"].split("\n")}
        assert ("Calculate" in said, "Sum" in said) == (problem.toolset == "expression", problem.toolset is None)


@pytest.mark.parametrize("naming", ["fixed", "mixed"])
def test_chains_of_several_toolsets_are_as_sound_as_those_of_one(naming: str) -> None:
    settings = settings_of(*MIX, f"tasks.arithmetic.naming={naming}")
    problems = [p for p in make_problems("arithmetic", settings.tasks["arithmetic"], 0) if p.split == "train"]
    gold, wrong = ScriptedTeacher(error_rate=0.0), ScriptedTeacher(error_rate=1.0)
    requests = [SampleRequest(TASKS["arithmetic"], problem, number) for problem in problems for number in range(4)]
    assert all(gold.sample(request).chain.sound for request in requests)
    unsound = [not wrong.sample(request).chain.sound for request in requests]
    assert sum(unsound) > 0.75 * len(unsound)


def test_a_chain_is_made_again_only_where_its_problem_got_another_toolset() -> None:
    settings = settings_of(*MIX)
    mixed, usual = (
        make_problems("arithmetic", settings.tasks["arithmetic"].model_copy(update={"toolset": names}), 0)
        for names in (("steps", "expression"), ("steps",))
    )
    keys, before = keys_of(mixed, settings), keys_of(usual, settings)
    assert {p.id for p in mixed if keys[p.id] == before[p.id]} == {p.id for p in mixed if p.toolset is None}
    assert usual == make_problems("arithmetic", settings_of(*MIX[1:]).tasks["arithmetic"], 0)


def test_an_unknown_toolset_is_one_line_before_a_problem_is_stored() -> None:
    settings = settings_of("tasks.arithmetic.toolset=[steps, words]").tasks["arithmetic"]
    with pytest.raises(ValueError, match="^arithmetic: toolset must be one of steps, expression, got 'words'$"):
        make_problems("arithmetic", settings, 0)


@pytest.mark.parametrize("naming", ["fixed", *NAMINGS])
@pytest.mark.parametrize(("task", "toolset"), TOOLSETS)
def test_a_missing_function_is_needed_and_every_problem_lacks_one(task: str, toolset: str | None, naming: str) -> None:
    problems = with_functions(TASKS[task].generate(30, "train", 0, levels=(2, 3)), 0, (toolset,), naming, 0.5)
    assert 5 <= sum(problem.missing for problem in problems) <= 25
    for problem in problems:
        gold, (lacks, shown, _) = TASKS[task].gold_calls(problem), *problem.withheld
        offered = {name: new for name, new, _ in problem.functions}
        assert "Unable" in offered and "Stop" in offered and lacks not in offered
        assert run_calls(TASKS[task], problem, gold).sound
        assert (gold == ["Unable()", "Stop()"]) == problem.missing
        whole = run_calls(TASKS[task], problem, TASKS[task].solution(problem))
        assert whole.sound != problem.missing and any(step.error for step in whole.steps) == problem.missing
        assert {step.call.partition("(")[0] for step in whole.steps} <= {*offered.values(), shown}
        listed = prompt(TASKS[task], problem)[0]["content"].partition("\n\n")[0].split("\n")[2:]
        assert [line.partition("(")[0] for line in listed] == [*offered.values()]
    assert "Query" not in {problem.withheld[0][0] for problem in problems}  # a proof is sound without it


@pytest.mark.parametrize("naming", ["fixed", "invented"])
@pytest.mark.parametrize(("task", "toolset"), TOOLSETS)
def test_a_teacher_makes_chains_of_both_kinds_where_functions_are_missing(
    task: str, toolset: str | None, naming: str
) -> None:
    for problem in with_functions(TASKS[task].generate(12, "train", 0, levels=(2, 3)), 0, (toolset,), naming, 0.5):
        teachers = ScriptedTeacher(error_rate=0.0), ScriptedTeacher(error_rate=1.0)
        right, wrong = (
            [teacher.sample(SampleRequest(TASKS[task], problem, number)) for number in range(12)]
            for teacher in teachers
        )
        assert all(sample.chain.sound for sample in right) and any(not sample.chain.sound for sample in wrong)
        misjudged = {sample.chain.outcome for sample in wrong if sample.source == "misjudged"}
        assert "solved" not in misjudged if problem.missing else misjudged <= {"abstained"}


def test_a_function_is_missing_in_training_alone_and_a_short_list_does_not_tell() -> None:
    settings = settings_of("tasks.arithmetic.missing=0.5", "tasks.arithmetic.train=200").tasks["arithmetic"]
    problems = make_problems("arithmetic", settings, 0)
    assert not any(problem.functions or problem.missing for problem in problems if problem.split == "test")
    train = [problem for problem in problems if problem.split == "train"]
    assert 80 <= sum(problem.missing for problem in train) <= 120 and {len(p.functions) for p in train} == {6 + 1}
    for name in ("Sum", "Subtract", "Multiply", "Divide"):
        assert {problem.missing for problem in train if problem.withheld[0][0] == name} == {True, False}


@pytest.mark.parametrize("task", ["gsm8k", "folio", "ordering"])
def test_any_task_with_gold_chains_can_lack_a_function(task: str) -> None:
    (problem,) = with_functions([TASKS[task].example()], 0, missing=1.0)
    assert problem.missing and run_calls(TASKS[task], problem, TASKS[task].gold_calls(problem)).sound


def test_a_users_function_is_described_in_the_users_words_even_where_its_name_is_one_of_ours() -> None:
    class Sets(Toolset):
        @tool('Sum("a", "b")')
        def Sum(self, first: str, second: str) -> str:
            """What two sets hold together."""
            return "noted"

    for number in range(20):
        functions = {name: (new, says) for name, new, says in draw_names(Sets, "natural", number % 2 == 0, f"{number}")}
        new, says = functions["Sum"]
        assert says == "What two sets hold together." and "sum" in new.lower()
        assert functions["Stop"][1] in [Toolset.functions()["Stop"].doc, *chain(*WORDS["Stop"]["says"].values())]


def test_problems_of_a_toolset_share_names_as_many_as_asked() -> None:
    made = TASKS["arithmetic"].generate(24, "train", 0, levels=(2, 3))
    shown = with_functions(made, 0, ("steps", "expression"), "natural", share=4)
    for toolset in ("steps", "expression"):
        names = [p.functions for p in shown if (p.toolset or "steps") == toolset]
        assert [names.count(one) for one in names] == [4] * 12

"""Logic puzzles as a specification: what is generated, what each toolset accepts, and when a chain is sound."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toolsets import using

from fcdpo_utils.episode import Chain, Episode, Limits, run_calls
from fcdpo_utils.problems import Problem
from fcdpo_utils.tasks.logic import formulas, theories
from fcdpo_utils.tasks.logic.formulas import VARIABLE, Clause, decide, ground, is_consistent, parse_formula
from fcdpo_utils.tasks.logic.task import FirstOrderLogic
from fcdpo_utils.tasks.logic.theories import WORDS, split_of
from fcdpo_utils.tasks.logic.toolsets import DecideTools, DeductionTools, FolTools
from fcdpo_utils.tools import ToolResult

TASK = FirstOrderLogic()
CORE, LONG, DEEP = (1, 2, 3), (5,), (4, 5, 6)
SETS = [("train", CORE), ("test", CORE), ("ood_words", CORE), ("ood_depth", DEEP), ("train", LONG), ("test", LONG)]
TOOLSETS = [(levels, toolset) for levels in (CORE, LONG) for toolset in TASK.toolsets]


@cache
def problems(split: str = "train", levels: tuple[int, ...] = CORE, count: int = 90) -> list[Problem]:
    return TASK.generate(count, split, seed=5, levels=levels)


def premises(problem: Problem) -> list:
    return [parse_formula(text) for text in problem.details["premises"]]


def words(problem: Problem) -> set[str]:
    """Predicates and names of a problem."""
    formulas = [*premises(problem), parse_formula(problem.details["goal"])]
    return {s for f in formulas for literal in f.literals() for s in (literal.predicate, literal.name)} - {VARIABLE}


def puzzle(*texts: str, goal: str, answer: str = "True") -> Problem:
    return Problem("p", "fol", "test", 1, "?", answer, "c", {"premises": list(texts), "goal": goal, "depth": 1})


# Generated problems


@pytest.mark.parametrize(("split", "levels"), SETS)
def test_labels_are_balanced_within_each_level(split: str, levels: tuple[int, ...]) -> None:
    counts = Counter((problem.level, problem.answer) for problem in problems(split, levels))
    assert set(counts.values()) == {90 // len(levels) // 3}
    assert set(counts) == {(level, label) for level in levels for label in ("True", "False", "Unknown")}


@pytest.mark.parametrize(("split", "levels"), SETS)
def test_the_premises_are_consistent_and_prove_the_label(split: str, levels: tuple[int, ...]) -> None:
    for problem in problems(split, levels):
        assert is_consistent(premises(problem))
        assert decide(premises(problem), parse_formula(problem.details["goal"])) == problem.answer, problem


@pytest.mark.parametrize("levels", [CORE, LONG])
def test_train_and_test_share_no_canonical_form(levels: tuple[int, ...]) -> None:
    train = {problem.canonical for problem in problems("train", levels)}
    assert train.isdisjoint(problem.canonical for problem in problems("test", levels))


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_canonical_form_alone_says_the_split(split: str) -> None:
    assert {split_of(problem.canonical) for problem in problems(split)} == {split}


def test_about_a_third_of_all_canonical_forms_are_for_tests() -> None:
    forms = [f"{random.Random(number).getrandbits(64):016x}" for number in range(2_000)]
    assert 0.25 < sum(split_of(form) == "test" for form in forms) / len(forms) < 0.35


@pytest.mark.parametrize("levels", [CORE, LONG])
def test_ood_words_shares_no_word_with_the_other_splits(levels: tuple[int, ...]) -> None:
    own = set().union(*map(words, problems("ood_words", levels)))
    sets = (problems("train", levels), problems("test", levels), problems("ood_depth", DEEP))
    others = set().union(*(words(problem) for made in sets for problem in made))
    assert own and others and own.isdisjoint(others)


def test_ood_depth_is_deeper_than_what_is_trained() -> None:
    with pytest.raises(ValueError, match=r"fol: levels must be some of 4, 5, 6, got \(1, 2, 3\)"):
        TASK.generate(3, "ood_depth", seed=0, levels=CORE)
    for problem in problems("ood_depth", DEEP):
        assert sum(call.startswith("Apply") for call in TASK.gold_calls(problem)) >= problem.level or (
            problem.answer == "Unknown"
        )


def test_ood_depth_has_the_functions_and_none_of_the_forms_of_training() -> None:
    deep = problems("ood_depth", DEEP)
    assert {type(TASK.start(problem)) for problem in deep} == {DeductionTools}
    assert {split_of(problem.canonical) for problem in deep} == {"test"}


def test_the_two_vocabularies_never_meet() -> None:
    main, other = ({word for kind in pool.values() for word in kind} for pool in WORDS.values())
    assert main.isdisjoint(other)


@pytest.mark.parametrize(("split", "levels"), SETS)
def test_the_same_arguments_give_the_same_problems(split: str, levels: tuple[int, ...]) -> None:
    assert TASK.generate(15, split, seed=5, levels=levels) == problems(split, levels, 15)


def test_asking_for_more_problems_leaves_the_first_as_they_are() -> None:
    assert problems(count=15) == problems()[:15]


def test_another_seed_gives_other_problems() -> None:
    other = TASK.generate(90, "train", seed=6)
    assert not {problem.question for problem in other} & {problem.question for problem in problems()}


@pytest.mark.parametrize(("split", "levels"), SETS)
def test_problems_are_distinct_and_numbered(split: str, levels: tuple[int, ...]) -> None:
    made = problems(split, levels)
    assert len({problem.question for problem in made}) == len(made)
    assert [problem.id for problem in made] == [f"fol-{split}-{number:04d}" for number in range(1, 91)]


def test_levels_are_taken_in_turn() -> None:
    assert [problem.level for problem in problems(count=12)] == [1, 1, 1, 2, 2, 2, 3, 3, 3, 1, 1, 1]


@pytest.mark.parametrize("levels", [CORE, LONG])
def test_a_level_is_the_depth_of_the_derivation(levels: tuple[int, ...]) -> None:
    for problem in problems("train", levels):
        assert problem.details["depth"] == problem.level
        rules = [premise for premise in premises(problem) if premise.head is not None]
        assert len(rules) > problem.level  # one for each step, and at least one that leads nowhere


def test_a_deeper_level_needs_more_applications() -> None:
    applied = {level: [] for level in (1, 2, 3, 5)}
    for problem in [*problems(), *problems("train", LONG)]:
        if problem.answer != "Unknown":
            applied[problem.level].append(sum(call.startswith("Apply") for call in TASK.gold_calls(problem)))
    assert all(min(counts) >= 1 for counts in applied.values())
    means = [sum(counts) / len(counts) for counts in applied.values()]
    assert means == sorted(means) and len(set(means)) == 4


@pytest.mark.parametrize(("split", "levels"), SETS)
def test_a_question_says_every_premise_and_then_the_statement(split: str, levels: tuple[int, ...]) -> None:
    for problem in problems(split, levels):
        said, _, statement = problem.question.partition(" Statement: ")
        assert said.count(".") == len(problem.details["premises"])
        assert statement.count(".") == 1 and statement.endswith(".")
        assert words(problem) <= set(re.findall(r"\w+", problem.question))


@pytest.mark.parametrize(
    ("formula", "sentences"),
    [
        ("kind(Tom)", {"Tom is kind."}),
        ("not doctor(Tom)", {"Tom is not a doctor."}),
        (
            "doctor(x) -> not kind(x)",
            {
                "Everyone who is a doctor is not kind.",
                "If someone is a doctor, then they are not kind.",
                "Every doctor is not kind.",
                "No doctor is kind.",
            },
        ),
        (
            "kind(x) -> doctor(x)",
            {
                "Everyone who is kind is a doctor.",
                "If someone is kind, then they are a doctor.",
                "Every kind person is a doctor.",
            },
        ),
        (
            "not kind(x) -> rich(x)",
            {"Everyone who is not kind is rich.", "If someone is not kind, then they are rich."},
        ),
        (
            "kind(x) and not doctor(x) -> rich(x)",
            {
                "Everyone who is kind and not a doctor is rich.",
                "If someone is kind and not a doctor, then they are rich.",
            },
        ),
    ],
)
def test_a_formula_is_said_in_one_of_its_templates(formula: str, sentences: set[str]) -> None:
    assert {theories.say(parse_formula(formula), random.Random(seed)) for seed in range(60)} == sentences


@pytest.mark.parametrize(
    ("split", "levels", "line"),
    [
        ("dev", (1,), "fol: split must be one of train, test, ood_words, ood_depth, got 'dev'"),
        ("train", (1, 9), "fol: levels must be some of 1, 2, 3, 5, got (1, 9)"),
        ("train", (), "fol: levels must be some of 1, 2, 3, 5, got ()"),
    ],
)
def test_an_unknown_split_or_level_is_refused_with_its_line(split: str, levels: tuple[int, ...], line: str) -> None:
    with pytest.raises(ValueError) as caught:
        TASK.generate(3, split, 0, levels=levels)
    assert str(caught.value) == line


def test_running_out_of_theories_is_refused_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(theories, "MAX_DRAFTS", 0)
    with pytest.raises(ValueError) as caught:
        TASK.generate(1, "train", 0, levels=(2,))
    assert str(caught.value) == "no new True theory of level 2 for split train in 0 drafts; ask for fewer"


def test_the_example_is_in_no_split_and_its_label_is_proved() -> None:
    example = TASK.example()
    assert example.split == "example"
    assert decide(premises(example), parse_formula(example.details["goal"])) == example.answer


def test_the_premises_of_a_problem_are_parsed_once_for_all_its_chains() -> None:
    problem = puzzle("kind(Onceonly)", "kind(x) -> rich(x)", goal="rich(Onceonly)")
    first, second = TASK.start(using("deduction", problem)), TASK.start(using("decide", problem))
    assert all(one is other for one, other in zip(first.premises, second.premises, strict=True))
    assert first.goal is second.goal


# Gold chains


@pytest.mark.parametrize(("levels", "toolset"), TOOLSETS)
@pytest.mark.parametrize("order", ["canonical", "shuffled"])
def test_every_gold_chain_is_sound(levels: tuple[int, ...], toolset: str, order: str) -> None:
    for problem in [*problems("train", levels), *problems("test", levels)]:
        rng = random.Random(problem.id) if order == "shuffled" else None
        problem = using(toolset, problem)
        chain = run_calls(TASK, problem, TASK.gold_calls(problem, rng))
        assert chain.sound, (problem, chain)


def test_every_gold_chain_of_new_words_is_sound() -> None:
    for problem in [*problems("ood_words", CORE), *problems("ood_words", LONG)]:
        assert run_calls(TASK, problem, TASK.gold_calls(problem)).sound, problem


def test_the_worked_example_is_solved_soundly_by_every_toolset() -> None:
    for toolset in TASK.toolsets:
        example = using(toolset, TASK.example())
        assert run_calls(TASK, example, TASK.gold_calls(example)).sound


def test_the_canonical_gold_chain_is_always_the_same() -> None:
    assert all(TASK.gold_calls(problem) == TASK.gold_calls(problem) for problem in problems())


@pytest.mark.parametrize("toolset", TASK.toolsets)
def test_another_order_of_a_gold_chain_is_found_where_there_is_one(toolset: str) -> None:
    different = [
        any(TASK.gold_calls(problem, random.Random(seed)) != TASK.gold_calls(problem) for seed in range(6))
        for problem in (using(toolset, problem) for problem in problems(count=30))
    ]
    assert sum(different) >= 5


def test_a_gold_chain_stops_looking_when_the_goal_is_derived() -> None:
    problem = puzzle("kind(Tom)", "kind(x) -> rich(x)", "rich(x) -> tall(x)", goal="rich(Tom)")
    assert TASK.gold_calls(problem) == [
        'Fact("kind(Tom)")',
        'Rule("kind(x) -> rich(x)")',
        'Apply("R1", "F1")',
        'Query("rich(Tom)")',
        'Conclude("True")',
        "Stop()",
    ]


# Mistakes


@pytest.mark.parametrize("name", TASK.mistakes)
@pytest.mark.parametrize("levels", [CORE, LONG])
def test_a_chain_of_deductions_with_a_mistake_is_not_sound(levels: tuple[int, ...], name: str) -> None:
    applied = 0
    for problem in [*problems("train", levels), *problems("test", levels)]:
        gold = TASK.gold_calls(problem)
        calls = TASK.mistakes[name](problem, list(gold), random.Random(problem.id))
        if calls is not None:
            applied += 1
            assert calls != gold
            assert not run_calls(TASK, problem, calls).sound, (name, problem, calls)
    assert applied >= 20


@pytest.mark.parametrize("name", TASK.mistakes)
def test_a_mistake_that_leaves_a_chain_sound_left_the_proof_in_what_was_recorded(name: str) -> None:
    """Premises that the goal does not need may be replaced by others: then what is left still proves the answer."""
    applied = 0
    for problem in problems():
        problem = using("decide", problem)
        calls = TASK.mistakes[name](problem, TASK.gold_calls(problem), random.Random(problem.id))
        if calls is not None:
            applied += 1
            if run_calls(TASK, problem, calls).sound:
                recorded = [parse_formula(call[9:-2]) for call in calls if call.startswith("Premise")]
                assert decide(recorded, parse_formula(problem.details["goal"])) == problem.answer != "Unknown"
    assert applied >= 20


@pytest.mark.parametrize("name", ["wrong_label", "wrong_goal"])
def test_a_wrong_label_is_a_wrong_answer(name: str) -> None:
    for problem in problems():
        calls = TASK.mistakes[name](problem, TASK.gold_calls(problem), random.Random(problem.id))
        assert calls is None or run_calls(TASK, problem, calls).outcome == "wrong_answer"


# What the engine answers

PUZZLE = puzzle(
    "rich(Tom)",
    "not strong(Ann)",
    "rich(x) -> kind(x)",
    "rich(x) and tall(x) -> wise(x)",
    "kind(x) -> not poor(x)",
    "old(x) or not strong(x) -> happy(x)",
    goal="old(Tom)",
)
ALL_RECORDED = (
    *('Fact("rich(Tom)")', 'Fact("not strong(Ann)")', 'Rule("rich(x) -> kind(x)")'),
    *('Rule("rich(x) and tall(x) -> wise(x)")', 'Rule("kind(x) -> not poor(x)")'),
    'Rule("old(x) or not strong(x) -> happy(x)")',
)  # F1, F2 and R1 to R4


def state_after(*calls: str, toolset: str = "deduction") -> FolTools:
    state = TASK.start(using(toolset, PUZZLE))
    for call in calls:
        assert state.call(call).error is None, call
    return state


@pytest.mark.parametrize(
    ("before", "call", "answer"),
    [
        ((), 'Fact("rich(Tom)")', "F1"),
        ((), 'Fact(" rich(Tom). ")', "F1"),
        ((), 'Rule("rich(y) -> kind(y)")', "R1"),
        ((), 'Rule("tall(x) and rich(x) -> wise(x)")', "R1"),
        (ALL_RECORDED, 'Apply("R1", "F1")', "F3: kind(Tom)"),
        (ALL_RECORDED, 'Apply("R4", "F2")', "F3: happy(Ann)"),
        ((*ALL_RECORDED, 'Apply("R1", "F1")'), 'Apply("R3", "F3")', "F4: not poor(Tom)"),
        (ALL_RECORDED, 'Query("rich(Tom)")', "True"),
        (ALL_RECORDED, 'Query("not rich(Tom)")', "False"),
        (ALL_RECORDED, 'Query("kind(Tom)")', "Not derived yet"),
        (ALL_RECORDED, 'Query("old(Tom)")', "Not derived yet"),
        (ALL_RECORDED, 'Conclude("Unknown")', "Answer recorded"),
        ((), 'Reasoning("think")', "Noted"),
        ((), "Stop()", "Stopped"),
    ],
)
def test_an_accepted_step_is_answered(before: tuple[str, ...], call: str, answer: str) -> None:
    assert state_after(*before).call(call) == ToolResult(answer, None)


def test_a_query_says_unknown_once_nothing_more_follows() -> None:
    tools = DeductionTools([parse_formula("rich(Tom)"), parse_formula("rich(x) -> kind(x)")], parse_formula("old(Tom)"))
    answers = [tools.call(call).text for call in ('Query("old(Tom)")', 'Fact("rich(Tom)")', 'Query("old(Tom)")')]
    assert answers[::2] == ["Not derived yet", "Not derived yet"]
    tools.call('Rule("rich(x) -> kind(x)")')
    tools.call('Apply("R1", "F1")')
    queries = [f'Query("{goal}(Tom)")' for goal in ("old", "kind", "not kind")]
    assert [tools.call(query).text for query in queries] == ["Unknown", "True", "False"]


@pytest.mark.parametrize(
    ("before", "call", "line"),
    [
        ((), 'Fact("kind(Tom)")', "Fact: kind(Tom) is not stated in the problem"),
        ((), 'Fact("not rich(Tom)")', "Fact: not rich(Tom) is not stated in the problem"),
        ((), 'Fact("old(Tom)")', "Fact: old(Tom) is not stated in the problem"),
        ((), 'Fact("strong(Ann)")', "Fact: strong(Ann) is not stated in the problem"),
        ((), 'Fact("rich(x) -> kind(x)")', "Fact: this is a rule; use Rule"),
        ((), 'Fact("Tom is rich")', 'Fact: cannot read "Tom is rich"; write for example not cat(Tom)'),
        ((), 'Fact("rich(x)")', "Fact: a fact needs a name, not a variable"),
        ((), 'Rule("kind(x) -> rich(x)")', "Rule: kind(x) -> rich(x) is not stated in the problem"),
        ((), 'Rule("rich(x) -> not kind(x)")', "Rule: rich(x) -> not kind(x) is not stated in the problem"),
        (
            (),
            'Rule("rich(x) or tall(x) -> wise(x)")',
            "Rule: rich(x) or tall(x) -> wise(x) is not stated in the problem",
        ),
        ((), 'Rule("rich(Tom)")', "Rule: this is a fact; use Fact"),
        (
            (),
            'Rule("rich(Tom) -> kind(y)")',
            "Rule: the variable of the conclusion is not in the rule's condition",
        ),
        ((), 'Apply("R1", "F1")', 'Apply: no R named "R1"; the last is none'),
        (ALL_RECORDED, 'Apply("R5", "F1")', 'Apply: no R named "R5"; the last is R4'),
        (ALL_RECORDED, 'Apply("R0", "F1")', 'Apply: no R named "R0"; the last is R4'),
        (ALL_RECORDED, 'Apply("F1", "R1")', 'Apply: no R named "F1"; the last is R4'),
        (ALL_RECORDED, 'Apply("R1", "F9")', 'Apply: no F named "F9"; the last is F2'),
        (ALL_RECORDED, 'Apply("R1", "rich(Tom)")', 'Apply: no F named "rich(Tom)"; the last is F2'),
        (ALL_RECORDED, 'Apply("R3", "F1")', "Apply: kind(x) -> not poor(x) does not apply to rich(Tom)"),
        (ALL_RECORDED, 'Apply("R2", "F1")', "Apply: rich(x) and tall(x) -> wise(x) does not apply to rich(Tom)"),
        (ALL_RECORDED, 'Apply("R1", "F2")', "Apply: rich(x) -> kind(x) does not apply to not strong(Ann)"),
        (ALL_RECORDED, 'Query("is Tom old")', 'Query: cannot read "is Tom old"; write for example not cat(Tom)'),
    ],
)
def test_a_step_that_does_not_hold_is_refused_with_its_line(before: tuple[str, ...], call: str, line: str) -> None:
    assert state_after(*before).call(call) == ToolResult(f"Error: {line}", "refused")


def test_a_refused_step_changes_nothing() -> None:
    state = state_after(*ALL_RECORDED)
    state.call('Apply("R3", "F1")')
    state.call('Fact("kind(Tom)")')
    assert state.call('Apply("R1", "F1")').text == "F3: kind(Tom)"


@pytest.mark.parametrize("given", ['"Maybe"', "True", '"true"', "1"])
def test_a_conclusion_is_one_of_three_labels(given: str) -> None:
    result = state_after().call(f"Conclude({given})")
    assert result.error == "bad_arguments"
    assert result.text.startswith("Error: Conclude: label must be one of 'True', 'False', 'Unknown', got ")


# Whether the answer follows


def last_place(calls: list[str], function: str) -> int | None:
    return next((i for i in reversed(range(len(calls))) if calls[i].startswith(f"{function}(")), None)


@pytest.mark.parametrize("levels", [CORE, LONG])
def test_unknown_is_only_solved_when_the_last_application_is_left_out(levels: tuple[int, ...]) -> None:
    tried = 0
    for problem in problems("train", levels):
        calls = TASK.gold_calls(problem)
        place = last_place(calls, "Apply")
        if problem.answer != "Unknown" or place is None:
            continue
        chain = run_calls(TASK, problem, calls[:place] + calls[place + 1 :])
        if all(step.error is None for step in chain.steps):  # else a later step needed it
            tried += 1
            assert chain.solved and not chain.sound, chain
    assert tried >= 3  # the test is not empty


@pytest.mark.parametrize("toolset", TASK.toolsets)
def test_a_lucky_label_is_solved_but_not_sound(toolset: str) -> None:
    for problem in problems():
        chain = run_calls(TASK, using(toolset, problem), [f'Conclude("{problem.answer}")', "Stop()"])
        assert chain.solved and not chain.sound


def test_a_goal_that_was_derived_but_not_looked_up_is_sound() -> None:
    problem = next(problem for problem in problems() if problem.answer == "True")
    calls = [call for call in TASK.gold_calls(problem) if not call.startswith("Query")]
    assert run_calls(TASK, problem, calls).sound


def decided(*calls: str, answer: str) -> Chain:
    """The chain of `calls` on a puzzle whose two premises decide rich(Tom) but not tall(Tom)."""
    goal = "tall(Tom)" if answer == "Unknown" else "rich(Tom)"
    problem = puzzle("kind(Tom)", "kind(x) -> rich(x)", "rich(x) -> old(x)", goal=goal, answer=answer)
    return run_calls(TASK, using("decide", problem), [*calls, f'Conclude("{answer}")', "Stop()"])


KIND, RULE, DISTRACTOR = 'Premise("kind(Tom)")', 'Premise("kind(x) -> rich(x)")', 'Premise("rich(x) -> old(x)")'


def test_true_needs_only_the_premises_of_its_proof_to_be_recorded() -> None:
    assert decided(KIND, RULE, 'Decide("rich(Tom)")', answer="True").sound


def test_true_that_was_not_decided_is_only_solved() -> None:
    chain = decided(KIND, 'Decide("rich(Tom)")', answer="True")
    assert chain.steps[1].result == "Unknown"
    assert chain.solved and not chain.sound


def test_the_decision_of_another_goal_does_not_count() -> None:
    chain = decided(KIND, RULE, 'Decide("kind(Tom)")', answer="True")
    assert chain.solved and not chain.sound


def test_unknown_is_sound_when_every_premise_was_recorded_before_it_was_decided() -> None:
    assert decided(KIND, RULE, DISTRACTOR, 'Decide("tall(Tom)")', answer="Unknown").sound


@pytest.mark.parametrize("missing", [KIND, RULE, DISTRACTOR])
def test_unknown_with_a_premise_missing_is_only_solved(missing: str) -> None:
    recorded = [call for call in (KIND, RULE, DISTRACTOR) if call != missing]
    chain = decided(*recorded, 'Decide("tall(Tom)")', answer="Unknown")
    assert chain.solved and not chain.sound


@pytest.mark.parametrize("late", [(KIND, RULE, DISTRACTOR), (DISTRACTOR,)])
def test_unknown_decided_before_the_last_premise_is_only_solved(late: tuple[str, ...]) -> None:
    early = [call for call in (KIND, RULE, DISTRACTOR) if call not in late]
    chain = decided(*early, 'Decide("tall(Tom)")', *late, answer="Unknown")
    assert chain.solved and not chain.sound


@pytest.mark.parametrize(
    ("call", "line"),
    [
        ('Premise("rich(Tom)")', "Premise: rich(Tom) is not stated in the problem"),
        ('Premise("rich(x) -> kind(x)")', "Premise: rich(x) -> kind(x) is not stated in the problem"),
        ('Decide("kind(x) -> rich(x)")', "Decide: a goal is one statement such as kind(Tom)"),
        ('Decide("kind(Tom) and rich(Tom)")', "Decide: only a rule joins statements by 'and'"),
        ('Decide("kind(x)")', "Decide: a fact needs a name, not a variable"),
    ],
)
def test_a_wrong_formalisation_is_refused_with_its_line(call: str, line: str) -> None:
    state = DecideTools([parse_formula("kind(Tom)"), parse_formula("kind(x) -> rich(x)")], parse_formula("rich(Tom)"))
    assert state.call(call) == ToolResult(f"Error: {line}", "refused")


def test_a_premise_is_numbered_and_shown() -> None:
    state = DecideTools([parse_formula("kind(Tom)"), parse_formula("kind(x) -> rich(x)")], parse_formula("rich(Tom)"))
    assert state.call('Premise("kind(y) -> rich(y)")').text == "P1: kind(x) -> rich(x)"
    assert state.call('Premise("kind(Tom)")').text == "P2: kind(Tom)"
    assert state.call('Decide("not rich(Tom)")').text == "False"


# Hostile calls

PEOPLE = tuple(f"A{number}" for number in range(200))


@st.composite
def formulas_of_any_size(draw: st.DrawFn) -> str:
    """As many statements and names as fit into a call: facts, rules, and what is neither."""
    terms = st.sampled_from((*PEOPLE, "x", "y"))
    literals = [
        f"{draw(st.sampled_from(('', 'not ')))}kind({draw(terms)})"
        for _ in range(draw(st.sampled_from((1, 2, 8, 150))))
    ]
    text = draw(st.sampled_from((" and ", " or "))).join(literals)
    return draw(st.sampled_from(("{}", "{} -> kind(x)"))).format(text)[:1900]


def crowded(toolset: str) -> FolTools:
    """A puzzle about several people, all of it recorded."""
    stated = ("tall(Tom)", "kind(Ann)", "not old(Bob)")
    rules = ("tall(x) and kind(Ann) -> wise(x)", "rich(x) or not old(x) -> happy(x)")
    state = TASK.start(using(toolset, puzzle(*stated, *rules, goal="wise(Tom)")))
    for text in (*stated, *rules):
        name = "Premise" if toolset == "decide" else "Rule" if text in rules else "Fact"
        assert state.call(f'{name}("{text}")').error is None
    return state


@pytest.mark.parametrize("function", ["Fact", "Rule", "Query", "Premise", "Decide"])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_formula_however_large_makes_much_work(function: str, data: st.DataObject) -> None:
    text = data.draw(formulas_of_any_size())
    state, grounded = crowded("decide" if function in ("Premise", "Decide") else "deduction"), []

    def counted(clauses: tuple[Clause, ...]) -> Iterator[Clause]:
        for clause in ground(clauses):
            grounded.append(clause)
            assert len(grounded) <= 500
            yield clause

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formulas, "ground", counted)
        result = state.call(f'{function}("{text}")')
    assert len(grounded) <= 500
    assert result.text.isprintable() and len(result.text) <= 300 and " failed (" not in result.text


def test_a_rejected_premise_may_come_with_the_nearest_that_is_stated() -> None:
    task = FirstOrderLogic()
    call = 'Rule("guard(x) -> big(x)")'
    plain, hinted = (Episode(task, task.example(), limits=Limits(hints=hints)).step(call) for hints in (False, True))
    assert plain.result == "Error: Rule: guard(x) -> big(x) is not stated in the problem"
    assert hinted.result == f"{plain.result}; it states big(x) -> guard(x)" and hinted.error == "refused"

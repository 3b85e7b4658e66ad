"""Training in stages: a warm-up for a student that cannot call functions yet, then preferences on its own chains.

The paper's student calls functions before it is trained. One that does not is first fine-tuned on a teacher's correct
chains. Then it writes chains itself, on problems that it was not warmed up on; running them labels them, as it labels
a teacher's, and an incorrect chain counts up to its first wrong call. Knows nothing of losses or figures.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from fcdpo_utils.chains import prompts_of
from fcdpo_utils.episode import Chain, Episode
from fcdpo_utils.plain import Engine, Progress
from fcdpo_utils.preferences import Preferences, build_preferences
from fcdpo_utils.problems import TASKS, Problem
from fcdpo_utils.settings import Settings
from fcdpo_utils.train import drop_checkpoints, train_student

Chains = Sequence[tuple[str, Chain]]  # (task, chain)


def split_problems(problems: Sequence[Problem], settings: Settings) -> tuple[list[Problem], list[Problem]]:
    """The training problems of the warm-up, `warm_up.share` of each task's, and those of the preference training.

    With `warm_up.adapter` there is no warm-up, and all are of the second kind.
    """
    first: list[Problem] = []
    for name in settings.tasks if settings.warm_up.adapter is None else ():
        own = [problem for problem in problems if problem.task == name]
        first += own[: round(settings.warm_up.share * len(own))]
    ids = {problem.id for problem in first}
    return first, [problem for problem in problems if problem.id not in ids]


def warm_up(
    folder: Path, problems: Sequence[Problem], chains: Chains, settings: Settings, engine: Engine, progress: Progress
) -> Path | None:
    """Fine-tune on one correct chain of each problem; the adapter's folder, or None where the settings want none."""
    if settings.warm_up.adapter or not problems:
        return Path(settings.warm_up.adapter) if settings.warm_up.adapter else None
    options = settings.warm_up.model_dump(include={"learning_rate", "epochs", "prompts_per_step"})
    options |= {"dpo_weight": 0.0, "sft_weight": 1.0, "steps": 0, "trainer": "grouped"}  # stock would pass all pairs
    training = settings.training.model_copy(update=options)
    preferences = settings.preferences.model_copy(update={"max_chosen": 1, "max_rejected": 0})
    own = settings.model_copy(update={"training": training, "preferences": preferences})
    folder.mkdir(parents=True, exist_ok=True)
    ids = {problem.id for problem in problems}
    data = build_preferences(pair for pair in chains if pair[1].problem_id in ids)
    train_student(folder, data, prompts_of(problems), own, engine, progress)
    drop_checkpoints(folder)
    return folder / "adapter"


def preference_data(problems: Sequence[Problem], teacher: Chains, own: Chains, settings: Settings) -> Preferences:
    """Groups of the teacher's and the student's own chains of `problems`, as `settings.preferences` wants them."""
    options, by_id = settings.preferences, {problem.id: problem for problem in problems}
    label, kept = "sound" if options.label == "shuffled" else options.label, []
    for author, chains in (("teacher", teacher), ("student", own)):
        for name, chain in chains:
            wanted = options.chosen_by if getattr(chain, label) else options.rejected_by
            if chain.problem_id in by_id and wanted in (author, "both"):
                kept.append((name, chain))
    if options.rejected == "whole":
        return build_preferences(kept, options.label)
    right: dict[str, set[str]] = {name: {"Noted"} for name in by_id}
    for _, chain in (*teacher, *own):
        if chain.sound and chain.problem_id in by_id:
            right[chain.problem_id] |= {step.result for step in chain.steps}
    marked = []  # with the place of the first wrong call
    for name, chain in kept:
        known = by_id[chain.problem_id], chain, right[chain.problem_id]
        marked.append((name, chain, None if getattr(chain, label) else first_wrong(*known)))
    if options.rejected == "first_wrong":
        return build_preferences(((name, _up_to(chain, place)) for name, chain, place in marked), options.label)
    steps = (  # every beginning of a correct chain, and the wrong call of an incorrect one after what came before it
        (name, _up_to(chain, end))
        for name, chain, place in marked
        for end, step in enumerate(chain.steps)
        if (not step.error if getattr(chain, label) else end == place)
    )
    return build_preferences(steps, options.label, by=lambda chain: (chain.problem_id, chain.steps[:-1]))


def _up_to(chain: Chain, place: int | None) -> Chain:
    """The chain up to and with that call; all of it for None."""
    return chain if place is None else replace(chain, steps=chain.steps[: place + 1])


def first_wrong(problem: Problem, chain: Chain, right: Iterable[str]) -> int | None:
    """The place of the first call that is rejected, answers wrongly, or leads away; None where none is seen to.

    `right`: the results on correct chains of the problem. A call whose result is on none of them leads away, unless
    the task's functions accept right steps only.
    """
    episode = Episode(TASKS[problem.task], problem)
    for place, step in enumerate(chain.steps):
        result = episode.step(step.call)
        wrong = episode.state.answer is not None and not episode.right
        if result.error or wrong or not (episode.task.accepted_is_right or result.result in right):
            return place
    return None

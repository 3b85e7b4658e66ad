"""The artifacts that the stages hand on: problems, chains, preference data, evaluated chains.

    01 problems.jsonl -> 02 chains.jsonl -> 03 completions, blocks, pairs_* and preferences_* (.jsonl) -> 04 adapter/
    -> 05 chains_before.jsonl, chains_after.jsonl, metrics.json

Knows their file formats; how they are made is for the modules of the stages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fcdpo_utils import store
from fcdpo_utils.agent import Chain, Episode, Limits, prompt
from fcdpo_utils.dpo import Progress
from fcdpo_utils.preferences import Block, Completion, Preferences, export_rows
from fcdpo_utils.profiles import Settings
from fcdpo_utils.rollout import Sampling, rollout
from fcdpo_utils.tasks import TASKS, Problem
from fcdpo_utils.teachers import ScriptedTeacher, sample_chains
from fcdpo_utils.tokens import Message, Tokens, encode_chat


def save_problems(path: Path, problems: Sequence[Problem]) -> None:
    store.write_records(path, (vars(problem) for problem in problems))


def load_problems(path: Path, split: str) -> list[Problem]:
    """The problems of one split, in the order they were made."""
    return [Problem(**record) for record in store.read(path) if record["split"] == split]


def limits_of(settings: Settings) -> Limits:
    return Limits(settings.limits.calls, settings.limits.errors)


def toolset_of(settings: Settings, problem: Problem) -> str | None:
    return settings.tasks[problem.task].toolset


def make_chains(path: Path, problems: Sequence[Problem], settings: Settings, progress: Progress) -> None:
    """Append the teacher's chains that `path` lacks; a killed run goes on where it stopped.

    Each record carries a digest of its problem, prompt, teacher and limits. Records that this run would not make are
    moved to a file beside it, never deleted.
    """
    teacher = ScriptedTeacher(settings.teacher.error_rate, settings.teacher.variation, settings.seed)
    made_by = settings.teacher.model_dump(exclude={"samples"})
    keys = _keys(problems, settings, store.dump([made_by, settings.limits.model_dump(), settings.seed]))
    numbers = range(settings.teacher.samples)
    kept = _keep(path, lambda r: r["key"] == keys.get(r["problem_id"]) and r["number"] in numbers)
    done = frozenset((record["problem_id"], record["number"]) for record in kept)
    for count, problem in enumerate(problems, start=1):
        options = (settings.teacher.samples, toolset_of(settings, problem), limits_of(settings), done)
        samples = sample_chains(teacher, TASKS[problem.task], [problem], *options)
        extra = {"task": problem.task, "key": keys[problem.id]}
        if new := [s.chain.record(number=s.number, source=s.source, **extra) for s in samples]:
            store.append(path, new)
        progress(count, len(problems))


def _keys(problems: Sequence[Problem], settings: Settings, base: str) -> dict[str, str]:
    """For each problem id, a digest of the problem, its prompt and `base`: what its chains depend on."""
    prompts = prompts_of(problems, settings)
    return {p.id: store.digest(store.dump(vars(p)), store.dump(prompts[p.id]), base)[:16] for p in problems}


def _keep(path: Path, is_current: Callable[[store.Record], bool]) -> list[store.Record]:
    """The records of `path` that are current; the others are moved to `<name>.old`."""
    records = store.read(path, repair=True) if path.exists() else []
    kept = [record for record in records if is_current(record)]
    if len(kept) < len(records):
        old = path.with_name(path.name + ".old")
        print(f"{len(records) - len(kept)} records of {path.name} are of other problems or settings; now in {old.name}")
        store.append(old, (record for record in records if not is_current(record)))
        store.write_records(path, kept)
    return kept


def load_chains(path: Path) -> list[tuple[str, Chain]]:
    """(task, chain) of every stored chain."""
    return [(record["task"], Chain.from_record(record)) for record in store.read(path)]


def prompts_of(problems: Sequence[Problem], settings: Settings) -> dict[str, list[Message]]:
    """The prompt of each problem, by problem id."""
    return {p.id: prompt(TASKS[p.task], p, toolset_of(settings, p)) for p in problems}


def save_preferences(run_dir: Path, preferences: Preferences, prompts: dict[str, list[Message]]) -> None:
    """Completions once, pairs as indices, and D* and Da as rows that plain `datasets` and TRL read."""
    store.write_records(
        run_dir / "completions.jsonl",
        (c.chain.record(task=c.task, correct=c.correct) for c in preferences.completions),
    )
    store.write_records(run_dir / "blocks.jsonl", (vars(block) for block in preferences.blocks))
    for name, pairs in (("original", preferences.original_pairs()), ("augmented", preferences.augmented_pairs())):
        store.write_records(run_dir / f"pairs_{name}.jsonl", ({"chosen": w, "rejected": l} for w, l in pairs))
        store.write_records(run_dir / f"preferences_{name}.jsonl", export_rows(preferences, pairs, prompts))


def load_preferences(run_dir: Path) -> Preferences:
    """What `save_preferences` wrote."""
    completions = [
        Completion(r["problem_id"], r["task"], r["correct"], Chain.from_record(r))
        for r in store.read(run_dir / "completions.jsonl")
    ]
    blocks = [
        Block(r["problem_id"], tuple(r["chosen"]), tuple(r["rejected"])) for r in store.read(run_dir / "blocks.jsonl")
    ]
    return Preferences(tuple(completions), tuple(blocks))


def training_blocks(preferences: Preferences, settings: Settings) -> list[Block]:
    """The blocks to train on: whole for Da; one block per pair for D*, each chain used once."""
    if settings.preferences.pairs == "augmented":
        return list(preferences.blocks)
    completions = preferences.completions
    return [Block(completions[w].problem_id, (w,), (l,)) for w, l in preferences.original_pairs()]


def training_identity(run_dir: Path, settings: Settings) -> str:
    """A short digest of all that a training run depends on: data, student, settings and seed."""
    files = ("completions.jsonl", "blocks.jsonl", "preferences_augmented.jsonl")  # the last one holds the prompts
    data = [store.file_digest(run_dir / name) for name in files]
    parts = (settings.student, settings.preferences, settings.training)
    return store.digest(*data, *(part.model_dump_json() for part in parts), str(settings.seed))[:12]


def tokenise(
    preferences: Preferences, prompts: dict[str, list[Message]], tokenizer: PreTrainedTokenizerBase
) -> list[Tokens]:
    """Every completion after its prompt, tokenised once."""
    return [encode_chat(tokenizer, prompts[c.problem_id] + c.chain.messages()) for c in preferences.completions]


def evaluate_student(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    settings: Settings,
    path: Path,
    identity: str,
    progress: Progress,
) -> list[Chain]:
    """Greedy chains of the student on `problems`, kept in `path` as they finish; only missing ones are made.

    `identity` names the student and how it decodes; chains of another one, or of other problems, are moved aside.
    """
    keys = _keys(problems, settings, identity)
    kept = {r["problem_id"]: r for r in _keep(path, lambda r: r["key"] == keys.get(r["problem_id"]))}
    missing = [p for p in problems if p.id not in kept]

    def keep(episode: Episode) -> None:
        record = episode.chain().record(key=keys[episode.problem.id])
        kept[record["problem_id"]] = record
        store.append(path, [record])
        progress(len(kept), len(problems))

    episodes = [Episode(TASKS[p.task], p, toolset_of(settings, p), limits_of(settings)) for p in missing]
    sampling = Sampling(0.0, settings.evaluation.turn_tokens, settings.evaluation.batch_size)
    rollout(model, tokenizer, episodes, sampling, on_finished=keep)
    return [Chain.from_record(kept[p.id]) for p in problems]

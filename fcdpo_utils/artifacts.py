"""The artifacts that the stages hand on: problems, chains, preference data, evaluated chains.

    01 problems.jsonl -> 02 chains.jsonl -> 03 completions.jsonl, pairs.jsonl -> 04 adapter/ -> 05 metrics.json

Knows their file formats; how they are made is for the modules of the stages.
"""

from __future__ import annotations

from collections.abc import Sequence
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

    Chains carry a digest of what they depend on. Raises `StoreError` where the file holds chains of other settings.
    """
    teacher = ScriptedTeacher(settings.teacher.error_rate, settings.teacher.variation, settings.seed)
    key = store.digest(settings.teacher.model_dump_json(), settings.limits.model_dump_json(), str(settings.seed))[:16]
    records = store.read(path, repair=True) if path.exists() else []
    if any(record["settings"] != key for record in records):
        raise store.StoreError(f"{path.name} holds chains of other settings; delete it or use another run directory")
    done = frozenset((record["problem_id"], record["number"]) for record in records)
    for count, problem in enumerate(problems, start=1):
        toolset = toolset_of(settings, problem)
        samples = sample_chains(
            teacher, TASKS[problem.task], [problem], settings.teacher.samples, toolset, limits_of(settings), done
        )
        new = [s.chain.record(task=problem.task, number=s.number, source=s.source, settings=key) for s in samples]
        if new:
            store.append(path, new)
        progress(count, len(problems))


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
    data = [store.file_digest(run_dir / name) for name in ("completions.jsonl", "blocks.jsonl")]
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

    `identity` names the student and settings; chains of another one in `path` are made again.
    """
    records = store.read(path, repair=True) if path.exists() else []
    kept = {r["problem_id"]: r for r in records if r["identity"] == identity}
    if len(kept) != len(records):
        store.write_records(path, kept.values())
    missing = [p for p in problems if p.id not in kept]

    def keep(episode: Episode) -> None:
        record = episode.chain().record(identity=identity)
        kept[record["problem_id"]] = record
        store.append(path, [record])
        progress(len(kept), len(problems))

    episodes = [Episode(TASKS[p.task], p, toolset_of(settings, p), limits_of(settings)) for p in missing]
    sampling = Sampling(0.0, settings.evaluation.turn_tokens, settings.evaluation.batch_size)
    rollout(model, tokenizer, episodes, sampling, on_finished=keep)
    return [Chain.from_record(kept[p.id]) for p in problems]

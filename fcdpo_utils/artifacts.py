"""The artifacts that the stages hand on: problems, chains, preference data, evaluated chains.

    01 problems.jsonl -> 02 chains.jsonl -> 03 completions, blocks, pairs_* and preferences_* (.jsonl) -> 04 adapter/
    -> 05 chains_before.jsonl, chains_after.jsonl, metrics.json

Knows their file formats; how they are made is for the modules of the stages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fcdpo_utils import store
from fcdpo_utils.agent import CallFormat, Chain, Episode, Limits, Usage, prompt, run_calls
from fcdpo_utils.models import load_student
from fcdpo_utils.preferences import Block, Completion, Preferences, export_rows
from fcdpo_utils.profiles import Settings, StudentSettings, TeacherSettings
from fcdpo_utils.provenance import code_digest, training_code_digest, weights_state
from fcdpo_utils.rollout import Sampling, rollout
from fcdpo_utils.tasks import TASKS, Problem
from fcdpo_utils.teachers import Budget, Job, Sample, ScriptedTeacher, Teacher, TeacherError
from fcdpo_utils.teachers.local import LocalTeacher
from fcdpo_utils.tokens import Message, Tokens, encode_chat, unmasked

ADAPTER_FILE = "adapter_model.safetensors"
Report = Callable[[int, int, str], None]  # done, total, and a word on how it goes


def save_problems(path: Path, problems: Sequence[Problem]) -> None:
    store.write_records(path, (vars(problem) for problem in problems))


def load_problems(path: Path, split: str) -> list[Problem]:
    """The problems of one split, in the order they were made."""
    return [Problem(**record) for record in store.read(path) if record["split"] == split]


def limits_of(settings: Settings) -> Limits:
    return Limits(settings.limits.calls, settings.limits.errors)


def toolset_of(settings: Settings, problem: Problem) -> str | None:
    return settings.tasks[problem.task].toolset


def make_chains(path: Path, problems: Sequence[Problem], settings: Settings, progress: Report) -> None:
    """Append the teacher's chains that `path` lacks; a killed run goes on where it stopped.

    Each record carries a digest of its problem, prompt, teacher and limits. Records that this run would not make are
    moved to a file beside it, never deleted. With `teacher.enough`, a problem gets no more samples once it has so many
    distinct chains of each kind; that depends on its lower-numbered samples alone, so a resumed run decides the same.
    Stored chains count towards `teacher.max_chains`, `max_tokens` and `max_cost`.
    """
    options, code = settings.teacher, code_digest()
    made_by = options.model_dump(exclude=_HOW_MANY)
    made_by["weights"] = weights_state(options.model) if options.kind == "local" else ""
    if options.kind == "local" and options.adapter:
        made_by["adapter"] = store.file_digest(Path(options.adapter) / ADAPTER_FILE)
    if options.kind == "scripted":
        made_by["code"] = code  # remaking its chains costs nothing; those of models are run again instead
    base = store.dump([made_by, settings.limits.model_dump(), settings.seed])
    keys = _keys(problems, settings, base, options.call_format)
    by_id = {problem.id: problem for problem in problems}

    def is_current(record: store.Record) -> bool:
        wanted = record["key"] == keys.get(record["problem_id"]) and record["number"] < options.samples
        return wanted and (record["code"] == code or _runs_the_same(record, by_id[record["problem_id"]], settings))

    budget = Budget(options.max_chains, options.max_tokens, options.max_cost, options.prices)
    tally = _Tally(options.enough)
    for record in _keep(path, is_current):
        tally.add(record["problem_id"], record["number"], record["sound"], record["steps"])
        budget.settle(Usage(*record["tokens"]))

    def keep(sample: Sample) -> None:
        chain, usage = sample.chain, sample.usage
        extra = {"task": sample.problem.task, "key": keys[sample.problem.id], "code": code}
        extra |= {"number": sample.number, "source": sample.source, "tokens": [usage.read, usage.written]}
        record = chain.record(**extra)
        if (options.max_tokens or options.max_cost) and options.kind == "server" and not usage.written:
            raise TeacherError("the server tells no token counts; limit teacher.max_chains instead")
        store.append(path, [record])
        tally.add(sample.problem.id, sample.number, chain.sound, record["steps"])
        budget.settle(usage)
        spent = f", {budget.tokens:,} tokens" if budget.tokens else ""
        progress(len(tally.made), total, f"{100 * tally.sound / len(tally.made):.0f} % sound{spent}")

    teacher: Teacher | None = None
    asked: set[tuple[str, int]] = set()
    start = 0
    while start < options.samples:
        unsettled = [p for p in problems if not tally.has_enough(p.id, start)]
        if not unsettled:
            break
        numbers = range(start, min(start + _round_size(options, start, len(unsettled)), options.samples))
        start = numbers.stop
        total = len(asked) + len(unsettled) * (options.samples - numbers.start)  # no more than that
        asked |= {(problem.id, number) for problem in unsettled for number in numbers}
        while not budget.ended():  # what is under way may turn out cheaper than was reckoned: then there is room again
            jobs = [
                Job(TASKS[p.task], p, number, toolset_of(settings, p), limits_of(settings))
                for p in unsettled
                for number in numbers
                if (p.id, number) not in tally.made
            ]
            if not jobs:
                break
            teacher = teacher or build_teacher(settings)
            teacher.run(jobs, keep, budget.admit)
    if (limit := budget.ended()) and asked - tally.made:
        spent = f"{len(tally.made)} chains, {budget.tokens:,} tokens, cost {budget.cost:.2f}"
        print(f"stopped at teacher.{limit}={getattr(budget, limit)}: {spent}")
    _put_in_order(path, problems, asked)


_HOW_MANY = {"adapter", "samples", "enough", "parallel", "base_url", "max_chains", "max_tokens", "max_cost", "prices"}


class _Tally:
    """What is made so far: which samples, and the distinct chains of each kind of a problem."""

    def __init__(self, enough: int):
        self.enough, self.sound = enough, 0
        self.made: set[tuple[str, int]] = set()
        self._chains: dict[str, dict[int, tuple[bool, str]]] = {}  # not counted yet, by number
        self._kinds: dict[str, tuple[set[str], set[str]]] = {}

    def add(self, problem_id: str, number: int, sound: bool, steps: Sequence[Any]) -> None:
        self.made.add((problem_id, number))
        self.sound += sound
        if self.enough:
            self._chains.setdefault(problem_id, {})[number] = sound, store.digest(store.dump(steps))[:16]

    def has_enough(self, problem_id: str, before: int) -> bool:
        """Whether the samples numbered below `before` hold enough distinct sound and other chains.

        `before` may only grow from call to call.
        """
        kinds, chains = self._kinds.setdefault(problem_id, (set(), set())), self._chains.get(problem_id, {})
        for number in [number for number in chains if number < before]:
            sound, text = chains.pop(number)
            kinds[sound].add(text)
        return self.enough > 0 and min(map(len, kinds)) >= self.enough


def _put_in_order(path: Path, problems: Sequence[Problem], asked: set[tuple[str, int]]) -> None:
    """By problem and number, as if nothing had ever been interrupted or made for other settings."""
    kept = _keep(path, lambda record: (record["problem_id"], record["number"]) in asked)
    place = {problem.id: index for index, problem in enumerate(problems)}
    ordered = sorted(kept, key=lambda record: (place[record["problem_id"]], record["number"]))
    if ordered != kept:
        store.write_records(path, ordered)


def _runs_the_same(record: store.Record, problem: Problem, settings: Settings) -> bool:
    """Whether this code, other than the one that made a chain, still gives its calls the same results and label."""
    chain = Chain.from_record(record)
    again = run_calls(
        TASKS[problem.task],
        problem,
        [step.call for step in chain.steps],
        toolset_of(settings, problem),
        limits_of(settings),
    )
    return again == chain


def build_teacher(settings: Settings) -> Teacher:
    """The teacher of the settings; a local one loads its model. Raises `ModelError` where it cannot."""
    options = settings.teacher
    if options.kind == "scripted":
        return ScriptedTeacher(options.error_rate, options.variation, settings.seed)
    if options.kind == "server":
        from fcdpo_utils.teachers.server import ServerTeacher

        chosen = (options.base_url, options.model, options.temperature, options.turn_tokens, options.parallel)
        return ServerTeacher(*chosen, seed=settings.seed, call_format=options.call_format)
    source = StudentSettings(source=options.model, dtype=options.dtype, four_bit=options.four_bit)
    chosen = (options.temperature, options.turn_tokens, options.parallel, settings.seed, options.call_format)
    adapter = Path(options.adapter) if options.adapter else None
    return LocalTeacher(*load_student(source, adapter), Sampling(*chosen))


def _round_size(options: TeacherSettings, start: int, unsettled: int) -> int:
    """Samples of each unsettled problem in the next round: few enough to stop early, many enough to stay busy."""
    capped = options.max_chains or options.max_tokens or options.max_cost  # a budget is for all problems alike
    if not (options.enough or capped):
        return options.samples
    busy = -(-options.parallel // max(unsettled, 1))
    return busy if start or capped else max(busy, 2 * options.enough)  # no problem has enough before


def _keys(
    problems: Sequence[Problem], settings: Settings, base: str, call_format: CallFormat = "python"
) -> dict[str, str]:
    """For each problem id, a digest of the problem, its prompt and `base`: what its chains depend on."""
    prompts = prompts_of(problems, settings, call_format)
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


def prompts_of(
    problems: Sequence[Problem], settings: Settings, call_format: CallFormat = "python"
) -> dict[str, list[Message]]:
    """The prompt of each problem, by problem id."""
    return {p.id: prompt(TASKS[p.task], p, toolset_of(settings, p), call_format) for p in problems}


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


def training_identity(
    preferences: Preferences, prompts: dict[str, list[Message]], settings: Settings, start: Path | None = None
) -> str:
    """A short digest of all that a training run depends on: code, data, student, settings, seed, and the adapter
    that it goes on from."""
    completions = [completion.chain.record(correct=completion.correct) for completion in preferences.completions]
    data = store.dump([completions, [vars(block) for block in preferences.blocks], prompts])
    parts = (settings.student, settings.preferences, settings.training)
    base = [training_code_digest(), weights_state(settings.student.source), str(settings.seed), data]
    base += [store.file_digest(start / ADAPTER_FILE)] if start else []
    return store.digest(*base, *(part.model_dump_json() for part in parts))[:12]


def evaluation_identity(settings: Settings, adapter: Path | None = None) -> str:
    """A digest of what an evaluated student and its decoding depend on, besides code and problems."""
    parts = (settings.student, settings.evaluation, settings.limits)
    weights = [store.file_digest(adapter / ADAPTER_FILE)] if adapter else []
    return store.digest(*(part.model_dump_json() for part in parts), *weights)


def tokenise(
    preferences: Preferences,
    prompts: dict[str, list[Message]],
    tokenizer: PreTrainedTokenizerBase,
    mask_results: bool = True,
) -> list[Tokens]:
    """Every completion after its prompt, tokenised once; without `mask_results`, all its tokens are the policy's."""
    tokens = [encode_chat(tokenizer, prompts[c.problem_id] + c.chain.messages()) for c in preferences.completions]
    return tokens if mask_results else [unmasked(sequence) for sequence in tokens]


def evaluated(problems: Sequence[Problem], settings: Settings, path: Path, identity: str) -> list[Chain] | None:
    """The chains that `evaluate_student` would return, where it would make none; else None."""
    kept, _ = _evaluation(problems, settings, path, identity)
    return [Chain.from_record(kept[p.id]) for p in problems] if len(kept) == len(problems) else None


def _evaluation(
    problems: Sequence[Problem], settings: Settings, path: Path, identity: str
) -> tuple[dict[str, store.Record], dict[str, str]]:
    """By problem id: the records in `path` that belong to this evaluation, and their keys."""
    base = identity + training_code_digest() + weights_state(settings.student.source)
    keys = _keys(problems, settings, base)
    return {r["problem_id"]: r for r in _keep(path, lambda r: r["key"] == keys.get(r["problem_id"]))}, keys


def evaluate_student(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    settings: Settings,
    path: Path,
    identity: str,
    progress: Report,
) -> list[Chain]:
    """Greedy chains of the student on `problems`, kept in `path` as they finish; only missing ones are made.

    `identity` names the student and how it decodes; chains of another one, or of other problems, are moved aside.
    """
    kept, keys = _evaluation(problems, settings, path, identity)
    missing = [p for p in problems if p.id not in kept]

    def keep(episode: Episode) -> None:
        record = episode.chain().record(key=keys[episode.problem.id], tokens=episode.usage.written)
        kept[record["problem_id"]] = record
        store.append(path, [record])
        progress(len(kept), len(problems), f"{100 * sum(r['sound'] for r in kept.values()) / len(kept):.0f} % sound")

    episodes = [Episode(TASKS[p.task], p, toolset_of(settings, p), limits_of(settings)) for p in missing]
    chosen = settings.evaluation
    sampling = Sampling(0.0, chosen.turn_tokens, chosen.batch_size, cuda_graphs=chosen.cuda_graphs)
    rollout(model, tokenizer, episodes, sampling, on_finished=keep)
    return [Chain.from_record(kept[p.id]) for p in problems]


def tokens_written(path: Path) -> dict[str, int]:
    """What a student wrote for each problem, in tokens, by the chains that `evaluate_student` keeps in `path`."""
    return {record["problem_id"]: record["tokens"] for record in store.read(path)}


def finished_runs(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Name and `metrics.json` of every finished run in `folder`; other files of that name are passed over."""
    found = []
    for path in sorted(folder.glob("*/metrics.json")):
        with suppress(store.StoreError):
            metrics = store.read_json(path)
            if isinstance(metrics, dict) and {"tasks", "training", "commit"} <= metrics.keys():
                found.append((path.parent.name, metrics))
    return found

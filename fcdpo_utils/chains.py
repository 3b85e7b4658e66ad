"""Chains kept and resumed: a teacher's samples of training problems, a student's answers to held-out ones.

A file such as `chains.jsonl` holds one record a chain, appended as it ends; a killed run goes on where it stopped. A
record is kept under the fingerprint of what its chain depends on: chains of other problems, teachers or settings never
mix with it. They wait in a file beside it, and come back when they are wanted again. `teachers.making` makes a
teacher's. Knows nothing of pairs.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fcdpo_utils import store
from fcdpo_utils.episode import PYTHON_CALLS, Chain, Episode
from fcdpo_utils.fingerprint import code_of, fingerprint
from fcdpo_utils.plain import Engine, ProgressCallback, Sampling
from fcdpo_utils.problems import TASKS, Problem, rooms_of
from fcdpo_utils.settings import Settings
from fcdpo_utils.teacher import SampleRequest
from fcdpo_utils.tokens import Prompts
from fcdpo_utils.weights import student_fingerprint


def prompts_of(problems: Sequence[Problem]) -> Prompts:
    """The prompt of each problem, by problem id."""
    return {p.id: PYTHON_CALLS.prompt(TASKS[p.task], p) for p in problems}


def load_chains(path: Path) -> list[tuple[str, Chain]]:
    """(task, chain) of every stored chain."""
    return [(record["task"], Chain.from_record(record)) for record in store.iterate(path)]


def request_of(problem: Problem, settings: Settings, number: int = 0) -> SampleRequest:
    return SampleRequest(TASKS[problem.task], problem, number, settings.limits)


def keys_of(problems: Sequence[Problem], settings: Settings, **parts: Any) -> dict[str, str]:
    """For each problem id, the fingerprint of the problem, its prompt and what else its chains depend on."""
    prompts, parts = prompts_of(problems), parts | {"limits": settings.limits.model_dump()}
    return {p.id: fingerprint({**parts, "problem": vars(p), "prompt": prompts[p.id]}) for p in problems}


def current(path: Path, is_current: Callable[[store.Record], bool]) -> tuple[list[store.Record], list[store.Record]]:
    """The records of `path` that are current, the others being moved aside; and those aside that are current again."""
    old = path.with_name(path.name + ".old")
    records, aside = (store.read(file, repair=True) if file.exists() else [] for file in (path, old))
    kept = [record for record in records if is_current(record)]
    if len(kept) < len(records):
        print(f"{len(records) - len(kept)} records of {path.name} are of other problems or settings; now in {old.name}")
        there = set(map(store.dump, aside))
        leaving = (record for record in records if not is_current(record))
        store.append(old, (record for record in leaving if store.dump(record) not in there))
        store.write_records(path, kept)
    return kept, [record for record in aside if is_current(record)]


class Evaluation:
    """Greedy chains of one student on `problems`, kept in `path` as they end.

    `adapter`: the trained student's, None for the untouched one. `engine`: `fcdpo_utils.engine`, or `plain`.
    """

    def __init__(
        self, problems: Sequence[Problem], settings: Settings, path: Path, engine: Engine, adapter: Path | None = None
    ):
        self.problems, self.settings, self.path, self.engine = problems, settings, path, engine
        rooms = ["fcdpo_utils.students", *rooms_of(problem.task for problem in problems)]  # how it is loaded counts
        parts = {"code": code_of(__name__, engine.__name__, *rooms), "evaluation": settings.evaluation.model_dump()}
        self.keys = keys_of(problems, settings, student=student_fingerprint(settings.student, adapter), **parts)
        found = current(path, lambda record: record["key"] == self.keys.get(record["problem_id"]))
        kept, waiting = ({record["problem_id"]: record for record in part} for part in found)
        if back := [record for name, record in waiting.items() if name not in kept]:
            store.append(path, back)
        self.records = waiting | kept

    @property
    def finished(self) -> bool:
        return len(self.records) == len(self.problems)

    def chains(self) -> list[Chain]:
        """One of each problem, in their order, when all are there."""
        return [Chain.from_record(self.records[problem.id]) for problem in self.problems]

    def tokens_written(self) -> dict[str, int]:
        """What the student wrote for each problem, in tokens."""
        return {name: record["tokens"] for name, record in self.records.items()}

    def run(
        self, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, progress: ProgressCallback
    ) -> list[Chain]:
        """Make the chains that are missing; all of them, in the order of the problems."""

        def on_finished(episode: Episode) -> None:
            record = episode.chain().record(key=self.keys[episode.problem.id], tokens=episode.usage.written)
            self.records[record["problem_id"]] = record
            store.append(self.path, [record])
            sound = sum(record["sound"] for record in self.records.values())
            progress(len(self.records), len(self.problems), f"{100 * sound / len(self.records):.0f} % sound")

        missing = [problem for problem in self.problems if problem.id not in self.records]
        episodes = [request_of(problem, self.settings).episode() for problem in missing]
        sampling = Sampling(0.0, self.settings.evaluation.turn_tokens, self.settings.evaluation.batch_size)
        self.engine.rollout(model, tokenizer, episodes, sampling, on_finished=on_finished)
        return self.chains()

"""A teacher's chains made, kept and resumed, within a budget.

`chains.jsonl` holds one record a chain, appended as it ends; a killed run goes on where it stopped. Records are kept by
fingerprint, as `chains` says.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from fcdpo_utils import store
from fcdpo_utils.chains import current, keys_of, request_of
from fcdpo_utils.episode import Chain
from fcdpo_utils.fingerprint import code_of, fingerprint
from fcdpo_utils.plain import ProgressCallback
from fcdpo_utils.problems import Problem, rooms_of
from fcdpo_utils.settings import Settings
from fcdpo_utils.teacher import Sample, SampleRequest, Teacher, TeacherError
from fcdpo_utils.weights import student_fingerprint

Place = tuple[str, int]  # of a sample: its problem's id, and its number
_HOW_MANY = {"samples", "min_per_label", "concurrency", "max_chains", "max_tokens", "max_cost", "prices"}
_WHERE = {"adapter", "base_url", "key_env"}


def make_chains(
    path: Path,
    problems: Sequence[Problem],
    settings: Settings,
    build_teacher: Callable[[Settings], Teacher],
    progress: ProgressCallback,
) -> None:
    """Append the teacher's chains that `path` lacks.

    With `teacher.min_per_label`, a problem gets no more samples once it has so many distinct chains of each kind; that
    depends on its lower-numbered samples alone, so a resumed run decides the same. Stored chains count towards
    `teacher.max_chains`, `max_tokens` and `max_cost`.
    """
    making, teacher = _Making(path, problems, settings, progress, build_teacher.__module__), None
    for asked in making.rounds():
        # what is under way may turn out cheaper than was reckoned: then there is room again
        while not making.ended() and (requests := making.missing(asked)):
            teacher = teacher or build_teacher(settings)
            teacher.run(requests, making.on_sample, making.admit)
    making.finish()


def _place(record: store.Record) -> Place:
    return record["problem_id"], record["number"]


class _Making:
    """The samples of one run: which are made, which are wanted next, and what they cost.

    Chains under way when the budget ends are finished; they are reckoned at the mean of the finished ones.
    """

    def __init__(
        self, path: Path, problems: Sequence[Problem], settings: Settings, progress: ProgressCallback, room: str
    ):
        self.path, self.settings, self.progress = path, settings, progress
        self.by_id = {problem.id: problem for problem in problems}
        teacher = [room] if settings.teacher.kind == "scripted" else []  # of a model only what it says counts
        self.code = code_of(__name__, *teacher, *rooms_of(problem.task for problem in problems))
        parts: dict[str, Any] = {"teacher": settings.teacher.model_dump(exclude=_HOW_MANY | _WHERE)}
        if settings.teacher.kind == "local":
            adapter = settings.teacher.adapter
            parts["model"] = student_fingerprint(settings.teacher.student, adapter and Path(adapter))
        if settings.teacher.kind == "scripted":
            parts["code"] = self.code  # remaking its chains costs nothing; those of models are run again instead
        self.keys = keys_of(problems, settings, seed=settings.seed, **parts)
        self.made: dict[Place, tuple[bool, str]] = {}  # is it sound; its calls
        self.asked: dict[Place, None] = {}
        self.sound = self.started = self.tokens = 0
        self.cost = 0.0
        kept, waiting = current(path, self._is_current)
        for record in kept:
            self._count(record)
        self.waiting = {_place(record): record for record in waiting}

    def _is_current(self, record: store.Record) -> bool:
        """Whether it is wanted, and if other code made it, this gives its calls the same results and labels."""
        wanted = record["number"] < self.settings.teacher.samples
        if not wanted or record["key"] != self.keys.get(record["problem_id"]):
            return False
        if record["code"] == self.code:
            return True
        chain = Chain.from_record(record)
        episode = request_of(self.by_id[record["problem_id"]], self.settings).episode()
        return all(episode.step(step.call) == step for step in chain.steps) and episode.chain() == chain

    def _count(self, record: store.Record) -> None:
        self.made[_place(record)] = record["sound"], fingerprint({"steps": record["steps"]})
        self.sound += record["sound"]
        self.started = max(self.started, len(self.made))  # now or in an earlier run
        (read, written), prices = record["tokens"], self.settings.teacher.prices
        self.tokens += read + written
        self.cost += (read * prices[0] + written * prices[1]) / 1e6

    def admit(self) -> bool:
        """Whether one more chain may start; it then counts as started."""
        admitted = self.ended() is None
        self.started += admitted
        return admitted

    def ended(self) -> str | None:
        """The setting of the budget that is reached, or None; 0 is no limit."""
        share = self.started / len(self.made) if self.made else 1.0  # with what is under way
        spent = {"max_chains": self.started, "max_tokens": self.tokens * share, "max_cost": self.cost * share}
        return next((name for name, used in spent.items() if 0 < getattr(self.settings.teacher, name) <= used), None)

    def rounds(self) -> Iterator[Iterable[Place]]:
        """The samples to ask for next, of every problem that has not enough: few enough to stop early, many enough to
        keep a teacher busy."""
        options, start = self.settings.teacher, 0
        capped = options.max_chains or options.max_tokens or options.max_cost  # a budget is for all problems alike
        while start < options.samples:
            unsettled = [name for name in self.by_id if not self._settled(name, start)]
            if not unsettled:
                return
            size = options.samples
            if options.min_per_label or capped:
                size = -(-options.concurrency // len(unsettled))
            if options.min_per_label and not (start or capped):
                size = max(size, 2 * options.min_per_label)  # no problem has enough before
            asked = dict.fromkeys(product(unsettled, range(start, min(start + size, options.samples))))
            self.asked |= asked
            if back := [self.waiting[place] for place in asked if place in self.waiting and place not in self.made]:
                store.append(self.path, back)  # made for earlier settings: not made again
            for record in back:
                self._count(record)
            start += size
            yield asked

    def _settled(self, name: str, before: int) -> bool:
        """Whether the samples of a problem numbered below `before` hold enough distinct chains of each kind."""
        made = {self.made[place] for place in product([name], range(before)) if place in self.made}
        sound, enough = sum(sound for sound, _ in made), self.settings.teacher.min_per_label
        return 0 < enough <= min(sound, len(made) - sound)

    def missing(self, asked: Iterable[Place]) -> list[SampleRequest]:
        """What was asked for and is not made yet, problem by problem."""
        places = (place for place in asked if place not in self.made)
        return [request_of(self.by_id[name], self.settings, number) for name, number in places]

    def on_sample(self, sample: Sample) -> None:
        options, usage = self.settings.teacher, sample.usage
        if (options.max_tokens or options.max_cost) and options.kind == "server" and not usage.written:
            raise TeacherError("the server tells no token counts; limit teacher.max_chains instead")
        extra = {"task": sample.problem.task, "key": self.keys[sample.problem.id], "code": self.code}
        extra |= {"number": sample.number, "source": sample.source, "tokens": [usage.read, usage.written]}
        record = sample.chain.record(**extra)
        store.append(self.path, [record])
        self._count(record)
        self._report(len(self.by_id) * options.samples)  # no more than that

    def _report(self, total: int) -> None:
        spent = f", {self.tokens:,} tokens" if self.tokens else ""
        self.progress(len(self.made), total, f"{100 * self.sound / len(self.made):.0f} % sound{spent}")

    def finish(self) -> None:
        """Say what a budget ended, and put the chains in order, as if nothing had ever been interrupted."""
        if 0 < len(self.made) < len(self.by_id) * self.settings.teacher.samples:
            self._report(len(self.made))  # all that were wanted
        if (limit := self.ended()) and self.asked.keys() - self.made.keys():
            spent = f"{len(self.made)} chains, {self.tokens:,} tokens, cost {self.cost:.2f}"
            print(f"stopped at teacher.{limit}={getattr(self.settings.teacher, limit)}: {spent}")
        kept, _ = current(self.path, lambda record: _place(record) in self.asked)
        places = {name: place for place, name in enumerate(self.by_id)}
        ordered = sorted(kept, key=lambda record: (places[record["problem_id"]], record["number"]))
        if ordered != kept:
            store.write_records(self.path, ordered)

"""What each ingredient is worth: the full method and variants that differ in one setting, on the same problems.

Variants share problems, chains, seed and (by content) reference log-probabilities; each keeps its work in a folder of
its own, so that a broken-off grid goes on where it stopped. Knows nothing of notebooks or figures.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fcdpo_utils import engine, store
from fcdpo_utils.chains import Evaluation, prompts_of
from fcdpo_utils.episode import Chain
from fcdpo_utils.evaluation import mcnemar, summary
from fcdpo_utils.lab.grid import holm, slug
from fcdpo_utils.lab.settings import RunSettings, VariantSettings
from fcdpo_utils.onpolicy import preference_data
from fcdpo_utils.plain import Progress
from fcdpo_utils.problems import load_problems
from fcdpo_utils.settings import Settings
from fcdpo_utils.students import free_memory, load_student
from fcdpo_utils.teachers.own import Start, prepare
from fcdpo_utils.train import TrainingSummary, drop_checkpoints, train_student

FULL = VariantSettings(question="full method", name="full method")
WARM_UP = VariantSettings(question="warm-up", name="warm-up only")


class VariantResult(NamedTuple):
    """One variant: what training says of itself and chains in the order of the held-out problems, or why neither."""

    variant: VariantSettings
    training: TrainingSummary | None
    chains: list[Chain]
    failure: str = ""


def variants_of(settings: RunSettings) -> list[VariantSettings]:
    """The full method, then the settings' variants. Raises ValueError where there are none, or none can differ."""
    if not (variants := settings.variants()):
        raise ValueError(f"profile {settings.profile} has no variants under ablations; use profile ablations or paper")
    if settings.training.trainer == "stock":
        raise ValueError("ablations need training.trainer=grouped: TRL's own trainer draws no chains of a prompt")
    return [FULL, *variants]


def run_variants(settings: RunSettings, run_dir: Path, progress: Progress) -> Iterator[VariantResult]:
    """Every variant in turn on the run's problems and chains; what is done already is not done again.

    All go on from the same warmed-up student and share its own chains, where the settings want these; that student
    comes second. One that cannot be trained says why in place of results; the full method may not fail.
    """
    variants, start = variants_of(settings), prepare(run_dir, settings, engine, progress)
    for number, variant in enumerate(variants, start=1):
        place = f"variant {number}/{len(variants)} ({variant.name})"
        try:
            result = _run(variant, settings, start, run_dir, lambda label, place=place: progress(f"{place}: {label}"))
        except ValueError as error:
            if variant is FULL:
                raise
            result = VariantResult(variant, None, [], failure=" ".join(str(error).split()))
            print(f"{place} failed: {result.failure}", flush=True)
        yield result
        if variant is FULL:
            yield from _of_warm_up(settings, start, run_dir, progress)


def _of_warm_up(settings: RunSettings, start: Start, run_dir: Path, progress: Progress) -> Iterator[VariantResult]:
    """The student that all variants started from, where it was warmed up."""
    if start.adapter is None:
        return
    if not (training := start.adapter.parent / "training.json").exists():  # of an adapter from elsewhere
        print(f"no row for the warm-up: {training.name} is missing beside {start.adapter}", flush=True)
        return
    folder = run_dir / "ablations" / slug(WARM_UP.name)
    folder.mkdir(exist_ok=True)
    chains = _evaluated(folder / "chains.jsonl", settings, start.adapter, run_dir, progress)
    yield VariantResult(WARM_UP, TrainingSummary(**store.read_json(training)), chains)


def _run(
    variant: VariantSettings, settings: RunSettings, start: Start, run_dir: Path, progress: Progress
) -> VariantResult:
    """Train and evaluate one variant in `ablations/<variant>`."""
    own, folder = settings.changed(variant.change), run_dir / "ablations" / slug(variant.name)
    folder.mkdir(parents=True, exist_ok=True)
    data = preference_data(start.problems, start.teachers, start.own, own)
    prompts = prompts_of(start.problems)
    training = train_student(folder, data, prompts, own, engine, progress, start.adapter)
    drop_checkpoints(folder)
    chains = _evaluated(folder / "chains.jsonl", own, folder / "adapter", run_dir, progress)
    return VariantResult(variant, training, chains)


def _evaluated(path: Path, settings: Settings, adapter: Path, run_dir: Path, progress: Progress) -> list[Chain]:
    evaluation = Evaluation(load_problems(run_dir / "problems.jsonl", "test"), settings, path, engine, adapter)
    if not evaluation.finished:
        evaluation.run(*load_student(settings.student, adapter), progress("evaluated"))
        free_memory()
    return evaluation.chains()


def table(results: Sequence[VariantResult]) -> list[dict[str, Any]]:
    """One row per variant, the full method first: how sound, and the paired test against the full method.

    `gained` are problems sound in the variant alone, `lost` those sound in the full method alone. `p_holm`, which all
    rows but the first have, is adjusted for all variants. One that failed has `failed`, the reason, and no figures.
    """
    full, rows = [chain.sound for chain in results[0].chains], []
    for result in results:
        rows.append(row := {"question": result.variant.question, "name": result.variant.name})
        if result.failure:
            row["failed"] = result.failure
            continue
        known = {"n": len(result.chains), **summary(result.chains), **vars(result.training)}
        row |= {name: known[name] for name in ("n", "sound", "sound_ci95", "solved", "steps", "pairs", "tokens")}
        row |= vars(mcnemar(full, [chain.sound for chain in result.chains]))
    tested = [row for row in rows[1:] if "p" in row]
    for row, p in zip(tested, holm([row["p"] for row in tested], tests=len(rows) - 1), strict=True):
        row["p_holm"] = p
    return rows


def verdict(row: dict[str, Any], full: dict[str, Any]) -> str:
    """One sentence on a variant, from its numbers alone."""
    if "failed" in row:
        return f"{row['name']}: failed, so nothing follows; {row['failed']}."
    difference = 100 * (row["sound"] - full["sound"])
    numbers = f"{100 * row['sound']:.1f} % against {100 * full['sound']:.1f} % ({difference:+.1f} points)"
    test = f"{row['gained']} gained, {row['lost']} lost, p = {row['p']:.2g}, adjusted {row['p_holm']:.2g}"
    word = "better" if difference > 0 else "worse"
    if row["p"] >= 0.05:
        word = "no difference shown"
    elif row["p_holm"] >= 0.05:
        word = f"nominally {word}, not significant after Holm's correction"
    return f"{row['name']}: {word}; {numbers}; {test}."

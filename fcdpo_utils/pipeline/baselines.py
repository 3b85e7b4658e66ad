"""Is a run whole, and as good as the committed baseline of its profile? Tables of expected, got, allowed, verdict.

A baseline is JSON: {"profile", "metrics": {name: {"expected", "direction", "tolerance"}}}. Directions: "higher" and
"lower" (better is fine, worse by more than the tolerance fails), "near" (both sides), "exact". A metric that is
missing, zero or not a number never passes. Knows names and numbers, and nothing of how they came about.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from fcdpo_utils import store
from fcdpo_utils.pipeline import manifest
from fcdpo_utils.provenance import ROOT
from fcdpo_utils.stage import record_path

# What `update` writes down: (metric, direction, tolerance, and what it grows by per unit of the metric). Pure Python
# makes the same bytes everywhere; what the student computes may differ between machines in the last digits, and
# training amplifies that.
EXACT = (
    "dataset.*",
    "tasks.*.n",
    "training.prompts",
    "training.pairs",
    "training.steps",
    "training.tokens",
    "artifacts.problems.jsonl",
    "artifacts.completions.jsonl",
    "artifacts.blocks.jsonl",
    "artifacts.pairs_*.jsonl",
)
RULES = (
    *((name, "exact", 0, 0) for name in EXACT),
    ("tasks.*.after.s*d", "higher", 0.12, 0),  # solved and sound: shares
    ("tasks.*.after.step_validity", "higher", 0.12, 0),
    ("training.loss_first", "near", 0.05, 0),
    ("training.loss_end", "lower", 0.2, 0),
    ("training.margin_end", "higher", 0.3, 0.3),
    ("stages.*.peak_gib", "lower", 1.0, 0.3),
)


@dataclass(frozen=True)
class Row:
    """One line of the table; values as they are printed."""

    name: str
    expected: str
    got: str
    allowed: str
    passed: bool


def baseline_path(profile: str) -> Path:
    """Where the committed baseline of a profile is."""
    return ROOT / "outputs" / "baselines" / f"{profile}.json"


def check(run_dir: Path, baseline: Path) -> list[Row]:
    """Whether the run is whole, then each metric of the baseline. Raises StoreError where a file cannot be used."""
    expected, metrics = store.read_json(baseline), _numbers(run_dir)
    rows = list(integrity(run_dir))
    try:
        rows.append(_exact("profile", expected["profile"], manifest.load(run_dir).get("profile")))
        rows += [_judge(name, rule, metrics.get(name)) for name, rule in expected["metrics"].items()]
    except (KeyError, TypeError, AttributeError):
        raise store.StoreError(f"{baseline} is not a baseline; make it again with --update") from None
    if not expected["metrics"]:
        rows.append(Row("metrics", "at least one", "0", "exact", False))
    return rows


def integrity(run_dir: Path) -> Iterable[Row]:
    """Every stage ended well in the run that the manifest names, and its artifacts are what it left."""
    made = manifest.load(run_dir)
    stages, settings = made.get("stages", {}), made.get("settings", {})
    codes = {entry.get("depends_on", {}).get("code") for entry in stages.values()}
    yield _exact("code of the stages", "one", "one" if len(codes) == 1 else "several")
    for spec in manifest.STAGES:
        entry = stages.get(spec.name, {})
        yield _exact(f"{spec.name}: papermill exit", 0, entry.get("papermill_exit"))
        record = record_path(run_dir, spec.name)
        run = store.read_json(record).get("run") if record.exists() else None
        yield _exact(f"{spec.name}: record of run", entry.get("run", "a run"), run)
        depends_on, made_then = entry.get("depends_on", {}), entry.get("outputs", {})
        made_now = manifest.digests(run_dir, (*spec.outputs, manifest.executed(spec)))
        damaged = [name for name in {*made_now, *made_then} if made_now.get(name) != made_then.get(name)]
        yield _unless(
            f"{spec.name}: artifacts", "as made", damaged if made_then else ["everything"], "missing or altered"
        )
        inputs = manifest.digests(run_dir, spec.inputs).items()
        stale = [name for name, value in inputs if depends_on.get(f"input {name}") != value]
        yield _unless(f"{spec.name}: inputs", "as read", stale, "altered since")
        digests = {name: manifest.setting_digest(settings.get(name)) for name in spec.settings}
        others = [name for name, value in digests.items() if depends_on.get(f"settings of {name}") != value]
        yield _unless(f"{spec.name}: settings", "the run's", others, "of another run")


def _unless(name: str, good: str, bad: list[str], what: str) -> Row:
    """A row that passes when `bad` is empty, and else names its first."""
    return Row(name, good, f"{min(bad)} {what}" if bad else good, "exact", not bad)


def _exact(name: str, expected: Any, got: Any) -> Row:
    return Row(name, _text(expected), _text(got), "exact", got == expected and got is not None)


def _judge(name: str, rule: dict[str, Any], got: Any) -> Row:
    """One metric against its rule."""
    expected, direction, tolerance = rule["expected"], rule["direction"], rule["tolerance"]
    if direction == "exact":
        passed, allowed = got == expected, "exact"
    else:
        signs = {"higher": "at least", "lower": "at most", "near": "within"}
        worst = expected - tolerance if direction == "higher" else expected + tolerance
        allowed = f"{signs[direction]} {_text(tolerance if direction == 'near' else worst)}"
        error = (got - expected) if isinstance(got, int | float) else math.nan
        passed = {"higher": -error, "lower": error, "near": abs(error)}[direction] <= tolerance
    return Row(name, _text(expected), _text(got), allowed, bool(passed) and _counts(got))


def _counts(value: Any) -> bool:
    """Only a value that is there, is a number or text, and is not zero can pass."""
    return bool(value) and not (isinstance(value, float) and not math.isfinite(value))


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "missing" if value is None else str(value)[:12]


def _numbers(run_dir: Path) -> dict[str, Any]:
    """All metrics of a run by dotted name, and the SHA-256 of its artifacts."""
    metrics = store.read_json(run_dir / "metrics.json")
    found: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}{key}.", inner)
        else:
            found[prefix[:-1]] = value

    walk("", metrics)
    entries = manifest.load(run_dir).get("stages", {}).values()
    return found | {f"artifacts.{n}": d for e in entries for n, d in e.get("outputs", {}).items()}


def update(run_dir: Path, baseline: Path) -> list[str]:
    """Rewrite the baseline from a whole run; returns what changed, line by line. Raises ValueError for a broken run."""
    broken = [row for row in integrity(run_dir) if not row.passed]
    if broken:
        raise ValueError(f"no baseline from a broken run: {broken[0].name} is {broken[0].got}")
    old = store.read_json(baseline)["metrics"] if baseline.exists() else {}
    new = {}
    for name, value in sorted(_numbers(run_dir).items()):
        rule = next((rule for rule in RULES if fnmatch(name, rule[0])), None)
        if rule and _counts(value):
            tolerance = rule[2] + rule[3] * abs(value) if rule[1] != "exact" else 0
            new[name] = {"expected": value, "direction": rule[1], "tolerance": round(tolerance, 4)}
    baseline.parent.mkdir(parents=True, exist_ok=True)
    store.write_json(baseline, {"profile": manifest.load(run_dir)["profile"], "metrics": new})
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    return [f"{name}: {_expected(old, name)} -> {_expected(new, name)}" for name in names]


def _expected(metrics: dict[str, Any], name: str) -> str:
    return _text(metrics.get(name, {}).get("expected"))


def table(rows: list[Row]) -> str:
    """The rows as text, failures marked."""
    head = Row("metric", "expected", "got", "allowed", True)
    lines = [
        f"{row.name:48} {row.expected:>14} {row.got:>22} {row.allowed:>18}  {verdict}"
        for row, verdict in [(head, "verdict"), *((row, "ok" if row.passed else "FAILED") for row in rows)]
    ]
    failed = sum(not row.passed for row in rows)
    return "\n".join([*lines, f"{len(rows)} checks, {failed} failed"])

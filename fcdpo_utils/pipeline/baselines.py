"""Is a run whole, and as good as the committed baseline of its profile? Tables of expected, got, allowed, verdict.

A baseline is JSON: {"profile", "metrics": {name: value}, "outcomes": {name: "0110..."}}, of each held-out problem in
order. `baselines.yaml` says how far a metric may be from it. A metric that is missing, zero or not a number never
passes. Knows names, numbers and which problems were solved, and nothing of how they came about.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fcdpo_utils import store
from fcdpo_utils.evaluation import mcnemar
from fcdpo_utils.fingerprint import ROOT, fingerprint
from fcdpo_utils.pipeline import manifest
from fcdpo_utils.views import viewer

_RULES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


class Row(NamedTuple):
    """One line of the table; values as they are printed."""

    name: str
    expected: str
    got: str
    allowed: str
    passed: bool


def baseline_of(run_dir: Path) -> Path:
    """The committed baseline of a run: its profile's, or where --set changed what results depend on, one of its own."""
    made = store.read_json(store.require(run_dir / manifest.NAME, "fcdpo run"))
    own = f"-{fingerprint(made['set'])[:8]}" if made.get("set") else ""
    return ROOT / "outputs" / "baselines" / f"{made['profile']}{own}.json"


def check(run_dir: Path, baseline: Path) -> list[Row]:
    """Whether the run is whole, then each metric of the baseline. Raises StoreError where a file cannot be used."""
    expected = store.read_json(store.require(baseline, "fcdpo check --update"))
    metrics, now, rows = judged(run_dir), outcomes(run_dir), list(integrity(run_dir))
    for name in [name for name in now if name in metrics]:
        rows.append(_exact(f"{name}: the chains'", now[name].count("1") / len(now[name]), metrics[name]))
    try:
        values = {name: value for name, value in expected["metrics"].items() if rule_of(name)}
        rows.append(_exact("profile", expected["profile"], manifest.load(run_dir).get("profile")))
        problems = "artifacts.problems.jsonl"
        before = expected.get("outcomes", {}) if values.get(problems, "") == metrics.get(problems) else {}
        for name, value in values.items():
            rows.append(_judge(name, rule_of(name), value, metrics.get(name), before.get(name), now.get(name)))
    except (KeyError, TypeError, AttributeError, ValueError):
        raise store.StoreError(f"{baseline} is not a baseline; make it again with --update") from None
    return rows if values else [*rows, Row("metrics", "at least one", "0", "exact", False)]


def outcomes(run_dir: Path) -> dict[str, str]:
    """By metric, "1" for each held-out problem that the trained student solved, or soundly, else "0", in order."""
    found: dict[str, str] = defaultdict(str)
    with suppress(store.StoreError, KeyError, TypeError):  # `integrity` finds what does not read
        problems, chains = viewer.of_run(run_dir, ["after"])
        for problem, chain in zip(problems, chains["after"], strict=True):
            for label in ("solved", "sound"):
                found[f"tasks.{problem.task}.after.{label}"] += "01"[getattr(chain, label)]
    return dict(found)


def integrity(run_dir: Path) -> Iterable[Row]:
    """Every stage ended well in the run that the manifest names, and its artifacts are what it left."""
    made = manifest.load(run_dir)
    stages, settings = made.get("stages", {}), made.get("settings", {})
    for spec in manifest.STAGES:
        stage, entry = spec.name, stages.get(spec.name, {})
        yield _exact(f"{stage}: papermill exit", 0, entry.get("papermill_exit"))
        yield _exact(f"{stage}: record of run", entry.get("run", "a run"), manifest.recorded_run(run_dir, stage))
        damaged = manifest.altered(spec, run_dir, entry) if entry.get("outputs") else ["everything"]
        yield _unless(f"{stage}: artifacts", "as made", damaged, "missing or altered")
        given = manifest.given(spec, settings, run_dir)
        differ = [name for name in manifest.differing(given, entry.get("depends_on", {})) if name in given]
        inputs, groups = ([name for name in differ if name.startswith(kind)] for kind in ("input ", "settings "))
        yield _unless(f"{stage}: inputs", "as read", inputs, "altered since")
        yield _unless(f"{stage}: settings", "the run's", groups, "of another run")


def require_whole(run_dir: Path, what: str) -> None:
    """Raises StoreError where `fcdpo run` made the run and it is not whole; of notebooks by hand nothing is known."""
    whole = integrity(run_dir) if (run_dir / manifest.NAME).exists() else ()
    if broken := next((row for row in whole if not row.passed), None):
        raise store.StoreError(f"no {what} of a run that is not whole: {broken.name} is {broken.got}; run it again")


def _unless(name: str, good: str, bad: list[str], what: str) -> Row:
    """A row that passes when `bad` is empty, and else names its first."""
    return Row(name, good, f"{bad[0]} {what}" if bad else good, "exact", not bad)


def _exact(name: str, expected: Any, got: Any) -> Row:
    return Row(name, _text(expected), _text(got), "exact", got == expected and got is not None)


def _judge(name: str, rule: dict[str, Any], expected: Any, got: Any, before: str | None, now: str | None) -> Row:
    """By the rule of the metric; `before` and `now`: the outcomes of the same problems, where they are known."""
    direction = rule["direction"]
    comparable = all(isinstance(value, int | float) for value in (got, expected))
    change = f" ({got - expected:+.3g})" if comparable and got != expected else ""
    if direction == "exact":
        passed, allowed = got == expected, "exact"
    elif before and now and len(before) == len(now) and "alpha" in rule:
        test = mcnemar([*map(int, before)], [*map(int, now)])
        passed, allowed = test.lost <= test.gained or test.p > rule["alpha"], f"p > {rule['alpha']} if lost"
        change = f", +{test.gained} -{test.lost}, p {test.p:.2g}"
    else:
        tolerance = rule.get("tolerance", 0) + rule.get("growth", 0) * abs(expected)
        low = -math.inf if direction == "lower" else expected - tolerance
        high = math.inf if direction == "higher" else expected + tolerance
        words = {"higher": "at least {:.4g}", "lower": "at most {1:.4g}", "near": "{:.4g} to {:.4g}"}
        passed, allowed = comparable and low <= got <= high, words[direction].format(low, high)
    return Row(name, _text(expected), _text(got) + change, allowed, passed and _counts(got))


def _counts(value: Any) -> bool:
    """Only a value that is there, is a number or text, and is not zero can pass."""
    return bool(value) and not (isinstance(value, float) and not math.isfinite(value))


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "missing" if value is None else str(value)[:12]


def judged(run_dir: Path) -> dict[str, Any]:
    """The metrics that have a rule, by dotted name, among them the SHA-256 of artifacts."""
    entries = manifest.load(run_dir).get("stages", {}).values()
    artifacts = {f"artifacts.{name}": value for entry in entries for name, value in entry.get("outputs", {}).items()}
    found = {**manifest.flat(store.read_json(run_dir / "metrics.json")), **artifacts}
    return {name: value for name, value in sorted(found.items()) if rule_of(name)}


def rule_of(name: str) -> dict[str, Any] | None:
    """How a metric is judged; None: not at all."""
    return next((rule for pattern, rule in _RULES.items() if fnmatch(name, pattern)), None)


def update(run_dir: Path, baseline: Path) -> list[str]:
    """Rewrite the baseline from a whole run; returns what changed, line by line. Raises StoreError for a broken run."""
    store.require(run_dir / manifest.NAME, "fcdpo run")
    require_whole(run_dir, "baseline")
    old = store.read_json(baseline)["metrics"] if baseline.exists() else {}
    new = {name: value for name, value in judged(run_dir).items() if _counts(value)}
    made = {"profile": manifest.load(run_dir)["profile"], "metrics": new, "outcomes": outcomes(run_dir)}
    baseline.parent.mkdir(parents=True, exist_ok=True)
    store.write_json(baseline, made)
    return [f"{name}: {_text(old.get(name))} -> {_text(new.get(name))}" for name in manifest.differing(old, new)]


def trend(run_dir: Path, rows: list[Row]) -> dict[str, Any]:
    """A checked run in one record, to be followed over time: when it was, its commit, metrics, and what failed."""
    metrics = {name: value for name, value in judged(run_dir).items() if not name.startswith("artifacts.")}
    failed, now = [row.name for row in rows if not row.passed], datetime.now(UTC).isoformat(timespec="seconds")
    return {"date": now, "commit": manifest.load(run_dir).get("commit"), "metrics": metrics, "failed": failed}


def table(rows: list[Row]) -> str:
    """The rows as text: failures first, then the others, what passed of the run's wholeness in one line."""
    line = "{:48} {:>14} {:>22} {:>18}  {}".format
    failures, passed = ([row for row in rows if row.passed == good] for good in (False, True))
    metrics = [row for row in passed if ": " not in row.name]
    lines = [line("metric", "expected", "got", "allowed", "verdict")]
    lines += [line(*row[:-1], "ok" if row.passed else "FAILED") for row in (*failures, *metrics)]
    whole = f"stages, records, artifacts, inputs, settings: {len(passed) - len(metrics)} checks ok"
    return "\n".join([*lines, whole, f"{len(rows)} checks, {len(failures)} failed"])

"""Is a run whole, and as good as the committed baseline of its profile? Tables of expected, got, allowed, verdict.

A baseline is JSON: {"profile", "metrics": {name: {"expected", "direction", "tolerance"}}}. Directions: "higher" and
"lower" (better is fine, worse by more than the tolerance fails), "near" (both sides), "exact". A metric that is
missing, zero or not a number never passes. Knows names and numbers, and nothing of how they came about.
"""

import math
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import yaml

from fcdpo_utils import store
from fcdpo_utils.fingerprint import ROOT
from fcdpo_utils.pipeline import manifest

_RULES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


class Row(NamedTuple):
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
    expected, metrics = store.read_json(baseline), numbers(run_dir)
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
    for spec in manifest.STAGES:
        stage, entry = spec.name, stages.get(spec.name, {})
        yield _exact(f"{stage}: papermill exit", 0, entry.get("papermill_exit"))
        yield _exact(f"{stage}: record of run", entry.get("run", "a run"), manifest.recorded_run(run_dir, stage))
        damaged = manifest.altered(spec, run_dir, entry) if entry.get("outputs") else ["everything"]
        yield _unless(f"{stage}: artifacts", "as made", damaged, "missing or altered")
        inputs = {f"input {name}": value for name, value in manifest.digests(run_dir, spec.inputs).items()}
        groups = {f"settings of {name}": manifest.setting_digest(settings.get(name)) for name in spec.settings}
        differ = {*manifest.differing(inputs | groups, entry.get("depends_on", {}))}
        yield _unless(f"{stage}: inputs", "as read", sorted(differ & inputs.keys()), "altered since")
        yield _unless(f"{stage}: settings", "the run's", sorted(differ & groups.keys()), "of another run")


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


def _judge(name: str, rule: dict[str, Any], got: Any) -> Row:
    expected, direction, tolerance = rule["expected"], rule["direction"], rule["tolerance"]
    if direction == "exact":
        passed, allowed = got == expected, "exact"
    else:
        error = (got - expected) if isinstance(got, int | float) else math.nan
        worse, sign, limit = {
            "higher": (-error, "at least", expected - tolerance),
            "lower": (error, "at most", expected + tolerance),
            "near": (abs(error), "within", tolerance),
        }[direction]
        passed, allowed = worse <= tolerance, f"{sign} {_text(limit)}"
    comparable = all(isinstance(value, int | float) for value in (got, expected))
    change = f" ({got - expected:+.3g})" if comparable and got != expected else ""
    return Row(name, _text(expected), _text(got) + change, allowed, passed and _counts(got))


def _counts(value: Any) -> bool:
    """Only a value that is there, is a number or text, and is not zero can pass."""
    return bool(value) and not (isinstance(value, float) and not math.isfinite(value))


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "missing" if value is None else str(value)[:12]


def numbers(run_dir: Path) -> dict[str, Any]:
    """All metrics of a run by dotted name, and the SHA-256 of its artifacts."""
    entries = manifest.load(run_dir).get("stages", {}).values()
    artifacts = {f"artifacts.{name}": value for entry in entries for name, value in entry.get("outputs", {}).items()}
    return {**flat(store.read_json(run_dir / "metrics.json")), **artifacts}


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested values by dotted name."""
    if not isinstance(value, dict):
        return {name[1:]: value}
    return {key: leaf for part, inner in value.items() for key, leaf in flat(inner, f"{name}.{part}").items()}


def rule_of(name: str) -> tuple[str, float, float] | None:
    """How a metric is judged: direction, tolerance, and what that grows by with the value; None: not at all."""
    return next((tuple(rule) for pattern, *rule in _RULES if fnmatch(name, pattern)), None)


def update(run_dir: Path, baseline: Path) -> list[str]:
    """Rewrite the baseline from a whole run; returns what changed, line by line. Raises ValueError for a broken run."""
    if broken := next((row for row in integrity(run_dir) if not row.passed), None):
        raise ValueError(f"no baseline from a broken run: {broken.name} is {broken.got}")
    old, new = store.read_json(baseline)["metrics"] if baseline.exists() else {}, {}
    for name, value in sorted(numbers(run_dir).items()):
        if (rule := rule_of(name)) and _counts(value):
            direction, tolerance, growth = rule
            allowed = round(tolerance + growth * abs(value), 4) if growth else tolerance
            new[name] = {"expected": value, "direction": direction, "tolerance": allowed}
    baseline.parent.mkdir(parents=True, exist_ok=True)
    store.write_json(baseline, {"profile": manifest.load(run_dir)["profile"], "metrics": new})
    changed = {name: [_text(of.get(name, {}).get("expected")) for of in (old, new)] for name in {**old, **new}}
    return [f"{name}: {' -> '.join(changed[name])}" for name in manifest.differing(old, new)]


def table(rows: list[Row]) -> str:
    """The rows as text: failures first, then the others, what passed of the run's wholeness in one line."""
    line = "{:48} {:>14} {:>22} {:>18}  {}".format
    failures, passed = ([row for row in rows if row.passed == good] for good in (False, True))
    metrics = [row for row in passed if ": " not in row.name]
    lines = [line("metric", "expected", "got", "allowed", "verdict")]
    lines += [line(*row[:-1], "ok" if row.passed else "FAILED") for row in (*failures, *metrics)]
    whole = f"stages, records, artifacts, inputs, settings: {len(passed) - len(metrics)} checks ok"
    return "\n".join([*lines, whole, f"{len(rows)} checks, {len(failures)} failed"])


def markdown(rows: list[Row]) -> str:
    """The failures as a Markdown table, and the count: for the summary of a CI step."""
    failures = [row for row in rows if not row.passed]
    lines = [f"| {row.name} | {row.expected} | {row.got} | {row.allowed} |" for row in failures]
    head = ["| failed | expected | got | allowed |", "|---|---|---|---|"] if lines else []
    return "\n".join([f"{len(rows)} checks, {len(failures)} failed", "", *head, *lines, ""])


def junit(rows: list[Row], profile: str) -> str:
    """The rows as JUnit's XML, one test case each, which CI servers show."""
    failures = sum(not row.passed for row in rows)
    suite = ElementTree.Element("testsuite", name=f"fcdpo {profile}", tests=f"{len(rows)}", failures=f"{failures}")
    for row in rows:
        case = ElementTree.SubElement(suite, "testcase", classname=f"fcdpo.{profile}", name=row.name)
        if not row.passed:
            message = f"expected {row.expected}, got {row.got}, allowed {row.allowed}"
            ElementTree.SubElement(case, "failure", message=message)
    return ElementTree.tostring(suite, encoding="unicode")

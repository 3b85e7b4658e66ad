"""`report.html`: a finished run as one self-contained page, readable in light and dark, wide and narrow.

Reads the artifacts of a run and nothing else; all text of models is escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from fcdpo_utils import store
from fcdpo_utils.agent import Chain
from fcdpo_utils.pipeline import baselines, manifest
from fcdpo_utils.stage import format_seconds

TEMPLATE = Path(__file__).with_name("report.html.j2")
_FIGURES = (
    ("accuracy.png", "Sound answers on held-out problems, with 95 % intervals"),
    ("outcomes_*.png", "How chains end"),
    ("levels_*.png", "Sound answers by difficulty"),
    ("training_curves.png", "Training: loss, reward margin, log-probabilities"),
)


def write(run_dir: Path) -> Path:
    """Write `report.html` into a finished run; returns its path. Raises StoreError where the run is not finished."""
    metrics = store.read_json(store.require(run_dir / "metrics.json", "05"))
    store.require(run_dir / manifest.NAME, "fcdpo run")
    if broken := next((row for row in baselines.integrity(run_dir) if not row.passed), None):
        raise store.StoreError(f"no report of a run that is not whole: {broken.name} is {broken.got}; run it again")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": _percent, "duration": format_seconds}
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        metrics=metrics,
        manifest=manifest.load(run_dir),
        figures=list(_figures(run_dir)),
        examples=list(_examples(run_dir)),
    )
    store.write(run_dir / "report.html", page)
    return run_dir / "report.html"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _figures(run_dir: Path) -> Iterator[dict[str, Any]]:
    """Every figure of the run inside a data URL, with a caption."""
    for pattern, caption in _FIGURES:
        for path in sorted(run_dir.glob(pattern)):
            task = path.stem.partition("_")[2] if "*" in pattern else ""
            data = base64.b64encode(path.read_bytes()).decode()
            title = f"{caption}: {task}" if task else caption
            yield {"caption": title, "url": f"data:image/png;base64,{data}", "wide": path.stem == "training_curves"}


def _examples(run_dir: Path) -> Iterator[dict[str, Any]]:
    """For each task, one problem that training turned sound and one that it did not, where there are such."""
    problems = {p["id"]: p for p in store.read(store.require(run_dir / "problems.jsonl", "01"))}
    chains = [_chains(store.require(run_dir / f"chains_{when}.jsonl", "05")) for when in ("before", "after")]
    for task in dict.fromkeys(problems[name]["task"] for name in chains[0]):
        names = [name for name in chains[0] if name in chains[1] and problems[name]["task"] == task]
        gained = [name for name in names if chains[1][name].sound and not chains[0][name].sound]
        failed = [name for name in names if not chains[1][name].sound]
        for name in (*gained[:1], *failed[:1]):
            yield {"task": task, "problem": problems[name], "before": chains[0][name], "after": chains[1][name]}


def _chains(path: Path) -> dict[str, Chain]:
    return {record["problem_id"]: Chain.from_record(record) for record in store.read(path)}

"""The `fcdpo` command, as `cli.yaml` describes it. Exit code 0 only when everything asked for was done; errors are one
line on stderr.
"""

import sys
from argparse import ArgumentParser
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import yaml

from fcdpo_utils import store
from fcdpo_utils.lab import pool as pools
from fcdpo_utils.pipeline import baselines, export, runner
from fcdpo_utils.problems import TASKS
from fcdpo_utils.tasks.rows import RowTask
from fcdpo_utils.teacher import TeacherError

_TYPES = {"path": Path, "int": int, "float": float}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = vars(_parser().parse_args(arguments))
    does = options.pop("does")
    try:
        # imported only now: what leads to models takes seconds
        result = (resolve_name(f"{__package__}.{does}") if isinstance(does, str) else does)(**options)
        for line in [result] if isinstance(result, str | Path) else result if isinstance(result, Iterable) else ():
            print(line)
        return int(result) if isinstance(result, int) else 0
    except (runner.StageError, store.StoreError, TeacherError, OSError, ValueError) as error:
        print(f"fcdpo: {error}", file=sys.stderr)
        return 2 if does == "cli:check" else 1
    except KeyboardInterrupt:
        print("\nfcdpo: interrupted; what was finished is kept, run the same command to go on", file=sys.stderr)
        return 130


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="fcdpo", description="Teach a small model to reason with function calls.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    described = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    for task in (task for task in TASKS.values() if isinstance(task, RowTask)):
        text = f"how many rows of a file of {task.hub[0]} convert to chains, and why others do not"
        described["commands"][task.name] = {"help": text, "does": task.report, "path": {"type": "path"}}
    for name, own in described["commands"].items():
        text, does, either = own.pop("help"), own.pop("does"), own.pop("either", None)
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(does=does)
        for part in (*(described["shared"][shared] for shared in own.pop("with", ())), own):
            _add_arguments(command, part)
        if either:
            _add_arguments(command.add_mutually_exclusive_group(), either)
    return parser


def _add_arguments(place: Any, arguments: dict[str, dict[str, Any]]) -> None:
    for name, options in arguments.items():
        place.add_argument(name, **options | ({"type": _TYPES[options["type"]]} if "type" in options else {}))


def run(set: list[str], only: str, **options: Any) -> str:
    """What a run comes to: its results, or of a further stage where they are."""
    folder = runner.run(overrides=set, only=only, **options)
    return f"results: {folder}" if only else runner.results_table(folder)


def check(run: Path, baseline: Path | None, update: bool, junit: Path, markdown: Path, trend: Path) -> int:
    """The table of `baselines.check`, printed and put where it is asked for; or the baseline made anew."""
    baseline = baseline or baselines.baseline_of(run)
    if update:
        changed = baselines.update(run, baseline)
        print(*changed, f"{len(changed)} changes in {baseline}", sep="\n")
        return 0
    rows = baselines.check(run, baseline)
    print(table := baselines.table(rows))
    if junit:
        export.render(junit, "junit.xml.j2", rows=rows, name=baseline.stem)
    if markdown:
        with open(markdown, "a", encoding="utf-8") as file:  # a step summary has other lines
            print("```", table, "```", sep="\n", file=file)
    if trend:
        store.append(trend, [baselines.trend(run, rows)])
    return int(not all(row.passed for row in rows))


def pool(runs: list[Path], task: str, against: str, save: Path | None) -> str:
    """The variants of several runs as a table, kept with its figure where `save` says."""
    rows = pools.pooled(runs, task, against)
    if save:
        commits = sorted({store.read_json(run / "ablations.json")["commit"] for run in runs})
        kept = {"commits": commits, "task": task or "all", "variants": rows}
        store.write_json(save.with_name(f"{save.name}.json"), kept)
        import_module("fcdpo_utils.views.plots").variants(rows).savefig(f"{save}.png", bbox_inches="tight")
    return pools.markdown(rows)


if __name__ == "__main__":
    sys.exit(main())

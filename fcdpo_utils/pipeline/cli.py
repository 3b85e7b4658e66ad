"""The `fcdpo` command. Exit code 0 only when everything asked for was done; errors are one line on stderr."""

import sys
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from fcdpo_utils import store
from fcdpo_utils.lab import pool
from fcdpo_utils.pipeline import baselines, compare, doctor, export, publish, runner
from fcdpo_utils.problems import TASKS
from fcdpo_utils.tasks.rows import RowTask
from fcdpo_utils.teacher import TeacherError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = vars(_parser().parse_args(arguments))
    broken = options.pop("broken", 1)
    try:
        code = options.pop("action")(**options)
        return int(code) if isinstance(code, int) else 0
    except (runner.StageError, store.StoreError, TeacherError, OSError, ValueError) as error:
        print(f"fcdpo: {error}", file=sys.stderr)
        return broken
    except KeyboardInterrupt:
        print("\nfcdpo: interrupted; what was finished is kept, run the same command to go on", file=sys.stderr)
        return 130


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="fcdpo", description="Teach a small model to reason with function calls.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    of_run = ArgumentParser(add_help=False)
    of_run.add_argument("run", type=Path, help="run directory")

    def command(name: str, action: Callable[..., int | None], text: str, *shared: ArgumentParser) -> ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, parents=shared)
        added.set_defaults(action=action)
        return added

    settings = ArgumentParser(add_help=False)
    settings.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="such as teacher.samples=8")
    of_profile = ArgumentParser(add_help=False, parents=[settings])
    of_profile.add_argument("--profile", default="cpu", help="a shipped one's name, or the path of your own .yaml file")
    of_profile.add_argument("--run-dir", type=Path, help="default: outputs/<profile>")
    text = "run notebooks 01 to 05, or further ones (--only), under papermill; skips what is up to date"
    run = command("run", _run, text, of_profile)
    which = run.add_mutually_exclusive_group()
    which.add_argument("--only", default="", metavar="NN", help="run this stage alone; 06 and up with those it needs")
    which.add_argument("--from", dest="start", default="", metavar="NN", help="run this stage and those after it")
    run.add_argument("--cell-timeout", type=int, default=0, metavar="S", help="seconds that one cell may take; 0: any")
    _add_own(command, of_run, settings, of_profile)
    _add_comparisons(command, of_run)
    text = "write report.html, one self-contained page, into a run directory"
    command("report", lambda run: print(export.report(run)), text, of_run)
    text = "write adapter, data and their cards into <run>/export, for others to use"
    away = command("export", _export, text, of_run)
    away.add_argument("--merged", action="store_true", help="the merged bf16 model, too")
    away.add_argument("--inspect", action="store_true", help="the held-out problems as a folder for inspect eval, too")
    away.add_argument("--push-to-hub", default="", metavar="USER/NAME", help="upload all but that; needs HF_TOKEN")
    command("doctor", _doctor, "look at this machine: Python, packages, memory, GPU, hub, profiles")
    place = command("publish", _publish, "write where this repository is published into all files that name it")
    place.add_argument("url", help="https://github.com/<owner>/<name>; an empty one takes the address out")
    place.add_argument("--tag", default="main", help="what badges open and set-up cells clone; default: main")
    return parser


def _add_comparisons(command: Callable[..., ArgumentParser], of_run: ArgumentParser) -> None:
    text = "compare a run with its baseline; exit code 1 when it fails, 2 when that cannot be told"
    check = command("check", _check, text, of_run)
    check.set_defaults(broken=2)
    check.add_argument("--baseline", type=Path, help="default: outputs/baselines/<profile>.json; with --set, its own")
    check.add_argument("--junit", type=Path, metavar="FILE", help="the checks for a CI server, as JUnit's XML")
    check.add_argument("--markdown", type=Path, metavar="FILE", help="append the table, as for a step summary")
    check.add_argument("--trend", type=Path, metavar="FILE", help="append a line: date, commit, metrics, what failed")
    check.add_argument("--update", action="store_true", help="rewrite the baseline and show what changed")
    text = "what differs between two runs: settings, metrics, a paired test, the problems that flipped"
    beside = command("compare", lambda **options: print(*compare.compare(**options), sep="\n"), text)
    beside.add_argument("first", type=Path, help="run directory")
    beside.add_argument("second", type=Path, help="run directory")
    beside.add_argument("--show", type=int, default=3, metavar="N", help="print both chains of N flipped problems")
    text = "variants of notebook 06 over several runs of one profile with other seeds, tested together"
    several = command("pool", _pool, text)
    several.add_argument("runs", type=Path, nargs="+", help="run directories")
    several.add_argument("--task", default="", metavar="NAME", help="problems of this task alone")
    several.add_argument("--against", default="", metavar="VARIANT", help="in place of the full method")
    several.add_argument("--save", type=Path, metavar="PATH", help="the rows as PATH.json, their figure as PATH.png")
    for task in (task for task in TASKS.values() if isinstance(task, RowTask)):
        text = f"how many rows of a file of {task.hub[0]} convert to chains, and why others do not"
        rows = command(task.name, lambda path, task=task: print(task.report(path)), text)
        rows.add_argument("path", type=Path)


def _add_own(command: Callable[..., ArgumentParser], *shared: ArgumentParser) -> None:
    """What leads to tasks and students of one's own; imported when it is called, for that takes seconds."""

    def late(room: str, name: str) -> Callable[..., int | None]:
        return lambda **options: getattr(import_module(f"fcdpo_utils.pipeline.{room}"), name)(**options)

    of_run, settings, of_profile = shared
    text = "the training of a run on several GPUs, each with its share: start it by accelerate launch"
    command("train", late("train", "train"), text, of_profile)
    command("plan", late("plan", "plan"), "prompts, tokens and price of a run, before a teacher is asked", of_profile)
    task = command("task", late("plan", "check_task"), "check a task of your own, whose file is run: it is your code")
    task.add_argument("what", choices=["check"])
    task.add_argument("file", type=Path)
    text = "ask the student of a run (or with --set teacher...=... another model); its calls appear one by one"
    question = command("ask", late("ask", "ask_run"), text, of_run, settings)
    question.add_argument("--task", required=True, metavar="NAME")
    question.add_argument("question", help='English; of fol: "big(Lisa); big(x) -> guard(x); guard(Lisa)"')
    question.add_argument("--untouched", action="store_true", help="the student before training")
    question.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")


def _run(set: list[str], only: str, **options: Any) -> None:
    folder = runner.run(overrides=set, only=only, **options)
    print(f"results: {folder}" if only else runner.results_table(folder))


def _check(run: Path, baseline: Path | None, update: bool, junit: Path, markdown: Path, trend: Path) -> int:
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


def _pool(runs: list[Path], task: str, against: str, save: Path | None) -> None:
    rows = pool.pooled(runs, task, against)
    print(pool.markdown(rows))
    if save:
        commits = sorted({store.read_json(run / "ablations.json")["commit"] for run in runs})
        store.write_json(
            save.with_name(f"{save.name}.json"), {"commits": commits, "task": task or "all", "variants": rows}
        )
        import_module("fcdpo_utils.views.plots").variants(rows).savefig(f"{save}.png", bbox_inches="tight")


def _export(run: Path, push_to_hub: str, **also: bool) -> None:
    folders = export.export(run, **also)
    print(*folders, sep="\n")
    if push_to_hub:
        print(*export.push(folders, push_to_hub), sep="\n")


def _doctor() -> int:
    bad = 0
    for name, text, good in doctor.examine():
        print(f"{'ok' if good else 'NO':3}{name:18}{text}", flush=True)
        bad |= not good
    return int(bad)


def _publish(url: str, tag: str) -> None:
    publish.publish(url, tag)
    print(f"published at {publish.address()}" if publish.address() else "not published")


if __name__ == "__main__":
    sys.exit(main())

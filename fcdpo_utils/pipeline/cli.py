"""The `fcdpo` command. Exit code 0 only when everything asked for was done; errors are one line on stderr."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fcdpo_utils import store
from fcdpo_utils.pipeline import baselines, doctor, export, manifest, report, runner, wheels
from fcdpo_utils.profiles import SettingsError
from fcdpo_utils.tasks.gsm8k import conversion_report, load_rows, report_table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return options.action(options)
    except (runner.StageError, SettingsError, store.StoreError, OSError, ValueError) as error:
        print(f"fcdpo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nfcdpo: interrupted; what was finished is kept, run the same command to go on", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fcdpo", description="Teach a small model to reason with function calls.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, action, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(action=action)
        return added

    run = command(
        "run", _run, "run notebooks 01 to 05, or further ones (--only), under papermill; skips what is up to date"
    )
    run.add_argument("--profile", default="cpu")
    run.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="such as teacher.samples=8")
    run.add_argument("--run-dir", type=Path, help="default: outputs/<profile>")
    which = run.add_mutually_exclusive_group()
    which.add_argument("--only", default="", metavar="NN", help="run this stage alone; 06 to 08 with those it needs")
    which.add_argument("--from", dest="start", default="", metavar="NN", help="run this stage and those after it")
    run.add_argument("--cell-timeout", type=int, default=0, metavar="S", help="seconds that one cell may take; 0: any")
    check = command("check", _check, "compare a run with its baseline; exit code 1 when anything fails")
    check.add_argument("run", type=Path, help="run directory")
    check.add_argument("--baseline", type=Path, help="default: outputs/baselines/<profile>.json")
    check.add_argument("--update", action="store_true", help="rewrite the baseline and show what changed")
    page = command("report", _report, "write report.html, one self-contained page, into a run directory")
    page.add_argument("run", type=Path, help="run directory")
    away = command("export", _export, "write adapter, data and their cards into <run>/export, for others to use")
    away.add_argument("run", type=Path, help="run directory")
    away.add_argument("--merged", action="store_true", help="the merged bf16 model, too")
    away.add_argument("--push-to-hub", default="", metavar="USER/NAME", help="upload them; needs HF_TOKEN")
    command("doctor", _doctor, "look at this machine: Python, packages, memory, GPU, hub, profiles")
    clean = command("clean", _clean, "delete a run directory")
    clean.add_argument("run", type=Path, help="run directory")
    offline = command("wheels", _wheels, "make a folder for Kaggle sessions without internet: code and wheels")
    offline.add_argument("folder", type=Path, help="to be uploaded as the data set fcdpo")
    offline.add_argument("--python", default="3.12", metavar="X.Y", help="Kaggle's Python version")
    rows = command("gsm8k", _gsm8k, "how many rows of a GSM8K file convert to chains, and why others do not")
    rows.add_argument("path", type=Path)
    return parser


def _run(options: argparse.Namespace) -> int:
    choice = {"only": options.only, "start": options.start, "cell_timeout": options.cell_timeout}
    folder = runner.run(options.profile, options.set, options.run_dir, **choice)
    print(f"results: {folder}" if options.only else runner.results_table(folder))
    return 0


def _check(options: argparse.Namespace) -> int:
    store.require(options.run / manifest.NAME, "fcdpo run")
    profile = manifest.load(options.run).get("profile")
    if profile is None:
        raise store.StoreError(f"{options.run / manifest.NAME} cannot be read; run it again")
    baseline = options.baseline or baselines.baseline_path(profile)
    if options.update:
        changed = baselines.update(options.run, baseline)
        print("\n".join([*changed, f"{len(changed)} changes in {baseline}"]))
        return 0
    rows = baselines.check(options.run, baseline)
    print(baselines.table(rows))
    return int(not all(row.passed for row in rows))


def _report(options: argparse.Namespace) -> int:
    print(report.write(options.run))
    return 0


def _export(options: argparse.Namespace) -> int:
    folders = export.export(options.run, options.merged)
    print("\n".join(map(str, folders)))
    if options.push_to_hub:
        print("\n".join(export.push(folders, options.push_to_hub)))
    return 0


def _doctor(_: argparse.Namespace) -> int:
    findings = []
    for finding in doctor.examine():
        findings.append(finding)
        print(doctor.table([finding]), flush=True)
    return int(not all(finding.good for finding in findings))


def _clean(options: argparse.Namespace) -> int:
    print(doctor.clean(options.run))
    return 0


def _wheels(options: argparse.Namespace) -> int:
    print(f"{wheels.make(options.folder, options.python)} wheels and the checkout in {options.folder}")
    return 0


def _gsm8k(options: argparse.Namespace) -> int:
    print(report_table(conversion_report(load_rows(options.path))))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Numbers in the pages are those of the kept rows: a stale table or sentence fails here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from runs import ROOT

from fcdpo_utils.evaluation import mcnemar
from fcdpo_utils.lab import pool
from fcdpo_utils.lab.grid import holm

KEPT = sorted((ROOT / "docs").glob("regime-*.json"))
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def rows_of(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["variants"]


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_a_kept_table_stands_in_the_results_as_it_is(path: Path) -> None:
    assert pool.markdown(rows_of(path)) in RESULTS


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_kept_rows_agree_with_themselves(path: Path) -> None:
    first, *others = rows_of(path)
    for row in others:
        assert row["n"] == first["n"] and len(row["runs"]) == len(first["runs"]) >= 3
        assert round(row["n"] * (row["sound"] - first["sound"])) == row["gained"] - row["lost"]
        test = mcnemar([False] * row["gained"] + [True] * row["lost"], [True] * row["gained"] + [False] * row["lost"])
        assert row["p"] == pytest.approx(test.p)
    assert [row["p_holm"] for row in others] == pytest.approx(holm([row["p"] for row in others]))


def test_shares_in_the_readme_are_those_of_the_kept_rows() -> None:
    shares = {row["name"]: row for row in rows_of(ROOT / "docs" / "regime-all.json")}
    told = [
        line.split("|")[1:4] for line in README.splitlines() if line.startswith("| ") and " of three seeds" not in line
    ]
    known = {name.strip(): share.strip() for name, share, *_ in told if name.strip() in shares}
    assert len(known) >= 4 and len(KEPT) == 9
    for name, share in known.items():
        low, high = (100 * side for side in shares[name]["sound_ci95"])
        assert share == f"{100 * shares[name]['sound']:.1f} % [{low:.1f}, {high:.1f}]"

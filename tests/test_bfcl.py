"""What BFCL says of our call parser: its gold calls pass, and tampered ones are refused where its checker refuses them.

Every disagreement is a row of `DIFFERENCES`, and stands in docs/field.md with its count. `python tests/test_bfcl.py`
writes the tables there anew.
"""

from __future__ import annotations

from collections import Counter

import pytest
from bfcl import ACCEPTED, CATEGORIES, DOTTED, SITE, SURVIVES, TAMPERED, fates, verdicts
from runs import ROOT

pytestmark = [
    pytest.mark.skipif(not SITE.exists(), reason=f"BFCL's wheel is not in {SITE.name}; make test fetches it"),
    pytest.mark.xdist_group("bfcl"),  # in one process all is computed once
]
DOCUMENT = ROOT / "docs" / "field.md"
BEGIN, END = "<!-- bfcl: begin -->\n", "<!-- bfcl: end -->\n"

# Where the verdicts differ: who accepts the call, and why.
DIFFERENCES = {
    "in a fence that names Python": ("ours", "their decoder strips a bare fence only"),
    "in brackets": ("theirs", "BFCL asks for a list of calls, we for one call a message"),
    "arguments by position": ("ours", "their decoder drops what has no name"),
    "optional arguments left out": ("ours", "theirs wants those that the question states; a default is valid here"),
    "an argument twice": ("theirs", "their decoder keeps the last; which one was meant is unknown"),
    "a number in quotes": ("ours", 'numeric text is a number here: 1/3 can only be said as "1/3"'),
    "a whole float for an integer": ("ours", "5.0 is 5: numbers are compared by value"),
    "a string without its quotes": ("theirs", "a variable's name counts as a string where the answer is one"),
    "another word": ("ours", "a wrong value: here the function or the answer tells, not the grammar"),
    "another number": ("ours", "a wrong value, as above"),
}
# Our kind of error beside BFCL's, wherever both refuse a call.
MEANS = {
    "syntax": ["ast_decoder:decoder_failed"],
    "not_a_call": [
        "ast_decoder:decoder_failed",
        "ast_decoder:decoder_wrong_output_format",
        "simple_function_checker:wrong_count",
    ],
    "extra_text": ["ast_decoder:decoder_failed"],
    "unknown_function": ["simple_function_checker:wrong_func_name"],
    "bad_arguments": [
        "simple_function_checker:missing_required",
        "simple_function_checker:unexpected_param",
        "type_error:nested",
        "type_error:simple",
        "value_error:list/tuple",
        "value_error:string",
    ],
}


def split(name: str) -> tuple[int, int, int]:
    """Of the calls tampered with in this way: on how many the verdicts agree, only ours accepts, only theirs does."""
    sides = Counter[tuple[bool, bool]]()
    for (ours, theirs), count in verdicts()[name].items():
        sides[ours == ACCEPTED, theirs == ACCEPTED] += count
    return sides[True, True] + sides[False, False], sides[True, False], sides[False, True]


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_gold_call_survives_unless_it_cannot_be_said_here(category: str) -> None:
    expected = (
        SURVIVES,
        "an argument is ",
        "another parameter of its function is of type ",
        "contradicts its function: ",
    )
    assert fates()[category][SURVIVES] > 0
    assert [reason for reason in fates()[category] if not reason.startswith(expected)] == []


@pytest.mark.parametrize("name", TAMPERED)
def test_verdicts_agree_but_for_the_differences_listed(name: str) -> None:
    agree, ours, theirs = split(name)
    accepts, _ = DIFFERENCES.get(name, ("neither", ""))
    assert agree + ours + theirs >= 100
    assert (ours > 0, theirs > 0) == (accepts == "ours", accepts == "theirs")


def test_errors_have_the_names_that_the_table_gives() -> None:
    met: dict[str, set[str]] = {}
    for ours, theirs in (pair for pairs in verdicts().values() for pair in pairs if ACCEPTED not in pair):
        met.setdefault(ours, set()).add(theirs)
    assert {kind: sorted(types) for kind, types in met.items()} == MEANS


def test_abstaining_and_malformed_are_apart_here_and_one_there() -> None:
    kinds = {
        name: {ours for ours, _ in verdicts()[name]}
        for name in ("no call: a sentence", "a last parenthesis missing", "cut within the arguments")
    }
    assert list(kinds.values()) == [{"not_a_call"}, {"syntax"}, {"syntax"}]
    assert {theirs for name in kinds for _, theirs in verdicts()[name]} == {"ast_decoder:decoder_failed"}


def tables() -> str:
    """The tables of the page, as Markdown."""
    total = sum(fates().values(), Counter())
    lines = ["| category | gold calls | survive | of these, dots as underscores |", "|---|---|---|---|"]
    for name, counts in [*fates().items(), ("all", total)]:
        row = counts.total(), counts[SURVIVES] + counts[DOTTED], counts[DOTTED]
        lines.append(f"| {name} | {' | '.join(f'{count:,}' for count in row)} |")
    lines += ["", "| why not | calls |", "|---|---|"]
    lines += [f"| {reason} | {count} |" for reason, count in total.most_common() if reason not in (SURVIVES, DOTTED)]
    lines += ["", "| the call | judged | agree | only ours accepts | only theirs | why |", "|---|---|---|---|---|---|"]
    for name in TAMPERED:
        counts = split(name)
        shown = [f"{sum(counts):,}", *(f"{count:,}" if count else "" for count in counts)]
        lines.append(f"| {' | '.join([name, *shown, DIFFERENCES.get(name, ('', ''))[1]])} |")
    lines += ["", "| refused here as | and by BFCL as |", "|---|---|"]
    lines += [f"| `{kind}` | {', '.join(f'`{name}`' for name in names)} |" for kind, names in MEANS.items()]
    return "\n".join([*lines, ""])


def test_the_page_has_these_tables() -> None:
    assert BEGIN + tables() + END in DOCUMENT.read_text(encoding="utf-8")


if __name__ == "__main__":
    before, rest = DOCUMENT.read_text(encoding="utf-8").split(BEGIN)
    DOCUMENT.write_text(before + BEGIN + tables() + END + rest.split(END)[1], encoding="utf-8")

"""The viewer of chains: what it shows, that nothing of a model becomes markup, and that its buttons and keys work."""

from __future__ import annotations

import html
import json
import re
import subprocess
from pathlib import Path

import pytest
from browser import CHROMIUM, FLAGS, measured, needs_chromium

from fcdpo_utils.episode import Chain, Step
from fcdpo_utils.problems import Problem
from fcdpo_utils.views import viewer

HOSTILE = [
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "x" * 2_000,
]
HOSTILE += ["<!--", "\u2028", '"DATA"', "${1}", "&lt;b&gt;"]


def problem(number: int, task: str, level: int) -> Problem:
    return Problem(f"{task}-{number}", task, "test", level, f"Question {number} {HOSTILE[0]}?", "3", "", {})


def chain(name: str, calls: list[str], sound: bool) -> Chain:
    steps = tuple(Step(call, "ok" if sound else "Error: no", None if sound else "refused") for call in calls)
    return Chain(name, steps, "solved" if sound else "wrong_answer", "3", sound, sound)


PROBLEMS = [problem(0, "fol", 1), problem(1, "fol", 2), problem(2, "arithmetic", 2)]
CHAINS = {
    "before": [chain("", HOSTILE, False), chain("", ["A()", "B()"], False), chain("", ["A()"], True)],
    "after": [
        chain("", ["A()", *HOSTILE[1:]], True),
        chain("", ["A()", "C()", "D()"], True),
        chain("", ["A()"], False),
    ],
}
ACTS = """<script>addEventListener("load", () => {
  const root = document.querySelector(".viewer"), part = (name) => root.querySelector(`[data-of=${name}]`);
  const choose = (name, value) => { part(name).value = value; part(name).onchange({ target: part(name) }); };
  const press = (key) => root.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  const look = () => ({ id: part("problem").value, count: part("count").textContent, step: part("step").textContent,
    names: [...root.querySelectorAll(".name")].map((n) => n.textContent),
    text: root.querySelector(".problem").textContent,
    calls: [...root.querySelectorAll(".column")].map((c) => [...c.querySelectorAll(".call")].map((x) => x.textContent)),
    parts: [...root.querySelectorAll("li.parts .call")].map((x) => x.textContent) });
  const seen = [look()];
  const acts = [() => press("ArrowDown"), () => press("ArrowRight"), () => part("forth").click()];
  acts.push(() => part("all").click(), () => choose("change", "lost"), () => choose("task", "fol"));
  acts.push(() => part("next").click());
  for (const act of acts) { act(); seen.push(look()); }
  document.title = JSON.stringify({ seen, scripts: document.scripts.length, images: document.images.length });
})</script>"""


def data_of(page: str) -> list[dict]:
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.S)[1])


def test_it_holds_every_chain_whole_and_in_order() -> None:
    rows = data_of(viewer.page(PROBLEMS, CHAINS))
    assert [row["id"] for row in rows] == ["fol-0", "fol-1", "arithmetic-2"]
    for place, row in enumerate(rows):
        assert [made["student"] for made in row["chains"]] == ["before", "after"]
        for student, made in zip(CHAINS.values(), row["chains"], strict=True):
            assert [step[0] for step in made["steps"]] == [step.call for step in student[place].steps]


def test_no_text_of_a_model_is_markup() -> None:
    page = viewer.page(PROBLEMS, CHAINS)
    assert page.count("<script") == page.count("</script>") == 2 and "<img" not in page and "<!--" not in page
    framed = viewer.frame(PROBLEMS, CHAINS)
    assert framed.count("<") == 4 and html.unescape(re.search(r'srcdoc="([^"]*)"', framed)[1]) == page


def test_it_asks_nothing_of_another_machine() -> None:
    assert not re.search(r"(src|href)=|https?://|@import|url\(", Path(viewer.__file__).with_suffix(".html").read_text())


@needs_chromium
def test_filters_buttons_and_keys_work(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(viewer.page(PROBLEMS, CHAINS) + ACTS, encoding="utf-8")
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path}/chromium", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    title = html.unescape(re.search(r"<title>(.*?)</title>", done.stdout, re.S)[1])
    found = json.loads(title)
    assert (found["scripts"], found["images"]) == (3, 0)  # the data, the viewer's own, and this test's
    first, second, one, two, whole, lost, none, still = found["seen"]
    assert first["count"] == "3 of 3 problems" and first["names"] == ["before wrong answer", "after sound"]
    assert first["calls"][0] == HOSTILE and first["parts"] == [HOSTILE[0], "A()"] and HOSTILE[0] in first["text"]
    assert second["id"] == "fol-1" and second["parts"] == ["B()", "C()"] and second["step"] == "all 3 calls"
    assert one["calls"] == [["A()"], ["A()"]] and one["step"] == "call 1 of 3" and one["parts"] == []
    assert two["calls"] == [["A()", "B()"], ["A()", "C()"]] and whole["calls"][1] == ["A()", "C()", "D()"]
    assert lost["id"] == "arithmetic-2" and lost["count"] == "1 of 3 problems"
    assert none["count"] == "0 of 3 problems" and none["text"] == "No problem is like that." and none == still


@needs_chromium
@pytest.mark.parametrize("width", [400, 1280])
def test_it_fits_the_window(tmp_path: Path, width: int) -> None:
    page = tmp_path / "page.html"
    page.write_text(viewer.page(PROBLEMS, CHAINS), encoding="utf-8")
    assert measured(page, width, tmp_path)["over"] == 0

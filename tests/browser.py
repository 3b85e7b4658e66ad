"""Headless Chromium, where there is one: how a page lies in a window of some width."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; install Debian's package chromium")
FLAGS = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --dump-dom".split()
PROBE = """<script>addEventListener("load", () => { const r = document.documentElement;
  document.title = JSON.stringify({over: Math.max(0, r.scrollWidth - innerWidth), height: r.scrollHeight,
  broken: [...document.images].filter(i => !i.naturalWidth).length}); })</script>"""


def measured(page: Path, width: int, scratch: Path) -> dict[str, int]:
    """After layout: pixels that stick out sideways, the height, images that are not there."""
    probed = page.with_name(f"{page.stem}.{width}.probe.html")
    probed.write_text(page.read_text(encoding="utf-8") + PROBE, encoding="utf-8")
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={scratch}/chromium", f"--window-size={width},900", probed.as_uri()]
    try:
        dom = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    finally:
        probed.unlink()
    return json.loads(html.unescape(re.search(r"<title>(.*?)</title>", dom)[1]))

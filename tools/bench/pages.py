"""Times the opening of pages in headless Chromium: those of 5,000 classes with hostile names, or given ones.

    python tools/bench/pages.py                 # a run, its maps and audit, a search and an experiment; made first
    python tools/bench/pages.py PAGE PAGE       # these pages

Each opening has a browser of its own. Times count from the navigation: until the document is parsed and its scripts
have run (DOMContentLoaded), until its pictures are there too (load), and until it is laid out after that.
"""

from __future__ import annotations

import html
import json
import os
import re
import statistics
import tempfile
from pathlib import Path

from raypaml.cli import Parser, run_command, say
from raypaml.reports.tables import markdown
from tools.browser import allowing, chromium

PROG = "python tools/bench/pages.py"
_PROBE = """addEventListener("load", () => {
  const {domContentLoadedEventEnd, loadEventStart} = performance.getEntriesByType("navigation")[0];
  document.body.getBoundingClientRect();
  document.title = JSON.stringify([domContentLoadedEventEnd, loadEventStart, performance.now()]);
});"""
_EMPTY = (
    '<!doctype html><meta http-equiv="Content-Security-Policy" content="script-src \'none\'"><title></title><body>x'
)


def opened(page: Path) -> list[float]:
    """Seconds until a page is parsed, loaded and laid out, in a browser of its own."""
    copy = page.with_name(f"timed-{page.name}")
    copy.write_text(allowing(page.read_text(), _PROBE))
    said = chromium("--dump-dom", "--window-size=1280,900", copy.as_uri(), real_time=True)
    copy.unlink()
    told = re.search(r"<title>(\[.*?\])</title>", said)
    assert told, f"{page}: the browser said nothing"
    return [milliseconds / 1000 for milliseconds in json.loads(html.unescape(told[1]))]


def main() -> None:
    """Prints the table."""
    flags = Parser(prog=PROG, description=__doc__.split("\n")[0])
    flags.add_argument(
        "pages", nargs="*", type=Path, metavar="PAGE", help="pages [those of 5,000 classes, which are made]"
    )
    flags.add_argument("--opens", type=int, default=5, metavar="N", help="times that each page is opened [5]")
    asked = flags.parse()
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder, "empty.html")
        empty.write_text(_EMPTY)
        pages = {"empty page": empty} | (
            dict(zip(map(str, asked.pages), asked.pages, strict=True)) or made(Path(folder))
        )
        print(table(pages, asked.opens))
    print(
        f"\nmedian of {asked.opens} openings, and the longest; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )


def made(folder: Path) -> dict[str, Path]:
    """The pages of 5,000 classes."""
    from tools.bench.hostile_pages import hostile_pages

    return hostile_pages(folder, classes=5000, listed=5000, trials=100, seeds=5)


def table(pages: dict[str, Path], opens: int) -> str:
    """The times of each page, as Markdown."""
    rows = []
    for name, page in pages.items():
        say(name)
        times = list(zip(*(opened(page) for _ in range(opens)), strict=True))
        shown = [f"{statistics.median(one):.2f}, {max(one):.2f}" for one in times]
        rows.append([name, f"{page.stat().st_size / 1e6:.2f}", *shown])
    return markdown(["page", "MB", "parsed, s", "loaded, s", "laid out, s"], rows, left=1)


if __name__ == "__main__":
    run_command(main, PROG)

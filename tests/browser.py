"""Pages opened in a real headless Chromium, which is asked how they look at several widths, light and dark."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.browser import allowing, chromium

_PROBE = Path(__file__).with_name("probe.js").read_text()
_FRAME = """<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark">
<body>{frames}<pre id="said"></pre><script>
addEventListener("message", event => document.getElementById("said").textContent += JSON.stringify(event.data) + "\\n");
</script>"""


def measured(
    pages: Mapping[str, Path], folder: Path, widths: tuple[int, ...] = (390, 1280), *flags: str
) -> dict[str, Any]:
    """What a browser says of each page at each width, by "NAME WIDTH": errors, width of its content, what sticks out.

    Each page is opened in a frame of that width, because a window of Chromium is never narrower than 500 pixels. The
    frame holds a copy beside the page, with a script that measures; the policy of the copy allows that script too.

    Args:
        pages: the pages by name.
        folder: an empty folder for the frames.
        widths: in CSS pixels.
        flags: more flags of Chromium, such as DARK.
    """
    frames = []
    for name, page in pages.items():
        copy = page.with_name(f"probed-{page.name}")
        copy.write_text(allowing(page.read_text(), _PROBE))
        frames += [
            f'<iframe name="{name} {width}" src="{html.escape(copy.as_uri())}" style="width: {width}px; height: 900px; '
            f'border: 0; color-scheme: light dark"></iframe>'
            for width in widths
        ]
    (folder / "frames.html").write_text(_FRAME.format(frames="".join(frames)))
    said = chromium("--dump-dom", *flags, (folder / "frames.html").as_uri())
    lines = html.unescape(said.split('<pre id="said">')[1].split("</pre>")[0]).splitlines()
    return {one["page"]: one for one in map(json.loads, lines)}

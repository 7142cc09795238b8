"""The page of an audit: in a real browser keys answer, undo takes back, a reload restores; hostile names are texts."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raypaml.auditing.answer_server import AnswerBook, AnswerServer
from raypaml.auditing.audit_page import Candidate, digest_of, write_audit_page
from raypaml.auditing.given_answers import ANSWERS, read_given
from raypaml.auditing.places import outline, place
from tests.browser import measured
from tools.browser import CHROMIUM, DARK, WHY_NOT, chromium

HOSTILE = (
    "</script><script>document.title='pwned'</script>",
    "<img src=x onerror=\"document.title='pwned'\">",
    "\u202e\u05e9\u05dc\u05d5\u05dd \"'`${1}`",
    "one\u2028two\tthree",
    "constructor",
    "a" * 200,
)


def candidates(count: int, num_classes: int = 3) -> list[Candidate]:
    names = [*HOSTILE, *(f"class {k}" for k in range(num_classes))][:num_classes]
    return [
        Candidate(
            rank=n + 1,
            key=f"image {n} {names[n % num_classes]}",
            class_id=f"={n % num_classes}",
            name=names[n % num_classes],
            score=1 - n / count / 2,
            times=2,
            epochs=(1, 3),
            box=(8, 8, 24, 24),
            outline="M8 8L24 8M24 8L24 24M24 24L8 8",
            picture="00001.jpg",
            width=40,
            height=32,
        )
        for n in range(count)
    ]


def audit_folder(out: Path, listed: list[Candidate], **given: Any) -> Path:
    (out / "data").mkdir(parents=True)
    Image.new("RGB", (40, 32), (40, 90, 160)).save(out / "data" / "00001.jpg")
    write_audit_page(out, Path("runs/mine"), listed, 4, None, "raypaml audit", **given)
    return out


class _Parsed(HTMLParser):
    """The scripts of a page, by their type, and the names of all its elements."""

    def __init__(self, page: str):
        super().__init__()
        self.scripts: dict[str, str] = {}
        self.tags: list[str] = []
        self._kind: str | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._kind = dict(attrs).get("type") or "" if tag == "script" else None

    def handle_data(self, data: str) -> None:
        if self._kind is not None:
            self.scripts[self._kind] = self.scripts.get(self._kind, "") + data

    def handle_endtag(self, _: str) -> None:
        self._kind = None


def test_the_page_holds_hostile_names_as_texts(tmp_path: Path) -> None:
    listed = candidates(12, len(HOSTILE))
    page = (audit_folder(tmp_path / "a", listed) / "index.html").read_text()
    parsed = _Parsed(page)
    assert parsed.tags.count("script") == 2
    assert "img" not in parsed.tags
    audit = json.loads(parsed.scripts["application/json"])
    assert [name for _, name in audit["classes"]] == list(HOSTILE)
    assert [entry[0] for entry in audit["entries"]] == [one.key for one in listed]
    assert audit["digest"] == digest_of(listed)


def test_5000_classes_are_a_small_page(tmp_path: Path) -> None:
    page = audit_folder(tmp_path / "a", candidates(10_000, 5_000)) / "index.html"
    assert page.stat().st_size < 4e6  # beside 15 MB that are allowed; pictures are files of their own


def test_the_outline_lies_where_the_map_is_half_its_peak() -> None:
    cam = np.zeros((4, 4), np.float32)
    cam[1, 2] = 2.0
    path = outline(cam, 64, 80)
    points = [tuple(map(float, text.split())) for text in re.findall(r"[ML]([^ML]+)", path)]
    assert set(points) == {(50, 16), (60, 24), (50, 32), (40, 24)}  # half a cell from the middle of the cell
    assert len(points) == 8
    assert path.count("M") == path.count("L") == 4
    assert outline(-np.ones((4, 4), np.float32), 64, 80) == ""
    whole = [float(number) for number in re.findall(r"[\d.]+", outline(np.ones((2, 2), np.float32), 64, 80))]
    assert min(whole) == 0
    assert max(whole) == 80  # a map that is large everywhere has its line along the border
    assert place(cam, 64, 80) == (40, 16, 60, 32)


# --- In a browser -----------------------------------------------------------------------------------------------------

in_browser = pytest.mark.skipif(not CHROMIUM, reason=WHY_NOT)
DRIVER = """<!doctype html><pre id="log"></pre><script>
const frame = document.createElement("iframe"), log = [];
const wait = ms => new Promise(done => setTimeout(done, ms));
const at = id => frame.contentDocument.getElementById(id);
async function open(page) {
  await new Promise(done => { frame.onload = done; frame.src = page; });
  frame.contentWindow.addEventListener("error", event => log.push("ERROR " + event.message));
  await wait(30);
}
function press(keys) {
  for (const key of keys) {
    const held = {shiftKey: /^[A-Z]$/.test(key), ctrlKey: key[0] === "^", bubbles: true, cancelable: true};
    const event = new frame.contentWindow.KeyboardEvent("keydown", {key: key.replace("^", ""), ...held});
    frame.contentDocument.dispatchEvent(event);
  }
}
function leaves() {
  return frame.contentWindow.dispatchEvent(new Event("beforeunload", {cancelable: true}));
}
function note(what) {
  const said = [...at("tiles").children].map(tile => tile.dataset.said || "-").join(" ");
  const texts = ["count", "number", "message"].map(id => at(id).textContent);
  log.push([what, ...texts, at("grid").hidden ? "" : said].join(" | "));
}
async function main() {
  frame.width = 900; frame.height = 700;
  document.body.append(frame);
  STEPS
}
main().catch(error => log.push("FAILED " + error.stack)).finally(() => {
  document.getElementById("log").textContent = JSON.stringify(log);
});
</script>"""


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    handler = partial(type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None}), directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def logged(page: str) -> list[str]:
    """What the script of a test wrote into the element `log`."""
    from html import unescape

    match = re.search(r'<pre id="log">(.*?)</pre>', page, re.S)
    assert match is not None, page[:2000]
    lines: list[str] = json.loads(unescape(match[1]))
    return lines


def driven(folder: Path, steps: str) -> list[str]:
    (folder / "driver.html").write_text(DRIVER.replace("STEPS", steps))
    with serving(folder) as address:
        return logged(chromium("--dump-dom", f"{address}/driver.html"))


@in_browser
def test_keys_undo_and_restoring_in_a_browser(tmp_path: Path) -> None:
    listed = candidates(60)
    folder = audit_folder(tmp_path / "a", listed, given={listed[4].entry: "no"})
    said = driven(
        folder,
        """
  await open("index.html"); note("begin"); log.push(leaves());
  press("y"); note("yes"); press(["n", "u"]); note("no, unsure"); log.push(leaves());
  press(["ArrowRight"]); note("right"); press("k"); note("back"); press("z"); note("undo"); press(["^z"]); note("undo");
  await open("index.html?again"); note("again"); log.push(leaves());
  press("g"); note("grid"); press("Y"); note("rest"); press("z"); note("undone");
  at("class").selectedIndex = 1; at("class").dispatchEvent(new Event("change")); press("N"); note("class");
  await open("index.html"); note("restored");
  log.push(at("question").ownerDocument.title);
  frame.contentWindow.HTMLAnchorElement.prototype.click = () => {};
  frame.contentWindow.URL.createObjectURL = blob => { frame.saved = blob.text(); return "#"; };
  at("save").click(); log.push(leaves()); log.push(await frame.saved);
""",
    )
    assert not [line for line in said if "ERROR" in str(line) or "FAILED" in str(line)], said
    texts = [str(line).split(" | ") for line in said]
    begin, untouched, yes, three, touched, right, back, undone, twice, again, kept, *more = texts
    assert begin[1] == "1 of 60 answered: 0 yes, 1 no, 0 unsure"
    assert untouched == ["True"]
    assert yes[1:3] == ["2 of 60 answered: 1 yes, 1 no, 0 unsure", "2."]
    assert three[1:3] == ["4 of 60 answered: 1 yes, 2 no, 1 unsure", "4."]
    assert touched == kept == ["False"]  # the browser asks before it leaves
    assert right[2] == "5."
    assert back[2] == "4."
    assert undone[1:4] == ["3 of 60 answered: 1 yes, 2 no, 0 unsure", "3.", "One answer taken back."]
    assert twice[1:3] == again[1:3] == ["2 of 60 answered: 1 yes, 1 no, 0 unsure", "2."]
    grid, rest, undo, one_class, restored, title, saved, _ = more
    assert grid[4].split() == ["yes", "-", "-", "-", "no", *["-"] * 43]
    assert rest[1] == "48 of 60 answered: 47 yes, 1 no, 0 unsure"
    assert rest[3] == '46 answered "yes"; Z takes all of them back.'
    assert undo[4] == grid[4]
    assert one_class[4].split() == ["yes", *["no"] * 19]
    assert restored[1] == "21 of 60 answered: 1 yes, 20 no, 0 unsure"
    assert title == ["mine: likely missing labels"]
    assert saved == ["True"]
    (tmp_path / ANSWERS).write_text(str(said[-1]))
    assert read_given(tmp_path / ANSWERS) == {
        one.entry: "yes" if one.rank == 1 else "no" for one in listed if one.rank == 5 or one.rank % 3 == 1
    }


@in_browser
def test_the_enlarged_place_holds_the_whole_outline_and_enough_around_it(tmp_path: Path) -> None:
    wide, small, _ = candidates(3)
    listed = [replace(wide, outline="M2 16L30 16"), replace(small, box=(8, 8, 12, 12), outline="")]
    folder = audit_folder(tmp_path / "a", listed)
    look = 'log.push(at("enlarged").querySelector("svg").getAttribute("viewBox"));'
    said = driven(folder, f'await open("index.html"); {look} press("j"); {look}')
    beyond, third = [list(map(float, one.split())) for one in said]  # x, y, width, height; of a picture of 40 x 32
    assert beyond == pytest.approx([0, 2.56, 33.6, 26.88])
    assert third == pytest.approx([10 - 40 / 6, 10 - 32 / 6, 40 / 3, 32 / 3])


@in_browser
@pytest.mark.cluster
def test_the_page_fits_narrow_and_wide_light_and_dark(tmp_path: Path) -> None:
    page = audit_folder(tmp_path / "a", candidates(60, len(HOSTILE))) / "index.html"
    for folder, flags in (("light", ()), ("dark", (DARK,))):
        (tmp_path / folder).mkdir()
        for name, one in measured({"audit": page}, tmp_path / folder, (390, 1280), *flags).items():
            assert (one["errors"], one["wide"], one["scroll"]) == ([], [], one["width"]), name


@in_browser
def test_a_served_page_writes_what_is_answered(tmp_path: Path) -> None:
    listed = candidates(7, len(HOSTILE))
    folder = audit_folder(tmp_path / "a", listed)
    script = """<pre id="log">[]</pre><script>
      const typed = key => document.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
      const until = async done => { while (!done()) await new Promise(next => setTimeout(next, 20)); };
      (async () => {
        await until(() => !document.getElementById("one").hidden);
        ["y", "n", "u", "y", "z"].forEach(typed);
        await fetched();  // as when the tab is shown again, while the answers are on their way
        const kept = answers.slice(0, 3).join();
        await until(() => !unsaved());
        const real = window.fetch;
        window.fetch = () => Promise.reject(new TypeError("Failed to fetch"));  // the server has ended
        await send(pending.set(2, "unsure"));
        const ended = [document.getElementById("state").textContent, document.getElementById("save").hidden, unsaved()];
        window.fetch = real;
        await send();
        document.getElementById("log").textContent = JSON.stringify([
          document.getElementById("state").textContent, document.getElementById("count").textContent, document.title,
          String(dispatchEvent(new Event("beforeunload", {cancelable: true}))), kept, ...ended.map(String),
          String(document.getElementById("save").hidden)]);
      })();
    </script></body>"""
    page = re.sub(r"<meta http-equiv[^>]*>", "", (folder / "index.html").read_text()).replace("</body>", script)
    book = AnswerBook(folder / ANSWERS, digest_of(listed), [one.entry for one in listed])
    with AnswerServer(
        page.replace("<html ", "<html data-served ").encode(), folder / "data", frozenset({"00001.jpg"}), book
    ) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        state, count, title, leaves, kept, ended, hidden, unsaved, hidden_again = logged(
            chromium("--dump-dom", server.address)
        )
        server.shutdown()
    assert state == f"saved in {folder / ANSWERS}"
    assert count == "3 of 7 answered: 1 yes, 1 no, 1 unsure"
    assert title == "mine: likely missing labels"
    assert leaves == "true"  # everything is written, so that nothing is asked
    assert kept == "yes,no,unsure"  # not what the file held before they came
    assert ended.startswith("NOT SAVED, trying again: raypaml audit --serve has ended, or cannot be reached. Save")
    assert (hidden, unsaved, hidden_again) == ("false", "true", "true")  # they can be saved as a file until it is back
    assert list(read_given(folder / ANSWERS).values()) == ["yes", "no", "unsure"]

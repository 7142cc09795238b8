"""The one look of all pages: colours that can be read, the frame of every page, and what a browser makes of it."""

from __future__ import annotations

import json
import re
import resource
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

import raypaml
from raypaml.recipes import recipe
from raypaml.reports.pages import fill_template, page_json, script_source
from raypaml.reports.plots import BLUE, STYLE, TOKENS, panels, plots
from tests.browser import measured
from tests.test_reports import USAGE, record
from tools.bench.hostile_pages import experiment_page, hostile_names, hostile_pages, search_page
from tools.browser import CHROMIUM, DARK, WHY_NOT, chromium
from tools.screenshots import MOST_BYTES, in_few_colours, screenshot

CHECKOUT = Path(raypaml.__file__).parent.parent
STYLE_SHEET = (CHECKOUT / "raypaml/reports/style.css").read_text()
TEMPLATES = sorted(path for room in ("raypaml", "tools") for path in (CHECKOUT / room).rglob("*.html.j2"))
FRAME = {"page.html.j2", "macros.html.j2", "classes.html.j2"}  # the last is a part of a run's page
HOSTILE = '"><script>alert(1)</script>' + 60 * "Ȧ_" + " $x$ {{ 7 }} ‮"
"""A name that would break out of a page that took it as it is, and that is longer than any column."""


# --- Colours ----------------------------------------------------------------------------------------------------------


def palette(*, dark: bool) -> dict[str, str]:
    """The variables of the style sheet with a colour."""
    light, night = re.split(r"@media screen and \(prefers-color-scheme: dark\)", STYLE_SHEET)
    own = dict(re.findall(r"--([\w]+): (#[0-9a-f]{6})", light))
    return own | dict(re.findall(r"--([\w]+): (#[0-9a-f]{6})", night)) if dark else own


def contrast(one: str, other: str) -> float:
    """The contrast of two colours by WCAG 2.2."""

    def luminance(colour: str) -> float:
        parts = np.array([int(colour[n : n + 2], 16) for n in (1, 3, 5)]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_every_pair_of_colours_can_be_told_apart(dark: bool) -> None:
    colours = palette(dark=dark)
    text = {(name, "page"): 4.5 for name in ("ink", "muted", "link", "good", "bad", "unsure", "orange", "blue")}
    text |= {(name, "raised"): 4.5 for name in ("ink", "muted", "link")}
    marks = {(name, "page"): 3.0 for name in ("grey", "green", "purple", "red")}
    low = {pair: contrast(*(colours[name] for name in pair)) for pair in text | marks}
    assert {pair: found for pair, found in low.items() if found < (text | marks)[pair]} == {}
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)  # as published


def test_the_colours_of_drawings_are_those_of_the_style_sheet() -> None:
    light, dark = palette(dark=False), palette(dark=True)
    assert set(light) == set(dark) == {name for name in light if light[name] != dark[name]}
    assert {colour: light[name] for colour, name in TOKENS.items() if name != "ink"} == {
        colour: colour for colour in TOKENS if TOKENS[colour] != "ink"
    }


# --- Templates and panels ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [path for path in TEMPLATES if path.name not in FRAME], ids=lambda path: path.name)
def test_every_page_has_the_frame_and_no_style_of_its_own(template: Path) -> None:
    text = template.read_text()
    assert text.startswith('{% extends "page.html.j2" %}')
    assert not re.search(r"""<style|style="(?!--)|<table|<script(?! type=.application/json)|https?:|\son\w+=""", text)


def test_a_page_lets_its_own_script_run_and_no_other(tmp_path: Path) -> None:
    page = '{% extends "page.html.j2" %}{% block title %}{{ name }}{% endblock %}{% block main %}{% endblock %}'
    (tmp_path / "still.html.j2").write_text(page)
    still = fill_template(tmp_path / "still.html.j2", name=HOSTILE)
    program = 'const name = "a";'
    (tmp_path / "moving.html.j2").write_text(page + "{% block script %}" + program + "{% endblock %}")
    moving = fill_template(tmp_path / "moving.html.j2", name="")
    assert "default-src 'none'" in still
    assert "script-src 'none'" in still
    assert "<script" not in still
    assert f"script-src {script_source(program)};" in moving
    assert f"<script>{program}</script>" in moving
    assert "\u202e" not in still  # it would turn round what follows the name
    assert "&#34;&gt;&lt;script&gt;alert(1)" in still
    assert script_source("alert(1)") == "'sha256-bhHHL3z2vDgxUt0W3dWQOrprscmda2Y5pLsLg4GF+pI='"


def test_data_of_a_page_are_utf_8_and_end_no_script() -> None:
    said = page_json(["</script>", "\U0001f469", "half \udc80"])
    assert said == '["</script>","\U0001f469","half \\udc80"]'  # jinja's tojson escapes what would end the script
    assert len(said.encode()) == 34
    assert json.loads(said)[2] == "half \udc80"


def test_a_panel_has_title_legend_and_words_as_text() -> None:
    with mpl.rc_context(STYLE):
        left, right = panels(2)
        left.plot([1, 2, 3], [3, 2, 5], color=BLUE, label=HOSTILE)
        left.axhline(4, color=BLUE)
        left.set(title="loss <b>", xlabel="epoch")
        right.bar(["G1", "G2"], [0.25, 2], label="bars")
        drawn = plots(left, right)
    first, second = drawn.split("</figure>")[:2]
    assert "<figcaption>loss &lt;b&gt;<span" in first
    assert '<span class="key line" style="--key: var(--blue, #2f6db5)">' in first
    assert "&lt;script&gt;" in first
    assert "<script" not in drawn
    assert re.search(r'role="img" aria-label="loss &lt;b&gt;. epoch. .*: 3 at 1, 5 at 3"', first)
    assert 'aria-label="G1 0.25, G2 2"' in second
    assert "stroke: var(--blue, #2f6db5)" in first
    assert ">epoch</text>" in first
    (marks,) = panels(1)
    marks.plot(["G1"], [0.2], marker="_", ls="", label="chance")
    assert '<span class="key line"' in plots(marks)  # as it is drawn
    assert "loss" not in first.split("<svg")[1].split(">", 1)[1]  # the title does not stand in the drawing again


# --- Pages ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pages(trained: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages of a run and of its maps, of a search, and of an experiment, with hostile names."""
    folder = tmp_path_factory.mktemp("pages")
    shutil.copy(trained[0] / "report.html", folder / "run.html")
    run = raypaml.Run.open(trained[0], progress=False)
    run.explain(limit=40, rows=6, out=folder / "maps")
    searched = recipe("digits").override({"storage": str(folder), "name": "search", "epochs": 3})
    return {
        "run": folder / "run.html",
        "maps": folder / "maps" / "explanations.html",
        "search": search_page(searched, [record(n, 10 * n, 5 * n) | USAGE for n in range(3)], HOSTILE, trials=8),
        "experiment": experiment_page(folder, [record(n, 10 * n, 5 * n) for n in range(4)], HOSTILE, 2, {}),
    }


@pytest.fixture(scope="module")
def vast(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages of a run on 5,000 classes of hostile names, of its maps and audit, of a search and of an experiment."""
    return hostile_pages(tmp_path_factory.mktemp("vast"), classes=5000, listed=2000, trials=20, seeds=2)


def test_hostile_names_are_different_and_long() -> None:
    names = hostile_names(5000)
    assert len(set(names)) == 5000
    assert {len(name) for name in names} == {300}
    assert all(any(sign in name for name in names) for sign in ('"', "'", "<script>", "\u202e", "\U0001f469", "\n"))


@pytest.mark.cluster
@pytest.mark.skipif(not CHROMIUM, reason=WHY_NOT)
def test_pages_of_5000_classes_with_hostile_names_are_small_quick_and_sound(
    vast: dict[str, Path], tmp_path: Path
) -> None:
    empty = _processor_seconds("about:blank")
    for page in vast.values():
        assert page.stat().st_size < 15_000_000
        assert _processor_seconds(page.as_uri()) - empty < 4  # measured: 0.6; of all threads
    for name, one in measured(vast, tmp_path).items():
        assert (one["errors"], one["pwned"], one["wide"], one["scroll"]) == ([], False, [], one["width"]), name


def _processor_seconds(address: str) -> float:
    """What it takes to open a page; unlike the time on the clock, hardly more where other processes work too."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    chromium("--dump-dom", address)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


class Outline(HTMLParser):
    """What a screen reader goes by."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def faults(self) -> Iterator[str]:
        """What is missing or in the wrong order."""
        levels = [int(tag[1]) for tag, _ in self.tags if re.fullmatch("h[1-6]", tag)]
        if levels[:1] != [1] or levels.count(1) != 1 or any(after > before + 1 for before, after in pairwise(levels)):
            yield f"headings {levels}"
        for tag, given in self.tags:
            if (tag == "img" and not given.get("alt")) or (tag == "svg" and not given.get("aria-label")):
                yield f"{tag} without words"
            if tag == "th" and given.get("scope") not in ("col", "row"):
                yield f"th {given}"
            if tag in ("link", "iframe") or (given.get("src") or "data:")[:5] not in ("data:", "data/"):
                yield f"{tag} {given}"
        ids = [given["id"] for tag, given in self.tags if "id" in given and tag not in ("path", "clippath", "image")]
        yield from {f"id {one} stands twice" for one in ids if ids.count(one) > 1}


def test_on_paper_the_heading_of_all_classes_stands_over_a_sentence(pages: dict[str, Path]) -> None:
    assert "@media print { #classes { display: none } .paper { display: block } }" in STYLE_SHEET
    shown = re.search(r"<h3>All classes</h3>(.*?)<div id=.classes. hidden>", pages["run"].read_text(), re.DOTALL)
    assert shown is not None
    assert '<p class="paper">The table of all classes is on the screen; ' in shown[1]


def test_a_search_names_all_its_lines(pages: dict[str, Path]) -> None:
    page = pages["search"].read_text()
    assert page.count(">other trials</span>") == page.count(">starting point: ") == page.count(">best: ") == 4


def test_a_screen_reader_finds_its_way(pages: dict[str, Path]) -> None:
    for name, page in pages.items():
        assert list(Outline(page.read_text()).faults()) == [], name


@pytest.mark.skipif(not CHROMIUM, reason=WHY_NOT)
def test_a_browser_shows_every_page_without_errors_or_overflow_and_sees_a_faulty_one(
    pages: dict[str, Path], tmp_path: Path
) -> None:
    for name in ("light", "dark"):
        (tmp_path / name).mkdir()
    light = measured(pages | {"faulty": _faulty_page(tmp_path)}, tmp_path / "light")
    dark = measured(pages, tmp_path / "dark", (390,), DARK)
    faulty, _ = light.pop("faulty 390"), light.pop("faulty 1280")
    assert set(light) == {f"{name} {width}" for name in pages for width in (390, 1280)}
    for name, one in [*light.items(), *dark.items()]:
        assert (one["errors"], one["wide"], one["scroll"]) == ([], [], one["width"]), name
        assert "Test mAP by class group" not in one["scrolling"], name
    backgrounds = {one["background"] for one in light.values()}, {one["background"] for one in dark.values()}
    assert backgrounds == ({_rgb(palette(dark=False)["page"])}, {_rgb(palette(dark=True)["page"])})
    assert faulty["scroll"] > 700
    assert faulty["wide"]
    assert any(error.startswith("refused: img-src https://x.org") for error in faulty["errors"])
    assert any(error.startswith("refused: script-src-elem inline") for error in faulty["errors"])


def _faulty_page(folder: Path) -> Path:
    """A page that is too wide, and that asks for a picture and a script which its policy refuses."""
    wide = (
        '{% extends "page.html.j2" %}{% block main %}<div style="width: 700px">x</div><img src="https://x.org/y.png">'
    )
    (folder / "faulty.html.j2").write_text(wide + "<script>alert(1)</script>{% endblock %}")
    (folder / "faulty.html").write_text(fill_template(folder / "faulty.html.j2"))
    return folder / "faulty.html"


@pytest.mark.cluster
@pytest.mark.skipif(not CHROMIUM, reason=WHY_NOT)
def test_a_screenshot_is_of_the_width_of_a_telephone_and_small(pages: dict[str, Path], tmp_path: Path) -> None:
    screenshot(pages["search"], tmp_path / "phone.png", 390, 700, dark=True)
    with Image.open(tmp_path / "phone.png") as picture:
        assert picture.size == (390, 700)
        assert _rgb(palette(dark=True)["page"]) == f"rgb{picture.convert('RGB').getpixel((2, 2))}"
    assert (tmp_path / "phone.png").stat().st_size < MOST_BYTES


def test_a_picture_in_few_colours_keeps_those_of_text_and_drawings() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    noise[:100], noise[100, :40], noise[101, :40] = 255, (0x2F, 0x6D, 0xB5), (0x30, 0x6D, 0xB5)
    few = np.asarray(in_few_colours(Image.fromarray(noise)).convert("RGB"))
    assert (few[:100] == 255).all()
    assert (few[100:102, :40] == noise[100:102, :40]).all()
    assert np.abs(few.astype(int) - noise).mean() < 40


def _rgb(colour: str) -> str:
    return f"rgb({', '.join(str(int(colour[n : n + 2], 16)) for n in (1, 3, 5))})"

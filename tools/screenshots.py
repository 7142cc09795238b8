"""Takes the pictures of pages that the READMEs show, with headless Chromium.

    python -m tools.screenshots FOLDER              # trains, searches and audits in FOLDER first: about 15 minutes
    python -m tools.screenshots FOLDER --out DIR    # into DIR instead of the rooms' folders

A page that FOLDER has already is not made again, so that an interrupted call goes on. A folder of one's own runs does
too: it needs `run/`, `full/` (the same data with full labels) and `search/`.
"""

from __future__ import annotations

import argparse
import html
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.spatial import cKDTree

from raypaml.cli import run_command, say
from tools.browser import CHROMIUM, DARK, WHY_NOT, chromium

ROOT = Path(__file__).parent.parent
MOST_BYTES = 300_000
COLOURS = 256
"""Colours of a picture that would be too large with all."""
_FRAME = """<!doctype html><meta name="color-scheme" content="light dark"><style>body {{ margin: 0 }}</style>
<iframe src="{page}" style="width: {width}px; height: {height}px; border: 0; display: block"></iframe>"""


@dataclass(frozen=True)
class Shot:
    """A picture of the top of a page."""

    page: str
    """Its path below the folder of runs."""
    picture: str
    """The path of the picture in the checkout."""
    command: str
    """The command that makes the page, with {0} for the folder."""
    height: int
    width: int = 1180
    dark: bool = False


TRAIN = "train digits --epochs 12 --workers 1 --no-reproducible --storage {0}"
TUNE = "tune digits --search alpha,delta_rel --trials 8 --epochs 8 --warmup-epochs 3 --no-reproducible --storage {0}"
SHOTS = (
    Shot("run/report.html", "raypaml/run_report/report.png", f"{TRAIN} --name run", 1500),
    Shot("full/report.html", "", f"{TRAIN} --name full --scheme full", 0),
    Shot(
        "run/explanations/test-against-full/explanations.html",
        "raypaml/explanations/explain.png",
        "explain {0}/run --against {0}/full",
        1250,
        dark=True,
    ),
    Shot("run/audit/index.html", "raypaml/auditing/audit.png", "audit {0}/run", 1000),
    Shot("search/report.html", "raypaml/search/search.png", f"{TUNE} --name search", 1130),
    Shot("run/report.html", "raypaml/run_report/phone.png", "", 844, width=390, dark=True),
)
"""The pictures, in an order in which each command has what it needs; one without a picture is made for another."""


def screenshot(page: Path, picture: Path, width: int, height: int, *, dark: bool = False) -> None:
    """Write a picture of a page as PNG, in a palette of 256 colours if it would be larger than MOST_BYTES without.

    The page stands in a frame, because a window of Chromium is never narrower than 500 pixels.

    Raises:
        ValueError: there is no Chromium, or the picture is larger than MOST_BYTES.
    """
    with tempfile.TemporaryDirectory() as folder:
        frame, raw = Path(folder, "frame.html"), Path(folder, "raw.png")
        frame.write_text(_FRAME.format(page=html.escape(page.resolve().as_uri()), width=width, height=height))
        size = f"--window-size={max(width, 500)},{height}"
        chromium(size, f"--screenshot={raw}", *([DARK] if dark else []), frame.as_uri())
        with Image.open(raw) as image:
            shown = image.convert("RGB").crop((0, 0, width, height))
    shown.save(picture, optimize=True)
    if picture.stat().st_size > MOST_BYTES:
        in_few_colours(shown).save(picture, optimize=True)
    if (size_of := picture.stat().st_size) > MOST_BYTES:
        raise ValueError(f"{picture}: {size_of:,} bytes; at most {MOST_BYTES:,}: take a lower part of the page")


def in_few_colours(image: Image.Image) -> Image.Image:
    """An image in 256 colours: the most frequent, which are those of text and drawings, and means of all others.

    Pillow chooses among given colours by their leading bits, so that white would become a near one.
    """
    pixels = np.asarray(image).reshape(-1, 3)
    colours, counts = np.unique(pixels, axis=0, return_counts=True)
    frequent = colours[np.argsort(-counts, kind="stable")[: COLOURS // 2]]
    means = image.quantize(COLOURS // 2, Image.Quantize.MEDIANCUT, kmeans=5).getpalette() or []
    chosen = np.concatenate([frequent, np.array(means, np.uint8).reshape(-1, 3)])
    nearest = cKDTree(chosen).query(pixels)[1].astype(np.uint8)
    few = Image.fromarray(nearest.reshape(image.height, image.width), "P")
    few.putpalette(chosen.ravel().tolist())
    return few


def main() -> int:
    """Make the pages that are missing, and their pictures."""
    parser = argparse.ArgumentParser(description="Take the pictures of pages that the READMEs show.")
    parser.add_argument("folder", type=Path, help="folder of the runs; what is missing is made")
    parser.add_argument("--out", type=Path, help="folder for the pictures [where the READMEs expect them]")
    asked = parser.parse_args()
    if not CHROMIUM:  # before a quarter of an hour of training
        raise ValueError(WHY_NOT)
    for shot in SHOTS:
        page = asked.folder / shot.page
        if not page.is_file():
            arguments = shot.command.format(asked.folder.resolve()).split()
            say(f"raypaml {' '.join(arguments)}")
            subprocess.run([sys.executable, "-m", "raypaml", *arguments], cwd=ROOT, check=True)
        if shot.picture:
            picture = asked.out / Path(shot.picture).name if asked.out else ROOT / shot.picture
            picture.parent.mkdir(parents=True, exist_ok=True)
            screenshot(page, picture, shot.width, shot.height, dark=shot.dark)
            say(f"{picture}: {picture.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    run_command(main, "python -m tools.screenshots")

"""The files of an audit: pictures, Parquet, tables for Label Studio and FiftyOne, and a page with pictures to tick."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from raypaml.explanations.gallery import SHOWN_SIDE, overlay
from raypaml.reports.pages import write_page

PICTURES = "data"
"""Folder of the pictures; FiftyOne's CSV format wants this name."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One likely missing positive."""

    rank: int
    key: str
    class_id: str
    name: str
    score: float
    """Probability, 0..1, of the tested model."""
    times: int
    """Epochs in which training rejected it; where rejected labels stay positive, those since the first rejection."""
    epochs: tuple[int, ...]
    """Which, from 0."""
    box: tuple[int, int, int, int]
    """Pixels x0 y0 x1 y1 of the place that the map points at."""
    picture: str
    """File below `data/`."""


def place(cam: NDArray[np.floating[Any]], height: int, width: int) -> tuple[int, int, int, int]:
    """The box, in pixels, around all cells of at least half the largest attribution; everything if none is positive."""
    peak = float(cam.max())
    rows, columns = np.nonzero(cam >= peak / 2 if peak > 0 else np.ones_like(cam, bool))
    down, across = height / cam.shape[0], width / cam.shape[1]
    x0, y0, x1, y1 = columns.min() * across, rows.min() * down, (columns.max() + 1) * across, (rows.max() + 1) * down
    return int(x0), int(y0), int(np.ceil(x1)), int(np.ceil(y1))


def strip(pixels: NDArray[np.uint8], cam: NDArray[np.floating[Any]], box: tuple[int, int, int, int]) -> Image.Image:
    """The image with the place outlined, the map over it, and the place enlarged, side by side."""
    image = Image.fromarray(pixels)
    plain = image.resize((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.BILINEAR)
    scale = np.array([SHOWN_SIDE / pixels.shape[1], SHOWN_SIDE / pixels.shape[0]] * 2)
    ImageDraw.Draw(plain).rectangle(tuple(np.array(box) * scale - [0, 0, 1, 1]), outline=(90, 200, 255))
    found = Image.new("RGB", (3 * SHOWN_SIDE, SHOWN_SIDE))
    found.paste(plain, (0, 0))
    found.paste(overlay(pixels, cam.clip(0) / max(float(cam.max()), 1e-9), None), (SHOWN_SIDE, 0))
    found.paste(image.crop(box).resize((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.BILINEAR), (2 * SHOWN_SIDE, 0))
    return found


def write_tables(out: Path, candidates: Sequence[Candidate]) -> None:
    """`candidates.parquet`; `labels.csv`, FiftyOne's CSVDataset with `data/`; `label_studio.csv`.

    In Label Studio, a task's picture is `$image`, below its local storage at the audit's folder; the answers it exports
    need the columns key, class, answer.
    """
    rows = [dataclasses.asdict(one) | {"epochs": ", ".join(map(str, one.epochs))} for one in candidates]
    pq.write_table(pa.Table.from_pylist(rows), out / "candidates.parquet")
    facts = [(one.key, one.class_id, one.name, f"{one.score:.4f}", one.times) for one in candidates]
    header = ("key", "class", "name", "score", "times_rejected")
    pictures = [one.picture for one in candidates]
    _write_csv(out / "labels.csv", ("filepath", *header), zip(pictures, facts, strict=True))
    local = [f"/data/local-files/?d={out.name}/{PICTURES}/{picture}" for picture in pictures]
    _write_csv(out / "label_studio.csv", ("image", *header), zip(local, facts, strict=True))
    _write_csv(out / "answers.csv", ("key", "class", "answer"), ((one.key, (one.class_id, "")) for one in candidates))


def _write_csv(path: Path, header: Sequence[str], rows: Any) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows((first, *rest) for first, rest in rows)


def write_audit_page(
    out: Path, run: Path, candidates: Sequence[Candidate], epochs: int, figures: dict[str, Any] | None
) -> None:
    """`index.html`, beside `data/`: no network, answers are saved by the browser."""
    write_page(
        out / "index.html",
        Path(__file__).with_name("audit.html.j2"),
        run=run.name,
        run_path=str(run),
        candidates=candidates,
        epochs=epochs,
        figures=figures,
    )

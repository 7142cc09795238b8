"""Writes the files of an audit: pictures, Parquet, tables for Label Studio and FiftyOne, and a page to answer on."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from raypaml.auditing.candidates import AuditFigures
from raypaml.explanations.overlays import SHOWN_SIDE, outlined, overlay
from raypaml.files import whole
from raypaml.labels import RealArray
from raypaml.reports.pages import write_page
from raypaml.spreadsheets import as_cell

PICTURES = "data"
"""Folder of the pictures, under the name that FiftyOne's CSV format prescribes."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An entry of the training labels that is likely a missing positive."""

    rank: int
    """Place in the list, from 1."""
    key: str
    """Key of the image."""
    class_id: str
    name: str
    """Name of the class."""
    score: float
    """Probability, 0..1, that the tested model gives."""
    times: int
    """Epochs in which training rejected it; where rejected labels stay positive, all since the first rejection."""
    epochs: tuple[int, ...]
    """The epochs, from 0, in which training rejected it."""
    box: tuple[int, int, int, int]
    """Pixels x0 y0 x1 y1 of the box around the largest attributions of the map."""
    picture: str
    """Name of the picture below `data/`."""
    chance: float | None = None
    """Estimated chance, 0..1, that the label is missing; None where the labels of validation cannot say."""


def place(cam: RealArray, height: int, width: int) -> tuple[int, int, int, int]:
    """The box x0 y0 x1 y1, in pixels, around all cells with at least half the largest attribution.

    Args:
        cam: [h, w] the map; where none of its values is positive, the box is the whole image.
        height, width: of the image, in pixels.
    """
    peak = float(cam.max())
    rows, columns = np.nonzero(cam >= peak / 2 if peak > 0 else np.ones_like(cam, bool))
    down, across = height / cam.shape[0], width / cam.shape[1]
    x0, y0, x1, y1 = columns.min() * across, rows.min() * down, (columns.max() + 1) * across, (rows.max() + 1) * down
    return int(x0), int(y0), int(np.ceil(x1)), int(np.ceil(y1))


def strip(pixels: NDArray[np.uint8], cam: RealArray, box: tuple[int, int, int, int]) -> Image.Image:
    """Three pictures side by side: the image with the box outlined, the image under the map, and the box enlarged."""
    side = (SHOWN_SIDE, SHOWN_SIDE)
    image = Image.fromarray(pixels)
    plain, place = (one.resize(side, Image.Resampling.BILINEAR) for one in (image, image.crop(box)))
    row = Image.new("RGB", (3 * SHOWN_SIDE, SHOWN_SIDE))
    row.paste(overlay(plain, cam.clip(0) / max(float(cam.max()), 1e-9)), (SHOWN_SIDE, 0))
    row.paste(outlined(plain, box, pixels.shape), (0, 0))
    row.paste(place, (2 * SHOWN_SIDE, 0))
    return row


def write_tables(out: Path, candidates: Sequence[Candidate]) -> None:
    """Write the list of candidates as tables, and `answers.csv` to fill in.

    `candidates.parquet` has every field. `labels.csv` and the folder `data` are a CSVDataset of FiftyOne.
    `label_studio.csv` holds tasks of Label Studio, whose picture is `$image`, for a local storage at the folder of the
    audit; the answers that are exported from there need the columns key, class and answer.
    """
    rows = [dataclasses.asdict(one) | {"epochs": ", ".join(map(str, one.epochs))} for one in candidates]
    with whole(out / "candidates.parquet") as unfinished:
        pq.write_table(pa.Table.from_pylist(rows), unfinished)
    facts = [(one.key, one.class_id, one.name, f"{one.score:.4f}", one.times) for one in candidates]
    header = ("key", "class", "name", "score", "times_rejected")
    local = f"/data/local-files/?d={out.name}/{PICTURES}/"
    tables: dict[str, list[Sequence[object]]] = {
        "labels.csv": [("filepath", *header)],
        "label_studio.csv": [("image", *header)],
        "answers.csv": [("key", "class", "answer")],
    }
    tables["labels.csv"] += [(one.picture, *row) for one, row in zip(candidates, facts, strict=True)]
    tables["label_studio.csv"] += [(local + one.picture, *row) for one, row in zip(candidates, facts, strict=True)]
    tables["answers.csv"] += [(one.key, one.class_id, "") for one in candidates]
    for name, lines in tables.items():
        with whole(out / name) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(map(as_cell, line) for line in lines)


def write_audit_page(
    out: Path, run: Path, candidates: Sequence[Candidate], epochs: int, figures: AuditFigures | None
) -> None:
    """Write `index.html`, which shows the pictures in `data`, needs no network, and lets the browser save the answers.

    Args:
        out: folder of the audit.
        run: folder of the run.
        candidates: the list.
        epochs: epochs that the run was trained; 0 where it did not record which labels it rejected.
        figures: how good the list is, where the full labels are known.
    """
    write_page(
        out / "index.html",
        Path(__file__).with_name("audit.html.j2"),
        run=run.name,
        run_path=str(run),
        candidates=candidates,
        epochs=epochs,
        figures=figures,
    )

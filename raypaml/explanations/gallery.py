"""Test images with the class activation map of each true class over them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from raypaml.data.batches import Reader
from raypaml.data.data_folder import DataFolder
from raypaml.data.index import Index
from raypaml.data.plan import Plan
from raypaml.explanations.boxes import Boxes
from raypaml.explanations.pairs import Pairs
from raypaml.labels import POSITIVE, RealArray
from raypaml.model.cam import CamClassifier, pool_parts

SHOWN_SIDE = 160
"""Width and height of a shown picture, in pixels."""
MOST_CLASSES = 6
"""Most classes whose maps are shown for one image."""


@dataclass(frozen=True)
class Tile:
    """One picture of the gallery."""

    picture: str
    """PNG as a data URI."""
    caption: str


@dataclass(frozen=True)
class Row:
    """One image and some maps of it, all on one colour scale."""

    key: str
    """Key of the image."""
    tiles: list[Tile]
    peak: float
    """The attribution that is shown at full colour: the largest of the row."""


def of_every_group(pairs: Pairs, class_group: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Choose two positive pairs of every class group: those at one third and at two thirds in the order of scores.

    Args:
        pairs: figures of the pairs of a split.
        class_group: [K] 1..5.

    Returns:
        (sample number, class column) of each chosen pair.
    """
    shown: list[tuple[int, int]] = []
    for group in np.unique(class_group):
        places = np.flatnonzero(pairs.positive & (class_group[pairs.class_index] == group))
        places = places[np.argsort(pairs.score[places], kind="stable")]
        chosen = places[[len(places) // 3, 2 * len(places) // 3]] if len(places) else places
        shown += [(int(pairs.row[n]), int(pairs.class_index[n])) for n in chosen]
    return shown


def gallery(model: CamClassifier, data: DataFolder, split: str, shown: Sequence[tuple[int, int]]) -> list[Row]:
    """A row for each pair of sample number and class column: the image, and boosted maps of its positive classes."""
    reader = _reader(data, split)
    model.eval()
    return [_row(model, data, reader, split, row, k) for row, k in shown]


def side_by_side(
    models: dict[str, CamClassifier],
    data: DataFolder,
    split: str,
    pairs: Sequence[tuple[int, int]],
    *,
    boosted: bool = True,
    boxes: Boxes | None = None,
) -> list[Row]:
    """The maps that several models make of the same image and class, on one colour scale per image.

    Args:
        models: the models, by the name that is shown.
        data, split: the images.
        pairs: (sample number, class column) of each row.
        boosted: show maps after BoostLU; otherwise raw maps.
        boxes: known boxes, in the place of the data set's own.
    """
    reader, known = _reader(data, split), boxes or data.splits[split]
    for model in models.values():
        model.eval()
    return [_compared(models, data, reader, known, row, k, boosted=boosted) for row, k in pairs]


def _compared(
    models: dict[str, CamClassifier],
    data: DataFolder,
    reader: Reader,
    known: Index | Boxes,
    row: int,
    k: int,
    *,
    boosted: bool,
) -> Row:
    pixels = reader.image(row)
    seen = {name: _look(model, pixels) for name, model in models.items()}
    maps = {name: cam[k].clip(0) * (models[name].alpha_of(k) if boosted else 1) for name, (cam, _) in seen.items()}
    peak = max(float(values.max()) for values in maps.values())
    box = next((_corners(box) for box in known.boxes(row) if box["class"] == k), None)
    key = reader.index.keys(np.array([row]))[0]
    tiles = [Tile(data_uri(_enlarged(pixels)), f"{data.vocabulary.names[k]} · {key}")]
    for name, values in maps.items():
        picture = overlay(pixels, values / max(peak, 1e-9), box)
        tiles.append(Tile(data_uri(picture), f"{name} {seen[name][1][k]:.2f}"))
    return Row(key, tiles, peak)


def _reader(data: DataFolder, split: str) -> Reader:
    plan = Plan(num_samples=len(data.splits[split]), global_batch_size=1, lanes=1, shuffle=False)
    return Reader(data.shards, data.splits[split], plan.epoch(0, 0, 1), skip_broken=True)  # reads single rows only


def _look(model: CamClassifier, pixels: NDArray[np.uint8]) -> tuple[RealArray, RealArray]:
    """The raw maps [K, h, w] of one image, and its scores [K]."""
    with torch.inference_mode():
        cam = model.cam(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None])
        above, below = pool_parts(cam)
    return cam[0].float().numpy(), torch.sigmoid(model.alpha * above + below)[0].numpy()


def _corners(box: dict[str, float]) -> tuple[float, float, float, float]:
    return box["x0"], box["y0"], box["x1"], box["y1"]


def _row(model: CamClassifier, data: DataFolder, reader: Reader, split: str, row: int, k: int) -> Row:
    """The image, the map of class `k`, and those of a few other positive classes."""
    index, group = data.splits[split], data.vocabulary.class_group
    pixels = reader.image(row)
    cam, scores = _look(model, pixels)
    others = np.flatnonzero(index.labels(np.array([row]))[0] == POSITIVE)
    classes = [k, *(int(other) for other in others if other != k)][:MOST_CLASSES]
    maps: dict[int, RealArray] = {k: model.alpha_of(k) * cam[k].clip(0) for k in classes}
    peak = max((float(values.max()) for values in maps.values()), default=0.0)
    boxes = {int(box["class"]): _corners(box) for box in index.boxes(row)}
    key = index.keys(np.array([row]))[0]
    tiles = [Tile(data_uri(_enlarged(pixels)), f"G{group[k]} · {key}")]
    for each, values in maps.items():
        picture = overlay(pixels, values / max(peak, 1e-9), boxes.get(each))
        tiles.append(Tile(data_uri(picture), f"{data.vocabulary.names[each]} {scores[each]:.2f} · G{group[each]}"))
    return Row(key, tiles, peak)


def _enlarged(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(pixels).resize((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.NEAREST)


def overlay(pixels: NDArray[np.uint8], heat: RealArray, box: tuple[float, float, float, float] | None) -> Image.Image:
    """The image in grey, with a map of values 0..1 in colour over it and, if given, a box outlined."""
    grey = np.asarray(_enlarged(pixels).convert("L").convert("RGB"), np.float32)
    smooth = Image.fromarray(heat.astype(np.float32)).resize((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.BILINEAR)
    strength = np.asarray(smooth).clip(0, 1)[..., None]
    colour = 255 * mpl.colormaps["inferno"](strength[..., 0])[..., :3]
    mixed = Image.fromarray((grey * 0.75 * (1 - strength) + colour * strength).clip(0, 255).astype(np.uint8))
    if box is not None:
        scale = np.array([SHOWN_SIDE / pixels.shape[1], SHOWN_SIDE / pixels.shape[0]] * 2)
        ImageDraw.Draw(mixed).rectangle(tuple(np.array(box) * scale - [0, 0, 1, 1]), outline=(90, 200, 255))
    return mixed


def data_uri(picture: Image.Image) -> str:
    """The picture as a PNG in a data URI, which a page holds without a further file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

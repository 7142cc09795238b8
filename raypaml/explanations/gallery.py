"""Images with the class activation maps of their classes over them, and of classes that the model sees wrongly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from raypaml.data.batches import Reader
from raypaml.data.data_folder import DataFolder
from raypaml.data.index import Index
from raypaml.data.plan import Plan
from raypaml.explanations.boxes import Boxes
from raypaml.explanations.overlays import BoxCorners, data_uri, enlarged, outlined, overlay
from raypaml.explanations.pairs import Pairs
from raypaml.labels import NEGATIVE, POSITIVE, RealArray
from raypaml.model.cam import CamClassifier, pool_parts

MOST_CLASSES = 6
"""Most classes whose maps are shown for one image."""


@dataclass(frozen=True)
class Tile:
    """One picture of the gallery."""

    picture: str
    """JPEG as a data URI."""
    caption: str
    told: str
    """The picture in words, for those who do not see it."""
    width: int
    height: int

    @classmethod
    def of(cls, picture: Image.Image, caption: str, told: str) -> Tile:
        """The tile of a picture."""
        return cls(data_uri(picture), caption, told, picture.width, picture.height)


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
    pixels, key = reader.image(row), reader.index.keys(np.array([row]))[0]
    seen = {name: _look(model, pixels) for name, model in models.items()}
    maps = {name: cam[k].clip(0) * (models[name].alpha_of(k) if boosted else 1) for name, (cam, _) in seen.items()}
    peak = max(float(values.max()) for values in maps.values())
    box = next((_corners(box) for box in known.boxes(row) if box["class"] == k), None)
    is_there = reader.index.labels(np.array([row]))[0, k] == POSITIVE
    title = f"{'' if is_there else 'no '}{data.vocabulary.names[k]}"
    tiles = [Tile.of(enlarged(pixels), f"{title} · {key}", f"image {key}")]
    for name, values in maps.items():
        caption = f"{name} · {seen[name][1][k]:.2f}"
        tiles.append(Tile.of(_drawn(pixels, values, peak, box), caption, f"map of {title} by {caption}"))
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


def _corners(box: dict[str, float]) -> BoxCorners:
    return box["x0"], box["y0"], box["x1"], box["y1"]


def _row(model: CamClassifier, data: DataFolder, reader: Reader, split: str, row: int, k: int) -> Row:
    """The image, the map of class `k`, those of a few other positive classes, and that of the surest false positive."""
    index, group, names = data.splits[split], data.vocabulary.class_group, data.vocabulary.names
    pixels, key = reader.image(row), index.keys(np.array([row]))[0]
    cam, scores = _look(model, pixels)
    labels = index.labels(np.array([row]))[0]
    others = [int(other) for other in np.flatnonzero(labels == POSITIVE) if other != k]
    wrong = np.flatnonzero((labels == NEGATIVE) & (scores >= 0.5))
    classes = [k, *others][:MOST_CLASSES] + wrong[np.argsort(-scores[wrong])][:1].tolist()
    maps: dict[int, RealArray] = {k: model.alpha_of(k) * cam[k].clip(0) for k in classes}
    peak = max((float(values.max()) for values in maps.values()), default=0.0)
    boxes = {int(box["class"]): _corners(box) for box in index.boxes(row)}
    tiles = [Tile.of(enlarged(pixels), f"G{group[k]} · {key}", f"image {key}")]
    for each, values in maps.items():
        what = "" if labels[each] == POSITIVE else "false: "
        caption = f"{what}{names[each]} · {scores[each]:.2f} · G{group[each]}"
        tiles.append(Tile.of(_drawn(pixels, values, peak, boxes.get(each)), caption, f"map of {caption}"))
    return Row(key, tiles, peak)


def _drawn(pixels: NDArray[np.uint8], values: RealArray, peak: float, box: BoxCorners | None) -> Image.Image:
    """The image with a map over it, on the scale that ends at `peak`, and a known box."""
    return outlined(overlay(enlarged(pixels), values / max(peak, 1e-9)), box, pixels.shape)

"""The embedded data set `digits`: scenes of coloured handwritten digits, 50 long-tailed classes, full labels known.

A scene of 64 x 64 pixels shows one to four of the 1,797 handwritten digits (8 x 8 pixels, from the UCI repository) that
come with scikit-learn, enlarged and coloured, on a noisy background; their boxes are known. A class is a digit and a
colour. The three splits use different handwritten digits. Training labels are then hidden (`HIDINGS`); validation and
test keep their full labels, as in the published protocol.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from raypaml.data.label_forms import Box
from raypaml.data.shards import Sample, write_dataset
from raypaml.files import kept_in, sweep, user_cache, whole_folder

SIDE = 64
"""The side of a scene in pixels."""
COLOURS = {
    "red": (235, 55, 45),
    "green": (50, 205, 70),
    "blue": (70, 105, 250),
    "yellow": (240, 220, 50),
    "pink": (235, 90, 215),
}
CLASS_IDS = tuple(f"{colour}_{digit}" for colour in COLOURS for digit in range(10))
NAMES = tuple(f"{colour} {digit}" for colour in COLOURS for digit in range(10))
NUM_SCENES = {"train": 12000, "validation": 1000, "test": 2000}
HANDWRITING = {"train": slice(0, 1000), "validation": slice(1000, 1300), "test": slice(1300, 1797)}
TAIL_EXPONENT = 0.7
"""The r-th most frequent class is drawn with a probability proportional to r ** -TAIL_EXPONENT, at most once a
scene."""
VERSION = 2
"""A part of the cache folder's name; increase it when a change alters the bytes of the data set."""

Rng = np.random.Generator


@dataclass(frozen=True)
class Scene:
    """One image with its classes and their boxes."""

    pixels: NDArray[np.uint8]
    classes: tuple[int, ...]
    boxes: tuple[tuple[float, float, float, float], ...]


def class_weights(seed: int) -> NDArray[np.float64]:
    """[50] probability of each class: a long-tailed distribution over the classes in random order."""
    ranks = np.random.default_rng([seed, 0]).permutation(len(CLASS_IDS)) + 1
    weights = ranks**-TAIL_EXPONENT
    return np.asarray(weights / weights.sum())


def draw_scene(rng: Rng, glyphs: NDArray[np.uint8], digits: NDArray[np.int64], weights: NDArray[np.float64]) -> Scene:
    """Compose one scene of one to four different classes that hardly overlap."""
    classes = rng.choice(len(weights), size=rng.integers(1, 5), replace=False, p=weights)
    blotches = Image.fromarray(rng.integers(0, 60, (4, 4, 3), dtype=np.uint8))  # a dark background, with noise
    pixels = np.asarray(blotches.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32)
    pixels = pixels + rng.normal(0, 8, pixels.shape).astype(np.float32)
    boxes: list[tuple[float, float, float, float]] = []
    for k in classes:
        colour, digit = divmod(int(k), 10)
        glyph = glyphs[rng.choice(np.flatnonzero(digits == digit))]
        side = int(rng.integers(22, 31))
        x, y = _place(rng, boxes, side)
        ink = np.asarray(Image.fromarray(glyph).resize((side, side), Image.Resampling.BICUBIC), np.float32) / 255
        shade = np.array(list(COLOURS.values())[colour], np.float32) * rng.uniform(0.75, 1.05)
        patch = pixels[y : y + side, x : x + side]
        patch[:] = patch * (1 - ink[..., None]) + shade * ink[..., None]
        boxes.append((x, y, x + side, y + side))
    return Scene(pixels.clip(0, 255).astype(np.uint8), tuple(int(k) for k in classes), tuple(boxes))


def _place(rng: Rng, boxes: list[tuple[float, float, float, float]], side: int) -> tuple[int, int]:
    """The top left corner (x, y) of a new digit: among twelve random ones, the one that covers least of the others."""
    places = rng.integers(0, SIDE - side + 1, (12, 2))
    if not boxes:
        return int(places[0, 0]), int(places[0, 1])
    corners = np.array(boxes)
    # [places, boxes, x y]: overlap along each axis
    low = np.maximum(places[:, None, :], corners[None, :, :2])
    high = np.minimum(places[:, None, :] + side, corners[None, :, 2:])
    covered = (high - low).clip(0).prod(-1).sum(-1)
    x, y = places[int(covered.argmin())]
    return int(x), int(y)


def hide_single_positive(
    rng: Rng, truth: tuple[int, ...], _weights: NDArray[np.float64]
) -> tuple[list[int], list[int]]:
    """Keep one random positive and hide everything else (Cole et al., CVPR 2021)."""
    return [int(rng.choice(truth))], []


def hide_verified(rng: Rng, truth: tuple[int, ...], weights: NDArray[np.float64]) -> tuple[list[int], list[int]]:
    """Keep a few verified entries, of frequent classes more often, as in OpenImages.

    Each positive is kept with probability 0.6 x (w / max w) ** 0.25, at least one per image, and four negatives are
    drawn with probabilities proportional to w ** 0.5, where w is the frequency of the class.
    """
    seen = [k for k in truth if rng.random() < 0.6 * (weights[k] / weights.max()) ** 0.25]
    absent = np.setdiff1d(np.arange(len(weights)), truth)
    odds = weights[absent] ** 0.5
    negatives = rng.choice(absent, size=4, replace=False, p=odds / odds.sum())
    return seen or [int(rng.choice(truth))], [int(k) for k in negatives]


HIDINGS: dict[str, Callable[[Rng, tuple[int, ...], NDArray[np.float64]], tuple[list[int], list[int]]]] = {
    "single_positive": hide_single_positive,
    "verified": hide_verified,
}


def scenes(split: str, hiding: str, seed: int, count: int) -> Iterator[Sample]:
    """The samples of one split; which labels are hidden does not affect the scenes."""
    from sklearn.datasets import load_digits  # imported here because it is slow and needed once

    images, digits = load_digits(return_X_y=True)
    order = np.random.default_rng([seed, 1]).permutation(len(digits))[HANDWRITING[split]]
    glyphs = (images.reshape(-1, 8, 8)[order] * (255 / 16)).astype(np.uint8)
    weights = class_weights(seed)
    for number in range(count):
        stream = list(NUM_SCENES).index(split)
        scene = draw_scene(np.random.default_rng([seed, 2, stream, number]), glyphs, digits[order], weights)
        if split == "train":
            rng = np.random.default_rng([seed, 3, stream, number])
            positive, negative = HIDINGS[hiding](rng, scene.classes, weights)
        else:
            positive, negative = list(scene.classes), [k for k in range(len(weights)) if k not in scene.classes]
        yield _sample(f"{split}-{number:06d}", scene, positive, negative)


def _sample(key: str, scene: Scene, positive: list[int], negative: list[int]) -> Sample:
    buffer = io.BytesIO()
    Image.fromarray(scene.pixels).save(buffer, "JPEG", quality=90, subsampling=0)
    boxes: tuple[Box, ...] = tuple((CLASS_IDS[k], *box) for k, box in zip(scene.classes, scene.boxes, strict=True))
    ids = partial(map, CLASS_IDS.__getitem__)
    return Sample(
        key=key,
        image=buffer.getvalue(),
        positive=tuple(ids(positive)),
        negative=tuple(ids(negative)),
        truth=tuple(ids(scene.classes)),
        boxes=boxes,
    )


def digits_folder(
    hiding: str = "single_positive",
    seed: int = 0,
    num_scenes: dict[str, int] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """The folder of the data set, written on first use into the user's cache (`XDG_CACHE_HOME` or ~/.cache).

    Args:
        hiding: how training labels are hidden, one of HIDINGS.
        seed: seed of the split of the handwritten digits, of the scenes and of the hidden labels.
        num_scenes: number of scenes per split, for tests; None: NUM_SCENES.
        say: takes a line if the data set has to be written first.
    """
    if hiding not in HIDINGS:
        raise ValueError(f"digits: no hiding {hiding!r}; known: {', '.join(HIDINGS)}")
    counts = num_scenes or NUM_SCENES
    size = "-".join(str(counts[split]) for split in NUM_SCENES)
    folder = user_cache() / f"digits-v{VERSION}-{hiding}-{size}-seed{seed}"
    if not folder.is_dir():
        say(f"writing the embedded data set into {folder} (once, about 15 s)")
        sweep(kept_in(folder.parent), "digits-*", shared=True)
        splits = {split: scenes(split, hiding, seed, counts[split]) for split in counts}
        # whole or not at all; of two processes that write it at the same time, one's result is kept
        with whole_folder(folder, shared=True) as unfinished:
            write_dataset(unfinished, splits, CLASS_IDS, NAMES)
    return folder

"""Makes the images for `tools/bench/loader.py`, from photographs or generated, as image files and as shards."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from raypaml.data.shards import Sample, write_dataset

CLASSES, PER_SHARD = 5000, 500


def generated(number: int) -> Image.Image:
    """Generates an image of 1024 x 1024 px: noise whose energy lies mostly in low frequencies, as in a photograph."""
    rng = np.random.default_rng(number)
    pixels = rng.normal(0, 1.5, (1024, 1024, 3))
    for cells, weight in ((4, 0.46), (16, 0.31), (64, 0.15), (256, 0.08)):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        pixels += 1.6 * weight * np.asarray(noise.resize((1024, 1024), Image.Resampling.BICUBIC), np.float32)
    return Image.fromarray((pixels - 80).clip(0, 255).astype(np.uint8))


def photographs(folder: Path | None, count: int) -> Iterator[Image.Image]:
    """Returns this many square images of 1024 px."""
    if folder is None:
        yield from map(generated, range(count))
        return
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not paths:
        raise ValueError(f"{folder}: no JPEGs")
    for path in islice(paths, count):
        with Image.open(path) as image:
            yield image.convert("RGB").resize((1024, 1024), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, quality: int) -> bytes:
    """Encodes an image as JPEG with 4:2:0 chroma subsampling."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def prepare(work: Path, images: Path | None, count: int, samples: int) -> None:
    """Writes `originals/` (1024 px) and `shards/` (448 px); where there are more samples than images, they repeat."""
    (work / "originals").mkdir()
    (work / "shards").mkdir()
    small: list[bytes] = []
    for number, image in enumerate(photographs(images, count)):
        (work / "originals" / f"{number:06d}.jpg").write_bytes(jpeg(image, 88))
        small.append(jpeg(image.resize((448, 448), Image.Resampling.LANCZOS), 90))
    rng = np.random.default_rng(0)
    ids = [f"/m/{k:05d}" for k in range(CLASSES)]

    def sample(split: str, number: int) -> Sample:
        positive, negative = np.split(rng.permutation(CLASSES)[:8], [3])
        return Sample(
            key=f"{split}-{number}",
            image=small[number % len(small)],
            positive=tuple(ids[k] for k in positive),
            negative=tuple(ids[k] for k in negative),
        )

    sizes = {"train": samples, "validation": 1, "test": 1}
    splits = {split: (sample(split, n) for n in range(size)) for split, size in sizes.items()}
    write_dataset(work / "shards", splits, ids, ids, PER_SHARD)

"""Reads the first images, to see whether they exist, how large they become, and how long the work will take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from raypaml.preparation.image_form import ImageForm, convert
from raypaml.preparation.image_store import Archives, Fetched, KeyAndFile, Store, archive_members, converted

PROBE_IMAGES = 64
"""Images that are read before the work begins."""


@dataclass(frozen=True)
class Probe:
    """What was measured on the first images."""

    asked: int
    """Images that were requested."""
    written: int
    """Images that were found and converted."""
    bytes_read: float
    """Mean size of the source files that were found."""
    bytes_written: float
    """Mean size of the converted images."""
    seconds: float
    """Wall-clock time per image, in one process."""
    processor_seconds: float
    """Processor time of all threads per image; more processes than cores do not shorten it."""

    def seconds_for(self, images: int, workers: int, cores: int) -> float:
        """Returns the seconds that so many images take, never less than the processors need for them."""
        return images * max(self.seconds / workers, self.processor_seconds / min(workers, cores))


def probe(source: Store | Archives, split: str, asked: Sequence[KeyAndFile], form: ImageForm) -> Probe:
    """Fetches and converts the first images in the order of the shards, or those of the first archive in its order.

    Args:
        source: where the images are.
        split: name of the split, for messages.
        asked: the images; of archives those that the first one may hold.
        form: what they are converted to.

    Raises:
        ValueError: none of them exists, or none may be read.
    """
    began, processor_began = time.monotonic(), time.process_time()
    if isinstance(source, Archives):
        wanted = {key for key, _ in asked}
        members = islice((item for item in archive_members(source.files[0]) if item[0] in wanted), PROBE_IMAGES)
        images = [converted(key, content(), lambda content: convert(content, form)) for key, content in members]
        where = str(source.files[0])
    else:
        images = list(source.fetch(asked[:PROBE_IMAGES], lambda content: convert(content, form)))
        where = str(source.root / asked[0][1])
    seconds, processor = time.monotonic() - began, time.process_time() - processor_began
    _check(images, split, where)
    written = [len(image.content) for image in images if image.fate == "written"]
    read = [image.size for image in images if image.size]
    return Probe(
        asked=len(images),
        written=len(written),
        bytes_read=sum(read) / max(len(read), 1),
        bytes_written=sum(written) / max(len(written), 1),
        seconds=seconds / max(len(images), 1),
        processor_seconds=processor / max(len(images), 1),
    )


def _check(images: Sequence[Fetched], split: str, where: str) -> None:
    denied = [image for image in images if image.fate == "denied"]
    if denied and {image.fate for image in images} <= {"denied", "not_found"}:
        raise ValueError(
            f"{where}: {len(denied)} of the first {len(images)} labelled images of split {split!r} may not be read, "
            f"such as {denied[0].key} ({denied[0].detail}), and the others do not exist"
        )
    if all(image.fate == "not_found" for image in images):
        raise ValueError(
            f"{where}: none of the first {len(images)} labelled images of split {split!r} is there; "
            "give --images the folder or address that holds the images as the labels name them (FILE, or SPLIT/FILE "
            "where they name the split); for Open Images it holds KEY.jpg, SPLIT/KEY.jpg or SPLIT*.tar.gz"
        )

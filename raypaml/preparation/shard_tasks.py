"""Tasks that write shards: one for each shard or, where images are in archives, one for all shards of an archive.

A task writes a receipt after each shard; a shard with a receipt is finished and never written again. Both depend on
nothing but the job and the images, so the bytes are the same for any number of workers and after any interruption.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

import numpy as np
import pyarrow as pa

from raypaml.data.index_table import SCHEMA
from raypaml.data.shards import Sample, write_shard
from raypaml.data.storage import Location, brief
from raypaml.files import write_whole
from raypaml.preparation.image_form import Converted, ImageForm, convert
from raypaml.preparation.image_store import Fetched, KeyAndFile, Store, archive_members, converted
from raypaml.preparation.in_order import in_order
from raypaml.preparation.requests import KNOWN, LABELS, SourceBox, types_first
from raypaml.sealed_tables import map_arrow, write_arrow

NOTE_SECONDS = 1.0
"""Seconds between two updates of the file that counts the images of an unfinished shard."""
CONVERTERS = 4
"""Threads that convert the images of one archive."""
PLACE = ("offset", "size", "crc32")
RECEIPT = pa.schema(
    [
        ("key", pa.string()),
        ("file", pa.string()),
        ("fate", pa.string()),
        ("detail", pa.string()),
        *(SCHEMA.field(name) for name in (*PLACE, *LABELS, *KNOWN)),
    ]
)
"""A row for each requested image; its place is null where it was not written."""


class _Request(TypedDict):
    """A row of `requests.REQUEST`."""

    key: str
    file: str | None
    positives: list[int]
    negatives: list[int]
    truth: list[int] | None
    boxes: list[SourceBox] | None


@dataclass(frozen=True)
class ShardJob:
    """What the shards of one split have in common; it is sent to the workers."""

    work: Path
    """Folder for shards and receipts until the split is finished; all workers can write to it."""
    class_ids: tuple[str, ...]
    form: ImageForm
    seed: int
    shard_samples: int
    """Images requested per shard."""
    flat: bool = True
    """Whether labels are written as flat JSON, see `data.shards.write_shard`."""

    def receipt(self, name: str) -> Path:
        """Returns the path of the receipt of this shard."""
        return self.work / f"{name}.arrow"

    def shard(self, name: str) -> Path:
        """Returns the path of this shard until the split is finished."""
        return self.work / f"{name}.tar"

    def count(self, name: str) -> Path:
        """Returns the path of the file that counts the images of this shard that are ready, while it is unfinished."""
        return self.work / f"{name}.count"

    def order(self, requests: pa.Table) -> pa.Table:
        """Returns these requests in the order of their shard."""
        if not self.flat:
            return requests
        return requests.take(pa.array(types_first(requests, np.arange(len(requests))))).combine_chunks()

    def convert(self, content: bytes) -> Converted:
        """Converts an image into the form of this data set."""
        return convert(content, self.form)


def write_store_shard(job: ShardJob, name: str, requests: pa.Table, store: Store) -> None:
    """Writes the shard of these images (rows of requests.REQUEST, in this order) from single files."""
    requests = job.order(requests)
    images = store.fetch(keys_and_files(requests), job.convert)
    write_fetched_shard(job, name, requests, counted_in(job.count(name), images))


def keys_and_files(requests: pa.Table) -> list[KeyAndFile]:
    """Returns key and file of each request."""
    keys, files = (requests[column].to_pylist() for column in ("key", "file"))
    return [(key, file or f"{key}.jpg") for key, file in zip(keys, files, strict=True)]


def write_archive_shards(job: ShardJob, unit: str, requests: pa.Table, archive: Location) -> None:
    """Writes the shards `UNIT-000000`, ... of the requested images of one archive in a single pass through it.

    Each shard takes the next `shard_samples` images of the archive and shuffles them. A second image of the same key is
    ignored. An image that the archive lacks has no receipt. `UNIT.done`, written last, says that the archive was read
    to its end.
    """
    row_of = {key: row for row, key in enumerate(requests["key"].to_pylist())}
    wanted = _each_once(archive_members(archive), row_of)
    number = 0
    while block := _next_block(job, f"{unit}-{number:06d}", wanted):
        number += 1
        name, rows, images = block
        if images is not None:
            order = np.random.default_rng([job.seed, int(unit), number]).permutation(len(rows))
            mine = job.order(requests.take(pa.array(np.array(rows)[order])))
            image_of = {image.key: image for image in images}
            write_fetched_shard(job, name, mine, (image_of[key] for key in mine["key"].to_pylist()))
    write_whole(job.work / f"{unit}.done", b"", shared=True)


def is_read(job: ShardJob, unit: str) -> bool:
    """Says whether this archive was read to its end."""
    return (job.work / f"{unit}.done").is_file()


def _each_once(
    members: Iterable[tuple[str, Callable[[], bytes]]], row_of: dict[str, int]
) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    """Yields the members whose keys are in `row_of`, each with its row; takes their keys out of it."""
    for key, content in members:
        row = row_of.pop(key, None)
        if row is not None:
            yield key, row, content


def _next_block(
    job: ShardJob, name: str, wanted: Iterator[tuple[str, int, Callable[[], bytes]]]
) -> tuple[str, list[int], list[Fetched] | None] | None:
    """Returns name, rows and, unless it is finished, images of the next shard; None at the end of the archive."""
    finished, rows = is_shard_finished(job, name), []

    def arriving() -> Iterator[tuple[str, bytes]]:
        for key, row, content in wanted:
            rows.append(row)
            yield key, b"" if finished else content()
            if len(rows) == job.shard_samples:
                return

    if finished:
        for _ in arriving():
            pass
        return (name, rows, None) if rows else None
    arrived = in_order(lambda item: converted(*item, job.convert), arriving(), CONVERTERS)
    images = list(counted_in(job.count(name), arrived))
    return (name, rows, images) if rows else None


def write_fetched_shard(job: ShardJob, name: str, requests: pa.Table, images: Iterable[Fetched]) -> None:
    """Writes the shard of these images, which were fetched, in this order."""
    fates: list[Fetched] = []

    def samples() -> Iterator[Sample]:
        for image, row in zip(images, requests.to_pylist(), strict=True):
            fates.append(replace(image, content=b""))
            if image.fate == "written":
                yield _sample(job, image, row)

    try:
        places = write_shard(job.shard(name), samples(), flat=job.flat)
        write_receipt(job, name, requests, fates, places)
        job.count(name).unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(
            f"{job.shard(name)}: cannot be written: {brief(error)}; finished shards stay: make room, then run the same "
            "command again"
        ) from None


def counted_in(file: Path, images: Iterable[Fetched]) -> Iterator[Fetched]:
    """Yields the images, and about every second writes into the file how many there were."""
    said = time.monotonic()
    for number, image in enumerate(images, start=1):
        yield image
        if time.monotonic() - said > NOTE_SECONDS:
            said = time.monotonic()
            file.write_text(str(number))


def _sample(job: ShardJob, image: Fetched, row: _Request) -> Sample:
    names = job.class_ids
    boxes = scaled(row["boxes"] or (), image.scale)
    return Sample(
        key=image.key,
        image=image.content,
        positive=tuple(names[column] for column in row["positives"]),
        negative=tuple(names[column] for column in row["negatives"]),
        truth=None if row["truth"] is None else tuple(names[column] for column in row["truth"]),
        boxes=tuple((names[box["class"]], box["x0"], box["y0"], box["x1"], box["y1"]) for box in boxes),
    )


def scaled(boxes: Iterable[SourceBox], scale: tuple[float, float]) -> list[SourceBox]:
    """Returns boxes of a source image in pixels of the converted image, to hundredths, so that JSON and index agree."""
    x, y = scale
    return [
        {
            "class": box["class"],
            "x0": round(box["x0"] * x, 2),
            "y0": round(box["y0"] * y, 2),
            "x1": round(box["x1"] * x, 2),
            "y1": round(box["y1"] * y, 2),
        }
        for box in boxes
    ]


def write_receipt(
    job: ShardJob, name: str, requests: pa.Table, fates: list[Fetched], places: Sequence[Mapping[str, object]]
) -> None:
    """Writes the receipt: what became of every image of a finished shard."""
    place_of = {place["key"]: place for place in places}
    nowhere: Mapping[str, object] = dict.fromkeys(PLACE)
    rows = [place_of.get(image.key, nowhere) for image in fates]
    columns = [pa.array([row[name] for row in rows], SCHEMA.field(name).type) for name in PLACE]
    lists = [requests[name].combine_chunks() for name in (*LABELS, "truth")]
    boxes = [
        None if source is None else scaled(source, image.scale)
        for source, image in zip(requests["boxes"].to_pylist(), fates, strict=True)
    ]
    lists.append(pa.array(boxes, SCHEMA.field("boxes").type))
    texts = [requests["key"], requests["file"], [image.fate for image in fates], [i.detail or None for i in fates]]
    meta = {"bytes": job.shard(name).stat().st_size, "bytes_read": sum(image.size for image in fates)}
    schema = RECEIPT.with_metadata({"shard": json.dumps(meta)})
    table = pa.table([*texts, *columns, *lists], schema=schema)
    write_arrow(job.receipt(name), table, shared=True)


def read_receipt(path: Path) -> tuple[pa.Table, dict[str, int]]:
    """Returns the rows of a receipt, and the sizes `bytes` of its shard and `bytes_read` of the source images.

    Raises:
        ValueError: it is missing or damaged.
    """
    table = map_arrow(path, "remove it and run the same command again")
    if table.schema != RECEIPT:
        raise ValueError(f"{path}: not the receipt of a shard; remove it and run the same command again")
    return table, json.loads(table.schema.metadata[b"shard"])


def is_shard_finished(job: ShardJob, name: str) -> bool:
    """Says whether this shard needs no more work: it exists and is as long as its receipt says.

    Shards are not flushed to disk one by one, so after a power cut a receipt can exist without its shard.
    """
    try:
        _, meta = read_receipt(job.receipt(name))
        return bool(job.shard(name).stat().st_size == meta["bytes"])
    except (OSError, ValueError):
        return False

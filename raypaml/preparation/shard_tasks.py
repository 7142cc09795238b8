"""One task writes one shard (of an archive: one after the other) and its receipt, the last thing to appear.

A shard with its receipt is finished and never written again. Both depend on nothing but the job and the images, so the
bytes are the same from any number of workers and after any interruption.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raypaml.data.index import BOX_SIDES, SCHEMA
from raypaml.data.shards import Sample, write_shard
from raypaml.data.storage import Location, brief
from raypaml.files import write_whole
from raypaml.preparation.image_form import Converted, ImageForm, convert
from raypaml.preparation.image_store import Asked, Fetched, Store, archive_members, converted, in_order
from raypaml.preparation.requests import KNOWN, LABELS, types_first

NOTE_SECONDS = 1.0
"""Between two notes of how many images of a shard are ready."""
CONVERTERS = 4
"""Threads that convert what one archive gives."""
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
"""A row per image that was asked for; no place where it was not written."""


@dataclass(frozen=True)
class ShardJob:
    """What the shards of one split have in common; picklable."""

    work: Path
    """Folder for shards and receipts until the split is finished; seen by all workers."""
    class_ids: tuple[str, ...]
    form: ImageForm
    seed: int
    shard_samples: int
    """Images asked for per shard."""
    flat: bool = True
    """How labels are written, as in `data.shards.write_shard`."""

    def receipt(self, name: str) -> Path:
        """Where the receipt of this shard is, or will be."""
        return self.work / f"{name}.arrow"

    def shard(self, name: str) -> Path:
        """Where this shard is, or will be."""
        return self.work / f"{name}.tar"

    def count(self, name: str) -> Path:
        """Where it says, for people, how many images of this shard are ready, while it is not finished."""
        return self.work / f"{name}.count"

    def order(self, requests: pa.Table) -> pa.Table:
        """These requests in the order of their shard."""
        return types_first(requests) if self.flat else requests

    def convert(self, content: bytes) -> Converted:
        """An image in the form of this data set."""
        return convert(content, self.form)


def write_store_shard(job: ShardJob, name: str, requests: pa.Table, store: Store) -> None:
    """Write the shard of these images (rows of requests.REQUEST, in this order) from single files."""
    requests = job.order(requests)
    images = store.fetch(asked_for(requests), job.convert)
    write_fetched_shard(job, name, requests, noted(job.count(name), images))


def asked_for(requests: pa.Table) -> list[Asked]:
    """Key and file of each request."""
    keys, files = (requests[column].to_pylist() for column in ("key", "file"))
    return [(key, file or f"{key}.jpg") for key, file in zip(keys, files, strict=True)]


def write_archive_shards(job: ShardJob, unit: str, requests: pa.Table, archive: Location) -> None:
    """Write the shards `UNIT-000000`, ... of the wanted images of one archive, as it streams by.

    Each takes the next `shard_samples` images that arrive and shuffles them. A second image of the same key is ignored.
    What never arrives has no receipt. `UNIT.done`, written last, says that the archive was read to its end.
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
    """Whether this archive needs no more work."""
    return (job.work / f"{unit}.done").is_file()


def _each_once(
    found: Iterable[tuple[str, Callable[[], bytes]]], row_of: dict[str, int]
) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    for key, content in found:
        row = row_of.pop(key, None)
        if row is not None:
            yield key, row, content


def _next_block(
    job: ShardJob, name: str, wanted: Iterator[tuple[str, int, Callable[[], bytes]]]
) -> tuple[str, list[int], list[Fetched] | None] | None:
    """The rows of the next shard and, unless it is finished, its images; None at the end of the archive."""
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
    images = list(noted(job.count(name), arrived))
    return (name, rows, images) if rows else None


def write_fetched_shard(job: ShardJob, name: str, requests: pa.Table, images: Iterable[Fetched]) -> None:
    """Write the shard of these images, already fetched, in this order."""
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


def noted(file: Path, images: Iterable[Fetched]) -> Iterator[Fetched]:
    """The same images; how many there were is written into the file about every second."""
    said = time.monotonic()
    for number, image in enumerate(images, start=1):
        yield image
        if time.monotonic() - said > NOTE_SECONDS:
            said = time.monotonic()
            file.write_text(str(number))


def _sample(job: ShardJob, image: Fetched, row: dict[str, Any]) -> Sample:
    names = job.class_ids
    boxes = scaled(row["boxes"] or (), image.scale)
    return Sample(
        key=image.key,
        image=image.content,
        positive=tuple(names[column] for column in row["positives"]),
        negative=tuple(names[column] for column in row["negatives"]),
        truth=None if row["truth"] is None else tuple(names[column] for column in row["truth"]),
        boxes=tuple((names[box["class"]], *(box[side] for side in BOX_SIDES)) for box in boxes),
    )


def scaled(boxes: Iterable[dict[str, Any]], scale: tuple[float, float]) -> list[dict[str, Any]]:
    """Boxes of a source image in pixels of what became of it, to hundredths: JSON and index then say the same."""
    factors = dict(zip(BOX_SIDES, scale * 2, strict=True))
    return [
        {"class": box["class"]} | {side: round(box[side] * factors[side], 2) for side in BOX_SIDES} for box in boxes
    ]


def write_receipt(
    job: ShardJob, name: str, requests: pa.Table, fates: list[Fetched], places: list[dict[str, Any]]
) -> None:
    """Write what became of every image of a finished shard."""
    place_of = {place["key"]: place for place in places}
    nowhere = dict.fromkeys(PLACE)
    rows = [place_of.get(image.key, nowhere) for image in fates]
    columns = [pa.array([row[name] for row in rows], SCHEMA.field(name).type) for name in PLACE]
    lists = [requests[name].combine_chunks() for name in (*LABELS, "truth")]
    boxes = [
        None if found is None else scaled(found, image.scale)
        for found, image in zip(requests["boxes"].to_pylist(), fates, strict=True)
    ]
    lists.append(pa.array(boxes, SCHEMA.field("boxes").type))
    texts = [requests["key"], requests["file"], [image.fate for image in fates], [i.detail or None for i in fates]]
    meta = {"bytes": job.shard(name).stat().st_size, "bytes_read": sum(image.size for image in fates)}
    schema = RECEIPT.with_metadata({"shard": json.dumps(meta)})
    table = pa.table([*texts, *columns, *lists], schema=schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    write_whole(job.receipt(name), sink.getvalue().to_pybytes(), shared=True)


def read_receipt(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    """The rows of a finished shard, and its bytes and bytes_read."""
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    return table, json.loads(table.schema.metadata[b"shard"])


def is_shard_finished(job: ShardJob, name: str) -> bool:
    """Whether this shard needs no more work: it is there, and as long as its receipt says.

    Nothing is flushed to disk shard by shard, so after a power cut a receipt can be there without its shard.
    """
    try:
        _, meta = read_receipt(job.receipt(name))
        return bool(job.shard(name).stat().st_size == meta["bytes"])
    except (OSError, pa.ArrowInvalid):
        return False

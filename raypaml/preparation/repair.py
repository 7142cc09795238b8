"""Read a prepared data set again and name every fault; write broken shards again from the images, to the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raypaml.cli import command
from raypaml.data.index import Index, open_index
from raypaml.data.verify_shard import verify_shard
from raypaml.labels import Vocabulary
from raypaml.mapper import OpenMapper
from raypaml.preparation.data_card import CARD, whole_digest
from raypaml.preparation.finish import LEDGER
from raypaml.preparation.image_form import Converted, ImageForm, codec_versions, convert
from raypaml.preparation.image_store import Archives, fetch_from_archives, find_images
from raypaml.preparation.record import claimed, is_split_finished, read_record, remove_if_finished
from raypaml.preparation.requests import LABELS, REQUEST, as_requests
from raypaml.preparation.same_pictures import indexes_in, said_of_same_pictures
from raypaml.preparation.shard_tasks import ShardJob, asked_for, read_receipt, write_fetched_shard


@dataclass(frozen=True)
class Broken:
    """A shard with faults."""

    split: str
    shard: int
    faults: list[str]


def verify(
    out: Path, splits: Sequence[str], workers: int, address: str, open_mapper: OpenMapper, say: Callable[[str], None]
) -> list[Broken]:
    """Read every shard of these splits, as training would and as any tar reader would, and compare digests.

    Says each fault; then how many shards were read.

    Raises:
        ValueError: not a prepared data set, or its index or vocabulary is not the one it was finished with.
    """
    record = read_record(out)
    if record is None:
        raise ValueError(
            f"out={out}: no prepared data set here; {command('shard verify')} checks shards made elsewhere"
        )
    unfinished = [split for split in splits if not is_split_finished(record, split)]
    if unfinished:
        raise ValueError(f"out={out}: {', '.join(unfinished)} not finished; run the preparation to its end first")
    _check_digest(out)
    calls = _calls(out, splits)
    with open_mapper(workers, address) as run:
        broken = [found for found in run(check_shard, calls) if found.faults]
    broken.sort(key=lambda found: (splits.index(found.split), found.shard))
    for found in broken:
        for fault in found.faults:
            say(fault)
    for line in said_of_same_pictures(indexes_in(out, splits)):
        say(line)
    say(f"{len(calls):,} shards read, {len(broken):,} with faults")
    return broken


def _check_digest(out: Path) -> None:
    card = json.loads((out / CARD).read_text())
    if whole_digest(out, card["splits"]) != card["digest"]:
        raise ValueError(
            f"{out}: an index or vocabulary.csv is not the one that {CARD} knows; put it back or prepare anew"
        )


def _calls(out: Path, splits: Sequence[str]) -> list[tuple[Any, ...]]:
    indexes = {split: open_index(out / f"{split}.arrow") for split in splits}
    return [(out, split, index, shard) for split, index in indexes.items() for shard in range(len(index.shards))]


def check_shard(out: Path, split: str, index: Index, shard: int) -> Broken:
    """The faults of one shard."""
    return Broken(split, shard, verify_shard(out, index, shard, decode=False))


def repair(
    out: Path, images: str, broken: Sequence[Broken], concurrency: int, say: Callable[[str], None]
) -> list[Broken]:
    """Write these shards again from the images; returns those that could not be.

    A shard is replaced only by one with the very images that the index knows; where the source now has others, it
    stays as it is, and that is said.
    """
    record = read_record(out)
    assert record is not None, "verified before"
    parameters = record["parameters"]
    if parameters["codec"] != codec_versions():
        raise ValueError(f"{out}: written with {parameters['codec']}, this is {codec_versions()}; install that version")
    form = ImageForm.of_parameters(parameters)
    left: list[Broken] = []
    class_ids = Vocabulary.read(out / "vocabulary.csv").class_ids
    with claimed(out) as work:
        job = ShardJob(work, class_ids, form, seed=0, shard_samples=1, flat=parameters["json"] == "flat")
        for found in broken:
            layout = record["splits"][found.split]["from"]
            fault = _repair_shard(out, job, images, found, concurrency, layout)
            say(fault or f"{out}: {found.split} shard {found.shard} written again")
            if fault:
                left.append(Broken(found.split, found.shard, [fault]))
        for path in work.glob("repair.*"):
            path.unlink()
        remove_if_finished(work, record)
    return left


def _repair_shard(out: Path, job: ShardJob, images: str, found: Broken, concurrency: int, layout: str) -> str:
    """Write one shard again; what stands in the way, or nothing."""
    index = open_index(out / f"{found.split}.arrow")
    rows = index.rows_of_shard(found.shard)
    requests = _requests(out, found.split, index, rows)
    listed = not requests["file"].null_count and layout != "archives"
    source = find_images(images, found.split, concurrency, listed=listed)
    fetch = partial(fetch_from_archives, source) if isinstance(source, Archives) else source.fetch
    unscaled = partial(_convert, job.form)
    write_fetched_shard(job, "repair", requests, fetch(asked_for(requests), unscaled))
    name, (receipt, meta) = index.shards[found.shard], read_receipt(job.receipt("repair"))
    if meta["bytes"] == index.shard_bytes[found.shard] and _same_images(receipt, index, rows):
        job.shard("repair").replace(out / name)
        return ""
    lost = [row["key"] for row in receipt.select(["key", "fate"]).to_pylist() if row["fate"] != "written"]
    found_now = zip(index.keys(rows), index.crc32[rows].tolist(), receipt["crc32"].to_pylist(), strict=True)
    changed = [key for key, before, now in found_now if now is not None and now != before]
    return (
        f"{out / name}: cannot be written again as it was: at {images} {len(lost)} of its images are missing "
        f"{lost[:3]} and {len(changed)} differ {changed[:3]}"
    )


def _convert(form: ImageForm, content: bytes) -> Converted:
    return Converted(convert(content, form).content)  # the index's boxes are those of the converted image


def _requests(out: Path, split: str, index: Index, rows: NDArray[np.int64]) -> pa.Table:
    """What the shard was asked for: labels, truth and boxes from the index, files from the ledger."""
    keys = pa.array(index.keys(rows))
    mine = [("split", "==", split), ("key", "in", keys.to_pylist())]
    ledger = pq.read_table(out / LEDGER, columns=["key", "file"], filters=mine)
    names = (*LABELS, "truth") if index.has_truth else LABELS
    columns = {name: pa.array([index.classes(name, row) for row in rows], pa.list_(pa.int32())) for name in names}
    columns["file"] = ledger["file"].take(pc.index_in(keys, value_set=ledger["key"]))
    columns["boxes"] = pa.array([index.boxes(int(row)) or None for row in rows], REQUEST.field("boxes").type)
    return as_requests(pa.table({"key": keys, **columns}))


def _same_images(receipt: pa.Table, index: Index, rows: NDArray[np.int64]) -> bool:
    return all(receipt[name].to_pylist() == getattr(index, name)[rows].tolist() for name in ("offset", "size", "crc32"))

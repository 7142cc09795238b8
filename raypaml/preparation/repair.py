"""Reads a prepared data set again and names every fault; writes broken shards again from the images, byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypaml.cli import command
from raypaml.counting import number_of
from raypaml.data.index import Index, open_index
from raypaml.data.verify_shard import verify_shard
from raypaml.labels import VOCABULARY, Vocabulary
from raypaml.mapper import OpenMapper
from raypaml.preparation.data_card import CARD, read_card, whole_digest
from raypaml.preparation.finish import read_ledger
from raypaml.preparation.image_form import Converted, ImageForm, codec_versions, convert
from raypaml.preparation.image_store import Archives, fetch_from_archives, find_images
from raypaml.preparation.record import claimed, is_split_finished, read_record, remove_if_finished
from raypaml.preparation.requests import LABELS, REQUEST, as_requests
from raypaml.preparation.same_pictures import indexes_in, same_picture_lines
from raypaml.preparation.shard_tasks import PLACE, ShardJob, keys_and_files, read_receipt, write_fetched_shard


@dataclass(frozen=True)
class Broken:
    """The faults of one shard."""

    split: str
    shard: int
    """Number of the shard in the index of its split."""
    faults: list[str]
    """A sentence for each fault; empty where there is none."""


def verify(
    out: Path, splits: Sequence[str], workers: int, address: str, open_mapper: OpenMapper, say: Callable[[str], None]
) -> list[Broken]:
    """Reads every shard of these splits, as training would and as any tar reader would, and compares digests.

    Says each fault, and then how many shards were read.

    Raises:
        ValueError: the folder is no prepared data set, or its index or vocabulary was changed since it was finished.
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
    indexes = {split: open_index(out / f"{split}.arrow") for split in splits}
    calls = [(out, split, index, shard) for split, index in indexes.items() for shard in range(len(index.shards))]
    with open_mapper(workers, address) as run:
        broken = [checked for checked in run(check_shard, calls) if checked.faults]
    broken.sort(key=lambda shard: (splits.index(shard.split), shard.shard))
    for shard in broken:
        for fault in shard.faults:
            say(fault)
    for line in same_picture_lines(indexes_in(out, splits)):
        say(line)
    say(f"{number_of(len(calls), 'shard')} read, {len(broken):,} with faults")
    return broken


def _check_digest(out: Path) -> None:
    """Raises ValueError where the vocabulary or an index was changed since the data card was written."""
    card = read_card(out)
    if whole_digest(out, card["splits"]) != card["digest"]:
        raise ValueError(
            f"{out}: an index or vocabulary.csv is not the one that {CARD} knows; put it back or prepare anew"
        )


def check_shard(out: Path, split: str, index: Index, shard: int) -> Broken:
    """Returns the faults of one shard."""
    return Broken(split, shard, verify_shard(out, index, shard, decode=False))


def repair(
    out: Path, images: str, broken: Sequence[Broken], concurrency: int, say: Callable[[str], None]
) -> list[Broken]:
    """Writes these shards again from the images; returns those that could not be written.

    A shard is replaced only by one with exactly the images that the index lists; where the source now has others, the
    shard stays as it is, and that is said.
    """
    record = read_record(out)
    assert record is not None, "verified before"
    parameters = record["parameters"]
    if parameters["codec"] != codec_versions():
        raise ValueError(f"{out}: written with {parameters['codec']}, this is {codec_versions()}; install that version")
    form = ImageForm.of_parameters(parameters)
    left: list[Broken] = []
    class_ids = Vocabulary.read(out / VOCABULARY).class_ids
    with claimed(out) as work:
        job = ShardJob(work, class_ids, form, seed=0, shard_samples=1, flat=parameters["json"] == "flat")
        for shard in broken:
            layout = record["splits"][shard.split]["from"]
            fault = _repair_shard(out, job, images, shard, concurrency, layout)
            say(fault or f"{out}: {shard.split} shard {shard.shard} was written again")
            if fault:
                left.append(Broken(shard.split, shard.shard, [fault]))
        for path in work.glob("repair.*"):
            path.unlink()
        remove_if_finished(work, record)
    return left


def _repair_shard(out: Path, job: ShardJob, images: str, broken: Broken, concurrency: int, layout: str) -> str:
    """Writes one shard again; returns why this is not possible, or an empty text."""
    index = open_index(out / f"{broken.split}.arrow")
    rows = index.rows_of_shard(broken.shard)
    requests = _requests(out, broken.split, index, rows)
    listed = not requests["file"].null_count and layout != "archives"
    source = find_images(images, broken.split, concurrency, listed=listed)
    fetch = partial(fetch_from_archives, source) if isinstance(source, Archives) else source.fetch
    # without the scale, for boxes in the index are those of the converted images already
    images_again = fetch(keys_and_files(requests), lambda content: Converted(convert(content, job.form).content))
    write_fetched_shard(job, "repair", requests, images_again)
    name, (receipt, meta) = index.shards[broken.shard], read_receipt(job.receipt("repair"))
    same = (receipt[field].to_pylist() == getattr(index, field)[rows].tolist() for field in PLACE)
    if meta["bytes"] == index.shard_bytes[broken.shard] and all(same):
        job.shard("repair").replace(out / name)
        return ""
    lost = [row["key"] for row in receipt.select(["key", "fate"]).to_pylist() if row["fate"] != "written"]
    checksums = zip(index.keys(rows), index.crc32[rows].tolist(), receipt["crc32"].to_pylist(), strict=True)
    changed = [key for key, before, now in checksums if now is not None and now != before]
    return (
        f"{out / name}: cannot be written again as it was: at {images} {len(lost)} of its images are missing "
        f"{lost[:3]} and {len(changed)} differ {changed[:3]}"
    )


def _requests(out: Path, split: str, index: Index, rows: NDArray[np.int64]) -> pa.Table:
    """Returns the requests of a shard: labels, truth and boxes from the index, files from the ledger."""
    keys = pa.array(index.keys(rows))
    ledger = read_ledger(out)
    ledger = ledger.filter(pc.and_(pc.equal(ledger["split"], split), pc.is_in(ledger["key"], value_set=keys)))
    names = (*LABELS, "truth") if index.has_truth else LABELS
    columns = {name: pa.array([index.classes(name, row) for row in rows], pa.list_(pa.int32())) for name in names}
    columns["file"] = ledger["file"].take(pc.index_in(keys, value_set=ledger["key"]))
    columns["boxes"] = pa.array([index.boxes(int(row)) or None for row in rows], REQUEST.field("boxes").type)
    return as_requests(pa.table({"key": keys, **columns}))

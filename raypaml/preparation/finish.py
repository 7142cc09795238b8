"""When every shard of a split has its receipt: final names, the index, the ledger, and the counts for the data card."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raypaml.data.index import SCHEMA, write_index
from raypaml.data.shards import SPLITS
from raypaml.files import whole
from raypaml.labels import IntArray, Vocabulary
from raypaml.preparation.requests import KNOWN, LABELS, SplitLabels
from raypaml.preparation.shard_tasks import PLACE, ShardJob, read_receipt

LEDGER = "ledger.parquet"
LEDGER_SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("key", pa.string()),
        ("file", pa.string()),
        ("fate", pa.string()),
        ("shard", pa.int32()),
        ("detail", pa.string()),
    ]
)
"""A row per image of the source: its file (null: KEY.jpg), what became of it, and the shard that holds it; and a row
per file among the images that was not taken, without a key."""


@dataclass(frozen=True)
class Finished:
    """A split's shards under their final names, and what became of its images."""

    shards: list[str]
    index: pa.Table
    """Rows of data.index.SCHEMA."""
    ledger: list[pa.Table]
    """Rows of LEDGER_SCHEMA."""
    has_all_labels: bool = True
    """Full labels, where images have them, are those of all classes: none was added later."""


def collect_shards(
    job: ShardJob, out: Path, split: str, requested: pa.ChunkedArray, labels: SplitLabels, first: int = 0
) -> Finished:
    """Give the finished shards their names in `out`, numbered without gaps, and gather their receipts.

    Args:
        job: of the split.
        out: folder of the data set.
        split: its name.
        requested: keys of all images that were asked for; one without a receipt was not found.
        labels: of the split; the images that were not asked for are listed too, and files that are none.
        first: number of the first shard.
    """
    found = Finished([], SCHEMA.empty_table(), [])
    places = [found.index]
    for path in sorted(job.work.glob("*.arrow")):
        receipt, _ = read_receipt(path)
        is_written = pc.equal(receipt["fate"], "written")
        number = first + len(found.shards)
        found.ledger.append(_ledger(split, receipt, pc.if_else(is_written, pa.scalar(number, pa.int32()), None)))
        if pc.any(is_written).as_py():
            found.shards.append(f"{split}-{number:06d}.tar")
            _rename(job.shard(path.stem), out / found.shards[-1])
            places.append(_index_rows(receipt.filter(is_written), number))
    asked = pa.chunked_array([chunk for part in found.ledger for chunk in part["key"].chunks], pa.string())
    lost = requested.filter(pc.invert(pc.is_in(requested, value_set=asked)))
    for fate, keys in {"not_found": lost, **labels.others}.items():
        found.ledger.append(_ledger(split, pa.table({"key": keys, "fate": pa.repeat(fate, len(keys))})))
    for fate, files in labels.skipped.items():
        found.ledger.append(_ledger(split, pa.table({"file": files, "fate": pa.repeat(fate, len(files))})))
    return replace(found, index=pa.concat_tables(places).combine_chunks())


def _rename(work: Path, final: Path) -> None:
    if work.is_file():
        work.replace(final)
    assert final.is_file(), f"{final}: neither there nor in {work}"


def _index_rows(written: pa.Table, number: int) -> pa.Table:
    columns = {name: written[name] for name in ("key", *PLACE, *LABELS, *KNOWN)}
    columns["shard"] = pa.array(np.full(len(written), number), pa.int32())
    return pa.table([columns[field.name] for field in SCHEMA], schema=SCHEMA)


def _ledger(split: str, rows: pa.Table, shard: Any = None) -> pa.Table:
    n = len(rows)
    columns = {"split": pa.repeat(split, n), "shard": shard} | {name: rows[name] for name in rows.column_names}
    given = {name: column for name, column in columns.items() if column is not None}
    return pa.table([given.get(field.name, pa.nulls(n, field.type)) for field in LEDGER_SCHEMA], schema=LEDGER_SCHEMA)


def write_split_index(out: Path, split: str, finished: Finished, vocabulary: Vocabulary) -> None:
    """Write `<split>.arrow`; shards of an earlier, larger try do not exist, for a folder holds one data set."""
    write_index(
        out / f"{split}.arrow",
        finished.index,
        shards=finished.shards,
        shard_bytes=[(out / name).stat().st_size for name in finished.shards],
        vocabulary=vocabulary,
        has_truth=finished.has_all_labels and not finished.index["truth"].null_count,
    )


def write_ledger(out: Path, split: str, rows: list[pa.Table]) -> None:
    """Write this split's rows into `ledger.parquet` beside those of the other splits."""
    path = out / LEDGER
    before = pq.read_table(path, schema=LEDGER_SCHEMA) if path.is_file() else LEDGER_SCHEMA.empty_table()
    with whole(path) as unfinished, pq.ParquetWriter(unfinished, LEDGER_SCHEMA, compression="zstd") as writer:
        for name in SPLITS:
            other = before.filter(pc.equal(before["split"], name))
            writer.write_table(pa.concat_tables(rows if name == split else [other]))


def ledger_summary(out: Path) -> str:
    """How many images were written and what became of all the others, by reason with an example, in one line."""
    ledger = pq.read_table(out / LEDGER, columns=["split", "key", "file", "fate"])
    parts = []
    for fate, count in sorted(count_fates([ledger]).items(), key=lambda item: item[0] != "written"):
        row = ledger.filter(pc.equal(ledger["fate"], fate)).slice(0, 1).to_pylist()[0]
        example = f" (such as {row['file'] or row['key']})" if fate != "written" else ""
        parts.append(f"{fate.replace('_', ' ')} {count:,}{example}")
    splits = [split for split in SPLITS if split in set(ledger["split"].unique().to_pylist())]
    return f"{', '.join(splits)}: {', '.join(parts)}; {LEDGER} names each"


def write_implied(out: Path, split: str, implied: pa.Table, requested: pa.ChunkedArray) -> pa.Table:
    """Write `implied-<split>.parquet`: which labels of the images asked for a hierarchy added; returns them."""
    rows = implied.filter(pc.is_in(implied["key"], value_set=requested))
    with whole(out / f"implied-{split}.parquet") as unfinished:
        pq.write_table(rows, unfinished, compression="zstd")
    return rows


def count_fates(ledger: list[pa.Table]) -> dict[str, int]:
    """Images by fate, by name."""
    counts = Counter[str]()
    for part in ledger:
        counts.update({row["values"]: row["counts"] for row in pc.value_counts(part["fate"]).to_pylist()})
    return dict(sorted(counts.items()))


def label_counts(table: pa.Table, num_classes: int) -> dict[str, IntArray]:
    """[K] positives and negatives of a table with those list columns."""
    return {
        name: np.bincount(table[name].combine_chunks().flatten().to_numpy(), minlength=num_classes).astype(np.int64)
        for name in LABELS
    }

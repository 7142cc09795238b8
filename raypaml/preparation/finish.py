"""When every shard of a split has its receipt: final names, the index, the ledger, and the counts for the data card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypaml.data.index import write_index
from raypaml.data.index_table import SCHEMA
from raypaml.data.shards import SPLITS
from raypaml.labels import IntArray, Vocabulary
from raypaml.preparation.requests import KNOWN, LABELS, SplitLabels
from raypaml.preparation.shard_tasks import PLACE, ShardJob, read_receipt
from raypaml.sealed_tables import parquet_row_groups, write_parquet, write_parquet_parts

LEDGER = "ledger.parquet"
PREPARE_ANEW = "copy it again or prepare the data set into another folder"
"""The remedy in messages about damaged tables of a preparation."""
_LOOKED_UP = 1 << 19
"""Images that are looked up at once."""
_PIECE = 1 << 14
"""Rows of a column of one value that share their memory."""
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
"""A row for each image of the source: its file (null: KEY.jpg), what became of it (its fate), and the shard that holds
it; and a row without a key for each file among the images that was not read."""


@dataclass(frozen=True)
class Finished:
    """A split's shards under their final names, and what became of its images."""

    shards: list[str]
    index: pa.Table
    """Rows of data.index.SCHEMA."""
    ledger: list[pa.Table]
    """Rows of LEDGER_SCHEMA."""
    has_all_labels: bool = True
    """Whether the full labels of images that have them cover all classes; False where classes were added later."""


def collect_shards(
    job: ShardJob, out: Path, split: str, requested: pa.ChunkedArray, labels: SplitLabels, first: int = 0
) -> Finished:
    """Gives the finished shards their final names, numbered without gaps, and gathers their receipts.

    Args:
        job: what the shards of this split have in common.
        out: folder of the data set.
        split: name of the split.
        requested: keys of all requested images; an image without a receipt was not found.
        labels: labels of the split; images that were not requested, and skipped files, are listed in the ledger too.
        first: number of the first shard.
    """
    finished = Finished([], SCHEMA.empty_table(), [])
    places = [finished.index]
    for path in sorted(job.work.glob("*.arrow")):
        receipt, _ = read_receipt(path)
        is_written = pc.equal(receipt["fate"], "written")
        number = first + len(finished.shards)
        finished.ledger.append(_ledger(split, receipt, pc.if_else(is_written, pa.scalar(number, pa.int32()), None)))
        if pc.any(is_written).as_py():
            finished.shards.append(f"{split}-{number:06d}.tar")
            unnamed, final = job.shard(path.stem), out / finished.shards[-1]
            if unnamed.is_file():
                unnamed.replace(final)
            assert final.is_file(), f"{final}: neither there nor in {unnamed}"
            written = receipt if pc.all(is_written).as_py() else receipt.filter(is_written)
            columns = {name: written[name] for name in ("key", *PLACE, *LABELS, *KNOWN)}
            columns["shard"] = pa.array(np.full(len(written), number), pa.int32())
            places.append(pa.table([columns[field.name] for field in SCHEMA], schema=SCHEMA))
    asked = pa.chunked_array([chunk for part in finished.ledger for chunk in part["key"].chunks], pa.string())
    lost = pa.chunked_array(_absent(requested, asked), pa.string())
    for fate, keys in {"not_found": lost, **labels.others}.items():
        finished.ledger.append(_ledger(split, pa.table({"key": keys, "fate": _same(fate, len(keys))})))
    for fate, files in labels.skipped.items():
        finished.ledger.append(_ledger(split, pa.table({"file": files, "fate": _same(fate, len(files))})))
    return replace(finished, index=pa.concat_tables(places).combine_chunks())


def _absent(requested: pa.ChunkedArray, asked: pa.ChunkedArray) -> Iterator[pa.Array]:
    """Yields the requested keys that are not among those asked for, piece by piece.

    A table of all 3.66 million keys of Open Images V3 would take 400 MB.
    """
    for first in range(0, len(requested), _LOOKED_UP):
        piece = requested.slice(first, _LOOKED_UP).combine_chunks()
        missing = np.ones(len(piece), bool)
        missing[pc.index_in(asked, value_set=piece).drop_null().to_numpy()] = False
        yield piece.filter(pa.array(missing))


def _ledger(split: str, rows: pa.Table, shard: pa.Array | None = None) -> pa.Table:
    """Returns rows as the ledger has them; null where they lack a column."""
    n = len(rows)
    columns = {"split": _same(split, n), "shard": shard} | {name: rows[name] for name in rows.column_names}
    given = {name: column for name, column in columns.items() if column is not None}
    full = [given.get(field.name, _same(None, n, field.type)) for field in LEDGER_SCHEMA]
    return pa.table(full, schema=LEDGER_SCHEMA)


def _same(value: str | None, times: int, kind: pa.DataType | None = None) -> pa.ChunkedArray:
    """Returns a column of one value, whose memory all such columns share: a ledger of millions of rows has many."""
    piece = _piece(value, kind or pa.string())
    return pa.chunked_array([piece] * (times // _PIECE) + [piece[: times % _PIECE]], piece.type)


@lru_cache
def _piece(value: str | None, kind: pa.DataType) -> pa.Array:
    return pa.nulls(_PIECE, kind) if value is None else pa.repeat(value, _PIECE)


def write_split_index(out: Path, split: str, finished: Finished, vocabulary: Vocabulary) -> None:
    """Writes `<split>.arrow`, the index of the split."""
    write_index(
        out / f"{split}.arrow",
        finished.index,
        shards=finished.shards,
        shard_bytes=[(out / name).stat().st_size for name in finished.shards],
        vocabulary=vocabulary,
        has_truth=finished.has_all_labels and not finished.index["truth"].null_count,
    )


def write_ledger(out: Path, split: str, rows: list[pa.Table]) -> None:
    """Writes the rows of this split into `ledger.parquet`, and keeps those of the other splits.

    Open Images V3 has nine million rows: the kept ones are copied a row group at a time. A row group has rows of one
    split, so that the file does not depend on the order of the splits.
    """
    kept = (out / LEDGER).is_file()

    def parts() -> Iterator[pa.Table]:
        for name in SPLITS:
            if name == split:
                yield pa.concat_tables(rows)
            elif kept:
                own = (part.filter(pc.equal(part["split"], name)) for part in _ledger_parts(out))
                yield from (part for part in own if len(part))

    write_parquet_parts(out / LEDGER, LEDGER_SCHEMA, parts(), compression="zstd")


def read_ledger(out: Path) -> pa.Table:
    """Returns the rows of `ledger.parquet`. Raises ValueError where it is damaged or has other columns."""
    return pa.concat_tables([LEDGER_SCHEMA.empty_table(), *_ledger_parts(out)])


def _ledger_parts(out: Path) -> Iterator[pa.Table]:
    for part in parquet_row_groups(out / LEDGER, PREPARE_ANEW):
        table = part.replace_schema_metadata(None)
        if table.schema != LEDGER_SCHEMA:
            raise ValueError(f"{out / LEDGER}: has other columns than a ledger; {PREPARE_ANEW}")
        yield table


def ledger_summary(out: Path) -> str:
    """Says in one line how many images were written, and how many were not, by reason and with an example."""
    counts, examples, seen = Counter[str](), dict[str, str](), set[str]()
    for part in _ledger_parts(out):
        seen.update(part["split"].unique().to_pylist())
        fates = count_fates([part])
        counts.update(fates)
        for fate in fates.keys() - examples.keys():
            row = part.filter(pc.equal(part["fate"], fate)).slice(0, 1).to_pylist()[0]
            examples[fate] = row["file"] or row["key"]
    parts = [
        f"{fate.replace('_', ' ')} {count:,}" + ("" if fate == "written" else f" (such as {examples[fate]})")
        for fate, count in sorted(counts.items(), key=lambda item: (item[0] != "written", item[0]))
    ]
    return f"{', '.join(split for split in SPLITS if split in seen)}: {', '.join(parts)}; {LEDGER} names each"


def write_implied(out: Path, split: str, implied: pa.Table, requested: pa.ChunkedArray) -> pa.Table:
    """Writes `implied-<split>.parquet`, the labels of requested images that a hierarchy added, and returns its rows."""
    rows = implied.filter(pc.is_in(implied["key"], value_set=requested))
    write_parquet(out / f"implied-{split}.parquet", rows, compression="zstd")
    return rows


def count_fates(ledger: list[pa.Table]) -> dict[str, int]:
    """Counts the images of each fate; the fates are sorted by name."""
    counts = Counter[str]()
    for part in ledger:
        counts.update({row["values"]: row["counts"] for row in pc.value_counts(part["fate"]).to_pylist()})
    return dict(sorted(counts.items()))


def label_counts(table: pa.Table, num_classes: int) -> dict[str, IntArray]:
    """Returns the number of positives and of negatives of each class, [K] each, from the columns of lists so called."""
    return {
        name: np.bincount(table[name].combine_chunks().flatten().to_numpy(), minlength=num_classes).astype(np.int64)
        for name in LABELS
    }

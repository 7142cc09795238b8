"""Arrow and Parquet files of raypaml's own: sealed when they are written, and compared with the seal before decoding.

pyarrow trusts the numbers of a file that it maps or decodes: a damaged one may end the process by a signal, or give
other values without an error. So nothing is decoded before the digest was compared, and what was decoded is validated
whole, for files of earlier versions have no digest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from raypaml.files import check_readable, whole
from raypaml.sealed import SEAL, UNSEALED, is_intact, once_on_node, seal

_KIND = "digest-1"


def write_arrow(path: Path, table: pa.Table, *, shared: bool = False) -> None:
    """Write a table as one sealed record batch, whole or not at all; `shared` as in `files.whole`."""
    table = _unsealed(table.combine_chunks())
    with whole(path, shared=shared) as unfinished:
        with pa.OSFile(str(unfinished), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=max(len(table), 1))
        seal(unfinished)


def map_arrow(
    path: Path, again: str, check: Callable[[pa.Table, bool], None] | None = None, kind: str = _KIND
) -> pa.Table:
    """Memory-map a file that `write_arrow` wrote; it is checked once on each node.

    Args:
        path: the file.
        again: what to do where it is damaged, for messages.
        check: called with the table and whether it has a digest, after the digest was compared; raises ValueError.
            None: `pa.Table.validate` with all values.
        kind: a name of the check, with a version.

    Raises:
        ValueError: it cannot be read, or is damaged.
    """
    with _said(path, again):
        file = pa.memory_map(str(path))

    def check_all() -> None:
        sealed = is_intact(file.fileno(), path, again)
        table = _arrow(file, path, again)
        with _said(path, again):
            (check or _validated)(table, sealed)

    once_on_node(file.fileno(), kind, check_all)
    return _arrow(file, path, again)


def write_parquet(path: Path, table: pa.Table, **options: object) -> None:
    """Write a sealed Parquet file, whole or not at all; options as of `pyarrow.parquet.write_table`."""
    with whole(path) as unfinished:
        pq.write_table(_unsealed(table), unfinished, write_page_checksum=True, **options)
        seal(unfinished)


def write_parquet_parts(path: Path, schema: pa.Schema, parts: Iterable[pa.Table], **options: object) -> None:
    """Write one sealed Parquet file of several tables, of which only one need be in memory; each begins a row group."""
    schema = _unsealed(schema.empty_table()).schema
    with whole(path) as unfinished:
        with pq.ParquetWriter(unfinished, schema, write_page_checksum=True, **options) as writer:
            for part in parts:
                writer.write_table(part)
        seal(unfinished)


def read_parquet(path: Path, again: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a file that `write_parquet` wrote, or some of its columns.

    Raises:
        ValueError: it cannot be read, or is damaged; `again` says what to do then.
    """
    with open_parquet(path, again) as file, _said(path, again):
        table = file.read(columns=columns, use_threads=False)
        table.validate(full=True)
    return table


@contextmanager
def open_parquet(path: Path, again: str) -> Iterator[pq.ParquetFile]:
    """Open a file that `write_parquet` wrote, after its digest was compared, once on each node. Raises as above."""
    with _said(path, again):
        source = pa.OSFile(str(path))
    with source:
        once_on_node(source.fileno(), _KIND, lambda: is_intact(source.fileno(), path, again))
        with _said(path, again):
            file = pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=False)
        yield file


def parquet_batches(path: Path, again: str, rows: int) -> Iterator[pa.Table]:
    """Read a file that `write_parquet` wrote in tables of at most so many rows. Raises as `read_parquet`."""
    with open_parquet(path, again) as file, _said(path, again):
        for batch in file.iter_batches(batch_size=rows, use_threads=False):
            batch.validate(full=True)
            yield pa.Table.from_batches([batch])


def parquet_row_groups(path: Path, again: str) -> Iterator[pa.Table]:
    """Read a file that `write_parquet` wrote, one row group at a time. Raises as `read_parquet`."""
    with open_parquet(path, again) as file, _said(path, again):
        for number in range(file.num_row_groups):
            table = file.read_row_group(number, use_threads=False)
            table.validate(full=True)
            yield table


def _unsealed(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata({**(table.schema.metadata or {}), SEAL: UNSEALED})


def _validated(table: pa.Table, _sealed: bool) -> None:
    table.validate(full=True)


def _arrow(file: pa.MemoryMappedFile, path: Path, again: str) -> pa.Table:
    with _said(path, again):
        return pa.ipc.open_file(file).read_all()


@contextmanager
def _said(path: Path, again: str) -> Iterator[None]:
    """Say in one line what pyarrow says of a damaged file, whatever it raises."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError, MemoryError) as error:
        check_readable(path)
        line = " ".join((getattr(error, "strerror", None) or str(error)).split())[:300]
        raise ValueError(f"{path}: cannot be read ({line}); {again}") from None

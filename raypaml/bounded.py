"""Readers that hold what is there, up to a stated limit, whatever a file or its header claims.

What is compressed is bounded by what comes out of it, so that a file of a megabyte that holds a terabyte of zeros is
refused like any other that is too large.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypaml.files import check_readable

TABLE_BYTES = 1 << 31
"""The most bytes of a table of labels in text, decompressed; Parquet and archives of CSVs are read in parts."""
SMALL_BYTES = 1 << 28
"""The most bytes of a text file with a line for each class, or for each answer of a person."""
UNPACKED_TIMES = 200
"""The most bytes that come out of each byte of a compressed table of keys and numbers, which shrink tenfold."""
ROWS_PER_BYTE = 1000
"""The most rows that a Parquet file has for each of its bytes; rows that differ take more room than that."""
_PIECE = 1 << 20
_SHOWN = 8  # columns in a message


def whole_of(file: IO[bytes] | Any, most: int, where: str) -> bytes:
    """Read a stream to its end, in pieces; ValueError, which begins with `where`, beyond so many bytes."""
    pieces, length = list[bytes](), 0
    while piece := file.read(_PIECE):
        pieces.append(piece)
        length += len(piece)
        if length > most:
            raise ValueError(f"{where}: more than {most:,} bytes, decompressed where it is packed; split it")
    return b"".join(pieces)


class Unpacked:
    """A file as a stream, decompressed where its name says so, and then at most `UNPACKED_TIMES` its own size."""

    closed = False

    def __init__(self, path: Path, where: str):
        self._file, self._where = pa.input_stream(str(path)), where
        self._left = UNPACKED_TIMES * path.stat().st_size

    def read(self, count: int = -1) -> bytes:
        """Read so many bytes; ValueError where more come out than a table can give."""
        piece: bytes = self._file.read(count)
        self._left -= len(piece)
        if self._left < 0:
            raise ValueError(
                f"{self._where}: unpacks to more than {UNPACKED_TIMES} times its size, which no table of numbers does"
            )
        return piece

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_bytes(path: Path, most: int) -> bytes:
    """Read a file, decompressed where its name says so; ValueError where there are more bytes than `most`."""
    if path.stat().st_size > most:
        raise ValueError(f"{path}: {path.stat().st_size:,} bytes, at most {most:,} are read; split it")
    try:
        with pa.input_stream(str(path)) as file:
            return whole_of(file, most, str(path))
    except OSError:
        check_readable(path)
        raise


# --- Tables -----------------------------------------------------------------------------------------------------------


def read_rows(path: Path, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows of a small CSV in UTF-8 by the names of its columns, each with the number of its last line.

    A row that is too short has empty cells at its end; blank rows are left out.

    Args:
        path: the file.
        needed: columns that must be there.

    Raises:
        ValueError: the file is no such CSV; the message names it, and the line.
    """
    try:
        text = read_bytes(path, SMALL_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a CSV file ({error})") from None
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        names = next(reader, [])
        if not set(needed) <= set(names):
            raise ValueError(f"{path}: columns {names[:_SHOWN]}, expected at least {', '.join(needed)}")
        if twice := [name for name in needed if names.count(name) > 1]:
            raise ValueError(f"{path}: the column {twice[0]} is there twice; leave one of them out")
        for cells in filter(None, reader):
            if len(cells) > len(names):
                raise ValueError(f"{path}:{reader.line_num}: {len(cells)} cells for {len(names)} columns")
            yield reader.line_num, dict(itertools.zip_longest(names, cells, fillvalue=""))
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: not a CSV file ({csv_fault(error)})") from None


def csv_fault(error: csv.Error) -> str:
    """What is wrong with a CSV, in words that say where to look."""
    if "field limit" in str(error):
        return f"a cell of more than {csv.field_size_limit():,} characters; is a quote not closed?"
    return f"{error}; its quotes do not match"


def arrow_fault(error: Exception) -> str:
    """The message of an error of Arrow, which may hold the text of a file, on one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def check_rows(rows: int, size: int, where: str) -> None:
    """Raise ValueError where a Parquet file says that it has more rows than any file of its size can have."""
    if not 0 <= rows <= size * ROWS_PER_BYTE:
        raise ValueError(f"{where}: claims {rows:,} rows in {size:,} bytes; it is damaged, write it again")


# --- Arrays -----------------------------------------------------------------------------------------------------------


class NpyHeader(NamedTuple):
    """What the header of a .npy file says of its array."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]


def npy_header(file: IO[bytes]) -> NpyHeader:
    """Read the header of a .npy file, and nothing else; ValueError where there is none."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return NpyHeader(*np.lib.format.read_array_header_1_0(file))
    if version == (2, 0):
        return NpyHeader(*np.lib.format.read_array_header_2_0(file))
    raise ValueError(f"version {version[0]}.{version[1]} of the format; 1.0 and 2.0 are read")


def _check_npy(header: NpyHeader, size: int, kinds: str) -> None:
    """Raise ValueError unless a header is of an array of these kinds, which has its place in so many bytes."""
    if header.dtype.kind not in kinds:
        raise ValueError(f"it holds {header.dtype}, not numbers; nothing is read that runs code")
    wanted = header.dtype.itemsize * math.prod(header.shape)
    if min(header.shape, default=0) < 0 or wanted > size:
        raise ValueError(f"{list(header.shape)} of {header.dtype} are {wanted:,} bytes, and {size:,} are there")


def open_npy(path: Path, *, also: str = "") -> NDArray[np.generic]:
    """Map the array of a .npy file, of numbers, or also of other kinds, such as "U" for text.

    Raises:
        ValueError: the file is none, holds something else, or has fewer bytes than its shape takes.
    """
    try:
        with path.open("rb") as file:
            header = npy_header(file)
            _check_npy(header, path.stat().st_size - file.tell(), "biuf" + also)
        if 0 in header.shape:  # nothing can be mapped
            return np.empty(header.shape, header.dtype)
        return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
    except (OSError, ValueError, EOFError, OverflowError, TypeError, SyntaxError) as error:
        check_readable(path)
        raise ValueError(f"{path}: not a readable npy file ({arrow_fault(error)})") from None

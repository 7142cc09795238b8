"""Reads the files of an Open Images release, extracted or in their tar.gz archives, as streams of columns."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pyarrow as pa
from pyarrow import csv

from raypaml.bounded import SMALL_BYTES, whole_of
from raypaml.data.tar_members import members_of, open_tar
from raypaml.files import check_readable

BLOCK_BYTES = 16 * 2**20
"""Bytes of a CSV that are read at a time."""

FILES: dict[str, tuple[str, str, str]] = {
    "images": ("{split}/images.csv", "*{split}-images*.csv", "images*.tar.gz"),
    "human": (
        "{split}/annotations-human.csv",
        "*{split}-annotations-human-imagelabels*.csv",
        "annotations_human_2*.tar.gz",
    ),
    "machine": (
        "{split}/annotations-machine.csv",
        "*{split}-annotations-machine-imagelabels*.csv",
        "annotations_machine*.tar.gz",
    ),
    "trainable": ("classes-trainable.txt", "*classes-trainable.txt", "classes*.tar.gz"),
    "descriptions": ("class-descriptions.csv", "*class-descriptions.csv", "classes*.tar.gz"),
}
"""For each kind of file its name in V3 (and V2), its name in V4 to V7, and the archive that holds it in V3."""


@dataclass(frozen=True)
class ReleaseFile:
    """One file of a release: a path, or a member of an archive."""

    path: Path
    member: str = ""

    def __str__(self) -> str:
        return f"{self.path}:{self.member}" if self.member else str(self.path)

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Opens the file for reading; raises ValueError where its archive is truncated or cannot be read."""
        try:
            if not self.member:
                with self.path.open("rb") as file:
                    yield file
                return
            with self.path.open("rb") as file, open_tar("r|gz", file) as tar:
                member = next((member for member in members_of(tar) if _within(member.name) == self.member), None)
                if member is None:
                    raise ValueError(f"{self.path}: {self.member} is no longer in this archive")
                yield tar.extractfile(member)  # type: ignore[misc]  # `find_file` lists files only
        except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{self}: damaged or truncated archive ({error}); download it again") from None
        except OSError as error:
            raise ValueError(f"{self}: cannot be read: {error.strerror or error}") from None

    def lines(self) -> list[str]:
        """Returns the lines of a small text file, without line ends and byte order mark."""
        with self.open() as file:
            content = whole_of(file, SMALL_BYTES, str(self))
        try:
            return content.decode("utf-8-sig").replace("\r\n", "\n").split("\n")  # names may hold other separators
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise ValueError(f"{self}: line {line}: not UTF-8 ({error.reason}); download it again") from None

    def columns(
        self, columns: Mapping[str, pa.DataType], *, optional: Sequence[str] = (), newlines: bool = False
    ) -> Iterator[pa.RecordBatch]:
        """Streams these columns of a CSV with a header.

        Args:
            columns: names and types of the columns.
            optional: further columns of text, read where the file has them.
            newlines: whether quoted values may hold line breaks.

        Raises:
            ValueError: a column is missing, or a row has another length; the message names file and line.
        """
        with self.open() as file:
            header = file.readline(65536).decode("utf-8-sig", "replace").strip().split(",")
        if header == [""]:
            raise ValueError(f"{self}:1: empty; download it again")
        missing = [name for name in columns if name not in header]
        if missing:
            raise ValueError(f"{self}:1: no column {', '.join(missing)}; the header is {','.join(header)[:200]!r}")
        types = dict(columns) | {name: pa.dictionary(pa.int32(), pa.string()) for name in optional if name in header}
        try:
            with self.open() as file:
                yield from _reader(file, types, newlines=newlines)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{self}: {self._row_at_fault(types, newlines) or error}") from None

    def _row_at_fault(self, types: Mapping[str, pa.DataType], newlines: bool) -> str:
        """Describes the first row that cannot be parsed, by reading again on one thread, which counts rows."""
        faults: list[str] = []
        name = "row" if newlines else "line"

        def keep(row: csv.InvalidRow) -> str:
            faults.append(
                f"{name} {row.number}: {row.actual_columns} columns instead of {row.expected_columns}: "
                f"{row.text[:80]!r}"
            )
            return "error"

        try:
            with self.open() as file:
                for _ in _reader(file, types, newlines=newlines, use_threads=False, on_invalid=keep):
                    pass
        except pa.ArrowInvalid:
            pass
        if faults:
            return faults[0]
        return "" if newlines else self._line_not_utf8()

    def _line_not_utf8(self) -> str:
        """Describes the first line that is not UTF-8; returns an empty text where all lines are."""
        with self.open() as file:
            for number, line in enumerate(iter(lambda: file.readline(BLOCK_BYTES), b""), start=1):
                try:
                    line.decode()
                except UnicodeDecodeError as error:
                    return f"line {number}: not UTF-8 ({error.reason}): {line[:80]!r}"
        return ""


def _reader(
    file: IO[bytes],
    types: Mapping[str, pa.DataType],
    *,
    newlines: bool,
    use_threads: bool = True,
    on_invalid: Callable[[csv.InvalidRow], str] | None = None,
) -> Iterator[pa.RecordBatch]:
    return iter(
        csv.open_csv(
            pa.PythonFile(file, "r"),
            read_options=csv.ReadOptions(block_size=BLOCK_BYTES, use_threads=use_threads),
            parse_options=csv.ParseOptions(newlines_in_values=newlines, invalid_row_handler=on_invalid),
            convert_options=csv.ConvertOptions(include_columns=list(types), column_types=types),
        )
    )


def find_file(folder: Path, kind: str, split: str = "") -> ReleaseFile:
    """Finds the file of this kind (see FILES) in a folder; raises ValueError where there is none, or more than one."""
    official, later, archive = (pattern.format(split=split) for pattern in FILES[kind])
    for base in (folder, folder / "2017_11"):
        if (base / official).is_file():
            return ReleaseFile(base / official)
    named = sorted(path for base in (folder, folder / split) for path in base.glob(later) if path.is_file())
    if len(set(named)) > 1:
        raise ValueError(
            f"{folder}: {' and '.join(path.name for path in named[:3])} could each be the {kind} file; keep one"
        )
    if named:
        return ReleaseFile(named[0])
    for path in sorted(folder.glob(archive)):
        if official in _members(path):
            return ReleaseFile(path, official)
    raise ValueError(
        f"{folder}: no {official}, nor {later}, nor an archive {archive} that holds it; "
        "put the files of the release, or its archives as they were downloaded, into this folder"
    )


def _members(path: Path) -> list[str]:
    """Returns the names of the files in an archive, without the release's own folder."""
    try:
        with path.open("rb") as file, open_tar("r|gz", file) as tar:
            return [_within(member.name) for member in members_of(tar) if member.isfile()]
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, OSError) as error:
        check_readable(path)
        raise ValueError(f"{path}: damaged or truncated archive ({error}); download it again") from None


def _within(name: str) -> str:
    """Returns a member's name without the release's own folder, such as `2017_11`."""
    return name.removeprefix("./").partition("/")[2] if name.removeprefix("./").startswith("20") else name

"""Writes and reads a prediction set: Parquet parts, each of which says to which set it belongs.

    <folder>/vocabulary.csv  <folder>/part-00000-of-00006.parquet ...

A row is an entry: image key, class column, positive (null where unobserved; such entries are written only on request),
and P and N, from which the logit at any alpha is `alpha P + N`. All entries of an image are in one part.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from raypaml.files import check_readable, whole
from raypaml.labels import Vocabulary

if TYPE_CHECKING:
    from raypaml.runs.skips import SkippedSample  # with torch, which reading predictions does without

_SCHEMA = pa.schema(
    [("key", pa.string()), ("class", pa.int32()), ("positive", pa.bool_()), ("P", pa.float32()), ("N", pa.float32())]
)
BATCH_ROWS = 1 << 15
"""Rows of one row group, which is also how many are read at once."""
AGAIN = "run the evaluation again"
"""The remedy in every message about damaged predictions."""


@dataclass(frozen=True, kw_only=True)
class PredictionPart:
    """The metadata of a part: the set that it belongs to, and its place in it."""

    split: str
    vocabulary: str
    """Digest of the classes."""
    num_classes: int
    alpha: float
    """BoostLU's factor in training, >= 1."""
    model: str
    """SHA-256 of the weights."""
    data: str
    """SHA-256 of the split's index."""
    unobserved: bool
    """Whether unobserved entries are written too."""
    samples: int
    """Images of the split, including those without an entry."""
    parts: int
    """Number of parts in the set."""
    part: int
    """Number of this part, from 0."""
    part_samples: int
    """Samples predicted in this part."""

    @property
    def name(self) -> str:
        """The file's name."""
        return f"part-{self.part:05d}-of-{self.parts:05d}.parquet"

    @property
    def of_set(self) -> dict[str, object]:
        """The fields that are the same in all parts of a set."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in ("part", "part_samples")}


@dataclass(frozen=True, kw_only=True)
class PredictionSet:
    """A prediction set of any origin, ready to be read; its metadata are checked, its rows are not yet."""

    where: str
    """Path of its folder or file, for messages."""
    split: str
    vocabulary: str
    """Digest of the classes."""
    num_classes: int
    samples: int | None
    """Images predicted; None where only those with an entry are known."""
    alpha: float | None
    """BoostLU's factor in training; None where an entry has one score, which is in column N beside zeros in P."""
    probabilities: bool
    """Whether the scores are probabilities rather than logits."""
    rows: int
    """Number of rows, exact or estimated."""
    batches: Callable[[], Iterator[tuple[int, pa.Table]]]
    """Reads the set from its beginning: pairs of a part's number and some of its rows, whose columns are those of the
    files that raypaml writes; P and N may be float64."""
    model: str = ""
    """SHA-256 of the weights; empty where they are not known."""
    skipped: tuple[SkippedSample, ...] = ()
    """Broken images among `samples`, which have no rows."""


def write_part(folder: Path, part: PredictionPart, table: pa.Table, skipped: Sequence[SkippedSample] = ()) -> None:
    """Write one part, whole or not at all, with the names of the broken samples that were skipped in it."""
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"raypaml": json.dumps(dataclasses.asdict(part)), "skipped": json.dumps(skipped)}
    table = table.cast(_SCHEMA).replace_schema_metadata(metadata)
    with whole(folder / part.name) as unfinished:
        pq.write_table(table, unfinished, row_group_size=BATCH_ROWS, write_page_checksum=True)


def is_predicted(folder: Path, part: PredictionPart) -> bool:
    """Whether the folder holds this part undamaged: predicted by the same model from the same data."""
    path = folder / part.name
    try:
        if not path.is_file() or read_part(path) != part:
            return False
        for _ in _rows(path):  # reading checks the pages
            pass
    except ValueError:
        return False
    return True


def read_part(path: Path) -> PredictionPart:
    """The metadata of a part; ValueError if it is damaged or was not written by raypaml."""
    try:
        metadata = pq.read_schema(path).metadata or {}
        return PredictionPart(**json.loads(metadata[b"raypaml"]))
    except (pa.ArrowInvalid, OSError) as error:
        check_readable(path)
        raise ValueError(f"{path}: not a whole Parquet file ({_line(error)}); {AGAIN}") from None
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path}: Parquet, but not a part of a prediction set of this version; {AGAIN}") from None


def read_skipped(path: Path) -> list[SkippedSample]:
    """The broken samples that were skipped in a part, which is known to be undamaged."""
    return list(json.loads((pq.read_schema(path).metadata or {}).get(b"skipped", b"[]")))


def open_set(folder: Path) -> PredictionSet:
    """Open the prediction set in a folder.

    Raises:
        ValueError: no parts, a part that is damaged or missing, parts of several sets.
    """
    paths = sorted(folder.glob("part-*.parquet"))
    if not paths:
        check_readable(folder)
        raise ValueError(f"{folder}: no predictions; raypaml evaluate writes them")
    parts = [read_part(path) for path in paths]
    _check_one_set(folder, parts)
    one = parts[0]
    return PredictionSet(
        where=str(folder),
        split=one.split,
        vocabulary=one.vocabulary,
        num_classes=one.num_classes,
        samples=one.samples,
        alpha=one.alpha,
        probabilities=False,
        rows=sum(pq.read_metadata(path).num_rows for path in paths),
        batches=lambda: ((number, rows) for number, path in enumerate(paths) for rows in _rows(path)),
        model=one.model,
        skipped=tuple(line for path in paths for line in read_skipped(path)),
    )


def _check_one_set(folder: Path, parts: list[PredictionPart]) -> None:
    one = parts[0].of_set
    for part in parts:
        differs = [f"{name} {one[name]!r} and {value!r}" for name, value in part.of_set.items() if one[name] != value]
        if differs:
            raise ValueError(f"{folder}: {parts[0].name} and {part.name} are of two sets ({differs[0]}); {AGAIN}")
    wanted = parts[0].parts
    missing = sorted(set(range(wanted)) - {part.part for part in parts})
    if missing or len(parts) != wanted:
        lost = f", part {missing[0]} is missing" if missing else ""
        raise ValueError(f"{folder}: {len(parts)} files are not the {wanted} parts of one set{lost}; {AGAIN}")
    predicted = sum(part.part_samples for part in parts)
    if predicted != parts[0].samples:
        raise ValueError(f"{folder}: {predicted} samples in the parts, the split has {parts[0].samples}; {AGAIN}")


def _rows(path: Path) -> Iterator[pa.Table]:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=BATCH_ROWS, use_threads=False):
                yield pa.Table.from_batches([batch])
    except (pa.ArrowInvalid, OSError) as error:
        check_readable(path)
        raise ValueError(f"{path}: damaged ({_line(error)}); {AGAIN}") from None


def _line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]


def read_vocabulary(folder: Path, predictions: PredictionSet, given: Path | None = None) -> Vocabulary:
    """The vocabulary beside a set, or the one in `given`; ValueError if the predictions were made with another."""
    path = given or folder / "vocabulary.csv"
    vocabulary = Vocabulary.read(path)
    check_predicted_classes(predictions, vocabulary, str(path))
    return vocabulary


def check_predicted_classes(predictions: PredictionSet, vocabulary: Vocabulary, where: str) -> None:
    """Raise ValueError unless the predictions were made with this vocabulary, which lies at `where`."""
    if predictions.vocabulary != vocabulary.digest:
        raise ValueError(
            f"{predictions.where}: predicted with another vocabulary ({predictions.num_classes} classes, digest "
            f"{predictions.vocabulary[:12]}) than {where} ({len(vocabulary)} classes, digest "
            f"{vocabulary.digest[:12]}); give the one they were predicted with"
        )

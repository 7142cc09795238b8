"""Writes and reads a prediction set: Parquet parts, each of which says to which set it belongs.

    <folder>/vocabulary.csv  <folder>/part-00000-of-00006.parquet ...

A row is an entry: image key, class column, positive (null where unobserved; such entries are written only on request),
and P and N, from which the logit at any alpha is `alpha P + N`. All entries of an image are in one part.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import pyarrow as pa

from raypaml.files import check_readable
from raypaml.json_types import Within, check, check_fields
from raypaml.labels import VOCABULARY, Vocabulary
from raypaml.sealed_tables import open_parquet, parquet_batches, write_parquet
from raypaml.stored_json import parse_json

if TYPE_CHECKING:
    from raypaml.runs.skips import SkippedSample  # with torch, which reading predictions does without

_SCHEMA = pa.schema(
    [("key", pa.string()), ("class", pa.int32()), ("positive", pa.bool_()), ("P", pa.float32()), ("N", pa.float32())]
)
_CONTENT = b"vocabulary_content"
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
    alpha: Annotated[float, Within(1, math.inf)]
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
    vocabulary_content: str = ""
    """Digest of the vocabulary beside the set with names and counts of the classes; empty where it is not known."""


def write_part(
    folder: Path,
    part: PredictionPart,
    table: pa.Table,
    skipped: Sequence[SkippedSample] = (),
    vocabulary_content: str = "",
) -> None:
    """Write one part, whole or not at all.

    Args:
        folder: the folder of the set.
        part: the metadata.
        table: the rows.
        skipped: the broken samples that have no rows.
        vocabulary_content: `Vocabulary.content_digest` of the vocabulary beside the parts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {
        "raypaml": json.dumps(dataclasses.asdict(part)),
        "skipped": json.dumps(skipped),
        _CONTENT.decode(): vocabulary_content,
    }
    write_parquet(folder / part.name, table.cast(_SCHEMA).replace_schema_metadata(metadata), row_group_size=BATCH_ROWS)


def is_predicted(folder: Path, part: PredictionPart) -> bool:
    """Whether the folder holds this part undamaged: predicted by the same model from the same data."""
    path = folder / part.name
    try:
        if not path.is_file() or read_part(path) != part:
            return False
        for _ in _rows(path):  # reading checks the values
            pass
    except ValueError:
        return False
    return True


def is_of_set(path: Path, part: PredictionPart, vocabulary_content: str) -> bool:
    """Whether a file belongs to the same set as `part`, with the same names and counts of classes.

    A damaged one does if its name fits, and is written again.
    """
    try:
        file = _PartFile(path)
    except ValueError:
        return dataclasses.replace(part, part=0).name[10:] == path.name[10:]
    return file.part.of_set == part.of_set and file.vocabulary_content in ("", vocabulary_content)


def read_part(path: Path) -> PredictionPart:
    """The metadata of a part; ValueError if it is damaged or was not written by raypaml."""
    return _PartFile(path).part


def read_skipped(path: Path) -> list[SkippedSample]:
    """The broken samples that were skipped in a part, which is known to be undamaged."""
    return _PartFile(path).skipped


class _PartFile:
    """What a part says of itself; ValueError if it is damaged or was not written by raypaml."""

    def __init__(self, path: Path):
        with open_parquet(path, AGAIN) as file:
            self.rows: int = file.metadata.num_rows
            schema = file.schema_arrow
        metadata = schema.metadata or {}
        self.vocabulary_content: str = metadata.get(_CONTENT, b"").decode(errors="replace")
        """Digest of the names and counts of the classes too; empty where an earlier version wrote the part."""
        try:
            part, skipped = parse_json(metadata.get(b"raypaml", b"")), parse_json(metadata.get(b"skipped", b"[]"))
            check_fields(part, PredictionPart)
            check(skipped, list[dict[str, object]], "skipped")
        except ValueError as error:
            raise ValueError(
                f"{path}: Parquet, but not a part of a prediction set of this version ({error}); {AGAIN}"
            ) from None
        self.part = PredictionPart(**part)
        self.skipped: list[SkippedSample] = skipped
        if schema != _SCHEMA:
            raise ValueError(f"{path}: columns {_columns(schema)}, expected {_columns(_SCHEMA)}; {AGAIN}")


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)[:200]


def open_set(folder: Path) -> PredictionSet:
    """Open the prediction set in a folder.

    Raises:
        ValueError: no parts, a part that is damaged or missing, parts of several sets.
    """
    paths = sorted(folder.glob("part-*.parquet"))
    if not paths:
        check_readable(folder)
        raise ValueError(f"{folder}: no predictions; raypaml evaluate writes them")
    files = [_PartFile(path) for path in paths]
    parts = [file.part for file in files]
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
        rows=sum(file.rows for file in files),
        batches=lambda: ((number, rows) for number, path in enumerate(paths) for rows in _rows(path)),
        model=one.model,
        skipped=tuple(line for file in files for line in file.skipped),
        vocabulary_content=max(file.vocabulary_content for file in files),
    )


def _check_one_set(folder: Path, parts: list[PredictionPart]) -> None:
    one = parts[0].of_set
    for part in parts:
        differs = [f"{name} {one[name]!r} and {value!r}" for name, value in part.of_set.items() if one[name] != value]
        if differs:
            raise ValueError(f"{folder}: {parts[0].name} and {part.name} are of two sets ({differs[0]}); {AGAIN}")
    wanted, there = parts[0].parts, {part.part for part in parts}
    missing = next((number for number in range(wanted) if number not in there), None)
    if missing is not None or len(parts) != wanted:
        lost = f", part {missing} is missing" if missing is not None else ""
        raise ValueError(f"{folder}: {len(parts)} files are not the {wanted} parts of one set{lost}; {AGAIN}")
    predicted = sum(part.part_samples for part in parts)
    if predicted != parts[0].samples:
        raise ValueError(f"{folder}: {predicted} samples in the parts, the split has {parts[0].samples}; {AGAIN}")


def _rows(path: Path) -> Iterator[pa.Table]:
    """The rows of a part, whose values have the types of _SCHEMA and are not null but for `positive`."""
    for table in parquet_batches(path, AGAIN, BATCH_ROWS):
        for name in ("key", "class", "P", "N"):
            if table[name].null_count:
                raise ValueError(f"{path}: column {name} has no value in {table[name].null_count:,} rows; {AGAIN}")
        yield table


def read_vocabulary(folder: Path, predictions: PredictionSet, given: Path | None = None) -> Vocabulary:
    """The vocabulary beside a set, or the one in `given`; ValueError if the predictions were made with another."""
    path = given or folder / VOCABULARY
    vocabulary = Vocabulary.read(path)
    check_predicted_classes(predictions, vocabulary, str(path))
    if given is None and predictions.vocabulary_content not in ("", vocabulary.content_digest):
        raise ValueError(
            f"{path}: names of classes or counts of training labels are not those with which {predictions.where} was "
            f"predicted; put the file back as it was, or {AGAIN}"
        )
    return vocabulary


def check_predicted_classes(predictions: PredictionSet, vocabulary: Vocabulary, where: str) -> None:
    """Raise ValueError unless the predictions were made with this vocabulary, which lies at `where`."""
    if (predictions.vocabulary, predictions.num_classes) != (vocabulary.digest, len(vocabulary)):
        raise ValueError(
            f"{predictions.where}: predicted with another vocabulary ({predictions.num_classes} classes, digest "
            f"{predictions.vocabulary[:12]}) than {where} ({len(vocabulary)} classes, digest "
            f"{vocabulary.digest[:12]}); give the one they were predicted with"
        )

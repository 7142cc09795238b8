"""Opens predictions that another program made: tables (CSV, Parquet) or matrices (npy).

Nothing is guessed: the caller says whether scores are logits or probabilities, and which number stands for which label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raypaml.bounded import arrow_fault, check_rows, open_npy
from raypaml.evaluation.parts import BATCH_ROWS, PredictionSet, open_set, read_vocabulary
from raypaml.files import check_readable
from raypaml.labels import RealArray, Vocabulary
from raypaml.spreadsheets import from_cells

Scores = Literal["logits", "probabilities"]
"""What the scores of another program are."""
_COLUMNS = ("key", "class", "label", "score")
_CSV_ROW_BYTES = 32
"""Bytes of a row of a CSV file, about: the number of rows decides only how many spill files there are."""


@dataclass(frozen=True)
class Coding:
    """The numbers that stand for the three labels."""

    positive: int = 1
    negative: int = 0
    unobserved: int = -1

    def __post_init__(self) -> None:
        if len({self.positive, self.negative, self.unobserved}) < 3:
            raise ValueError(f"coding {self}: needs three different numbers, for positive, negative and unobserved")

    @classmethod
    def parse(cls, text: str) -> Coding:
        """Read a text of three numbers such as "1,0,-1": positive, negative, unobserved; ValueError for other texts."""
        try:
            positive, negative, unobserved = map(int, text.split(","))
        except ValueError:
            raise ValueError(f"coding={text!r}: expected POSITIVE,NEGATIVE,UNOBSERVED such as 1,0,-1") from None
        return cls(positive, negative, unobserved)

    def decode(self, label: NDArray[np.generic], where: str) -> pa.Array:
        """The labels as booleans, null where unobserved; ValueError for a label that is none of the three."""
        known = (label == self.positive) | (label == self.negative) | (label == self.unobserved)
        if not known.all():
            raise ValueError(f"{where}: label {label[~known][0]} is not among the declared {self}; see --coding")
        return pa.array(label == self.positive, mask=label == self.unobserved)


@dataclass(frozen=True, kw_only=True)
class PredictionForm:
    """What is said about a file of predictions beside its path; only `vocabulary` matters for those of raypaml."""

    vocabulary: str = ""
    """File of the classes; "" takes the one beside the predictions of raypaml."""
    scores: Scores | None = None
    """What the scores of another program are."""
    labels: str = ""
    """.npy file of the labels of a matrix of scores."""
    coding: str = "1,0,-1"
    """The numbers that stand for positive, negative and unobserved in the labels of another program."""


def check_form(form: PredictionForm, places: Sequence[str]) -> None:
    """Raise ValueError where something is said about files of other programs, and these predictions are none."""
    foreign = [place for place in places if Path(place).suffix and not Path(place).is_dir()]
    of_matrix = [place for place in foreign if Path(place).suffix == ".npy"]
    for name, used in (("scores", foreign), ("labels", of_matrix), ("coding", foreign)):
        if getattr(form, name) not in (getattr(PredictionForm, name), "") and not used:
            kind = "a .npy file" if name == "labels" else "a file of another program"
            raise ValueError(f"{name}={getattr(form, name)}: has no effect, for none of the predictions is {kind}")


def open_predictions(where: str, form: PredictionForm) -> tuple[PredictionSet, Vocabulary]:
    """Open a prediction set, written by raypaml or by another program, with its vocabulary.

    Args:
        where: a run, a folder of predictions, or a .csv, .parquet or .npy file of another program.
        form: how to read it.
    """
    path, given = Path(where), Path(form.vocabulary) if form.vocabulary else None
    folder = path / "predictions" / "test" if (path / "predictions").is_dir() else path
    if path.is_dir() or not path.suffix:
        predictions = open_set(folder)
        return predictions, read_vocabulary(folder, predictions, given)
    if given is None:
        raise ValueError(f"{path}: say which classes these are, with --vocabulary FILE")
    classes = Vocabulary.read(given)
    labels = Path(form.labels) if form.labels else None
    return open_others(path, classes, scores=form.scores, labels=labels, coding=Coding.parse(form.coding)), classes


def open_others(
    path: Path,
    vocabulary: Vocabulary,
    *,
    scores: Scores | None,
    labels: Path | None = None,
    coding: Coding | None = None,
) -> PredictionSet:
    """Open predictions that raypaml did not write.

    Args:
        path: `.csv` or `.parquet` with the columns key, class (class id; in Parquet also the number of the column),
            label, score; or `.npy` with scores [B, K].
        vocabulary: the classes, in the order of the columns of a matrix.
        scores: whether the scores are logits or probabilities; required.
        labels: `.npy` file with the labels [B, K] of a matrix of scores.
        coding: the numbers that stand for the labels; by default 1, 0 and -1.

    Raises:
        ValueError: something is undeclared, missing or malformed.
    """
    if scores not in ("logits", "probabilities"):
        raise ValueError(f"{path}: give --scores logits or --scores probabilities, which the file does not say")
    if not path.is_file() or not path.stat().st_size:
        raise ValueError(f"{path}: {'an empty' if path.is_file() else 'no such'} file")
    coding = coding or Coding()
    if path.suffix == ".npy":
        if labels is None:
            raise ValueError(f"{path}: a matrix of scores needs its labels; say --labels FILE.npy")
        matrices = _Matrices(path, labels, coding, len(vocabulary))
        rows, batches = matrices.scores.size, matrices.batches
    elif path.suffix in (".csv", ".parquet"):
        rows, raw = _csv(path) if path.suffix == ".csv" else _parquet(path)
        batches = lambda: (_table(path, rows, vocabulary, coding) for rows in raw())  # noqa: E731
    else:
        raise ValueError(f"{path}: expected a prediction set, or .csv, .parquet or .npy")
    return PredictionSet(
        where=str(path),
        split="unnamed",
        vocabulary=vocabulary.digest,
        num_classes=len(vocabulary),
        samples=None,
        alpha=None,
        probabilities=scores == "probabilities",
        rows=rows,
        batches=lambda: ((0, _checked(table, path, scores)) for table in batches()),
    )


def _checked(table: pa.Table, path: Path, scores: Scores) -> pa.Table:
    values = table["N"].to_numpy()
    outside = (values < 0) | (values > 1)
    if scores == "probabilities" and outside.any():
        raise ValueError(f"{path}: score {values[outside][0]} is no probability; say --scores logits if they are")
    return table


def _csv(path: Path) -> tuple[int, Callable[[], Iterator[pa.Table]]]:
    types = {"key": pa.string(), "class": pa.string(), "label": pa.int64(), "score": pa.float64()}
    options = pyarrow.csv.ConvertOptions(column_types=types, include_columns=list(_COLUMNS), null_values=[""])

    def batches() -> Iterator[pa.Table]:
        try:
            with pyarrow.csv.open_csv(path, convert_options=options) as reader:
                for batch in reader:
                    rows = pa.Table.from_batches([batch])
                    yield rows.set_column(rows.schema.get_field_index("class"), "class", from_cells(rows["class"]))
        except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
            raise ValueError(f"{path}: {arrow_fault(error)}; expected the columns {', '.join(_COLUMNS)}") from None

    return path.stat().st_size // _CSV_ROW_BYTES, batches


def _parquet(path: Path) -> tuple[int, Callable[[], Iterator[pa.Table]]]:
    try:
        metadata = pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        check_readable(path)
        raise ValueError(f"{path}: not a whole Parquet file ({arrow_fault(error)})") from None
    if not set(_COLUMNS) <= set(metadata.schema.names):
        raise ValueError(f"{path}: columns {metadata.schema.names}, expected {', '.join(_COLUMNS)}")

    check_rows(metadata.num_rows, path.stat().st_size, str(path))

    def batches() -> Iterator[pa.Table]:
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=list(_COLUMNS)):
                    yield pa.Table.from_batches([batch])
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path}: a damaged Parquet file ({arrow_fault(error)})") from None

    return metadata.num_rows, batches


def _table(path: Path, rows: pa.Table, vocabulary: Vocabulary, coding: Coding) -> pa.Table:
    empty = [name for name in _COLUMNS if rows[name].null_count]
    if empty:
        raise ValueError(f"{path}: empty cells in column {empty[0]!r}; give every row all of {', '.join(_COLUMNS)}")
    classes = rows["class"]
    if not pa.types.is_integer(classes.type):
        columns = pc.index_in(classes.cast(pa.string()), value_set=pa.array(vocabulary.class_ids, pa.string()))
        if columns.null_count:
            unknown = classes.filter(pc.is_null(columns))[0].as_py()
            raise ValueError(f"{path}: class {unknown!r} is not among the {len(vocabulary)} of the vocabulary")
        classes = columns
    label = coding.decode(rows["label"].to_numpy(), str(path))
    return _entries(rows["key"].cast(pa.string()), classes, label, rows["score"].to_numpy())


def _entries(keys: pa.Array, classes: pa.Array, positive: pa.Array, given: NDArray[np.generic]) -> pa.Table:
    scores: RealArray = given.astype(np.float64 if given.dtype == np.float64 else np.float32, copy=False)
    columns = [keys, classes.cast(pa.int32()), positive, pa.array(np.zeros_like(scores)), pa.array(scores)]
    return pa.table(columns, names=["key", "class", "positive", "P", "N"])


class _Matrices:
    """Scores and labels [B, K], memory-mapped; the key of an image is its row number."""

    def __init__(self, scores: Path, labels: Path, coding: Coding, num_classes: int):
        self.where, self.coding = labels, coding
        self.scores, self.labels = open_npy(scores), open_npy(labels)
        if self.scores.shape != self.labels.shape or self.scores.shape[1:] != (num_classes,):
            raise ValueError(
                f"{scores}: {list(self.scores.shape)}, labels {list(self.labels.shape)}; expected both "
                f"[images, {num_classes} classes]"
            )

    def batches(self) -> Iterator[pa.Table]:
        count = max(1, BATCH_ROWS // self.scores.shape[1])
        for first in range(0, len(self.scores), count):
            scores, labels = (np.asarray(m[first : first + count]) for m in (self.scores, self.labels))
            row, column = np.indices(scores.shape).reshape(2, -1)
            keys = pa.array([f"{first + number:09d}" for number in range(len(scores))])
            positive = self.coding.decode(labels.ravel(), str(self.where))
            yield _entries(keys.take(pa.array(row)), pa.array(column), positive, scores.ravel())

"""Reads the entries of a prediction set a few classes at a time, through spill files, so that memory is bounded.

The entries come in an order of their own: the number of parts, their order and the order of rows do not matter.
"""

from __future__ import annotations

import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypaml.evaluation.parts import PredictionSet
from raypaml.labels import NEGATIVE, POSITIVE, UNOBSERVED, FloatArray, IntArray, RealArray

ROWS_AT_ONCE = 1 << 17
"""About how many rows a spill file holds; a class is never split, so a file may hold one class with more rows."""
MOST_FILES = 512
"""The most spill files; of more rows than these hold, each holds more, and reading it takes more memory."""
FLUSH_ROWS = 1 << 17
"""Rows that are collected in memory before they are written to the spill files."""

Alpha = float | FloatArray
"""BoostLU's factor: one for all classes, or [K]."""

_LABELS = (POSITIVE, NEGATIVE, UNOBSERVED)


@dataclass(frozen=True)
class Entries:
    """All R entries of some classes, ordered by class and image; every field is [R]."""

    class_index: IntArray
    """Column of the class in the vocabulary."""
    image: IntArray
    """Number of the image among the sorted keys of the set."""
    label: NDArray[np.int8]
    """1 positive, 0 negative, -1 unobserved."""
    P: RealArray
    """Spatial mean of the positive part of the class activation map; 0 where an entry has one score."""
    N: RealArray
    """Spatial mean of the negative part of the map; the score itself where an entry has only one."""

    def scores(self, alpha: Alpha | None) -> RealArray:
        """[R] logits at this alpha; with alpha None the one score that each entry has instead of P and N."""
        if alpha is None:
            return self.N
        factors = np.asarray(alpha, self.P.dtype)
        logits: RealArray = (factors[self.class_index] if factors.ndim else factors) * self.P + self.N
        return logits

    def where(self, chosen: NDArray[np.bool_]) -> Entries:
        """The entries where `chosen`, [R], is true."""
        return Entries(self.class_index[chosen], self.image[chosen], self.label[chosen], self.P[chosen], self.N[chosen])

    @property
    def observed(self) -> Entries:
        """The observed entries."""
        return self.where(self.label != UNOBSERVED) if (self.label == UNOBSERVED).any() else self


@dataclass(frozen=True)
class SpilledSet:
    """A prediction set, checked row by row, whose rows lie in one file for each bucket of classes."""

    predictions: PredictionSet
    keys: pa.Array
    """Sorted keys of the images with an entry."""
    canonical: NDArray[np.int32]
    """Place of an image among `keys`, by its number in the spill files."""
    tally: IntArray
    """[K, 3] entries of each class that are positive, negative, unobserved, in this order."""
    files: list[Path]
    """The spill files, one for each bucket of classes."""

    def buckets(self) -> Iterator[Entries]:
        """All entries, those of one bucket of classes at a time."""
        return (self._bucket(path) for path in self.files)

    def _bucket(self, path: Path) -> Entries:
        with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as stream:
            table = stream.read_all()
        classes, image, label, p, n = (column.to_numpy() for column in table.columns)
        image = self.canonical[image]
        cell = classes.astype(np.int64) * len(self.keys) + image
        order = np.argsort(cell)
        cell = cell[order]
        twice = np.flatnonzero(cell[1:] == cell[:-1])
        if len(twice):
            column, number = divmod(int(cell[twice[0]]), len(self.keys))
            raise ValueError(
                f"{self.predictions.where}: image {self.keys[number].as_py()!r} has class {column} twice; "
                "keep one row an entry"
            )
        return Entries(classes[order].astype(np.int64), image[order].astype(np.int64), label[order], p[order], n[order])


@contextmanager
def spilled(predictions: PredictionSet) -> Iterator[SpilledSet]:
    """Read a set once, check every row, and sort the rows by class into spill files, which live as long as the context.

    Raises:
        ValueError: no rows and no number of images; a score that is not a number (named by image and class), a class
            outside the vocabulary, an image in two parts.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)  # `ulimit -n`, of which half is for spill files
    most_files = MOST_FILES if limit == resource.RLIM_INFINITY else min(MOST_FILES, limit // 2)
    with tempfile.TemporaryDirectory(prefix="raypaml-entries-") as folder:
        count = max(1, min(-(-predictions.rows // ROWS_AT_ONCE), most_files))
        with _Spill(Path(folder), count, predictions) as spill:
            for part, rows in predictions.batches():
                spill.add(part, rows)
            spill.flush()
        if not (spill.next_image or predictions.samples):  # images without an observed label have no rows
            raise ValueError(f"{predictions.where}: no rows; nothing was predicted")
        keys, canonical = _number_images(predictions, spill.keys, np.concatenate([np.empty(0, np.int64), *spill.parts]))
        pa.default_memory_pool().release_unused()
        yield SpilledSet(predictions, keys, canonical, spill.tally, sorted(Path(folder).iterdir()))


class _Spill:
    """Sorts rows into one file for each bucket of classes, counts them, and numbers the images as they come."""

    def __init__(self, folder: Path, count: int, predictions: PredictionSet):
        self.folder, self.count, self.predictions = folder, count, predictions
        self.keys: list[pa.Array] = []
        """Keys of the images, in the order of their numbers; an image in two batches has two numbers."""
        self.parts: list[IntArray] = []
        """The part that each image came from, in the same order."""
        self.next_image = 0
        self.tally = np.zeros((predictions.num_classes, len(_LABELS)), np.int64)
        self._waiting: list[pa.Table] = []
        self._writers: dict[int, pa.RecordBatchStreamWriter] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers.values():
            writer.close()

    def add(self, part: int, rows: pa.Table) -> None:
        """Add a batch of rows of a part."""
        _check(self.predictions, rows)
        images = rows["key"].combine_chunks().dictionary_encode()
        number = pa.array(self.next_image + images.indices.to_numpy(), pa.int32())
        label = rows["positive"].combine_chunks().cast(pa.int8()).fill_null(UNOBSERVED)
        columns = {"class": rows["class"], "image": number, "label": label, "P": rows["P"], "N": rows["N"]}
        table = pa.table(columns)
        self.keys.append(images.dictionary)
        self.parts.append(np.full(len(images.dictionary), part))
        self.next_image += len(images.dictionary)
        classes, labels = table["class"].to_numpy(), table["label"].to_numpy()
        for column, value in enumerate(_LABELS):
            self.tally[:, column] += np.bincount(classes[labels == value], minlength=len(self.tally))
        self._waiting.append(table)
        if sum(map(len, self._waiting)) >= FLUSH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write the collected rows, as streams, which keep nothing in memory of what they have written.

        A Parquet file keeps the metadata of its row groups until it is closed: with 627 million rows, several GB.
        """
        if self._waiting:
            table = pa.concat_tables(self._waiting)
            self._waiting.clear()
            for number, mine in _by_bucket(table, self.count):
                if number not in self._writers:
                    path = self.folder / f"classes-{number:04d}.arrows"
                    self._writers[number] = pa.ipc.new_stream(str(path), table.schema)
                self._writers[number].write_table(mine)


def _by_bucket(table: pa.Table, count: int) -> Iterator[tuple[int, pa.Table]]:
    """The rows of each bucket of classes, which holds every `count`-th class.

    Neighbouring classes, whose numbers of rows are often alike, go to different buckets.
    """
    bucket = table["class"].to_numpy() % count
    order = np.argsort(bucket, kind="stable")
    ends = np.cumsum(np.bincount(bucket, minlength=count))
    table = table.take(pa.array(order))
    for number, (start, end) in enumerate(zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)):
        if end > start:
            yield number, table.slice(start, end - start)


def _check(predictions: PredictionSet, rows: pa.Table) -> None:
    classes = rows["class"].to_numpy()
    if len(classes) and not 0 <= classes.min() <= classes.max() < predictions.num_classes:
        raise ValueError(
            f"{predictions.where}: class columns from {classes.min()} to {classes.max()}, expected "
            f"0..{predictions.num_classes - 1}"
        )
    with np.errstate(invalid="ignore"):
        lost = np.isnan(rows["P"].to_numpy() + rows["N"].to_numpy())
    if lost.any():
        row = int(np.flatnonzero(lost)[0])
        raise ValueError(
            f"{predictions.where}: {int(lost.sum())} scores are not a number, first of image "
            f"{rows['key'][row].as_py()!r}, class {classes[row]}; mend the model or the file"
        )


def _number_images(
    predictions: PredictionSet, keys: list[pa.Array], parts: IntArray
) -> tuple[pa.Array, NDArray[np.int32]]:
    """The sorted keys of the images, and the place among them of each image by its number in the spill files."""
    given = pa.concat_arrays([pa.array([], pa.string()), *keys])
    keys.clear()
    order = pc.sort_indices(given).to_numpy()
    given = given.take(pa.array(order))
    new = np.ones(len(given), bool)
    new[1:] = pc.not_equal(given[1:], given[:-1]).to_numpy(zero_copy_only=False)
    split = np.flatnonzero(~new[1:] & (parts[order][1:] != parts[order][:-1]))
    if len(split):
        key = given[int(split[0])].as_py()
        raise ValueError(f"{predictions.where}: image {key!r} is in two parts; predict every image once")
    canonical = np.empty(len(given), np.int32)
    canonical[order] = np.cumsum(new) - 1
    return given.filter(pa.array(new)), canonical

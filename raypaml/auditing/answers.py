"""Reads people's answers to an audit and writes a new version of the data set with them; the old one stays as it is."""

from __future__ import annotations

import datetime
import glob
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypaml.auditing.answer_tables import answer_meaning, read_answer_table
from raypaml.data.data_folder import DataFolder
from raypaml.data.index import Index, write_index
from raypaml.files import link_or_copy, sweep, whole_folder
from raypaml.json_types import check
from raypaml.labels import NEGATIVE, POSITIVE, VOCABULARY, IntArray, Vocabulary
from raypaml.names import check_new_folders, markdown_line
from raypaml.preparation.data_card import CARD
from raypaml.stored_json import read_if_there, refused_as
from raypaml.writable import try_folder


@dataclass(frozen=True)
class Answers:
    """The labels that people gave to A entries, and how many entries they left undecided."""

    rows: IntArray
    """[A] sample number of each entry."""
    classes: IntArray
    """[A] class column of each entry."""
    labels: NDArray[np.int8]
    """[A] 1 positive, 0 negative."""
    undecided: int


AnswersRecord = TypedDict(
    "AnswersRecord",
    {"from": str, "answers": str, "applied": str, "positive": int, "negative": int, "undecided": int},
)
"""What the data card says about answers: the data set before, the file, the time, and how many entries became positive
or negative or stayed undecided."""


def read_answers(path: Path, index: Index, vocabulary: Vocabulary) -> Answers:
    """Read answers for unobserved entries of an index, from a file as `read_answer_table` takes it.

    An answer is yes, no, or empty where people could not decide.

    Raises:
        ValueError: no such file, columns or fields; a sample, class or answer that is unknown; an entry that is
            observed already, or answered both ways. The message names the line or the task.
    """
    table = read_answer_table(path)
    try:
        rows_of_keys = index.rows_of(pa.chunked_array([[one.key for one in table]], pa.string())).tolist()
    except ValueError as error:
        raise ValueError(f"{path}: samples that are not in the training split: {error}") from None
    labels: dict[tuple[int, int], int] = {}
    undecided = 0
    for row, one in zip(rows_of_keys, table, strict=True):
        if one.class_id not in vocabulary.index_of:
            raise ValueError(f"{one.where}: class {one.class_id!r} is not in the vocabulary")
        said = answer_meaning(one.text, one.where)
        if said == "unsure":
            undecided += 1
            continue
        entry, label = (row, vocabulary.index_of[one.class_id]), POSITIVE if said == "yes" else NEGATIVE
        if labels.setdefault(entry, label) != label:
            raise ValueError(f"{one.where}: {one.key}, {one.class_id} was answered the other way before")
    rows, classes = (np.array([entry[n] for entry in labels], np.int64) for n in (0, 1))
    _check_unobserved(path, index, rows, classes)
    return Answers(rows, classes, np.array(list(labels.values()), np.int8), undecided)


def _check_unobserved(path: Path, index: Index, rows: IntArray, classes: IntArray) -> None:
    samples, place = np.unique(rows, return_inverse=True)
    observed, _ = index.label_cells(samples)
    known = np.isin(place * index.num_classes + classes, observed)
    if known.any():
        key = index.keys(rows[known][:1])[0]
        raise ValueError(f"{path}: {known.sum()} answers for entries that are observed already, such as of {key}")


def apply_answers(data: DataFolder, answers: Answers, out: Path, source: Path) -> AnswersRecord:
    """Write a data set of the same images with the answers among its training labels; returns the record of them.

    Images are hard links, not copies, where the file system allows it. The tars keep the labels with which they were
    written; training and evaluation read the index.

    Args:
        data: the data set that was audited.
        answers: the labels to add.
        out: the folder of the new data set.
        source: the file with the answers, which the data card names.

    Raises:
        ValueError: the data set lies in an object store, or `out` exists.
    """
    if not isinstance(data.path, Path):
        raise ValueError(f"{data.path}: answers are applied to a data set on disk; copy it first")
    check_new_folders("out", str(out))
    _check_absent(out)
    record, vocabulary = _record(data, answers, source), _counted(data.vocabulary, answers)
    written = {VOCABULARY, *(index.where.name for index in data.splits.values())}
    sweep(out.parent, f"{glob.escape(out.name)}.*", shared=True)
    with whole_folder(out, shared=True) as unfinished:  # two may be written at once, and the first to end stays
        try_folder(unfinished)
        for path in sorted(data.path.iterdir()):
            if path.is_file() and not path.name.startswith(".") and path.name not in written:
                link_or_copy(path, unfinished / path.name)
        vocabulary.write(unfinished / VOCABULARY)
        for split, index in data.splits.items():
            table = _answered(index.table, answers) if split == "train" else index.table
            _write_index(index, table, vocabulary, unfinished / index.where.name)
        _write_card(unfinished, record)
        _check_absent(out)
    return record


def _check_absent(out: Path) -> None:
    if out.exists():
        raise ValueError(f"{out}: exists already; give another --out")


def _counted(vocabulary: Vocabulary, answers: Answers) -> Vocabulary:
    """The vocabulary with the answers added to its counts, which may change the class groups."""
    positive, negative = (answers.classes[answers.labels == label] for label in (POSITIVE, NEGATIVE))
    return Vocabulary(
        class_ids=vocabulary.class_ids,
        names=vocabulary.names,
        train_positives=vocabulary.train_positives + np.bincount(positive, minlength=len(vocabulary)),
        train_negatives=vocabulary.train_negatives + np.bincount(negative, minlength=len(vocabulary)),
    )


def _answered(table: pa.Table, answers: Answers) -> pa.Table:
    """The rows of the training index with the answers among their labels."""
    for name, label in (("positives", POSITIVE), ("negatives", NEGATIVE)):
        chosen = answers.labels == label
        column = _with(table[name], answers.rows[chosen], answers.classes[chosen])
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), column)
    return table


def _write_index(index: Index, table: pa.Table, vocabulary: Vocabulary, path: Path) -> None:
    """Write rows of the same shards as those of `index`, with the new vocabulary's digest."""
    write_index(
        path,
        table,
        shards=index.shards,
        shard_bytes=index.shard_bytes,
        vocabulary=vocabulary,
        has_truth=index.has_truth,
        tar_form=index.tar_form,
    )


def _with(column: pa.ChunkedArray, rows: IntArray, classes: IntArray) -> pa.Array:
    """A column of sorted lists of classes with a class added to the list of each of some rows."""
    old = column.combine_chunks()
    counts = np.diff(old.offsets.to_numpy())
    owners = np.concatenate([np.repeat(np.arange(len(counts)), counts), rows])
    values = np.concatenate([old.flatten().to_numpy(), classes]).astype(np.int32)
    order = np.lexsort((values, owners))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=len(counts)))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values[order]), type=column.type)


def _record(data: DataFolder, answers: Answers, source: Path) -> AnswersRecord:
    return {
        "from": data.address,
        "answers": source.name,
        "applied": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "positive": int((answers.labels == POSITIVE).sum()),
        "negative": int((answers.labels == NEGATIVE).sum()),
        "undecided": answers.undecided,
    }


def _write_card(folder: Path, record: AnswersRecord) -> None:
    """Add the record of the answers to the data card, or begin a card with it."""
    path = folder / CARD
    card = read_if_there(path, dict[str, object], "the card of a data set") or {}
    earlier: Any = card.get("answers", [])
    with refused_as(path, "the card of a data set"):
        check(earlier, list[AnswersRecord], "answers")
    path.write_text(json.dumps(card | {"answers": [*earlier, record]}, indent=2) + "\n")
    text = path.with_suffix(".md")
    before = text.read_text() if text.is_file() else "# Data card\n"
    said = (
        f"\n## Answers of {record['applied']}\n\nFrom {markdown_line(record['answers'])}: {record['positive']:,} "
        f"entries of the training split became positive, {record['negative']:,} negative; {record['undecided']:,} stay "
        f"undecided. The labels before are in {markdown_line(record['from'])}, and in the tars.\n"
    )
    text.write_text(before + said)

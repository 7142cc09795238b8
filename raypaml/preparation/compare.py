"""Compares two prepared data sets: their classes, samples, images and labels."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypaml.cli import Parser
from raypaml.data.data_folder import check_vocabulary
from raypaml.data.index import Index, open_index
from raypaml.data.shards import SPLITS
from raypaml.labels import NEGATIVE, POSITIVE, UNOBSERVED, VOCABULARY, Vocabulary, each_once
from raypaml.preparation.findings import EXAMPLES, Tally, tally

STATES = {POSITIVE: "positive", NEGATIVE: "negative", UNOBSERVED: "unobserved"}

Codes = NDArray[np.int64]
Comparison = dict[str, Tally]
"""How often each kind of difference occurs, by its name, with examples."""


def add_compare_flags(parser: Parser) -> None:
    """Adds the two folders, and where the comparison is written."""
    parser.add_argument("a", type=Path, metavar="A", help="folder of a prepared data set")
    parser.add_argument("b", type=Path, metavar="B", help="folder of the data set that A is compared with")
    parser.add_argument("--json", metavar="FILE", help="write the comparison to this file, as JSON")


def compare_folders(a: Path, b: Path) -> dict[str, Comparison]:
    """Compares the vocabularies, and each split; the result is by `vocabulary` and the names of the splits."""
    for folder in (a, b):
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder; give two prepared data sets")
    classes = [Vocabulary.read(folder / VOCABULARY) for folder in (a, b)]
    differences = {"vocabulary": compare_vocabularies(*classes)}
    for split in SPLITS:
        there = [(folder / f"{split}.arrow").is_file() for folder in (a, b)]
        if all(there):
            indexes = [open_index(folder / f"{split}.arrow") for folder in (a, b)]
            for index, known, folder in zip(indexes, classes, (a, b), strict=True):
                check_vocabulary(index, known, folder / VOCABULARY)
            differences[split] = compare_split(indexes[0], indexes[1], *classes)
        elif any(there):
            differences[split] = {f"split only in {'AB'[there.index(True)]}": {"count": 1}}
    return differences


def comparison_as_text(differences: dict[str, Comparison]) -> str:
    """Writes a comparison with a line for each kind of difference, with examples."""
    lines = []
    for part, comparison in differences.items():
        lines.append(part)
        for name, difference in comparison.items():
            examples = f"  such as {', '.join(difference['examples'])}" if "examples" in difference else ""
            lines.append(f"  {name}: {difference['count']:,}{examples}")
    return "\n".join(lines)


def save_comparison(differences: dict[str, Comparison], file: Path) -> None:
    """Writes a comparison as JSON."""
    file.write_text(json.dumps(differences, indent=1) + "\n")


def compare_vocabularies(a: Vocabulary, b: Vocabulary) -> Comparison:
    """Counts the classes that only one vocabulary has, and says whether those in both are in another order."""
    common = [[c for c in one.class_ids if c in other.index_of] for one, other in ((a, b), (b, a))]
    only = [[c for c in one.class_ids if c not in other.index_of] for one, other in ((a, b), (b, a))]
    return {
        "classes only in A": tally(len(only[0]), only[0]),
        "classes only in B": tally(len(only[1]), only[1]),
        "classes in another order": {"count": int(common[0] != common[1])},
    }


def compare_split(a: Index, b: Index, classes_a: Vocabulary, classes_b: Vocabulary) -> Comparison:
    """Counts the samples that only one has and, among those in both, different images (size or CRC-32) and labels."""
    in_a = pc.index_in(b.key_column, value_set=a.key_column)  # row of B -> row of A
    rows_b = np.flatnonzero(pc.is_valid(in_a).to_numpy())
    rows_a = in_a.drop_null().to_numpy().astype(np.int64)
    only_a = np.setdiff1d(np.arange(len(a)), rows_a, assume_unique=True)
    only_b = np.setdiff1d(np.arange(len(b)), rows_b, assume_unique=True)
    other = (a.crc32[rows_a] != b.crc32[rows_b]) | (a.size[rows_a] != b.size[rows_b])
    return {
        "samples in both": {"count": len(rows_a)},
        "samples only in A": _named(a, only_a),
        "samples only in B": _named(b, only_b),
        "images that differ": _named(a, rows_a[other]),
        **_label_differences(a, b, rows_a, rows_b, classes_a, classes_b),
    }


def differs(comparison: Comparison) -> bool:
    """Says whether a comparison counts any difference."""
    return any(difference["count"] for name, difference in comparison.items() if name != "samples in both")


def _label_differences(
    a: Index, b: Index, rows_a: Codes, rows_b: Codes, classes_a: Vocabulary, classes_b: Vocabulary
) -> Comparison:
    union = list(dict.fromkeys((*classes_a.class_ids, *classes_b.class_ids)))
    number = {class_id: k for k, class_id in enumerate(union)}
    cells_a, values_a = _entries(a, rows_a, np.array([number[c] for c in classes_a.class_ids]), len(union))
    cells_b, values_b = _entries(b, rows_b, np.array([number[c] for c in classes_b.class_ids]), len(union))
    cells = each_once(np.concatenate([cells_a, cells_b]))
    state_a, state_b = np.full((2, len(cells)), UNOBSERVED)
    state_a[np.searchsorted(cells, cells_a)] = values_a
    state_b[np.searchsorted(cells, cells_b)] = values_b
    differences: Comparison = {}
    for one, two in permutations(STATES, 2):
        cells_of_kind = cells[(state_a == one) & (state_b == two)]
        if len(cells_of_kind):
            keys = a.keys(rows_a[cells_of_kind[:EXAMPLES] // len(union)])
            named = [f"{key} {union[cell % len(union)]}" for key, cell in zip(keys, cells_of_kind, strict=False)]
            differences[f"labels {STATES[one]} in A, {STATES[two]} in B"] = tally(len(cells_of_kind), named)
    return differences


def _entries(index: Index, rows: Codes, number: Codes, num_classes: int) -> tuple[Codes, Codes]:
    """Returns the observed entries as position x K + class, ascending, and their values."""
    cells, values = [], []
    for ragged, value in ((index.positives, POSITIVE), (index.negatives, NEGATIVE)):
        position, column = ragged.cells(rows)
        cells.append(position * num_classes + number[column])
        values.append(np.full(len(position), value))
    every = np.concatenate(cells)
    order = np.argsort(every)
    return every[order], np.concatenate(values)[order]


def _named(index: Index, rows: Codes) -> Tally:
    return tally(len(rows), index.keys(rows[:EXAMPLES]))

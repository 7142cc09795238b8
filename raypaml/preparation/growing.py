"""Makes a new version of a prepared data set with more images: its shards are linked, and new shards follow them.

Images that the earlier version holds are not made again: an image whose file its ledger lists as written is left out,
and all others are new. The earlier folder is only read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypaml.data.data_folder import open_folder
from raypaml.data.index import Index
from raypaml.data.shards import SPLITS
from raypaml.files import link_or_copy
from raypaml.labels import GROUP_NAMES, IntArray, Vocabulary
from raypaml.preparation.data_card import DataCard, Version, read_card, whole_digest
from raypaml.preparation.findings import some_of
from raypaml.preparation.finish import LEDGER, PREPARE_ANEW, Finished, read_ledger
from raypaml.preparation.record import is_split_finished, read_record
from raypaml.preparation.requests import LABELS, Parameters
from raypaml.sealed_tables import read_parquet

AGREE = ("resize", "size", "quality", "background", "large_jpegs", "json", "hide", "hierarchy")
"""Settings that must be the same for all images of a data set."""


@dataclass(frozen=True)
class Earlier:
    """The version that a data set grows from."""

    folder: Path
    digest: str
    """SHA-256 of the vocabulary and the indexes as they are now."""
    parameters: Parameters
    vocabulary: Vocabulary
    indexes: dict[str, Index]
    ledger: pa.Table
    """Rows of LEDGER_SCHEMA."""
    card: DataCard

    def shards(self, split: str) -> int:
        """Returns how many shards a split has; new shards are numbered from there."""
        return len(self.indexes[split].shards)

    @cached_property
    def written(self) -> dict[str, tuple[str, str]]:
        """Split and key of every image that it holds, by file."""
        written = self.ledger.filter(pc.equal(self.ledger["fate"], "written"))
        return {row["file"]: (row["split"], row["key"]) for row in written.select(["file", "split", "key"]).to_pylist()}

    def keys(self) -> frozenset[str]:
        """Returns the keys of all samples."""
        return frozenset(key for index in self.indexes.values() for key in index.key_column.to_pylist())

    def positives(self, num_classes: int) -> IntArray:
        """Returns [num_classes] the number of its images in which each class is positive: 0 for classes added later."""
        columns = np.concatenate([index.positives.values for index in self.indexes.values()])
        return np.bincount(columns, minlength=num_classes)

    def samples(self, split: str) -> pa.Table:
        """Returns the index of a split as a table, rows of `data.index.SCHEMA`."""
        return self.indexes[split].table.replace_schema_metadata(None)

    def requested(self, split: str, new: pa.Table) -> pa.Table:
        """Returns key and labels of the earlier images, as far as they were written, and of the new ones."""
        names = ["key", *LABELS]
        return pa.concat_tables([self.samples(split).select(names), new.select(names)])

    def implied(self, split: str, new: pa.Table) -> pa.Table:
        """Returns the labels that a hierarchy added to the earlier images and to the new ones."""
        before = read_parquet(self.folder / f"implied-{split}.parquet", PREPARE_ANEW, new.schema.names)
        return pa.concat_tables([before.replace_schema_metadata(None).cast(new.schema), new])

    def lineage(self) -> list[Version]:
        """Returns the versions before the new one, the first one first."""
        mine: Version = {
            "folder": str(self.folder.absolute()),
            "digest": self.digest,
            "classes": len(self.vocabulary),
            "images": {split: len(index) for split, index in self.indexes.items()},
            "parameters": self.parameters,
        }
        if "answers" in self.card:
            mine["answers"] = self.card["answers"]
        return [*self.card.get("lineage", []), mine]


def open_earlier(folder: Path, out: Path) -> Earlier:
    """Opens the version to grow from.

    Raises:
        ValueError: the folder is no finished data set that was prepared from a table or a folder, or it is `out`.
    """
    record = read_record(folder)
    if record is None or not (folder / LEDGER).is_file():
        raise ValueError(f"grow={folder}: no prepared data set with a {LEDGER} here; only such a data set can grow")
    if folder.resolve() == out.resolve():
        raise ValueError(f"grow={folder}: the earlier version is not changed; give another folder as --out")
    unfinished = [split for split in SPLITS if not is_split_finished(record, split)]
    if unfinished:
        raise ValueError(f"grow={folder}: {', '.join(unfinished)} not finished; run its preparation to its end first")
    ledger = read_ledger(folder)
    written = ledger.filter(pc.equal(ledger["fate"], "written"))
    if written["file"].null_count:
        raise ValueError(
            f"grow={folder}: its images are known by key, not by file; only data sets of tables and folders can grow"
        )
    data = open_folder(folder)
    digest = whole_digest(folder, SPLITS)
    return Earlier(folder, digest, record["parameters"], data.vocabulary, data.splits, ledger, read_card(folder))


def check_settings(earlier: Earlier, parameters: Parameters) -> None:
    """Raises ValueError where the new images would differ from the earlier ones in form or in how labels are hidden."""
    before = earlier.parameters
    other = [f"{name}={parameters.get(name)} (there: {before.get(name)})" for name in AGREE]
    other = [text for name, text in zip(AGREE, other, strict=True) if parameters.get(name) != before.get(name)]
    if other:
        raise ValueError(
            f"grow={earlier.folder}: was made with other settings: {', '.join(other)}; give the same settings"
        )


def joined(earlier: Earlier, split: str, new: Finished, classes: int, out: Path) -> Finished:
    """Returns a split of the new version: the earlier shards, which it links into `out`, and then the new ones."""
    index = earlier.indexes[split]
    for name in index.shards:
        link_or_copy(earlier.folder / name, out / name)
    keys = pa.chunked_array([chunk for part in new.ledger for chunk in part["key"].chunks], pa.string()).drop_null()
    mine = earlier.ledger.filter(pc.equal(earlier.ledger["split"], split))
    return Finished(
        shards=[*index.shards, *new.shards],
        index=pa.concat_tables([earlier.samples(split), new.index]).combine_chunks(),
        ledger=[mine.filter(pc.invert(pc.is_in(mine["key"], value_set=keys))), *new.ledger],
        has_all_labels=classes == index.num_classes,
    )


def joined_vocabulary(earlier: Earlier, new: Vocabulary) -> Vocabulary:
    """Returns the classes of the new version, with the training annotations of both versions.

    Images that were missing from the earlier version and are requested again count as new ones.
    """
    train, num_classes = earlier.indexes["train"], len(new)
    return replace(
        new,
        train_positives=new.train_positives + np.bincount(train.positives.values, minlength=num_classes),
        train_negatives=new.train_negatives + np.bincount(train.negatives.values, minlength=num_classes),
    )


def group_changes(earlier: Earlier, vocabulary: Vocabulary) -> str:
    """Says in a sentence which classes are in another class group than before."""
    pairs = zip(vocabulary.class_ids, earlier.vocabulary.class_group, vocabulary.class_group, strict=False)
    moved = [f"{name} {GROUP_NAMES[a - 1]} to {GROUP_NAMES[b - 1]}" for name, a, b in pairs if a != b]
    examples = f" ({some_of(moved)})" if moved else ""
    count = len(earlier.vocabulary)
    return f"class groups counted again: {len(moved):,} of the {count:,} earlier classes are in another one{examples}"

"""Selects the images of a source that an earlier version of the data set lacks."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypaml.data.shards import SPLITS
from raypaml.labels import IntArray
from raypaml.preparation.findings import some_of
from raypaml.preparation.formats.common import Source, SourceSplit
from raypaml.preparation.growing import Earlier
from raypaml.preparation.image_form import ImageForm, codec_versions, convert
from raypaml.preparation.image_store import Archives, find_images
from raypaml.preparation.requests import Classes, SourceBox

LOOKED_AT = 64
"""Number of images in both versions, spread evenly, whose pictures are compared."""
FEWEST = 10
"""Fewest new images from which splits can be cut."""


def grown_source(
    source: Source, earlier: Earlier, shares: Mapping[str, float], say: Callable[[str], None]
) -> tuple[Source, Earlier]:
    """Selects the images of a source that an earlier version lacks, with the classes of both.

    Args:
        source: all images, or the added ones alone.
        earlier: the version from which the data set grows.
        shares: share of the new images in each split that is cut from them, if the source has no splits; 0 cuts none.
        say: takes lines for the user.

    Returns:
        The source of the new images; and the earlier version, whose ledger lacks the images that are requested again.

    Raises:
        ValueError: no image is new, or an image has another split or other labels than before.
    """
    classes = _all_classes(source.classes, earlier, say)
    column = np.array([classes.class_ids.index(name) for name in source.classes.class_ids], np.int64)
    place = earlier.written
    has_splits, splits = source.says_splits, {}
    for split, given in source.splits.items():
        mapped, known = _mapped(given, column), np.array([file in place for file in given.files], bool)
        _check_known(mapped.rows(np.flatnonzero(known)), split if has_splits else "", place, earlier)
        splits[split] = mapped.rows(np.flatnonzero(~known))
        if known.any():
            say(f"{split}: {known.sum():,} of {len(known):,} images are in {earlier.folder} already, with these labels")
    new = [file for given in splits.values() for file in given.files]
    if not new:
        raise ValueError(f"grow={earlier.folder}: it has all {len(place):,} images already; there is nothing to add")
    if len(new) < FEWEST and not has_splits and any(shares.values()):
        raise ValueError(
            f"{len(new)} new images are too few to cut splits from; name their splits, or give --test 0 --validation 0 "
            "to train on all of them"
        )
    _check_groups(source, splits, place, has_splits=has_splits or not any(shares.values()), where=earlier.folder)
    nothing = next(iter(splits.values())).rows(np.zeros(0, np.int64))
    missing = [split for split in SPLITS if split not in splits and (has_splits or not shares.get(split, 1))]
    again = pc.is_in(earlier.ledger["file"], value_set=pa.array([*new, *(file for _, file, _ in source.skipped)]))
    return (
        replace(source, classes=classes, splits=splits | dict.fromkeys(missing, nothing)),
        replace(earlier, ledger=earlier.ledger.filter(pc.invert(again))),
    )


def _check_groups(
    source: Source,
    new: Mapping[str, SourceSplit],
    place: Mapping[str, tuple[str, str]],
    *,
    has_splits: bool,
    where: Path,
) -> None:
    """Refuses new images of an earlier group, unless they are in the same split and splits are not cut."""
    split_of = {
        group: place[file][0]
        for given in source.splits.values()
        for file, group in zip(given.files, given.groups or (), strict=False)
        if group and file in place
    }
    for split, given in new.items():
        for file, group in zip(given.files, given.groups or (), strict=False):
            if group in split_of and not (has_splits and split_of[group] == split):
                raise ValueError(
                    f"grow={where}: {file} is of group {group!r}, which is in {split_of[group]!r} there; give it this "
                    "split"
                )


def _all_classes(classes: Classes, earlier: Earlier, say: Callable[[str], None]) -> Classes:
    """Returns the earlier classes in their order, and then the new ones."""
    before = earlier.vocabulary
    new = [k for k, name in enumerate(classes.class_ids) if name not in before.index_of]
    if new:
        names = some_of([classes.class_ids[k] for k in new])
        say(f"{len(new):,} new classes ({names}); they are unobserved in the images of {earlier.folder}")
    return Classes(
        (*before.class_ids, *(classes.class_ids[k] for k in new)),
        (*before.names, *(classes.names[k] for k in new)),
        classes.known,
    )


def _mapped(given: SourceSplit, column: IntArray) -> SourceSplit:
    """Returns a split with the class columns of the new version."""
    boxes: list[list[SourceBox]] | None = given.boxes and [
        [{**box, "class": int(column[box["class"]])} for box in image] for image in given.boxes
    ]
    return replace(
        given,
        positives=[np.sort(column[row]) for row in given.positives],
        negatives=given.negatives and [np.sort(column[row]) for row in given.negatives],
        boxes=boxes,
    )


def _check_known(known: SourceSplit, split: str, place: Mapping[str, tuple[str, str]], earlier: Earlier) -> None:
    """Refuses images of the earlier version that now have another split, where splits are given, or other labels."""
    moved = [file for file in known.files if split and place[file][0] != split]
    if moved:
        raise ValueError(
            f"grow={earlier.folder}: {len(moved):,} images of split {split!r} are there in another one, such as "
            f"{moved[0]} in {place[moved[0]][0]!r}; splits stay as they are"
        )
    negatives: Sequence[IntArray | None] = known.negatives or [None] * len(known.files)
    changed = []
    for name, index in earlier.indexes.items():
        here = [n for n, file in enumerate(known.files) if place[file][0] == name]
        rows = index.rows_of(pa.chunked_array([[place[known.files[n]][1] for n in here]], pa.string()))
        for n, row in zip(here, rows, strict=True):
            if not _same_labels(earlier, name, row, known.positives[n], negatives[n]):
                changed.append(known.files[n])
    if changed:
        raise ValueError(
            f"grow={earlier.folder}: {len(changed):,} images have other labels there, such as {changed[0]}; what is "
            "prepared keeps its labels: leave these images out, or prepare everything anew"
        )


def _same_labels(earlier: Earlier, split: str, row: int, positive: IntArray, negative: IntArray | None) -> bool:
    """Says whether an image had these labels among the earlier classes; an audit may have added further ones."""
    index = earlier.indexes[split]
    sides = [("truth" if index.classes("truth", row) else "positives", positive)]
    sides += [] if negative is None else [("negatives", negative)]
    for name, columns in sides:
        ours, theirs = {int(k) for k in columns if k < index.num_classes}, set(index.classes(name, row))
        if not (ours <= theirs if "answers" in earlier.card else ours == theirs):
            return False
    return True


def check_pictures(source: Source, earlier: Earlier, images: str, form: ImageForm) -> None:
    """Converts a few files that both versions list, and refuses them where one is another picture now.

    Raises:
        ValueError: a file is another picture; the message names it.
    """
    if earlier.parameters["codec"] != codec_versions():
        return  # the same picture would have other bytes
    place = earlier.written
    known = [file for given in source.splits.values() for file in given.files if file in place]
    chosen = known[:: max(1, -(-len(known) // LOOKED_AT))]
    for split, index in earlier.indexes.items():
        known_here = [(place[file][1], file) for file in chosen if place[file][0] == split]
        store = find_images(images, split, listed=True, by_split=source.says_splits)
        assert not isinstance(store, Archives), "listed files are never looked for in archives"
        rows = index.rows_of(pa.chunked_array([[key for key, _ in known_here]], pa.string()))
        images_now = store.fetch(known_here, lambda content: convert(content, form))
        for (_, file), row, image in zip(known_here, rows, images_now, strict=True):
            if image.fate == "written" and zlib.crc32(image.content) != index.crc32[row]:
                raise ValueError(
                    f"grow={earlier.folder}: {file} is another picture there; give new images names of their own"
                )

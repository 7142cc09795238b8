"""Writes a generated Open Images V3 release: the official files, archives of pictures, and the truth of all of it.

    metadata/2017_11/...                   class-descriptions.csv, classes-trainable.txt, SPLIT/images.csv and
                                           SPLIT/annotations-human.csv
    images/train_0.tar.gz ... test.tar.gz  as in the public bucket
    truth/classes.csv, truth/totals.json   each class with the class above it, and what was planted
    truth/SPLIT-NN.parquet                 image, class (row of classes-trainable.txt), verified: all that is true

The oddities of the label files are planted where nobody published their number: 1 of 10,000 labels is there twice, 1
of 10,000 was answered otherwise by a worse source. 7 % of the labelled training pictures are on no store (the paper's
author had 3.4 of 3.66 million), 1 of 10,000 files is cut off, 1 of 200 is grey, 1 of 20 smaller than the others.
"""

from __future__ import annotations

import csv
import gzip
import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raypaml.preparation.openimages.image_ids import Ids, hex_keys
from tools.full_size.labels import LABELLED, Block, Ints, Quotas, blocks_of, make_block, quotas
from tools.full_size.pictures import write_pictures
from tools.full_size.scenes import CLASSES, EMPTY, parents

RELEASE = "2017_11"
KNOWN, VERIFIED_CLASSES = 19_995, 19_693
"""Classes that are described, and those of them that people verified."""
IMAGES_HEADER = (
    b"ImageID,Subset,OriginalURL,OriginalLandingURL,License,AuthorProfileURL,Author,Title,OriginalSize,OriginalMD5,"
    b"Thumbnail300KURL\n"
)
LABELS_HEADER = b"ImageID,Source,LabelName,Confidence\n"
NO_THUMBNAIL = 204_380 / 9_011_219
CROWD = 1 / 7
"""Share of labels from the Crowdsource app; a guess."""
TWICE = CONTRADICTED = 1e-4
PERSON = "/m/01g317"
TITLES = pa.array(["IMG_0001", '"Zürich, by night"', '"""Cheese"", they said"', "P1010222", '"Tower, 2 of 3"', "Zoë"])
SOURCES = pa.array(["verification", "crowdsource-verification"])


@dataclass(frozen=True)
class Vocabulary:
    """The classes of a release."""

    trainable: tuple[str, ...]
    descriptions: tuple[tuple[str, str], ...]
    of_rank: Ints
    """[CLASSES] the place in `trainable` of each class by frequency."""

    @property
    def others(self) -> list[str]:
        """The classes that people verified and that are not trainable."""
        trainable = set(self.trainable)
        return [c for c, _ in self.descriptions if c not in trainable][: VERIFIED_CLASSES - CLASSES]


def read_vocabulary(lists: Path | None) -> Vocabulary:
    """Reads the official class lists in a folder; None makes others of the same number."""
    if lists is None:
        ids = [f"/m/0{k:05x}" for k in range(KNOWN)]
        descriptions = [(c, f'Class "{k}", {c}' if k % 1400 == 3 else f"Class {k}") for k, c in enumerate(ids)]
        trainable = ids[:CLASSES]
    else:
        with (lists / "class-descriptions.csv").open(encoding="utf-8", newline="") as file:
            descriptions = [(row[0], row[1]) for row in csv.reader(file)]
        trainable = (lists / "classes-trainable.txt").read_text().split()
    if len(trainable) != CLASSES:
        raise ValueError(f"class_lists={lists}: {len(trainable)} trainable classes; V3 has {CLASSES}")
    order = np.random.default_rng(2017).permutation(CLASSES)
    if PERSON in trainable:
        order = np.r_[trainable.index(PERSON), order[order != trainable.index(PERSON)]]
    return Vocabulary(tuple(trainable), tuple(descriptions), order)


@dataclass(frozen=True)
class Unit:
    """What one process writes at a time: an archive, and its part of the lists."""

    out: Path
    split: str
    name: str
    blocks: list[Quotas]
    first: int
    """Number of its first block among all of the split."""
    of: int
    """Number of blocks of the split; each has its own range of image ids."""
    seed: int
    vocabulary: Vocabulary

    def part(self, kind: str) -> Path:
        """The file with this unit's rows of a list."""
        return self.out / "parts" / f"{self.name}-{kind}.csv"


def write_release(
    out: Path, scale: float, lists: Path | None, seed: int, processes: int, say: Callable[[str], None]
) -> dict[str, dict[str, int]]:
    """Writes a release at this share of the true size; returns what was planted in each split."""
    vocabulary = read_vocabulary(lists)
    for name in ("images", "truth", "parts"):
        (out / name).mkdir(parents=True, exist_ok=False)
    _write_classes(out, vocabulary)
    totals: dict[str, Counter[str]] = {split: Counter() for split in LABELLED}
    units = list(units_of(out, scale, seed, vocabulary))
    with ExitStack() as stack:
        run = map if processes == 1 else stack.enter_context(ProcessPoolExecutor(processes, get_context("spawn"))).map
        for unit, counts in zip(units, run(write_unit, units), strict=True):
            totals[unit.split].update(counts)
            say(f"{unit.name}: {counts['pictures']:,} pictures, {counts['rows']:,} labels")
    for split in LABELLED:
        folder = out / "metadata" / RELEASE / split
        folder.mkdir()
        own = [unit for unit in units if unit.split == split]
        _join(folder / "images.csv", IMAGES_HEADER, [unit.part("images") for unit in own])
        _join(folder / "annotations-human.csv", LABELS_HEADER, [unit.part("labels") for unit in own])
    (out / "parts").rmdir()
    planted = {split: dict(sorted(counts.items())) for split, counts in totals.items()}
    (out / "truth" / "totals.json").write_text(json.dumps(planted, indent=1))
    return planted


def units_of(out: Path, scale: float, seed: int, vocabulary: Vocabulary) -> Iterator[Unit]:
    for split in LABELLED:
        blocks = blocks_of(quotas(split, scale), split, seed)
        archives = [f"{split}_{digit:x}" for digit in range(16)] if split == "train" else [split]
        many = len(blocks) // len(archives)
        for place, name in enumerate(archives):
            own = blocks[many * place : many * (place + 1)]
            yield Unit(out, split, name, own, many * place, len(blocks), seed, vocabulary)


def _write_classes(out: Path, vocabulary: Vocabulary) -> None:
    folder = out / "metadata" / RELEASE
    folder.mkdir(parents=True)
    with (folder / "class-descriptions.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\r\n").writerows(vocabulary.descriptions)
    (folder / "classes-trainable.txt").write_text("".join(f"{c}\n" for c in vocabulary.trainable))
    named = np.array(vocabulary.trainable)[vocabulary.of_rank]
    with (out / "truth" / "classes.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("rank", "class_id", "parent_id"))
        rows.writerows((k, named[k], "" if p == EMPTY else named[p]) for k, p in enumerate(parents()))


def _join(path: Path, header: bytes, parts: list[Path]) -> None:
    with path.open("wb") as file:
        file.write(header)
        for part in parts:
            with part.open("rb") as own:
                shutil.copyfileobj(own, file, 1 << 20)
            part.unlink()


def write_unit(unit: Unit) -> Counter[str]:
    """Writes an archive, its rows of the lists, and its truth; returns what was planted."""
    planted: Counter[str] = Counter()
    schema = pa.schema([("image", pa.uint64()), ("class", pa.int16()), ("verified", pa.bool_())])
    with (
        (unit.out / "images" / f"{unit.name}.tar.gz").open("wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as archive,
        unit.part("images").open("wb") as images,
        unit.part("labels").open("wb") as labels,
        pq.ParquetWriter(unit.out / "truth" / f"{unit.name}.parquet", schema, compression="zstd") as truth,
    ):
        for place, quota in enumerate(unit.blocks, unit.first):
            rng = np.random.default_rng([unit.seed, len(unit.split), place])
            block = make_block(quota, unit.split, rng)
            ids = _ids(quota.images, place, unit.of, rng)
            listed = rng.permutation(quota.images)
            own = np.sort(listed[: quota.labelled])  # labelled images, by id
            _write_images(images, ids, unit.split, rng)
            planted.update(_write_labels(labels, block, ids[own], quota, unit.vocabulary, rng))
            planted.update(write_pictures(archive, block, ids[own], unit.split, rng))
            order = np.argsort(block.truth[0], kind="stable")
            of_image, classes = (column[order] for column in block.truth)
            columns = (ids[own][of_image], unit.vocabulary.of_rank[classes].astype(np.int16), block.verified[order])
            truth.write_table(pa.table(list(columns), schema=schema))
            planted.update({"images": quota.images, "labelled": quota.labelled, "true": len(classes)})
        archive.write(bytes(2 * tarfile.BLOCKSIZE))
    return planted


def _ids(count: int, block: int, blocks: int, rng: np.random.Generator) -> Ids:
    """Returns different ids, ascending, of this block's range of all ids."""
    first, end = (int(2**64 * edge // blocks) for edge in (block, block + 1))
    ids = np.zeros(0, np.uint64)
    while len(ids) < count:
        more = rng.integers(first, end - 1, count - len(ids), np.uint64, endpoint=True)
        ids = np.sort(np.r_[ids, more])
        ids = ids[np.r_[True, ids[1:] != ids[:-1]]]
    return ids


def _write(file: BinaryIO, *columns: pa.Array | str) -> None:
    """Writes rows with a comma between the columns."""
    texts = pc.binary_join_element_wise(*columns, ",")
    rows = pc.binary_join_element_wise(texts, "\n", "")
    file.write(rows.buffers()[2])


def _write_images(file: BinaryIO, ids: Ids, split: str, rng: np.random.Generator) -> None:
    """Writes a block's rows of the image list, of about 300 bytes each."""
    keys = hex_keys(ids)
    owner, number = (pc.utf8_slice_codeunits(keys, start, start + 9) for start in (0, 7))
    photo = pc.binary_join_element_wise("https://c1.staticflickr.com/4", owner, number, "/")
    bare = pa.array(rng.random(len(ids)) < NO_THUMBNAIL)
    _write(
        file,
        keys,
        split,
        pc.binary_join_element_wise(photo, "_o.jpg", ""),
        pc.binary_join_element_wise("https://www.flickr.com/photos", owner, number, "/"),
        "https://creativecommons.org/licenses/by/2.0/",
        pc.binary_join_element_wise("https://www.flickr.com/people", owner, "/"),
        pc.binary_join_element_wise('"Author, ', owner, '"', ""),
        TITLES.take(pa.array(rng.integers(0, len(TITLES), len(ids)))),
        pc.cast(pa.array(rng.integers(10**5, 10**7, len(ids))), pa.string()),
        pc.binary_join_element_wise(keys, "/+Ab4w==", ""),
        pc.if_else(bare, "", pc.binary_join_element_wise(photo, "_z.jpg", "")),
    )


def _write_labels(
    file: BinaryIO, block: Block, ids: Ids, quota: Quotas, vocabulary: Vocabulary, rng: np.random.Generator
) -> Counter[str]:
    """Writes a block's label rows, by image; returns how many of which kind."""
    names = pa.array([*np.array(vocabulary.trainable)[vocabulary.of_rank], *vocabulary.others])
    positive = [column[block.verified] for column in block.truth]
    image = np.r_[positive[0], block.negatives[0]]
    label = np.r_[positive[1], block.negatives[1]]
    value = np.r_[np.ones(len(positive[0]), np.int64), np.zeros(len(block.negatives[0]), np.int64)]
    crowd = (rng.random(len(image)) < CROWD).astype(np.int64)
    twice = rng.choice(len(positive[0]), min(rng.poisson(TWICE * len(image)), quota.others[0] // 4), replace=False)
    refuted = len(positive[0]) + rng.choice(
        len(block.negatives[0]), min(rng.poisson(CONTRADICTED * len(image)), quota.others[0] // 4), replace=False
    )
    crowd[refuted] = 0
    again = np.r_[twice, refuted]  # rows that say the label again, as positive, and by the other source
    left = (quota.others[0] - len(again), quota.others[1])
    image = np.r_[image, image[again], rng.integers(0, len(ids), sum(left))]
    label = np.r_[label, label[again], rng.integers(CLASSES, len(names), sum(left))]
    value = np.r_[value, np.ones(len(again) + left[0], np.int64), np.zeros(left[1], np.int64)]
    crowd = np.r_[crowd, 1 - crowd[again], np.zeros(sum(left), np.int64)]
    order = np.lexsort((label, image))
    keys, source, named, confidence = (
        hex_keys(ids[image[order]]),
        SOURCES.take(pa.array(crowd[order])),
        names.take(pa.array(label[order])),
        pa.array(["0", "1"]).take(pa.array(value[order])),
    )
    _write(file, keys, source, named, confidence)
    counts = {"rows": len(image), "positive rows": int(value.sum()), "in vocabulary": len(crowd) - sum(left)}
    verified = {"positives": len(positive[0]), "negatives": len(block.negatives[0])}
    return Counter(counts | verified | {"said twice": len(twice), "contradicted": len(refuted)})

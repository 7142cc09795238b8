"""A small Open Images release in the true V3 format, every oddity planted, and what an exact reader must say of it.

Nothing here reads what it wrote: `Planted` is noted down while the files are made.
"""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.odd_images import BROKEN, ODD_FORMS, encoded, picture

SIZES = {"train": 1700, "validation": 160, "test": 150}
NAMED = {
    "/m/01g317": "Person",
    "/m/0bt9lr": "Dog",
    "/m/0k4j": "Car",
    "/m/07j7r": "Tree",
    "/m/0c9ph5": "Flower",
    "/m/011zhg": "Citroën sm",
    "/m/0132x9": "Kakigōri",
    "/m/01c_0l": "Ducks, geese and swans",
    "/m/01crnh": "Meal, ready-to-eat",
    "/m/02wvth": 'Fiat 500 "topolino"',
    "/m/0100nhbf": "Sprenger's tulip",
}
TRAINABLE = tuple(sorted([*NAMED, *(f"/m/0{chr(97 + k // 10)}{k % 10}x_{k}" for k in range(49))]))
OTHER = tuple(f"/g/11{k:02d}q" for k in range(12))
"""Known, not trainable."""
NO_LABEL, NO_POSITIVE, NO_NEGATIVE, ODD = TRAINABLE[10:14]
"""Classes unusable in every split, and one for planted rows that must leave nothing behind, or only what they say."""
USUAL = tuple(c for c in TRAINABLE if c not in (NO_LABEL, NO_POSITIVE, NO_NEGATIVE, ODD))
BAD_IDS = ("000A60E3121C7305", "00060e3121c7305", "0000060e3121c7305", "00z060e3121c7305", "", "é00060e3121c730")
BAD_CONFIDENCES = ("0.7", "", "x", "nan", "2", "-1")
HUMAN, CROWD = "verification", "crowdsource-verification"
THRESHOLD = 0.6
"""Of machine labels, in `Planted.machine`."""
COLUMNS = (
    "ImageID,Subset,OriginalURL,OriginalLandingURL,License,AuthorProfileURL,Author,Title,OriginalSize,OriginalMD5,"
    "Thumbnail300KURL"
)


@dataclass
class Planted:
    """What an exact reader finds in one split."""

    doctor: Counter[str] = field(default_factory=Counter)
    labels: dict[str, dict[str, bool]] = field(default_factory=dict)
    """Image -> trainable class -> positive; only images that have one."""
    outside: set[str] = field(default_factory=set)
    unlabelled: set[str] = field(default_factory=set)
    fates: dict[str, str] = field(default_factory=dict)
    """Of labelled images that cannot be written."""
    special: dict[str, str] = field(default_factory=dict)
    """Name of an odd form -> key of the image that has it."""
    machine: dict[str, set[str]] = field(default_factory=dict)
    """Classes that machine labels of at least THRESHOLD add."""
    rows: list[tuple[str, ...]] = field(default_factory=list)
    machine_rows: list[tuple[str, ...]] = field(default_factory=list)

    def fate(self, key: str) -> str:
        """What becomes of a listed image."""
        if key in self.labels:
            return self.fates.get(key, "written")
        return "no_label" if key in self.unlabelled else "no_label_in_vocabulary"

    def row(self, key: str, label: str, confidence: str, source: str = HUMAN) -> None:
        """A label row as written; counted as the sign it has."""
        self.rows.append((key, source, label, confidence))
        self.doctor["label rows"] += 1
        self.doctor["positives"] += confidence in ("1", "1.0")
        self.doctor["negatives"] += confidence in ("0", "0.0")

    def label(self, key: str, label: str, positive: bool, source: str = HUMAN) -> None:
        """A label that counts."""
        self.row(key, label, str(int(positive)), source)
        self.labels.setdefault(key, {})[label] = positive


@dataclass(frozen=True)
class Release:
    """Where it lies, and what is in it."""

    metadata: Path
    images: Path
    splits: dict[str, Planted]


def make_release(root: Path, seed: int = 0, sizes: dict[str, int] | None = None) -> Release:
    """Write `metadata/2017_11/...` and `images/SPLIT/KEY.jpg`; same seed, same files (of one Pillow)."""
    rng = np.random.default_rng(seed)
    metadata, images = root / "metadata", root / "images"
    splits: dict[str, Planted] = {}
    for split, size in (sizes or SIZES).items():
        keys = [f"{value >> (24 if k % 50 == 0 else 0):016x}" for k, value in enumerate(_random_ids(rng, size))]
        if splits:
            keys[70:72] = list(splits["train"].labels)[200:202]  # a leak: images of the training split
        splits[split] = _plant(split, keys, rng)
        _write_split(metadata / "2017_11" / split, split, keys, splits[split], rng)
        _write_images(images / split, splits[split], rng)
    names = NAMED | {c: f"Class {c[3:]}" for c in TRAINABLE if c not in NAMED} | dict.fromkeys(OTHER, "Other, known")
    with (metadata / "2017_11" / "class-descriptions.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\r\n").writerows(names.items())
    (metadata / "2017_11" / "classes-trainable.txt").write_text("\n".join(TRAINABLE) + "\n")
    return Release(metadata, images, splits)


def _random_ids(rng: np.random.Generator, size: int) -> list[int]:
    return [int(value) for value in rng.integers(2**40, 2**64, size, np.uint64)]


def _plant(split: str, keys: list[str], rng: np.random.Generator) -> Planted:
    planted = Planted()
    planted.unlabelled = set(keys[-5:])
    planted.outside = set(keys[-9:-5])
    for number, key in enumerate(keys[:-9]):  # every usual class has both labels among the first images
        own = {USUAL[number % len(USUAL)]: True, USUAL[(number + 1) % len(USUAL)]: False}
        for label in rng.choice(USUAL[: len(USUAL) // 3], 3):
            own.setdefault(str(label), bool(rng.integers(2)))
        for label, positive in own.items():
            planted.label(key, label, positive)
        if number % 7 == 0:
            planted.row(key, OTHER[number % len(OTHER)], "1")
    for key in planted.outside:
        planted.row(key, OTHER[0], "1")
    for key in keys[:3]:
        planted.label(key, NO_POSITIVE, False)
        planted.label(key, NO_NEGATIVE, True)
    _plant_odd_rows(planted, keys)
    odd_files = keys[72:100]
    planted.fates |= dict.fromkeys(odd_files[:6], "not_found") | dict.fromkeys(odd_files[6:12], "undecodable")
    planted.special |= dict(zip(ODD_FORMS, odd_files[12:], strict=False))
    planted.special |= {"folder": odd_files[5]} | dict(zip(BROKEN, odd_files[6:], strict=False))
    if split == "train":
        _plant_machine(planted, keys)
    return planted


def _plant_odd_rows(planted: Planted, keys: list[str]) -> None:
    """Each on images of its own, with the class ODD, so that what it leaves behind is known."""
    doctor, left = planted.doctor, iter(keys[10:70])
    for first, second in ((HUMAN, CROWD), (CROWD, HUMAN), (HUMAN, "somebody"), (CROWD, "somebody")):
        for positive in (True, False):  # the better source decides
            key = next(left)
            sources = {first: positive, second: not positive}
            for source, value in sources.items():
                planted.row(key, ODD, str(int(value)), source)
            planted.labels[key][ODD] = sources.get(HUMAN, positive)
            doctor["conflicting labels"] += 1
            doctor["label rows of another source"] += "somebody" in sources
    for source in (HUMAN, CROWD, HUMAN):  # divided within the best source: dropped
        key = next(left)
        planted.row(key, ODD, "1", source)
        planted.row(key, ODD, "0", source)
        doctor["conflicting labels"] += 1
        doctor["conflicting labels dropped"] += 1
    key = next(left)  # a worse source that is divided does not matter: rows 1, 0, 0, so one is a duplicate too
    for source, confidence in ((CROWD, "1"), (CROWD, "0"), (HUMAN, "0")):
        planted.row(key, ODD, confidence, source)
    planted.labels[key][ODD] = False
    doctor["conflicting labels"] += 1
    doctor["duplicate labels"] += 1
    for sources in ((HUMAN, HUMAN), (HUMAN, CROWD), (CROWD, CROWD, HUMAN)):
        key = next(left)
        for source in sources:
            planted.row(key, ODD, "1.0", source)
        planted.labels[key][ODD] = True
        doctor["duplicate labels"] += len(sources) - 1
    for confidence in BAD_CONFIDENCES:
        planted.row(next(left), ODD, confidence)
        doctor["confidences other than 0 or 1"] += 1
    for label in ("/m/0nope", "", "Person"):
        planted.row(next(left), label, "1")
        doctor["labels of unknown classes"] += 1
    for bad in BAD_IDS:
        planted.rows.append((bad, HUMAN, ODD, "1"))
        doctor["label rows"] += 1
        doctor["label rows with an id of another shape"] += 1
    for absent in ("00000000000000aa", "ffffffffffffffff", "00000000000000aa"):
        planted.row(absent, ODD, "1")
        doctor["labels of images not listed"] += 1


def _plant_machine(planted: Planted, keys: list[str]) -> None:
    doctor = planted.doctor
    verified, new = keys[105], keys[106]
    other, unlabelled = sorted(planted.outside)[0], sorted(planted.unlabelled)[0]
    (label, _), *_ = planted.labels[verified].items()
    for key, name, confidence in (
        (verified, label, "0.9"),  # somebody looked: never over a verified label
        (new, NO_LABEL, "0.6"),
        (new, NO_LABEL, "0.8"),
        (new, ODD, "0.59"),
        (new, ODD, "?"),
        (other, ODD, "1.0"),
        (unlabelled, ODD, "0.7"),
        (new, OTHER[1], "0.9"),
        (new, "/m/0nope", "0.9"),
        ("ffffffffffffffff", ODD, "0.9"),
        ("FFFFFFFFFFFFFFFF", ODD, "0.9"),
    ):
        planted.machine_rows.append((key, "machine", name, confidence))
    planted.machine = {new: {NO_LABEL}, other: {ODD}, unlabelled: {ODD}}
    machine = {"label rows": 11, "label rows with an id of another shape": 1}
    machine |= {"labels of unknown classes": 1, "labels of images not listed": 1}
    doctor.update({f"machine {name}": count for name, count in machine.items()})
    doctor.update({"machine labels below the threshold": 2, "machine labels added": 3})
    doctor["machine labels already verified"] = 1


def _write_split(folder: Path, split: str, keys: list[str], planted: Planted, rng: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    listed = [(key, split) for key in keys]
    listed += [(keys[k], split) for k in (4, 9, 9, 4)] + [(bad, split) for bad in BAD_IDS[:5]]
    listed[1] = (listed[1][0], "validation" if split == "train" else "train")
    planted.doctor.update({"images listed": len(keys), "images listed twice": 4, "listed images of another subset": 1})
    planted.doctor["image ids of another shape"] += 5
    with (folder / "images.csv").open("w", newline="", encoding="utf-8") as file:
        file.write(COLUMNS + "\n")
        for number, (key, subset) in enumerate(listed):
            title = 'A "quoted"\nline, Ärger' if number % 100 == 3 else f"IMG, {number}"
            fields = (key, subset, f"https://farm5.example.org/{key}_o.jpg", "https://www.example.org/p/", "CC BY 2.0")
            csv.writer(file, lineterminator="\n").writerow(
                (*fields, "https://www.example.org/u", "Zoë", title, 4e6, "x0/+==", "")
            )
    for name, rows in (("human", planted.rows), ("machine", planted.machine_rows)):
        if rows:
            order = rng.permutation(len(rows))
            lines = [
                ",".join(row) for row in (("ImageID", "Source", "LabelName", "Confidence"), *(rows[k] for k in order))
            ]
            (folder / f"annotations-{name}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_images(folder: Path, planted: Planted, rng: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    form_of = {key: (ODD_FORMS | BROKEN)[name] for name, key in planted.special.items() if name != "folder"}
    (folder / f"{planted.special['folder']}.jpg").mkdir()
    for key in planted.labels:
        if key in form_of:
            (folder / f"{key}.jpg").write_bytes(form_of[key](rng))
        elif key not in planted.fates:
            width, height = (int(side) for side in rng.integers(30, 97, 2))
            (folder / f"{key}.jpg").write_bytes(encoded(picture(rng, (width, height)), quality=85))

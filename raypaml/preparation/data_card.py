"""`data_card.json` and `data_card.md`: what a data set holds, what is missing, and the oddities of its labels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import NotRequired, TypedDict, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypaml.data.index import open_index
from raypaml.data.shards import SPLITS
from raypaml.files import write_json, write_whole
from raypaml.labels import GROUP_NAMES, VOCABULARY, IntArray, Vocabulary
from raypaml.names import markdown_line
from raypaml.preparation.findings import Tally
from raypaml.preparation.finish import Finished, count_fates, label_counts
from raypaml.preparation.image_store import Fate
from raypaml.preparation.requests import LABELS, Parameters
from raypaml.preparation.same_pictures import indexes_in, same_picture_lines
from raypaml.stored_json import read_stored, refused_as

CARD = "data_card.json"
SHOWN = 10
"""Names that a line of data_card.md lists before it refers to data_card.json."""


class SplitCard(TypedDict):
    """One split in data_card.json."""

    images: dict[str, int]
    """`requested`, and the images by fate."""
    labels: dict[str, dict[str, int]]
    """How many were `requested` and `written`, by `positives` and `negatives`."""
    official: dict[str, int]
    """Published totals by name."""
    doctor: dict[str, Tally]
    """Oddities of the source's labels."""
    groups: dict[str, dict[str, int]]
    """Classes and labels of each class group."""
    unusable: dict[str, list[str]]
    """Ids of the classes that cannot be trained or scored, by what they lack."""
    classes: dict[str, list[int]]
    """[K] labels of each class, by kind."""
    shards: int


class CardVocabulary(TypedDict):
    """The classes in data_card.json."""

    classes: int
    digest: str
    class_ids: list[str]


class Version(TypedDict):
    """An earlier version of the data set in data_card.json."""

    folder: str
    digest: str
    classes: int
    images: dict[str, int]
    """Images by split."""
    parameters: Parameters
    answers: NotRequired[object]
    """Answers of `raypaml audit` that this version holds."""


class DataCard(TypedDict):
    """data_card.json."""

    digest: str
    """SHA-256 of the vocabulary and the indexes."""
    parameters: Parameters
    vocabulary: CardVocabulary
    lineage: NotRequired[list[Version]]
    """The versions that this one grew from, the first one first."""
    in_two_splits: dict[str, int]
    """Images that two splits share, by `A and B`."""
    same_pictures: NotRequired[list[str]]
    """Lines about pictures that occur more than once; cards of early versions lack them."""
    splits: dict[str, SplitCard]
    answers: NotRequired[object]
    """Answers of `raypaml audit` that were written into the data set."""


def split_card(
    requested: pa.Table,
    finished: Finished,
    vocabulary: Vocabulary,
    doctor: dict[str, Tally],
    official: dict[str, int],
    implied: IntArray | None = None,
) -> SplitCard:
    """Returns the card of one split.

    Args:
        requested: key, positives and negatives of the requested images.
        finished: the images that were written.
        vocabulary: the classes.
        doctor: oddities of the source's labels.
        official: published totals by name.
        implied: class columns of the requested positives that a hierarchy added; None where none was given.
    """
    fates = count_fates(finished.ledger)
    asked, written = (label_counts(table, len(vocabulary)) for table in (requested, finished.index))
    return {
        "images": {"requested": sum(fates.get(fate, 0) for fate in get_args(Fate)), **fates},
        "labels": {name: {"requested": int(asked[name].sum()), "written": int(written[name].sum())} for name in LABELS},
        "official": official,
        "doctor": doctor,
        "groups": {
            name: _group(asked, written, vocabulary.class_group == group)
            for group, name in enumerate(GROUP_NAMES, start=1)
        },
        "unusable": _unusable(written, vocabulary),
        "classes": {
            f"{name} {state}": counts[name].tolist()
            for name in LABELS
            for state, counts in (("requested", asked), ("written", written))
        }
        | ({} if implied is None else {"implied": np.bincount(implied, minlength=len(vocabulary)).tolist()}),
        "shards": len(finished.shards),
    }


def _group(asked: dict[str, IntArray], written: dict[str, IntArray], members: NDArray[np.bool_]) -> dict[str, int]:
    counts = {
        f"{name} {state}": int(table[name][members].sum())
        for name in LABELS
        for state, table in (("requested", asked), ("written", written))
    }
    return {"classes": int(members.sum()), **counts}


def _unusable(written: dict[str, IntArray], vocabulary: Vocabulary) -> dict[str, list[str]]:
    """Returns the ids of classes that this split cannot train or score, by what they lack."""
    positive, negative = written["positives"], written["negatives"]
    lacking = {
        "no label": positive + negative == 0,
        "no positive": (positive == 0) & (negative > 0),
        "no negative": (negative == 0) & (positive > 0),
    }
    return {name: [vocabulary.class_ids[k] for k in np.flatnonzero(mask)] for name, mask in lacking.items()}


def write_card(
    out: Path,
    split: str,
    card: SplitCard,
    parameters: Parameters,
    vocabulary: Vocabulary,
    lineage: Sequence[Version] = (),
) -> str:
    """Writes both files, keeps the other splits as they are, and returns the digest of the whole data set.

    Args:
        out: folder of the data set.
        split: the split that the card is of.
        card: its card.
        parameters: the settings that decided the result.
        vocabulary: the classes.
        lineage: the versions that this one grew from, the first one first.
    """
    path = out / CARD
    before = read_card(out)["splits"] if path.is_file() else {}
    splits = {name: card if name == split else before[name] for name in SPLITS if name == split or name in before}
    keys = {name: open_index(out / f"{name}.arrow").key_column for name in splits}
    pairs = {pair: sorted((keys[name] for name in pair), key=len) for pair in combinations(splits, 2)}
    shared = {  # the table of the smaller split is made, in less time than one of millions of keys
        pair: int(pc.sum(pc.is_in(many, value_set=few)).as_py() or 0) for pair, (few, many) in pairs.items()
    }
    content: DataCard = {
        "digest": whole_digest(out, splits),
        "parameters": parameters,
        "vocabulary": {
            "classes": len(vocabulary),
            "digest": vocabulary.digest,
            "class_ids": list(vocabulary.class_ids),
        },
        "in_two_splits": {f"{a} and {b}": count for (a, b), count in shared.items()},
        "same_pictures": list(same_picture_lines(indexes_in(out, list(splits)))),
        "splits": splits,
    }
    if lineage:
        content["lineage"] = list(lineage)
    write_json(path, content, indent=1, ensure_ascii=False)
    write_whole(out / "data_card.md", "\n".join(card_markdown(content, vocabulary)) + "\n")
    return content["digest"]


def read_card(out: Path) -> DataCard:
    """Returns the card of a data set; ValueError where it is damaged."""
    with refused_as(out / CARD, "the card of a data set", "prepare the data set anew"):
        return read_stored(out / CARD, DataCard)


def same_pictures_in(out: Path) -> list[str]:
    """Returns the lines about repeated pictures from the card, or computes them where an old card lacks them."""
    card = read_card(out)
    if "same_pictures" in card:
        return card["same_pictures"]
    return list(same_picture_lines(indexes_in(out, SPLITS)))


def whole_digest(out: Path, splits: Iterable[str]) -> str:
    """Returns the SHA-256 of vocabulary and indexes, which hold every label and the CRC-32 of every image."""
    digest = hashlib.sha256()
    for name in (VOCABULARY, *(f"{split}.arrow" for split in splits)):
        with (out / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def card_markdown(whole: DataCard, vocabulary: Vocabulary) -> Iterator[str]:
    """Yields the lines of data_card.md."""
    yield "# Data card"
    yield ""
    yield f"Digest of the data: `{whole['digest']}`. {len(vocabulary):,} classes, digest `{vocabulary.digest[:12]}`."
    yield "Class groups G1 (rarest) to G5 follow the source's verified training labels, whichever images could be read."
    yield ""
    yield "Settings: " + ", ".join(f"{name} {value}" for name, value in whole["parameters"].items()) + "."
    if "lineage" in whole:
        yield ""
        yield "It grew from these earlier versions and holds their shards unchanged:"
        yield ""
    for version in whole.get("lineage", ()):
        images = ", ".join(f"{split} {count:,}" for split, count in version["images"].items())
        where, digest = markdown_line(version["folder"]), version["digest"][:16]
        yield f"- {where}, digest `{digest}`: {images}; {version['classes']:,} classes"
    shared = {pair: count for pair, count in whole["in_two_splits"].items() if count}
    if shared:
        yield ""
        yield "**Images in two splits**: " + ", ".join(f"{pair} {count:,}" for pair, count in shared.items()) + "."
    if whole["same_pictures"]:
        yield ""
        yield "**Pictures that occur more than once**, byte for byte the same JPEG:"
        yield ""
        yield from (f"- {line}" for line in whole["same_pictures"])
    for name, card in whole["splits"].items():
        yield from _split_lines(name, card, vocabulary)


def _split_lines(name: str, card: SplitCard, vocabulary: Vocabulary) -> Iterator[str]:
    doctor, official = card["doctor"], card["official"]
    yield ""
    yield f"## {name}"
    yield ""
    if official:
        yield from _official_table(doctor, official)
    yield "| images | count |"
    yield "| --- | ---: |"
    yield from (f"| {fate.replace('_', ' ')} | {count:,} |" for fate, count in card["images"].items())
    yield ""
    yield from _group_table(card)
    yield ""
    yield "Oddities of the labels, over all rows of the source's files:"
    yield ""
    for name, finding in doctor.items():
        examples = f" (such as {', '.join(map(repr, finding['examples']))})" if "examples" in finding else ""
        yield f"- {name}: {finding['count']:,}{examples}"
    for lack, class_ids in card["unusable"].items():
        if class_ids:
            names = [markdown_line(vocabulary.names[vocabulary.index_of[one]]) for one in class_ids[:SHOWN]]
            more = f", and {len(class_ids) - SHOWN:,} more in {CARD}" if len(class_ids) > SHOWN else ""
            yield f"- classes with {lack} in this split: {len(class_ids):,} ({', '.join(names)}{more})"


def _official_table(doctor: dict[str, Tally], official: dict[str, int]) -> Iterator[str]:
    yield "| in the source's files | found | official | difference |"
    yield "| --- | ---: | ---: | ---: |"
    for what, finding in (("images", "images listed"), ("positives", "positives"), ("negatives", "negatives")):
        count = doctor[finding]["count"] if finding in doctor else 0
        yield f"| {what} | {count:,} | {official[what]:,} | {count - official[what]:+,} |"
    yield ""


def _group_table(card: SplitCard) -> Iterator[str]:
    columns = [f"{name} {state}" for name in LABELS for state in ("requested", "written")]
    yield f"| group | classes | {' | '.join(columns)} |"
    yield "| --- |" + " ---: |" * (1 + len(columns))
    groups = card["groups"]
    total = {column: sum(group[column] for group in groups.values()) for column in ("classes", *columns)}
    for name, group in {**groups, "all": total}.items():
        yield f"| {name} | {group['classes']:,} | " + " | ".join(f"{group[column]:,}" for column in columns) + " |"

"""`data_card.json` and `data_card.md`: what a data set holds, what is missing, and what was odd in its source."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypaml.data.index import open_index
from raypaml.data.shards import SPLITS
from raypaml.files import write_json, write_whole
from raypaml.labels import GROUP_NAMES, IntArray, Vocabulary
from raypaml.preparation.finish import Finished, count_fates, label_counts
from raypaml.preparation.image_store import Fate
from raypaml.preparation.requests import LABELS
from raypaml.preparation.same_pictures import indexes_in, said_of_same_pictures

CARD = "data_card.json"
SHOWN = 10
"""Names listed in data_card.md before it refers to data_card.json."""


def split_card(
    requested: pa.Table,
    finished: Finished,
    vocabulary: Vocabulary,
    doctor: dict[str, Any],
    official: dict[str, int],
    implied: IntArray | None = None,
) -> dict[str, Any]:
    """What there is to say of one split.

    Args:
        requested: key, positives, negatives of the images asked for.
        finished: what was written of them.
        doctor: findings in the source's files.
        official: published totals, by name.
        implied: class columns of the requested positives that a hierarchy added, if one was given.
    """
    fates = count_fates(finished.ledger)
    asked, found = (label_counts(table, len(vocabulary)) for table in (requested, finished.index))
    return {
        "images": {"requested": sum(fates.get(fate, 0) for fate in get_args(Fate)), **fates},
        "labels": {name: {"requested": int(asked[name].sum()), "written": int(found[name].sum())} for name in LABELS},
        "official": official,
        "doctor": doctor,
        "groups": {
            name: _group(asked, found, vocabulary.class_group == group)
            for group, name in enumerate(GROUP_NAMES, start=1)
        },
        "unusable": _unusable(found, vocabulary),
        "classes": {
            f"{name} {state}": counts[name].tolist()
            for name in LABELS
            for state, counts in (("requested", asked), ("written", found))
        }
        | ({} if implied is None else {"implied": np.bincount(implied, minlength=len(vocabulary)).tolist()}),
        "shards": len(finished.shards),
    }


def _group(asked: dict[str, IntArray], found: dict[str, IntArray], members: Any) -> dict[str, int]:
    counts = {
        f"{name} {state}": int(table[name][members].sum())
        for name in LABELS
        for state, table in (("requested", asked), ("written", found))
    }
    return {"classes": int(members.sum()), **counts}


def _unusable(found: dict[str, IntArray], vocabulary: Vocabulary) -> dict[str, list[str]]:
    """Classes that this split cannot train or score, by what they lack."""
    positive, negative = found["positives"], found["negatives"]
    lacking = {
        "no label": positive + negative == 0,
        "no positive": (positive == 0) & (negative > 0),
        "no negative": (negative == 0) & (positive > 0),
    }
    return {name: [vocabulary.class_ids[k] for k in np.flatnonzero(mask)] for name, mask in lacking.items()}


def write_card(
    out: Path,
    split: str,
    card: dict[str, Any],
    parameters: dict[str, Any],
    vocabulary: Vocabulary,
    lineage: Sequence[dict[str, Any]] = (),
) -> str:
    """Write both files, with the other splits as they were; returns the digest of the whole data set.

    Args:
        out: folder of the data set.
        split: whose card this is.
        card: what there is to say of it.
        parameters: what decided the result.
        vocabulary: the classes.
        lineage: the versions that this one grew from, the first one first.
    """
    path = out / CARD
    before = json.loads(path.read_text())["splits"] if path.is_file() else {}
    splits = {name: card if name == split else before[name] for name in SPLITS if name == split or name in before}
    content = {
        "digest": whole_digest(out, splits),
        "parameters": parameters,
        "vocabulary": {
            "classes": len(vocabulary),
            "digest": vocabulary.digest,
            "class_ids": list(vocabulary.class_ids),
        },
        **({"lineage": list(lineage)} if lineage else {}),
        "in_two_splits": _in_two_splits(out, splits),
        "same_pictures": list(said_of_same_pictures(indexes_in(out, list(splits)))),
        "splits": splits,
    }
    write_json(path, content, indent=1, ensure_ascii=False)
    write_whole(out / "data_card.md", "\n".join(card_markdown(content, vocabulary)) + "\n")
    return str(content["digest"])


def same_pictures_in(out: Path) -> list[str]:
    """What the card of a data set says of pictures that it holds more than once; cards of earlier versions do not."""
    card = json.loads((out / CARD).read_text())
    if "same_pictures" in card:
        return list(card["same_pictures"])
    return list(said_of_same_pictures(indexes_in(out, SPLITS)))


def whole_digest(out: Path, splits: Iterable[str]) -> str:
    """SHA-256 over vocabulary and indexes, as they are: they hold every label, and of every image its CRC-32."""
    digest = hashlib.sha256()
    for name in ("vocabulary.csv", *(f"{split}.arrow" for split in splits)):
        with (out / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _in_two_splits(out: Path, splits: dict[str, Any]) -> dict[str, int]:
    """Written images that two splits share: a leak from one to the other."""
    keys = {name: open_index(out / f"{name}.arrow").key_column for name in splits}
    pairs = [(a, b) for number, a in enumerate(splits) for b in list(splits)[number + 1 :]]
    return {f"{a} and {b}": int(pc.sum(pc.is_in(keys[b], value_set=keys[a])).as_py() or 0) for a, b in pairs}


def card_markdown(whole: dict[str, Any], vocabulary: Vocabulary) -> Iterator[str]:
    """The lines of data_card.md."""
    yield "# Data card"
    yield ""
    yield f"Digest of the whole: `{whole['digest']}`. {len(vocabulary):,} classes, digest `{vocabulary.digest[:12]}`."
    yield "Class groups G1 (rarest) to G5 count the source's verified training labels, whatever images were found."
    yield ""
    yield "Made with: " + ", ".join(f"{name} {value}" for name, value in whole["parameters"].items()) + "."
    if "lineage" in whole:
        yield ""
        yield "Grown from earlier versions, whose shards it holds as they were:"
        yield ""
    for version in whole.get("lineage", ()):
        images = ", ".join(f"{split} {count:,}" for split, count in version["images"].items())
        yield f"- `{version['folder']}`, digest `{version['digest'][:16]}`: {images}; {version['classes']:,} classes"
    shared = {pair: count for pair, count in whole["in_two_splits"].items() if count}
    if shared:
        yield ""
        yield "**Images in two splits**: " + ", ".join(f"{pair} {count:,}" for pair, count in shared.items()) + "."
    if whole["same_pictures"]:
        yield ""
        yield "**The same picture more than once**, to the byte of its JPEG:"
        yield ""
        yield from (f"- {line}" for line in whole["same_pictures"])
    for name, card in whole["splits"].items():
        yield from _split_lines(name, card, vocabulary)


def _split_lines(name: str, card: dict[str, Any], vocabulary: Vocabulary) -> Iterator[str]:
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
    yield "The label doctor, over all rows of the files:"
    yield ""
    yield from (_finding_line(finding, content) for finding, content in doctor.items())
    for lack, class_ids in card["unusable"].items():
        if class_ids:
            names = [vocabulary.names[vocabulary.index_of[class_id]] for class_id in class_ids[:SHOWN]]
            more = f", and {len(class_ids) - SHOWN:,} more in {CARD}" if len(class_ids) > SHOWN else ""
            yield f"- classes with {lack} here: {len(class_ids):,} ({', '.join(names)}{more})"


def _official_table(doctor: dict[str, Any], official: dict[str, int]) -> Iterator[str]:
    yield "| in the source's files | found | official | difference |"
    yield "| --- | ---: | ---: | ---: |"
    for what, finding in (("images", "images listed"), ("positives", "positives"), ("negatives", "negatives")):
        found = doctor.get(finding, {"count": 0})["count"]
        yield f"| {what} | {found:,} | {official[what]:,} | {found - official[what]:+,} |"
    yield ""


def _group_table(card: dict[str, Any]) -> Iterator[str]:
    columns = [f"{name} {state}" for name in LABELS for state in ("requested", "written")]
    yield f"| group | classes | {' | '.join(columns)} |"
    yield "| --- |" + " ---: |" * (1 + len(columns))
    groups = card["groups"]
    total = {column: sum(group[column] for group in groups.values()) for column in ("classes", *columns)}
    for name, group in {**groups, "all": total}.items():
        yield f"| {name} | {group['classes']:,} | " + " | ".join(f"{group[column]:,}" for column in columns) + " |"


def _finding_line(finding: str, content: dict[str, Any]) -> str:
    examples = f" (such as {', '.join(map(repr, content['examples']))})" if "examples" in content else ""
    return f"- {finding}: {content['count']:,}{examples}"

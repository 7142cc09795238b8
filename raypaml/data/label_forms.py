"""The forms in which tars hold labels: raypaml's own JSON, or one of the forms of tars from elsewhere.

    json                               {"positive": [class ids], "negative": [...]}, and truth and boxes (`flat_json`)
    json:positive=FIELD,negative=FIELD any JSON object; FIELD may be nested (`annotations.verified`); also truth=FIELD
    cls                                KEY.cls: the positive classes, separated by white space
    txt                                KEY.txt: the positive classes, one per line
    output.json:positive=FIELD         JSON in the members KEY.output.json; likewise for the forms cls and txt

A class is given by its id, or by its index in the class list, from 0, if that number is not an id itself. A sample may
have members other than its image and its labels; they are not read.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NotRequired, TypedDict, get_args

from raypaml.stored_json import parse_json

Role = Literal["positive", "negative", "truth"]
ROLES: tuple[Role, ...] = get_args(Role)
OWN = "json"
_OWN_KEY = "[0-9A-Za-z_-]+"
_OWN_CHARACTERS = (string.ascii_letters + string.digits + "_-").encode()
_OTHER_CHARACTERS = bytes(range(0x20, 0x7F)).replace(b"/", b"")
"""The characters of most keys in tars that raypaml did not write; every printable one but the slash is allowed."""
TRUTH_KNOWN = "truth_known"
BOX_LISTS = ("box_class", "box_x0", "box_y0", "box_x1", "box_y1")

Box = tuple[str, float, float, float, float]
"""Class id, and the corners x0 y0 x1 y1 in pixels."""


class SampleLabels(TypedDict):
    """The labels of one sample, as class ids."""

    positive: Sequence[str]
    negative: Sequence[str]
    truth: NotRequired[Sequence[str]]
    """All positive classes, where the full labels are known."""
    boxes: NotRequired[Sequence[Box]]


@dataclass(frozen=True)
class LabelForm:
    """One form of labels in a tar."""

    name: str
    """The form as it is given by a flag and stored in an index."""
    class_ids: tuple[str, ...] = ()
    """The class list; empty if it is not known yet."""
    image_suffix: str = ""
    """The suffix after the key in the name of the image, such as `input.jpg`; empty: the JPEG, else the only image."""
    dotted_keys: bool = False
    """Whether keys contain dots. A key then ends before the suffix of image or labels, else at the last dot; otherwise
    it ends at the first dot."""

    def __post_init__(self) -> None:
        mark = self.name.partition(":")[1]
        known = set(self.fields) <= set(ROLES) and "positive" in self.fields and all(self.fields.values())
        plain = self.kind in ("cls", "txt") and not mark
        if not (self.is_own or plain or (self.kind == "json" and mark and known)):
            raise ValueError(f"labels={self.name!r}: expected json, json:positive=FIELD[,negative=FIELD], cls or txt")
        if self.is_own and (self.image_suffix or self.dotted_keys):
            raise ValueError(
                "labels='json': raypaml's own shards have KEY.jpg and keys without dots; say "
                "--labels json:positive=FIELD,negative=FIELD for the tars of others"
            )

    @classmethod
    def from_index(cls, remembered: Mapping[str, str], class_ids: Sequence[str]) -> LabelForm:
        """The form that is stored in the metadata of an index, with its class list."""
        name, suffix = remembered.get("label_form", OWN), remembered.get("image_suffix", "")
        return cls(name, tuple(class_ids), suffix, "dotted_keys" in remembered)

    def for_index(self) -> dict[str, str]:
        """The metadata to store in the index of such tars; empty for raypaml's own form."""
        remembered = {"label_form": "" if self.is_own else self.name, "image_suffix": self.image_suffix}
        remembered["dotted_keys"] = "1" if self.dotted_keys else ""
        return {name: value for name, value in remembered.items() if value}

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.class_ids)

    @property
    def is_own(self) -> bool:
        """Whether this is raypaml's own form."""
        return self.name == OWN

    @property
    def usual_characters(self) -> bytes:
        """ASCII characters: a text of these alone, and at least one of them, may be a key; others may be keys too."""
        return _OWN_CHARACTERS if self.is_own else _OTHER_CHARACTERS

    @property
    def key_rule(self) -> str:
        """What is allowed in a key, for messages."""
        remedy = "; tars of others are read with --labels json:positive=positive,negative=negative"
        return f" {_OWN_KEY}{remedy}" if self.is_own else " of printable characters, within the tar"

    def is_key(self, text: str) -> bool:
        """Whether a text may be the key of a sample."""
        if self.is_own:
            return re.fullmatch(_OWN_KEY, text) is not None
        return text.isprintable() and text != "" and "/" not in text

    @property
    def suffix(self) -> str:
        """The suffix after the key in the name of the member that holds the labels."""
        return self.name.partition(":")[0]

    @property
    def kind(self) -> str:
        """How that member is parsed: json, cls or txt."""
        return self.suffix.rpartition(".")[2]

    @property
    def fields(self) -> dict[str, str]:
        """The field of the JSON for each role."""
        pairs = (pair.partition("=") for pair in self.name.partition(":")[2].split(",") if pair)
        return {role: field for role, _, field in pairs}

    def read(self, content: bytes, where: str) -> SampleLabels:
        """The labels of one sample, each class once. Raises ValueError, whose message begins with `where`."""
        labels = own_labels(content, where) if self.is_own else self._foreign_labels(content, where)
        for role in ROLES:
            if role in labels:
                labels[role] = list(dict.fromkeys(labels[role]))
        return labels

    def _foreign_labels(self, content: bytes, where: str) -> SampleLabels:
        roles = self._values(content, where)
        ids = {role: [self._class_id(value, where) for value in values] for role, values in roles.items()}
        labels = SampleLabels(positive=ids["positive"], negative=ids.get("negative", []))
        if "truth" in ids:
            labels["truth"] = ids["truth"]
        return labels

    def _values(self, content: bytes, where: str) -> Mapping[str, Sequence[object]]:
        """The values listed for each role, which are not checked yet."""
        if self.kind == "json":
            record = _object(content, where)
            return {role: _field(record, field, where) for role, field in self.fields.items()}
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}: not text ({error})") from None
        lines = (line.strip() for line in text.splitlines())
        return {"positive": text.split() if self.kind == "cls" else [line for line in lines if line]}

    def _class_id(self, value: object, where: str) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise ValueError(f"{where}: {value!r} is no class; expected ids or numbers")
        text = str(value)
        if not self.class_ids or text in self._known:
            return text
        if text.isdecimal() and int(text) < len(self.class_ids):
            return self.class_ids[int(text)]
        raise ValueError(f"{where}: class {text!r} is not among the {len(self.class_ids)} of the class list")


def flat_json(labels: SampleLabels) -> bytes:
    """SampleLabels as JSON that has the same keys with values of the same types in every sample.

    Arrow can then infer the types of its columns, and HF datasets and Ray Data read shards without pickled objects. A
    box is therefore one element in each of five lists, and a field says whether the full labels are known.
    """
    boxes = [(name, *map(float, corners)) for name, *corners in labels.get("boxes", ())]
    lists = zip(*boxes, strict=True) if boxes else ((),) * len(BOX_LISTS)
    roles = {role: labels.get(role, ()) for role in ROLES}
    return json.dumps(roles | {TRUTH_KNOWN: "truth" in labels} | dict(zip(BOX_LISTS, lists, strict=True))).encode()


def own_labels(content: bytes, where: str) -> SampleLabels:
    """Read JSON of raypaml's own form, as `flat_json` writes it or as earlier versions did.

    Raises:
        ValueError: it is not of this form; the message begins with `where`.
    """
    record = _object(content, where)
    lists: dict[str, Any] = {name: record.get(name, []) for name in (*ROLES, "boxes", *BOX_LISTS)}
    if not {"positive", "negative"} <= set(record) or not all(isinstance(value, list) for value in lists.values()):
        raise ValueError(f"{where}: expected an object with the lists 'positive' and 'negative'")
    strange = [value for role in ROLES for value in lists[role] if not isinstance(value, str)]
    if strange:
        raise ValueError(f"{where}: {strange[0]!r} is no class; expected ids as texts")
    labels = SampleLabels(positive=lists["positive"], negative=lists["negative"])
    if "truth" in record and record.get(TRUTH_KNOWN, True):
        labels["truth"] = lists["truth"]
    if TRUTH_KNOWN in record:
        sides = [lists[name] for name in BOX_LISTS]
        if len(set(map(len, sides))) > 1:
            raise ValueError(f"{where}: the lists {', '.join(BOX_LISTS)} are not of the same length")
        labels["boxes"] = list(zip(*sides, strict=True))
    elif "boxes" in record:
        labels["boxes"] = lists["boxes"]
    return labels


def _object(content: bytes, where: str) -> dict[str, object]:
    try:
        record = parse_json(content)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error})") from None
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected an object with the lists 'positive' and 'negative'")
    return record


def _field(record: dict[str, object], field: str, where: str) -> Sequence[object]:
    """The value of a field, whose names are separated by dots, as a list."""
    value: object = record
    for name in field.split("."):
        if not isinstance(value, dict) or name not in value:
            raise ValueError(f"{where}: no field {field!r}")
        value = value[name]
    return value if isinstance(value, list) else [value]

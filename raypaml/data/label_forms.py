"""How the labels of a tar are written: raypaml's own JSON, or a small mapping for the tars of others.

    json                               {"positive": [class ids], "negative": [...]}, and truth and boxes (`flat_json`)
    json:positive=FIELD,negative=FIELD any JSON object; FIELD may lead inside (`annotations.verified`); also truth=FIELD
    cls                                KEY.cls: the classes that are positive, separated by blanks
    txt                                KEY.txt: the same, one a line
    output.json:positive=FIELD         of the members KEY.output.json; likewise for the other forms of others

A class is its id, or, where it is a number that is no id, its place in the class list, from 0. Beside its image and
its labels a sample may have other members; they are not read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

ROLES = ("positive", "negative", "truth")
OWN = "json"
TRUTH_KNOWN = "truth_known"
BOX_LISTS = ("box_class", "box_x0", "box_y0", "box_x1", "box_y1")


@dataclass(frozen=True)
class LabelForm:
    """One way of writing labels."""

    name: str
    """As it is given; what an index remembers."""
    class_ids: tuple[str, ...] = ()
    """The class list, if it is known before."""
    image_suffix: str = ""
    """What follows the key in the name of the image, such as `input.jpg`; empty: the JPEG, else the only image."""
    dotted_keys: bool = False
    """Keys have dots: they end where the suffix of image or labels begins, else at the last dot, not at the first."""

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
        """The form that an index remembers, with its class list."""
        name, suffix = remembered.get("label_form", OWN), remembered.get("image_suffix", "")
        return cls(name, tuple(class_ids), suffix, "dotted_keys" in remembered)

    def for_index(self) -> dict[str, str]:
        """What the index of such tars remembers; nothing of raypaml's own."""
        remembered = {"label_form": "" if self.is_own else self.name, "image_suffix": self.image_suffix}
        remembered["dotted_keys"] = "1" if self.dotted_keys else ""
        return {name: value for name, value in remembered.items() if value}

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.class_ids)

    @property
    def is_own(self) -> bool:
        """Whether it is raypaml's own."""
        return self.name == OWN

    @property
    def suffix(self) -> str:
        """What follows the key in the name of the member that holds the labels."""
        return self.name.partition(":")[0]

    @property
    def kind(self) -> str:
        """How that member is read: json, cls or txt."""
        return self.suffix.rpartition(".")[2]

    @property
    def fields(self) -> dict[str, str]:
        """Field of the JSON by role."""
        pairs = (pair.partition("=") for pair in self.name.partition(":")[2].split(",") if pair)
        return {role: field for role, _, field in pairs}

    def read(self, content: bytes, where: str) -> dict[str, Any]:
        """The labels of one sample, each once, as raypaml's own JSON says them; ValueError, beginning with `where`."""
        labels = own_labels(content, where) if self.is_own else self._of_others(content, where)
        return labels | {role: list(dict.fromkeys(labels[role])) for role in ROLES if role in labels}

    def _of_others(self, content: bytes, where: str) -> dict[str, Any]:
        if self.kind == "json":
            found = _object(content, where)
            roles = {role: _field(found, field, where) for role, field in self.fields.items()}
        else:
            try:
                text = content.decode()
            except UnicodeDecodeError as error:
                raise ValueError(f"{where}: not text ({error})") from None
            lines = (line.strip() for line in text.splitlines())
            roles = {"positive": text.split() if self.kind == "cls" else [line for line in lines if line]}
        return {"negative": []} | {role: [self._class_id(v, where) for v in values] for role, values in roles.items()}

    def _class_id(self, value: Any, where: str) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise ValueError(f"{where}: {value!r} is no class; expected ids or numbers")
        text = str(value)
        if not self.class_ids or text in self._known:
            return text
        if text.isdecimal() and int(text) < len(self.class_ids):
            return self.class_ids[int(text)]
        raise ValueError(f"{where}: class {text!r} is not among the {len(self.class_ids)} of the class list")


def flat_json(labels: dict[str, Any]) -> bytes:
    """Labels as `own_labels` gives them, as JSON with the same keys and types in every sample.

    So Arrow can tell the types of its columns, and HF datasets and Ray Data read shards without pickled objects: a box
    is five numbers and texts at the same place of five lists, and that the full labels are not known is a field.
    """
    boxes = [(name, *map(float, corners)) for name, *corners in labels.get("boxes", ())]
    lists = zip(*boxes, strict=True) if boxes else ((),) * len(BOX_LISTS)
    roles = {role: labels.get(role, ()) for role in ROLES}
    return json.dumps(roles | {TRUTH_KNOWN: "truth" in labels} | dict(zip(BOX_LISTS, lists, strict=True))).encode()


def own_labels(content: bytes, where: str) -> dict[str, Any]:
    """A JSON of raypaml's own form, flat or as it was before, with `boxes` as a list and `truth` only where known.

    Raises:
        ValueError: beginning with `where`, if it is not that.
    """
    labels = _object(content, where)
    lists = (labels.get(name, []) for name in (*ROLES, "boxes", *BOX_LISTS))
    if not {"positive", "negative"} <= set(labels) or not all(isinstance(found, list) for found in lists):
        raise ValueError(f"{where}: expected an object with the lists 'positive' and 'negative'")
    for value in (value for role in ROLES for value in labels.get(role, ()) if not isinstance(value, str)):
        raise ValueError(f"{where}: {value!r} is no class; expected ids as texts")
    if TRUTH_KNOWN not in labels:
        return labels
    sides = [labels.get(name, []) for name in BOX_LISTS]
    if len(set(map(len, sides))) > 1:
        raise ValueError(f"{where}: the lists {', '.join(BOX_LISTS)} are not of the same length")
    roles = {role: labels[role] for role in ROLES if role in labels and (role != "truth" or labels[TRUTH_KNOWN])}
    return roles | {"boxes": list(zip(*sides, strict=True))}


def _object(content: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{where}: expected an object with the lists 'positive' and 'negative'")
    return found


def _field(found: Any, field: str, where: str) -> Sequence[Any]:
    """What a field holds, as a list."""
    for name in field.split("."):
        if not isinstance(found, dict) or name not in found:
            raise ValueError(f"{where}: no field {field!r}")
        found = found[name]
    return found if isinstance(found, list) else [found]

"""What an index says of itself in the metadata of its Arrow file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from raypaml.cli import command
from raypaml.data.label_forms import LabelForm
from raypaml.stored_json import parse_json

_FORMAT = 1
INDEX_AGAIN = f"copy it again or write it again with {command('shard index')} DIR"
"""The remedy in every message about a damaged index."""
TAR_FORM = ("label_form", "image_suffix", "dotted_keys")
"""Keys of the metadata that say how samples are written in tars that raypaml did not write."""
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MOST = 2**31 - 1
"""The most classes and shards, whose numbers are int32."""
_MOST_BYTES = 2**62
"""More bytes than any shard has, and few enough to be added."""


@dataclass(frozen=True, kw_only=True)
class IndexFacts:
    """The metadata of an index."""

    shards: list[str]
    """File names of the shards."""
    shard_bytes: list[int]
    """Their sizes."""
    vocabulary: str
    """Digest of the ordered class ids (`Vocabulary.digest`)."""
    vocabulary_content: str
    """Digest of the whole vocabulary (`Vocabulary.content_digest`); empty in indexes of earlier versions."""
    num_classes: int
    has_truth: bool
    """Whether the full labels are known."""
    tar_form: dict[str, str]
    """How samples are written in tars that raypaml did not write (`data.label_forms`), by the keys TAR_FORM."""

    @classmethod
    def of(cls, metadata: Mapping[bytes, bytes] | None, where: Path) -> IndexFacts:
        """Read and check metadata. Raises ValueError, which names the file, the key, its value and what is allowed."""
        try:
            meta = {key.decode(): value.decode() for key, value in (metadata or {}).items()}
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}: metadata that are not UTF-8 ({error}); {INDEX_AGAIN}") from None
        if meta.get("format") != str(_FORMAT):
            raise ValueError(
                f"{where}: not an index of format {_FORMAT}; write it again with {command('shard index')} DIR"
            )
        reader = _Reader(meta, where)
        shards = reader.names("shards")
        return cls(
            shards=shards,
            shard_bytes=reader.sizes(len(shards)),
            vocabulary=reader.digest("vocabulary"),
            vocabulary_content=reader.digest("vocabulary_content") if "vocabulary_content" in meta else "",
            num_classes=reader.number("num_classes", 1, _MOST),
            has_truth=reader.number("has_truth", 0, 1) == 1,
            tar_form={name: meta[name] for name in TAR_FORM if name in meta},
        )._checked(where)

    def metadata(self) -> dict[str, str]:
        """The metadata to write."""
        return {
            "format": str(_FORMAT),
            "shards": json.dumps(self.shards),
            "shard_bytes": json.dumps(self.shard_bytes),
            "vocabulary": self.vocabulary,
            "vocabulary_content": self.vocabulary_content,
            "num_classes": str(self.num_classes),
            "has_truth": str(int(self.has_truth)),
            **self.tar_form,
        }

    @property
    def form(self) -> LabelForm:
        """How samples are written in the shards."""
        return LabelForm.from_index(self.tar_form, ())

    def _checked(self, where: Path) -> IndexFacts:
        for name in self.shards:
            if name in ("", ".", "..") or "/" in name or not name.isprintable():
                raise ValueError(f"{where}: names shards outside its folder, such as {name!r}; {INDEX_AGAIN}")
        try:
            _ = self.form
        except ValueError as error:
            raise ValueError(f"{where}: {error}; {INDEX_AGAIN}") from None
        return self


@dataclass(frozen=True)
class _Reader:
    """Values of metadata, each of the type that it must have."""

    meta: Mapping[str, str]
    where: Path

    def refuse(self, name: str, expected: str) -> NoReturn:
        shown = repr(self.meta[name][:60]) if name in self.meta else "missing"
        raise ValueError(f"{self.where}: {name} is {shown}, expected {expected}; {INDEX_AGAIN}")

    def digest(self, name: str) -> str:
        if not _DIGEST.fullmatch(self.meta.get(name, "")):
            self.refuse(name, "64 hexadecimal digits")
        return self.meta[name]

    def number(self, name: str, least: int, most: int) -> int:
        text = self.meta.get(name, "")
        if not (text.isascii() and text.isdigit() and len(text) < 12 and least <= int(text) <= most):
            self.refuse(name, f"a number in {least}..{most}")
        return int(text)

    def names(self, name: str) -> list[str]:
        names = self._json(name)
        if not isinstance(names, list) or len(names) > _MOST or not all(isinstance(one, str) for one in names):
            self.refuse(name, "a JSON list of texts")
        return names

    def sizes(self, count: int) -> list[int]:
        sizes = self._json("shard_bytes")
        fine = isinstance(sizes, list) and all(type(size) is int and 0 <= size < _MOST_BYTES for size in sizes)
        if not isinstance(sizes, list) or not fine or len(sizes) != count:
            self.refuse("shard_bytes", f"a JSON list of {count:,} sizes in bytes")
        return sizes

    def _json(self, name: str) -> object:
        try:
            return parse_json(self.meta.get(name, ""))
        except ValueError:
            return self.refuse(name, "JSON")

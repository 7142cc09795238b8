"""What a preparation was asked for, and what of it decides the bytes of the data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from raypaml.labels import Vocabulary
from raypaml.preparation.growing import Earlier
from raypaml.preparation.image_form import ImageForm, codec_versions
from raypaml.preparation.requests import Classes, SplitLabels


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What was asked for."""

    out: Path
    images: str
    source: str
    """Name of the kind of files the labels come from."""
    settings: dict[str, Any]
    """Further settings of the source that decide the result, for the record."""
    classes: Classes
    read_split: Callable[[str], SplitLabels]
    official: dict[str, dict[str, int]]
    """Published totals by split."""
    form: ImageForm
    seed: int = 0
    shard_samples: int = 2000
    shard_bytes: int = 0
    """Bytes of a shard, about; 0: shards are cut by samples."""
    limit: int = 0
    """Images of each split; 0: all."""
    workers: int = 1
    address: str = ""
    concurrency: int = 32
    says_splits: bool = True
    """The labels say the split of each image, so that it may lie in a folder named for that."""
    earlier: Earlier | None = None
    """The version that this one grows from; only what is new is asked for."""
    json: Literal["flat", "nested"] = "flat"
    """How the labels beside each image are written (`data.shards.write_shard`); nested: as earlier versions did."""

    def parameters(self) -> dict[str, Any]:
        """What decides the bytes of the result."""
        size = {"shard_bytes": self.shard_bytes} if self.shard_bytes else {"shard_samples": self.shard_samples}
        return {
            "source": self.source,
            "vocabulary": Vocabulary.digest_of(self.classes.class_ids),
            **self.settings,
            **self.form.parameters(),
            "json": self.json,
            "codec": codec_versions(),
            **size,
            "seed": self.seed,
            "limit": self.limit,
            **({"grown_from": self.earlier.digest[:16]} if self.earlier else {}),
        }

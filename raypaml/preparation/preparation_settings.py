"""The settings of one preparation, and which of them decide the bytes of the data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from raypaml.labels import Vocabulary
from raypaml.preparation.growing import Earlier
from raypaml.preparation.image_form import ImageForm, codec_versions
from raypaml.preparation.requests import Classes, Parameters, SplitLabels


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """The settings of one preparation."""

    out: Path
    """The folder of the data set."""
    images: str
    """The folder or address of the images."""
    source: str
    """The kind of files that the labels come from, such as `openimages` or `table`."""
    settings: Parameters
    """Further settings of the source that decide the result, for the record."""
    classes: Classes
    read_split: Callable[[str], SplitLabels]
    """Reads the labels of a split."""
    official: dict[str, dict[str, int]]
    """Published totals by split and then by name; empty where none are known."""
    form: ImageForm
    seed: int = 0
    """Seed of the order of the images."""
    shard_samples: int = 2000
    """Images requested per shard, unless `shard_bytes` is given."""
    shard_bytes: int = 0
    """Approximate size of a shard in bytes; 0 cuts shards by `shard_samples`."""
    limit: int = 0
    """Number of images prepared of each split; 0 prepares all."""
    workers: int = 1
    """Number of processes."""
    address: str = ""
    """Ray cluster to join; empty starts a private one where there are several workers."""
    concurrency: int = 32
    """Images that each worker fetches at once."""
    says_splits: bool = True
    """Whether the labels name the split of each image, so that images may lie in folders named after splits."""
    earlier: Earlier | None = None
    """The version that this one grows from; then only new images are prepared."""
    json: Literal["flat", "nested"] = "flat"
    """How the labels beside each image are written (`data.shards.write_shard`); earlier versions wrote `nested`."""

    def parameters(self) -> Parameters:
        """Returns the settings that decide the bytes of the result, by name."""
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

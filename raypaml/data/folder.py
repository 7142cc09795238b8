"""Open a prepared data set and refuse it, before anything starts, if its parts do not belong together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from raypaml.data.digits import HIDINGS, digits_folder
from raypaml.data.index import Index, open_index
from raypaml.data.shards import SPLITS
from raypaml.labels import Vocabulary


@dataclass(frozen=True)
class DataFolder:
    """A data set: its folder, its vocabulary, and one checked index per split."""

    path: Path
    vocabulary: Vocabulary
    splits: dict[str, Index]


def resolve_data(data: str, say: Callable[[str], None] = lambda _: None) -> Path:
    """The folder behind a `--data` value: a path, or `digits[:HIDING[:SEED]]`, written, and said so, on first use."""
    name, *options = data.split(":")
    if name != "digits":
        return Path(data)
    if len(options) > 2 or (options and options[0] not in HIDINGS) or not all(o.isdigit() for o in options[1:]):
        raise ValueError(f"data={data!r}: expected digits[:HIDING[:SEED]] with HIDING one of {', '.join(HIDINGS)}")
    return digits_folder(options[0] if options else "single_positive", int(options[1]) if options[1:] else 0, say=say)


def open_folder(path: Path) -> DataFolder:
    """Open a data folder written by `data.shards`.

    Raises:
        ValueError: missing or empty folder, shards without index, an index of another vocabulary, shards that are
            missing or of another size than indexed, labels that contradict each other.
    """
    if not path.is_dir() or not any(path.iterdir()):
        raise ValueError(f"data={path}: {'empty' if path.is_dir() else 'no such'} folder; shard a data set into it")
    if list(path.glob("*.tar")) and not list(path.glob("*.arrow")):
        raise ValueError(f"data={path}: shards without an index; write it with tools/index_shards.py")
    vocabulary = Vocabulary.read(path / "vocabulary.csv")
    return DataFolder(path, vocabulary, {split: _open_split(path, split, vocabulary) for split in SPLITS})


def _open_split(path: Path, split: str, vocabulary: Vocabulary) -> Index:
    where = path / f"{split}.arrow"
    if not where.is_file():
        raise ValueError(f"{where}: no index of split {split!r}; training needs {', '.join(SPLITS)}")
    index = open_index(where)
    if index.vocabulary_digest != vocabulary.digest:
        raise ValueError(
            f"{where}: made with another vocabulary ({index.num_classes} classes, digest "
            f"{index.vocabulary_digest[:12]}) than {path / 'vocabulary.csv'} ({len(vocabulary)} classes, digest "
            f"{vocabulary.digest[:12]}); put the right vocabulary back or index the shards again"
        )
    if not len(index):
        raise ValueError(f"{where}: no samples in split {split!r}")
    for shard, size in zip(index.shards, index.shard_bytes, strict=True):
        found = (path / shard).stat().st_size if (path / shard).is_file() else None
        if found != size:
            state = "missing" if found is None else f"{found:,} bytes"
            raise ValueError(f"{path / shard}: {state}, the index says {size:,} bytes; copy or write the shard again")
    index.check()
    return index

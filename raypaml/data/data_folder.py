"""Opens a prepared data set, on this machine or in a store, and checks that its parts belong together."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from pyarrow import fs

from raypaml.cli import command
from raypaml.data.cache import CachedShards, copy
from raypaml.data.digits import HIDINGS, digits_folder
from raypaml.data.index import Index, open_index
from raypaml.data.shard_files import LocalShards, Shards
from raypaml.data.shards import SPLITS
from raypaml.data.storage import Location, brief, with_retries
from raypaml.files import kept_in, sweep, user_cache, whole
from raypaml.labels import VOCABULARY, Vocabulary

_NO_FOLDER = "no such folder; shard a data set into it, or say with --data where it is now"


@dataclass(frozen=True)
class DataFolder:
    """An opened data set: its place, its vocabulary, one checked index per split, and its shards."""

    path: Path | Location
    vocabulary: Vocabulary
    splits: dict[str, Index]
    shards: Shards

    @property
    def address(self) -> str:
        """The place in a form that other processes can open: an absolute path, or an address."""
        return str(self.path.absolute() if isinstance(self.path, Path) else self.path)


def resolve_data(data: str, say: Callable[[str], None] = lambda _: None) -> Path | Location:
    """The place that a value of `--data` means: a path, an address, or `digits[:HIDING[:SEED]]`.

    The data set `digits` is written on its first use, which `say` is told.
    """
    if not data:
        raise ValueError("data='': must not be empty; give a folder, such as data=.")
    name, *options = data.split(":")
    if name != "digits":
        where = Location(data)
        return where if "://" in data else Path(data)
    seeds = [option for option in options[1:] if re.fullmatch("[0-9]{1,18}", option)]
    if len(options) > 2 or (options and options[0] not in HIDINGS) or len(seeds) != len(options[1:]):
        raise ValueError(f"data={data!r}: expected digits[:HIDING[:SEED]] with HIDING one of {', '.join(HIDINGS)}")
    return digits_folder(options[0] if options else "single_positive", int(options[1]) if options[1:] else 0, say=say)


def open_folder(
    data: Path | Location | str, *, cache: str = "", cache_gb: float = 50.0, lenient: bool = False
) -> DataFolder:
    """Open a data folder written by `data.shards`.

    Args:
        data: a path, or the address of a folder in a store, whose index and vocabulary are then copied into the cache.
        cache: the folder of this node for files of a store; empty: `shards` in the user's cache (XDG_CACHE_HOME).
        cache_gb: the most shards that the cache keeps, in 10^9 bytes.
        lenient: do not check here that all shards are there and have the indexed size; reading will.

    Raises:
        ValueError: the folder is missing or empty; shards have no index; an index is damaged or was made with another
            vocabulary; shards are missing or have another size than indexed; or the store does not answer.
    """
    where = Location(str(data))
    if where.is_local:
        path = data if isinstance(data, Path) else Path(where.open()[1])
        if not path.is_dir():
            raise ValueError(
                f"data={path}: no such folder; shard a data set into it, or say with --data where it is now"
            )
        with os.scandir(path) as entries:
            sizes = {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
        _check_listing(path, sizes)
        return _with_shards(path, *_described(path), sizes, LocalShards(path), lenient=lenient)
    sizes, digest = _listed_remote(where)
    _check_listing(where, sizes)
    root = kept_in(Path(cache), "set --cache") if cache else kept_in(user_cache() / "shards")
    shards = CachedShards(where, root, digest, int(cache_gb * 1e9))
    copied = root / f"{digest}-index"
    _copy_index(where, copied, sizes)
    try:
        described = _described(copied)
    except ValueError:  # a copy that was damaged in the cache is fetched again, as a shard is
        shutil.rmtree(copied, ignore_errors=True)
        _copy_index(where, copied, sizes)
        described = _described(copied)
    return _with_shards(where, *described, sizes, shards, lenient=lenient)


def _described(folder: Path) -> tuple[Vocabulary, dict[str, Index]]:
    """The vocabulary and the index of each split, which belong together."""
    vocabulary = Vocabulary.read(folder / VOCABULARY)
    return vocabulary, {split: _open_split(folder, split, vocabulary) for split in SPLITS}


def _with_shards(
    where: Path | Location,
    vocabulary: Vocabulary,
    splits: dict[str, Index],
    sizes: Mapping[str, int],
    shards: Shards,
    *,
    lenient: bool,
) -> DataFolder:
    for index in () if lenient else splits.values():
        _check_shards(index, sizes, shards)
    return DataFolder(where, vocabulary, splits, shards)


def _listed_remote(where: Location) -> tuple[dict[str, int], str]:
    """The size of every file, by its name, and a digest that changes with index and vocabulary."""
    filesystem, path = where.open()
    try:
        infos = with_retries(lambda: filesystem.get_file_info(fs.FileSelector(path)), str(where))
    except FileNotFoundError:
        raise ValueError(
            f"data={where}: no such folder; shard a data set into it, or say with --data where it is now"
        ) from None
    except OSError as error:
        raise ValueError(f"data={where}: cannot be reached: {brief(error)}") from None
    files = {info.base_name: info for info in infos if info.is_file}
    marks = [(name, files[name].size, files[name].mtime_ns) for name in sorted(files) if not name.endswith(".tar")]
    digest = hashlib.sha256(repr((str(where), marks)).encode()).hexdigest()[:16]
    return {name: info.size for name, info in files.items()}, digest


def _check_listing(where: Path | Location, names: Collection[str]) -> None:
    if not names:
        raise ValueError(f"data={where}: empty folder; shard a data set into it")
    if any(name.endswith(".tar") for name in names) and not any(name.endswith(".arrow") for name in names):
        raise ValueError(f"data={where}: shards without an index; write it with {command('shard index')} DIR")


def _copy_index(where: Location, folder: Path, sizes: Mapping[str, int]) -> None:
    """Copy index and vocabulary; processes that do so at the same time all write the same files."""
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder, shared=True)
    for name in (VOCABULARY, *(f"{split}.arrow" for split in SPLITS)):
        if name in sizes and not (folder / name).is_file():
            try:
                with whole(folder / name, shared=True) as unfinished:
                    copy(where / name, unfinished, sizes[name])
            except OSError as error:
                raise ValueError(f"{where / name}: cannot be read: {brief(error)}") from None


def _open_split(path: Path, split: str, vocabulary: Vocabulary) -> Index:
    where = path / f"{split}.arrow"
    if not where.is_file():
        raise ValueError(f"{where}: no index of split {split!r}; training needs {', '.join(SPLITS)}")
    index = open_index(where)
    check_vocabulary(index, vocabulary, path / VOCABULARY)
    if not len(index):
        raise ValueError(f"{where}: no samples in split {split!r}")
    return index


def check_vocabulary(index: Index, vocabulary: Vocabulary, where: Path) -> None:
    """Raise ValueError unless an index was made with this vocabulary, which lies at `where`.

    Indexes of earlier versions know the ids of the classes only, not their names and counts.
    """
    if (index.vocabulary_digest, index.num_classes) != (vocabulary.digest, len(vocabulary)):
        raise ValueError(
            f"{index.where}: made with another vocabulary ({index.num_classes} classes, digest "
            f"{index.vocabulary_digest[:12]}) than {where} ({len(vocabulary)} classes, digest "
            f"{vocabulary.digest[:12]}); put the right vocabulary back or index the shards again"
        )
    if index.vocabulary_content not in ("", vocabulary.content_digest):
        raise ValueError(
            f"{where}: names of classes or counts of training labels are not those with which {index.where.name} was "
            f"made; put the file back as it was, or write both again with {command('shard index')} DIR"
        )


def _check_shards(index: Index, sizes: Mapping[str, int], shards: Shards) -> None:
    for shard, size in zip(index.shards, index.shard_bytes, strict=True):
        actual = sizes.get(shard)
        if actual != size:
            state = "missing" if actual is None else f"{actual:,} bytes"
            raise ValueError(
                f"{shards.where(shard)}: {state}, the index says {size:,} bytes; copy or write the shard again"
            )

"""The pseudo labels of a run: a file with a known SHA-256, read once per node into a table that its workers share."""

from __future__ import annotations

import fcntl
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from raypaml.config import TrainConfig
from raypaml.data.cache import copy
from raypaml.data.data_folder import DataFolder
from raypaml.data.score_table import ScoreTable, open_scores, write_scores
from raypaml.data.storage import Location, brief
from raypaml.files import file_digest, kept_in, sweep, user_cache
from raypaml.losses.schemes import scheme_of
from raypaml.runs.pseudo_label_file import read_pseudo_labels

_KEPT = "pseudo_labels"
_FORM = "1"
"""Version of the tables and of how files are read; where it changes, tables are made again."""


def with_pseudo_labels(config: TrainConfig, data: DataFolder, say: Callable[[str], None]) -> TrainConfig:
    """Read and check the file of pseudo labels, and record its SHA-256 and full path in the configuration.

    Args:
        config: the configuration; returned as it is where its scheme takes no pseudo labels.
        data: the data set.
        say: takes a line about what was read.

    Raises:
        ValueError: the scheme needs a file and none is given; the file cannot be used; or it has not the SHA-256 that
            the configuration names.
    """
    loss = config.loss
    if not scheme_of(loss.scheme).takes_pseudo_labels:
        return config
    if not loss.pseudo_labels:
        raise ValueError(
            f"scheme={loss.scheme} needs pseudo labels: give --pseudo-labels FILE, a Parquet or CSV with the columns "
            'key, class and score; losses/README.md, "Pseudo labels", says how to make one'
        )
    with _on_this_machine(config) as file:
        try:
            digest = file_digest(file)
        except OSError as error:
            raise ValueError(f"pseudo_labels={loss.pseudo_labels}: cannot be read: {brief(error)}") from None
        if loss.pseudo_labels_sha256 not in ("", digest):
            raise ValueError(
                f"pseudo_labels={loss.pseudo_labels}: SHA-256 {digest[:12]}, and not {loss.pseudo_labels_sha256[:12]} "
                "with which the run was begun; give the same file, or for a new run another --name and the file by "
                "--pseudo-labels, without --pseudo-labels-sha256"
            )
        table = _made(file, digest, config, data)
    say(f"pseudo labels {loss.pseudo_labels}: {table.about}")
    where = loss.pseudo_labels if "://" in loss.pseudo_labels else str(Path(loss.pseudo_labels).absolute())
    return config.override({"pseudo_labels": where, "pseudo_labels_sha256": digest})


def open_pseudo_labels(config: TrainConfig, data: DataFolder) -> ScoreTable:
    """Open the table of a run's pseudo labels; the first process of a node that needs it reads the file."""
    path = _place(config.loss.pseudo_labels_sha256, config, data)
    if not (config.loss.pseudo_labels_sha256 and path.is_file()):
        config = with_pseudo_labels(config, data, lambda _: None)
        path = _place(config.loss.pseudo_labels_sha256, config, data)
    return open_scores(path, len(data.splits["train"]), len(data.vocabulary))


def _folder(config: TrainConfig) -> Path:
    """The folder in which this node keeps the tables."""
    cache = config.data.cache
    return kept_in(Path(cache) / _KEPT, "set --cache") if cache else kept_in(user_cache() / _KEPT)


def _place(digest: str, config: TrainConfig, data: DataFolder) -> Path:
    """The path of the table of a file, for the classes and samples of a data set."""
    index = data.splits["train"]
    known = hashlib.sha256(json.dumps([_FORM, data.vocabulary.class_ids, data.vocabulary.names, index.shards]).encode())
    for chunk in index.key_column.chunks:
        for buffer in filter(None, chunk.buffers()):
            known.update(buffer)
    return _folder(config) / f"{digest[:16]}-{known.hexdigest()[:16]}.arrow"


def _made(file: Path, digest: str, config: TrainConfig, data: DataFolder) -> ScoreTable:
    """Make the table of a file, unless another process of this node has made it, for which this one waits."""
    path, index, num_classes = _place(digest, config, data), data.splits["train"], len(data.vocabulary)
    with (path.with_suffix(".lock")).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.is_file():
            labels = read_pseudo_labels(file, config.loss.pseudo_labels, data)
            write_scores(path, labels.cells, labels.scores, len(index), num_classes, labels.about)
    return open_scores(path, len(index), num_classes)


@contextmanager
def _on_this_machine(config: TrainConfig) -> Iterator[Path]:
    """Yield the file's path; a file in a store is copied, and the copy removed afterwards."""
    name, folder = config.loss.pseudo_labels, _folder(config)
    sweep(folder, shared=True)
    where = Location(name)
    if where.is_local:
        yield Path(where.open()[1])
        return
    with tempfile.TemporaryDirectory(dir=folder) as unfinished:
        # the suffix says whether it is compressed; the rest of the name may be anything
        target = Path(unfinished) / f"copy{Path(name.partition('?')[0]).suffix[:9]}"
        try:
            copy(where, target, 1 << 62)
        except OSError as error:
            raise ValueError(f"pseudo_labels={name}: cannot be read: {brief(error)}") from None
        yield target

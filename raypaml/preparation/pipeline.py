"""Prepare a data set from somebody's files: join labels, write shards by one process or many, account for everything.

Shared by the tools that shard: a source gives labelled keys and a place where images are, the rest is here. Killed at
any moment and given again, the same command ends with the same bytes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypaml.cli import clock
from raypaml.data.shards import SPLITS
from raypaml.files import write_whole
from raypaml.labels import Vocabulary
from raypaml.mapper import Mapper, OpenMapper
from raypaml.preparation.asked import Preparation
from raypaml.preparation.data_card import same_pictures_in, split_card, write_card
from raypaml.preparation.finish import collect_shards, ledger_summary, write_implied, write_ledger, write_split_index
from raypaml.preparation.growing import check_settings, group_changes, joined, joined_vocabulary
from raypaml.preparation.image_store import Archives, Store, find_images
from raypaml.preparation.probe import PROBE_IMAGES, Probe, probe
from raypaml.preparation.record import (
    check_folder,
    claimed,
    is_split_finished,
    remove_if_finished,
    remove_work,
    table_digest,
    write_record,
)
from raypaml.preparation.requests import SplitLabels, types_first
from raypaml.preparation.shard_tasks import (
    ShardJob,
    asked_for,
    is_read,
    is_shard_finished,
    write_archive_shards,
    write_store_shard,
)
from raypaml.preparation.sharding_progress import Progress

TAR_BYTES = 2048
"""Of a sample beside its image: two headers, its labels, padding."""


def prepare_data(asked: Preparation, splits: list[str], open_mapper: OpenMapper, say: Callable[[str], None]) -> None:
    """Prepare these splits into `asked.out`, going on where an interrupted run stopped.

    Raises:
        ValueError: what is wrong with files, folders, images or settings; what is finished stays.
    """
    _check(asked)
    record = check_folder(asked.out, asked.parameters())
    with claimed(asked.out) as work:
        write_record(asked.out, record)
        left = [split for split in splits if not is_split_finished(record, split)]
        for split in splits:
            if split not in left:
                say(f"{split}: finished before; nothing to do (--verify reads it again)")
                remove_work(work, split)
        if left:
            with open_mapper(asked.workers, asked.address) as run:
                for split in left:
                    _prepare_split(asked, split, work, record, run, say)
                    remove_work(work, split)
        remove_if_finished(work, record)
    if asked.earlier:
        say(group_changes(asked.earlier, Vocabulary.read(asked.out / "vocabulary.csv")))
    for line in same_pictures_in(asked.out):
        say(line)
    say(ledger_summary(asked.out))


def _check(asked: Preparation) -> None:
    for name, least in {"concurrency": 1, "shard_samples": 1, "limit": 0, "seed": 0, "shard_bytes": 0}.items():
        if getattr(asked, name) < least:
            raise ValueError(f"{name}={getattr(asked, name)}: must be at least {least}")
    if asked.earlier:
        check_settings(asked.earlier, asked.parameters())


def _prepare_split(
    asked: Preparation, split: str, work: Path, record: dict[str, Any], run: Mapper, say: Callable[[str], None]
) -> None:
    labels, requests = _requests(asked, split, say)
    vocabulary = _vocabulary(asked, split, labels, say)
    source = _find(asked, split, requests)
    job = _begin(asked, split, source, requests, work, record)
    complete = job.work / "complete"
    if len(requests) and not complete.is_file():
        write: Callable[..., None] = write_archive_shards if isinstance(source, Archives) else write_store_shard
        with Progress(split, job, len(requests), say):
            for _ in run(write, _calls(job, split, requests, source)):
                pass
        os.sync()  # from here on no receipt is compared with its shard again: after a power cut one may be empty
        write_whole(complete, b"")  # from here on shards leave for their final names
    _finish(asked, split, job, labels, vocabulary, requests, say)
    os.sync()  # final names and index, before the record says that they are there
    record["splits"][split]["finished"] = True
    write_record(asked.out, record)


def _find(asked: Preparation, split: str, requests: pa.Table) -> Store | Archives:
    listed = not requests["file"].null_count
    return find_images(asked.images, split, asked.concurrency, listed=listed, by_split=asked.says_splits)


def _begin(
    asked: Preparation, split: str, source: Store | Archives, requests: pa.Table, work: Path, record: dict[str, Any]
) -> ShardJob:
    """Settle how the split is cut into shards, or check that it is still cut so."""
    layout = "archives" if isinstance(source, Archives) else "files"
    plan: dict[str, Any] = {"labels": table_digest(requests), "from": layout}
    before = record["splits"].get(split)
    if before:
        plan["shard_samples"] = before["shard_samples"]
    else:
        plan["shard_samples"] = _shard_samples(asked, split, source, requests) if len(requests) else 0
    changed = [f"{name}={before[name]} (now: {plan[name]})" for name in plan if before and before[name] != plan[name]]
    if changed:
        raise ValueError(
            f"out={asked.out}: {split} was begun with {', '.join(changed)}; give the same files, or another --out"
        )
    record["splits"][split] = plan
    write_record(asked.out, record)
    flat = asked.json == "flat"
    job = ShardJob(work / split, asked.classes.class_ids, asked.form, asked.seed, plan["shard_samples"], flat)
    job.work.mkdir(exist_ok=True)
    return job


def _finish(
    asked: Preparation,
    split: str,
    job: ShardJob,
    labels: SplitLabels,
    vocabulary: Vocabulary,
    requests: pa.Table,
    say: Callable[[str], None],
) -> None:
    """Give every shard its final name, and write vocabulary, index, ledger and card."""
    first = asked.earlier.shards(split) if asked.earlier else 0
    finished = collect_shards(job, asked.out, split, requests["key"], labels, first)
    if len(requests) and not len(finished.index):
        raise ValueError(f"images={asked.images}: not one of {len(requests):,} images of split {split!r} was written")
    if asked.earlier:
        finished = joined(asked.earlier, split, finished, len(vocabulary), asked.out)
        requests = asked.earlier.requested(split, requests)
    vocabulary.write(asked.out / "vocabulary.csv")
    write_split_index(asked.out, split, finished, vocabulary)
    write_ledger(asked.out, split, finished.ledger)
    implied = None
    if labels.implied is not None:
        added = asked.earlier.implied(split, labels.implied) if asked.earlier else labels.implied
        implied = write_implied(asked.out, split, added, requests["key"])["class"].to_numpy()
    card = split_card(requests, finished, vocabulary, labels.findings.to_dict(), asked.official.get(split, {}), implied)
    lineage = asked.earlier.lineage() if asked.earlier else ()
    digest = write_card(asked.out, split, card, asked.parameters(), vocabulary, lineage)
    fates = {name: count for name, count in card["images"].items() if not name.startswith("no_label")}
    say(f"{split}: " + ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in fates.items()))
    say(f"{split}: {len(finished.shards):,} shards; digest of the data set so far {digest[:16]}")


def _requests(asked: Preparation, split: str, say: Callable[[str], None]) -> tuple[SplitLabels, pa.Table]:
    """The split's labels, and its labelled images in the order of the shards."""
    say(f"{split}: reading labels")
    labels = asked.read_split(split)
    if not len(labels.table) and not asked.earlier:
        raise ValueError(f"split {split!r}: no image has a label among the {len(asked.classes.class_ids):,} classes")
    order = np.random.default_rng([asked.seed, SPLITS.index(split)]).permutation(len(labels.table))
    requests = labels.table.take(pa.array(order[: asked.limit or None])).combine_chunks()
    requests = types_first(requests) if asked.json == "flat" else requests
    say(f"{split}: {len(labels.table):,} labelled images, {len(requests):,} of them asked for")
    return labels, requests


def _vocabulary(asked: Preparation, split: str, labels: SplitLabels, say: Callable[[str], None]) -> Vocabulary:
    """With the counts of the training split, whichever split is prepared: all splits share one."""
    path = asked.out / "vocabulary.csv"
    if path.is_file():
        return Vocabulary.read(path)
    if split != "train":
        say("train: reading labels, for the counts in vocabulary.csv")
        labels = asked.read_split("train")
    counts = labels.verified
    vocabulary = Vocabulary(
        class_ids=asked.classes.class_ids,
        names=asked.classes.names,
        train_positives=counts["positives"],
        train_negatives=counts["negatives"],
    )
    return joined_vocabulary(asked.earlier, vocabulary) if asked.earlier else vocabulary


def _shard_samples(asked: Preparation, split: str, source: Store | Archives, requests: pa.Table) -> int:
    """Images asked for per shard; looks at the first images, also to see that they are there."""
    seen = _probe(asked, split, source, requests)
    if not asked.shard_bytes:
        return asked.shard_samples
    if not seen.written:
        raise ValueError(f"shard_bytes={asked.shard_bytes}: none of the first {seen.asked} images could be read")
    return max(1, round(asked.shard_bytes * seen.asked / ((seen.bytes_written + TAR_BYTES) * seen.written)))


def _probe(asked: Preparation, split: str, source: Store | Archives, requests: pa.Table) -> Probe:
    many = len(requests) if isinstance(source, Archives) else PROBE_IMAGES
    return probe(source, split, asked_for(requests.slice(0, many)), asked.form)


def _calls(job: ShardJob, split: str, requests: pa.Table, source: Store | Archives) -> Iterator[tuple[Any, ...]]:
    """The tasks that are left: a shard each, or an archive each."""
    if isinstance(source, Store):
        for number, first in enumerate(range(0, len(requests), job.shard_samples)):
            if not is_shard_finished(job, f"{number:06d}"):
                rows = requests.slice(first, job.shard_samples).combine_chunks()
                yield job, f"{number:06d}", rows, source
        return
    for number, (file, prefix) in enumerate(source.prefixes(split)):
        unit = f"{number:02d}"
        if not is_read(job, unit):
            yield job, unit, requests.filter(pc.starts_with(requests["key"], prefix)).combine_chunks(), file


def describe_preparation(asked: Preparation, splits: list[str], say: Callable[[str], None]) -> None:
    """Say what would be done, how large it would be and how long it would take, and write nothing."""
    _check(asked)
    check_folder(asked.out, asked.parameters())
    total = 0.0
    cores = asked.workers if asked.address else os.cpu_count() or 1  # a cluster's are not known from here
    for split in splits:
        _, requests = _requests(asked, split, say)
        if not len(requests):
            say(f"{split}: nothing new")
            continue
        source = _find(asked, split, requests)
        seen = _probe(asked, split, source, requests)
        share = seen.written / seen.asked
        size = share * len(requests) * seen.bytes_written
        total += size
        seconds = seen.seconds_for(len(requests), asked.workers, cores)
        say(
            f"{split}: of the first {seen.asked} images {seen.written} can be written, {seen.bytes_read / 1e3:.0f} kB "
            f"read and {seen.bytes_written / 1e3:.0f} kB written each; so about {share * len(requests):,.0f} images, "
            f"{size / 1e9:.2f} GB, {clock(seconds)} with {asked.workers} workers"
        )
        say(
            f"{split}: the time rests on these {seen.asked} images, read and converted by one process of this machine, "
            f"{1e3 * seen.seconds:.1f} ms and {1e3 * seen.processor_seconds:.1f} ms of processor time each, and on "
            f"{cores} cores; starting workers and writing shards come on top"
        )
    where = next(folder for folder in (asked.out, *asked.out.absolute().parents) if folder.is_dir())
    say(f"in all about {total / 1e9:.2f} GB; {shutil.disk_usage(where).free / 1e9:.2f} GB are free at {asked.out}")

"""Prepares a data set from a user's files: joins labels, writes shards in parallel, and accounts for every image.

Every kind of `raypaml shard` ends here: a source provides labelled keys and the place of the images. A command that was
killed at any moment continues when it is given again, and ends with the same bytes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypaml.counting import clock, number_of
from raypaml.data.shards import SPLITS
from raypaml.data.storage import Location
from raypaml.files import write_whole
from raypaml.labels import VOCABULARY, Vocabulary
from raypaml.mapper import Mapper, OpenMapper
from raypaml.preparation.data_card import same_pictures_in, split_card, write_card
from raypaml.preparation.finish import collect_shards, ledger_summary, write_implied, write_ledger, write_split_index
from raypaml.preparation.freed_memory import give_back_memory
from raypaml.preparation.growing import check_settings, group_changes, joined, joined_vocabulary
from raypaml.preparation.image_store import Archives, Store, find_images
from raypaml.preparation.preparation_settings import Preparation
from raypaml.preparation.probe import PROBE_IMAGES, Probe, probe
from raypaml.preparation.record import (
    Record,
    SplitPlan,
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
    is_read,
    is_shard_finished,
    keys_and_files,
    write_archive_shards,
    write_store_shard,
)
from raypaml.preparation.sharding_progress import Progress

TAR_BYTES = 2048
"""Approximate bytes of a sample besides its image: two headers, its labels, and padding."""


def prepare_data(
    preparation: Preparation, splits: list[str], open_mapper: OpenMapper, say: Callable[[str], None]
) -> None:
    """Prepares these splits into `preparation.out`, and continues where an interrupted run stopped.

    Raises:
        ValueError: files, folders, images or settings are wrong; finished shards stay.
    """
    record = _checked_record(preparation)
    with claimed(preparation.out) as work:
        write_record(preparation.out, record)
        left = [split for split in splits if not is_split_finished(record, split)]
        for split in splits:
            if split not in left:
                say(f"{split}: is finished; nothing to do (--verify reads it again)")
                remove_work(work, split)
        if left:
            with open_mapper(preparation.workers, preparation.address) as run:
                for split in left:
                    _prepare_split(preparation, split, work, record, run, say)
                    remove_work(work, split)
        remove_if_finished(work, record)
    if preparation.earlier:
        say(group_changes(preparation.earlier, Vocabulary.read(preparation.out / VOCABULARY)))
    for line in same_pictures_in(preparation.out):
        say(line)
    say(ledger_summary(preparation.out))


def _checked_record(preparation: Preparation) -> Record:
    """Returns the record of the folder; ValueError where its settings, or those of the earlier one, are others."""
    if preparation.earlier:
        check_settings(preparation.earlier, preparation.parameters())
    return check_folder(preparation.out, preparation.parameters())


def _prepare_split(
    preparation: Preparation, split: str, work: Path, record: Record, run: Mapper, say: Callable[[str], None]
) -> None:
    labels, requests = _requests(preparation, split, say)
    give_back_memory()  # before shards are written for minutes
    vocabulary = _vocabulary(preparation, split, labels, say)
    source = _find(preparation, split, requests)
    job = _begin(preparation, split, source, requests, work, record)
    complete = job.work / "complete"
    if len(requests) and not complete.is_file():
        write: Callable[..., None] = write_archive_shards if isinstance(source, Archives) else write_store_shard
        with Progress(split, job, len(requests), say):
            for _ in run(write, _calls(job, split, requests, source)):
                pass
        os.sync()  # receipts are not compared with their shards again, and after a power cut one may be empty
        write_whole(complete, b"")  # from here on shards leave for their final names
    _finish(preparation, split, job, labels, vocabulary, requests, say)
    os.sync()  # final names and index reach the disk before the record says that the split is finished
    record["splits"][split]["finished"] = True
    write_record(preparation.out, record)


def _find(preparation: Preparation, split: str, requests: pa.Table) -> Store | Archives:
    listed = not requests["file"].null_count
    return find_images(
        preparation.images, split, preparation.concurrency, listed=listed, by_split=preparation.says_splits
    )


def _begin(
    preparation: Preparation, split: str, source: Store | Archives, requests: pa.Table, work: Path, record: Record
) -> ShardJob:
    """Decides how the split is cut into shards, or checks that an interrupted run cut it in the same way."""
    layout = "archives" if isinstance(source, Archives) else "files"
    before = record["splits"].get(split)
    if before:
        shard_samples = before["shard_samples"]
    else:
        shard_samples = _shard_samples(preparation, split, source, requests) if len(requests) else 0
    plan: SplitPlan = {"labels": table_digest(requests), "from": layout, "shard_samples": shard_samples}
    if before:
        pairs = {"labels": (before["labels"], plan["labels"]), "from": (before["from"], plan["from"])}
        changed = [f"{name}={was} (now: {now})" for name, (was, now) in pairs.items() if was != now]
        if changed:
            raise ValueError(
                f"out={preparation.out}: {split} was begun with {', '.join(changed)}; give the same files, or another "
                "--out"
            )
    record["splits"][split] = plan
    write_record(preparation.out, record)
    flat = preparation.json == "flat"
    job = ShardJob(
        work / split, preparation.classes.class_ids, preparation.form, preparation.seed, plan["shard_samples"], flat
    )
    job.work.mkdir(exist_ok=True)
    return job


def _finish(
    preparation: Preparation,
    split: str,
    job: ShardJob,
    labels: SplitLabels,
    vocabulary: Vocabulary,
    requests: pa.Table,
    say: Callable[[str], None],
) -> None:
    """Gives every shard its final name, and writes vocabulary, index, ledger and card."""
    first = preparation.earlier.shards(split) if preparation.earlier else 0
    finished = collect_shards(job, preparation.out, split, requests["key"], labels, first)
    if len(requests) and not len(finished.index):
        raise ValueError(
            f"images={preparation.images}: none of the {len(requests):,} images of split {split!r} was written"
        )
    if preparation.earlier:
        finished = joined(preparation.earlier, split, finished, len(vocabulary), preparation.out)
        requests = preparation.earlier.requested(split, requests)
    vocabulary.write(preparation.out / VOCABULARY)
    with ThreadPoolExecutor(1) as beside:  # the ledger of nine million images takes as long as all the rest
        ledger = beside.submit(write_ledger, preparation.out, split, finished.ledger)
        write_split_index(preparation.out, split, finished, vocabulary)
        implied = None
        if labels.implied is not None:
            added = preparation.earlier.implied(split, labels.implied) if preparation.earlier else labels.implied
            implied = write_implied(preparation.out, split, added, requests["key"])["class"].to_numpy()
        card = split_card(
            requests, finished, vocabulary, labels.findings.to_dict(), preparation.official.get(split, {}), implied
        )
        lineage = preparation.earlier.lineage() if preparation.earlier else ()
        digest = write_card(preparation.out, split, card, preparation.parameters(), vocabulary, lineage)
        ledger.result()
    fates = {name: count for name, count in card["images"].items() if not name.startswith("no_label")}
    say(f"{split}: " + ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in fates.items()))
    say(f"{split}: {number_of(len(finished.shards), 'shard')}; digest of the data set so far {digest[:16]}")


def _requests(preparation: Preparation, split: str, say: Callable[[str], None]) -> tuple[SplitLabels, pa.Table]:
    """Returns the labels of a split, and the requests for its images in the order of the shards."""
    say(f"{split}: reading labels")
    labels = preparation.read_split(split)
    give_back_memory()
    if not len(labels.table) and not preparation.earlier:
        raise ValueError(
            f"split {split!r}: no image has a label among the {len(preparation.classes.class_ids):,} classes"
        )
    order = np.random.default_rng([preparation.seed, SPLITS.index(split)]).permutation(len(labels.table))
    order = order[: preparation.limit or None]
    if preparation.json == "flat":
        order = types_first(labels.table, order)
    requests = labels.table.take(pa.array(order)).combine_chunks()
    say(f"{split}: {len(labels.table):,} labelled images, {len(requests):,} of them requested")
    return replace(labels, table=labels.table.schema.empty_table()), requests  # not held twice while shards are written


def _vocabulary(preparation: Preparation, split: str, labels: SplitLabels, say: Callable[[str], None]) -> Vocabulary:
    """Returns the vocabulary that all splits share, with the label counts of train, whichever split is prepared."""
    path = preparation.out / VOCABULARY
    if path.is_file():
        return Vocabulary.read(path)
    if split != "train":
        say("train: reading labels, for the counts in vocabulary.csv")
        labels = preparation.read_split("train")
    counts = labels.verified
    vocabulary = Vocabulary(
        class_ids=preparation.classes.class_ids,
        names=preparation.classes.names,
        train_positives=counts["positives"],
        train_negatives=counts["negatives"],
    )
    return joined_vocabulary(preparation.earlier, vocabulary) if preparation.earlier else vocabulary


def _shard_samples(preparation: Preparation, split: str, source: Store | Archives, requests: pa.Table) -> int:
    """Returns the number of images requested per shard; reads the first images, and refuses where none exists."""
    seen = _probe(preparation, split, source, requests)
    if not preparation.shard_bytes:
        return preparation.shard_samples
    if not seen.written:
        raise ValueError(f"shard_bytes={preparation.shard_bytes}: none of the first {seen.asked} images could be read")
    return max(1, round(preparation.shard_bytes * seen.asked / ((seen.bytes_written + TAR_BYTES) * seen.written)))


def _probe(preparation: Preparation, split: str, source: Store | Archives, requests: pa.Table) -> Probe:
    if isinstance(source, Archives):  # all keys of Open Images V3 took 0.7 GB, in a list and a set
        _, prefix = next(source.prefixes(split))
        first = requests.filter(pc.starts_with(requests["key"], prefix))
    else:
        first = requests.slice(0, PROBE_IMAGES)
    return probe(source, split, keys_and_files(first), preparation.form)


def _calls(
    job: ShardJob, split: str, requests: pa.Table, source: Store | Archives
) -> Iterator[tuple[ShardJob, str, pa.Table, Store | Location]]:
    """Yields the calls that are left: one for each shard, or one for each archive."""
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


def describe_preparation(preparation: Preparation, splits: list[str], say: Callable[[str], None]) -> None:
    """Says what would be written, how large it would be and how long it would take; writes nothing."""
    _checked_record(preparation)
    total = 0.0
    cores = preparation.workers if preparation.address else os.cpu_count() or 1  # those of a cluster are not known here
    for split in splits:
        _, requests = _requests(preparation, split, say)
        if not len(requests):
            say(f"{split}: nothing new")
            continue
        source = _find(preparation, split, requests)
        seen = _probe(preparation, split, source, requests)
        share = seen.written / seen.asked
        size = share * len(requests) * seen.bytes_written
        total += size
        seconds = seen.seconds_for(len(requests), preparation.workers, cores)
        say(
            f"{split}: {seen.written} of the first {seen.asked} images can be written, with "
            f"{seen.bytes_read / 1e3:.0f} kB read and {seen.bytes_written / 1e3:.0f} kB written each; the split will "
            f"have about {share * len(requests):,.0f} images and {size / 1e9:.2f} GB, and take {clock(seconds)} with "
            f"{number_of(preparation.workers, 'worker')}"
        )
        say(
            f"{split}: the time is estimated from these {seen.asked} images, read and converted by one process in "
            f"{1e3 * seen.seconds:.1f} ms and {1e3 * seen.processor_seconds:.1f} ms of processor time each, and from "
            f"{cores} cores; starting workers and writing shards take more"
        )
    where = next(folder for folder in (preparation.out, *preparation.out.absolute().parents) if folder.is_dir())
    say(
        f"in all about {total / 1e9:.2f} GB; {shutil.disk_usage(where).free / 1e9:.2f} GB are free at {preparation.out}"
    )

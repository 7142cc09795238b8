"""The history of a run: a record for each finished epoch, the lines of metrics.jsonl, and figures made of them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NotRequired, TypedDict, cast

from raypaml.json_types import Figure, check
from raypaml.runs.run_files import METRICS_FILE
from raypaml.stored_json import LARGEST_RECORD, parse_json, read_whole, refused_as

VALIDATION_MEAN_AP: Final = "validation_mean_ap"
"""Name of the mean AP on the validation split, 0..1: in records, in result.json, and in the tables of a search."""

RejectedClasses = TypedDict(
    "RejectedClasses",
    {"class": list[int], "rejected": list[int], "rejected_missed": list[int] | None, "missed": list[int] | None},
)
"""What an epoch rejected of the classes that have anything to count, in columns of equal length: class number, rejected
entries, those of them that were missed positives, all missed positives; None where the truth is not known."""


class CallbackStop(TypedDict):
    """A callback's wish to end training after an epoch."""

    why: str
    """The callback and its reason; empty on ranks other than 0."""
    epochs: int
    """How many epochs the run was asked for; more than these lift the wish."""


class Drift(TypedDict):
    """The class activation maps of a run compared with its reference's, for the positive labels of probe images.

    None where there is no such label, or, of `pointing_game`, no known box.
    """

    rank_correlation: float | None
    """Median rank correlation of the two maps of a label; near 1: the same places."""
    scale_ratio: float | None
    """Top attributions over the reference's."""
    scale_ratio_boosted: float | None
    """The same after BoostLU, with each model's alpha of training."""
    top: float | None
    """Median top attribution."""
    top_reference: float | None
    """Median top attribution of the reference."""
    pointing_game: float | None
    """Share of the maps whose top attribution is within a known box."""
    seconds: float
    """What the comparison took."""
    share_of_epoch: float
    """These seconds over those of the epoch's training."""


class Usage(TypedDict):
    """What an epoch used; shares are means over ranks, 0..1, and None where they were not counted."""

    epoch_seconds: float
    """Spent training in this epoch."""
    images_per_second: float
    """Rate of all ranks together."""
    data_wait_share: float | None
    """Share of the training time in which ranks waited for data."""
    collective_share: float | None
    """Share of the training time in which collectives held ranks up."""
    peak_memory_bytes: int | None
    """Most that any rank used: on a GPU what torch allocated in this epoch, on the CPU what the process ever held."""
    model_flop_utilisation: float | None
    """Operations that training takes over the devices' peak in that time; None where the peak is not known."""


class EpochRecord(TypedDict):
    """What a finished epoch came to: a line of metrics.jsonl, and what callbacks are given.

    The keys never change. Those marked NotRequired are of some runs only, or are lacking in records of earlier
    versions. Sums and means are over all ranks.
    """

    epoch: int
    """From 0."""
    loss: float
    """Mean over the samples."""
    expected: int
    """Samples of the training split."""
    samples: int
    """Samples trained on."""
    skipped: int
    """Broken samples, and those of steps that were not finite, left out; with `samples` they make `expected`."""
    rejected: int
    """Entries rejected."""
    rejection_rate: NotRequired[float]
    """Rejected entries over all entries, 0..1."""
    rejected_missed: int | None
    """Rejected entries that were missed positives; None, as the three below, where the truth is not known."""
    missed: int | None
    """Unobserved entries that are positive in truth."""
    rejection_precision: float | None
    """`rejected_missed` over `rejected`; None also where nothing was rejected."""
    rejection_recall: float | None
    """`rejected_missed` over `missed`; None also where nothing was missed."""
    rejections_by_class: NotRequired[RejectedClasses | None]
    """None where nothing was rejected."""
    corrected: int
    """Entries corrected for good so far, by LL-Cp."""
    validation_skipped: int
    """Broken samples of the validation split."""
    validation_mean_ap: Figure
    """Mean AP on the validation split, 0..1; NaN where no class has a positive."""
    validation_groups: dict[str, Figure]
    """Mean AP on the validation split by class group, G1 to G5."""
    seconds: float
    """Spent training so far, in all epochs together."""
    learning_rate: NotRequired[float]
    """The backbone's in the last step."""
    head_learning_rate: NotRequired[float]
    """The head's in the last step."""
    micro_batch_size: NotRequired[int]
    """Images that a worker took through the network at once; 0: its whole part of the batch."""
    epoch_seconds: NotRequired[float]
    """This and the next five: as in `Usage`."""
    images_per_second: NotRequired[float]
    data_wait_share: NotRequired[float | None]
    collective_share: NotRequired[float | None]
    peak_memory_bytes: NotRequired[int | None]
    model_flop_utilisation: NotRequired[float | None]
    workers: NotRequired[int]
    """Workers at the end of the epoch."""
    trained_worker_seconds: NotRequired[float | None]
    """Time of this epoch's steps, summed over the workers that there were; None where it was not counted."""
    held_worker_seconds: NotRequired[float]
    """Worker-seconds of the run so far (`runs.worker_time`): training, validation, saving, starting, and what was lost.
    This and the next are in the records that rank 0 writes."""
    lost_worker_seconds: NotRequired[float]
    """Those of them that were lost to restarts."""
    drift: NotRequired[Drift]
    """Where the run has a reference."""
    stop: NotRequired[CallbackStop]
    """Where a callback ended training after this epoch."""


History = list[EpochRecord]


def read_history(folder: Path) -> History:
    """The records of the epochs that a run has ended, from its folder; ValueError where a line is damaged."""
    path = folder / METRICS_FILE
    if not path.is_file():
        return []
    with refused_as(path, "the metrics of a run", "train the run again"):
        records = [parse_json(line) for line in read_whole(path, LARGEST_RECORD).splitlines()]
        for number, record in enumerate(records, start=1):
            check(record, EpochRecord, f"line {number}")
        return records


def history_text(history: Iterable[EpochRecord]) -> str:
    """The content of metrics.jsonl."""
    return "".join(json.dumps(record) + "\n" for record in history)


def column(history: Iterable[EpochRecord], key: str) -> list[float | None]:
    """A figure of all epochs, by its key; None where a record has none."""
    return [cast("Mapping[str, float | None]", record).get(key) for record in history]


def validation_scores(history: Iterable[EpochRecord]) -> list[float]:
    """Validation mAP by epoch, 0..1; NaN where no class has a positive."""
    return [float(record[VALIDATION_MEAN_AP]) for record in history]


def best_epoch(history: Iterable[EpochRecord]) -> int | None:
    """The epoch, from 0, of highest validation mAP, the first of equals; None where no epoch has one."""
    scores = [(score, epoch) for epoch, score in enumerate(validation_scores(history)) if not math.isnan(score)]
    return max(scores, key=lambda pair: pair[0])[1] if scores else None


def rejection_quality(history: Sequence[EpochRecord]) -> dict[str, float | None]:
    """Recall and precision of all rejections of a run, where the truth is known; else nothing.

    The recall is None where no positive was missed: what was rejected is then wrong in every case.

    Each epoch rejects anew, so that recall is the mean over the rejecting epochs, weighted by what was missed. What
    LL-Cp corrects stays corrected: its recall is the share of the missed positives corrected by the end.
    """
    epochs = [record for record in history if record["rejected"]]
    if not epochs or epochs[0]["missed"] is None:
        return {}
    hits = sum(record["rejected_missed"] or 0 for record in epochs)
    missed = sum(record["missed"] or 0 for record in epochs)
    taken = sum(record["rejected"] for record in epochs)
    missed = epochs[0]["missed"] if epochs[-1]["corrected"] else missed
    return {"recall": hits / missed if missed else None, "precision": hits / taken}

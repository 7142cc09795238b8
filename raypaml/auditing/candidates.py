"""Finds the training labels that are likely missing, those that rank first, and tells how good the ranking is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np

from raypaml.auditing.entry_scores import AuditedModel, likeliest, observed_scores
from raypaml.auditing.ranking import ChanceEstimate, EntryRanking, fit_estimate
from raypaml.data.data_folder import DataFolder
from raypaml.data.index import Index
from raypaml.labels import FloatArray, IntArray, each_once
from raypaml.mapper import Mapper
from raypaml.metrics.thresholds import sigmoid
from raypaml.runs.alpha_of_use import AlphaValues
from raypaml.training.rejections import read_epochs


class AuditFigures(TypedDict):
    """How good a ranking of missing positives is, judged by the full labels; shares of 0..1."""

    chance: float
    """Share of positives among all unobserved entries of the classes that are listed."""
    precision: dict[int, float]
    """Share of positives in the first so many entries of the ranking, by length of the list."""
    score_alone: dict[int, float]
    """The same for a ranking of the same unobserved entries by the model's score alone."""


@dataclass(frozen=True, eq=False)
class Likeliest:
    """The n unobserved entries that are most likely missed positives, the likeliest first."""

    entries: IntArray
    """[n] sample number x K + class column."""
    scores: FloatArray
    """[n] probabilities, 0..1, that the model gives at the alpha of use."""
    chances: FloatArray | None
    """[n] estimated chance, 0..1, that each is a positive; None where the labels of validation cannot say."""
    by_score: IntArray
    """[n] the unobserved entries with the highest scores."""
    columns: IntArray
    """Columns of the classes that are listed, in ascending order."""
    said: str
    """What ranked the entries, for the user."""

    def figures(self, index: Index, ats: tuple[int, ...]) -> AuditFigures | None:
        """How good the ranking is at several lengths of the list; None where the full labels are not known."""
        return audit_figures(index, self.entries, self.by_score, ats, self.columns) if index.has_truth else None


def find_likeliest(
    audited: AuditedModel,
    data: DataFolder,
    alpha: AlphaValues,
    top: int,
    class_share: float,
    only: IntArray | None,
    run: Mapper,
    say: Callable[[str], None],
) -> Likeliest:
    """Rank unobserved entries of the training split by the estimated chance that they are missed positives.

    Args:
        audited: the model, which `run` hands to processes.
        data: its data set.
        alpha: the alpha that the model is used with, one for all classes or [K].
        top: number of entries that are listed.
        class_share: the largest share of the list that one class gets while other classes have further entries.
        only: columns of the classes that are listed, in ascending order; None for all. The estimate is fitted to all.
        run: maps calls over processes.
        say: prints a line of progress.
    """
    samples, num_classes = len(data.splits["train"]), len(data.vocabulary)
    estimate, said, is_chance = estimated(audited, data, run, say)
    say(said)
    alone = EntryRanking(ChanceEstimate.score_alone(alpha, num_classes), top, top, only)
    ranking = EntryRanking(estimate or alone.estimate, top, math.ceil(class_share * top), only)
    (listed, by_score), broken = likeliest(audited, samples, [ranking, alone], run, say)
    if broken:
        say(f"{broken:,} broken images left out")
    chances = sigmoid(ranking.log_odds(listed)) if is_chance else None
    scores = sigmoid(alone.log_odds(listed))
    return Likeliest(listed.entries, scores, chances, by_score.entries, ranking.columns, said)


def estimated(
    audited: AuditedModel, data: DataFolder, run: Mapper, say: Callable[[str], None]
) -> tuple[ChanceEstimate | None, str, bool]:
    """The estimate from validation or None, how entries are then ranked, in words, and whether it gives a chance.

    Partial labels were not drawn at random: people were asked about what a machine had proposed. They say which classes
    have too high scores, but not how often a class is there.
    """
    validation = data.splits["validation"]
    seen = observed_scores(audited, validation, run, say)
    estimate, why_not = fit_estimate(seen, len(data.vocabulary))
    if estimate is None:
        return None, f"ranked by score alone: {why_not}", False
    complete = validation.num_labels == len(validation) * len(data.vocabulary)
    labels = f"{len(validation):,} images, {'complete' if complete else 'partial'} labels"
    return estimate, f"ranked by the chance that validation suggests ({labels})", complete


def history(run: Path, index: Index, entries: IntArray) -> dict[int, list[int]]:
    """The epochs, from 0, in which each of these entries was rejected; none where the run did not record it.

    Raises:
        OtherDataError: what the run recorded belongs to another data set.
    """
    epochs: dict[int, list[int]] = {int(entry): [] for entry in entries}
    mine = each_once(entries)
    for epoch, rejected in read_epochs(run, index):
        for entry in np.intersect1d(mine, rejected, assume_unique=True).tolist():
            epochs[entry].append(epoch)
    return epochs


def times_rejected(epochs_of_entry: list[int], epochs: int, *, keeping: bool) -> int:
    """In how many epochs an entry was rejected.

    Args:
        epochs_of_entry: the epochs, from 0, in which training rejected it.
        epochs: epochs that the run was trained.
        keeping: whether the scheme keeps rejected entries positive, so that they count as rejected in all later epochs.
    """
    return sum(max(1, epochs - epoch) for epoch in epochs_of_entry) if keeping else len(epochs_of_entry)


def precision(index: Index, entries: IntArray, at: int) -> float:
    """The share of the first `at` entries that are positive in the full labels."""
    first = entries[:at]
    if not len(first):
        return 0.0
    rows, place = np.unique(first // index.num_classes, return_inverse=True)
    positive, _ = index.truth_cells(rows)
    return float(np.isin(place * index.num_classes + first % index.num_classes, positive).mean())


def chance(index: Index, columns: IntArray) -> float:
    """The share of positives in the full labels among all unobserved entries of these classes."""
    rows = np.arange(len(index))
    cells = (index.truth_cells(rows)[0], index.label_cells(rows)[0])
    positive, observed = (some[np.isin(some % index.num_classes, columns)] for some in cells)
    missed = len(np.setdiff1d(positive, observed))
    return missed / max(1, len(index) * len(columns) - len(observed))


def audit_figures(
    index: Index, ranked: IntArray, by_score: IntArray, ats: tuple[int, ...], columns: IntArray
) -> AuditFigures:
    """The precision of a ranking at several lengths of the list, beside that of the score alone and that of chance.

    Args:
        index: a split with full labels.
        ranked: entries, the likeliest missing positive first.
        by_score: unobserved entries by the model's score alone, the highest first.
        ats: lengths of the list.
        columns: columns of the classes that both rank.
    """
    return {
        "chance": chance(index, columns),
        "precision": {at: precision(index, ranked, at) for at in ats if at <= len(ranked)},
        "score_alone": {at: precision(index, by_score, at) for at in ats if at <= len(by_score)},
    }

"""The alpha and the thresholds to use a model with, chosen from its predictions of the validation split."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from raypaml.evaluation.entries import SpilledSet, spilled
from raypaml.evaluation.measures import Evaluation, EvaluationOptions, evaluate_set
from raypaml.evaluation.parts import PredictionPart, PredictionSet, open_set, read_vocabulary
from raypaml.files import number_or_null
from raypaml.labels import POSITIVE, Vocabulary
from raypaml.metrics.alpha_choice import (
    FOLDS,
    GRID,
    SHRINKAGE,
    AlphaCandidate,
    AlphaTable,
    candidates,
    fold_of_images,
)
from raypaml.metrics.average_precision import rank_entries
from raypaml.metrics.bootstrap import weighted_ap
from raypaml.reports.tables import markdown, percent
from raypaml.runs.alpha_of_use import AlphaChoice, TriedWay, alpha_file, alpha_text
from raypaml.runs.mirror import Mirror
from raypaml.runs.models import tested_checkpoint

if TYPE_CHECKING:
    from raypaml.evaluation.prediction_plan import PredictionPlan


def choose_for_use(plan: PredictionPlan) -> str:
    """Choose alpha and thresholds for the weights that predicted the validation split, and write them into the run.

    Returns:
        What was tried and chosen, as Markdown, and the file that holds it.
    """
    predictions = open_set(plan.folder)
    vocabulary, name = read_vocabulary(plan.folder, predictions), plan.checkpoint.name
    choice = choose_alpha(predictions, vocabulary, plan.parts[0], name)
    run = plan.checkpoint.absolute().parent.parent
    path = alpha_file(run, "" if name == tested_checkpoint(run).name else name)
    choice.write(path)
    if mirror := Mirror.of(plan.config.run.storage, run):  # before the report pulls what the store has
        mirror.push(path.name)
    return f"{choice_text(choice, vocabulary)}\n\nKept in {path}"


def choose_alpha(
    predictions: PredictionSet, vocabulary: Vocabulary, part: PredictionPart, checkpoint: str, seed: int = 0
) -> AlphaChoice:
    """Choose alpha by cross-validation over images, and each class's threshold of best F1 at that alpha.

    Args:
        predictions: those of the validation split, with P and N.
        vocabulary: the classes of the predictions.
        part: any part of the predictions, which names the weights and the alpha of training.
        checkpoint: name of the checkpoint that predicted the split.
        seed: random seed by which images are assigned to folds.
    """
    table = alpha_table(predictions, vocabulary, part.alpha, seed)
    tried = candidates(table)
    winner = [candidate for candidate in tried if candidate.wins][-1]
    alphas = winner.alpha.tolist()
    used = evaluate_set(predictions, vocabulary, EvaluationOptions(alpha=winner.alpha))
    known = (used.positives > 0) & (used.negatives > 0)
    has_thresholds = bool(used.positives.any() and used.negatives.any())
    observed = int(used.tally[:, :2].sum())
    entries = (part.samples - len(predictions.skipped)) * part.num_classes
    return AlphaChoice(
        way=winner.way,
        alpha=alphas[0] if len(set(alphas)) == 1 else alphas,  # one number where it is that of all classes
        training_alpha=part.alpha,
        # a class without both labels has the threshold of all classes together
        thresholds=np.where(known, used.best_thresholds, used.pooled_threshold).tolist() if has_thresholds else None,
        pooled_thresholds=np.flatnonzero(~known).tolist() if has_thresholds else [],
        model=part.model,
        checkpoint=checkpoint,
        vocabulary=vocabulary.digest,
        labels="complete" if observed == entries else "partial",
        observed_share=observed / entries if entries else 0.0,
        images=len(used.keys),
        few_positives=np.flatnonzero(used.positives < SHRINKAGE).tolist(),
        candidates=[_record(candidate) for candidate in tried],
        undecided=_undecided(used, known),
    )


def _undecided(used: Evaluation, known: NDArray[np.bool_]) -> str:
    """Why AP on these labels cannot tell which alpha is better, in a sentence; "" where it can.

    A class without a positive has no AP, and one without a negative has AP 1 at every alpha.
    """
    positives, negatives = int(used.positives[known].sum()), int(used.negatives[known].sum())
    if min(positives, negatives) >= SHRINKAGE and 2 * known.sum() >= len(known):
        return ""
    few = f"only {known.sum():,} of {len(known):,} classes have" if known.any() else "no class has"
    counts = f" ({positives:,} positives and {negatives:,} negatives in them)" if known.any() else ""
    return (
        f"The labels of validation can{' hardly' if known.any() else 'not'} decide which alpha is better: {few} both "
        f"positives and negatives{counts}, and AP of the others is the same at every alpha."
    )


def _record(candidate: AlphaCandidate) -> TriedWay:
    """The record of a way that was tried; its mean AP is None where no held-out image has a positive."""
    return TriedWay(
        way=candidate.way,
        alphas=sorted(set(candidate.alpha.tolist())),
        held_out=number_or_null(candidate.held_out),
        gain=candidate.gain,
        noise=candidate.noise,
        wins=candidate.wins,
    )


def alpha_table(predictions: PredictionSet, vocabulary: Vocabulary, training: float, seed: int = 0) -> AlphaTable:
    """AP of every class at every alpha of the grid and at that of training, on folds of the images, in one pass.

    A fold is drawn for each image with an entry, in the order of their keys, so that the order of rows and the number
    of parts do not matter.
    """
    alphas = np.array(sorted({*GRID, training}))
    with spilled(predictions) as entries:
        fold = fold_of_images(len(entries.keys), seed)
        ap, positives = _subset_ap(entries, alphas, fold)
    return AlphaTable(
        alphas=alphas,
        training=int(np.searchsorted(alphas, training)),
        held_out=ap[:FOLDS],
        others=ap[FOLDS : 2 * FOLDS],
        every=ap[2 * FOLDS],
        positives=positives,
        class_group=vocabulary.class_group,
    )


def _subset_ap(
    entries: SpilledSet, alphas: NDArray[np.float64], fold: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """AP [2 F + 1, A, K] on each of F folds, on all images outside each fold, and on all images; A values of alpha.

    Also the observed positives [F, K] of each fold.
    """
    num_classes = len(entries.tally)
    inside = fold == np.arange(FOLDS)[:, None]
    weights = np.concatenate([inside, ~inside, np.ones((1, len(fold)), bool)]).astype(np.uint8)
    ap = np.full((len(weights), len(alphas), num_classes), np.nan)
    positives = np.zeros((FOLDS, num_classes), np.int64)
    for bucket in entries.buckets():
        rows = bucket.observed
        hits = rows.where(rows.label == POSITIVE)
        np.add.at(positives, (fold[hits.image], hits.class_index), 1)
        for place, alpha in enumerate(alphas.tolist()):
            ranking = rank_entries(rows.class_index, rows.scores(alpha), rows.label == POSITIVE, num_classes)
            ap[:, place] = np.fmax(ap[:, place], weighted_ap(ranking, rows.image, weights))
    return ap, positives


def choice_text(choice: AlphaChoice, vocabulary: Vocabulary) -> str:
    """What was tried and chosen, as Markdown."""
    rows = []
    for one in choice.candidates:
        gain = f"{100 * one['gain']:+.2f} ± {100 * one['noise']:.2f}"
        rows.append(
            [one["way"], alpha_text(one["alphas"]), percent(one["held_out"]), gain, "yes" if one["wins"] else "no"]
        )
    names = ["alpha", "values", "mAP on images left out", "gain ± standard error", "replaces the simpler"]
    lines = [markdown(names, rows, left=1), "", f"Alpha of use {alpha_text(choice.alpha)}: {choice.said}."]
    if choice.undecided:
        lines.append(choice.undecided)
    if np.max(choice.alpha) >= GRID[-1]:
        lines.append(f"{GRID[-1]:g} is the largest alpha that is tried; a larger one might do better.")
    if choice.few_positives:
        lines.append(
            f"{len(choice.few_positives):,} of {len(vocabulary):,} classes have fewer than {SHRINKAGE:g} positives on "
            "validation: their alpha follows mostly that of all classes together."
        )
    pooled = len(choice.pooled_thresholds)
    rest = f"; {pooled:,} classes without both kinds of label share the threshold of all entries" if pooled else ""
    if choice.thresholds is None:
        lines.append("No thresholds: validation has no positives, or no negatives; predict uses probability 0.5.")
    else:
        lines.append(f"Thresholds: where each class has its best F1 on validation at this alpha{rest}.")
    return "\n".join(lines)

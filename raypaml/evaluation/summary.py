"""Mean AP of a prediction set under the convention of the papers, and the table G1..G5 and All."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

from raypaml.evaluation.measures import Evaluation
from raypaml.labels import GROUP_NAMES
from raypaml.reports.tables import markdown, percent
from raypaml.runs.alpha_of_use import alpha_text
from raypaml.runs.run_length import Length


class GroupFigures(TypedDict):
    """Mean AP, 0..1, under the convention `paper`."""

    mean_ap: float
    """Mean over all classes that count."""
    groups: dict[str, float]
    """Mean over those of each class group, by its name, G1 (rarest) to G5."""


class ChosenAlphaFigures(GroupFigures):
    """The test figures at the alpha that was chosen on validation."""

    alpha: float | list[float]
    """BoostLU's factor, one for all classes or [K]."""
    way: str
    """One of `metrics.alpha_choice`: one alpha for all classes, for each class group, or for each class."""
    said: str
    """How the alpha was chosen, in words."""


class Summary(GroupFigures):
    """The figures of one prediction set and what they count, as JSON files have them."""

    classes: int
    """Classes of the vocabulary."""
    classes_scored: int
    """Classes with an observed label."""
    classes_without_positives: int
    """Scored classes without a positive, which count 0."""
    convention: str
    split: str
    images: int
    """Images with an observed label."""
    skipped: int
    """Broken images, which have no predictions."""
    positives: int
    """Observed positive entries."""
    negatives: int
    """Observed negative entries."""
    vocabulary: str
    """Digest of the classes."""
    metrics: NotRequired[dict[str, dict[str, float]]]
    """Means over G1..G5 and All of every registered metric, by its name."""
    chosen_alpha: NotRequired[ChosenAlphaFigures | None]
    """The figures at the alpha chosen on validation, in the result of a run; None where it is not used."""
    chosen_alpha_unused: NotRequired[str]
    """Why the alpha that was chosen is not used, such as that it was chosen for other weights."""


class Training(TypedDict):
    """What `result.json` says of the settings of a run and of how its training ended."""

    scheme: str
    alpha: float
    """BoostLU's factor in training."""
    delta_rel: float
    """Percent of all entries that are rejected in addition with each epoch."""
    seed: int
    epochs: int
    """Epochs that the configuration asks for."""
    epochs_trained: int
    stopped_early: str | None
    """Why training ended before its last epoch; None where it did not."""
    world_size: int
    """Training workers."""
    best_epoch: int
    """The epoch, from 0, of best validation mAP, whose checkpoint is tested."""
    validation_mean_ap: float
    """Mean AP, 0..1, on the validation split after the best epoch."""
    training_seconds: float


class RunResult(Summary, Training):
    """The content of `result.json`."""

    lengths: NotRequired[list[Length]]
    """The lengths in epochs that the run was given one after the other, where it was lengthened."""
    validation_labels: NotRequired[Literal["complete", "partial"]]
    """Whether every entry of the validation split is observed; missing in results of earlier versions."""


def summary(evaluation: Evaluation) -> Summary:
    """Mean AP (0..1) under the convention `paper`, and what it counts."""
    means = evaluation.means("paper")
    assert means is not None
    scored = evaluation.positives + evaluation.negatives > 0
    figures = Summary(
        mean_ap=means.pop("All"),
        groups=means,
        classes=len(evaluation.vocabulary),
        classes_scored=int(scored.sum()),
        classes_without_positives=int((scored & (evaluation.positives == 0)).sum()),
        convention="paper",
        split=evaluation.predictions.split,
        images=len(evaluation.keys),
        skipped=len(evaluation.predictions.skipped),
        positives=int(evaluation.positives.sum()),
        negatives=int(evaluation.negatives.sum()),
        vocabulary=evaluation.vocabulary.digest,
    )
    if evaluation.metrics:
        figures["metrics"] = evaluation.metric_means()
    return figures


def table(result: Summary) -> str:
    """The five-group table as Markdown, in percent, with its convention and what it counts.

    Where an alpha was chosen on validation, its figures follow in a table of their own; then the registered metrics.
    """
    parts, chosen = [_row(result), caption(result)], result.get("chosen_alpha")
    if chosen:
        parts += [f"The same at alpha {alpha_text(chosen['alpha'])} ({chosen['said']}):", _row(chosen)]
    if result.get("chosen_alpha_unused"):
        parts.append(f"An alpha that was chosen is not used: {result['chosen_alpha_unused']}.")
    if "metrics" in result:
        rows = [[name, *(f"{value:.4g}" for value in means.values())] for name, means in result["metrics"].items()]
        parts.append(markdown(["metric", *GROUP_NAMES, "All"], rows, left=1))
    return "\n\n".join(parts)


def _row(figures: GroupFigures) -> str:
    values = [*figures["groups"].values(), figures["mean_ap"]]
    return markdown([*GROUP_NAMES, "All"], [[percent(value) for value in values]])


def caption(result: Summary) -> str:
    """What the numbers of the table are and what they count, in one sentence."""
    broken = f"{result['skipped']:,} broken images skipped; " if result["skipped"] else ""
    skipped = result["classes"] - result["classes_scored"]
    return (
        f"mAP in percent on the {result['split']} split, observed labels only; G1 rarest to G5 most frequent classes; "
        f"{result['classes_scored']} of {result['classes']} classes scored ({skipped} without observed labels skipped, "
        f"{result['classes_without_positives']} without positives count 0: convention '{result['convention']}'); "
        f"{broken}{result['images']:,} images with a label, {result['positives']:,} positives, {result['negatives']:,} "
        f"negatives, vocabulary {result['vocabulary'][:12]}."
    )

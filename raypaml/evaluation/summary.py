"""Mean AP of a prediction set under the convention of the papers, and the table G1..G5 and All."""

from __future__ import annotations

from raypaml.evaluation.measures import Evaluation
from raypaml.evaluation.result_records import GroupFigures, Summary
from raypaml.labels import GROUP_NAMES
from raypaml.reports.tables import figure, markdown, percent
from raypaml.runs.alpha_of_use import alpha_text


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
        rows = [
            [name, *(figure(value, ".4g") for value in means.values())] for name, means in result["metrics"].items()
        ]
        parts.append(markdown(["metric", *GROUP_NAMES, "All"], rows, left=1))
    return "\n\n".join(parts)


def _row(figures: GroupFigures) -> str:
    values = [*figures["groups"].values(), figures["mean_ap"]]
    return markdown([*GROUP_NAMES, "All"], [[percent(value) for value in values]])


def caption(result: Summary) -> str:
    """What the numbers of the table are and what they count, in one sentence."""
    broken = f"{result['skipped']:,} broken images skipped; " if result["skipped"] else ""
    skipped = result["classes"] - result["classes_scored"]
    none = "" if result["classes_scored"] else "no class has an observed label, so that there is no mAP; "
    return (
        f"mAP in percent on the {result['split']} split, observed labels only; G1 rarest to G5 most frequent classes; "
        f"{result['classes_scored']} of {result['classes']} classes scored ({skipped} without observed labels skipped, "
        f"{result['classes_without_positives']} without positives count 0: convention '{result['convention']}'); "
        f"{none}{broken}{result['images']:,} images with a label, {result['positives']:,} positives, "
        f"{result['negatives']:,} negatives, vocabulary {result['vocabulary'][:12]}."
    )

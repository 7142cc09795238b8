"""Mean AP of a prediction set under the convention of the papers, and the table G1..G5 and All."""

from __future__ import annotations

from typing import Any

from raypaml.evaluation.measures import Evaluation
from raypaml.labels import GROUP_NAMES
from raypaml.reports.tables import markdown, percent
from raypaml.runs.alpha_of_use import alpha_text


def summary(found: Evaluation) -> dict[str, Any]:
    """Mean AP (0..1) under the convention `paper`, and what it counts."""
    means = found.means("paper")
    assert means is not None
    scored = found.positives + found.negatives > 0
    return {
        "mean_ap": means.pop("All"),
        "groups": means,
        "classes": len(found.vocabulary),
        "classes_scored": int(scored.sum()),
        "classes_without_positives": int((scored & (found.positives == 0)).sum()),
        "convention": "paper",
        "split": found.predictions.split,
        "images": len(found.keys),
        "skipped": len(found.predictions.skipped),
        "positives": int(found.positives.sum()),
        "negatives": int(found.negatives.sum()),
        "vocabulary": found.vocabulary.digest,
    } | ({"metrics": found.own_means()} if found.own else {})


def table(result: dict[str, Any]) -> str:
    """The five-group table as Markdown, in percent, with its convention and what it counts.

    Where an alpha was chosen on validation, its figures follow in a table of their own; then the registered metrics.
    """
    parts, chosen = [_row(result), caption(result)], result.get("chosen_alpha")
    if chosen:
        parts += [f"The same at alpha {alpha_text(chosen['alpha'])} ({chosen['said']}):", _row(chosen)]
    if result.get("chosen_alpha_unused"):
        parts.append(f"An alpha that was chosen is not used: {result['chosen_alpha_unused']}.")
    return "\n\n".join([*parts, own_table(result["metrics"])] if "metrics" in result else parts)


def _row(figures: dict[str, Any]) -> str:
    values = [*figures["groups"].values(), figures["mean_ap"]]
    return markdown([*GROUP_NAMES, "All"], [[percent(value) for value in values]])


def own_table(metrics: dict[str, dict[str, float]]) -> str:
    """The registered metrics as Markdown: means over classes, as the metrics give them."""
    rows = [[name, *(f"{value:.4g}" for value in means.values())] for name, means in metrics.items()]
    return markdown(["metric", *GROUP_NAMES, "All"], rows, left=1)


def caption(result: dict[str, Any]) -> str:
    """What the table's numbers are."""
    broken = f"{result['skipped']:,} broken images skipped; " if result["skipped"] else ""
    skipped = result["classes"] - result["classes_scored"]
    return (
        f"mAP in percent on the {result['split']} split, observed labels only; G1 rarest to G5 most frequent classes; "
        f"{result['classes_scored']} of {result['classes']} classes scored ({skipped} without observed labels skipped, "
        f"{result['classes_without_positives']} without positives count 0: convention '{result['convention']}'); "
        f"{broken}{result['images']:,} images with a label, {result['positives']:,} positives, {result['negatives']:,} "
        f"negatives, vocabulary {result['vocabulary'][:12]}."
    )

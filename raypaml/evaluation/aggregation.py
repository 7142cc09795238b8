"""What `raypaml aggregate` says of one prediction set or two: figures, Markdown, and a CSV by class."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raypaml.evaluation.measures import GROUPS, Evaluation
from raypaml.evaluation.summary import summary, table
from raypaml.metrics.average_precision import group_means, mean_ap
from raypaml.metrics.bootstrap import interval
from raypaml.metrics.conventions import CONVENTIONS, MEANING, Convention, counted, skipped
from raypaml.metrics.thresholds import calibration_error
from raypaml.reports.tables import markdown, percent

PER_CLASS: tuple[Convention, ...] = ("paper", "positives", "two-sided")
"""The conventions whose mean AP has a bootstrap interval."""


@dataclass(frozen=True)
class Aggregate:
    """One evaluated prediction set, or two and their paired difference."""

    runs: dict[str, Evaluation]
    """The evaluated sets, by the names they were given by."""
    figures: dict[str, Any]
    """Everything worked out, for JSON."""

    @classmethod
    def of(cls, runs: dict[str, Evaluation]) -> Aggregate:
        """Work out the figures; ValueError where two sets are not of the same images and labels."""
        figures: dict[str, Any] = {"runs": [all_figures(run) for run in runs.values()]}
        if len(runs) == 2:
            figures["difference"] = comparison(*runs.values())
        return cls(runs, figures)

    def text(self) -> str:
        """Everything as Markdown."""
        reports = [report(figures) for figures in self.figures["runs"]]
        if len(reports) == 1:
            return reports[0]
        parts = [f"## {name}\n\n{text}\n" for name, text in zip(self.runs, reports, strict=True)]
        return "\n".join([*parts, f"## Difference\n\n{difference(self.figures['difference'])}"])

    def write(self, *, json_file: str | None, csv_file: str | None, figure_file: str | None) -> None:
        """Write the files that are asked for: every figure, a row a class, AP against the number of annotations."""
        evaluations = list(self.runs.values())
        if json_file:
            Path(json_file).write_text(json.dumps(for_json(self.figures), indent=2) + "\n")
        if csv_file:
            write_class_csv(Path(csv_file), evaluations)
        if figure_file:
            from raypaml.reports.figures import ap_by_annotations  # matplotlib is slow to import, and seldom needed

            vocabulary = evaluations[0].vocabulary
            annotations = vocabulary.train_positives + vocabulary.train_negatives
            by_name = {name: evaluation.ap for name, evaluation in self.runs.items()}
            Path(figure_file).write_text(ap_by_annotations(annotations, vocabulary.class_group, by_name))


# --- Figures --------------------------------------------------------------------------------------------------------


def all_figures(found: Evaluation) -> dict[str, Any]:
    """Everything worked out for one set, 0..1; every figure stands beside its convention and what it counts."""
    kind = "probabilities" if found.predictions.probabilities else "logits"
    alpha = np.asarray(found.alpha).tolist()
    result = {"alpha": alpha, "scores": kind, "samples": found.predictions.samples} | summary(found)
    result["conventions"] = {name: _convention(found, name) for name in CONVENTIONS}
    result["calibration_error"] = calibration_error(found.bins)
    if found.curve:
        groups = found.vocabulary.class_group
        result["alpha_curve"] = {
            f"{alpha:g}": group_means(ap, groups) | {"All": mean_ap(ap)} for alpha, ap in found.curve.items()
        }
    if found.decisions is not None:
        result["decisions"] = found.decisions.overall()
    if found.at_recall is not None:
        result["precision_at_recall"] = group_means(found.at_recall, found.vocabulary.class_group) | {
            "All": mean_ap(found.at_recall)
        }
    return result


def _convention(found: Evaluation, name: Convention) -> dict[str, Any]:
    means = found.means(name)
    if means is None:
        return {"mean_ap": None, "reason": "needs every unobserved entry; evaluate with --unobserved"}
    counts = counted(name, found.positives, found.negatives)
    entry: dict[str, Any] = {
        "mean_ap": means["All"],
        "groups": {group: means[group] for group in GROUPS[:-1]},
        "classes_counted": int(counts.sum()),
        "classes_counted_by_group": np.bincount(found.vocabulary.class_group[counts], minlength=6)[1:].tolist(),
        "classes_skipped": skipped(name, found.positives, found.negatives),
    }
    if found.replicates is not None and name in PER_CLASS:
        draws = found.replicate_means(name)
        entry["interval_95"] = {group: interval(means[group], draws[group]) for group in GROUPS}
    return entry


def comparison(first: Evaluation, second: Evaluation) -> dict[str, Any]:
    """Second minus first, by convention and group; with replicates, the interval of the paired difference.

    Raises:
        ValueError: the two are not of the same classes, images and labels.
    """
    _check_pair(first, second)
    found: dict[str, Any] = {}
    for name in PER_CLASS:
        before, after = first.means(name), second.means(name)
        assert before is not None
        assert after is not None
        found[name] = {"difference": {group: after[group] - before[group] for group in GROUPS}}
        if first.replicates is not None and second.replicates is not None:
            a, b = first.replicate_means(name), second.replicate_means(name)
            shift = found[name]["difference"]
            found[name]["interval_95"] = {group: interval(shift[group], b[group] - a[group]) for group in GROUPS}
    return found


def _check_pair(first: Evaluation, second: Evaluation) -> None:
    one, other = first.predictions, second.predictions
    if one.vocabulary != other.vocabulary:
        raise ValueError(f"{one.where} and {other.where} have two vocabularies; compare runs on one data set")
    if not first.keys.equals(second.keys):
        raise ValueError(
            f"{one.where} and {other.where} are of different images ({len(first.keys)} and {len(second.keys)}); "
            "compare runs on the same split"
        )
    if not np.array_equal(first.tally[:, :2], second.tally[:, :2]):
        raise ValueError(f"{one.where} and {other.where} have different labels; compare runs on one data set")


def for_json(value: Any) -> Any:
    """The same with null for what is not a number."""
    if isinstance(value, dict):
        return {key: for_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [for_json(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


# --- Markdown -------------------------------------------------------------------------------------------------------


def report(found: dict[str, Any]) -> str:
    """The figures of one set as Markdown: the paper's table first, as the training run prints it."""
    sections = [table(found), _conventions(found["conventions"])]
    if "alpha_curve" in found:
        rows = [[alpha, *map(percent, means.values())] for alpha, means in found["alpha_curve"].items()]
        sections.append("mAP by alpha, convention 'paper':\n\n" + markdown(["alpha", *GROUPS], rows))
    if "decisions" in found:
        names, values = zip(*found["decisions"].items(), strict=True)
        text = "Precision, recall, F1 over observed entries (O: all entries, C: mean of classes), percent:\n\n"
        sections.append(text + markdown(list(names), [[percent(value) for value in values]]))
    if "precision_at_recall" in found:
        row = [percent(value) for value in found["precision_at_recall"].values()]
        sections.append("Precision at the recall asked for, percent:\n\n" + markdown(list(GROUPS), [row]))
    sections.append(f"Expected calibration error over observed entries: {percent(found['calibration_error'])} %.")
    return "\n\n".join(sections)


def _conventions(conventions: dict[Convention, Any]) -> str:
    rows, notes = [], []
    for name, entry in conventions.items():
        notes.append(f"- {name}: {MEANING[name]}" + (f" ({entry['reason']})" if "reason" in entry else ""))
        if "reason" not in entry:
            left_out = ", ".join(f"{n} {reason}" for reason, n in entry["classes_skipped"].items() if n) or "-"
            values = [*entry["groups"].values(), entry["mean_ap"]]
            rows.append([name, *map(percent, values), str(entry["classes_counted"]), left_out])
        if "interval_95" in entry:
            rows.append(["  95 % from", *(percent(low) for low, _ in entry["interval_95"].values()), "", ""])
            rows.append(["  to", *(percent(high) for _, high in entry["interval_95"].values()), "", ""])
    names = ["convention", *GROUPS, "classes", "skipped"]
    return "\n".join(["mAP in percent by convention:", "", markdown(names, rows, left=1), "", *notes])


def difference(found: dict[str, Any]) -> str:
    """The comparison of two sets as Markdown."""
    rows = []
    for name, entry in found.items():
        rows.append([name, *(f"{100 * value:+.2f}" for value in entry["difference"].values())])
        if "interval_95" in entry:
            low, high = zip(*entry["interval_95"].values(), strict=True)
            rows.append(["  95 % from", *(f"{100 * value:+.2f}" for value in low)])
            rows.append(["  to", *(f"{100 * value:+.2f}" for value in high)])
    return "Second minus first, mAP points, the same images drawn for both:\n\n" + markdown(
        ["convention", *GROUPS], rows, left=1
    )


# --- CSV ------------------------------------------------------------------------------------------------------------


def write_class_csv(path: Path, runs: list[Evaluation]) -> None:
    """One row a class; AP and the other measures of a second run in columns ending in `_2`."""
    columns = _about_classes(runs[0])
    for number, found in enumerate(runs):
        columns |= {name + ("_2" if number else ""): _cells(values) for name, values in _by_class(found).items()}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def measures_by_class(found: Evaluation) -> dict[str, Any]:
    """Columns [K]: what a class is, how often it was annotated, its AP and the other measures."""
    return _about_classes(found) | _by_class(found)


def _about_classes(found: Evaluation) -> dict[str, Any]:
    vocabulary = found.vocabulary
    return {
        "class_id": vocabulary.class_ids,
        "name": vocabulary.names,
        "class_group": vocabulary.class_group.tolist(),
        "train_annotations": (vocabulary.train_positives + vocabulary.train_negatives).tolist(),
        "positives": found.positives.tolist(),
        "negatives": found.negatives.tolist(),
    }


def _by_class(found: Evaluation) -> dict[str, Any]:
    columns = {"ap": found.ap, "best_threshold": found.best, **found.own}
    if found.decisions is not None:
        columns |= dict(zip(("precision", "recall", "f1"), found.decisions.per_class(), strict=True))
    if found.at_recall is not None:
        columns["precision_at_recall"] = found.at_recall
    return columns


def _cells(values: Any) -> list[str]:
    return ["" if math.isnan(value) else repr(value) for value in values.tolist()]

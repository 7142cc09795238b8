"""The answers of `raypaml aggregate` about one or two prediction sets: figures, Markdown, and a CSV by class."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from raypaml.evaluation.foreign import PredictionForm, open_predictions
from raypaml.evaluation.measures import GROUPS, Evaluation, EvaluationOptions, evaluate_set
from raypaml.evaluation.parts import check_predicted_classes
from raypaml.evaluation.result_records import AggregateFigures, ConventionFigures, Difference, SetFigures
from raypaml.evaluation.summary import summary, table
from raypaml.files import finite_json
from raypaml.labels import FloatArray
from raypaml.metrics.average_precision import group_means, mean_ap
from raypaml.metrics.bootstrap import interval
from raypaml.metrics.conventions import CONVENTIONS, MEANING, Convention, counted, skipped
from raypaml.metrics.thresholds import calibration_error
from raypaml.reports.tables import markdown, percent
from raypaml.spreadsheets import as_cell

PER_CLASS: tuple[Convention, ...] = ("paper", "positives", "two-sided")
"""The conventions whose mean AP has a bootstrap interval."""


@dataclass(frozen=True)
class Aggregate:
    """One evaluated prediction set, or two and their paired difference."""

    runs: dict[str, Evaluation]
    """The evaluated sets, by the names under which they were given."""
    figures: AggregateFigures

    @classmethod
    def of(cls, runs: dict[str, Evaluation]) -> Aggregate:
        """Compute the figures of one or two sets; ValueError where two do not have the same images and labels."""
        figures = AggregateFigures(runs=[all_figures(run) for run in runs.values()])
        if len(runs) == 2:
            figures["difference"] = comparison(*runs.values())
        return cls(runs, figures)

    def text(self) -> str:
        """All figures as Markdown, each set under its name, and then the difference of two."""
        reports = [report(figures) for figures in self.figures["runs"]]
        if len(reports) == 1:
            return reports[0]
        parts = [f"## {name}\n\n{text}\n" for name, text in zip(self.runs, reports, strict=True)]
        return "\n".join([*parts, f"## Difference\n\n{difference(self.figures['difference'])}"])

    def write(self, json_file: Path | None, csv_file: Path | None, figure_file: Path | None) -> None:
        """Write the files whose paths are given, as `outputs.output_files` gives them.

        Args:
            json_file: gets all figures.
            csv_file: gets a row for each class.
            figure_file: gets an SVG of AP against the number of annotations.
        """
        evaluations = list(self.runs.values())
        if json_file:
            json_file.write_text(json.dumps(finite_json(self.figures), indent=2) + "\n")
        if csv_file:
            write_class_csv(csv_file, evaluations)
        if figure_file:
            from raypaml.reports.figures import ap_by_annotations  # with matplotlib, which is slow to import

            vocabulary = evaluations[0].vocabulary
            annotations = vocabulary.train_positives + vocabulary.train_negatives
            by_name = {name: evaluation.ap for name, evaluation in self.runs.items()}
            figure_file.write_text(ap_by_annotations(annotations, vocabulary.class_group, by_name))


def thresholds_from(validation: str, tested: str, form: PredictionForm, options: EvaluationOptions) -> FloatArray:
    """[K] the score of each class's best F1 in predictions of a validation split.

    Raises:
        ValueError: the two sets of predictions have different classes.
    """
    predictions, vocabulary = open_predictions(validation, form)
    check_predicted_classes(predictions, open_predictions(tested, form)[1], tested)
    return evaluate_set(predictions, vocabulary, options).best_thresholds


# --- Figures --------------------------------------------------------------------------------------------------------


def all_figures(evaluation: Evaluation) -> SetFigures:
    """All figures of one set, 0..1."""
    groups = evaluation.vocabulary.class_group
    content = {
        "alpha": np.asarray(evaluation.alpha).tolist(),
        "scores": "probabilities" if evaluation.predictions.probabilities else "logits",
        "samples": evaluation.predictions.samples,
        **summary(evaluation),
        "conventions": {name: _convention(evaluation, name) for name in CONVENTIONS},
        "calibration_error": calibration_error(evaluation.bins),
    }
    figures = cast("SetFigures", content)  # a TypedDict cannot be built around the keys of another
    if evaluation.curve:
        curve = {f"{alpha:g}": group_means(ap, groups) | {"All": mean_ap(ap)} for alpha, ap in evaluation.curve.items()}
        figures["alpha_curve"] = curve
    if evaluation.decisions is not None:
        figures["decisions"] = evaluation.decisions.overall()
    if (at_recall := evaluation.at_recall) is not None:
        figures["precision_at_recall"] = group_means(at_recall, groups) | {"All": mean_ap(at_recall)}
    return figures


def _convention(evaluation: Evaluation, name: Convention) -> ConventionFigures:
    means = evaluation.means(name)
    if means is None:
        return {"mean_ap": None, "reason": "needs every unobserved entry; evaluate with --unobserved"}
    counts = counted(name, evaluation.positives, evaluation.negatives)
    figures = ConventionFigures(
        mean_ap=means["All"],
        groups={group: means[group] for group in GROUPS[:-1]},
        classes_counted=int(counts.sum()),
        classes_counted_by_group=np.bincount(evaluation.vocabulary.class_group[counts], minlength=6)[1:].tolist(),
        classes_skipped=skipped(name, evaluation.positives, evaluation.negatives),
    )
    if evaluation.replicates is not None and name in PER_CLASS:
        draws = evaluation.replicate_means(name)
        figures["interval_95"] = {group: interval(means[group], draws[group]) for group in GROUPS}
    return figures


def comparison(first: Evaluation, second: Evaluation) -> dict[Convention, Difference]:
    """Second minus first, by convention and group; with replicates, the interval of the paired difference.

    Raises:
        ValueError: the two do not have the same classes, images and labels.
    """
    _check_pair(first, second)
    differences: dict[Convention, Difference] = {}
    for name in PER_CLASS:
        before, after = first.means(name), second.means(name)
        assert before is not None
        assert after is not None
        shift = {group: after[group] - before[group] for group in GROUPS}
        differences[name] = {"difference": shift}
        if first.replicates is not None and second.replicates is not None:
            a, b = first.replicate_means(name), second.replicate_means(name)
            differences[name]["interval_95"] = {group: interval(shift[group], b[group] - a[group]) for group in GROUPS}
    return differences


def _check_pair(first: Evaluation, second: Evaluation) -> None:
    one, other = first.predictions, second.predictions
    if one.vocabulary != other.vocabulary:
        raise ValueError(f"{one.where} and {other.where} have two vocabularies; compare runs on one data set")
    if not first.keys.equals(second.keys):
        raise ValueError(
            f"{one.where} and {other.where} hold different images ({len(first.keys)} and {len(second.keys)}); "
            "compare runs on the same split"
        )
    if not np.array_equal(first.tally[:, :2], second.tally[:, :2]):
        raise ValueError(f"{one.where} and {other.where} have different labels; compare runs on one data set")


# --- Markdown -------------------------------------------------------------------------------------------------------


def report(figures: SetFigures) -> str:
    """The figures of one set as Markdown: first the table that a training run prints, then all conventions."""
    sections = [table(figures), _conventions(figures["conventions"])]
    if "alpha_curve" in figures:
        rows = [[alpha, *map(percent, means.values())] for alpha, means in figures["alpha_curve"].items()]
        sections.append("mAP by alpha, convention 'paper':\n\n" + markdown(["alpha", *GROUPS], rows))
    if "decisions" in figures:
        names, values = zip(*figures["decisions"].items(), strict=True)
        text = "Precision, recall and F1 over observed entries (O: all entries, C: mean over classes), percent:\n\n"
        sections.append(text + markdown(list(names), [[percent(value) for value in values]]))
    if "precision_at_recall" in figures:
        row = [percent(value) for value in figures["precision_at_recall"].values()]
        sections.append("Precision at the recall given by --recall, percent:\n\n" + markdown(list(GROUPS), [row]))
    sections.append(f"Expected calibration error over observed entries: {percent(figures['calibration_error'])} %.")
    return "\n\n".join(sections)


def _conventions(conventions: dict[Convention, ConventionFigures]) -> str:
    rows, notes = [], []
    for name, entry in conventions.items():
        notes.append(f"- {name}: {MEANING[name]}" + (f" ({entry['reason']})" if "reason" in entry else ""))
        if (mean := entry["mean_ap"]) is not None:
            left_out = ", ".join(f"{n} {reason}" for reason, n in entry["classes_skipped"].items() if n) or "-"
            values = [*entry["groups"].values(), mean]
            rows.append([name, *map(percent, values), str(entry["classes_counted"]), left_out])
        if "interval_95" in entry:
            rows.append(["  95 % from", *(percent(low) for low, _ in entry["interval_95"].values()), "", ""])
            rows.append(["  to", *(percent(high) for _, high in entry["interval_95"].values()), "", ""])
    names = ["convention", *GROUPS, "classes", "skipped"]
    return "\n".join(["mAP in percent by convention:", "", markdown(names, rows, left=1), "", *notes])


def difference(differences: dict[Convention, Difference]) -> str:
    """The comparison of two sets as Markdown."""
    rows: list[list[str]] = []
    for name, entry in differences.items():
        rows.append([name, *(percent(value, "+.2f") for value in entry["difference"].values())])
        if "interval_95" in entry:
            low, high = zip(*entry["interval_95"].values(), strict=True)
            rows.append(["  95 % from", *(percent(value, "+.2f") for value in low)])
            rows.append(["  to", *(percent(value, "+.2f") for value in high)])
    text = "mAP of the second minus mAP of the first, in points; the bootstrap draws the same images for both:\n\n"
    return text + markdown(["convention", *GROUPS], rows, left=1)


# --- CSV ------------------------------------------------------------------------------------------------------------


def write_class_csv(path: Path, runs: list[Evaluation]) -> None:
    """Write a row for each class; the measures of a second run are in columns whose names end in `_2`."""
    columns = _class_facts(runs[0])
    for number, evaluation in enumerate(runs):
        for name, values in _class_measures(evaluation).items():
            cells = ["" if math.isnan(value) else repr(value) for value in values.tolist()]
            columns[name + ("_2" if number else "")] = cells
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(map(as_cell, row) for row in zip(*columns.values(), strict=True))


def measures_by_class(evaluation: Evaluation) -> dict[str, Sequence[object] | FloatArray]:
    """Columns [K] by name: each class, its annotations, its AP and its other measures."""
    return {**_class_facts(evaluation), **_class_measures(evaluation)}


def _class_facts(evaluation: Evaluation) -> dict[str, Sequence[object]]:
    vocabulary = evaluation.vocabulary
    return {
        "class_id": vocabulary.class_ids,
        "name": vocabulary.names,
        "class_group": vocabulary.class_group.tolist(),
        "train_annotations": (vocabulary.train_positives + vocabulary.train_negatives).tolist(),
        "positives": evaluation.positives.tolist(),
        "negatives": evaluation.negatives.tolist(),
    }


def _class_measures(evaluation: Evaluation) -> dict[str, FloatArray]:
    columns = {"ap": evaluation.ap, "best_threshold": evaluation.best_thresholds, **evaluation.metrics}
    if evaluation.decisions is not None:
        columns |= dict(zip(("precision", "recall", "f1"), evaluation.decisions.per_class(), strict=True))
    if evaluation.at_recall is not None:
        columns["precision_at_recall"] = evaluation.at_recall
    return columns

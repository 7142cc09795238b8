"""Writes `report.html` of a run, one file that needs no network: table, curves, rejections and maps of some images."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa

from raypaml.data.data_folder import DataFolder
from raypaml.evaluation.class_details import CURVE_POINTS, NOBODY, Surprises
from raypaml.evaluation.measures import Evaluation
from raypaml.evaluation.result_records import GroupFigures, RunResult
from raypaml.evaluation.summary import caption
from raypaml.explanations.explanation_figures import by_group, map_summary
from raypaml.explanations.gallery import Row, gallery, of_every_group
from raypaml.explanations.pairs import Pairs
from raypaml.labels import GROUP_NAMES
from raypaml.metrics.thresholds import BINS, calibration_error
from raypaml.model.cam import CamClassifier
from raypaml.reports.pages import write_page
from raypaml.run_report.class_rejections import CLASSES_SHOWN, ClassRejections, budget_text
from raypaml.run_report.class_table import best_and_worst, class_table
from raypaml.run_report.next_steps import changed_settings, label_origin, next_commands
from raypaml.run_report.run_figures import calibration, drift, groups, rejections
from raypaml.run_report.training_figures import time_and_cost, training_curves
from raypaml.runs.alpha_of_use import alpha_text
from raypaml.runs.history import EpochRecord, History, Usage, best_epoch
from raypaml.runs.run_cost import cost_text, hours_text
from raypaml.runs.run_files import REPORT
from raypaml.runs.run_length import lengths_text
from raypaml.training.job import Job
from raypaml.training.out_of_memory import read_halving
from raypaml.training.rejection_counts import nothing_was_rejected

SURPRISES_SHOWN = 8
"""Images in each of the galleries of the highest-scored negatives and of the lowest-scored positives."""


def usage_by_epoch(history: History) -> History:
    """Returns the records with time and memory of every epoch, which earlier versions did not write.

    For their records, seconds and rate are computed from the other fields, and the rest is None.
    """
    before = [0.0, *(record["seconds"] for record in history[:-1])]
    spent = [record["seconds"] - earlier for record, earlier in zip(history, before, strict=True)]
    return [{**_derived_usage(record, seconds), **record} for record, seconds in zip(history, spent, strict=True)]


def _derived_usage(record: EpochRecord, seconds: float) -> Usage:
    return {
        "epoch_seconds": seconds,
        "images_per_second": record["samples"] / max(seconds, 1e-9),
        "data_wait_share": None,
        "collective_share": None,
        "peak_memory_bytes": None,
        "model_flop_utilisation": None,
    }


def write_report(
    job: Job,
    model: CamClassifier,
    evaluation: Evaluation,
    result: RunResult,
    history: History,
    rejected: list[ClassRejections],
    pairs: Pairs,
) -> None:
    """Write the report of a finished run.

    Args:
        job: the run with its data.
        model: the tested model.
        evaluation: its figures on the test split, with details.
        result: the content of `result.json`.
        history: the records of its epochs.
        rejected: its rejections by class.
        pairs: figures of the model's maps on some test images.
    """
    write_page(
        job.folder / REPORT,
        Path(__file__).with_name("report.html.j2"),
        name=job.config.run.name,
        recipe=job.config.recipe,
        config=job.config.flat(),
        result=result,
        samples={split: len(index) for split, index in job.data.splits.items()},
        history=history,
        halving=read_halving(job.folder),
        lengths=lengths_text(result.get("lengths", [])),
        changed=changed_settings(job.config),
        next_commands=next_commands(job.folder, job.config),
        **_test_values(evaluation, result, rejected),
        label_origin=label_origin(job.data, job.config),
        **_training_values(job, result, history, rejected),
        **_map_values(job.data, model, evaluation, pairs),
    )


def _test_values(evaluation: Evaluation, result: RunResult, rejected: list[ClassRejections]) -> dict[str, object]:
    """What the page says of the test: mAP by group, every class, calibration."""
    chosen = result.get("chosen_alpha")
    best, worst = best_and_worst(evaluation)
    return {
        "caption": caption(result),
        "group_names": [*GROUP_NAMES, "All"],
        "group_values": _percents(result),
        "chosen": chosen
        and {"text": alpha_text(chosen["alpha"]), "said": chosen["said"], "percents": _percents(chosen)},
        "groups": groups(result),
        "best": best,
        "worst": worst,
        "classes": class_table(evaluation, rejected),
        "curve_points": CURVE_POINTS,
        "calibration": {
            "bins": BINS,
            "error": calibration_error(evaluation.bins),
            "figure": calibration(evaluation.bins),
        },
    }


def _training_values(
    job: Job, result: RunResult, history: History, rejected: list[ClassRejections]
) -> dict[str, object]:
    """What the page says of training: curves, time and cost, rejections, drift."""
    compared = sum(record["drift"]["seconds"] for record in history if "drift" in record)
    usage = usage_by_epoch(history)
    rejects = any(record["rejected"] for record in history)
    return {
        "judged": best_epoch(history) is not None,
        "curves": training_curves(history, result["best_epoch"]),
        "cost": cost_text(result["cost"]),
        "hours": f"{hours_text(result['cost']['in_all'])} {result['cost']['unit']}",
        "time_and_cost": time_and_cost(history, usage, result["cost"], result["best_epoch"]),
        "rejections": rejections(history) if rejects else "",
        "none_rejected": "" if rejects else nothing_was_rejected(job.config, job.data.splits["train"], len(history)),
        "class_rejections": rejected,
        "classes_shown": CLASSES_SHOWN,
        "budget": budget_text(rejected, len(job.data.vocabulary)),
        "drift": drift(history) if any("drift" in record for record in history) else "",
        "drift_share": compared / (history[-1]["seconds"] or math.nan),
        "usage": usage,
    }


def _map_values(data: DataFolder, model: CamClassifier, evaluation: Evaluation, pairs: Pairs) -> dict[str, object]:
    """What the page says of maps, and the pictures: of every group, and those that the scores get most wrong."""
    looks, details = map_summary(pairs, data.vocabulary.class_group), evaluation.details
    assert details is not None

    def pictures(shown: list[tuple[int, int]]) -> list[Row]:
        return gallery(model, data, "test", shown)

    return {
        "looks": looks,
        "images": len(np.unique(pairs.row)),
        "places": {**looks["groups"], "all": looks["localisation"]},
        "by_group": by_group(looks),
        "gallery": pictures(of_every_group(pairs, data.vocabulary.class_group)),
        "false_positives": pictures(most_surprising(details.negatives, evaluation, data, highest=True)),
        "low_positives": pictures(most_surprising(details.positives, evaluation, data, highest=False)),
    }


def most_surprising(
    surprises: Surprises, evaluation: Evaluation, data: DataFolder, *, highest: bool
) -> list[tuple[int, int]]:
    """(sample number, class column) of the entries with the highest or the lowest scores, one of each class at most."""
    classes = np.flatnonzero(surprises.image != NOBODY)
    order = np.argsort((-1 if highest else 1) * surprises.score[classes], kind="stable")
    classes = classes[order[:SURPRISES_SHOWN]]
    keys = evaluation.keys.take(pa.array(surprises.image[classes]))
    rows = data.splits["test"].rows_of(pa.chunked_array([keys]))
    return list(zip(rows.tolist(), classes.tolist(), strict=True))


def _percents(figures: GroupFigures) -> list[float]:
    """The mAP of every group and of all classes, in percent."""
    return [100 * value for value in (*figures["groups"].values(), figures["mean_ap"])]

"""Writes `report.html` of a run, one file that needs no network: table, curves, rejections and maps of some images."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from raypaml.config import TrainConfig
from raypaml.data.data_folder import DataFolder
from raypaml.evaluation.result_records import GroupFigures, RunResult
from raypaml.evaluation.summary import caption
from raypaml.explanations.explanation_figures import by_group, map_summary
from raypaml.explanations.gallery import gallery, of_every_group
from raypaml.explanations.pairs import Pairs
from raypaml.labels import GROUP_NAMES
from raypaml.model.cam import CamClassifier
from raypaml.reports.pages import write_page
from raypaml.run_report.class_rejections import CLASSES_SHOWN, class_rejections
from raypaml.run_report.run_figures import drift, groups, rejections, training_curves
from raypaml.runs.alpha_of_use import alpha_text
from raypaml.runs.history import EpochRecord, History, Usage, best_epoch
from raypaml.runs.run_files import REPORT
from raypaml.runs.run_length import lengths_text
from raypaml.training.out_of_memory import read_halving


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
    folder: Path,
    config: TrainConfig,
    data: DataFolder,
    model: CamClassifier,
    result: RunResult,
    history: History,
    pairs: Pairs,
) -> None:
    """Write the report of a finished run.

    Args:
        folder: the folder of the run.
        config: its settings.
        data: the data set that it was trained on.
        model: the tested model.
        result: the content of `result.json`.
        history: the records of its epochs.
        pairs: figures of the model's maps on some test images.
    """
    looks, class_group = map_summary(pairs, data.vocabulary.class_group), data.vocabulary.class_group
    chosen = result.get("chosen_alpha")
    compared = sum(record["drift"]["seconds"] for record in history if "drift" in record)
    write_page(
        folder / REPORT,
        Path(__file__).with_name("report.html.j2"),
        name=config.run.name,
        config=config.flat(),
        result=result,
        caption=caption(result),
        group_names=[*GROUP_NAMES, "All"],
        group_values=_percents(result),
        chosen=chosen and {"text": alpha_text(chosen["alpha"]), "said": chosen["said"], "percents": _percents(chosen)},
        samples={split: len(index) for split, index in data.splits.items()},
        judged=best_epoch(history) is not None,
        curves=training_curves(history, result["best_epoch"]),
        groups=groups(result),
        rejections=rejections(history) if any(record["rejected"] for record in history) else "",
        class_rejections=class_rejections(history, data.vocabulary),
        classes_shown=CLASSES_SHOWN,
        drift=drift(history) if any("drift" in record for record in history) else "",
        drift_share=compared / (history[-1]["seconds"] or math.nan),
        history=history,
        halving=read_halving(folder),
        lengths=lengths_text(result.get("lengths", [])),
        usage=usage_by_epoch(history),
        looks=looks,
        images=len(np.unique(pairs.row)),
        places={**looks["groups"], "all": looks["localisation"]},
        by_group=by_group(looks),
        gallery=gallery(model, data, "test", of_every_group(pairs, class_group)),
    )


def _percents(figures: GroupFigures) -> list[float]:
    """The mAP of every group and of all classes, in percent."""
    return [100 * value for value in (*figures["groups"].values(), figures["mean_ap"])]

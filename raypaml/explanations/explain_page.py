"""Writes `explanations.html`, the comparison of maps as one file that needs no network, and `pairs.csv`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv

from raypaml.data.data_folder import DataFolder
from raypaml.explanations.boxes import Boxes
from raypaml.explanations.explanation_figures import MapFigures, attributions, by_group, correlations, map_summary
from raypaml.explanations.gallery import side_by_side
from raypaml.explanations.pairs import Pairs
from raypaml.explanations.words import meaning
from raypaml.model.cam import CamClassifier
from raypaml.reports.figures import missed_positives
from raypaml.reports.pages import write_page
from raypaml.runs.alpha_of_use import UsedAlpha, alpha_text
from raypaml.runs.history import History, rejection_quality
from raypaml.spreadsheets import as_cell


def write_explain_page(
    out: Path,
    pairs: Pairs,
    data: DataFolder,
    split: str,
    models: dict[str, CamClassifier],
    shown: Sequence[tuple[int, int]],
    names: tuple[str, str],
    histories: Mapping[str, History],
    alphas: Mapping[str, UsedAlpha],
    *,
    boosted: bool,
    boxes: Boxes | None,
) -> MapFigures:
    """Write `explanations.html`; returns every figure in it.

    Args:
        out: folder of the page.
        pairs: figures of the pairs of image and class.
        data, split: the images.
        models: the models whose maps are shown side by side, by name.
        shown: (sample number, class column) of each row of pictures.
        names: names of the model that is explained and of the one that it is compared with ("" for none).
        histories: the records of the runs' epochs, by name.
        alphas: the alpha that each model is used with, by name.
        boosted: show maps after BoostLU.
        boxes: known boxes, in the place of the data set's own.
    """
    judged = {name: quality for name, history in histories.items() if (quality := rejection_quality(history))}
    figures = map_summary(pairs, data.vocabulary.class_group)
    figures["rejection"] = judged
    figures["alpha"] = {name: {"alpha": alpha.alpha, "origin": alpha.alpha_origin} for name, alpha in alphas.items()}
    compared = "rank_correlation" in figures
    shown_names = names if compared else names[:1]
    write_page(
        out / "explanations.html",
        Path(__file__).with_name("explain.html.j2"),
        title=" against ".join(name for name in names if name),
        split=split,
        images=len(np.unique(pairs.row)),
        figures=figures,
        compared=compared,
        names=shown_names,
        not_compared="" if compared else names[1],
        alphas={name: f"{alpha_text(alpha.alpha)} ({alpha.alpha_origin})" for name, alpha in alphas.items()},
        places={**figures["groups"], "all": figures["localisation"]},
        correlations=correlations(pairs) if compared else "",
        attributions=attributions(pairs, names) if compared else "",
        meaning=meaning(figures, names) if compared else [],
        attribution_columns=[
            "mean of a map's",
            *(f"{name}, {kind}" for name in shown_names for kind in ("raw", "boosted")),
        ],
        by_group=by_group(figures),
        rejections=missed_positives({name: [histories[name]] for name in judged}) if judged else "",
        gallery=side_by_side(models, data, split, shown, boosted=boosted, boxes=boxes),
        boosted=boosted,
    )
    return figures


def write_pairs(path: Path, pairs: Pairs, data: DataFolder, split: str) -> None:
    """Write a row for each pair of image and class: key, class id, and every figure; empty where one does not apply."""
    columns: dict[str, Sequence[str] | pa.Array] = {
        "key": [as_cell(key) for key in data.splits[split].keys(pairs.row)],
        "class_id": pa.array([as_cell(one) for one in data.vocabulary.class_ids]).take(pa.array(pairs.class_index)),
    }
    for column in fields(pairs)[2:]:
        columns[column.name] = pa.array(getattr(pairs, column.name), from_pandas=True)  # NaN becomes null
    csv.write_csv(pa.table(columns), path)

"""`explanations.html` and `pairs.csv`: the comparison of maps as one file without network, and every pair as a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
from pyarrow import csv

from raypaml.data.boxes import Boxes
from raypaml.data.folder import DataFolder
from raypaml.metrics.pairs import Pairs
from raypaml.model.cam import CamClassifier
from raypaml.reports.explanations import attributions, by_group, correlations, summary
from raypaml.reports.figures import History, missed_positives
from raypaml.reports.gallery import side_by_side
from raypaml.reports.result import rejected


def write_page(
    out: Path,
    pairs: Pairs,
    data: DataFolder,
    split: str,
    models: dict[str, CamClassifier],
    shown: Sequence[tuple[int, int]],
    names: tuple[str, str],
    histories: Mapping[str, History],
    *,
    boosted: bool,
    boxes: Boxes | None,
) -> dict[str, Any]:
    """Write `explanations.html`; returns every figure in it.

    Args:
        models: whose maps are shown side by side, by name.
        shown: (sample number, class column) of each row of pictures.
        names: of the model looked at and of the one compared with ("" for none).
        histories: the epochs of the runs, by name.
        boosted: show maps after BoostLU.
        boxes: known ones, instead of the data set's own.
    """
    judged = {name: seen for name, history in histories.items() if (seen := rejected(history))}
    found = summary(pairs, data.vocabulary.class_group) | {"rejection": judged}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("raypaml.reports", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    compared = bool(names[1])
    page = environment.get_template("explain.html.j2").render(
        title=" against ".join(name for name in names if name),
        split=split,
        images=len(np.unique(pairs.row)),
        found=found,
        compared=compared,
        names=names,
        places={**found["groups"], "all": found["localisation"]},
        correlations=correlations(pairs) if compared else "",
        attributions=attributions(pairs, names) if compared else "",
        by_group=by_group(found),
        rejections=missed_positives({name: [histories[name]] for name in judged}) if judged else "",
        gallery=side_by_side(models, data, split, shown, boosted=boosted, boxes=boxes),
        boosted=boosted,
    )
    unfinished = out / ".explanations.unfinished"
    unfinished.write_text(page, encoding="utf-8")
    unfinished.replace(out / "explanations.html")
    return found


def write_pairs(path: Path, pairs: Pairs, data: DataFolder, split: str) -> None:
    """Write one row per (image, class): key, class id, and every figure; empty where one does not apply."""
    columns: dict[str, Any] = {
        "key": data.splits[split].keys(pairs.row),
        "class_id": pa.array(data.vocabulary.class_ids).take(pa.array(pairs.class_index)),
    }
    for column in fields(pairs)[2:]:
        columns[column.name] = pa.array(getattr(pairs, column.name), from_pandas=True)  # nan becomes empty
    csv.write_csv(pa.table(columns), path)

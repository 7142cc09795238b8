"""The records of a run's epochs as a table, and how far a run is in words."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from raypaml.config import TrainConfig
from raypaml.evaluation.result_records import RunResult
from raypaml.reports.tables import percent
from raypaml.runs.history import VALIDATION_MEAN_AP, EpochRecord


def records_table(history: Iterable[EpochRecord]) -> pa.Table:
    """A row for each record; members of a dictionary are columns of their own, null where a record lacks one."""
    rows = [_flat(record) for record in history]
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def figures_text(config: TrainConfig, records: pa.Table, result: RunResult | None) -> str:
    """Recipe, scheme, epochs trained so far, and the best validation mAP and the test mAP where there are any."""
    figures = [f"{config.recipe}, {config.loss.scheme}, {records.num_rows} of {config.optim.epochs} epochs"]
    if records.num_rows:
        best = max(records[VALIDATION_MEAN_AP].to_pylist(), key=lambda score: (not math.isnan(score), score))
        figures.append(f"validation mAP {percent(best)} at best")
    if result:
        figures.append(f"test mAP {percent(result['mean_ap'])}")
    return ", ".join(figures)


def _flat(record: EpochRecord) -> dict[str, Any]:
    """A record with the members of its dictionaries as fields of their own, without the rejections by class."""
    flat: dict[str, Any] = {}
    for name, value in record.items():
        if name != "rejections_by_class":
            flat |= (
                {f"{name}_{key}": of_key for key, of_key in value.items()} if isinstance(value, dict) else {name: value}
            )
    return flat

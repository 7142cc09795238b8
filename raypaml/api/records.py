"""The records of a run's epochs as a table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from raypaml.runs.history import EpochRecord


def records_table(history: Iterable[EpochRecord]) -> pa.Table:
    """A row for each record; members of a dictionary are columns of their own, null where a record lacks one."""
    rows = [_flat(record) for record in history]
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def _flat(record: EpochRecord) -> dict[str, Any]:
    """A record with the members of its dictionaries as fields of their own, without the rejections by class."""
    flat: dict[str, Any] = {}
    for name, value in record.items():
        if name != "rejections_by_class":
            flat |= (
                {f"{name}_{key}": of_key for key, of_key in value.items()} if isinstance(value, dict) else {name: value}
            )
    return flat

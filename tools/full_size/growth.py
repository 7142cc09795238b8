"""The figures of rehearsals in one table, how each grows with the scale, and which exceed the limits."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raypaml.reports.tables import markdown

PROCESS_MB = 2_000.0
PREPARATION_MB = 1_400.0
"""Largest PSS of the process that joins labels."""
EVALUATION_MB = 400.0
FIRST_STEP_SECONDS = 60.0
"""From the command to its first step, also where it goes on."""
ALONE_SECONDS = 10.0
"""In which one thread works while the others of a phase of several processes wait."""
TOGETHER = ("shard", "verify", "train-killed", "train-finished", "validation", "test", "audit", "ll_cp-resumed", "an")
"""Phases that are given two processes."""
PAGE_BYTES = 15e6
EXPONENT = 1.05
EVALUATION = ("aggregate", "thresholds")
"""Phases that compute measures without a network."""
PAGES = ("report",)
COUNTED_FROM = {"cpu_seconds": 30.0, "together": 500.0, "largest": 300.0, "bytes": 1e6}
"""An exponent is judged where the figure is at least this large at the largest scale: below, starting up is most of it.
"""
COLUMNS = ("cpu_seconds", "largest", "together", "bytes")
Record = dict[str, Any]


def read_results(folder: Path) -> list[Record]:
    """Returns the last record of each phase of a rehearsal."""
    latest: dict[str, Record] = {}
    with (folder / "results.jsonl").open() as file:
        for line in file:
            record = json.loads(line)
            record["largest"] = max(record["peaks"].values(), default=0.0)
            latest[record["phase"]] = record
    return list(latest.values())


def exponent(scales: Sequence[float], values: Sequence[float]) -> float:
    """Returns the exponent of a power law through these points, by least squares of the logarithms; nan for one."""
    if len(set(scales)) < 2 or min(values) <= 0:
        return float("nan")
    return float(np.polyfit(np.log(scales), np.log(values), 1)[0])


def faults(record: Record) -> list[str]:
    """Returns the limits that a phase exceeds."""
    phase, over = record["phase"], []
    limit = EVALUATION_MB if phase in EVALUATION else PREPARATION_MB if phase == "shard" else PROCESS_MB
    if record["largest"] > limit:
        over.append(f"more than {limit:,.0f} MB a process")
    if record["marks"].get("first step", 0) > FIRST_STEP_SECONDS:
        over.append(f"more than {FIRST_STEP_SECONDS:.0f} s to the first step")
    if phase in TOGETHER and record.get("alone", 0) > ALONE_SECONDS:
        over.append(f"one thread alone for more than {ALONE_SECONDS:.0f} s")
    if phase in PAGES and record["bytes"] > PAGE_BYTES:
        over.append(f"a page of more than {PAGE_BYTES / 1e6:.0f} MB")
    if not record["right"]:
        over.append("failed")
    return over


def table(folders: Sequence[Path]) -> str:
    """Returns the figures of rehearsals as Markdown, and the exponents where there are several scales."""
    records = sorted((record for folder in folders for record in read_results(folder)), key=lambda one: one["scale"])
    phases: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        phases[record["phase"]].append(record)
    rows = [_row(record) for phase in phases.values() for record in phase]
    head = ["phase", "scale", "seconds", "CPU s", "first step, s", "alone, s", "through Ray, MB"]
    head += ["largest process, MB", "own, MB", "all, MB", "files", "MB", ""]
    figures = markdown(head, rows, left=1)
    if len({record["scale"] for record in records}) < 2:
        return figures
    growing = [
        [name, *(_growth(phase, column) for column in COLUMNS)] for name, phase in phases.items() if len(phase) > 1
    ]
    head = ["phase, exponent of", "CPU time", "largest process", "all processes", "bytes"]
    return f"{figures}\n\n{markdown(head, growing, left=1)}"


def _row(record: Record) -> list[str]:
    largest = max(record["peaks"], key=record["peaks"].get, default="")
    some = (record["marks"].get("first step"), record.get("alone"), record.get("ray_mb"))
    return [
        *(record["phase"], f"{record['scale']:g}", f"{record['seconds']:.1f}", f"{record['cpu_seconds']:.1f}"),
        *("" if value is None else f"{value:,.1f}" for value in some),  # not measured
        f"{record['largest']:,.0f} ({largest})",
        "" if "own" not in record else f"{max(record['own'].values(), default=0):,.0f}",
        f"{record['together']:,.0f}",
        *(str(record["files"]), f"{record['bytes'] / 1e6:,.1f}"),
        "; ".join(faults(record)),
    ]


def _growth(records: Sequence[Record], column: str) -> str:
    """Returns the exponent of a column, marked where it is judged and too large."""
    scales, values = [one["scale"] for one in records], [one[column] for one in records]
    grows = exponent(scales, values)
    if np.isnan(grows):
        return ""
    return f"{grows:.2f}{' !' if grows > EXPONENT and values[-1] >= COUNTED_FROM[column] else ''}"

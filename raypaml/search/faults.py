"""The faults that ended the workers of a trial: the records in `faults.json` of its folder, in their order."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from raypaml.counting import number_of
from raypaml.files import write_json
from raypaml.stored_json import read_if_there

_FILE = "faults.json"


class Fault(TypedDict):
    """A fault that ended the workers of a trial."""

    time: str
    """When it was noticed, or made good; ISO 8601."""
    cause: str
    """Who ended, and why."""
    preempted: bool
    """Whether a node was taken away with notice, which `max_failures` does not count."""
    steps: int | None
    """Steps that were trained again because of it, at least; None where the trial did not go on."""


class _Faults(TypedDict):
    faults: list[Fault]


def read_faults(run_folder: Path) -> list[Fault]:
    """All faults of the trial with this run folder."""
    stored = read_if_there(run_folder / _FILE, _Faults, "the faults that a trial met")
    return stored["faults"] if stored else []


def add_fault(run_folder: Path, fault: Fault) -> None:
    """Record one more fault."""
    run_folder.mkdir(parents=True, exist_ok=True)
    write_json(run_folder / _FILE, {"faults": [*read_faults(run_folder), fault]})


def told_fault(fault: Fault) -> str:
    """A fault in words, for people."""
    steps = fault["steps"]
    again = f"at least {number_of(steps, 'step')} trained again" if steps else "hardly a step trained again"
    return f"{fault['cause']}; {'did not go on' if steps is None else again}"

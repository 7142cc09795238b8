"""The length of a run, which may change when it is continued; its record says from where on each length held.

`config.json` has the present length among the settings, and under `lengths` all lengths, where there were several.
Where a finished run is continued, its result and its page get other names, because a run with `result.json` counts as
finished.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from raypaml.config import TrainConfig
from raypaml.counting import epoch_number, number_of, place_text
from raypaml.files import write_json
from raypaml.runs.mirror import Mirror
from raypaml.runs.run_files import CONFIG, REPORT, RESULT
from raypaml.runs.run_record import Length, read_run_record

LENGTH_FIELDS = ("epochs", "patience", "stop_below")
"""Settings that decide when training ends, and may change when a run is continued. Schedules over the whole length
follow the new length from there on."""


class LengthSettings(TypedDict):
    """The settings that decide when training ends."""

    epochs: int
    patience: int
    stop_below: float


def length_of(config: TrainConfig) -> LengthSettings:
    """The settings of a configuration that decide when training ends."""
    optim = config.optim
    return {"epochs": optim.epochs, "patience": optim.patience, "stop_below": optim.stop_below}


def is_finished(folder: Path, config: TrainConfig) -> bool:
    """Whether the run in a folder has its result, and no other length is asked for."""
    if not (folder / RESULT).is_file():
        return False
    return length_of(TrainConfig.from_dict(read_run_record(folder)["config"])) == length_of(config)


def reached(folder: Path, storage: str) -> tuple[int, int]:
    """The epoch and the step, from 0, with which a run continues: those of its newest valid checkpoint."""
    from raypaml.runs.checkpoint import cursor, valid_checkpoints  # with torch, which --help does without

    if mirror := Mirror.of(storage, folder):
        mirror.pull_checkpoints()
    valid, _ = valid_checkpoints(folder / "checkpoints")
    return cursor(valid[-1]) if valid else (0, 0)


def lengths(folder: Path) -> list[Length]:
    """The lengths that a run has had, in order; an empty list where it never changed."""
    return read_run_record(folder).get("lengths", [])


def change_length(folder: Path, config: TrainConfig) -> None:
    """Where a configuration has another length than a run, record it, and put the run's result aside.

    The result is put aside first: an interruption then leaves an unfinished run, rather than a wrong result.
    """
    record = read_run_record(folder)
    before = TrainConfig.from_dict(record["config"])
    if length_of(before) == length_of(config):
        return
    first: Length = {"epoch": 0, "step": 0, **length_of(before), "result": ""}
    kept = record.get("lengths") or [first]
    kept[-1]["result"] = _put_aside(folder, config.run.storage, len(kept)) or kept[-1]["result"]
    epoch, step = reached(folder, config.run.storage)
    record["lengths"] = [*kept, {"epoch": epoch, "step": step, **length_of(config), "result": ""}]
    old, new = before.flat(), config.flat()
    changed = {name: new[name] for name in LENGTH_FIELDS if new[name] != old[name]}
    record["config"]["optim"] |= changed  # only these: the record of an earlier version must go on lacking the others
    write_json(folder / CONFIG, record)


def _put_aside(folder: Path, storage: str, number: int) -> str:
    """Rename the result and the page of a finished run, also in its store; returns the result's new name, or ""."""
    mirror, kept = Mirror.of(storage, folder), ""
    if mirror:
        mirror.pull(REPORT, RESULT)
    for name in (REPORT, RESULT):
        path = folder / name
        if path.is_file():
            kept = f"{path.stem}-{number}{path.suffix}"
            path.replace(folder / kept)
            if mirror:
                mirror.push(kept)
                for there in mirror.there([name]):
                    mirror.delete(there)
    return kept if kept.startswith("result") else ""


def length_text(length: LengthSettings | Length) -> str:
    """A length for the user, such as "18 epochs, patience 2"."""
    rest = [f"patience {length['patience']}"] if length["patience"] else []
    rest += [f"stop_below {length['stop_below']:g}"] if length["stop_below"] else []
    return ", ".join([number_of(length["epochs"], "epoch"), *rest])


def lengths_text(lengths: list[Length]) -> str:
    """Which epochs were trained as part of a run of which length, in a sentence; empty where there was one length."""
    if not lengths:
        return ""
    parts = (f"{since_text(length['epoch'], length['step'])} as a run of {length_text(length)}" for length in lengths)
    return f"Trained {'; '.join(parts)}."


def since_text(epoch: int, step: int) -> str:
    """The place from which something holds, for the user; epoch and step are from 0."""
    return f"from {place_text(epoch, step)}" if step else f"from epoch {epoch_number(epoch)}"

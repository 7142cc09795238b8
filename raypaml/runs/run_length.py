"""How long a run trains: that may change when it goes on, and its record says from where on which length held.

`config.json` has the present length among the settings, and under `lengths` all of them, where there were several. The
result and the page of a run that had finished are kept under other names, for without `result.json` it is not finished.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raypaml.config import TrainConfig
from raypaml.counting import epoch_number, place_text
from raypaml.files import write_json
from raypaml.runs.mirror import Mirror

LENGTH_FIELDS = ("epochs", "patience", "stop_below")
"""Settings that decide when training ends: a run may go on with others. What moves over the whole length then follows
the new one from there on."""

Length = dict[str, Any]
"""`epoch` and `step`, from 0, at which it began to hold; LENGTH_FIELDS by name; `result`: the file of the result, ""
where the run had none."""


def length_of(config: TrainConfig) -> dict[str, Any]:
    """The settings that decide when training ends, by name."""
    return {name: getattr(config.optim, name) for name in LENGTH_FIELDS}


def is_finished(folder: Path, config: TrainConfig) -> bool:
    """Whether the run in this folder has its result, and is asked for no other length."""
    if not (folder / "result.json").is_file():
        return False
    return length_of(TrainConfig.from_dict(_record(folder)["config"])) == length_of(config)


def reached(folder: Path, storage: str) -> tuple[int, int]:
    """The epoch and the step, from 0, that a run goes on with: those of its newest whole checkpoint."""
    from raypaml.runs.checkpoint import cursor, valid_checkpoints  # with torch, which --help does without

    if mirror := Mirror.of(storage, folder):
        mirror.pull_checkpoints()
    valid, _ = valid_checkpoints(folder / "checkpoints")
    return cursor(valid[-1]) if valid else (0, 0)


def lengths(folder: Path) -> list[Length]:
    """Every length that a run has had, in order; nothing where it was one from the start."""
    return list(_record(folder).get("lengths", ()))


def change_length(folder: Path, config: TrainConfig) -> None:
    """Give a run the length of a configuration, where it has another: a note in its record, its result put aside.

    The result goes first: whoever is interrupted here has a run that is not finished, rather than a wrong result.
    """
    record = _record(folder)
    before = TrainConfig.from_dict(record["config"])
    if length_of(before) == length_of(config):
        return
    kept = record.get("lengths") or [{"epoch": 0, "step": 0, **length_of(before), "result": ""}]
    kept[-1]["result"] = _put_aside(folder, config.run.storage, len(kept)) or kept[-1]["result"]
    epoch, step = reached(folder, config.run.storage)
    record["lengths"] = [*kept, {"epoch": epoch, "step": step, **length_of(config), "result": ""}]
    changed = {name: value for name, value in length_of(config).items() if value != length_of(before)[name]}
    record["config"]["optim"] |= changed  # an earlier version's record lacks the others, and keeps lacking them
    write_json(folder / "config.json", record)


def _put_aside(folder: Path, storage: str, number: int) -> str:
    """Rename the result and the page of a finished run, in its store too; the result's new name, if there is one."""
    mirror, kept = Mirror.of(storage, folder), ""
    if mirror:
        mirror.pull("report.html", "result.json")
    for name in ("report.html", "result.json"):
        path = folder / name
        if path.is_file():
            kept = f"{path.stem}-{number}{path.suffix}"
            path.replace(folder / kept)
            if mirror:
                mirror.push(kept)
                for there in mirror.there([name]):
                    mirror.delete(there)
    return kept if kept.startswith("result") else ""


def length_text(length: dict[str, Any]) -> str:
    """A length for people, such as "18 epochs, patience 2"."""
    rest = [f"{name} {length[name]:g}" for name in LENGTH_FIELDS[1:] if length[name]]
    return ", ".join([f"{length['epochs']} epoch{'s' if length['epochs'] > 1 else ''}", *rest])


def lengths_text(found: list[Length]) -> str:
    """Which epochs were trained as part of a run of which length, in a sentence; empty where there was one length."""
    if not found:
        return ""
    parts = (f"{since_text(length['epoch'], length['step'])} as a run of {length_text(length)}" for length in found)
    return f"Trained {'; '.join(parts)}."


def since_text(epoch: int, step: int) -> str:
    """From where on something holds, an epoch and a step from 0, for people."""
    return f"from {place_text(epoch, step)}" if step else f"from epoch {epoch_number(epoch)}"


def _record(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return content

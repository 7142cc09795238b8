"""What a run will cost, told before it starts: from the figures of an earlier run like it, if there is one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from raypaml.config import TrainConfig
from raypaml.counting import number_of
from raypaml.data.storage import Location
from raypaml.runs.history import History, read_history
from raypaml.runs.mirror import Mirror
from raypaml.runs.run_cost import RunCost, hours_text, run_cost
from raypaml.runs.run_files import CONFIG, METRICS_FILE, WORKER_TIME
from raypaml.runs.run_folder import open_run, stored_config

MOST_LOOKED_AT = 200
"""The most runs in the storage that are looked at, those that were trained last."""


def cost_lines(config: TrainConfig, images: int) -> list[str]:
    """What an earlier run cost for each epoch and for each point of validation mAP, and what follows for this one.

    Operations can be counted before a run, and so the hours of an epoch at a rate. How many points of validation mAP
    they give cannot: that figure is the earlier run's, or is not given.

    Args:
        config: the run that is planned. The earlier run is that of its name and storage, continued or not; else the one
            in its storage of the same recipe, data and backbone that was trained last.
        images: training images of the planned run, by which the hours of an epoch are scaled.
    """
    folder = _earlier(config)
    if folder is None:
        return [
            f"            hours for each point of validation mAP: not known, for {config.run.storage} has no run of "
            f"{config.recipe} with {config.model.backbone} on this data, from which they could be taken"
        ]
    earlier, history = stored_config(folder), read_history(folder)
    assert earlier is not None
    return list(_measured(folder, run_cost(folder, earlier, history), images / history[0]["expected"], config))


def _measured(folder: Path, cost: RunCost, scale: float, config: TrainConfig) -> Iterator[str]:
    unit, epochs = cost["unit"], config.optim.epochs
    scaled = "" if scale == 1 else f" (scaled by {scale:.3g}, the ratio of training images)"
    counts = ", then ".join(map(str, cost["workers"]))
    yield (
        f"measured    {folder} (workers: {counts}), everything included: {hours_text(cost['per_epoch'] * scale)} "
        f"{unit} an epoch{scaled}, so {hours_text(cost['per_epoch'] * scale * epochs)} for {number_of(epochs, 'epoch')}"
    )
    if cost["per_point"] is None:
        yield "            it has no validation mAP, so that hours for each point are not known"
        return
    after = cost["per_point_after_first"]
    gained = f", {hours_text(after)} for each gained after its first epoch" if after is not None else ""
    yield (
        f"            {hours_text(cost['per_point'])} {unit} for each of the {cost['points']:.1f} points of validation "
        f"mAP up to its best epoch{gained}"
    )
    if cost["estimated"]:
        yield "            partly estimated: an earlier version of raypaml counted training time alone"


def _earlier(config: TrainConfig) -> Path | None:
    """The folder of the run to measure by; None where there is none that has ended an epoch."""
    run = config.run
    if run.name:
        folder = open_run(run.storage, run.name)
        if mirror := Mirror.of(run.storage, folder):
            mirror.pull(METRICS_FILE, WORKER_TIME)
        if _history(folder):
            return folder
    if not Location(run.storage).is_local:
        return None
    records = sorted(Path(run.storage).glob(f"*/{METRICS_FILE}"), key=lambda path: -path.stat().st_mtime)
    return next((path.parent for path in records[:MOST_LOOKED_AT] if _is_like(path.parent, config)), None)


def _is_like(folder: Path, config: TrainConfig) -> bool:
    """Whether a run has the same recipe, backbone and data, and has ended an epoch; a damaged one is not like any."""
    try:
        other = stored_config(folder) if (folder / CONFIG).is_file() else None
    except ValueError:
        return False
    if other is None or not _history(folder):
        return False
    mine, its = ((one.recipe, one.model.backbone, one.data.data) for one in (config, other))
    return mine == its


def _history(folder: Path) -> History:
    try:
        return read_history(folder)
    except ValueError:
        return []

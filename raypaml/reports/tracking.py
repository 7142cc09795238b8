"""Curves for TensorBoard, MLflow or Weights & Biases, from a thread of its own: one that hangs never stops training.

All write to the run's folder, without network, unless their own environment variables say otherwise.
"""

from __future__ import annotations

import importlib
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

from raypaml.cli import extra
from raypaml.counting import epoch_number

TrackerName = Literal["none", "tensorboard", "mlflow", "wandb"]

WAITING = 10_000
"""Events that may wait for a slow tracker; later ones are dropped, and counted."""
EPOCH_CURVES = (
    *("loss", "rejected", "corrected", "validation_mean_ap", "rejection_precision", "rejection_recall"),
    *("epoch_seconds", "images_per_second", "data_wait_share", "collective_share", "peak_memory_bytes"),
    "model_flop_utilisation",
)
"""Fields of an epoch's record that become curves."""
_PATIENCE = 30.0
"""Seconds that the end of a run waits for a tracker."""

Values = dict[str, float]


class Tracker(Protocol):
    """Takes curves. Called from one thread."""

    def log(self, values: Values, step: int) -> None:
        """Values by name, at a step of the whole training."""

    def close(self) -> None:
        """All is logged."""


class Tracking:
    """Hands events of `training.loop` to a tracker in the background."""

    def __init__(self, make: Callable[[], Tracker], say: Callable[[str], None]):
        self._events: queue.Queue[tuple[Values, int] | None] = queue.Queue(WAITING)
        self._say, self._dropped = say, 0
        self._thread = threading.Thread(target=self._run, args=(make,), daemon=True, name="tracker")
        self._thread.start()

    def update(self, event: dict[str, Any]) -> None:
        """Note one event; never waits."""
        found = tracked_values(event)
        if found is None:
            return
        try:
            self._events.put_nowait(found)
        except queue.Full:
            self._dropped += 1

    def close(self) -> None:
        """Wait a little for what is left, and say what was not logged."""
        try:
            self._events.put_nowait(None)
        except queue.Full:
            self._dropped += 1
        self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            self._say(f"the tracker hangs: {self._events.qsize():,} events were not logged; metrics.jsonl has them")
        if self._dropped:
            self._say(f"the tracker was too slow: {self._dropped:,} events dropped; metrics.jsonl has them")

    def _run(self, make: Callable[[], Tracker]) -> None:
        try:
            tracker = make()
            while (event := self._events.get()) is not None:
                tracker.log(*event)
            tracker.close()
        except Exception as error:  # whatever a tracker does, training goes on
            self._say(f"the tracker failed, training goes on without it: {error}")


def tracked_values(event: dict[str, Any]) -> tuple[Values, int] | None:
    """What there is to draw of an event, and at which step."""
    if "record" in event:
        record = event["record"]
        found = {name: record[name] for name in EPOCH_CURVES} | {"training_seconds": record["seconds"]}  # of all epochs
        found |= {f"validation_{group}": value for group, value in record["validation_groups"].items()}
        numbers = {f"epoch/{name}": float(value) for name, value in found.items() if value is not None}
        return numbers, epoch_number(record["epoch"])
    if "images_per_second" not in event:
        return None
    step = event["epoch"] * event["steps"] + event["step"]
    return {f"step/{name}": float(event[name]) for name in ("loss", "images_per_second")}, step


def tracking(name: TrackerName, run: Path, settings: dict[str, Any], say: Callable[[str], None]) -> Tracking | None:
    """The tracking that a configuration asks for, None for none; ValueError where its package is missing."""
    if name == "none":
        return None
    kinds: dict[str, Callable[[Path, dict[str, Any]], Tracker]]
    kinds = {"tensorboard": _TensorBoard, "mlflow": _MlFlow, "wandb": _WeightsAndBiases}
    make = kinds[name]
    try:
        importlib.import_module(name)
    except ImportError:
        raise ValueError(f"tracker={name}: not installed; {extra(name)}") from None
    return Tracking(lambda: make(run, settings), say)


class _TensorBoard:
    def __init__(self, run: Path, settings: dict[str, Any]):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run / "tensorboard"))
        self._writer.add_text("settings", "\n\n".join(f"{name}: {value}" for name, value in settings.items()))

    def log(self, values: Values, step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _MlFlow:
    def __init__(self, run: Path, settings: dict[str, Any]):
        from mlflow import MlflowClient

        address = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run.absolute() / 'mlflow.db'}"
        self._client = MlflowClient(address)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "raypaml"
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        self._run = self._client.create_run(experiment, run_name=run.name).info.run_id
        for key, value in settings.items():
            self._client.log_param(self._run, key, value)

    def log(self, values: Values, step: int) -> None:
        for name, value in values.items():
            self._client.log_metric(self._run, name, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._run)


class _WeightsAndBiases:
    def __init__(self, run: Path, settings: dict[str, Any]):
        import wandb

        mode = os.environ.get("WANDB_MODE") or "offline"
        self._run = wandb.init(project="raypaml", name=run.name, dir=str(run), config=settings, mode=mode)

    def log(self, values: Values, step: int) -> None:
        axis = "epoch" if any(name.startswith("epoch/") for name in values) else "step"
        self._run.log(values | {axis: step})

    def close(self) -> None:
        self._run.finish()

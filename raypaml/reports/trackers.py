"""TensorBoard, MLflow and Weights & Biases as trackers of a run, which write into the folder of the run.

They need no network unless their own environment variables name a server. A run that is continued adds files to
TensorBoard's folder, and continues the same run of MLflow and of Weights & Biases.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

Values = dict[str, float]
"""Numbers by the name of their curve: `step/NAME` over all steps of the training, `epoch/NAME` over epochs from 1, and
`test/NAME` at the number of epochs trained."""
Settings = Mapping[str, str | int | float | bool]

HEADLINES = ("test/mean_ap", "epoch/validation_mean_ap")
"""Curves by whose last values TensorBoard compares runs with different settings."""


class Tracker(Protocol):
    """Takes the curves and the report of a run; all calls come from one thread."""

    def log(self, values: Values, step: int) -> None:
        """Add a value to each of some curves, which are all over steps or all over epochs."""

    def keep(self, page: Path) -> None:
        """Keep the report of the finished run, as far as the tracker can."""

    def close(self, *, finished: bool) -> None:
        """End the tracking of a run that has finished, or that was stopped and may be continued."""


class TensorBoard:
    """Writes event files into the folder `tensorboard` of the run; the report is a text with its path, not a file."""

    def __init__(self, run: Path, settings: Settings):
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        self._writer: Any = SummaryWriter(str(run / "tensorboard"))
        self._writer.add_text("settings", "\n\n".join(f"{name}: {value}" for name, value in settings.items()))
        known = hparams(dict(settings), dict.fromkeys(HEADLINES, 0.0))
        experiment, session, self._end = known
        self._add(experiment, session)

    def log(self, values: Values, step: int) -> None:
        """Write the values as scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def keep(self, page: Path) -> None:
        """Write the path of the report as a text."""
        self._writer.add_text("report", str(page))

    def close(self, *, finished: bool) -> None:
        """Close the file; the session of a stopped run stays open in TensorBoard's table of settings."""
        if finished:
            self._add(self._end)
        self._writer.close()

    def _add(self, *summaries: Any) -> None:
        for summary in summaries:
            self._writer.file_writer.add_summary(summary)


class MlFlow:
    """Logs to MLflow, into the folder of the run or to the server that MLFLOW_TRACKING_URI names.

    The experiment is the one that MLFLOW_EXPERIMENT_NAME names, by default `raypaml`. MLflow does not change
    parameters: where a continued run has another value of a setting, the new value is a tag.
    """

    _FOLDER = "raypaml.folder"

    def __init__(self, run: Path, settings: Settings):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before its import; it would report its use
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient(
            os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run.absolute() / 'mlflow.db'}"
        )
        experiment = self._experiment(run)
        known = self._client.search_runs([experiment], f"tags.`{self._FOLDER}` = '{_quoted(run)}'", max_results=1)
        tags = {self._FOLDER: _quoted(run)}
        tracked = known[0] if known else self._client.create_run(experiment, run_name=run.name, tags=tags)
        self._run = tracked.info.run_id
        self._client.update_run(self._run, status="RUNNING")
        had = tracked.data.params
        fresh = [Param(name, str(value)) for name, value in settings.items() if name not in had]
        self._client.log_batch(self._run, params=fresh)
        for name, value in settings.items():
            if had.get(name, str(value)) != str(value):
                self._client.set_tag(self._run, name, str(value))

    def _experiment(self, run: Path) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "raypaml"
        if known := self._client.get_experiment_by_name(name):
            return str(known.experiment_id)
        # else MLflow would keep artifacts below whatever folder the command was given in
        own = None if os.environ.get("MLFLOW_TRACKING_URI") else (run.absolute() / "mlflow").as_uri()
        return str(self._client.create_experiment(name, own))

    def log(self, values: Values, step: int) -> None:
        """Log the values as metrics, in one request."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._run, [Metric(name, value, now, step) for name, value in values.items()])

    def keep(self, page: Path) -> None:
        """Log the report as an artifact."""
        self._client.log_artifact(self._run, str(page))

    def close(self, *, finished: bool) -> None:
        """End the run in MLflow: as FINISHED, or as KILLED where it was stopped and may be continued."""
        self._client.set_terminated(self._run, "FINISHED" if finished else "KILLED")


def _quoted(run: Path) -> str:
    """The path of the run's folder for a filter of MLflow, in which a quote would end the text."""
    return str(run.absolute()).replace("'", "_")


class WeightsAndBiases:
    """Logs to the project `raypaml` of Weights & Biases, offline unless WANDB_MODE names another mode."""

    def __init__(self, run: Path, settings: Settings):
        import wandb

        self._artifact, self._name = wandb.Artifact, re.sub(r"[^\w.-]", "-", run.name)
        self._run = wandb.init(
            project="raypaml",
            name=run.name,
            id=hashlib.sha256(str(run.absolute()).encode()).hexdigest()[:16],
            resume="allow",
            dir=str(run),
            config=dict(settings),
            allow_val_change=True,
            mode=os.environ.get("WANDB_MODE") or "offline",
        )
        for axis in ("step", "epoch", "test"):
            self._run.define_metric(f"{axis}/*", step_metric="step" if axis == "step" else "epoch")

    def log(self, values: Values, step: int) -> None:
        """Log the values as one entry, with the step or the epoch as its axis."""
        axis = "step" if next(iter(values)).startswith("step/") else "epoch"
        self._run.log(values | {axis: step})

    def keep(self, page: Path) -> None:
        """Log the report as an artifact of its own."""
        artifact = self._artifact(f"{self._name}-report", type="report")
        artifact.add_file(str(page))
        self._run.log_artifact(artifact)

    def close(self, *, finished: bool) -> None:
        """End the run in Weights & Biases, with exit code 0 if it has finished, else 1."""
        self._run.finish(exit_code=0 if finished else 1)

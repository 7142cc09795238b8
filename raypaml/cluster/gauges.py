"""The curves of a run as gauges of Ray's metrics, for those who watch a cluster with Prometheus."""

from __future__ import annotations

from ray.util.metrics import Gauge

from raypaml.reports.tracking import tracked_values
from raypaml.runs.events import Event


class RunGauges:
    """Sets gauges `ray_raypaml_epoch_NAME` and `ray_raypaml_step_NAME`, tagged with the run, to what trackers get."""

    def __init__(self, run: str):
        self._tags = {"run": run}
        self._gauges: dict[str, Gauge] = {}

    def update(self, event: Event) -> None:
        """Set the gauges to the values of an event."""
        values, _ = tracked_values(event) or ({}, 0)
        for name, value in values.items():
            if name not in self._gauges:
                about = f"{name} of a raypaml run, as in metrics.jsonl and the trackers"
                self._gauges[name] = Gauge(f"raypaml_{name.replace('/', '_')}", about, tag_keys=("run",))
            self._gauges[name].set(value, self._tags)

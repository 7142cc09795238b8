"""A channel between the workers of a run and its driver: events and beats one way, the request to stop the other."""

from __future__ import annotations

from typing import Any, Protocol

import ray


class Listener(Protocol):
    """What the mailbox asks about beats: `training.watch.Watch` answers."""

    def hear(self, beat: Any) -> bool:
        """Whether the process that beats is to end."""

    def hung(self) -> list[str]:
        """A line for each worker to blame."""


class _Mailbox:
    """Lives in the cluster: keeps what workers say until the driver takes it."""

    def __init__(self, watch: Listener) -> None:
        self._events: list[dict[str, Any]] = []
        self._stop = False
        self._failed = False
        self._watch = watch

    def put(self, event: dict[str, Any]) -> bool:
        self._events.append(event)
        self._failed |= "failed" in event
        return self._stop

    def has_failed(self) -> bool:
        return self._failed

    def beat(self, beat: Any) -> bool:
        return self._watch.hear(beat)

    def take(self) -> list[dict[str, Any]]:
        events, self._events = self._events, []
        return events + [{"event": line} for line in self._watch.hung()]

    def stop(self) -> None:
        self._stop = True


class Channel:
    """Events and beats from the workers to the driver; the request to stop from the driver to the workers."""

    def __init__(self, watch: Listener) -> None:
        # on the driver's node: should another node be lost, its progress is not
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        self._mailbox = ray.remote(_Mailbox).options(num_cpus=0, scheduling_strategy=here).remote(watch)

    def put(self, event: dict[str, Any]) -> bool:
        """Send an event; whether the driver wants the workers to stop."""
        return bool(ray.get(self._mailbox.put.remote(event)))

    def has_failed(self) -> bool:
        """Whether a worker has told of an error that every other try would meet."""
        return bool(ray.get(self._mailbox.has_failed.remote()))

    def beat(self, beat: Any) -> bool:
        """Send a beat; whether this process is to end at once."""
        return bool(ray.get(self._mailbox.beat.remote(beat)))

    def take(self) -> list[dict[str, Any]]:
        """All events since the last call."""
        return list(ray.get(self._mailbox.take.remote()))

    def stop(self) -> None:
        """Ask the workers to save and stop."""
        ray.get(self._mailbox.stop.remote())

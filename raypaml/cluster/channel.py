"""The channel between workers and driver: events and heartbeats one way, the request to stop the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import ray

from raypaml.runs.events import Event, Message
from raypaml.training.watch import Beat

PATIENCE_SECONDS = 1.0


class Listener(Protocol):
    """What the mailbox needs of `training.watch.Watch`."""

    def hear(self, beat: Beat) -> bool:
        """Note a heartbeat; whether the process that sent it is to end."""

    def hung(self) -> list[str]:
        """A line for each worker that holds up the others."""


@dataclass(frozen=True)
class Failure:
    """An error of a worker that every other try would meet too."""

    error: Exception


@dataclass(frozen=True)
class Started:
    """A worker has started; its first step, and what comes before it, may take long."""


class _Mailbox:
    """An actor on the driver's node that keeps what workers report until the driver takes it."""

    def __init__(self, watch: Listener) -> None:
        self._events: list[Event | Started | Failure] = []
        self._stop = False
        self._failed = False
        self._watch = watch

    def put(self, event: Event | Started | Failure) -> bool:
        self._events.append(event)
        self._failed |= isinstance(event, Failure)
        return self._stop

    def has_failed(self) -> bool:
        return self._failed

    def beat(self, beat: Beat) -> bool:
        return self._watch.hear(beat)

    def take(self) -> list[Event | Started | Failure]:
        events, self._events = self._events, []
        return [*events, *map(Message, self._watch.hung())]

    def stop(self) -> None:
        self._stop = True


class Channel:
    """Takes events and heartbeats from the workers to the driver, and the request to stop to the workers."""

    def __init__(self, watch: Listener) -> None:
        # on the driver's node, so that what is reported is not lost with another node
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        self._mailbox = ray.remote(_Mailbox).options(num_cpus=0, scheduling_strategy=here).remote(watch)
        self._asked: ray.ObjectRef | None = None

    def put(self, event: Event | Started | Failure) -> bool:
        """Send an event to the driver; whether the driver wants the workers to stop."""
        return bool(ray.get(self._mailbox.put.remote(event)))

    def has_failed(self) -> bool:
        """Whether a worker has sent a Failure."""
        return bool(ray.get(self._mailbox.has_failed.remote()))

    def beat(self, beat: Beat) -> bool:
        """Send a heartbeat; whether this process is to end at once."""
        return bool(ray.get(self._mailbox.beat.remote(beat)))

    def take(self) -> list[Event | Started | Failure]:
        """All events since the last call; none, after PATIENCE_SECONDS, while the mailbox's process starts."""
        self._asked = self._asked or self._mailbox.take.remote()
        if not ray.wait([self._asked], timeout=PATIENCE_SECONDS)[0]:
            return []
        try:
            events = list[Event | Started | Failure](ray.get(self._asked))
        except ray.exceptions.ActorUnschedulableError as error:  # Ray has tried several times
            raise ValueError(f"a process of Ray does not start: {str(error).strip().splitlines()[0]}") from None
        self._asked = None
        return events

    def stop(self) -> None:
        """Ask the workers to save and stop, without waiting."""
        self._mailbox.stop.remote()

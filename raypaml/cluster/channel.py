"""The channel between workers and driver: events and heartbeats one way, the request to stop the other."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

import ray

from raypaml.runs.events import Event, Message
from raypaml.training.watch import Beat, process_name

PATIENCE_SECONDS = 1.0


class Listener(Protocol):
    """What the mailbox needs of `training.watch.Watch`."""

    def hear(self, beat: Beat) -> bool:
        """Note a heartbeat; whether the process that sent it is to end."""

    def hung(self) -> list[str]:
        """A line for each worker that holds up the others."""

    @property
    def silent(self) -> set[str]:
        """Processes that are to end, and cannot be told, for they send no heartbeats."""

    def forget(self) -> None:
        """Forget the workers that were heard of, for they have ended."""


@dataclass(frozen=True)
class Failure:
    """An error of a worker that every other try would meet too."""

    error: Exception


@dataclass(frozen=True)
class Started:
    """A worker has started; its first step, and what comes before it, may take long."""

    process: str = ""
    """Host and process id, as its heartbeats say."""
    actor: ray.actor.ActorHandle | None = None
    """By which its process is ended where it does not answer."""


@dataclass(frozen=True)
class Lost(Message):
    """Workers were lost."""

    cause: str
    """The ranks that ended, each with the reason."""
    preempted: bool
    """Whether a node was taken away with notice, which `max_failures` does not count."""


News = Event | Started | Failure
"""What the driver is told."""


class _Mailbox:
    """Keeps what the workers of a run report until the driver takes it."""

    def __init__(self, watch: Listener) -> None:
        self._events: list[News] = []
        self._stop = False
        self._failure: Exception | None = None
        self._losses = 0
        self._actors: dict[str, ray.actor.ActorHandle] = {}
        self._gone: set[str] = set()
        self._watch = watch

    def put(self, event: News, sender: str = "") -> bool:
        if sender in self._gone:  # a worker may outlive for a while what it was lost with
            return self._stop
        self._events.append(event)
        if isinstance(event, Failure):
            self._failure = self._failure or event.error
        elif isinstance(event, Started) and event.actor is not None:
            self._actors[event.process] = event.actor
        elif isinstance(event, Lost):
            self._losses += not event.preempted
            self.forget()
        return self._stop

    def forget(self) -> None:
        self._watch.forget()
        self._gone |= self._actors.keys()  # some send events and heartbeats until they are ended
        self._actors.clear()

    def failure(self) -> Exception | None:
        return self._failure

    def losses(self) -> int:
        return self._losses

    def beat(self, beat: Beat) -> bool:
        return beat.process not in self._gone and self._watch.hear(beat)

    def take(self) -> list[News]:
        events, self._events = self._events, []
        hung = self._watch.hung()
        for process in self._watch.silent & self._actors.keys():
            ray.kill(self._actors.pop(process))
        return [*events, *map(Message, hung)]

    def stop(self) -> None:
        self._stop = True


class _Mailboxes:
    """An actor on the driver's node with a mailbox for each run, by name."""

    def __init__(self, new_watch: Callable[[], Listener]) -> None:
        self._named = defaultdict[str, _Mailbox](lambda: _Mailbox(new_watch()))

    def ask(self, name: str, method: str, *args: object) -> object:
        return getattr(self._named[name], method)(*args)


class Channel:
    """Takes events and heartbeats from the workers to the driver, and the request to stop to the workers.

    Args:
        new_watch: makes the watch over the workers of a run.
    """

    def __init__(self, new_watch: Callable[[], Listener]) -> None:
        # on the driver's node, so that what is reported is not lost with another node
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        self._mailboxes = ray.remote(_Mailboxes).options(num_cpus=0, scheduling_strategy=here).remote(new_watch)
        self._name = ""
        self._asked: ray.ObjectRef | None = None

    def of(self, name: str) -> Self:
        """The channel of another run, such as a trial, through the same process."""
        other = copy.copy(self)
        other._name, other._asked = name, None
        return other

    def _ask(self, method: str, *args: object) -> ray.ObjectRef:
        return self._mailboxes.ask.remote(self._name, method, *args)

    def put(self, event: News) -> bool:
        """Send an event to the driver; whether the driver wants the workers to stop.

        What a worker sends after it was reported lost is ignored, for others may already do its work.
        """
        return bool(ray.get(self._ask("put", event, process_name())))

    def failure(self) -> Exception | None:
        """The error that a worker has sent as a Failure, the first one."""
        failure: Exception | None = ray.get(self._ask("failure"))
        return failure

    def losses(self) -> int:
        """How many losses were put that were no preemptions."""
        return int(ray.get(self._ask("losses")))

    def beat(self, beat: Beat) -> bool:
        """Send a heartbeat; whether this process is to end at once."""
        return bool(ray.get(self._ask("beat", beat)))

    def forget(self) -> None:
        """Say that all workers have ended, so that none is missed."""
        ray.get(self._ask("forget"))

    def take(self) -> list[News]:
        """All events since the last call; none, after PATIENCE_SECONDS, while the mailbox's process starts."""
        self._asked = self._asked or self._ask("take")
        if not ray.wait([self._asked], timeout=PATIENCE_SECONDS)[0]:
            return []
        try:
            events = list[News](ray.get(self._asked))
        except ray.exceptions.ActorUnschedulableError as error:  # Ray has tried several times
            raise ValueError(f"a process of Ray does not start: {str(error).strip().splitlines()[0]}") from None
        self._asked = None
        return events

    def stop(self) -> None:
        """Ask the workers to save and stop, without waiting."""
        self._ask("stop")

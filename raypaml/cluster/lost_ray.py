"""Noticing that Ray itself is lost, its head or the process of this node, and saying so.

Ray ends a program whose head has not come back within a minute, or whose node's raylet is gone, without a line that
says so to a user, and with exit code 1; until then what the program asks of Ray may wait (Ray 2.60). A thread knocks at
both, and does not wait so long where nobody restarts them.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray

from raypaml.cli import say
from raypaml.errors import StoppedAtOnce

HEAD_SECONDS = "RAY_gcs_rpc_server_reconnect_timeout_s"
"""Environment variable: seconds that Ray's processes wait for their head."""
_DEFAULT_SECONDS = 60.0
_MARGIN_SECONDS = 60.0
"""Seconds that Ray itself waits longer in this process, so that the line can be said before it ends the process."""
_LOOK_SECONDS = 0.5
_KNOCK_SECONDS = 5.0
_UNREACHABLE = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ECONNRESET)
_LEAVE_SECONDS = 10.0
"""Seconds that the program has to hear of the loss, before its process is ended."""
LOST_SECONDS = 20.0
"""Longest time that leaving a lost Ray takes; Ray itself waits five seconds for its head, longer on a busy machine.

What still runs then would go on writing into the folder of a private Ray, which is removed.
"""


class LostRayError(ValueError):
    """Ray's head, or its process on this node, has ended."""


def head_patience() -> float:
    """Seconds that a lost head of a cluster is waited for, which may be started again."""
    return float(os.environ.get(HEAD_SECONDS, _DEFAULT_SECONDS))


def patient_ray() -> dict[str, str]:
    """The environment of a program that is to notice by itself that the head is lost."""
    return {HEAD_SECONDS: f"{head_patience() + _MARGIN_SECONDS:.0f}"}


@dataclass
class _Place:
    """Where a process of Ray listens, for as long as Ray lasts."""

    what: str
    host: str
    port: int
    patience: float
    """Seconds for which it may be away."""
    answered: float = field(default_factory=time.monotonic)
    """When it last did, in seconds."""

    def is_away(self) -> bool:
        """Whether nobody listens there now; where it may be away for a while, also whether its host is silent."""
        try:
            socket.create_connection((self.host, self.port), timeout=_KNOCK_SECONDS).close()
        except ConnectionRefusedError:
            return True
        except OSError as error:  # not, for instance, that this process has too many files open
            return self.patience > 0 and (isinstance(error, TimeoutError) or error.errno in _UNREACHABLE)
        self.answered = time.monotonic()
        return False

    def is_lost(self) -> bool:
        """Whether it is away, and has been for longer than it may."""
        return self.is_away() and time.monotonic() - self.answered >= self.patience


def _places(patience: float) -> list[_Place]:
    """What can be watched from here; nothing through a Ray Client, whose server is on another machine."""
    if ray.util.client.ray.is_connected():
        return []
    here = ray.get_runtime_context()
    host, _, port = here.gcs_address.rpartition(":")
    mine = [node for node in ray.nodes() if node["NodeID"] == here.get_node_id()]
    raylet = "the raylet, Ray's process on this machine,"
    places = [
        _Place(f"the head of Ray at {here.gcs_address}", host, int(port), patience),
        *(_Place(raylet, node["NodeManagerAddress"], node["NodeManagerPort"], 0.0) for node in mine),
    ]
    return [place for place in places if not place.is_away()]


class _Watch(threading.Thread):
    """Knocks at the head and at this node's raylet until one of them is lost."""

    def __init__(self, patience: float) -> None:
        super().__init__(name="ray watch", daemon=True)
        self._places, self._over, self.lost = _places(patience), threading.Event(), ""

    def run(self) -> None:
        """Look until it is over; end the process where Ray is lost and the program does not leave."""
        while not self.lost and not self._over.wait(_LOOK_SECONDS):
            self.lost = next((place.what for place in self._places if place.is_lost()), "")
        if self.lost and not self._over.wait(_LEAVE_SECONDS):
            say(_told(self.lost))
            os._exit(2)

    def missing(self) -> str:
        """What is away now, or is lost; "" for nothing."""
        return self.lost or next((place.what for place in self._places if place.is_away()), "")

    def end(self) -> None:
        """Look no longer."""
        self._over.set()


@contextmanager
def without_raylets_log(*, known: bool) -> Iterator[None]:
    """Keep Ray from printing, beside our line, twenty lines of its raylet's log when that has ended.

    Args:
        known: whether it is the Ray whose internals are known (`private_ray.is_known`).
    """
    if not known:
        yield
        return
    from ray._private import worker

    show = worker.print_worker_logs

    def shown(data: dict[str, Any], *args: Any, **options: Any) -> None:
        if not any("Raylet is terminated" in line for line in data["lines"]):
            show(data, *args, **options)

    worker.print_worker_logs = shown
    try:
        yield
    finally:
        worker.print_worker_logs = show


_watches: list[_Watch] = []
"""That of the Ray that is in use, if any."""


@contextmanager
def told_if_lost(on_loss: Callable[[], None], patience: float = 0.0) -> Iterator[None]:
    """Raise LostRayError instead of other errors in the block where Ray is lost; end the process where none comes.

    Args:
        on_loss: is called when the block ends with Ray lost, by whatever error.
        patience: seconds for which the head may be away.
    """
    watch = _Watch(patience)
    watch.start()
    _watches.append(watch)
    try:
        yield
    except Exception:
        watch.lost = watch.missing()
        if watch.lost:
            raise LostRayError(_told(watch.lost)) from None
        raise
    finally:
        watch.end()
        _watches.remove(watch)
        if watch.lost:
            on_loss()


def check_ray(signal_received: int) -> None:
    """Raise LostRayError where the Ray in use is lost.

    StoppedAtOnce where a signal has come, which may have ended Ray too, such as that of `timeout` or of systemd.
    """
    for watch in _watches:
        if watch.lost and signal_received:
            raise StoppedAtOnce(signal_received)
        if watch.lost:
            raise LostRayError(_told(watch.lost))


def leave_lost_ray(ending: ExitStack) -> None:
    """End Ray, as `ending` would, but wait for it no longer than LOST_SECONDS."""
    leaving = threading.Thread(target=ending.pop_all().close, name="leaving ray", daemon=True)
    leaving.start()
    leaving.join(LOST_SECONDS)


def _told(what: str) -> str:
    return f"{what} does not answer any more, and what it ran is lost: give the command again; a run then goes on"

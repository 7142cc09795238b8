"""A private Ray on this machine: no other user can reach it, and it ends with the process that started it."""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from raypaml.cli import say
from raypaml.cluster import ray_variables
from raypaml.cluster.end_of_ray import shut_down
from raypaml.cluster.lost_ray import LOST_SECONDS, told_if_lost, without_raylets_log
from raypaml.cluster.short_folder import OF_RAY, short_folder
from raypaml.cluster.signals import ending_on_sigterm, retake_sigterm, sigterm_kept, uninterrupted
from raypaml.cluster.waiting import FirstEvent, NoProcessError

if TYPE_CHECKING:
    from ray._private.node import Node  # of the known Ray alone

KNOWN_RAY = "2.60."
"""Version prefix of the Ray whose internals are used: `cluster_trainer`, `lean_trainer`, `process_group`, `holders`."""
OBJECT_STORE_BYTES = 200 * 2**20
"""Size of a private Ray's object store, through which only progress travels."""
PRIVATE = "RAYPAML_PRIVATE_RAY"
"""Environment variable of a private Ray's processes: the values, in JSON, that its other variables had before."""
QUIET: dict[str, object] = {"logging_level": logging.ERROR, "log_to_driver": False}
_ALONE: dict[str, str | None] = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # its single node is never drained
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",  # as Ray Train gives it to its controller
    # else ray.init waits for the first processes without a limit, in C++ and with Python's lock: nothing can be said
    "RAY_prestart_worker_first_driver": "0",
}
START_SECONDS = 180
"""Longest time of a start. Ray allows 30, within which its Python processes do not start on a busy machine."""
_PATIENT = {
    "RAY_gcs_server_port_wait_time_s": f"{START_SECONDS}",
    "RAY_agent_register_timeout_ms": f"{START_SECONDS * 1000}",
}
_LOOK_SECONDS = 0.2
END_SECONDS = 90.0
"""Longest time that Ray takes to end, or to give up a start."""
_FAILED = re.compile(r"\[[-\d]+ [\d:,.]+ [EFC] \d+ \d+\] ")
"""Beginning of a line in Ray's logs that reports an error."""


@contextmanager
def private_ray(cpus: int) -> Iterator[None]:
    """Start Ray with `cpus` CPUs, in a folder of its own, listening on loopback only, and protected by a token.

    A Ray of an unknown version (`is_known`) starts and listens in its default way, which is said.

    Raises:
        ValueError: Ray does not start; the message says why.
        StoppedAtOnce: on SIGTERM, unless the program handles that signal.
    """
    if not is_known():
        say(
            f"Ray {ray.__version__} listens on its default addresses; {KNOWN_RAY}x would on loopback only, with a token"
        )
    silence = without_raylets_log(known=is_known())
    with short_folder() as folder, ray_variables(**_variables(folder)), token_read_anew(), ending_on_sigterm(), silence:
        # with a temporary folder of its own it never joins a cluster that somebody else has started
        ending = _RayThread(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=str(folder / OF_RAY),
            **QUIET,
        )
        try:
            with sigterm_kept(), _on_loopback(), _without_dashboard() as nodes, _patiently(nodes, ending.over):
                ending.begin(folder / OF_RAY)
            with told_if_lost(lambda: ending.limit(LOST_SECONDS)):
                yield
        except NoProcessError as error:
            raise ValueError(f"{error}{_said_last(folder / OF_RAY)}") from None
        finally:
            with uninterrupted():
                ending.end()


def is_known() -> bool:
    """Whether this is the Ray whose internals are known; of other versions only documented features are used."""
    return str(ray.__version__).startswith(KNOWN_RAY)


class _RayThread(threading.Thread):
    """The thread that starts Ray, and ends it.

    It lives as long as Ray, whose processes Linux kills when the thread that started them ends. Ray is not started on
    the main thread, where a signal would abort its start with a dump of C functions.
    """

    def __init__(self, **options: object) -> None:
        super().__init__(name="private ray", daemon=True)
        self._options = options
        self._up, self.over = threading.Event(), threading.Event()
        self._failure: BaseException | None = None
        self._end_seconds = END_SECONDS

    def run(self) -> None:
        try:
            ray.init(**self._options)
        except BaseException as error:  # any error: another thread waits for this one
            self._failure = error
        self._up.set()
        self.over.wait()
        shut_down(known=is_known())

    def begin(self, folder: Path) -> None:
        """Start Ray in a folder, and wait until it has started; ValueError where it does not.

        NoProcessError where ray.init does not return: it waits without a limit for the first processes.
        """
        self.start()
        first = FirstEvent(say, "Ray", limited=True)
        try:
            while not self._up.wait(_LOOK_SECONDS):
                retake_sigterm()
                first.came(0)
        except NoProcessError:
            self.limit(0.0)  # it would be waited for in vain; its processes end with this one
            raise
        except BaseException:
            say("stopped while Ray was starting")
            raise
        if self._failure:
            reason = (str(self._failure).strip() or repr(self._failure)).splitlines()[0]
            raise ValueError(f"Ray does not start on this machine: {reason}{_said_last(folder)}") from None

    def limit(self, seconds: float) -> None:
        """Wait no longer than this for Ray to end; its processes end with this one."""
        self._end_seconds = seconds

    def end(self) -> None:
        """End Ray, after it has started."""
        self.over.set()
        self.join(self._end_seconds)


@contextmanager
def _without_dashboard() -> Iterator[list[Node]]:
    """Keep Ray from starting the dashboard's server, for whose address it waits, and the log monitor.

    It starts both even with include_dashboard=False and log_to_driver=False: two processes, and a second before the
    first worker. Yields the nodes that are started (ray._private.node.Node), as they come.
    """
    nodes: list[Node] = []
    if not is_known():
        yield nodes
        return
    from ray._private.node import Node

    before = {name: getattr(Node, name) for name in ("start_api_server", "start_log_monitor")}
    for name in before:
        setattr(Node, name, lambda node, **_options: nodes.append(node))
    try:
        yield nodes
    finally:
        for name, method in before.items():
            setattr(Node, name, method)


@contextmanager
def _patiently(nodes: list[Node], over: threading.Event) -> Iterator[None]:
    """Have Ray wait START_SECONDS for its node, as long as the processes of the node live and it is not over."""
    if not is_known():
        yield
        return
    from ray._private import services

    ask, until = services.get_node, time.monotonic() + START_SECONDS

    def wait(*asked: object) -> object:
        while True:
            try:
                return ask(*asked)
            except RuntimeError:
                time.sleep(0.1)
                dead = any(node.dead_processes() for node in nodes)
                if dead or over.is_set() or time.monotonic() > until:
                    raise

    services.get_node = wait
    try:
        yield
    finally:
        services.get_node = ask


def _said_last(folder: Path) -> str:
    """The last error of Ray's processes, in brackets, from their logs, which are removed; "" for none."""
    for name in ("gcs_server", "raylet"):
        for log in folder.glob(f"session_*-*/logs/{name}.*"):
            if lines := [line for line in log.read_text(errors="replace").splitlines() if _FAILED.match(line)]:
                return f" ({log.name}: {lines[-1][:300]})"
    return ""


# --- Access -----------------------------------------------------------------------------------------------------------


def _variables(folder: Path) -> dict[str, str | None]:
    """The environment of its processes: the token that they share, and the interface on which gloo and NCCL listen."""
    if not is_known():  # which reads its authentication mode when it is imported
        return {}
    token = folder / "token"
    with os.fdopen(os.open(token, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    # a user's own RAY_AUTH_TOKEN and ~/.ray/auth_token are for other clusters
    values: dict[str, str | None] = {"RAY_AUTH_TOKEN_PATH": str(token), "RAY_AUTH_TOKEN": None}
    values["RAY_AUTH_MODE"] = os.environ.get("RAY_AUTH_MODE", "token")
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        values[name] = os.environ.get(name, loopback)
    values |= _ALONE | {name: os.environ.get(name, value) for name, value in _PATIENT.items()}
    before = {name: os.environ.get(name) for name in (*values, PRIVATE)} | outside_private()
    return values | {PRIVATE: json.dumps(before)}


def outside_private() -> dict[str, str | None]:
    """The variables inherited from a private Ray, with the values that they had before that started.

    A program that a worker starts inherits them; with them it would use the private Ray's token for other clusters.
    """
    before: dict[str, str | None] = json.loads(os.environ.get(PRIVATE, "{}"))
    return before


@contextmanager
def token_read_anew() -> Iterator[None]:
    """Make Ray read its authentication mode and token again, now and after the block; by itself it reads them once."""
    _read_token()
    try:
        yield
    finally:
        _read_token()


def _read_token() -> None:
    if not is_known():
        return
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Make Ray use 127.0.0.1 as its own address, as on macOS and Windows, so that everything it starts listens there.

    `_node_ip_address="127.0.0.1"` is not enough, because ray.init replaces it by the address of a network card.
    """
    if not is_known():
        yield
        return
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before

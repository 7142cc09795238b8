"""A private Ray on this machine: nobody else reaches it, and it ends with the process that started it."""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from raypaml.cli import say
from raypaml.cluster import ray_variables
from raypaml.cluster.short_folder import OF_RAY, short_folder
from raypaml.cluster.signals import ending_on_sigterm, uninterrupted

KNOWN_RAY = "2.60."
"""How the version of the Ray begins whose insides are used here, in `lean_trainer` and in `loopback`."""
OBJECT_STORE_BYTES = 200 * 2**20
"""Object store of a private cluster: only progress numbers travel through it."""
PRIVATE = "RAYPAML_PRIVATE_RAY"
"""Variable that a private Ray's processes have, and what they start: what the others of its variables were before."""
QUIET: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
_ALONE: dict[str, str | None] = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody drains its one node
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",  # as Ray Train gives it to its controller
}
END_SECONDS = 90.0
"""Ray waits at most so long for its own processes while it starts."""


@contextmanager
def private_ray(cpus: int) -> Iterator[None]:
    """Ray with `cpus` CPUs, in a folder of its own, listening on loopback only, to those who have its token.

    Another Ray than the known one (`is_known`) starts and listens as it does by itself, which is said.

    Raises:
        ValueError: it does not start; the message says why.
        StoppedAtOnce: on SIGTERM, where nobody else takes that signal.
    """
    if not is_known():
        say(f"Ray {ray.__version__} listens where it does by itself; {KNOWN_RAY}x would on loopback only, with a token")
    with short_folder() as folder, ray_variables(**_variables(folder)), token_read_anew(), ending_on_sigterm():
        # With a temporary folder of its own it never joins a stranger's cluster.
        ending = _RayThread(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=str(folder / OF_RAY),
            **QUIET,
        )
        try:
            with _on_loopback(), _without_dashboard():
                ending.begin(folder / OF_RAY)
            yield
        finally:
            with uninterrupted():
                ending.end()


def is_known() -> bool:
    """Whether this is the Ray whose insides are used; with any other, only what it documents is."""
    return str(ray.__version__).startswith(KNOWN_RAY)


class _RayThread(threading.Thread):
    """Starts Ray and ends it.

    It lives as long as Ray does, for on Linux Ray's processes are killed when the thread that started them ends. Ray is
    not started on the main thread, whose signals it would take: they broke off its start with a stack of C functions.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(name="private ray", daemon=True)
        self._options = options
        self._up, self._over = threading.Event(), threading.Event()
        self._failure: BaseException | None = None

    def run(self) -> None:
        try:
            ray.init(**self._options)
        except BaseException as error:  # whatever it is, somebody waits for this thread
            self._failure = error
        self._up.set()
        self._over.wait()
        ray.shutdown()

    def begin(self, folder: Path) -> None:
        """Start Ray in the folder; returns when it has started. ValueError where it does not."""
        self.start()
        try:
            self._up.wait()
        except BaseException:
            say("stopped while Ray was starting")
            raise
        if self._failure:
            raise ValueError(f"Ray does not start on this machine: {_why(self._failure, folder)}") from None

    def end(self) -> None:
        """End Ray, once it has started."""
        self._over.set()
        self.join(END_SECONDS)


@contextmanager
def _without_dashboard() -> Iterator[None]:
    """Have Ray start neither the dashboard's server, for whose address it waits, nor what copies logs to drivers.

    It starts both, whatever `include_dashboard` and `log_to_driver` say: two processes, and a second before the first
    worker.
    """
    if not is_known():
        yield
        return
    from ray._private.node import Node

    before = {name: getattr(Node, name) for name in ("start_api_server", "start_log_monitor")}
    for name in before:
        setattr(Node, name, lambda _node, **_options: None)
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(Node, name, method)


def _why(error: BaseException, folder: Path) -> str:
    """What Ray says in its first line, and what its processes said last, which is in files that are removed."""
    reason = (str(error).strip() or repr(error)).splitlines()[0]
    for name in ("gcs_server.err", "raylet.err", "gcs_server.out", "raylet.out"):
        for log in folder.glob(f"session_*-*/logs/{name}"):
            if lines := log.read_text(errors="replace").strip().splitlines():
                return f"{reason} ({name}: {lines[-1][:300]})"
    return reason


# --- Who may reach it -------------------------------------------------------------------------------------------------


def _variables(folder: Path) -> dict[str, str | None]:
    """Its environment: the token that all its processes share, the interface on which gloo and NCCL listen."""
    if not is_known():  # it has read its mode when it was imported
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
    values |= _ALONE
    before = {name: os.environ.get(name) for name in (*values, PRIVATE)} | outside_private()
    return values | {PRIVATE: json.dumps(before)}


def outside_private() -> dict[str, str | None]:
    """The variables that this process inherited from a private Ray, as they were before that started.

    A program that a worker starts has them; with them it would join a cluster with the token of the private Ray.
    """
    before: dict[str, str | None] = json.loads(os.environ.get(PRIVATE, "{}"))
    return before


@contextmanager
def token_read_anew() -> Iterator[None]:
    """Ray keeps the mode and the token that it first read: have it read them again, now and afterwards."""
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
    """Have Ray take 127.0.0.1 for its own address, as it does on macOS and Windows: then all it starts listens there.

    `_node_ip_address="127.0.0.1"` is not enough, because ray.init replaces that by the address of a network card.
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

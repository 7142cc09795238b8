"""A process group on one machine that no other machine can reach, because torch's key-value store listens on loopback.

gloo and NCCL listen on a given network interface, but the store of torch.distributed (TCPStore) listens on all of them,
without authentication. Here the first worker opens the store's socket on loopback, and all workers join as clients.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from ray.train._internal.base_worker_group import BaseWorkerGroup
from ray.train._internal.utils import get_address_and_port
from ray.train.torch.config import TorchConfig, _TorchBackend
from torch.distributed import TCPStore  # type: ignore[attr-defined]

HERE = "127.0.0.1"
_served: list[TCPStore] = []
"""The stores that this process serves until it ends."""


class LoopbackConfig(TorchConfig):  # type: ignore[misc]
    """Ray Train's TorchConfig for workers whose nodes all have a loopback address."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """The class that sets up the process group."""
        return _LoopbackBackend


class _LoopbackBackend(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: BaseWorkerGroup, backend_config: TorchConfig) -> None:
        worker_group.execute(_join_as_clients)
        super().on_start(_ServingGroup(worker_group), backend_config)


class _ServingGroup:
    """A worker group whose first worker, when asked for a free address for the store, opens the store there."""

    def __init__(self, group: BaseWorkerGroup) -> None:
        self._group = group

    def __getattr__(self, name: str) -> object:
        return getattr(self._group, name)

    def __len__(self) -> int:
        return len(self._group)

    def execute_single(self, rank: int, function: Callable[..., object], *args: object, **kwargs: object) -> object:
        serving = _serve if function is get_address_and_port else function
        return self._group.execute_single(rank, serving, *args, **kwargs)


def _serve() -> tuple[str, int]:
    listening = socket.create_server((HERE, 0), backlog=1024)
    port = listening.getsockname()[1]
    # from here on the socket belongs to the store
    _served.append(TCPStore(HERE, port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach()))
    return HERE, port


def _join_as_clients() -> None:
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # read by torch/distributed/rendezvous.py

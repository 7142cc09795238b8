"""A process group whose key-value store listens on its node's address alone: on loopback, where Ray is there alone.

gloo and NCCL listen on a given network interface, but the store of torch.distributed (TCPStore) listens on all of them,
without authentication, on a port that Ray Train finds free and lets go again, so that another run may take it first.
Here the first worker opens the store's socket itself, on any free port, and all workers join as clients.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable

import ray
from ray.train._internal.base_worker_group import BaseWorkerGroup
from ray.train._internal.utils import get_address_and_port
from ray.train.torch.config import TorchConfig, _TorchBackend
from torch.distributed import TCPStore  # type: ignore[attr-defined]

_served: list[TCPStore] = []
"""The stores that this process serves until it ends."""


class NodeAddressConfig(TorchConfig):  # type: ignore[misc]
    """Ray Train's TorchConfig with a store that listens on the address that Ray knows the first worker's node by."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """The class that sets up the process group."""
        return _NodeAddressBackend


class _NodeAddressBackend(_TorchBackend):  # type: ignore[misc]
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
    here = str(ray.util.get_node_ip_address())
    listening = _listen(here)
    port = listening.getsockname()[1]
    # from here on the socket belongs to the store
    _served.append(TCPStore(here, port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach()))
    return here, port


def _listen(address: str) -> socket.socket:
    """A socket that listens on a free port of an address; on all addresses where the machine itself has not that one.

    So it is where addresses are translated on the way, as in some containers.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, 0), family=family, backlog=1024)
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
        return socket.create_server(("", 0), family=family, backlog=1024)


def _join_as_clients() -> None:
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # read by torch/distributed/rendezvous.py

"""A process group of one machine that nobody outside it reaches: torch's key-value store listens on loopback too.

gloo and NCCL listen on the interface that they are told; the store of torch.distributed (TCPStore) listens on all of
them, and asks nobody who he is. So the first worker opens its socket, on loopback, and all join as clients.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

from ray.train._internal.utils import get_address_and_port
from ray.train.torch.config import TorchConfig, _TorchBackend
from torch.distributed import TCPStore  # type: ignore[attr-defined]

HERE = "127.0.0.1"
_served: list[TCPStore] = []
"""The stores of this process, which serves them as long as it lives."""


class LoopbackConfig(TorchConfig):  # type: ignore[misc]
    """Ray Train's TorchConfig, for workers whose nodes all have an address of loopback."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """What makes the process group."""
        return _LoopbackBackend


class _LoopbackBackend(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(_join_as_clients)
        super().on_start(_Serving(worker_group), backend_config)


class _Serving:
    """A worker group whose first worker, asked for a free address for the store, serves one already."""

    def __init__(self, group: Any) -> None:
        self._group = group

    def __getattr__(self, name: str) -> Any:
        return getattr(self._group, name)

    def __len__(self) -> int:
        return len(self._group)

    def execute_single(self, rank: int, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        serving = _serve if function is get_address_and_port else function
        return self._group.execute_single(rank, serving, *args, **kwargs)


def _serve() -> tuple[str, int]:
    listening = socket.create_server((HERE, 0), backlog=1024)
    port = listening.getsockname()[1]
    # the socket is the store's from here on
    _served.append(TCPStore(HERE, port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach()))
    return HERE, port


def _join_as_clients() -> None:
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # read by torch/distributed/rendezvous.py

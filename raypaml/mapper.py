"""Types of what maps calls over processes, so that code that does not know Ray can be handed a mapper by `cluster`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeVar

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Processes:
    """The processes that share the work of a command; the fields are its flags."""

    workers: int = 1
    """Number of processes; 1 for this process alone, without Ray."""
    address: str = ""
    """Address of a Ray cluster to join; "" starts a private Ray."""
    device: str = "auto"
    """Where the model computes: auto (a GPU if there is one), cpu or cuda."""


class Mapper(Protocol):
    """Calls a function, which must be importable by name, with each of some tuples of arguments."""

    def __call__(self, function: Callable[..., _Result], calls: Iterable[tuple[object, ...]], /) -> Iterator[_Result]:
        """The results as they arrive, in any order."""


OpenMapper = Callable[[int, str], AbstractContextManager[Mapper]]
"""(workers, address of a Ray cluster or "") -> a mapper for use in a block, such as `cluster.tasks.mapper`."""


def in_this_process(function: Callable[..., _Result], calls: Iterable[tuple[object, ...]]) -> Iterator[_Result]:
    """The mapper without other processes: it makes one call after the other, in order."""
    return (function(*call) for call in calls)

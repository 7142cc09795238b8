"""The type of a function that maps calls over processes, which `cluster` passes to code that does not know Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

_Result = TypeVar("_Result")


class Mapper(Protocol):
    """Calls a function, which must be importable by name, with each of some tuples of arguments."""

    def __call__(self, function: Callable[..., _Result], calls: Iterable[tuple[object, ...]], /) -> Iterator[_Result]:
        """The results as they arrive, in any order."""


OpenMapper = Callable[[int, str], AbstractContextManager[Mapper]]
"""(workers, address of a Ray cluster or "") -> a mapper for use in a block, such as `cluster.tasks.mapper`."""


def in_this_process(function: Callable[..., _Result], calls: Iterable[tuple[object, ...]]) -> Iterator[_Result]:
    """The mapper without other processes: it makes one call after the other, in order."""
    return (function(*call) for call in calls)

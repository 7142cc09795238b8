"""Calls mapped over processes, whoever provides them: what rooms that do not know Ray are handed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

Mapper = Callable[[Callable[..., Any], Iterable[tuple[Any, ...]]], Iterator[Any]]
"""(function, tuples of arguments) -> results as they come, in any order. The function is importable by name."""

OpenMapper = Callable[[int, str], AbstractContextManager[Mapper]]
"""(workers, address of a Ray cluster or "") -> a mapper for the length of a block, as `cluster.tasks.mapper`."""


def in_this_process(function: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
    """The mapper of one process: call after call, in order."""
    return (function(*call) for call in calls)

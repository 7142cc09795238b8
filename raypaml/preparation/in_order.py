"""Maps a function over items by threads, a bounded number ahead, with the results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_AHEAD = 8
"""Items per thread that may be done before their turn, while an earlier one takes long."""


def in_order(
    function: Callable[[_Item], _Result], items: Iterable[_Item], threads: int, ahead: int = _AHEAD
) -> Iterator[_Result]:
    """Maps a function over items by threads, at most `ahead` items per thread ahead, and yields the results in order.

    The items are drawn by the calling thread.
    """
    pending: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                if len(pending) >= ahead * threads:
                    yield pending.popleft().result()
                pending.append(pool.submit(function, item))
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

"""Mapping a function over many calls, in this process or in Ray tasks, with the same results."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain, islice
from typing import Any

from raypaml.bounds import check_bounds
from raypaml.cli import say
from raypaml.counting import number_of
from raypaml.errors import told_refusal
from raypaml.extensions import modules_named, with_imports
from raypaml.mapper import Mapper, Processes, in_this_process

MOST_WORKERS = 10_000
"""The most processes that share the work of a command."""


@contextmanager
def mapper(workers: int, address: str = "") -> Iterator[Mapper]:
    """A way to call functions on `workers` processes, of the cluster at `address` or of this machine.

    One worker without an address is this process, without Ray. A private Ray takes longer to start than a small data
    set takes, so a single call is made in this process, too; Ray starts when several calls are to be mapped.

    Raises:
        ValueError: no workers, more than the cluster has CPUs, or no cluster answers at the address.
    """
    _check_workers(workers)
    with ExitStack() as opened:
        if address or os.environ.get("RAY_ADDRESS"):
            yield opened.enter_context(device_mapper(Processes(workers, address, "cpu")))[0]
            return
        started = list[Mapper]()

        def run(function: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
            left = iter(calls)
            first = list(islice(left, 2))
            if len(first) < 2:
                return in_this_process(function, first)
            if not started:
                started.append(opened.enter_context(device_mapper(Processes(workers, address, "cpu")))[0])
            return started[0](function, chain(first, left))

        yield run


@contextmanager
def device_mapper(processes: Processes) -> Iterator[tuple[Mapper, str]]:
    """As `mapper`, and the device that each call is to use: "cuda" or "cpu".

    The device auto means GPUs where the cluster has one for each worker; cuda is refused where it has fewer.
    """
    workers, address, device = processes.workers, processes.address, processes.device
    _check_workers(workers)
    _check_device(device)
    if workers == 1 and not address:
        yield in_this_process, own_device(device)
        return
    from raypaml.cluster import session, waiting  # ray takes seconds to import, and one process needs none

    with session.join(address, workers) as private:
        if session.cpus() < workers:
            raise ValueError(
                f"workers={workers}: the cluster has {number_of(session.cpus(), 'CPU')}; use fewer or add nodes"
            )
        gpu = device != "cpu" and session.gpus() >= workers
        if device == "cuda" and not gpu:
            raise ValueError(f"device=cuda: {workers} workers need a GPU each, the cluster has {session.gpus()}")
        if private:
            waiting.first_process()
        else:
            _first_task(gpu)
        yield partial(map_tasks, at_once=workers, gpu=gpu), "cuda" if gpu else "cpu"


def _first_task(gpu: bool) -> None:
    """Wait until a cluster, which others use too, has room for one task, and say who holds what it waits for."""
    import ray

    from raypaml.cluster import holders, waiting

    lack = partial(holders.lack, "GPU" if gpu else "CPU", 1)
    first = waiting.FirstEvent(say, "the first task", limited=False, lack=lack)
    task = ray.remote(lambda: None).options(num_cpus=1, num_gpus=int(gpu)).remote()
    while not ray.wait([task], timeout=1.0)[0]:
        first.came(0)


def own_device(device: str) -> str:
    """The device of this process, "cuda" or "cpu"; ValueError where a GPU is asked for and none is there."""
    _check_device(device)
    if device == "cpu":
        return device
    from raypaml.runs.ranks import own_gpu  # with torch, which sharding does without

    return "cuda" if own_gpu(device) else "cpu"


def _check_workers(workers: int) -> None:
    check_bounds("workers", workers, 1, MOST_WORKERS)


def _check_device(device: str) -> None:
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device={device!r}: must be auto, cpu or cuda")


def map_tasks(
    function: Callable[..., Any], calls: Iterable[tuple[Any, ...]], *, at_once: int, gpu: bool
) -> Iterator[Any]:
    """Call a function in the cluster, once per tuple of arguments; yields the results as they come, in any order.

    Args:
        function: a function that workers can import; a call whose process dies is made again.
        calls: the arguments, taken one after another as tasks end.
        at_once: the number of tasks at the same time, with one CPU each.
        gpu: whether each task gets a GPU, too.

    Raises:
        ValueError: what a call raised, if it was that or an OSError; a process of Ray failed, and trying again did too.
        RuntimeError: a call raised something else.
    """
    import ray

    from raypaml.cluster.worker_errors import brief_cause

    task = ray.remote(with_imports).options(num_cpus=1, num_gpus=int(gpu))
    left = iter(calls)
    running = [task.remote(modules_named(), function, call) for call in islice(left, at_once)]
    while running:
        done, running = ray.wait(running)
        running += [task.remote(modules_named(), function, call) for call in islice(left, 1)]
        try:
            yield ray.get(done[0])
        except ray.exceptions.RayTaskError as error:
            kind = ValueError if isinstance(error.cause, ValueError | OSError) else RuntimeError
            refused = isinstance(error.cause, OSError)
            raise kind(told_refusal(error.cause) if refused else str(error.cause)) from None
        except ray.exceptions.RayError as error:
            said = f"a process of Ray failed: {brief_cause(error)}"
            raise ValueError(f"{said}; give the command again, with fewer --workers where memory is short") from None

"""The watchdog: a thread of each worker sends heartbeats that say where it is, even while it is stuck.

`training.watch` receives them and says who hangs. Ray itself ends a worker that does not answer only after minutes, and
does not say where it was.
"""

from __future__ import annotations

import datetime
import faulthandler
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from raypaml.training.watch import Beat, Beats, process_name
from raypaml.training.worker import COMPILING, Worker

BEAT_SECONDS = 5.0
"""Time between two heartbeats, at most."""
TRACE_SECONDS = 20.0
"""Time that a hanging worker has to write its stacks before it ends."""
HUNG = 70
"""Exit code of a worker that ended because it hung."""


@contextmanager
def beating(current: Callable[[], Worker], hear: Beats | None) -> Iterator[None]:
    """During the block send heartbeats of the current worker from a thread; end the process if the answer says so."""
    over = threading.Event()
    if hear is None:
        yield
        return
    thread = threading.Thread(target=_beat, args=(current, hear, over), name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(BEAT_SECONDS)  # what frees tensors while Python ends makes torch abort the process (SIGABRT)


def _beat(current: Callable[[], Worker], hear: Beats, over: threading.Event) -> None:
    process, before = process_name(), -1
    while True:
        worker = current()
        place = worker.whereabouts(stuck=worker.moves == before)
        before, ranks = worker.moves, worker.ranks
        beat = Beat(
            rank=ranks.rank,
            world_size=ranks.world_size,
            process=process,
            moves=before,
            place=place,
            compiling=worker.doing == COMPILING,
        )
        if hear(beat):
            faulthandler.dump_traceback(file=2, all_threads=True)  # to standard error, which is a Ray worker's log
            traces = threading.Thread(target=leave_traces, args=(worker, beat), daemon=True)
            traces.start()
            traces.join(TRACE_SECONDS)  # not for ever: it may be the folder's disk that hangs
            os._exit(HUNG)
        if over.wait(min(BEAT_SECONDS, worker.config.run.hang_seconds / 10)):
            return


def leave_traces(worker: Worker, beat: Beat) -> None:
    """Write into the run's logs where this process is stuck, before it is ended.

    `worker-RANK-stacks.txt` gets the Python stacks of all threads. `worker-RANK-collectives.json` gets the newest
    collectives of NCCL or gloo, finished or not, from torch's flight recorder, if that is on (TORCH_FR_BUFFER_SIZE, or
    with NCCL TORCH_NCCL_TRACE_BUFFER_SIZE, above 0).
    """
    logs, rank = worker.run_folder / "logs", beat.rank
    logs.mkdir(parents=True, exist_ok=True)
    with (logs / f"worker-{rank}-stacks.txt").open("a") as file:
        file.write(f"{datetime.datetime.now().astimezone()}: {beat.process} hangs: {beat.place}\n")
        file.flush()
        faulthandler.dump_traceback(file=file, all_threads=True)
        file.write("\n")
    if recorded := _flight_record():
        (logs / f"worker-{rank}-collectives.json").write_bytes(recorded)
    if worker.store:
        worker.store.push(*(f"logs/{path.name}" for path in logs.glob(f"worker-{rank}-*")))


def _flight_record() -> bytes | None:
    """The content of torch's flight recorder, as JSON; None where it is off, empty, or torch has none."""
    if not dist.is_initialized():
        return None
    name = "_dump_nccl_trace_json" if dist.get_backend() == "nccl" else "_dump_fr_trace_json"
    dump: Callable[[], bytes] | None = getattr(torch._C._distributed_c10d, name, None)
    recorded = dump() if dump else b"{}"
    return recorded if json.loads(recorded).get("entries") else None

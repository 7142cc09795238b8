"""A run on gloo processes that meet faults: started again after each, on any number of workers, as Ray Train would.

What a fault is, what a worker does that meets one, and damage to a checkpoint are used by `tests.ray_chaos` too.
"""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from raypaml.config import TrainConfig
from raypaml.runs import checkpoint_writer
from raypaml.runs.checkpoint import valid_checkpoints
from raypaml.runs.events import Event, LoopSignal, StepReport
from raypaml.training import loop, step
from raypaml.training.step import train_step

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.chaos"])

SAVING = ("killed saving", "disk full")
ENDING = ("killed", "stopped", "connection", *SAVING)
"""These end a group by themselves; after the others it is asked to stop, so that the next one has something to do."""
DAMAGE = ("checkpoint cut", "checkpoint empty", "checkpoint altered", "orphan")
KINDS = (*ENDING, "not finite", "asked to stop", *DAMAGE)
PATIENCE = 20.0
"""Seconds without an end that make a group of ranks hung, to be killed."""


@dataclass(frozen=True)
class Fault:
    """What happens to whom, when."""

    kind: str
    victim: int
    """Rank, modulo the number of workers; while saving always rank 0."""
    moment: int
    """Step of the whole run before which it happens, or after which the next save is met."""
    workers: int
    """Of the ranks that meets it."""


def draw(seed: int, count: int, steps: int, kinds: Sequence[str] = KINDS) -> list[Fault]:
    """Faults of a run, decided by the seed; one after the other and all before the last step, so that each is met."""
    dice = random.Random(seed)
    return [
        Fault(dice.choice(kinds), dice.randrange(4), moment, dice.choice((1, 2, 2, 3)))
        for moment in sorted(dice.sample(range(steps - 1), count))
    ]


def survive(settings: TrainConfig, data: Path, run: Path, faults: list[Fault]) -> list[tuple[Fault, float]]:
    """Start a group of ranks for every fault, one for the rest; each with the seconds to any group's next step."""
    recovered: list[tuple[Fault, float]] = []
    waiting: list[tuple[Fault, float]] = []
    for life, fault in enumerate([*faults, None]):
        codes, first_step = live(settings, data, run, life, fault or Fault("none", 0, 0, 2))
        assert any(codes) == bool(fault and fault.kind in ENDING), (fault, codes)
        if first_step:
            recovered += [(met, first_step - ended) for met, ended in waiting]
            waiting = []
        if fault:
            waiting.append((fault, time.monotonic()))
        if fault and fault.kind in DAMAGE:
            damage(run, fault)
    assert not waiting, "the last ranks had nothing left to do"
    return recovered


def damage(run: Path, fault: Fault) -> None:
    """Damage the newest checkpoint, or leave half of one behind."""
    folder = run / "checkpoints"
    valid, _ = valid_checkpoints(folder)
    if fault.kind == "orphan":
        (folder / ".unfinished-0009-000000").mkdir(parents=True, exist_ok=True)
        return
    if not valid:
        return
    path = sorted(path for path in valid[-1].iterdir())[fault.moment % 4]
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    path.write_bytes({"cut": content[:middle], "empty": b"", "altered": flipped}[fault.kind.split()[1]])


def live(settings: TrainConfig, data: Path, run: Path, life: int, fault: Fault) -> tuple[list[int], float]:
    """One group of ranks until its end; its exit codes, and when its first step was done (0: never).

    Once one is lost, or nothing ends for long, the others are killed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [
        CONTEXT.Process(target=_worker, args=(rank, port, settings, data, run, life, fault), daemon=True)
        for rank in range(fault.workers)
    ]
    for process in ranks:
        process.start()
    deadline, first_step = time.monotonic() + PATIENCE * 6, 0.0
    while any(process.exitcode is None for process in ranks):
        time.sleep(0.02)
        if not first_step and any(run.glob(f"ledger-{life}-*")):
            first_step = time.monotonic()
        lost = any(process.exitcode for process in ranks)
        if lost or time.monotonic() > deadline or _is_stopped(ranks):
            _kill(ranks)
    return [process.exitcode or 0 for process in ranks], first_step


def _is_stopped(ranks: list[ForkServerProcess]) -> bool:
    """Whether a process was stopped by a signal: the watchdog's work, see tests of it."""
    for process in ranks:
        try:
            if ") T " in Path(f"/proc/{process.pid}/stat").read_text():
                return True
        except OSError:
            continue
    return False


def _kill(ranks: list[ForkServerProcess]) -> None:
    for process in ranks:
        process.kill()
        process.join()


# --- In the worker ----------------------------------------------------------------------------------------------------


def _worker(rank: int, port: int, settings: TrainConfig, data: Path, run: Path, life: int, fault: Fault) -> None:
    torch.set_num_threads(1)
    run.mkdir(exist_ok=True)
    said = os.open(run / f"said-{life}-{rank}", os.O_WRONLY | os.O_CREAT)
    os.dup2(said, 2)
    workers = fault.workers
    if workers > 1:
        dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=workers)
    at = {"step": act_of(fault)} if rank == victim_of(fault, workers) else {}
    ledger = run / f"ledger-{life}-{rank}-of-{workers}.jsonl"

    def noting(worker: Any, batch: Any) -> None:
        number = worker.state.epoch * worker.plan.steps + worker.state.step
        if number >= fault.moment and at:
            at.pop("step", lambda: None)()
        train_step(worker, batch)
        with ledger.open("a") as file:
            file.write(json.dumps([number, batch.keys]) + "\n")

    done = [0]

    def report(event: Event) -> LoopSignal:
        if isinstance(event, StepReport):
            done[0] = event.steps_done
        goes_on = fault.kind in (*ENDING, "none") or done[0] <= fault.moment
        return LoopSignal.NOTHING if goes_on else LoopSignal.STOP

    loop.train_step = noting
    loop.train(settings, data, run, torch.device("cpu"), report)
    os._exit(0)


def victim_of(fault: Fault, workers: int) -> int:
    """The rank that meets a fault; while saving it is rank 0, which saves."""
    return 0 if fault.kind in SAVING else fault.victim % workers


def act_of(fault: Fault) -> Callable[[], None]:
    """What the victim does before its step; nothing where the fault comes from outside."""
    kill = lambda: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
    full = _raise(OSError(errno.ENOSPC, "No space left on device"))
    calls = {
        "killed": kill,
        "stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
        "connection": _raise(ConnectionResetError("the store closed the connection")),
        "not finite": _not_finite_once,
        "killed saving": lambda: _before_write("sync", fault.victim, kill),
        "disk full": lambda: _before_write("write_tensors", fault.victim % 2, full),
    }
    return calls.get(fault.kind, lambda: None)


def _raise(error: Exception) -> Callable[[], None]:
    def call() -> None:
        raise error

    return call


def _not_finite_once() -> None:
    before = step._forward

    def poisoned(worker: Any, images: Any) -> Any:
        step._forward = before
        return before(worker, images) * torch.nan

    step._forward = poisoned


def _before_write(name: str, number: int, call: Callable[[], None]) -> None:
    before, left = getattr(checkpoint_writer, name), [number]

    def write(*args: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            call()
        return before(*args)

    setattr(checkpoint_writer, name, write)

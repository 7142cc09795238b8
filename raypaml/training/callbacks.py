"""Callbacks of the program that starts a run: called on rank 0 between steps, they cannot change what is trained.

They get copies, and torch's random state is restored after each call. Neither early stopping (`early_stopping`, a pure
function of the epoch records) nor trackers (which belong to the driver) are callbacks: they need no call on a worker.
"""

from __future__ import annotations

import copy
import json
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from raypaml.counting import epoch_number, place_text
from raypaml.errors import CallbackError
from raypaml.runs.checkpoint import CallbackState
from raypaml.runs.history import EpochRecord
from raypaml.runs.transfer import HostCopy

Ending = Literal["finished", "stopped", "failed"]
"""How training ends: finished, the best checkpoint tested; stopped by a signal, to be continued; or failed."""


@dataclass(frozen=True)
class Stop:
    """Answer to an epoch: end training here, test the best checkpoint, and finish the run."""

    why: str = ""
    """The reason, which `result.json` has under `stopped_early`."""


@dataclass(frozen=True)
class Save:
    """Answer to an epoch: keep its checkpoint for good, and not only while it is the best or the newest."""


@dataclass(frozen=True, kw_only=True)
class StepValues:
    """The figures of a step on rank 0's part of the global batch."""

    epoch: int
    """From 0."""
    step: int
    """From 0 in every epoch."""
    loss: float
    """Mean over the images of the part."""
    samples: int
    """Number of images in the part."""
    rejected: int
    """Number of entries rejected in the part."""


class Callback:
    """Base class of callbacks: override the methods for what you want to be told of.

    Methods are called on rank 0. With one worker that is the process that calls `Run.train`; otherwise it is a worker's
    process, to which the callbacks are sent, pickled, when training starts. An error in a method ends the run with a
    CallbackError.
    """

    def on_epoch(self, record: EpochRecord) -> Stop | Save | None:
        """Called when an epoch is trained and validated, before its checkpoint is saved.

        Args:
            record: a copy of the epoch's line in metrics.jsonl.
        """

    def on_step(self, values: StepValues) -> None:
        """Called for every step, at least one step later, so that nothing waits for the device."""

    def on_checkpoint(self, folder: Path) -> None:
        """Called between steps when a checkpoint is complete and on the disk."""

    def on_end(self, ending: Ending) -> None:
        """Called when training ends; close here what the callback has opened in this process.

        After "failed" another try from the last checkpoint may follow, with one worker in the same process.
        """

    def state_dict(self) -> CallbackState:
        """The state that checkpoints keep of the callback, as JSON; none by default."""
        return {}

    def load_state_dict(self, state: CallbackState) -> None:
        """Restore the state that `state_dict` returned for the checkpoint that training continues from, if any."""


def as_callbacks(given: object) -> tuple[Callback, ...]:
    """One callback, or several, as a tuple; ValueError where something else is given."""
    several = tuple(given) if isinstance(given, Iterable) and not isinstance(given, Callback) else (given,)
    for one in several:
        if not isinstance(one, Callback):
            raise ValueError(f"callbacks: {one!r} is none; derive it from raypaml.Callback, and give an object")
    return several


class CallbackHandler:
    """Calls the callbacks of a run on rank 0; on other ranks it has none to call."""

    def __init__(self, callbacks: Sequence[Callback] = (), device: torch.device | None = None, *, rank: int = 0):
        self.given = bool(callbacks)
        """Whether the run has callbacks; the same on all ranks."""
        self.committed: list[Path] = []
        """Checkpoints that callbacks have not been told of yet; another thread adds them."""
        self.finished = False
        self._all = tuple(callbacks) if rank == 0 else ()
        self._devices = [device.index or 0] if device is not None and device.type == "cuda" else []
        self._of_steps = [one for one in self._all if getattr(one.on_step, "__func__", None) is not Callback.on_step]
        self._coming: list[tuple[int, int, int, HostCopy]] = []
        self._place = "the start"

    def note_step(self, epoch: int, step: int, loss: Tensor, global_rows: int, rejected: Tensor) -> None:
        """Begin to copy the figures of a step to the host, where a callback asks for them.

        Args:
            epoch, step: the place of the step, from 0.
            loss: this rank's share of the mean loss over the global batch.
            global_rows: the number of images in the global batch.
            rejected: bool [B, K].
        """
        if self._of_steps:
            values = HostCopy.of(torch.stack([(loss * global_rows).double(), rejected.sum().double()]))
            self._coming.append((epoch, step, len(rejected), values))

    def tell_steps(self, *, but: int = 0) -> None:
        """Call `on_step` for the steps noted, except the last `but` of them, which the device may still compute."""
        while len(self._coming) > but:
            epoch, step, samples, coming = self._coming.pop(0)
            loss, rejected = coming.wait().tolist()
            self._place = place_text(epoch, step)
            mean = loss / max(samples, 1)
            values = StepValues(epoch=epoch, step=step, loss=mean, samples=samples, rejected=int(rejected))
            for one in self._of_steps:
                self._call(one, "on_step", values)

    def on_epoch(self, record: EpochRecord) -> tuple[str | None, bool]:
        """Call `on_epoch`.

        Returns:
            Why training is to stop, or None; and whether the epoch's checkpoint is to be kept.
        """
        self.tell_steps()
        self._place = f"epoch {epoch_number(record['epoch'])}"
        stops, keeps = [], False
        for one in self._all:
            answer = self._call(one, "on_epoch", copy.deepcopy(record), check=_check_answer)
            keeps |= isinstance(answer, Save)
            if isinstance(answer, Stop):
                why = f": {answer.why}" if answer.why else ""
                stops.append(f"callback {type(one).__qualname__}{why}")
        return (", ".join(stops) if stops else None), keeps

    def tell_checkpoints(self) -> None:
        """Call `on_checkpoint` for the checkpoints committed since the last call."""
        while self.committed:
            folder = self.committed.pop(0)
            for one in self._all:
                self._call(one, "on_checkpoint", folder)

    def states(self) -> dict[str, CallbackState]:
        """The states that a checkpoint keeps, by callback, after all steps so far have been told."""
        self.tell_steps()
        states = ((name, self._call(one, "state_dict", check=json.dumps)) for name, one in self._named())
        return {name: json.loads(json.dumps(state)) for name, state in states if state}

    def load(self, states: dict[str, CallbackState]) -> None:
        """Give each callback its state in a checkpoint; steps noted since that checkpoint are forgotten."""
        self._coming = []
        for name, one in self._named():
            if name in states:
                self._call(one, "load_state_dict", states[name])

    def _named(self) -> Iterator[tuple[str, Callback]]:
        """Each callback by the name of its class, the second of a class with #2, and so on."""
        count: dict[str, int] = {}
        for one in self._all:
            name = type(one).__qualname__
            count[name] = count.get(name, 0) + 1
            yield name if count[name] == 1 else f"{name}#{count[name]}", one

    def end(self, ending: Ending) -> None:
        """Call `on_end` of all callbacks in order, even where one of them fails."""
        with ExitStack() as calls:
            for one in reversed(self._all):
                calls.callback(self._call, one, "on_end", ending)

    def _call(self, one: Callback, method: str, *args: Any, check: Callable[[Any], object] | None = None) -> Any:
        """Call a method with a random state and a gradient mode of its own, and `check` its answer.

        An error of either is a CallbackError that names the callback.
        """
        try:
            with torch.random.fork_rng(self._devices), torch.enable_grad():
                answer = getattr(one, method)(*args)
            if check is not None:
                check(answer)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            named = CallbackError(
                f"callback {type(one).__qualname__}.{method} failed at {self._place}: "
                f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"
            )
            named.add_note(traceback.format_exc())  # a note is pickled with the error, its traceback is not
            raise named from error
        return answer


def _check_answer(answer: object) -> None:
    if not (answer is None or isinstance(answer, Stop | Save)):
        raise TypeError(f"it answered {answer!r}; an epoch is answered by None, raypaml.Stop(why) or raypaml.Save()")


@contextmanager
def told_of_the_end(current: Callable[[], CallbackHandler]) -> Iterator[None]:
    """Call `on_end` of the callbacks when the block ends, whether normally or by an error."""
    try:
        yield
    except BaseException:
        try:
            current().end("failed")
        except CallbackError as error:  # the first error is the one to raise
            traceback.print_exception(error)
        raise
    calls = current()
    calls.end("finished" if calls.finished else "stopped")

"""What a program hears of its run: callbacks, called on rank 0 between steps, that change nothing of what is trained.

They get copies, and what they draw from torch's random numbers is put back. Early stopping by records stays a pure
function of them (`early_stopping`), and trackers stay with the driver: neither needs a call on a worker.
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
from raypaml.runs.history import EpochRecord
from raypaml.runs.transfer import HostCopy

Ending = Literal["finished", "stopped", "failed"]
"""How training ends: tested; by a signal, so that it goes on when asked again; by an error."""


@dataclass(frozen=True)
class Stop:
    """An answer to an epoch: training ends here, the best checkpoint is tested, and the run is finished."""

    why: str = ""
    """Stands in the result, under `stopped_early`."""


@dataclass(frozen=True)
class Save:
    """An answer to an epoch: its checkpoint is kept to the end of the run, and not only if it is the best or last."""


@dataclass(frozen=True, kw_only=True)
class StepValues:
    """What a step came to on rank 0, whose part of the global batch it is."""

    epoch: int
    """From 0."""
    step: int
    """From 0 in every epoch."""
    loss: float
    """Mean over the part's images."""
    samples: int
    """How many images the part has."""
    rejected: int
    """How many entries of the part were rejected."""


class Callback:
    """Derive from it, and define what you want to hear of.

    All are called on rank 0: with one worker in the process that calls `Run.train`, else in a worker's, to which the
    callbacks are sent as they are when training starts. An error in one ends the run as a CallbackError.
    """

    def on_epoch(self, record: EpochRecord) -> Stop | Save | None:
        """An epoch is trained and validated, and its checkpoint comes next; `record` is its line of metrics.jsonl."""

    def on_step(self, values: StepValues) -> None:
        """A step is done; it is told at least one step later, so that nothing waits for the device."""

    def on_checkpoint(self, folder: Path) -> None:
        """A checkpoint is whole and on the disk; told between steps, some time after it was begun."""

    def on_end(self, ending: Ending) -> None:
        """Training ends here; what was started in this process is to be closed.

        After "failed" another try from the last checkpoint may follow, with one worker in the same process.
        """

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, as JSON; nothing unless it is defined."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Training goes on from a checkpoint, which kept this; not called where it kept nothing."""


def as_callbacks(given: object) -> tuple[Callback, ...]:
    """One callback, or several, as a tuple; ValueError where something else is given."""
    several = tuple(given) if isinstance(given, Iterable) and not isinstance(given, Callback) else (given,)
    for one in several:
        if not isinstance(one, Callback):
            raise ValueError(f"callbacks: {one!r} is none; derive it from raypaml.Callback, and give an object")
    return several


class Calls:
    """The callbacks of a run, where they are called; on other ranks than the first there is none."""

    def __init__(self, callbacks: Sequence[Callback] = (), device: torch.device | None = None, *, rank: int = 0):
        self.given = bool(callbacks)
        """Whether the run has callbacks, which is the same on all ranks."""
        self.committed: list[Path] = []
        """Checkpoints not yet told of; another thread adds them."""
        self.finished = False
        self._all = tuple(callbacks) if rank == 0 else ()
        self._devices = [device.index or 0] if device is not None and device.type == "cuda" else []
        self._of_steps = [one for one in self._all if getattr(one.on_step, "__func__", None) is not Callback.on_step]
        self._coming: list[tuple[int, int, int, HostCopy]] = []
        self._place = "the start"

    def note_step(self, epoch: int, step: int, loss: Tensor, global_rows: int, rejected: Tensor) -> None:
        """Begin to copy what a step came to; `loss` is the part's share of the global mean, `rejected` is [B, K]."""
        if self._of_steps:
            values = HostCopy.of(torch.stack([(loss * global_rows).double(), rejected.sum().double()]))
            self._coming.append((epoch, step, len(rejected), values))

    def tell_steps(self, *, but: int = 0) -> None:
        """Tell of the steps noted, but for the last so many, which the device may still compute."""
        while len(self._coming) > but:
            epoch, step, samples, coming = self._coming.pop(0)
            loss, rejected = coming.wait().tolist()
            self._place = place_text(epoch, step)
            mean = loss / max(samples, 1)
            values = StepValues(epoch=epoch, step=step, loss=mean, samples=samples, rejected=int(rejected))
            for one in self._of_steps:
                self._call(one, "on_step", values)

    def on_epoch(self, record: EpochRecord) -> tuple[str | None, bool]:
        """Why training is to stop, None where it is not; and whether the epoch's checkpoint is to be kept."""
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
        """Tell of the checkpoints committed since the last call."""
        while self.committed:
            folder = self.committed.pop(0)
            for one in self._all:
                self._call(one, "on_checkpoint", folder)

    def states(self) -> dict[str, Any]:
        """What a checkpoint keeps of each callback that has something to keep, by its name; it knows all steps then."""
        self.tell_steps()
        states = ((name, self._call(one, "state_dict", check=json.dumps)) for name, one in self._named())
        return {name: json.loads(json.dumps(state)) for name, state in states if state}

    def load(self, states: dict[str, Any]) -> None:
        """Give each callback what a checkpoint kept of it; of steps noted since then it hears nothing."""
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
        """Tell all of the end, in order, also where one of them fails."""
        with ExitStack() as calls:
            for one in reversed(self._all):
                calls.callback(self._call, one, "on_end", ending)

    def _call(self, one: Callback, method: str, *args: Any, check: Callable[[Any], Any] | None = None) -> Any:
        """Call a method, whose random numbers and gradient mode are its own; a CallbackError names it if it fails.

        Where `check` fails on its answer, too.
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
            named.add_note(traceback.format_exc())  # which goes with it from a worker to the program
            raise named from error
        return answer


def _check_answer(answer: object) -> None:
    if not (answer is None or isinstance(answer, Stop | Save)):
        raise TypeError(f"it answered {answer!r}; an epoch is answered by None, raypaml.Stop(why) or raypaml.Save()")


@contextmanager
def told_of_the_end(current: Callable[[], Calls]) -> Iterator[None]:
    """However the block ends, callbacks are told."""
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

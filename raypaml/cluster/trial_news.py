"""What a search is told of its trials while they run: lines for the user, records of what was lost, and signals."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime

from raypaml.cluster.channel import Channel, Lost, News, Started
from raypaml.cluster.lost_workers import lost
from raypaml.cluster.orphans import remove_orphans
from raypaml.cluster.ray_train import POLL_SECONDS
from raypaml.cluster.signals import STOPPING_ALL, Signals
from raypaml.cluster.waiting import FirstEvent
from raypaml.counting import number_of
from raypaml.runs.events import EpochReport, Message, Resumed, StepReport
from raypaml.search.faults import Fault, add_fault
from raypaml.search.search_folder import SearchPlan
from raypaml.search.search_progress import SearchDisplay
from raypaml.search.trials import Trial

ORPHAN_SECONDS = 30.0
"""Time after the loss of a trial's process in which the controller of its workers ends too, and leaves them behind."""
_TAKEN_AWAY = Lost("", "its node was taken away", preempted=True)
"""The loss of workers that had time to end: Ray Train reports no error of theirs."""


@dataclass
class _Heard:
    """What is known of the workers of a running trial."""

    channel: Channel
    first: FirstEvent
    at_work: bool = False
    """Whether a worker has started."""
    steps: int = 0
    """Steps of training that the trial has been heard to finish."""
    steps_of_epoch: int = 0
    loss: Lost | None = None
    """What the trial lost and has not made good yet."""
    trained: bool = False
    """Whether training has been heard of since its workers started."""


class TrialNews:
    """Takes what the workers of all running trials report.

    Args:
        search: the search.
        channel: from which the trials' channels are made.
        display: shows lines.
        signals: after the first signal all trials are asked to save and stop.
    """

    def __init__(self, search: SearchPlan, channel: Channel, display: SearchDisplay, signals: Signals) -> None:
        self.channel, self.display = channel, display
        self._search, self._signals = search, signals
        self._heard: dict[Trial, _Heard] = {}
        self._polled = 0.0
        self._told_to_stop: set[Trial] = set()
        self._orphans_until = 0.0

    def __reduce__(self) -> tuple[type[object], tuple[()]]:
        return object, ()  # Tune pickles its callbacks, and with them this one, but never uses the copy

    @property
    def is_stopping(self) -> bool:
        """Whether a signal has come."""
        return bool(self._signals.received)

    @property
    def is_over(self) -> bool:
        """Whether a signal has come and no trial is at work any more; others wait for workers."""
        return self.is_stopping and not any(heard.at_work for heard in self._heard.values())

    def start(self, trial: Trial) -> None:
        """Show that the process of a trial has started, for the first time or again."""
        self.display.start(trial)
        self._of(trial)

    def _of(self, trial: Trial) -> _Heard:
        if trial not in self._heard:
            self._heard[trial] = _Heard(self.channel.of(trial.name), self._first(trial))
        return self._heard[trial]

    def _first(self, trial: Trial) -> FirstEvent:
        return FirstEvent(self.display.say, f"a worker of {trial.name}", limited=False)

    def poll(self) -> None:
        """Take what has come, at most every POLL_SECONDS; pass a signal on."""
        if time.monotonic() - self._polled < POLL_SECONDS:
            return
        for trial in list(self._heard):
            self._take(trial)
        if time.monotonic() < self._orphans_until:
            remove_orphans()
        for trial in self._heard.keys() - self._told_to_stop if self.is_stopping else ():
            if not self._told_to_stop:
                self.display.say(STOPPING_ALL)
            self._heard[trial].channel.stop()
            self._told_to_stop.add(trial)
        self._polled = time.monotonic()

    def process_lost(self, trial: Trial, why: str, *, preempted: bool, recovers: bool) -> Lost:
        """Note that the process of a trial, and with it its workers, was lost; returns that loss.

        Args:
            trial: the trial.
            why: the reason, as Ray says it.
            preempted: whether its node was taken away with notice.
            recovers: whether Tune starts the process again, which then looks whether there are too many losses.
        """
        mine, limit = self._of(trial).channel, self._search.base.run.max_failures
        goes_on = recovers and mine.losses() + (not preempted) <= limit
        loss = lost(f"its process ({why})", preempted=preempted, goes_on=goes_on, limit=limit)
        mine.put(loss)
        self._orphans_until = time.monotonic() + ORPHAN_SECONDS
        return loss

    def end(self, trial: Trial) -> None:
        """Take the last news of a trial that has ended in any way."""
        self._take(trial)
        heard = self._heard.pop(trial)
        if heard.loss:
            self._record(trial, heard.loss, None)

    def _take(self, trial: Trial) -> None:
        heard = self._of(trial)
        events = heard.channel.take()
        heard.first.came(len(events))
        for event in events:
            self._hear(trial, heard, event)

    def _hear(self, trial: Trial, heard: _Heard, event: News) -> None:
        match event:
            case Lost():
                self._lose(trial, heard, event)
                self._say(trial, event.text)
            case Started():
                if heard.trained and not heard.loss:
                    self._lose(trial, heard, _TAKEN_AWAY)
                heard.at_work, heard.trained = True, False
            case Resumed():
                steps = event.epoch * heard.steps_of_epoch + event.step
                self._say(trial, event.text + self._make_good(trial, heard, steps))
            case Message():
                self._say(trial, event.text)
            case StepReport():
                if heard.loss:
                    self._say(trial, "starts from its beginning" + self._make_good(trial, heard, 0))
                heard.steps, heard.steps_of_epoch, heard.trained = event.steps_done, event.steps, True
            case EpochReport():
                heard.steps = (event.record["epoch"] + 1) * heard.steps_of_epoch

    def _lose(self, trial: Trial, heard: _Heard, loss: Lost) -> None:
        if heard.loss:
            self._record(trial, heard.loss, 0)  # nothing was done since
        heard.loss, heard.at_work, heard.first = loss, False, self._first(trial)

    def _make_good(self, trial: Trial, heard: _Heard, steps: int) -> str:
        """Record a loss once it is known from which step on training is done again, and say how much that is."""
        if not heard.loss:
            return ""
        again = max(0, heard.steps - steps)
        self._record(trial, heard.loss, again)
        heard.loss = None
        return f"; at least {number_of(again, 'step')} to train again" if again else ""

    def _record(self, trial: Trial, loss: Lost, steps: int | None) -> None:
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        record = Fault(time=now, cause=loss.cause, preempted=loss.preempted, steps=steps)
        add_fault(self._search.run_folder(trial), record)

    def _say(self, trial: Trial, text: str) -> None:
        self.display.say(f"{trial.name}: {text}")

"""Decides which trial runs next: the first in the plan whose warm-up is not being trained by another one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from raypaml.search.search_folder import SearchPlan, outcome, ranked
from raypaml.search.trials import Trial, own_trial
from raypaml.search.warmup import warmup_key

DONE = ("finished", "stopped")


class Queue:
    """The trials of a search that are left to run, then those of the finalists with other seeds.

    A trial that failed in an earlier call is run again.
    """

    def __init__(self, search: SearchPlan, trials: Sequence[Trial], seeds: int = 1):
        self.search = search
        self.trials = list(trials)
        """The trials of the plan, then those with other seeds."""
        self.waiting = [trial for trial in self.trials if outcome(search, trial).state not in DONE]
        self.running: dict[Trial, set[int]] = {}
        """The running trials, each with the epochs after which it leaves its warm-up for others."""
        self._seeds = seeds
        self._known: dict[Trial, tuple[str, int]] = {}

    def next(self) -> Trial | None:
        """Start the next trial; None where the rest must wait for what runs, or nothing is left."""
        for trial in self.waiting if self.has_more() else ():
            if not self._must_wait(trial):
                self.waiting.remove(trial)
                done = len(outcome(self.search, trial).history)
                self.running[trial] = {epoch for epoch in self.marks(trial) if epoch > done}
                return trial
        return None

    def has_more(self) -> bool:
        """Whether a trial waits; once all have ended, the finalists are added with other seeds."""
        if not self.waiting and not self.running and self._seeds > 1:
            self._add_finalists()
        return bool(self.waiting)

    def add(self, trial: Trial) -> None:
        """Add a trial that a searcher proposed; one that waits or runs already is not added again."""
        if trial not in self.trials:
            self.trials.append(trial)
        if trial not in self.running and trial not in self.waiting:
            self.waiting.append(trial)

    def done(self, trial: Trial) -> None:
        """Take note that a trial has ended in any way."""
        self.running.pop(trial, None)

    @property
    def is_finished(self) -> bool:
        """Whether no trial waits and none runs that another one waits for."""
        return not self.waiting and not self.running

    def marks(self, trial: Trial) -> set[int]:
        """Epochs after which the trials with the same warm-up, itself included, begin to reject."""
        if self.search.share <= 1:
            return set()
        key, last = self._about(trial)
        return {epochs for other, epochs in map(self._about, self.trials) if other == key and epochs <= last}

    def _add_finalists(self) -> None:
        """Add the starting point and the best of the other trials, with other seeds."""
        own = own_trial(self.search.base, self.search.spaces)
        best = ranked([outcome(self.search, trial) for trial in self.trials if trial != own])
        finalists = [own, best[0].trial] if best else []
        for number in range(1, self._seeds):
            for trial in finalists:
                repeat = dataclasses.replace(trial, seed=trial.seed + number, repeats=True)
                self.trials.append(repeat)
                if outcome(self.search, repeat).state not in DONE:
                    self.waiting.append(repeat)
        self._seeds = 1

    def _must_wait(self, trial: Trial) -> bool:
        """Whether a running trial, or a waiting one with a longer warm-up, will leave a warm-up for this trial."""
        if self.search.share <= 1 or outcome(self.search, trial).history:
            return False
        key, epochs = self._about(trial)
        if (self.search.warmups(trial) / f"after-{epochs}").is_dir():
            return False
        if any(self._about(other)[0] == key and epochs in left for other, left in self.running.items()):
            return True
        return any(other == key and longer > epochs for other, longer in map(self._about, self.waiting))

    def _about(self, trial: Trial) -> tuple[str, int]:
        """The key of the trial's warm-up, and its length in epochs."""
        if trial not in self._known:
            config = self.search.config(trial)
            self._known[trial] = warmup_key(config), config.loss.warmup_epochs
        return self._known[trial]

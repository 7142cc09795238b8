"""Optuna's TPE as a searcher: it proposes one trial at a time from the results of the earlier ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raypaml.cli import extra
from raypaml.search.queue import Queue
from raypaml.search.search_folder import SearchPlan, add_proposed, outcome
from raypaml.search.spaces import Space
from raypaml.search.trials import TRIES, Trial, proposed

if TYPE_CHECKING:
    import optuna


class Proposals:
    """Adds trials to a queue until it holds `count`, each proposed from what the earlier ones reached.

    TPE models which values good and bad trials have (Bergstra et al., NeurIPS 2011). Its first trials are drawn at
    random: a quarter of them, three to ten.

    Raises:
        ValueError: Optuna is not installed.
    """

    def __init__(self, search: SearchPlan, queue: Queue, count: int):
        try:
            import optuna
        except ImportError:
            raise ValueError(f"searcher=tpe: needs Optuna; install it with {extra('tune')}") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._search, self._queue, self._count = search, queue, count
        self._space = {space.name: _distribution(space) for space in search.spaces}
        # after a restart the first trials must not be drawn again
        seed = search.base.run.seed + len(queue.trials)
        sampler = optuna.samplers.TPESampler(n_startup_trials=min(10, max(3, count // 4)), seed=seed)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._asked: dict[Trial, optuna.Trial] = {}
        for trial in queue.trials:
            if trial not in queue.waiting:
                self._remember(trial)

    @property
    def has_more(self) -> bool:
        """Whether more trials are wanted."""
        return len(self._queue.trials) < self._count

    def propose(self) -> None:
        """Add a new trial to the queue if more are wanted and the spaces hold one."""
        for _ in range(TRIES if self.has_more else 0):
            asked = self._study.ask(self._space)
            trial = proposed(self._search.base, self._search.spaces, asked.params)
            if trial not in self._queue.trials:
                self._asked[trial] = asked
                add_proposed(self._search, trial)
                self._queue.add(trial)
                return
            score = outcome(self._search, trial).score
            self._tell(asked, score if trial not in self._queue.running else -1)

    def learn(self, trial: Trial) -> None:
        """Take in what a trial reached."""
        if trial in self._asked:
            self._tell(self._asked.pop(trial), outcome(self._search, trial).score)
        else:
            self._remember(trial)

    def _tell(self, asked: optuna.Trial, score: float) -> None:
        from optuna.trial import TrialState

        if score < 0:
            self._study.tell(asked, state=TrialState.FAIL)
        else:
            self._study.tell(asked, score)

    def _remember(self, trial: Trial) -> None:
        """Take in a trial that was not proposed here, unless it lies outside the spaces, as the starting point may."""
        import optuna

        values = {space.name: dict(trial.values)[space.field] for space in self._search.spaces}
        score = outcome(self._search, trial).score
        if score >= 0 and all(space.holds(values[space.name]) for space in self._search.spaces):
            self._study.add_trial(optuna.create_trial(params=values, distributions=self._space, value=score))


def _distribution(space: Space) -> optuna.distributions.BaseDistribution:
    from optuna import distributions

    log = space.distribution == "log"
    if space.values:
        return distributions.CategoricalDistribution(space.values)
    if space.whole:
        return distributions.IntDistribution(int(space.low), int(space.high), log=log)
    return distributions.FloatDistribution(space.low, space.high, log=log)

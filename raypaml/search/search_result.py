"""The result of a search: the table of trials, and whether the best one is better than the starting point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from raypaml.evaluation.aggregation import comparison
from raypaml.evaluation.measures import EvaluationOptions, evaluate_set
from raypaml.evaluation.parts import open_set, read_vocabulary
from raypaml.files import write_json
from raypaml.recipes import recipe
from raypaml.reports.tables import markdown, percent, seed_interval
from raypaml.runs.history import VALIDATION_MEAN_AP
from raypaml.search.faults import told_fault
from raypaml.search.queue import DONE
from raypaml.search.search_folder import Outcome, SearchPlan, ranked
from raypaml.search.search_records import BEST_FILE
from raypaml.search.trial_rows import write_csv
from raypaml.search.trials import own_trial

REPLICATES = 1000
"""Draws of the bootstrap over test images."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The comparison of the best trial with the configuration that the search started from."""

    best: Outcome | None
    """The finished trial of best validation mAP; None where none has finished."""
    own: Outcome | None
    """The starting point, as a trial; None where it has not finished."""
    difference: float | None = None
    """Test mAP, 0..1, of the best trial minus that of the starting point; None where there is nothing to compare."""
    interval: tuple[float, float] | None = None
    """95 % bootstrap interval of the difference: the same test images are drawn for both."""
    by_seed: tuple[float, ...] = ()
    """The difference for every seed with which both were trained, the first included."""
    text: str = ""
    """The verdict in sentences."""


def conclude_search(search: SearchPlan, outcomes: Sequence[Outcome]) -> Verdict:
    """Compare the best trial with the starting point on the test split, and write `best.json` and `trials.csv`."""
    verdict = judge(search, outcomes)
    write_csv(search, outcomes)
    if verdict.best is not None:
        _write_best(search, verdict.best, verdict.text)
    return verdict


def _write_best(search: SearchPlan, best: Outcome, verdict: str) -> None:
    """Write `best.json`: the best trial's configuration, for `python -m raypaml.train --config`."""
    own = recipe(search.base.recipe).run
    values = {"name": "", "storage": own.storage, "address": "", "workers": own.workers}
    summary = {
        "trial": best.trial.name,
        VALIDATION_MEAN_AP: best.score,
        "verdict": verdict,
        "folder": str(search.folder),
    }
    config = search.config(best.trial).override(values).to_dict()
    write_json(search.folder / BEST_FILE, {"found": summary, "config": config})


def judge(search: SearchPlan, outcomes: Sequence[Outcome]) -> Verdict:
    """Compare the trial of best validation mAP with the starting point on the test split, which chose nothing."""
    order = ranked(outcomes)
    own = next((one for one in order if one.trial == own_trial(search.base, search.spaces)), None)
    if not order:
        return Verdict(best=None, own=None, text="No trial finished: there is nothing to choose from.")
    best = order[0]
    if own is None:
        text = f"Best by validation mAP: {best.trial.name}, {percent(best.score)}. The search's starting point failed."
        return Verdict(best=best, own=None, text=text)
    if best is own:
        text = (
            f"Nothing tried is better than the starting point {own.trial.name} by validation mAP "
            f"({percent(own.score)}); its test mAP is {_test_percent(own)}."
        )
        seeds = _by_seed(outcomes, own, order[1]) if len(order) > 1 else ()
        return Verdict(best=best, own=own, text="\n".join([text, *_said_by_seed(order[1:2], seeds)]))
    difference, interval = _compare(search, own, best)
    seeds = _by_seed(outcomes, own, best)
    text = "\n".join([_said(own, best, difference, interval), *_said_by_seed([best], seeds)])
    return Verdict(best=best, own=own, difference=difference, interval=interval, by_seed=seeds, text=text)


def _compare(search: SearchPlan, own: Outcome, best: Outcome) -> tuple[float, tuple[float, float]]:
    folders = (search.run_folder(one.trial) / "predictions" / "test" for one in (own, best))
    options = EvaluationOptions(replicates=REPLICATES)
    sets = [(open_set(folder), folder) for folder in folders]
    paper = comparison(*(evaluate_set(one, read_vocabulary(where, one), options) for one, where in sets))["paper"]
    return paper["difference"]["All"], paper["interval_95"]["All"]


def _by_seed(outcomes: Sequence[Outcome], own: Outcome, best: Outcome) -> tuple[float, ...]:
    tested = {(o.trial.values, o.trial.seed): o.test_mean_ap for o in outcomes if o.test_mean_ap is not None}
    pairs = (
        (tested.get((best.trial.values, seed)), ap)
        for (values, seed), ap in tested.items()
        if values == own.trial.values
    )
    return tuple(ap - before for ap, before in pairs if ap is not None)


def _said(own: Outcome, best: Outcome, difference: float, interval: tuple[float, float]) -> str:
    low, high = interval
    return (
        f"Best by validation mAP: {best.trial.name}, {percent(best.score)}; the starting point {own.trial.name}: "
        f"{percent(own.score)}.\nTest mAP {_test_percent(best)} against {_test_percent(own)}: "
        f"{percent(difference, '+.2f')} points, 95 % {percent(low, '+.2f')} to {percent(high, '+.2f')} (test images "
        f"drawn again): {_meaning(low, high)}."
    )


def _meaning(low: float, high: float) -> str:
    """What an interval of the difference says about the best trial."""
    if math.isnan(low):
        return "the test split has no observed labels to compare them by"
    if low > 0:
        return "it is better"
    if high < 0:
        return "it is worse, so keep the starting point"
    return "another test set of this size could show the contrary, so it is not established which is better"


def _test_percent(one: Outcome) -> str:
    """The test mAP of a trial in percent; a dash for one that has not finished."""
    return percent(one.test_mean_ap)


def _said_by_seed(rivals: Sequence[Outcome], differences: tuple[float, ...]) -> list[str]:
    if len(differences) < 2:
        return []
    mean, low, high = seed_interval(differences)
    shown = ", ".join(f"{100 * value:+.2f}" for value in differences)
    return [
        f"Over {len(differences)} seeds {rivals[0].trial.name} differs from the starting point by {100 * mean:+.2f} "
        f"points (by seed {shown}), 95 % {100 * low:+.2f} to {100 * high:+.2f} (test mAP, paired, Student's t)."
    ]


def trial_table(search: SearchPlan, outcomes: Sequence[Outcome]) -> str:
    """All trials as Markdown, best validation mAP first."""
    order = sorted(outcomes, key=lambda one: -one.score)
    rows = [
        [
            one.trial.name,
            one.state,
            f"{len(one.history)}/{search.base.optim.epochs}",
            percent(one.score if one.history else None),
            _test_percent(one),
        ]
        for one in order
    ]
    lines = [markdown(["trial", "state", "epochs", "validation mAP", "test mAP"], rows, left=2)]
    lines += [f"lost: {one.trial.name}: {told_fault(fault)}" for one in order for fault in one.faults]
    return "\n".join([*lines, *(f"failed: {one.trial.name}: {one.error}" for one in order if one.error)])


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The time that a search took, and the epochs that it trained or saved."""

    hours: float
    """Hours, summed over trials and workers."""
    epochs: int
    """Epochs that were trained."""
    shared: int
    """Epochs taken from shared warm-ups instead."""
    not_run: int
    """Epochs that were not trained because the search stopped a trial, or a trial stopped early by itself."""


def cost(search: SearchPlan, outcomes: Sequence[Outcome]) -> Cost:
    """The cost of all trials, including failed ones."""
    epochs = search.base.optim.epochs
    return Cost(
        hours=sum(one.seconds for one in outcomes) * search.base.run.workers / 3600,
        epochs=sum(len(one.history) - one.shared for one in outcomes),
        shared=sum(one.shared for one in outcomes),
        not_run=sum(epochs - len(one.history) for one in outcomes if one.state in DONE),
    )

"""What a search found: the table of trials, and whether the best is better than what the search started from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raypaml.evaluation.aggregation import comparison
from raypaml.evaluation.measures import EvaluationOptions, evaluate_set
from raypaml.evaluation.parts import open_set, read_vocabulary
from raypaml.reports.tables import markdown, percent, seed_interval
from raypaml.search.queue import DONE
from raypaml.search.search_folder import Outcome, SearchPlan, ranked, write_best
from raypaml.search.trial_rows import write_csv
from raypaml.search.trials import own_trial

REPLICATES = 1000
"""Draws of the bootstrap over test images."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The best trial against the configuration the search started from."""

    best: Outcome | None
    own: Outcome | None
    difference: float | None = None
    """Test mAP, 0..1: best minus own, same seed; None where there is nothing to compare."""
    interval: tuple[float, float] | None = None
    """95 %, the same test images drawn again for both."""
    by_seed: tuple[float, ...] = ()
    """The difference for every seed that both were trained with, the first included."""
    text: str = ""


def conclude_search(search: SearchPlan, outcomes: Sequence[Outcome]) -> Verdict:
    """Judge the best trial by its test split; write `best.json` and `trials.csv`."""
    verdict = judge(search, outcomes)
    write_csv(search, outcomes)
    if verdict.best is not None:
        write_best(search, verdict.best, verdict.text)
    return verdict


def judge(search: SearchPlan, outcomes: Sequence[Outcome]) -> Verdict:
    """The best trial by validation mAP, compared on the test split, which chose nothing."""
    order = ranked(outcomes)
    own = next((found for found in order if found.trial == own_trial(search.base, search.spaces)), None)
    if not order:
        return Verdict(best=None, own=None, text="No trial finished: there is nothing to choose from.")
    best = order[0]
    if own is None:
        text = f"Best by validation mAP: {best.trial.name}, {percent(best.score)}. The search's starting point failed."
        return Verdict(best=best, own=None, text=text)
    if best is own:
        text = (
            f"Nothing tried is better than the starting point {own.trial.name} by validation mAP "
            f"({percent(own.score)}); its test mAP is {percent(own.result['mean_ap'])}."
        )
        seeds = _by_seed(outcomes, own, order[1]) if len(order) > 1 else ()
        return Verdict(best=best, own=own, text="\n".join([text, *_said_by_seed(order[1:2], seeds)]))
    difference, interval = _compare(search, own, best)
    seeds = _by_seed(outcomes, own, best)
    text = "\n".join([_said(own, best, difference, interval), *_said_by_seed([best], seeds)])
    return Verdict(best=best, own=own, difference=difference, interval=interval, by_seed=seeds, text=text)


def _compare(search: SearchPlan, own: Outcome, best: Outcome) -> tuple[float, tuple[float, float]]:
    folders = (search.run_folder(found.trial) / "predictions" / "test" for found in (own, best))
    asked = EvaluationOptions(replicates=REPLICATES)
    sets = [(open_set(folder), folder) for folder in folders]
    found = comparison(*(evaluate_set(one, read_vocabulary(where, one), asked) for one, where in sets))["paper"]
    return found["difference"]["All"], found["interval_95"]["All"]


def _by_seed(outcomes: Sequence[Outcome], own: Outcome, best: Outcome) -> tuple[float, ...]:
    tested = {(o.trial.values, o.trial.seed): o.result["mean_ap"] for o in outcomes if o.state == "finished"}
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
        f"{percent(own.score)}.\nTest mAP {percent(best.result['mean_ap'])} against {percent(own.result['mean_ap'])}: "
        f"{100 * difference:+.2f} points, 95 % {100 * low:+.2f} to {100 * high:+.2f} (test images drawn again): "
        f"{_meaning(low, high)}."
    )


def _meaning(low: float, high: float) -> str:
    if low > 0:
        return "it is better"
    if high < 0:
        return "it is worse, so keep the starting point"
    return "another test set of this size could show the contrary, so it is not established which is better"


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
    order = sorted(outcomes, key=lambda found: -found.score)
    rows = [
        [
            found.trial.name,
            found.state,
            f"{len(found.history)}/{search.base.optim.epochs}",
            percent(found.score if found.history else np.nan),
            percent(found.result.get("mean_ap", np.nan)),
        ]
        for found in order
    ]
    lines = [markdown(["trial", "state", "epochs", "validation mAP", "test mAP"], rows, left=2)]
    return "\n".join([*lines, *(f"failed: {found.trial.name}: {found.error}" for found in order if found.error)])


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a search took, in hours of one worker's CPU or GPU, and what it did not need."""

    hours: float
    epochs: int
    """Epochs that were trained."""
    shared: int
    """Epochs taken from shared warm-ups instead."""
    not_run: int
    """Epochs left to trials that the search stopped, or that stopped early by themselves."""


def cost(search: SearchPlan, outcomes: Sequence[Outcome]) -> Cost:
    """Add up all trials, the failed ones included."""
    epochs = search.base.optim.epochs
    return Cost(
        hours=sum(found.seconds for found in outcomes) * search.base.run.workers / 3600,
        epochs=sum(len(found.history) - found.shared for found in outcomes),
        shared=sum(found.shared for found in outcomes),
        not_run=sum(epochs - len(found.history) for found in outcomes if found.state in DONE),
    )

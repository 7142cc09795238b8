"""Early stopping, decided by the epoch records alone, so that a continued run decides the same.

The schedules of the learning rate and of rejection remain those of all epochs that were asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from raypaml.counting import epoch_number, number_of
from raypaml.runs.history import EpochRecord, validation_scores
from raypaml.settings import OptimConfig


def stopped_by_callback(history: Sequence[EpochRecord], optim: OptimConfig) -> str:
    """Why a callback stopped training, in a sentence; empty where none did.

    The stop holds only while the run is asked for as many epochs as it was then.
    """
    stop = history[-1].get("stop") if history else None
    if not stop or stop["epochs"] != optim.epochs:
        return ""
    return f"stopped after epoch {len(history)} of {optim.epochs}: {stop['why'] or 'a callback'}"


def early_stop(history: Sequence[EpochRecord], optim: OptimConfig) -> str:
    """Why training ends early after these epochs, in a sentence; empty where it goes on or has trained all epochs.

    Args:
        history: the records of the epochs so far.
        optim: the settings; `patience`, `stop_below` and `epochs` matter.
    """
    done = len(history)
    if not history or done >= optim.epochs:
        return ""
    if by_callback := stopped_by_callback(history, optim):
        return by_callback
    scores = [100 * score for score in validation_scores(history)]
    known = [epoch for epoch in range(done) if not math.isnan(scores[epoch])]  # NaN: no class had a positive
    if not known:
        return ""
    best = max(known, key=lambda epoch: scores[epoch])  # the first of equals
    last, highest = f"{scores[-1]:.2f}", f"epoch {epoch_number(best)}'s {scores[best]:.2f}"
    stopped = f"stopped after epoch {done} of {optim.epochs}: validation mAP "
    if optim.stop_below and scores[best] - scores[-1] > optim.stop_below:
        return stopped + f"{last} is more than {optim.stop_below:g} points below {highest} (stop_below)"
    if optim.patience and done - 1 - best >= optim.patience:
        return stopped + f"has not been above {highest} for {number_of(done - 1 - best, 'epoch')} (patience)"
    return ""

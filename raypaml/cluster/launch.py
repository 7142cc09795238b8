"""Training a checked run, in this process or in workers of Ray."""

from __future__ import annotations

from collections.abc import Sequence

from raypaml.cluster.own_process import fit_in_own_process, is_for_own_process
from raypaml.reports.progress import Display
from raypaml.training.callbacks import Callback
from raypaml.training.job import Job


def fit(job: Job, prog: str, display: Display, callbacks: Sequence[Callback] = ()) -> int:
    """Train a run to its end or until a signal, in this process or in workers, as the configuration asks.

    Args:
        job: the run.
        prog: the command, for messages that say how to continue.
        display: shows the progress.
        callbacks: the callbacks of the program.

    Returns:
        0 where training finished; else the number of the signal that stopped it, after saving a checkpoint.

    Raises:
        ValueError: the error of the first rank that failed; a RuntimeError where it was not the user's fault.
        StoppedAtOnce: after a second signal.
    """
    if is_for_own_process(job.config.run):
        return fit_in_own_process(job, prog, display, callbacks)
    from raypaml.cluster.ray_train import fit_on_ray  # with Ray, which one worker does without

    return fit_on_ray(job, prog, display, callbacks)

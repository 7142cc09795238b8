"""A trace of some training steps by torch.profiler, kept in the run's folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch.profiler import profile, schedule

from raypaml.training.worker import Worker

PROFILES = "profile"
LEFT_OUT = 3
"""First steps, which are not traced: memory is allocated and kernels are chosen in them."""
WARM_UP = 2
"""Steps traced but discarded, for the tracer's own start slows them down."""
ROWS = 40
"""Rows of the table of the slowest operations."""


@contextmanager
def profiled(worker: Worker) -> Iterator[Callable[[], None]]:
    """Trace as many steps as the setting `profile` says; yields a function to be called after every step.

    Writes `profile/rank-R.json.gz`, for Perfetto (ui.perfetto.dev) or chrome://tracing, and `profile/rank-R.txt`, a
    table of the operations that took longest. Where training ends earlier, fewer steps are traced.
    """
    steps = worker.config.run.profile
    if not steps:
        yield lambda: None
        return
    place = f"{PROFILES}/rank-{worker.ranks.rank}"

    def write(tracer: profile) -> None:
        file = worker.run_folder / f"{place}.json.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        tracer.export_chrome_trace(str(file))
        order = f"self_{'cuda' if worker.ranks.device.type == 'cuda' else 'cpu'}_time_total"
        file.with_name(f"rank-{worker.ranks.rank}.txt").write_text(tracer.key_averages().table(order, row_limit=ROWS))
        if worker.store:
            worker.store.push(f"{place}.json.gz", f"{place}.txt")
        worker.say(f"wrote a trace of training to {file}")

    plan = schedule(wait=LEFT_OUT, warmup=WARM_UP, active=steps, repeat=1)
    with profile(schedule=plan, on_trace_ready=write, record_shapes=True) as tracer:
        yield tracer.step
    if not (worker.run_folder / f"{place}.json.gz").is_file():
        worker.say(f"profile={steps}: no trace, for training ended within the first {LEFT_OUT + WARM_UP} steps")

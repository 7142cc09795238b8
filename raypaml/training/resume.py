"""What outlives a worker: its checkpoints and records, saved, restored, and gone back to."""

from __future__ import annotations

import json

from raypaml.files import write_whole
from raypaml.runs import checkpoint
from raypaml.runs.mirror import Mirror
from raypaml.runs.skips import write_skipped
from raypaml.training import rejections
from raypaml.training.nonfinite import DivergedError
from raypaml.training.worker import Worker, build_worker


def restore(worker: Worker) -> None:
    """The state of the newest checkpoint that is whole, if there is any."""
    if worker.store:
        worker.now("fetching checkpoints")
        worker.store.pull_checkpoints()
        worker.store.pull("predictions")
    valid, damaged = checkpoint.valid_checkpoints(worker.run_folder / "checkpoints")
    if damaged:
        worker.report({"event": f"passed over damaged checkpoints: {', '.join(path.name for path in damaged)}"})
    worker.ranks.barrier()  # nobody may save before all have looked
    if worker.ranks.rank == 0:
        checkpoint.sweep_unfinished(worker.run_folder / "checkpoints")
    if not valid:
        return
    worker.now("loading a checkpoint")
    worker.state, worker.corrections = checkpoint.load_checkpoint(
        valid[-1], worker.model, worker.optimizer, worker.data.splits["train"], worker.average
    )
    worker.scheme_state.restore(checkpoint.read_memory(valid[-1]))
    count = worker.ranks.world_size
    worker.report({"event": f"continues from {worker.place} with {count} worker{'s' if count > 1 else ''}"})


def roll_back(worker: Worker, error: DivergedError) -> Worker:
    """A new worker at the last checkpoint; the error again where it is not the first at this step."""
    if worker.place in worker.rolled_back:
        raise FloatingPointError(f"{error}; again, after going back to the last checkpoint") from None
    worker.report({"event": f"{error}; going back to the last checkpoint"})
    ranks = worker.ranks
    fresh = build_worker(worker.config, worker.data.address, worker.run_folder, ranks.device, worker.report)
    fresh.rolled_back = worker.rolled_back | {worker.place}
    restore(fresh)
    return fresh


def save_state(worker: Worker) -> None:
    """A checkpoint of what all ranks hold, and the records that go with it."""
    worker.now("saving")
    worker.rejections.write(worker.state.epoch, worker.state.step)
    worker.corrections.exchange(worker.ranks)
    if worker.ranks.rank == 0:
        folder = worker.run_folder / "checkpoints"
        index = worker.data.splits["train"]
        checkpoint.save_checkpoint(
            folder,
            worker.state,
            worker.model,
            worker.optimizer,
            worker.corrections,
            index,
            worker.average,
            worker.scheme_state.tensors(),
        )
        checkpoint.retain(folder)
        lines = (json.dumps(record) + "\n" for record in worker.state.history)
        write_whole(worker.run_folder / "metrics.jsonl", "".join(lines))
        if worker.state.skipped:
            write_skipped(worker.run_folder / "skipped.jsonl", worker.state.skipped, index)
    if worker.store:
        _push(worker, worker.store)
    worker.ranks.barrier()


def share_checkpoints(worker: Worker) -> None:
    """The checkpoints of rank 0 on every node; what the store did not take yet, it must take now."""
    if worker.store and worker.ranks.rank == 0:
        worker.store.push_checkpoints()
    worker.ranks.barrier()
    if worker.store and worker.ranks.rank > 0:
        worker.store.pull_checkpoints()
    worker.ranks.barrier()


def _push(worker: Worker, store: Mirror) -> None:
    """To the store. One that is out of order does not stop the run: the next checkpoint takes along what is missing."""
    try:
        if worker.config.run.history:
            store.push_new(rejections.FOLDER)  # every rank has written its own
        if worker.ranks.rank == 0:
            store.push_checkpoints()
            store.push("metrics.jsonl", "skipped.jsonl", "logs")
    except PermissionError as error:
        raise ValueError(f"storage={worker.config.run.storage}: {error}; give this machine's role the right") from None
    except OSError as error:
        worker.say(f"{worker.place}: not in the store yet, training goes on: {error}")

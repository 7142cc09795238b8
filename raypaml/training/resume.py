"""What outlives a worker: its checkpoints and records, saved, restored, and gone back to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from raypaml.files import write_whole
from raypaml.runs import checkpoint
from raypaml.runs.checkpoint_writer import Snapshot, take_snapshot, write_checkpoint
from raypaml.runs.events import Message
from raypaml.runs.history import METRICS_FILE, history_text
from raypaml.runs.mirror import Mirror
from raypaml.runs.random_streams import begin_stream, continue_stream, random_streams
from raypaml.runs.skips import Reason, write_skipped
from raypaml.runs.weights_of_run import load_weights_of_run
from raypaml.training import rejections
from raypaml.training.callbacks import told_of_the_end
from raypaml.training.nonfinite import DivergedError
from raypaml.training.worker import Worker, build_worker


def restore(worker: Worker) -> None:
    """The state of the newest checkpoint that is whole, if there is any; else the weights that the run starts from."""
    if worker.store:
        worker.now("fetching checkpoints")
        worker.store.pull_checkpoints()
        worker.store.pull("predictions")
    valid, damaged = checkpoint.valid_checkpoints(worker.run_folder / "checkpoints")
    for path in valid:
        worker.saving.verified.note(path)
    if damaged:
        worker.report(Message(f"passed over damaged checkpoints: {', '.join(path.name for path in damaged)}"))
    worker.ranks.barrier()  # nobody may save before all have looked
    if worker.ranks.rank == 0:
        checkpoint.sweep_unfinished(worker.run_folder / "checkpoints")
    if not valid:
        _begin(worker)
        return
    worker.now("loading a checkpoint")
    worker.state, worker.corrections = checkpoint.load_checkpoint(
        valid[-1], worker.model, worker.optimizer, worker.data.splits["train"], worker.average
    )
    worker.calls.load(worker.state.callbacks)
    kept = checkpoint.read_memory(valid[-1])
    worker.scheme_state.restore(kept)
    if not continue_stream(kept, worker.ranks):  # of an earlier version, or of another number of workers
        begin_stream(worker.config.run.seed, worker.ranks.rank, worker.state.epoch, worker.state.step)
    count = worker.ranks.world_size
    worker.report(Message(f"continues from {worker.place} with {count} worker{'s' if count > 1 else ''}"))


def _begin(worker: Worker) -> None:
    """Give a run at its start the weights of the run that it starts from, if it does."""
    if not worker.config.model.from_run:
        return
    worker.now("loading weights")
    load_weights_of_run(worker.config.model, worker.model)
    if worker.average is not None:
        worker.average.load_state_dict(worker.model.state_dict())


def roll_back(worker: Worker, error: DivergedError) -> Worker:
    """A new worker at the last checkpoint; the error again where it is not the first at this step."""
    if error.place in worker.rolled_back:
        raise FloatingPointError(f"{error}; again, after going back to the last checkpoint") from None
    worker.report(Message(f"{error}; going back to the last checkpoint"))
    settle_saving(worker)
    ranks = worker.ranks
    ranks.barrier()  # it is there for all
    fresh = build_worker(worker.config, worker.data.address, worker.run_folder, ranks.device, worker.report)
    fresh.saving, fresh.calls = worker.saving, worker.calls
    fresh.rolled_back = worker.rolled_back | {error.place}
    restore(fresh)
    return fresh


@contextmanager
def saving(current: Callable[[], Worker]) -> Iterator[None]:
    """However the block ends, what it began to save is committed then, and callbacks are told of the end."""
    with told_of_the_end(lambda: current().calls):
        try:
            yield
        except BaseException:
            try:
                settle_saving(current())
            except Exception as error:  # the first error is the one to raise
                current().report(Message(str(error)))
            raise
        else:
            settle_saving(current())
        finally:
            current().saving.close()


def settle_saving(worker: Worker) -> None:
    """Wait until what this worker saved last is committed; say, or raise, what there is to be said of it."""
    if worker.saving.is_running:
        worker.now("waiting until the last checkpoint is written")
    if said := worker.saving.wait():
        worker.say(said)
    worker.calls.tell_checkpoints()


def hear_of_saving(worker: Worker) -> None:
    """The same, where it has ended already."""
    if not worker.saving.is_running:
        settle_saving(worker)


def save_state(worker: Worker) -> None:
    """Begin a checkpoint of what all ranks hold, and the records that go with it; the one before is then committed.

    Only copying it takes the time of a step; the rest is the thread's. Ranks exchange what goes into it; none
    waits until it is written.
    """
    settle_saving(worker)
    worker.now("saving")
    worker.rejections.write(worker.state.epoch, worker.state.step)
    worker.corrections.exchange(worker.ranks)
    streams = {} if worker.config.optim.reproducible else random_streams(worker.ranks)  # it draws nothing
    if worker.ranks.rank == 0:
        worker.state.callbacks |= worker.calls.states()
        snapshot = take_snapshot(
            worker.state,
            worker.model,
            worker.optimizer,
            worker.corrections,
            worker.data.splits["train"],
            worker.average,
            worker.scheme_state.tensors() | streams,
            worker.saving.host,
        )
        metrics = history_text(worker.state.history)
        worker.saving.start(partial(_commit, worker, snapshot, metrics, list(worker.state.skipped), worker.place))
    elif worker.store:
        worker.saving.start(partial(_push, worker, worker.store, worker.place))


def _commit(
    worker: Worker, snapshot: Snapshot, metrics: str, skipped: list[tuple[int, int, Reason]], place: str
) -> str:
    """Write the checkpoint, then what must not be ahead of it. In another thread: of the worker only what stays."""
    folder, verified = worker.run_folder / "checkpoints", worker.saving.verified
    written = write_checkpoint(folder, snapshot)
    verified.note(written)
    checkpoint.retain(folder, verified.is_valid)
    write_whole(worker.run_folder / METRICS_FILE, metrics)
    worker.calls.committed.append(written)
    if skipped:
        write_skipped(worker.run_folder / "skipped.jsonl", skipped, snapshot.index)
    return _push(worker, worker.store, place) if worker.store else ""


def share_checkpoints(worker: Worker) -> None:
    """The checkpoints of rank 0 on every node; what the store did not take yet, it must take now."""
    settle_saving(worker)
    if worker.store and worker.ranks.rank == 0:
        worker.store.push_checkpoints()
    worker.ranks.barrier()
    if worker.store and worker.ranks.rank > 0:
        worker.store.pull_checkpoints()
    worker.ranks.barrier()


def _push(worker: Worker, store: Mirror, place: str) -> str:
    """To the store. One that is out of order does not stop the run: the next checkpoint takes along what is missing.

    Returns what is then to be said.
    """
    try:
        if worker.config.run.history:
            store.push_new(rejections.FOLDER)  # every rank has written its own
        if worker.ranks.rank == 0:
            store.push_checkpoints()
            store.push(METRICS_FILE, "skipped.jsonl", "logs")
    except PermissionError as error:
        raise ValueError(f"storage={worker.config.run.storage}: {error}; give this machine's role the right") from None
    except OSError as error:
        return f"{place}: not in the store yet, training goes on: {error}"
    return ""

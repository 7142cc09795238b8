"""Checkpoints and records of a run: saving them during training, restoring them, and rolling back to the last one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from raypaml.counting import number_of
from raypaml.data.index import Index
from raypaml.files import write_whole
from raypaml.runs import checkpoint
from raypaml.runs.checkpoint_writer import Snapshot, take_snapshot, write_checkpoint
from raypaml.runs.events import Message, Resumed
from raypaml.runs.history import history_text
from raypaml.runs.mirror import Mirror
from raypaml.runs.random_streams import begin_stream, continue_stream, random_streams
from raypaml.runs.run_files import METRICS_FILE, SKIPPED, WORKER_TIME
from raypaml.runs.skips import Reason, write_skipped
from raypaml.runs.weights_of_run import load_weights_of_run
from raypaml.training import rejections
from raypaml.training.callbacks import told_of_the_end
from raypaml.training.nonfinite import DivergedError
from raypaml.training.worker import Worker, build_worker


def restore(worker: Worker) -> None:
    """Restore the newest valid checkpoint; where there is none, load the weights that the run starts from."""
    if worker.store:
        worker.now("fetching checkpoints")
        worker.store.pull_checkpoints()
        worker.store.pull("predictions")
        if worker.held:
            worker.held.merge(worker.store)
    valid, damaged = checkpoint.valid_checkpoints(worker.run_folder / "checkpoints")
    for path in valid:
        worker.saving.verified.note(path)
    if damaged:
        worker.report(Message(f"passed over damaged checkpoints: {', '.join(path.name for path in damaged)}"))
    worker.ranks.barrier()  # all have looked before any saves
    if worker.ranks.rank == 0:
        checkpoint.sweep_unfinished(worker.run_folder / "checkpoints")
    if not valid:
        _begin(worker)
        _note_restart(worker)
        return
    worker.now("loading a checkpoint")
    worker.state, worker.corrections = checkpoint.load_checkpoint(
        valid[-1], worker.model, worker.optimizer, worker.data.splits["train"], worker.average
    )
    worker.calls.load(worker.state.callbacks)
    if worker.ranks.rank == 0:  # a run that was killed after it wrote the checkpoint has not written its records yet
        metrics, index = history_text(worker.state.history), worker.data.splits["train"]
        _write_records(worker.run_folder, metrics, worker.state.skipped, index)
        if worker.store and (warning := _push(worker, worker.store, worker.place)):
            worker.say(warning)
    kept = checkpoint.read_memory(valid[-1])
    worker.scheme_state.restore(kept)
    if not continue_stream(kept, worker.ranks):  # saved by an earlier version, or by another number of workers
        begin_stream(worker.config.run.seed, worker.ranks.rank, worker.state.epoch, worker.state.step)
    _note_restart(worker)
    said = f"continues from {worker.place} with {number_of(worker.ranks.world_size, 'worker')}"
    worker.report(Resumed(said, worker.state.epoch, worker.state.step))


def _note_restart(worker: Worker) -> None:
    """Note on rank 0 what of the workers' time was lost, if they or others have trained past this state before."""
    if worker.held:
        state = worker.state
        again = bool(worker.rolled_back)
        worker.held.restored(state.held_seconds, state.lost_seconds, state.seconds, again=again)


def _begin(worker: Worker) -> None:
    """Load the weights of the run that this one starts from (`--from`), if any."""
    if not worker.config.model.from_run:
        return
    worker.now("loading weights")
    load_weights_of_run(worker.config.model, worker.model)
    if worker.average is not None:
        worker.average.load_state_dict(worker.model.state_dict())


def roll_back(worker: Worker, error: DivergedError) -> Worker:
    """Return a new worker at the last checkpoint; FloatingPointError where this step has failed before."""
    if error.place in worker.rolled_back:
        raise FloatingPointError(f"{error}; again, after going back to the last checkpoint") from None
    worker.report(Message(f"{error}; going back to the last checkpoint"))
    settle_saving(worker)
    ranks = worker.ranks
    ranks.barrier()  # the checkpoint is there for all
    fresh = build_worker(worker.config, worker.data.address, worker.run_folder, ranks.device, worker.report)
    fresh.saving, fresh.calls, fresh.held = worker.saving, worker.calls, worker.held
    fresh.rolled_back = worker.rolled_back | {error.place}
    restore(fresh)
    return fresh


@contextmanager
def saving(current: Callable[[], Worker]) -> Iterator[None]:
    """When the block ends, normally or by an error, commit what is being saved, and tell callbacks of the end."""
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
            if held := current().held:
                held.write()


def settle_saving(worker: Worker) -> None:
    """Wait until this worker's last checkpoint is committed; report its warning, or raise its error."""
    if worker.saving.is_running:
        worker.now("waiting until the last checkpoint is written")
    if warning := worker.saving.wait():
        worker.say(warning)
    worker.calls.tell_checkpoints()


def settle_finished_saving(worker: Worker) -> None:
    """Do what `settle_saving` does, unless that would have to wait."""
    if not worker.saving.is_running:
        settle_saving(worker)


def save_state(worker: Worker) -> None:
    """Begin a checkpoint of all ranks' state, with its records, after the one before is committed; a collective.

    Training waits only until the state is copied; another thread writes it.
    """
    settle_saving(worker)
    worker.now("saving")
    worker.rejections.write(worker.state.epoch, worker.state.step)
    worker.corrections.exchange(worker.ranks)
    streams = {} if worker.config.optim.reproducible else random_streams(worker.ranks)  # it draws nothing
    if worker.ranks.rank == 0:
        worker.state.callbacks |= worker.calls.states()
        if worker.held:
            worker.state.held_seconds, worker.state.lost_seconds = worker.held.look(), worker.held.lost
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
    """Write a checkpoint, then the records, which must not be ahead of it; returns a warning, or "".

    This runs in another thread, which must not read what training changes in the worker.
    """
    folder, verified = worker.run_folder / "checkpoints", worker.saving.verified
    written = write_checkpoint(folder, snapshot)
    verified.note(written)
    checkpoint.retain(folder, verified.is_valid)
    _write_records(worker.run_folder, metrics, skipped, snapshot.index)
    worker.calls.committed.append(written)
    return _push(worker, worker.store, place) if worker.store else ""


def _write_records(folder: Path, metrics: str, skipped: list[tuple[int, int, Reason]], index: Index) -> None:
    """Write the records of a run's epochs and of its skipped samples."""
    write_whole(folder / METRICS_FILE, metrics)
    if skipped:
        write_skipped(folder / SKIPPED, skipped, index)


def share_checkpoints(worker: Worker) -> None:
    """Give every node the checkpoints of rank 0; a store that has not taken all of them yet must do so now."""
    settle_saving(worker)
    if worker.store and worker.ranks.rank == 0:
        worker.store.push_checkpoints()
    worker.ranks.barrier()
    if worker.store and worker.ranks.rank > 0:
        worker.store.pull_checkpoints()
    worker.ranks.barrier()


def _push(worker: Worker, store: Mirror, place: str) -> str:
    """Copy checkpoints and records to the store; returns a warning where it does not answer, else "".

    Training goes on without the store; the next checkpoint copies what is missing.
    """
    try:
        if worker.config.run.history:
            store.push_new(rejections.FOLDER)  # each rank writes its own
        if worker.ranks.rank == 0:
            store.push_checkpoints()
            store.push(METRICS_FILE, SKIPPED, WORKER_TIME, "logs")
    except PermissionError as error:
        raise ValueError(f"storage={worker.config.run.storage}: {error}; give this machine's role the right") from None
    except OSError as error:
        return f"{place}: not in the store yet, training goes on: {error}"
    return ""

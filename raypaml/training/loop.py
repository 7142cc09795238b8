"""The training loop of one worker, from opening the data to predicting the test split. It knows nothing of Ray."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from raypaml.collectives import CLOCK
from raypaml.config import TrainConfig
from raypaml.data.batches import Reader, read
from raypaml.evaluation.predicting import predict_split
from raypaml.evaluation.prediction_plan import EVALUATION_BATCHES
from raypaml.losses.schemes import scheme_of
from raypaml.runs import checkpoint
from raypaml.runs.events import EpochReport, LoopSignal, Message, Report, StepReport
from raypaml.runs.models import tested_checkpoint
from raypaml.runs.skips import check_budget, gather, named, seen_together
from raypaml.training.callbacks import Callback, CallbackHandler
from raypaml.training.early_stopping import early_stop, stopped_by_callback
from raypaml.training.epoch_record import add_up, by_name, epoch_record, hear_callbacks
from raypaml.training.learning_rates import learning_rates
from raypaml.training.nonfinite import DivergedError
from raypaml.training.out_of_memory import as_halved, halving_once, read_halving
from raypaml.training.predict_best import predict_with_best
from raypaml.training.profiling import profiled
from raypaml.training.resume import (
    restore,
    roll_back,
    save_state,
    saving,
    settle_finished_saving,
    settle_saving,
    share_checkpoints,
)
from raypaml.training.step import settle, train_step
from raypaml.training.usage import awaited, peak_memory
from raypaml.training.watch import Beats
from raypaml.training.watchdog import beating
from raypaml.training.worker import READING, Worker, build_worker, drop_features, enter_epoch

REPORT_SECONDS = 1.0
"""About so often do ranks agree on their progress, rather than in every step; a signal is still answered soon."""


def train(
    config: TrainConfig,
    data_folder: Path | str,
    run_folder: Path,
    device: torch.device,
    report: Report,
    splits: Sequence[str] = ("test",),
    beats: Beats | None = None,
    *,
    commit_first: bool = False,
    callbacks: Sequence[Callback] = (),
) -> bool:
    """Train from the newest valid checkpoint of the run, or from the start, and predict the test split.

    Args:
        config: the configuration, checked.
        data_folder: path or address of shards, index and vocabulary.
        run_folder: the folder `<storage>/<run>`, seen by all workers.
        device: the device of this worker; its process group, if any, is torch.distributed's default one.
        report: is called on every rank with events. Its answer on any rank, to stop or to save, holds for all; asked to
            stop when an epoch is reported, they stop at the end of that epoch.
        splits: the splits to predict with the best checkpoint.
        beats: takes the heartbeats of `training.watchdog`, from another thread, every few seconds.
        callbacks: the callbacks of the program, given on every rank and called on rank 0.
        commit_first: whether an epoch is reported only after its checkpoint is written, for a `report` that copies it.

    Returns:
        Whether training finished; False where it was stopped, and continues from there when called again.
    """
    # --- Data, model, optimizer -------------------------------------------------------------------------------
    worker = build_worker(as_halved(config, run_folder), data_folder, run_folder, device, report)
    if halving := read_halving(run_folder):
        report(Message(str(halving)))
    worker.calls = CallbackHandler(callbacks, device, rank=worker.ranks.rank)

    def current() -> Worker:
        return worker

    with beating(current, beats), saving(current), halving_once(current), profiled(worker) as step_done:
        # --- Restore ------------------------------------------------------------------------------------------
        restore(worker)

        # --- Epochs -------------------------------------------------------------------------------------------
        while not _is_trained(worker):
            if not enter_epoch(worker):
                return False
            try:
                finished = _train_epoch(worker, step_done)
            except DivergedError as error:
                worker = roll_back(worker, error)
                continue
            if not finished:
                return False
            _finish_epoch(worker)
            if commit_first:
                settle_saving(worker)
            asked = worker.report(EpochReport(worker.state.history[-1], config.optim.epochs))
            if _any_rank(worker, asked) == LoopSignal.STOP and not _is_trained(worker):
                return False

        if why := early_stop(worker.state.history, config.optim):
            worker.say(why)
        drop_features(worker)
        # --- Test ---------------------------------------------------------------------------------------------
        share_checkpoints(worker)
        best = tested_checkpoint(run_folder)
        checkpoint.load_model(best, worker.model)
        for split in splits:
            if not predict_with_best(worker, split, best):
                return False
        worker.calls.finished = True
    return True


def _is_trained(worker: Worker) -> bool:
    """Whether no further epoch is to be trained; a collective where early stopping decides."""
    optim, state = worker.config.optim, worker.state
    if state.epoch >= optim.epochs or stopped_by_callback(state.history, optim):
        return True
    if not (optim.patience or optim.stop_below):
        return False
    stops = torch.tensor([float(bool(early_stop(state.history, optim)))])
    return bool(worker.ranks.sum(stops).item())  # on different processors their means may differ in the last bit


def _train_epoch(worker: Worker, step_done: Callable[[], None]) -> bool:
    """Train to the end of the epoch; False where asked to stop before, after saving a checkpoint."""
    config, state = worker.config, worker.state
    parts = worker.plan.epoch(state.epoch, worker.ranks.rank, worker.ranks.world_size)
    reader = Reader(
        worker.data.shards,
        worker.data.splits["train"],
        parts,
        full_labels=scheme_of(config.loss.scheme).needs_truth,
        with_truth=True,
        skip_broken=config.data.skip_budget > 0,
        with_images=not worker.features,
    )
    pin = worker.ranks.device.type == "cuda"
    threads = 0 if worker.features else config.data.loader_workers  # there is nothing to decode
    batches = read(reader, start_step=state.step, loader_workers=threads, pin_memory=pin)
    if worker.features:
        batches = worker.features["train"].instead(batches, pin_memory=pin)
    CLOCK.take()  # drop the time of collectives in validation and saving
    began, since = time.monotonic(), 0
    worker.now(READING)
    for batch in awaited(worker, batches):
        worker.now("computing")
        if config.data.skip_budget:
            worker.skipped += batch.skipped
            batch = seen_together(batch, worker.ranks)
        if batch.global_rows:
            train_step(worker, batch)
        worker.calls.tell_steps(but=1)
        step_done()
        state.step += 1
        since += 1
        last = state.step == worker.plan.steps
        save_now = config.run.checkpoint_steps and state.step % config.run.checkpoint_steps == 0
        if since >= worker.report_steps or last or save_now:
            now = time.monotonic()
            signal = _agree(worker, now - began, since)
            began, since = now, 0
            if (save_now or signal) and not last:
                save_state(worker)
            worker.notice |= signal == LoopSignal.SAVE
            if not last:
                _answer_notice(worker)
            if signal == LoopSignal.STOP and not last:
                return False
        worker.now(READING)
    return True


def _agree(worker: Worker, seconds: float, steps: int) -> LoopSignal:
    """Add up what all ranks counted in these steps and seconds, and report it.

    Returns:
        What any rank was asked for in answer.
    """
    state, ranks = worker.state, worker.ranks
    settle(worker)  # before anything of this step is counted, reported or saved
    settle_finished_saving(worker)
    state.seconds += seconds
    times = [seconds, worker.data_seconds, CLOCK.take()]
    sums = ranks.sum(torch.cat([worker.tally, worker.tally.new_tensor(times)])).tolist()
    fresh = by_name(sums)
    worker.tally.zero_()
    worker.data_seconds = 0.0
    worker.report_steps = max(1, int(REPORT_SECONDS * steps * ranks.world_size / fresh["rank_seconds"]))
    worker.scheme_state.exchange(ranks)
    worker.class_counts.exchange(ranks, state)
    _agree_on_skips(worker)
    state.tally = add_up(state.tally, sums)
    totals = by_name(state.tally)
    epochs = worker.config.optim.epochs
    asked = worker.report(
        StepReport(
            epoch=state.epoch,
            step=state.step,
            steps=worker.plan.steps,
            epochs=epochs,
            loss=fresh["loss"] / fresh["samples"] if fresh["samples"] else math.nan,
            rejected=int(totals["rejected"]),
            rejection_rate=fresh["rejected"] / max(fresh["samples"] * len(worker.data.vocabulary), 1),
            learning_rate=learning_rates(worker.optimizer).backbone,
            samples_left=worker.plan.num_samples * (epochs - state.epoch) - int(totals["samples"]),
            images_per_second=fresh["samples"] / seconds,
            data_wait_share=fresh["data_seconds"] / max(fresh["rank_seconds"], 1e-9),
            memory_bytes=peak_memory(ranks.device),
        )
    )
    return _any_rank(worker, asked)


def _any_rank(worker: Worker, asked: LoopSignal | bool) -> LoopSignal:
    """What any rank was asked for; stopping wins over saving."""
    stop, save = worker.ranks.sum(
        torch.tensor([float(asked == signal) for signal in (LoopSignal.STOP, LoopSignal.SAVE)])
    ).tolist()
    return LoopSignal.STOP if stop else LoopSignal.SAVE if save else LoopSignal.NOTHING


def _agree_on_skips(worker: Worker) -> None:
    """Tell all ranks what any has skipped; ValueError where that is more than the budget allows."""
    budget, index, state = worker.config.data.skip_budget, worker.data.splits["train"], worker.state
    if budget:
        fresh = gather(worker.ranks, worker.skipped)
        worker.skipped.clear()
        if fresh:  # sorted, so that the order does not depend on when ranks agree
            state.skipped = sorted([*state.skipped, *((state.epoch, row, reason) for row, reason in fresh)])
        now = [(row, reason) for epoch, row, reason in state.skipped if epoch == state.epoch]
        check_budget(named(now, index), "train", len(index), budget)


def _finish_epoch(worker: Worker) -> None:
    """Validate, make the epoch's record, and begin its checkpoint."""
    state, config = worker.state, worker.config
    worker.now("validating")
    worker.rejections.write(state.epoch, state.step)
    worker.corrections.exchange(worker.ranks)
    worker.scheme_state.close(state.epoch)
    worker.ranks.follow_first(worker.evaluated)
    mine = predict_split(
        worker.evaluated,
        worker.data,
        "validation",
        worker.ranks,
        features=worker.features.get("validation"),
        optim=config.optim,
        lanes=worker.plan.lanes,
        batch_size=worker.plan.global_batch_size * EVALUATION_BATCHES,
        loader_workers=config.data.loader_workers,
        skip_broken=config.data.skip_budget > 0,
        moved=lambda: worker.now("validating"),
    )
    skipped = gather(worker.ranks, mine.skipped)
    index = worker.data.splits["validation"]
    check_budget(named(skipped, index), "validation", len(index), config.data.skip_budget)
    ap = mine.gather(worker.ranks).ap(config.model.alpha, len(worker.data.vocabulary))
    record = epoch_record(worker, ap, len(skipped))
    assert record["expected"] == record["samples"] + record["skipped"], "every sample exactly once per epoch"
    state.history.append(record)
    state.epoch, state.step, state.tally, state.class_counts = state.epoch + 1, 0, [], []
    if worker.calls.given:
        hear_callbacks(worker, record)
    save_state(worker)
    _answer_notice(worker)


def _answer_notice(worker: Worker) -> None:
    """Where saving was asked for before a preemption, wait for the checkpoint and say that it is there."""
    if worker.notice:
        settle_saving(worker)
        worker.say(f"{worker.place}: saved, for a machine is about to be taken away")
        worker.notice = False

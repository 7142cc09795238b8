"""One worker's whole life: data, model, optimizer, restore, epochs, test. Knows nothing of Ray."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from raypaml.config import TrainConfig
from raypaml.data.batches import Reader, read
from raypaml.metrics.average_precision import group_means, mean_ap
from raypaml.training import checkpoint
from raypaml.training.evaluation import (
    EVALUATION_BATCHES,
    check_skipped,
    clear_folder,
    plan_evaluation,
    predict,
    predict_part,
)
from raypaml.training.models import tested_checkpoint
from raypaml.training.skips import check_budget, gather, named, seen_together, write_skipped
from raypaml.training.step import settle, train_step
from raypaml.training.worker import TALLY, Report, Worker, drop_features, enter_epoch, prepare

REPORT_STEPS = 20
"""Steps between two agreements on progress, so that reporting costs no collective per step."""


def train(
    config: TrainConfig,
    data_folder: Path | str,
    run_folder: Path,
    device: torch.device,
    report: Report,
    splits: Sequence[str] = ("test",),
) -> bool:
    """Train from the newest valid checkpoint of the run, or from the start, and predict the test split.

    Args:
        config: checked.
        data_folder: path or address of shards, index and vocabulary.
        run_folder: `<storage>/<run>`, seen by all workers.
        device: of this worker. Its process group, if any, is torch.distributed's default one.
        report: called on every rank with progress; an answer of True on any rank stops all of them, to the record of
            an epoch at its very end.
        splits: what to predict with the best checkpoint.

    Returns:
        Whether training finished, rather than being stopped; a stopped run continues from where it stopped.
    """
    # --- Data, model, optimizer -------------------------------------------------------------------------------
    worker = prepare(config, data_folder, run_folder, device, report)

    # --- Restore ----------------------------------------------------------------------------------------------
    _restore(worker)

    # --- Epochs -----------------------------------------------------------------------------------------------
    while worker.state.epoch < config.optim.epochs:
        enter_epoch(worker)
        if not _train_epoch(worker):
            return False
        stop = _finish_epoch(worker)
        if stop and worker.state.epoch < config.optim.epochs:
            return False
    drop_features(worker)

    # --- Test -------------------------------------------------------------------------------------------------
    checkpoint.load_model(tested_checkpoint(run_folder), worker.model)
    for split in splits:
        _predict(worker, split)
    return True


def _restore(worker: Worker) -> None:
    valid, damaged = checkpoint.valid_checkpoints(worker.run_folder / "checkpoints")
    if damaged:
        worker.report({"event": f"passed over damaged checkpoints: {', '.join(path.name for path in damaged)}"})
    worker.team.barrier()  # nobody may save before all have looked
    if not valid:
        return
    worker.state, worker.corrections = checkpoint.load(
        valid[-1], worker.model, worker.optimizer, worker.data.splits["train"], worker.average
    )
    worker.memory.restore(checkpoint.read_memory(valid[-1]))
    worker.report({"event": f"continues from epoch {worker.state.epoch}, step {worker.state.step}"})


def _train_epoch(worker: Worker) -> bool:
    """Train to the end of the epoch; False if asked to stop before, with a checkpoint saved."""
    config, state = worker.config, worker.state
    parts = worker.plan.epoch(state.epoch, worker.team.rank, worker.team.world_size)
    reader = Reader(
        worker.data.shards,
        worker.data.splits["train"],
        parts,
        full_labels=config.loss.scheme == "full",
        with_truth=True,
        skip_broken=config.data.skip_budget > 0,
        with_images=not worker.features,
    )
    pin = worker.team.device.type == "cuda"
    threads = 0 if worker.features else config.data.loader_workers  # there is nothing to decode
    batches = read(reader, start_step=state.step, loader_workers=threads, pin_memory=pin)
    began = time.monotonic()
    for batch in batches:
        if config.data.skip_budget:
            worker.skipped += batch.skipped
            batch = seen_together(batch, worker.team)
        if batch.global_rows:
            train_step(worker, batch)
        state.step += 1
        last = state.step == worker.plan.steps
        save_now = config.run.checkpoint_steps and state.step % config.run.checkpoint_steps == 0
        if state.step % REPORT_STEPS == 0 or last or save_now:
            now = time.monotonic()
            stop = _agree(worker, now - began)
            began = now
            if (save_now or stop) and not last:
                _save(worker)
            if stop and not last:
                return False
    return True


def _agree(worker: Worker, seconds: float) -> bool:
    """Add up what all ranks counted in these seconds, report it; whether anyone was asked to stop."""
    state = worker.state
    settle(worker)  # before anything of this step is reported or saved
    state.seconds += seconds
    summed = worker.team.sum(worker.tally).tolist()
    worker.tally.zero_()
    worker.memory.exchange(worker.team)
    _agree_on_skips(worker)
    state.tally = [a + b for a, b in zip(state.tally or [0.0] * len(TALLY), summed, strict=True)]
    totals = dict(zip(TALLY, state.tally, strict=True))
    asked = worker.report(
        {
            "epoch": state.epoch,
            "step": state.step,
            "steps": worker.plan.steps,
            "epochs": worker.config.optim.epochs,
            "loss": summed[0] / max(summed[1], 1),
            "rejected": int(totals["rejected"]),
            "samples_left": worker.plan.num_samples * (worker.config.optim.epochs - state.epoch)
            - int(totals["samples"]),
            "images_per_second": summed[1] / seconds,
        }
    )
    return _anyone(worker, asked)


def _anyone(worker: Worker, asked: bool) -> bool:
    return bool(worker.team.sum(torch.tensor([float(asked)])).item())


def _agree_on_skips(worker: Worker) -> None:
    """Make what any rank skipped known to all; ValueError above the budget."""
    budget, index, state = worker.config.data.skip_budget, worker.data.splits["train"], worker.state
    if budget:
        fresh = gather(worker.team, worker.skipped)
        worker.skipped.clear()
        state.skipped += [(state.epoch, row, reason) for row, reason in fresh]
        now = [(row, reason) for epoch, row, reason in state.skipped if epoch == state.epoch]
        check_budget(named(now, index), "train", len(index), budget)


def _finish_epoch(worker: Worker) -> bool:
    """Validate, record, save; whether anyone was asked to stop."""
    state, config = worker.state, worker.config
    worker.rejections.write(state.epoch, state.step)
    worker.corrections.exchange(worker.team)
    worker.memory.close(state.epoch)
    features = worker.features.get("validation")
    mine = predict(worker.evaluated, worker.data, "validation", worker.team, features=features, **_evaluation(worker))
    skipped = gather(worker.team, mine.skipped)
    index = worker.data.splits["validation"]
    check_budget(named(skipped, index), "validation", len(index), config.data.skip_budget)
    ap = mine.gather(worker.team).ap(config.model.alpha, len(worker.data.vocabulary))
    totals = dict(zip(TALLY, state.tally, strict=True))
    rejected, hits, missed = (int(totals[name]) for name in ("rejected", "rejected_missed", "missed"))
    known = worker.data.splits["train"].has_truth
    record: dict[str, Any] = {
        "epoch": state.epoch,
        "loss": totals["loss"] / totals["samples"],
        "expected": worker.plan.num_samples,
        "samples": int(totals["samples"]),
        "skipped": sum(epoch == state.epoch for epoch, _, _ in state.skipped),
        "rejected": rejected,
        "rejected_missed": hits if known else None,
        "missed": missed if known else None,
        "rejection_precision": hits / rejected if known and rejected else None,
        "rejection_recall": hits / missed if known and missed else None,
        "corrected": len(worker.corrections.entries),
        "validation_skipped": len(skipped),
        "validation_mean_ap": mean_ap(ap),
        "validation_groups": group_means(ap, worker.data.vocabulary.class_group),
        "seconds": round(state.seconds, 3),
    }
    if worker.probe is not None:
        before = state.history[-1]["seconds"] if state.history else 0.0
        record["drift"] = worker.probe.measure(worker.evaluated, state.seconds - before)
    assert record["expected"] == record["samples"] + record["skipped"], "every sample exactly once per epoch"
    state.history.append(record)
    state.epoch, state.step, state.tally = state.epoch + 1, 0, []
    _save(worker)
    return _anyone(worker, worker.report({"record": record, "epochs": config.optim.epochs}))


def _evaluation(worker: Worker) -> dict[str, Any]:
    return {
        "lanes": worker.plan.lanes,
        "batch_size": worker.plan.global_batch_size * EVALUATION_BATCHES,
        "loader_workers": worker.config.data.loader_workers,
        "skip_broken": worker.config.data.skip_budget > 0,
    }


def _save(worker: Worker) -> None:
    worker.rejections.write(worker.state.epoch, worker.state.step)
    worker.corrections.exchange(worker.team)
    if worker.team.rank == 0:
        folder = worker.run_folder / "checkpoints"
        index = worker.data.splits["train"]
        checkpoint.save(
            folder,
            worker.state,
            worker.model,
            worker.optimizer,
            worker.corrections,
            index,
            worker.average,
            worker.memory.tensors(),
        )
        checkpoint.retain(folder)
        lines = worker.run_folder / ".metrics.unfinished"
        lines.write_text("".join(json.dumps(record) + "\n" for record in worker.state.history))
        lines.replace(worker.run_folder / "metrics.jsonl")
        if worker.state.skipped:
            write_skipped(worker.run_folder / "skipped.jsonl", worker.state.skipped, index)
    worker.team.barrier()


def _predict(worker: Worker, split: str) -> None:
    """Predict a split with the best checkpoint, every rank some of the parts; those that are there are kept."""
    best = tested_checkpoint(worker.run_folder)
    folder = worker.run_folder / "predictions" / split
    evaluation = plan_evaluation(best, worker.config, worker.data, split, folder)
    if worker.team.rank == 0:  # what an earlier prediction with another checkpoint left
        clear_folder(evaluation, worker.data, replace=True)
    worker.team.barrier()
    unfinished = evaluation.unfinished()
    worker.team.barrier()  # all have looked before anyone writes
    for part in unfinished[worker.team.rank :: worker.team.world_size]:
        predict_part(evaluation, part, worker.model, worker.data, worker.team.device)
    worker.team.barrier()
    check_skipped(evaluation)

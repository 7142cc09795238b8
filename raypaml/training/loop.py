"""One worker's whole life: data, model, optimizer, restore, epochs, test. Knows nothing of Ray."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch

from raypaml.config import TrainConfig
from raypaml.data.batches import Reader, read
from raypaml.metrics.average_precision import group_means, mean_ap
from raypaml.training import checkpoint
from raypaml.training.evaluation import EVALUATION_BATCHES, clear_folder, plan_evaluation, predict, predict_part
from raypaml.training.models import tested_checkpoint
from raypaml.training.step import settle, train_step
from raypaml.training.worker import TALLY, Report, Worker, drop_features, enter_epoch, prepare

REPORT_STEPS = 20
"""Steps between two agreements on progress, so that reporting costs no collective per step."""


def train(config: TrainConfig, data_folder: Path, run_folder: Path, device: torch.device, report: Report) -> bool:
    """Train from the newest valid checkpoint of the run, or from the start, and predict the test split.

    Args:
        config: checked.
        data_folder: shards, index and vocabulary.
        run_folder: `<storage>/<run>`, seen by all workers.
        device: of this worker. Its process group, if any, is torch.distributed's default one.
        report: called on every rank with progress; an answer of True on any rank stops all of them.

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
        _finish_epoch(worker)
    drop_features(worker)

    # --- Test -------------------------------------------------------------------------------------------------
    _test(worker)
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
    worker.report({"event": f"continues from epoch {worker.state.epoch}, step {worker.state.step}"})


def _train_epoch(worker: Worker) -> bool:
    """Train to the end of the epoch; False if asked to stop before, with a checkpoint saved."""
    config, state = worker.config, worker.state
    parts = worker.plan.epoch(state.epoch, worker.team.rank, worker.team.world_size)
    reader = Reader(
        worker.data.path,
        worker.data.splits["train"],
        parts,
        full_labels=config.loss.scheme == "full",
        with_truth=True,
        with_images=not worker.features,
    )
    pin = worker.team.device.type == "cuda"
    processes = 0 if worker.features else config.data.loader_workers  # there is nothing to decode
    batches = read(reader, start_step=state.step, loader_workers=processes, pin_memory=pin)
    began = time.monotonic()
    for batch in batches:
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
    state.tally = [a + b for a, b in zip(state.tally or [0.0] * len(TALLY), summed, strict=True)]
    totals = dict(zip(TALLY, state.tally, strict=True))
    asked = worker.report(
        {
            "epoch": state.epoch,
            "step": state.step,
            "steps": worker.plan.steps,
            "epochs": worker.config.optim.epochs,
            "loss": summed[0] / summed[1],
            "rejected": int(totals["rejected"]),
            "samples_left": worker.plan.num_samples * (worker.config.optim.epochs - state.epoch)
            - int(totals["samples"]),
            "images_per_second": summed[1] / seconds,
        }
    )
    return bool(worker.team.sum(torch.tensor([float(asked)])).item())


def _finish_epoch(worker: Worker) -> None:
    """Validate, record, save."""
    state, config = worker.state, worker.config
    worker.corrections.exchange(worker.team)
    features = worker.features.get("validation")
    mine = predict(worker.evaluated, worker.data, "validation", worker.team, features=features, **_evaluation(worker))
    ap = mine.gather(worker.team).ap(config.model.alpha, len(worker.data.vocabulary))
    totals = dict(zip(TALLY, state.tally, strict=True))
    rejected, hits, missed = (int(totals[name]) for name in ("rejected", "rejected_missed", "missed"))
    known = worker.data.splits["train"].has_truth
    record = {
        "epoch": state.epoch,
        "loss": totals["loss"] / totals["samples"],
        "samples": int(totals["samples"]),
        "rejected": rejected,
        "rejected_missed": hits if known else None,
        "missed": missed if known else None,
        "rejection_precision": hits / rejected if known and rejected else None,
        "rejection_recall": hits / missed if known and missed else None,
        "corrected": len(worker.corrections.entries),
        "validation_mean_ap": mean_ap(ap),
        "validation_groups": group_means(ap, worker.data.vocabulary.class_group),
        "seconds": round(state.seconds, 3),
    }
    assert record["samples"] == worker.plan.num_samples, "every sample exactly once per epoch"
    state.history.append(record)
    state.epoch, state.step, state.tally = state.epoch + 1, 0, []
    _save(worker)
    worker.report({"record": record, "epochs": config.optim.epochs})


def _evaluation(worker: Worker) -> dict[str, int]:
    return {
        "lanes": worker.plan.lanes,
        "batch_size": worker.plan.global_batch_size * EVALUATION_BATCHES,
        "loader_workers": worker.config.data.loader_workers,
    }


def _save(worker: Worker) -> None:
    worker.corrections.exchange(worker.team)
    if worker.team.rank == 0:
        folder = worker.run_folder / "checkpoints"
        index = worker.data.splits["train"]
        checkpoint.save(folder, worker.state, worker.model, worker.optimizer, worker.corrections, index, worker.average)
        checkpoint.retain(folder)
        lines = worker.run_folder / ".metrics.unfinished"
        lines.write_text("".join(json.dumps(record) + "\n" for record in worker.state.history))
        lines.replace(worker.run_folder / "metrics.jsonl")
    worker.team.barrier()


def _test(worker: Worker) -> None:
    """Predict the test split with the best checkpoint, every rank some of the parts; those that are there are kept."""
    best = tested_checkpoint(worker.run_folder)
    checkpoint.load_model(best, worker.model)
    folder = worker.run_folder / "predictions" / "test"
    evaluation = plan_evaluation(best, worker.config, worker.data, "test", folder)
    if worker.team.rank == 0:  # what an earlier test with another checkpoint left
        clear_folder(evaluation, worker.data, replace=True)
    worker.team.barrier()
    unfinished = evaluation.unfinished()
    worker.team.barrier()  # all have looked before anyone writes
    for part in unfinished[worker.team.rank :: worker.team.world_size]:
        predict_part(evaluation, part, worker.model, worker.data, worker.team.device)
    worker.team.barrier()

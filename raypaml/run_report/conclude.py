"""The end of a run: its result and its report, written from what training left in its folder."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import numpy as np

from raypaml.cli import command
from raypaml.data.batches import Reader
from raypaml.data.storage import Location
from raypaml.evaluation.measures import EvaluationOptions, evaluate_set
from raypaml.evaluation.parts import PredictionSet, check_predicted_classes, open_set
from raypaml.evaluation.result_records import ChosenAlphaFigures, RunResult, Summary
from raypaml.evaluation.summary import summary
from raypaml.explanations.comparing import explain_some
from raypaml.files import write_json
from raypaml.run_report.class_rejections import FILE as CLASS_REJECTIONS
from raypaml.run_report.class_rejections import class_rejections, write_class_rejections
from raypaml.run_report.result import run_result
from raypaml.run_report.run_page import write_report
from raypaml.runs.alpha_of_use import ALPHA_FILE, ModelClasses, alpha_choice, model_digest
from raypaml.runs.history import History, read_history
from raypaml.runs.mirror import Mirror
from raypaml.runs.models import tested_checkpoint, tested_model
from raypaml.runs.ranks import one_thread
from raypaml.runs.run_cost import run_cost
from raypaml.runs.run_files import METRICS_FILE, REPORT, RESULT, SKIPPED, WORKER_TIME
from raypaml.runs.run_length import lengths
from raypaml.training.early_stopping import early_stop
from raypaml.training.job import Job
from raypaml.writable import try_folder

SMALL_PIXELS = 96 * 96
"""Maps of images with at most this number of pixels are computed by one thread, which takes about a second for a
hundred images; several threads would wait for each other longer than they compute, especially on a busy machine."""


def conclude_run(job: Job) -> RunResult:
    """Write `result.json` and `report.html` of a trained run; returns the result.

    Raises:
        ValueError: the run was not trained to its end, or predictions of the test split, or a checkpoint, are missing
            or damaged.
    """
    mirror = Mirror.of(job.config.run.storage, job.folder)
    if mirror:
        mirror.pull_checkpoints()
        mirror.pull(METRICS_FILE, SKIPPED, WORKER_TIME, "predictions", "rejected", ALPHA_FILE)
    history = _whole_history(job)
    try_folder(job.folder)
    predictions = open_set(job.folder / "predictions" / "test")
    check_predicted_classes(predictions, job.data.vocabulary, str(job.data.path))
    evaluation = evaluate_set(predictions, job.data.vocabulary, EvaluationOptions(details=True))
    result = run_result(evaluation, job.config, history)
    result["cost"] = run_cost(job.folder, job.config, history)
    if job_lengths := lengths(job.folder):
        result["lengths"] = job_lengths
    validation = job.data.splits["validation"]
    is_complete = validation.num_labels == len(validation) * validation.num_classes
    result["validation_labels"] = "complete" if is_complete else "partial"
    add_chosen_alpha(result, job, predictions)
    rejected = class_rejections(history, job.data.vocabulary)
    model = tested_model(job.folder, job.config.model, len(job.data.vocabulary))
    with _threads(job):
        pairs = explain_some(model, job.data, "test", skip_broken=job.config.data.skip_budget > 0)
        write_report(job, model, evaluation, result, history, rejected, pairs)
    write_class_rejections(job.folder, rejected)
    write_json(job.folder / RESULT, result)
    if mirror:
        mirror.push(REPORT, RESULT, CLASS_REJECTIONS, ALPHA_FILE)
    return result


def _whole_history(job: Job) -> History:
    """Returns the records of a run; ValueError if it was not trained to its end, for a result marks it as finished."""
    epochs, history = job.config.optim.epochs, read_history(job.folder)
    if len(history) < epochs and not early_stop(history, job.config.optim):
        storage = job.folder.parent if Location(job.config.run.storage).is_local else job.config.run.storage
        again = command("train", "--name", job.folder.name, "--storage", storage)
        raise ValueError(
            f"{job.folder}: {len(history)} of {epochs} epochs are trained; continue with: {again}, which then tests "
            "the model and writes the report"
        )
    return history


def _threads(job: Job) -> AbstractContextManager[None]:
    """A context in which maps are computed by one thread if the images are small (SMALL_PIXELS)."""
    height, width, _ = Reader(job.data.shards, job.data.splits["test"], (), skip_broken=True).shape
    return one_thread() if height * width <= SMALL_PIXELS else nullcontext()


def add_chosen_alpha(result: Summary, job: Job, predictions: PredictionSet) -> None:
    """Add the test figures at the alpha chosen on validation for the tested weights, or why it is not used."""
    checkpoint = tested_checkpoint(job.folder)
    choice, unused = alpha_choice(job.folder, model_digest(checkpoint), ModelClasses.of(checkpoint))
    if choice is not None:
        options = EvaluationOptions(alpha=np.asarray(choice.alpha))
        figures = summary(evaluate_set(predictions, job.data.vocabulary, options))
        result["chosen_alpha"] = ChosenAlphaFigures(
            mean_ap=figures["mean_ap"],
            groups=figures["groups"],
            alpha=choice.alpha,
            way=choice.way,
            said=choice.said,
        )
    elif unused:
        result["chosen_alpha"], result["chosen_alpha_unused"] = None, unused

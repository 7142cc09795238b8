"""The end of a run: its result and its report, written from what training left in its folder."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from raypaml.data.batches import Reader
from raypaml.evaluation.measures import Questions, evaluate_set
from raypaml.evaluation.parts import PredictionSet, check_predicted_classes, open_set
from raypaml.evaluation.summary import summary
from raypaml.explanations.comparing import explain_some
from raypaml.files import write_json
from raypaml.run_report.class_rejections import FILE as CLASS_REJECTIONS
from raypaml.run_report.class_rejections import class_rejections, write_class_rejections
from raypaml.run_report.result import run_result
from raypaml.run_report.run_page import write_report
from raypaml.runs.alpha_of_use import ALPHA_FILE, ModelClasses, alpha_choice, model_digest
from raypaml.runs.history import METRICS_FILE, read_history
from raypaml.runs.mirror import Mirror
from raypaml.runs.models import tested_checkpoint, tested_model
from raypaml.runs.ranks import one_thread
from raypaml.runs.run_length import lengths
from raypaml.training.job import Job

SMALL_PIXELS = 96 * 96
"""One thread computes the maps of images of at most so many pixels: a hundred take it about a second."""


def conclude_run(job: Job) -> dict[str, Any]:
    """Write `result.json` and `report.html` of a trained run; returns the result.

    Raises:
        ValueError: predictions of the test split, or a checkpoint, are missing or damaged.
    """
    mirror = Mirror.of(job.config.run.storage, job.folder)
    if mirror:
        mirror.pull_checkpoints()
        mirror.pull(METRICS_FILE, "skipped.jsonl", "predictions", "rejected", ALPHA_FILE)
    predictions = open_set(job.folder / "predictions" / "test")
    check_predicted_classes(predictions, job.data.vocabulary, str(job.data.path))
    history = read_history(job.folder)
    figures = run_result(evaluate_set(predictions, job.data.vocabulary), job.config, history)
    figures |= {"lengths": kept} if (kept := lengths(job.folder)) else {}
    figures |= label_completeness(job) | chosen_figures(job, predictions)
    model = tested_model(job.folder, job.config.model, len(job.data.vocabulary))
    with _threads(job):
        some = explain_some(model, job.data, "test", skip_broken=job.config.data.skip_budget > 0)
        write_report(job.folder, job.config, job.data, model, figures, history, some)
    write_class_rejections(job.folder, class_rejections(history, job.data.vocabulary))
    write_json(job.folder / "result.json", figures)
    if mirror:
        mirror.push("report.html", "result.json", CLASS_REJECTIONS, ALPHA_FILE)
    return figures


def _threads(job: Job) -> AbstractContextManager[None]:
    """One thread for small images: several wait for each other longer than they compute, on a busy machine by far."""
    height, width, _ = Reader(job.data.shards, job.data.splits["test"], (), skip_broken=True).shape
    return one_thread() if height * width <= SMALL_PIXELS else nullcontext()


def label_completeness(job: Job) -> dict[str, Any]:
    """Whether every entry of validation is observed, on which checkpoint and alpha are chosen."""
    validation = job.data.splits["validation"]
    observed = validation.num_labels
    return {"validation_labels": "complete" if observed == len(validation) * validation.num_classes else "partial"}


def chosen_figures(job: Job, predictions: PredictionSet) -> dict[str, Any]:
    """The test figures at the alpha that was chosen on validation for the tested weights; nothing where none was."""
    checkpoint = tested_checkpoint(job.folder)
    choice, unused = alpha_choice(job.folder, model_digest(checkpoint), ModelClasses.of(checkpoint))
    if choice is None:
        return {"chosen_alpha": None, "chosen_alpha_unused": unused} if unused else {}
    found = summary(evaluate_set(predictions, job.data.vocabulary, Questions(alpha=np.asarray(choice.alpha))))
    figures = {name: found[name] for name in ("mean_ap", "groups")}
    return {"chosen_alpha": figures | {"alpha": choice.alpha, "way": choice.way, "said": choice.said}}

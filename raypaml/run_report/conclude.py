"""The end of a run: its result and its report, written from what training left in its folder."""

from __future__ import annotations

from typing import Any

from raypaml.evaluation.measures import evaluate_set
from raypaml.evaluation.parts import check_predicted_classes, open_set
from raypaml.explanations.comparing import explain_some
from raypaml.files import write_json
from raypaml.run_report.class_rejections import FILE as CLASS_REJECTIONS
from raypaml.run_report.class_rejections import class_rejections, write_class_rejections
from raypaml.run_report.result import run_result
from raypaml.run_report.run_page import write_report
from raypaml.runs.mirror import Mirror
from raypaml.runs.models import tested_model
from raypaml.runs.run_folder import read_history
from raypaml.training.job import Job


def conclude_run(job: Job) -> dict[str, Any]:
    """Write `result.json` and `report.html` of a trained run; returns the result.

    Raises:
        ValueError: predictions of the test split, or a checkpoint, are missing or damaged.
    """
    mirror = Mirror.of(job.config.run.storage, job.folder)
    if mirror:
        mirror.pull_checkpoints()
        mirror.pull("metrics.jsonl", "skipped.jsonl", "predictions", "rejected")
    predictions = open_set(job.folder / "predictions" / "test")
    check_predicted_classes(predictions, job.data.vocabulary, str(job.data.path))
    history = read_history(job.folder)
    figures = run_result(evaluate_set(predictions, job.data.vocabulary), job.config, history)
    model = tested_model(job.folder, job.config.model, len(job.data.vocabulary))
    some = explain_some(model, job.data, "test", skip_broken=job.config.data.skip_budget > 0)
    write_report(job.folder, job.config, job.data, model, figures, history, some)
    write_class_rejections(job.folder, class_rejections(history, job.data.vocabulary))
    write_json(job.folder / "result.json", figures)
    if mirror:
        mirror.push("report.html", "result.json", CLASS_REJECTIONS)
    return figures

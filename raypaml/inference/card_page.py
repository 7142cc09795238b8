"""The page beside an export, `model_card.md`: what the model is, takes and gives, how it was trained, and how good."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import jinja2

from raypaml.evaluation.summary import table
from raypaml.inference.classifier import Classifier
from raypaml.inference.export_facts import export_facts
from raypaml.inference.exporting import EXAMPLE
from raypaml.losses.schemes import SCHEMES
from raypaml.reports.tables import percent
from raypaml.runs.alpha_of_use import alpha_text
from raypaml.runs.history import VALIDATION_MEAN_AP

PAGE = "model_card.md"
_TEMPLATE = Path(__file__).with_name("model_card.md.j2")
_NAMED = 100
"""Classes that the page names; more of them stand in `card.json` alone."""
_FILES = {
    "safetensors": {
        "model.safetensors": "the weights; what this page says of classes, pictures and alpha stands in its metadata",
        "card.json": "classes, thresholds, origin and figures, for programs; `raypaml.load` reads both files",
    },
    "onnx": {
        "model.onnx": "the model for onnxruntime and others, with the same metadata",
        EXAMPLE: "an example that runs it without PyTorch",
    },
    "program": {"model.pt2": "the model for `torch.export.load`, with the same facts in its `extra_files`"},
}
"""What each format of `raypaml export` writes."""
_CHOSEN = "Each class has a threshold, a logit, that gave its best F1 on the validation split at this alpha."
_NOT_CHOSEN = "No thresholds were chosen; `raypaml evaluate --choose-alpha` chooses them on the validation split."
_TABLE = {"groups", "mean_ap", "split", "skipped", "classes", "classes_scored", "classes_without_positives"}
_TABLE |= {"convention", "images", "positives", "negatives", "vocabulary", "alpha"}
"""What the figures of a run must hold for their table."""


def card_page(model: Classifier, folder: Path, formats: Sequence[str]) -> str:
    """The page as Markdown, of an export to `folder` in these formats."""
    card, facts = model.card, {name: json.loads(text) for name, text in export_facts(model).items()}
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)  # no HTML
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        facts,
        title=str(card.origin.get("run") or folder.absolute().name),
        files={name: about for one in formats for name, about in _FILES[one].items()},
        folder=folder.name,
        alpha=alpha_text(card.alpha),
        chosen=_CHOSEN if card.thresholds else _NOT_CHOSEN,
        training=list(_training(card.origin, card.backbone)),
        results=_results(card.metrics),
        listed=_listed(card.class_ids, card.names),
    )


def _training(origin: dict[str, Any], backbone: str) -> Iterator[str]:
    """What is known of how the model was trained, a line each; of a model of unknown origin only the backbone."""
    yield f"backbone: {backbone}"
    data, loss, optim = (_section(origin, name) for name in ("data", "loss", "optim"))
    if "data" in data:
        yield f"data: {PurePosixPath(data['data']).name}"
    if "scheme" in loss:
        known = SCHEMES.get(loss["scheme"])  # not one of the user's own, unless imported
        yield f"loss: {loss['scheme']}" + (f" ({known.about.rstrip('.')}; {known.source or 'ours'})" if known else "")
    if "epochs" in optim:
        yield f"epochs: {optim['epochs']}; checkpoint {origin.get('checkpoint')}"


def _section(origin: dict[str, Any], name: str) -> dict[str, Any]:
    """A part of the run's configuration; empty where a card, which may be anybody's, has none."""
    found = origin.get("config", {}).get(name)
    return found if isinstance(found, dict) else {}


def _results(metrics: dict[str, Any]) -> str:
    """The table of the test split, the validation mAP alone, or that nothing is known."""
    if metrics.keys() >= _TABLE:
        return f"At alpha {alpha_text(metrics['alpha'])}, that of training:\n\n{table(metrics)}"
    if VALIDATION_MEAN_AP in metrics:
        return f"mAP on the validation split: {percent(metrics[VALIDATION_MEAN_AP])} percent. There is no test yet."
    return "No figures are known."


def _listed(class_ids: list[str], names: list[str]) -> str:
    known = [name if name == one else f"{name} ({one})" for one, name in zip(class_ids, names, strict=True)]
    rest = len(known) - _NAMED
    return ", ".join(known[:_NAMED]) + (f", and {rest:,} more, in `card.json`" if rest > 0 else "")

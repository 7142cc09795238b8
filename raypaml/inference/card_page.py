"""Writes `model_card.md` of an export: the model, its input and output, its training, and its figures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import cast

from raypaml.evaluation.result_records import RunResult
from raypaml.evaluation.summary import table
from raypaml.inference.classifier import Classifier
from raypaml.inference.export_facts import export_facts
from raypaml.inference.exporting import EXAMPLE
from raypaml.inference.model_card import Card
from raypaml.losses.schemes import SCHEMES
from raypaml.names import markdown_line
from raypaml.reports.pages import fill_template
from raypaml.reports.tables import percent
from raypaml.runs.alpha_of_use import alpha_text
from raypaml.runs.history import VALIDATION_MEAN_AP
from raypaml.runs.run_files import MODEL, MODEL_CARD

PAGE = "model_card.md"
_TEMPLATE = Path(__file__).with_name("model_card.md.j2")
_NAMED = 100
"""Classes that the page names; `card.json` names all of them."""
FORMAT_FILES = {
    "safetensors": {
        MODEL: "the weights; what this page says of classes, pictures and alpha stands in its metadata",
        MODEL_CARD: "classes, thresholds, origin and figures, for programs; `raypaml.load` reads both files",
    },
    "onnx": {
        "model.onnx": "the model for onnxruntime and others, with the same metadata",
        EXAMPLE: "an example that runs it without PyTorch",
    },
    "program": {"model.pt2": "the model for `torch.export.load`, with the same facts in its `extra_files`"},
}
"""The files of each format of `raypaml export`, the model itself first, with a line on each."""
_CHOSEN = "Each class has a threshold, a logit, that gave its best F1 on the validation split at this alpha."
_NOT_CHOSEN = "No thresholds were chosen; `raypaml evaluate --choose-alpha` chooses them on the validation split."
_TABLE = {"groups", "mean_ap", "split", "skipped", "classes", "classes_scored", "classes_without_positives"}
_TABLE |= {"convention", "images", "positives", "negatives", "vocabulary", "alpha"}
"""The figures of a run without which there is no table of them."""


def card_page(model: Classifier, folder: Path, formats: Sequence[str]) -> str:
    """The page, as Markdown, of an export to `folder` in these formats."""
    pairs = zip(model.card.class_ids, model.card.names, strict=True)
    known = [markdown_line(name if name == one else f"{name} ({one})") for one, name in pairs]
    rest = f", and {len(known) - _NAMED:,} more, in `card.json`" if len(known) > _NAMED else ""
    card, facts = model.card, {name: json.loads(text) for name, text in export_facts(model).items()}
    own = {
        "title": markdown_line(str(card.origin.get("run") or folder.absolute().name)),
        "files": {name: about for one in formats for name, about in FORMAT_FILES[one].items()},
        "folder": json.dumps(folder.absolute().name),
        "alpha": alpha_text(card.alpha),  # text in the place of the numbers
        "chosen": _CHOSEN if card.thresholds else _NOT_CHOSEN,
        "training": list(_training(card)),
        "results": _results(card.metrics),
        "listed": ", ".join(known[:_NAMED]) + rest,
    }
    return fill_template(_TEMPLATE, **facts | own)


def _training(card: Card) -> Iterator[str]:
    """What is known about the training of the model, a line each; for a model of unknown origin only the backbone."""
    yield f"backbone: {card.backbone}"
    data, loss, optim = map(card.settings, ("data", "loss", "optim"))
    if "data" in data:
        yield f"data: {markdown_line(PurePosixPath(str(data['data'])).name)}"
    if "scheme" in loss:
        known = SCHEMES.get(str(loss["scheme"]))  # a scheme of the user's own is known only if its module is imported
        source = f" ({known.about.rstrip('.')}; {known.source or 'ours'})" if known else ""
        yield f"loss: {loss['scheme']}{source}"
    if "epochs" in optim:
        checkpoint = f"{card.origin.get('checkpoint')} (trained epochs, then trained steps of the next one)"
        yield f"checkpoint: {checkpoint}, of a run of at most {optim['epochs']} epochs"


def _results(metrics: Mapping[str, object]) -> str:
    """The table of the test split; without a test the validation mAP alone, or a sentence that nothing is known."""
    result = cast("RunResult", metrics)
    if metrics.keys() >= _TABLE:
        return f"At alpha {alpha_text(result['alpha'])}, that of training:\n\n{table(result)}"
    if VALIDATION_MEAN_AP in metrics:
        return f"mAP on the validation split: {percent(result[VALIDATION_MEAN_AP])} percent. It was not tested."
    return "No figures are known."

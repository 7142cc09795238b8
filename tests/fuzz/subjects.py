"""What is fuzzed: for every kind of file a small sound example, and the ways in which raypaml uses it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raypaml.api.run import Run
from raypaml.api.search import Search
from raypaml.config import EARLIER, TrainConfig
from raypaml.data.batches import Reader
from raypaml.data.data_folder import open_folder
from raypaml.data.label_forms import LabelForm
from raypaml.data.tars import scan
from raypaml.evaluation.foreign import PredictionForm, open_predictions
from raypaml.evaluation.measures import evaluate_set
from raypaml.inference.classifier import load
from raypaml.inference.pictures import Picture, read_picture
from raypaml.labels import Vocabulary
from raypaml.preparation.formats.own_labels import TableForm, read_table
from raypaml.preparation.verify_folder import faults_of, indexes_of
from raypaml.runs.alpha_of_use import AlphaChoice, ModelClasses
from raypaml.runs.checkpoint import load_checkpoint, read_memory
from raypaml.runs.mirror import MARKER
from raypaml.runs.models import build_model, tested_checkpoint
from raypaml.runs.run_folder import read_config
from raypaml.runs.weights_of_run import load_weights_of_run
from raypaml.search.spaces import read_spaces
from raypaml.settings import ModelConfig
from tests.fuzz import examples

Use = Callable[[Path], object]
"""Uses the files in a folder as a command does, and returns what comes of it, comparable by `==`."""


@dataclass(frozen=True)
class Subject:
    """A kind of file."""

    files: str
    """Pattern of the files in the example's folder that are damaged, one at a time."""
    make: Callable[[Path], None]
    """Fills an empty folder with the sound example."""
    uses: tuple[Use, ...]
    written: Use | None = None
    """Reads a file that people write independently of raypaml: what the first use returns of other content is that."""
    is_open: bool = False
    """Whether a file may have any content that can be read, such as a picture's pixels."""
    seal: Callable[[Path], None] | None = None
    """Makes the digests right again, as a hostile hand does, so that what is behind them is read."""


# --- Data sets --------------------------------------------------------------------------------------------------------


def as_trained(folder: Path) -> object:
    """Every label, key and pixel as training reads them."""
    data = open_folder(folder)
    digest = hashlib.sha256(repr([data.vocabulary.class_ids, data.vocabulary.names]).encode())
    for index in data.splits.values():
        rows = np.arange(len(index))
        for array in (index.labels(rows), index.truth(rows)):
            digest.update(array.tobytes())
        digest.update(repr([index.keys(rows), [index.boxes(row) for row in rows]]).encode())
        reader = Reader(data.shards, index, ())
        for row in rows:
            digest.update(reader.image(int(row)).tobytes())
    return digest.hexdigest()


def verified(folder: Path) -> object:
    """`raypaml shard verify`, whose faults are its refusal."""
    faults = list(faults_of(folder, indexes_of(folder, None), lambda call, of: (call(*one) for one in of), decode=True))
    if faults:
        raise ValueError(max(faults, key=lambda fault: fault.count("\n")))
    return []


def counted(folder: Path) -> object:
    """The classes, with counts and names."""
    read = open_folder(folder).vocabulary
    return [*zip(read.class_ids, read.names, read.train_positives.tolist(), read.train_negatives.tolist(), strict=True)]


def scanned(folder: Path) -> object:
    """A tar that raypaml did not write."""
    form = LabelForm("json:positive=pos,negative=neg")
    return [(place, {k: list(v) for k, v in labels.items()}) for place, labels in scan(folder / "foreign.tar", form)]


# --- Runs -------------------------------------------------------------------------------------------------------------


def predicted(folder: Path) -> object:
    """Logits of the best checkpoint, or of an export."""
    model = load(folder)
    return model.logits([examples.PIXELS]).tobytes(), model.card.class_ids


def exported(folder: Path) -> object:
    """Logits of an export."""
    return predicted(folder / "export")


def resumed(folder: Path) -> object:
    """Everything with which training goes on."""
    config = read_config(folder / "config.json")
    checkpoint = tested_checkpoint(folder)
    model = build_model(config.model, examples.K)
    optimizer = examples.optimizer_of(model)
    index = open_folder(config.data.data).splits["train"]
    state, corrections = load_checkpoint(checkpoint, model, optimizer, index)
    slots = [value for slot in optimizer.state_dict()["state"].values() for value in slot.values()]
    tensors = [*model.state_dict().values(), *slots, *read_memory(checkpoint).values()]
    bits = [tensor.numpy().tobytes() for tensor in tensors]
    return bits, corrections.entries.tolist(), vars(state)


def started_from(folder: Path) -> object:
    """`--from RUN`."""
    model = build_model(ModelConfig(backbone="small"), examples.K)
    load_weights_of_run(ModelConfig(backbone="small", from_run=str(folder)), model)
    return [tensor.numpy().tobytes() for tensor in model.state_dict().values()]


def settings(folder: Path) -> object:
    """The configuration of a run."""
    return read_config(folder / "config.json").to_dict()


def settings_written(folder: Path) -> object:
    """The settings that JSON states, each of its type, with those of earlier versions where one is not named."""
    content = json.loads((folder / "config.json").read_text())["config"]
    groups = [group for name, group in content.items() if name != "recipe"]
    stated = {name: value for group in groups for name, value in group.items()}
    return TrainConfig(recipe=content["recipe"]).override(EARLIER | stated).to_dict()


def opened_run(folder: Path) -> object:
    """A run as a notebook and the reports see it."""
    run = Run.open(folder, progress=False)
    return run.config.to_dict(), run.records.to_pylist(), run.result, repr(run)


def opened_search(folder: Path) -> object:
    """A search as a notebook and its report see it."""
    search = Search.open(folder / "search", progress=False)
    return search.plan.question, search.trials.to_pylist(), search.result, repr(search)


def choice(folder: Path) -> object:
    """What `evaluate --choose-alpha` has stored."""
    vocabulary = Vocabulary.read(folder / "vocabulary.csv")
    return vars(AlphaChoice.read(folder / "alpha_of_use.json", ModelClasses(vocabulary.digest, examples.K)))


# --- What people write, and predictions -------------------------------------------------------------------------------


def aggregated(folder: Path) -> object:
    """The figures of `raypaml aggregate`."""
    found = evaluate_set(*open_predictions(str(folder), PredictionForm()))
    return found.ap.tobytes(), found.micro, found.tally.tolist(), found.keys.to_pylist(), found.predictions.alpha


def aggregated_others(folder: Path) -> object:
    """The same of a table of another program."""
    form = PredictionForm(vocabulary=str(folder / "vocabulary.csv"), scores="logits")
    (path,) = folder.glob("scores.*")
    found = evaluate_set(*open_predictions(str(path), form))
    return found.ap.tobytes(), found.micro, found.tally.tolist(), found.keys.to_pylist()


def _tabled(path: Path) -> object:
    source = read_table(path, TableForm(separator=" "))
    names = source.classes.class_ids
    return {
        (split, file): sorted(names[k] for k in positive)
        for split, of in source.splits.items()
        for file, positive in zip(of.files, of.positives, strict=True)
    }


def csv_table(folder: Path) -> object:
    """Labels in a CSV."""
    return _tabled(folder / "labels.csv")


def parquet_table(folder: Path) -> object:
    """Labels in Parquet."""
    return _tabled(folder / "labels.parquet")


def spaces(folder: Path) -> object:
    """Search spaces."""
    return read_spaces([folder / "spaces.yaml"], TrainConfig())


def json_spaces(folder: Path) -> object:
    """Search spaces in JSON, which is YAML."""
    return read_spaces([folder / "spaces.json"], TrainConfig())


def pictured(folder: Path) -> object:
    """Pictures of a prediction."""
    return [read_picture(Picture(path.name, str(path)), 32, 32).tobytes() for path in sorted(folder.glob("picture.*"))]


def sealed_checkpoint(folder: Path) -> None:
    """Write the marker of a checkpoint for the files that are there."""
    (checkpoint,) = (folder / "checkpoints").iterdir()
    files = [path for path in checkpoint.iterdir() if path.name != MARKER]
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (checkpoint / MARKER).unlink()
    (checkpoint / MARKER).write_text(json.dumps(digests))


SUBJECTS: dict[str, Subject] = {
    "shards": Subject("*.tar", examples.make_data, (as_trained, verified)),
    "index": Subject("*.arrow", examples.make_data, (as_trained, verified)),
    "vocabulary": Subject("vocabulary.csv", examples.make_data, (counted, as_trained), is_open=True),
    "tars": Subject("foreign.tar", examples.make_tar, (scanned,), is_open=True),
    "checkpoints": Subject("checkpoints/*/*", examples.make_run, (predicted, resumed, started_from)),
    "sealed checkpoints": Subject(
        "checkpoints/*/*.*", examples.make_run, (predicted, resumed, started_from), is_open=True, seal=sealed_checkpoint
    ),
    "predictions": Subject("part-*", examples.make_predictions, (aggregated,)),
    "scores": Subject("scores.*", examples.make_scores, (aggregated_others,), is_open=True),
    "exports": Subject("export/*", examples.make_run, (exported,), is_open=True),
    "configs": Subject("config.json", examples.make_run, (settings, opened_run), settings_written, True),
    "records": Subject("*.json*", examples.make_run, (opened_run, choice), is_open=True),
    "searches": Subject("search/**/*.json*", examples.make_run, (opened_search,), is_open=True),
    "tables": Subject("labels.csv", examples.make_tables, (csv_table,), is_open=True),
    "parquet tables": Subject("labels.parquet", examples.make_tables, (parquet_table,), is_open=True),
    "spaces": Subject("spaces.*", examples.make_spaces, (spaces, json_spaces), is_open=True),
    "pictures": Subject("picture.*", examples.make_pictures, (pictured,), is_open=True),
}
"""Every kind of file that raypaml reads, by name."""

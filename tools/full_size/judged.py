"""What the truth says of runs: their rejections, their mAP with verified and with all labels, and their audits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raypaml.auditing.audit_folder import CANDIDATE_TABLE
from raypaml.config import TrainConfig
from raypaml.data.index import Index
from raypaml.evaluation.measures import Evaluation, evaluate_set
from raypaml.evaluation.parts import PredictionSet, open_set, read_vocabulary
from raypaml.labels import FloatArray, IntArray, Vocabulary, each_once
from raypaml.losses.schemes import scheme_of
from raypaml.runs.run_files import CONFIG, RESULT
from raypaml.runs.run_folder import check_trained_classes, read_config
from raypaml.search.search_records import SEARCH_FILE
from raypaml.training.rejections import read_epochs
from tools.full_size.labels import within
from tools.full_size.phases import GROUP_AUDITS
from tools.full_size.true_labels import SplitTruth, keyed_rows, shares


@dataclass(frozen=True)
class JudgedRun:
    """A training run of a rehearsal."""

    name: str
    """The name of its folder; that of a trial follows the name of its search."""
    folder: Path
    config: TrainConfig

    @property
    def no_rejections(self) -> str:
        """Why nothing can be said of its rejections, in words; empty where something can."""
        scheme = scheme_of(self.config.loss.scheme)
        if not scheme.rejects_by:
            return f"scheme {scheme.name} rejects nothing"
        if any((self.folder / "rejected").glob("*.parquet")):
            return ""
        return "nothing was rejected" if self.config.run.history else "trained without --history"


def runs_of(out: Path, vocabulary: Vocabulary) -> tuple[list[JudgedRun], list[str]]:
    """Returns the runs of a rehearsal and the trials of its searches, and in words what is no whole run.

    Raises:
        ValueError: there is none, or one was trained with other classes.
    """
    folders = sorted(path for path in (out / "runs").glob("*") if path.is_dir())
    named = [(path.name, path) for path in folders if not (path / SEARCH_FILE).is_file()]
    for search in (path for path in folders if (path / SEARCH_FILE).is_file()):
        trials = sorted(path for path in (search / "trials").glob("*") if path.is_dir())
        named += [(f"{search.name}: {path.name}", path) for path in trials]
    runs = [JudgedRun(name, path, read_config(path / CONFIG)) for name, path in named if (path / CONFIG).is_file()]
    if not runs:
        raise ValueError(f"{out / 'runs'}: no run; the phases of tools/rehearsal.py that train make them")
    for run in runs:
        check_trained_classes(run.folder, vocabulary.digest, str(out / "data"))
    said = [f"{name}: no {CONFIG}, so that it is no run" for name, path in named if not (path / CONFIG).is_file()]
    said += [f"{run.name}: not finished" for run in runs if not (run.folder / RESULT).is_file()]
    return runs, said


@dataclass(frozen=True, eq=False)
class Rejected:
    """Entries that a run rejected or corrected; every field is [G1 .. G5, All]."""

    epochs: str
    """Number of the epoch, from 1, or `all` for all that was rejected in any of them."""
    count: IntArray
    precision: FloatArray
    """Share of missed positives among them, 0..1; NaN where there are none."""
    recall: FloatArray
    """Share of all missed positives that are among them, 0..1."""


def rejections_of(run: Path, truth: SplitTruth) -> Iterator[Rejected]:
    """Yields what each epoch rejected, and then what all epochs together did, each entry once."""
    ever, epochs, missed = np.zeros(0, np.int64), 0, truth.by_group(truth.missed)
    for epoch, entries in read_epochs(run, truth.index):
        yield _rejected(str(epoch + 1), entries, truth, missed)
        ever, epochs = each_once(np.r_[ever, entries]), epochs + 1
    if epochs > 1:
        yield _rejected("all", ever, truth, missed)


def _rejected(epochs: str, entries: IntArray, truth: SplitTruth, missed: IntArray) -> Rejected:
    count, hits = truth.by_group(entries), truth.by_group(entries[truth.is_missed(entries)])
    return Rejected(epochs, count, shares(hits, count), shares(hits, missed))


def evaluated(run: JudgedRun, truth: SplitTruth) -> tuple[Evaluation | None, Evaluation | None]:
    """Returns a run's evaluation with the verified labels of the test split, and with all that is true.

    Either is None where the run has not predicted what it needs.
    """
    folder = run.folder / "predictions"
    verified = _evaluation(folder / "test", None)
    return verified, _evaluation(folder / "test-unobserved", truth)


def _evaluation(folder: Path, truth: SplitTruth | None) -> Evaluation | None:
    if not any(folder.glob("part-*.parquet")):
        return None
    predictions = open_set(folder)
    vocabulary = read_vocabulary(folder, predictions)
    return evaluate_set(with_truth(predictions, truth) if truth else predictions, vocabulary)


def with_truth(predictions: PredictionSet, truth: SplitTruth) -> PredictionSet:
    """Returns predictions of every entry with what is true in the place of the verified labels.

    Raises:
        ValueError: they are not of every entry.
    """
    images = (predictions.samples or 0) - len(predictions.skipped)
    if predictions.rows != images * predictions.num_classes:
        raise ValueError(
            f"{predictions.where}: {predictions.rows:,} entries of {images:,} images and {predictions.num_classes:,} "
            "classes; predict them all with raypaml evaluate --unobserved"
        )
    true, index = truth.true_cells, truth.index

    def batches() -> Iterator[tuple[int, pa.Table]]:
        for part, rows in predictions.batches():
            row = keyed_rows(index, rows["key"].combine_chunks())
            positive = within(row * index.num_classes + rows["class"].to_numpy(), true)
            yield part, rows.set_column(rows.schema.get_field_index("positive"), "positive", pa.array(positive))

    return dataclasses.replace(predictions, batches=batches)


@dataclass(frozen=True, eq=False)
class AuditList:
    """The entries of an audit's list, the likeliest first."""

    entries: IntArray
    scores: FloatArray

    @property
    def by_score(self) -> IntArray:
        """The same entries, the highest score of the model first."""
        return self.entries[np.argsort(-self.scores, kind="stable")]


def audits_of(run: Path, index: Index, vocabulary: Vocabulary) -> dict[str, AuditList | None]:
    """Returns the lists of a run's audits, by the class group that they are restricted to, "All" for the first."""
    names = {"All": "audit", **GROUP_AUDITS}
    return {group: audit_of(run, index, vocabulary, name) for group, name in names.items()}


def audit_of(run: Path, index: Index, vocabulary: Vocabulary, name: str = "audit") -> AuditList | None:
    """Returns the list of the audit in a folder of this name in a run's folder; None where there is none."""
    path = run / name / CANDIDATE_TABLE
    if not path.is_file():
        return None
    table = pq.read_table(path, columns=["rank", "key", "class_id", "score"]).sort_by("rank")
    rows = keyed_rows(index, table["key"].combine_chunks())
    columns = np.array([vocabulary.index_of[name] for name in table["class_id"].to_pylist()], np.int64)
    return AuditList(rows * index.num_classes + columns, table["score"].to_numpy())

"""Ratios that do not exist, such as a recall where nothing was missed: a dash and a word, never an error or a guess."""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import raypaml
from raypaml.api.records import figures_text, records_table
from raypaml.data.data_folder import open_folder
from raypaml.data.shards import Sample, write_dataset
from raypaml.evaluation.aggregation import Aggregate, difference
from raypaml.evaluation.choosing import choice_text, choose_alpha
from raypaml.evaluation.measures import EvaluationOptions, evaluate_set
from raypaml.evaluation.parts import open_set, read_part
from raypaml.recipes import recipe
from raypaml.reports.progress import Display
from raypaml.reports.tables import figure, percent
from raypaml.run_report.conclude import conclude_run
from raypaml.runs.events import EpochReport
from raypaml.runs.history import best_epoch, rejection_quality
from raypaml.search.suggestion import suggest
from tests.conftest import train_here
from tests.test_reports import HISTORY, STEP, USAGE, record

NAN = math.nan
CLASSES = ("cat", "dog")


def test_a_number_that_does_not_exist_is_a_dash() -> None:
    assert [figure(value) for value in (None, NAN, 1.234)] == ["–", "–", "1.23"]
    assert [percent(value) for value in (None, NAN, 0.8123, 0.0)] == ["–", "–", "81.23", "0.00"]
    assert [percent(value, "+.1f") for value in (NAN, 0.02, -0.02)] == ["–", "+2.0", "-2.0"]


def test_there_is_no_recall_where_nothing_was_missed() -> None:
    missed_nothing = [record(0), record(1, 20, 0) | {"missed": 0}]
    assert rejection_quality(missed_nothing) == {"recall": None, "precision": 0.0}
    corrected = [record(0), record(1, 20, 0) | {"missed": 0, "corrected": 20}]
    assert rejection_quality(corrected) == {"recall": None, "precision": 0.0}


def test_the_best_epoch_is_that_of_highest_score_if_any_has_one() -> None:
    scores = [{"validation_mean_ap": score} for score in (NAN, 0.2, 0.3, 0.3, NAN)]
    assert best_epoch(scores) == 2  # type: ignore[arg-type]
    assert best_epoch(scores[:1]) is None  # type: ignore[arg-type]
    assert best_epoch([]) is None


def test_progress_says_what_is_not_known() -> None:
    said = io.StringIO()
    nothing = {
        "loss": NAN,
        "validation_mean_ap": NAN,
        "rejected": 4,
        "rejection_precision": 0.0,
        "rejection_recall": None,
    }
    with Display(Console(file=said, width=200)) as display:
        display.update(EpochReport(HISTORY[1] | USAGE | nothing, 3))  # type: ignore[arg-type]
        display._last_line = -100.0
        display.update(replace(STEP, loss=NAN, rejected=0, images_per_second=0.0))
    epoch, step = said.getvalue().strip().split("\n")
    assert "loss –  rejected 4 (0% of them missed positives, no positive was missed)  validation mAP –" in epoch
    assert (
        "loss –  rejected 0  validation mAP –  0 images/s, 25% waiting for data, 1.50 GB  time left not known" in step
    )


def test_a_run_without_a_validation_map_says_so() -> None:
    history = [record(0) | {"validation_mean_ap": NAN}, record(1) | {"validation_mean_ap": 0.25}]
    told = figures_text(recipe("digits"), records_table(history), None)  # type: ignore[arg-type]
    assert told.endswith("2 of 18 epochs, validation mAP 25.00 at best")
    told = figures_text(recipe("digits"), records_table(history[:1]), {"mean_ap": NAN})  # type: ignore[arg-type,typeddict-item]
    assert told.endswith("validation mAP – at best, test mAP –")


# --- A whole run in which every ratio is undefined --------------------------------------------------------------------


def _samples(split: str, count: int, *, labelled: bool) -> Iterator[Sample]:
    """Images of both classes; of train the positives alone are observed, so that nothing is missed."""
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(buffer := io.BytesIO(), "JPEG")
        positive = (CLASSES[number % 2],) if labelled else ()
        truth = positive if split == "train" else None
        yield Sample(key=f"{split}{number}", image=buffer.getvalue(), positive=positive, negative=(), truth=truth)


@pytest.fixture(scope="module")
def empty_run(tmp_path_factory: pytest.TempPathFactory) -> raypaml.Run:
    """A run on data where no positive was missed, and no label of validation and test is observed."""
    folder = tmp_path_factory.mktemp("nothing")
    (folder / "data").mkdir()
    splits = {split: _samples(split, 4, labelled=split == "train") for split in ("train", "validation", "test")}
    write_dataset(folder / "data", splits, CLASSES, CLASSES)
    values = {"data": str(folder / "data"), "storage": str(folder), "name": "run", "workers": 1, "epochs": 2}
    values |= {"warmup_epochs": 1, "delta_rel": 50.0, "global_batch_size": 4, "lanes": 4}
    job = train_here(recipe("digits").override(values))
    conclude_run(job)
    return raypaml.Run.open(job.folder, progress=False)


def test_a_run_in_which_nothing_was_missed_and_nothing_is_judged_has_its_report(empty_run: raypaml.Run) -> None:
    records = empty_run.records.to_pylist()
    assert [(row["rejected"], row["missed"], row["rejection_recall"]) for row in records] == [
        (0, 0, None),
        (4, 0, None),
    ]
    assert records[1]["rejection_precision"] == 0.0
    result = empty_run.result
    assert result is not None
    assert math.isnan(result["mean_ap"])
    assert (result["best_epoch"], result["classes_scored"], result["images"]) == (1, 0, 0)
    page = (empty_run.folder / "report.html").read_text()
    assert "The tested checkpoint is that after the last epoch, because no epoch has a validation mAP" in page
    assert "no class has an observed label, so that there is no mAP" in page
    assert ">nan" not in page
    assert empty_run.best_checkpoint.name == "0002-000000"


def test_the_maps_of_a_split_without_labels_are_explained(empty_run: raypaml.Run) -> None:
    explained = empty_run.explain()
    assert explained.figures["pairs"] == {"positive": 0, "negative": 0}
    assert explained.figures["rejection"] == {"run": {"recall": None, "precision": 0.0}}
    assert explained.pairs.num_rows == 0
    page = explained.page.read_text()
    assert "<code>run</code> no positive was missed,\n0.0 % of the rejected entries" in page
    assert ">nan" not in page
    against = empty_run.explain(against=empty_run.path, out=empty_run.folder / "against")
    assert "rank_correlation" not in against.figures
    assert "There is nothing to compare with <code>run</code>" in against.page.read_text()


def test_predictions_without_an_observed_label_are_evaluated(empty_run: raypaml.Run) -> None:
    folder, vocabulary = empty_run.folder / "predictions" / "test", open_folder(empty_run.config.data.data).vocabulary
    options = EvaluationOptions(replicates=3, alphas=(1.0, 2.0), threshold=0.5, recall=0.5)
    runs = {name: evaluate_set(open_set(folder), vocabulary, options) for name in "ab"}
    aggregate = Aggregate.of(runs)
    text = aggregate.text()
    assert "nan" not in text.replace("unnamed", "")
    assert "| paper" in text
    assert "Expected calibration error over observed entries: – %" in text
    assert difference(aggregate.figures["difference"]).count("+") == 0
    part = read_part(next(folder.glob("*.parquet")))
    choice = choose_alpha(open_set(folder), vocabulary, part, "0002-000000")
    assert (choice.alpha, choice.thresholds, choice.observed_share) == (5.0, None, 0.0)
    assert "No thresholds: validation has no positives" in choice_text(choice, vocabulary)


def test_a_search_has_nothing_to_judge_trials_by(empty_run: raypaml.Run) -> None:
    with pytest.raises(ValueError, match=r"no label of the validation split is observed, so that no trial has"):
        raypaml.Search.run(empty_run.config, search="alpha=1:10", trials=2, progress=False, storage=str(empty_run.path))


def test_a_split_of_which_no_image_can_be_read_is_refused_before_training(tmp_path: Path) -> None:
    splits = {split: list(_samples(split, 4, labelled=True)) for split in ("train", "validation", "test")}
    splits["test"] = [replace(sample, image=b"\xff\xd8 no picture") for sample in splits["test"]]
    (tmp_path / "data").mkdir()
    write_dataset(tmp_path / "data", splits, CLASSES, CLASSES)
    with pytest.raises(raypaml.UserError, match=r"test.arrow: none of the 4 images can be read"):
        raypaml.Run.train(
            "digits", data=tmp_path / "data", storage=tmp_path, name="r", workers=1, skip_budget=0.5, progress=False
        )
    assert not (tmp_path / "r").exists()


def test_a_run_without_an_epoch_has_no_records(empty_run: raypaml.Run, tmp_path: Path) -> None:
    shutil.copy(empty_run.folder / "config.json", tmp_path)
    run = raypaml.Run.open(tmp_path, progress=False)
    assert run.records.num_rows == 0
    with pytest.raises(raypaml.UserError, match="no valid checkpoint; train the run again"):
        run.audit()


def test_delta_rel_is_not_suggested_where_train_is_labelled_wholly(tmp_path: Path) -> None:
    def samples(positive: tuple[str, ...]) -> list[Sample]:
        image = next(_samples("train", 1, labelled=True)).image
        negative = tuple(set(CLASSES) - set(positive))
        return [Sample(key="a", image=image, positive=positive, negative=negative)]

    splits = {"train": samples(CLASSES[:1]), "validation": samples(CLASSES), "test": samples(CLASSES)}
    write_dataset(tmp_path, splits, CLASSES, CLASSES)
    data = open_folder(tmp_path)
    with pytest.raises(ValueError, match="every entry of train is observed, so that no positive can be missing"):
        suggest(data.splits["train"], data.splits["validation"], recipe("digits"))

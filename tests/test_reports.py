"""What a person sees: the table, the progress lines, the figures."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from rich.console import Console

import raypaml
from raypaml.data.data_folder import open_folder
from raypaml.data.plan import Plan
from raypaml.evaluation.measures import evaluate_set
from raypaml.evaluation.parts import PredictionSet
from raypaml.evaluation.summary import table
from raypaml.explanations.comparing import explain_steps
from raypaml.labels import Vocabulary
from raypaml.recipes import recipe
from raypaml.reports.figures import missed_positives
from raypaml.reports.pages import fill_template
from raypaml.reports.progress import Display, progress_console
from raypaml.run_report import conclude
from raypaml.run_report.class_rejections import class_rejections, write_class_rejections
from raypaml.run_report.result import run_result
from raypaml.run_report.run_figures import groups, rejections
from raypaml.run_report.run_page import usage_by_epoch
from raypaml.run_report.training_figures import training_curves
from raypaml.runs import models as run_models
from raypaml.runs.events import Activity, EpochReport, Message, StepReport
from raypaml.runs.history import read_history, rejection_quality
from raypaml.runs.run_folder import stored_config
from raypaml.training.job import Job


def record(epoch: int, rejected: int = 0, hits: int | None = 0) -> dict[str, Any]:
    known = hits is not None
    return {
        "epoch": epoch,
        "loss": 0.5 / (epoch + 1),
        "rejected": rejected,
        "rejected_missed": hits,
        "missed": 40 if known else None,
        "corrected": 0,
        "rejection_precision": hits / rejected if known and rejected else None,
        "rejection_recall": hits / 40 if known else None,
        "validation_mean_ap": 0.1 * (epoch + 1),
        "samples": 122,
        "seconds": 61.0 * (epoch + 1),
    }


USAGE = {"epoch_seconds": 61.0, "images_per_second": 1234.0, "data_wait_share": 0.25, "collective_share": 0.125}
USAGE |= {"peak_memory_bytes": 2_500_000_000, "model_flop_utilisation": None}


HISTORY = [record(0), record(1, 20, 15), record(2, 40, 10)]


@pytest.fixture
def figures() -> dict[str, Any]:
    """Ten classes: 8 has no observed label, 9 no positive; the others are ranked perfectly or upside down."""
    ids = tuple(f"c{k}" for k in range(10))
    counts = np.arange(10)
    vocabulary = Vocabulary(class_ids=ids, names=ids, train_positives=counts, train_negatives=counts)
    classes = np.repeat([0, 1, 2, 3, 4, 5, 6, 7, 9], 2)
    positive = np.tile([True, False], 9) & (classes != 9)
    up = np.where(classes % 2 == 0, 1.0, -1.0) * np.where(positive, 1, 0)
    columns = {
        "key": ["a", "b"] * 9,
        "class": pa.array(classes, pa.int32()),
        "positive": positive,
        "P": pa.array(up.clip(0), pa.float32()),
        "N": pa.array(up.clip(max=0), pa.float32()),
    }
    predictions = PredictionSet(
        where="here",
        split="test",
        vocabulary=vocabulary.digest,
        num_classes=10,
        samples=2,
        alpha=5.0,
        probabilities=False,
        rows=18,
        batches=lambda: iter([(0, pa.table(columns))]),
    )
    return run_result(evaluate_set(predictions, vocabulary), recipe("digits"), HISTORY)


def test_result_counts_what_it_scores_and_skips(figures: dict[str, Any]) -> None:
    assert (figures["classes"], figures["classes_scored"], figures["classes_without_positives"]) == (10, 9, 1)
    assert figures["mean_ap"] == pytest.approx((4 * 1.0 + 4 * 0.5 + 0.0) / 9)
    assert figures["groups"] == pytest.approx({"G1": 0.75, "G2": 0.75, "G3": 0.75, "G4": 0.75, "G5": 0.0})
    assert (figures["best_epoch"], figures["validation_mean_ap"]) == (2, pytest.approx(0.3))


def test_table_is_markdown_and_says_its_convention(figures: dict[str, Any]) -> None:
    head, rule, row, _, caption = table(figures).splitlines()
    assert head.split() == ["|", "G1", "|", "G2", "|", "G3", "|", "G4", "|", "G5", "|", "All", "|"]
    assert set(rule) == set("| -:")
    assert row.split() == ["|", "75.00", "|", "75.00", "|", "75.00", "|", "75.00", "|", "0.00", "|", "66.67", "|"]
    assert "9 of 10 classes scored (1 without observed labels skipped, 1 without positives count 0" in caption
    assert "convention 'paper'" in caption


STEP = StepReport(
    epoch=1,
    epochs=3,
    step=20,
    steps=100,
    loss=0.25,
    rejected=1234,
    rejection_rate=0.0,
    learning_rate=0.1,
    samples_left=7200,
    images_per_second=100.0,
    data_wait_share=0.25,
    memory_bytes=1_500_000_000,
)


def test_the_epoch_line_says_what_the_comparison_of_maps_cost() -> None:
    said = io.StringIO()
    with Display(Console(file=said, width=200)) as display:
        display.update(EpochReport(HISTORY[1] | USAGE | {"drift": {"share_of_epoch": 0.0231}}, 3))
    assert "comparing maps with the reference took 2.3% of the epoch" in said.getvalue()


ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
STAMP = r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d  "


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_shows_everything_once(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raypaml.reports.progress.PLAIN_SECONDS", -1.0)
    said = io.StringIO()
    with Display(Console(file=said, force_terminal=terminal, width=300)) as display:
        display.update(EpochReport(HISTORY[1] | USAGE, 3))
        display.update(STEP)
        display.update(Message("continues from epoch 2, step 3"))
    text = ESCAPES.sub("", said.getvalue())
    for shown in ("epoch 2/3", "loss 0.2500", "rejected 1,234", "1:12 of training left", "validation mAP 20.00"):
        assert shown in text, shown
    assert "100 images/s, 25% waiting for data, 1.50 GB" in text
    assert "rejected 20 (75% of them missed positives, 38% of all missed)" in text
    assert "1:01 (2:02 in all)  1,234 images/s, 25% waiting for data, 12% in collectives, 2.50 GB at most" in text
    assert "continues from epoch 2, step 3" in text
    assert len(re.findall(STAMP, text)) == (0 if terminal else 3)


def test_the_time_left_is_of_the_whole_run_with_its_validations(monkeypatch: pytest.MonkeyPatch) -> None:
    now, said = [100.0], io.StringIO()
    monkeypatch.setattr("raypaml.reports.progress.time.monotonic", lambda: now[0])
    with Display(Console(file=said, width=300)) as display:
        display.update(replace(STEP, epoch=0, step=100))
        now[0] += 30.0  # of validation
        display.update(EpochReport(HISTORY[0] | USAGE, 3))
        now[0] += 20.0
        display.update(STEP)
    assert "  2:12 left" in said.getvalue()  # 7200 images at 100 a second, and two validations


def test_nothing_wraps_on_a_terminal_of_eighty_columns() -> None:
    said = io.StringIO()
    busy = replace(STEP, rejected=123_456_789, samples_left=10**9, images_per_second=12_345.0, epochs=1000, steps=10**6)
    drift = {"drift": {"share_of_epoch": 0.0231}}
    with Display(Console(file=said, force_terminal=True, width=80)) as display:
        display.update(Activity("features of validation: " + 200 * "long "))
        display._progress.refresh()
        display.update(EpochReport(HISTORY[2] | USAGE | drift | {"rejected": 123_456_789}, 1000))
        display.update(busy)
        display._progress.refresh()
    lines = re.split(r"[\r\n]+", ESCAPES.sub("", said.getvalue()))
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for shown in ("validation mAP 30.00", "25% waiting for data", "1.50 GB", ":04 of training left", "long lo", "…"):
        assert shown in text, shown


def test_no_color_is_kept_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    said = io.StringIO()
    monkeypatch.setattr("sys.stderr", said)
    console = progress_console()
    console._force_terminal = True
    with Display(console) as display:
        display.update(STEP)
        display._progress.refresh()
    assert "loss 0.2500" in said.getvalue()
    assert not re.search(r"\x1b\[[0-9;]*(3[0-7]|38;|4[0-7]|9[0-7])[0-9;]*m", said.getvalue())


def test_the_report_has_the_seconds_of_each_epoch_also_of_earlier_versions_records() -> None:
    old, new = usage_by_epoch([HISTORY[0], HISTORY[1] | USAGE | {"epoch_seconds": 60.0}])
    assert (old["epoch_seconds"], old["images_per_second"], old["data_wait_share"]) == (61.0, 2.0, None)
    assert (new["epoch_seconds"], new["images_per_second"], new["data_wait_share"]) == (60.0, 1234.0, 0.25)


@pytest.mark.parametrize("known", [True, False])
def test_figures_are_svg_and_the_same_bytes_twice(known: bool, figures: dict[str, Any]) -> None:
    history = HISTORY if known else [record(n, 10 * n, None) for n in range(3)]
    for draw in (lambda: training_curves(history, 2), lambda: rejections(history), lambda: groups(figures)):
        assert draw().startswith('<figure class="plot">')
        assert draw() == draw()
    assert ("recall" in rejections(history)) == known


def test_the_recall_of_an_epoch_in_which_nothing_was_missed_is_not_drawn() -> None:
    nothing, zero = (HISTORY[2] | {"missed": 0, "rejection_recall": recall} for recall in (None, 0.0))
    assert rejections([*HISTORY[:2], nothing]) != rejections([*HISTORY[:2], zero])


def test_rejections_are_judged_over_all_epochs_that_reject() -> None:
    assert rejection_quality(HISTORY) == pytest.approx({"recall": 25 / 80, "precision": 25 / 60})
    kept = [record(0), record(1, 20, 10) | {"corrected": 20}, record(2, 20, 15) | {"missed": 30, "corrected": 40}]
    assert rejection_quality(kept) == pytest.approx(
        {"recall": 25 / 40, "precision": 25 / 40}
    )  # LL-Cp: corrected for good
    assert rejection_quality([record(0), record(1)]) == {}
    assert rejection_quality([record(0, 0, None), record(1, 20, None)]) == {}


def by_class(rejected: list[int], hits: list[int] | None, missed: list[int] | None, classes: list[int]) -> Any:
    columns = {"class": classes, "rejected": rejected, "rejected_missed": hits, "missed": missed}
    return {"rejections_by_class": columns}


def test_rejections_by_class_are_summed_over_epochs_and_judged(tmp_path: Path) -> None:
    vocabulary = Vocabulary(
        class_ids=("/a", "/b", "/c"),
        names=("A", "B", "C"),
        train_positives=np.ones(3, int),
        train_negatives=np.ones(3, int),
    )
    history = [
        record(0),
        record(1, 20, 15) | by_class([5, 15], [0, 15], [10, 30], [0, 2]),
        record(2, 40, 10) | by_class([10, 30], [5, 5], [10, 30], [0, 2]),
    ]
    write_class_rejections(tmp_path, class_rejections(history, vocabulary))
    assert (tmp_path / "rejections.csv").read_text().split() == [
        "class,name,rejected,share,rejected_missed,missed,precision,recall",
        "/c,C,45,0.7500,20,60,0.4444,0.3333",
        "/a,A,15,0.2500,5,20,0.3333,0.2500",
    ]
    kept = [each | {"corrected": 20} for each in history]  # LL-Cp: recall is of what was missed before the first
    assert [row.recall for row in class_rejections(kept, vocabulary)] == [20 / 30, 5 / 10]
    unknown = [record(0, 0, None), record(1, 20, None) | by_class([20], None, None, [1])]
    write_class_rejections(tmp_path, class_rejections(unknown, vocabulary))
    assert (tmp_path / "rejections.csv").read_text().split()[1:] == ["/b,B,20,1.0000,,,,"]
    assert class_rejections(HISTORY, vocabulary) == []  # of an earlier version
    write_class_rejections(tmp_path, [])
    assert not (tmp_path / "rejections.csv").exists()


def test_several_runs_stand_in_one_figure_of_missed_positives(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("raypaml.reports.figures.plots", lambda *axes: drawn.append(axes))
    other = [record(0), record(1, 20, 5), record(2, 40, 30)]
    missed_positives({"two seeds": [HISTORY, other], "one": [HISTORY]})
    counts, precision, recall = drawn[0]
    lines = {line.get_label(): line.get_xydata().tolist() for line in counts.lines}
    assert lines == {"two seeds": [[1, 0], [2, 10], [3, 20]], "one": [[1, 0], [2, 15], [3, 10]]}
    assert precision.lines[0].get_xydata().tolist() == [[2, 50.0], [3, 50.0]]  # nothing rejected yet: no precision
    assert recall.lines[1].get_xydata().tolist() == [[1, 0], [2, 37.5], [3, 25.0]]


def test_the_axis_of_one_epoch_names_that_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("raypaml.reports.figures.plots", lambda *axes: drawn.append(axes))
    missed_positives({"one": [[record(0), record(1, 20, 5)]]})  # precision has a value in the second alone
    _, precision, _ = drawn[0]
    low, high = precision.get_xlim()
    assert [tick for tick in precision.get_xticks() if low <= tick <= high] == [2]


def test_a_report_says_what_the_model_looked_at(trained: tuple[Path, str]) -> None:
    config = stored_config(trained[0])
    assert config is not None
    data = open_folder(config.data.data)
    model = run_models.tested_model(trained[0], config.model, len(data.vocabulary))
    rows = np.linspace(0, 599, 100).astype(int)
    parts = Plan(num_samples=600, global_batch_size=1, lanes=1, shuffle=False).epoch(0, 0, 1)
    pairs = explain_steps(model, None, data, "test", [parts[row] for row in rows], torch.device("cpu"))
    page = (trained[0] / "report.html").read_text()
    assert '<th scope="col">waiting for data</th><th scope="col">in collectives</th>' in page
    with (trained[0] / "rejections.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["rejected"]) for row in rows) == sum(epoch["rejected"] for epoch in read_history(trained[0])) > 0
    assert (
        f'<th scope="row" class="text"><bdi>{rows[0]["name"]}</bdi></th><td>{int(rows[0]["rejected"]):,}</td>' in page
    )
    assert f"{pairs.positive.sum():,} positive and {(~pairs.positive).sum():,} negative labels" in page
    for figure in (np.nanmean(pairs.pointing), np.nanmean(pairs.chance)):
        assert f"<td>{figure:.3f}</td>" in page
    for values in (pairs.top[pairs.positive], pairs.bottom[~pairs.positive]):
        assert f"<td>{np.median(values):.2f}</td>" in page
    assert sorted(set(re.findall(r"<figcaption>(G[1-5]) · test-", page))) == ["G1", "G2", "G3", "G4", "G5"]


@pytest.mark.parametrize(("small", "threads"), [(96 * 96, 1), (0, 2)])
def test_one_thread_computes_the_maps_of_small_images(
    small: int, threads: int, trained: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = stored_config(trained[0])
    assert config is not None
    monkeypatch.setattr(conclude, "SMALL_PIXELS", small)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with conclude._threads(Job(config, open_folder(config.data.data), trained[0])):
            assert torch.get_num_threads() == threads
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_names_are_text_in_pages(tmp_path: Path) -> None:
    (tmp_path / "x.html.j2").write_text('<td title="{{ name }}">{{ name }}</td>')
    page = fill_template(tmp_path / "x.html.j2", name='"<script>alert(1)</script>')
    assert page == '<td title="{0}">{0}</td>'.format("&#34;&lt;script&gt;alert(1)&lt;/script&gt;")
    templates = sorted(Path(raypaml.__file__).parent.rglob("*.html.j2"))
    as_it_is = [name for path in templates for name in re.findall(r"(\w+)\s*\|\s*safe", path.read_text())]
    figures = "alphas attributions by_group by_group correlations curves curves drift figure groups importances"
    assert sorted(as_it_is) == [*figures.split(), "rejections", "rejections", "score_map", "time_and_cost"]

"""The page of a run: a table of all classes, 5,000 of them with hostile names, settings, commands, origin of labels."""

from __future__ import annotations

import html
import json
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raypaml.evaluation.measures import Evaluation, EvaluationOptions, evaluate_set
from raypaml.evaluation.parts import PredictionSet
from raypaml.evaluation.summary import summary
from raypaml.labels import Vocabulary
from raypaml.recipes import recipe
from raypaml.reports.figures import ap_by_annotations
from raypaml.run_report import run_page
from raypaml.run_report.class_rejections import budget_text, class_rejections
from raypaml.run_report.class_table import best_and_worst, class_table
from raypaml.run_report.next_steps import changed_settings, label_origin, next_commands
from raypaml.run_report.run_figures import calibration
from raypaml.run_report.run_page import most_surprising
from raypaml.run_report.training_figures import score_limits, time_and_cost, training_curves
from raypaml.runs.run_cost import run_cost
from tests.browser import measured
from tests.test_reports import USAGE, by_class, record
from tools.browser import CHROMIUM, WHY_NOT, allowing, chromium

HOSTILE = [
    '</script><script>alert(1)</script>"',
    "' onclick=alert(1) {{ 7 }}",
    "‮abc עברית",
    "x" * 200,
    "<!--",
    "\\u003c&amp;",
]


def vocabulary(num_classes: int) -> Vocabulary:
    names = [f"{HOSTILE[k % len(HOSTILE)]} {k}" if k < 60 else f"class {k}" for k in range(num_classes)]
    counts = np.arange(num_classes)
    ids = tuple(f"/m/{k}" for k in range(num_classes))
    return Vocabulary(class_ids=ids, names=tuple(names), train_positives=counts, train_negatives=2 * counts)


def evaluated(num_classes: int, images: int = 40) -> Evaluation:
    """Scores that favour positives a little; the last class has no positive, and the one before it no negative."""
    rng, classes = np.random.default_rng(0), vocabulary(num_classes)
    label = rng.random((images, num_classes)) < 0.3
    label[:, -1], label[:, -2] = False, True
    logit = (rng.normal(size=label.shape) + label).astype(np.float32)
    image, column = (axis.ravel() for axis in np.indices(label.shape))
    columns = {
        "key": [f"image-{number:03d}" for number in image],
        "class": pa.array(column, pa.int32()),
        "positive": label.ravel(),
        "P": pa.array(np.zeros(label.size), pa.float32()),
        "N": pa.array(logit.ravel(), pa.float32()),
    }
    predictions = PredictionSet(
        where="here",
        split="test",
        vocabulary=classes.digest,
        num_classes=num_classes,
        samples=images,
        alpha=1.0,
        probabilities=False,
        rows=label.size,
        batches=lambda: iter([(0, pa.table(columns))]),
    )
    return evaluate_set(predictions, classes, EvaluationOptions(details=True))


@pytest.fixture(scope="module")
def some() -> Evaluation:
    return evaluated(70)


def rejecting(num_classes: int) -> list[dict[str, Any]]:
    counted = np.arange(1, num_classes + 1)
    rows = by_class(counted.tolist(), (counted // 2).tolist(), counted.tolist(), list(range(num_classes)))
    return [record(0) | USAGE, record(1, int(counted.sum()), 5) | rows | USAGE]


# --- What the page says -----------------------------------------------------------------------------------------------


def test_best_and_worst_have_a_positive_and_a_negative_and_their_counts(some: Evaluation) -> None:
    best, worst = best_and_worst(some)
    assert best[0].ap == np.nanmax(some.ap[:-2])
    assert worst[0].ap == np.nanmin(some.ap[:-2])
    names = [row.name for row in (*best, *worst)]
    assert len(names) == len(set(names)) == 20
    assert not {"class 68", "class 69"} & set(names)  # whose AP is 1 and 0 whatever is predicted
    k = some.vocabulary.names.index(worst[0].name)
    assert (worst[0].positives, worst[0].train_negatives) == (some.positives[k], 2 * k)


def test_the_table_has_every_class_its_support_and_its_rejections(some: Evaluation) -> None:
    table = class_table(some, class_rejections(rejecting(70), some.vocabulary))
    columns = {column["title"]: column["values"] for column in table["columns"]}
    assert all(len(values) == 70 for values in columns.values())
    assert columns["class"][0] == f"{HOSTILE[0]} 0"
    assert columns["class"][2] == "\\u202eabc עברית 2"  # what would turn the text round is visible
    assert columns["test positives"] == some.positives.tolist()
    assert (columns["rejected"][9], columns["missed positives"][9]) == (10, 10)
    assert (columns["rejection precision, %"][9], columns["rejection recall, %"][9]) == (50, 50)
    assert len(table["curves"]) == 70
    unknown = [record(0, 0, None), record(1, 3, None) | by_class([3], None, None, [1])]
    titles = [column["title"] for column in class_table(some, class_rejections(unknown, some.vocabulary))["columns"]]
    assert titles[-2:] == ["rejected", "id"]


def test_few_classes_that_take_the_budget_are_counted() -> None:
    rows = class_rejections([record(1, 10, 5) | by_class([6, 3, 1], [1, 1, 1], [9, 9, 9], [4, 5, 6])], vocabulary(50))
    assert budget_text(rows, 50) == "Half of all rejections fall on 1 of 50 classes, nine tenths on 2; 47 have none."


def test_surprises_are_the_highest_negative_and_the_lowest_positive_of_different_classes(some: Evaluation) -> None:
    keys = pa.array([f"image-{number:03d}" for number in reversed(range(40))])  # rows in another order than sorted keys
    rows_of = lambda asked: np.array([39 - int(key[-3:]) for key in asked.to_pylist()])  # noqa: E731
    data: Any = SimpleNamespace(splits={"test": SimpleNamespace(rows_of=rows_of)})
    assert some.details is not None
    shown = most_surprising(some.details.negatives, some, data, highest=True)
    scores = some.details.negatives.score
    assert [k for _, k in shown] == np.argsort(-np.where(np.isnan(scores), -np.inf, scores))[:8].tolist()
    row, k = shown[0]
    assert keys[row] == some.keys[int(some.details.negatives.image[k])]


def test_the_axis_of_ap_is_near_the_values_and_ends_at_100() -> None:
    assert score_limits(np.array([80.0, 99.5, np.nan])) == (77.0, 100.0)
    assert score_limits(np.array([0.5, 2.0])) == (0.0, 3.0)
    assert score_limits(np.array([np.nan])) == (0.0, 100.0)


def test_figures_have_legends_and_mark_the_tested_checkpoint(tmp_path: Path, some: Evaluation) -> None:
    counted = {"learning_rate": 1e-3, "head_learning_rate": 1e-2, "rejection_rate": 0.01}
    history: Any = [
        record(n, 5) | USAGE | counted | {"held_worker_seconds": 90.0 * (n + 1), "validation_groups": {}}
        for n in range(3)
    ]
    curves = training_curves(history, 2)
    for said in ("training loss", "tested checkpoint", "learning rate", "head", "share of all entries rejected, %"):
        assert said in curves, said
    cost = run_cost(tmp_path, recipe("digits"), history)
    spent = time_and_cost(history, history, cost, 2)
    assert "waiting for data" in spent
    assert "validation mAP, %, by cost" in spent
    assert "by cost" not in time_and_cost([record(0)], [record(0) | USAGE], cost, 0)  # type: ignore[list-item]
    bins = calibration(100 * some.bins)
    assert "perfectly calibrated" in bins
    assert ">10,000</text>" in bins  # a power of ten as a number, and not as a formula
    assert "mathdefault" not in bins


def test_the_figure_of_ap_ends_at_100_and_its_groups_stand_below_the_title() -> None:
    drawn = ap_by_annotations(np.arange(1, 11) ** 3, np.repeat(np.arange(1, 6), 2), {"a run": np.linspace(0, 1, 10)})
    assert all(f">G{group}<" in drawn for group in range(1, 6))
    assert ">100</text>" in drawn
    assert ">120</text>" not in drawn
    assert "mathdefault" not in drawn


def test_settings_commands_and_the_origin_of_labels(tmp_path: Path) -> None:
    asked = recipe("digits").override({"name": "a run", "storage": "my runs", "epochs": 3, "imports": "json"})
    assert changed_settings(asked) == [("epochs", 18, 3), ("imports", "", "json")]
    lines = dict(next_commands(tmp_path / "a run", asked))
    assert lines["Classify pictures"].endswith(
        f"predict '{tmp_path}/a run' PICTURES --out predictions.csv --import json"
    )
    assert "--name 'a run' --storage 'my runs' --epochs 6" in lines["Train on, for more epochs"]
    folder: Any = SimpleNamespace(path=tmp_path)
    assert label_origin(folder, recipe("openimages_v3")) != ""  # no record: told from the recipe
    (tmp_path / "preparation.json").write_text(json.dumps({"parameters": {"source": "folder"}, "splits": {}}))
    assert label_origin(folder, recipe("openimages_v3")) == ""
    (tmp_path / "preparation.json").write_text(json.dumps({"parameters": {"source": "openimages"}, "splits": {}}))
    assert "proposed by machines before people confirmed" in label_origin(folder, recipe("digits"))


# --- The page in a browser --------------------------------------------------------------------------------------------

DRIVER = Path(__file__).with_name("class_table_probe.js").read_text()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run over 5,000 classes, without pictures, whose number does not depend on that of classes."""
    folder, classes = tmp_path_factory.mktemp("large"), 5000
    evaluation, history = evaluated(classes, images=60), rejecting(classes)
    result: Any = {**summary(evaluation), "stopped_early": None, "best_epoch": 1, "validation_mean_ap": 0.2}
    result["training_seconds"] = 122.0
    result["cost"] = run_cost(folder, recipe("digits"), history)
    job: Any = SimpleNamespace(
        folder=folder,
        config=recipe("digits").override({"name": HOSTILE[0]}),
        data=SimpleNamespace(vocabulary=evaluation.vocabulary, path=folder, splits={"train": [0]}),
    )
    maps = {name: [] for name in ("gallery", "false_positives", "low_positives")}
    maps |= {"looks": LOOKS, "images": 0, "places": {}, "by_group": ""}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_page, "_map_values", lambda *_: maps)
        rejected = class_rejections(history, evaluation.vocabulary)
        run_page.write_report(job, None, evaluation, result, history, rejected, None)
    return folder / "report.html"


LOOKS = {"pairs": {"positive": 0, "negative": 0}, "attributions": {}, "localisation": {"pairs_with_boxes": 0}}


def test_5000_classes_with_hostile_names_are_a_page_below_15_mb(large: Path) -> None:
    page = large.read_text()
    assert len(page.encode()) < 15e6
    assert "<script>alert" not in page
    assert len(re.findall("<script", page)) == 2  # the data and the program
    data = json.loads(re.search(r'id="classes-data">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
    assert data["columns"][0]["values"][0] == f"{HOSTILE[0]} 0"


@pytest.mark.cluster
@pytest.mark.skipif(not CHROMIUM, reason=WHY_NOT)
def test_a_browser_sorts_searches_and_scrolls_5000_classes_at_once(large: Path, tmp_path: Path) -> None:
    driven = tmp_path / "driven.html"
    driven.write_text(allowing(large.read_text(), DRIVER))
    began = time.monotonic()
    dumped = chromium("--window-size=1280,900", "--dump-dom", driven.as_uri())
    assert time.monotonic() - began < 30
    said = json.loads(html.unescape(re.search("<title>(.*?)</title>", dumped, re.DOTALL)[1]))  # type: ignore[index]
    assert said["rows"] < 80  # of 5,000: those in view
    assert (said["worst"], said["last"]) == ("0.00", "5001")
    assert said["best"] == "100.00"
    assert (said["matches"], said["count"], said["chosen"]) == (["class 4321"], "1 of 5,000 classes", "class 4321")
    assert re.search(r"precision \d+ % at the highest scores, \d+ % at full recall; chance \d+ %", said["curve"])
    assert len(said["hostile"]) == 10
    assert f"{HOSTILE[0]} 0" in said["hostile"]
    assert said["none"] == "0 of 5,000 classes"


@pytest.mark.cluster
@pytest.mark.skipif(not CHROMIUM, reason=WHY_NOT)
def test_the_large_page_has_no_errors_and_does_not_overflow(large: Path, tmp_path: Path) -> None:
    for name, one in measured({"large": large}, tmp_path).items():
        assert (one["errors"], one["wide"], one["scroll"]) == ([], [], one["width"]), name

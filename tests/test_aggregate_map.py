"""`tools/aggregate_map.py` as a user runs it: the training run's table, one JSON from any parts, one line an error."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from raypaml.cli import run_command
from raypaml.evaluation import entries as entries_module
from raypaml.evaluation.parts import write_part
from raypaml.labels import GROUP_NAMES
from tests.test_parts import CLASSES, part, rows, vocabulary, write_set
from tools import aggregate_map

ROOT = Path(__file__).parent.parent
EVERYTHING = ["--bootstrap", "40", "--alpha", "1:4", "--threshold", "0.4", "--recall", "0.5"]


def aggregate(monkeypatch: pytest.MonkeyPatch, *argv: object) -> None:
    monkeypatch.setattr(sys, "argv", ["aggregate_map.py", *map(str, argv)])
    aggregate_map.main()


def as_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *argv: object) -> Any:
    aggregate(monkeypatch, *argv, "--json", tmp_path / "out.json")
    return json.loads((tmp_path / "out.json").read_text())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_set(tmp_path / "set", rows(), [0, 1, 2])


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """The same labels, other scores."""
    table = rows()
    scores = np.random.default_rng(5).normal(size=len(table)).astype(np.float32)
    return write_set(tmp_path / "other", table.set_column(4, "N", [scores]), [0])


# --- What it says -----------------------------------------------------------------------------------------------------


def test_it_prints_the_table_of_the_training_run(trained: tuple[Path, str]) -> None:
    run, printed = trained
    tool = [sys.executable, str(ROOT / "tools" / "aggregate_map.py"), str(run)]
    done = subprocess.run(tool, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.startswith(printed + "\n")
    result = json.loads((run / "result.json").read_text())
    assert all(f"{100 * result['groups'][name]:.2f}" in done.stdout for name in GROUP_NAMES)


def test_the_json_is_the_same_from_any_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries_module, "ROWS_AT_ONCE", 40)
    table = rows()
    shuffled = table.take(np.random.default_rng(1).permutation(len(table)))
    found = set()
    for number, (content, order) in enumerate([(table, [0]), (table, [3, 1, 0, 2]), (shuffled, [1, 0, 2])]):
        where = write_set(tmp_path / str(number), content, order)
        aggregate(monkeypatch, where, *EVERYTHING, "--json", tmp_path / "out.json")
        found.add((tmp_path / "out.json").read_bytes())
    assert len(found) == 1


def test_the_json_is_the_same_from_any_number_of_threads(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = as_json(monkeypatch, tmp_path, folder, *EVERYTHING)
    monkeypatch.setattr("os.cpu_count", lambda: 5)
    assert as_json(monkeypatch, tmp_path, folder, *EVERYTHING) == one


def test_spilling_changes_no_figure(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = as_json(monkeypatch, tmp_path, folder, *EVERYTHING)["runs"][0]
    monkeypatch.setattr(entries_module, "ROWS_AT_ONCE", 20)
    monkeypatch.setattr(entries_module, "FLUSH_ROWS", 50)
    spilled = as_json(monkeypatch, tmp_path, folder, *EVERYTHING)["runs"][0]
    assert spilled["groups"] == together["groups"]
    for name in ("paper", "positives", "two-sided", "micro"):
        one, other = (run["conventions"][name] for run in (together, spilled))
        assert other["mean_ap"] == one["mean_ap"]
        for group, ends in one.get("interval_95", {}).items():
            assert other["interval_95"][group] == pytest.approx(ends, abs=1e-12)
    for name in ("calibration_error", "decisions", "alpha_curve", "precision_at_recall"):
        assert flat(spilled[name]) == pytest.approx(flat(together[name]), abs=1e-12)


def flat(value: Any) -> list[float]:
    return [number for inner in value.values() for number in flat(inner)] if isinstance(value, dict) else [value]


def by_class() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """AP, positives and negatives by scikit-learn."""
    table = rows()
    classes, positive = table["class"].to_numpy(), table["positive"].to_numpy()
    scores = np.float32(5) * table["P"].to_numpy() + table["N"].to_numpy()
    counts = [np.bincount(classes[positive == value], minlength=CLASSES) for value in (True, False)]
    seen = [(positive[classes == k], scores[classes == k]) for k in range(CLASSES)]
    return np.array([average_precision_score(*pair) for pair in seen]), *counts


def test_every_convention_is_scikit_learns_mean(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ap, positives, negatives = by_class()
    run = as_json(monkeypatch, tmp_path, folder)["runs"][0]
    for name, counts in (
        ("paper", positives + negatives),
        ("positives", positives),
        ("two-sided", positives * negatives),
    ):
        assert run["conventions"][name]["mean_ap"] == pytest.approx(ap[counts > 0].mean(), abs=1e-12)
        assert run["conventions"][name]["classes_counted"] == (counts > 0).sum()
    group = vocabulary().class_group
    assert run["conventions"]["paper"]["groups"]["G2"] == pytest.approx(ap[group == 2].mean(), abs=1e-12)
    table = rows()
    scores = np.float32(5) * table["P"].to_numpy() + table["N"].to_numpy()
    pooled = average_precision_score(table["positive"].to_numpy(), scores)
    assert run["conventions"]["micro"]["mean_ap"] == pytest.approx(pooled, abs=1e-12)
    assert run["conventions"]["unobserved-negative"]["mean_ap"] is None


def test_every_figure_says_what_it_counts(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = as_json(monkeypatch, tmp_path, folder)["runs"][0]
    _, positives, negatives = by_class()
    assert (run["positives"], run["negatives"]) == (positives.sum(), negatives.sum())
    assert (run["classes"], run["images"], run["samples"]) == (12, 29, 30)  # one image has no entry
    assert (run["convention"], run["split"], run["alpha"], run["scores"]) == ("paper", "test", 5, "logits")
    assert run["vocabulary"] == vocabulary().digest


def test_the_alpha_curve_needs_no_other_pass(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    curve = as_json(monkeypatch, tmp_path, folder, "--alpha", "1:6")["runs"][0]["alpha_curve"]
    assert list(curve) == ["1", "2", "3", "4", "5", "6"]
    for alpha in ("1", "5"):
        run = as_json(monkeypatch, tmp_path, folder, "--alpha", alpha)["runs"][0]
        assert run["mean_ap"] == curve[alpha]["All"]


def test_two_runs_are_compared_on_the_same_draws(
    folder: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    found = as_json(monkeypatch, tmp_path, folder, other, "--bootstrap", "60")
    first, second = (run["conventions"]["paper"] for run in found["runs"])
    pair = found["difference"]["paper"]
    assert pair["difference"]["All"] == pytest.approx(second["mean_ap"] - first["mean_ap"])
    low, high = pair["interval_95"]["All"]
    assert low < pair["difference"]["All"] < high
    assert first["interval_95"]["All"][0] < first["mean_ap"] < first["interval_95"]["All"][1]
    assert "mAP of the second minus mAP of the first" in capfd.readouterr().out


def test_the_same_predictions_do_not_differ(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = write_set(tmp_path / "copy", rows(), [1, 0])
    pair = as_json(monkeypatch, tmp_path, folder, copy, "--bootstrap", "20")["difference"]
    assert all(value == 0 for entry in pair.values() for value in entry["difference"].values())
    assert all(ends == [0, 0] for entry in pair.values() for ends in entry["interval_95"].values())


def test_thresholds_come_from_validation(
    folder: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = as_json(monkeypatch, tmp_path, folder, "--thresholds-from", folder)["runs"][0]["decisions"]
    from_other = as_json(monkeypatch, tmp_path, folder, "--thresholds-from", other)["runs"][0]["decisions"]
    assert own["CF1"] > from_other["CF1"]


def test_the_csv_has_a_row_a_class_and_the_figure_both_runs(
    folder: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aggregate(monkeypatch, folder, other, *EVERYTHING, "--csv", tmp_path / "x.csv", "--figure", tmp_path / "x.svg")
    with (tmp_path / "x.csv").open() as file:
        lines = list(csv.DictReader(file))
    ap, positives, _ = by_class()
    assert [float(line["ap"]) for line in lines] == pytest.approx(ap.tolist())
    assert [int(line["positives"]) for line in lines] == positives.tolist()
    assert {"class_id", "class_group", "train_annotations", "f1", "ap_2", "precision_at_recall_2"} <= set(lines[0])
    picture = (tmp_path / "x.svg").read_text()
    assert picture.startswith("<svg")
    assert picture.count("training annotations") == 2


def test_predictions_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "s.npy", rng.random((50, CLASSES)))
    np.save(tmp_path / "l.npy", rng.choice([1, 0, -1], (50, CLASSES)))
    vocabulary().write(tmp_path / "vocabulary.csv")
    options = ["--labels", tmp_path / "l.npy", "--vocabulary", tmp_path / "vocabulary.csv", "--scores", "probabilities"]
    run = as_json(monkeypatch, tmp_path, tmp_path / "s.npy", *options)["runs"][0]
    assert run["scores"] == "probabilities"
    misleading = run["conventions"]["unobserved-negative"]
    assert misleading["mean_ap"] < run["mean_ap"]
    assert misleading["classes_counted"] == CLASSES


# --- What is refused --------------------------------------------------------------------------------------------------


def refuse(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], message: str, *argv: object) -> None:
    with pytest.raises(SystemExit) as stopped:
        run_command(lambda: aggregate(monkeypatch, *argv), aggregate_map.PROG)
    said = capfd.readouterr()
    assert stopped.value.code == 2
    assert said.err.count("\n") == 1
    assert message in said.err


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("truncated", "part-00001-of-00003.parquet: damaged: its bytes do not have the SHA-256"),
        ("missing", "part 1 is missing"),
        ("empty", "part-00001-of-00003.parquet: cannot be read (Parquet file size is 0 bytes)"),
        ("twice", "is in two parts"),
        ("vocabulary", "predicted with another vocabulary"),
        ("no vocabulary", "no such vocabulary"),
    ],
)
def test_sets_that_do_not_hold_together(
    damage: str, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = folder / part(1, 3, 10).name
    if damage == "missing":
        path.unlink()
    elif damage == "twice":
        write_part(folder, part(1, 3, 10), rows().slice(0, 5))
    elif damage == "vocabulary":
        vocabulary(11).write(folder / "vocabulary.csv")
    elif damage == "no vocabulary":
        (folder / "vocabulary.csv").unlink()
    else:
        path.write_bytes(b"" if damage == "empty" else path.read_bytes()[:-30])
    refuse(monkeypatch, capfd, message, folder)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--alpha", "0.5"], "alpha=0.5: must be at least 1"),
        (["--alpha", "5:1"], "expected A or A:B with B >= A"),
        (["--alpha", "x"], "expected A or A:B"),
        (["--bootstrap", "1"], "bootstrap=1: needs at least 2 replicates"),
        (["--threshold", "1"], "threshold=1: a probability, must be above 0 and below 1"),
        (["--recall", "2"], "recall=2.0: must be above 0 and at most 1"),
        (["--bootstraps", "9"], "did you mean --bootstrap?"),
        (["nowhere"], "nowhere: no predictions"),
    ],
)
def test_flags_that_cannot_be(
    flags: list[str], message: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    refuse(monkeypatch, capfd, message, folder, *flags)


def test_runs_of_other_images_or_labels_are_not_compared(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    table = rows()
    fewer = table.filter(np.array([key != "image-004" for key in table["key"].to_pylist()]))
    flipped = table.set_column(2, "positive", [~table["positive"].to_numpy()])
    for name, content, message in (("f", fewer, "different images (29 and 28)"), ("g", flipped, "different labels")):
        refuse(monkeypatch, capfd, message, folder, write_set(tmp_path / name, content, [0]))


def test_others_scores_need_their_vocabulary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.csv").write_text("key,class,label,score\n")
    refuse(monkeypatch, capfd, "say which classes these are, with --vocabulary FILE", tmp_path / "x.csv")
    vocabulary().write(tmp_path / "v.csv")
    refuse(
        monkeypatch,
        capfd,
        "y.csv: no such file",
        tmp_path / "y.csv",
        "--vocabulary",
        tmp_path / "v.csv",
        "--scores",
        "logits",
    )


def test_measures_are_computed_without_torch() -> None:
    """Which would be 500 MB of each process that evaluates predictions."""
    code = "import sys, raypaml.aggregate, raypaml.evaluation.aggregation; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

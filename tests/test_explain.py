"""The explain command on a trained run: figures that follow from the pairs, pairs that follow from the maps."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import stats

from raypaml import explain
from raypaml.data.batches import Reader
from raypaml.data.data_folder import open_folder
from raypaml.data.plan import Plan
from raypaml.explanations import explain_page, explain_runs
from raypaml.labels import POSITIVE
from raypaml.runs import models as run_models
from raypaml.runs.checkpoint import best_checkpoint, valid_checkpoints
from raypaml.runs.history import read_history
from raypaml.runs.run_folder import stored_config


@pytest.fixture(scope="module")
def runs(trained: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run, and another whose head is three times as strong."""
    folder = tmp_path_factory.mktemp("runs")
    first, second = folder / "first", folder / "second"
    for run in (first, second):
        shutil.copytree(trained[0], run)
    path = best_checkpoint(valid_checkpoints(second / "checkpoints")[0]) / "model.safetensors"
    weights = load_file(path)
    save_file({name: value * 3 if name.startswith("head.") else value for name, value in weights.items()}, path)
    committed = path.parent / "COMMITTED"
    digests = json.loads(committed.read_text()) | {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}
    committed.write_text(json.dumps(digests))
    return first, second


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> Path:
    assert explain.main([*map(str, arguments)]) == 0
    return Path(capsys.readouterr().out.strip())


def rows_of(page: Path) -> list[dict[str, str]]:
    with (page.parent / "pairs.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_head_of_three_times_the_strength_is_seen(
    runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = run(monkeypatch, capsys, runs[0], "--against", runs[1], "--limit", 50)
    found = json.loads((page.parent / "explanations.json").read_text())
    epochs = [record for record in read_history(runs[0]) if record["rejected"]]
    hits, missed = (sum(record[name] for record in epochs) for name in ("rejected_missed", "missed"))
    assert found["rejection"]["first"]["recall"] == pytest.approx(hits / missed)
    assert "precision of rejection" in page.read_text()
    assert page.parent == runs[0] / "explanations" / "test-against-second"
    assert found["rank_correlation"]["p25"] == pytest.approx(1.0)
    assert found["attributions"]["positive top"]["other"]["p50"] == pytest.approx(
        3 * found["attributions"]["positive top"]["this"]["p50"], rel=1e-4
    )
    assert found["scale_ratio"] in (None, pytest.approx(1 / 3, rel=1e-4))
    assert "second" in page.read_text()
    assert not re.search(r"(src|href)=.(?!data:|#)", page.read_text())  # nothing from a network


def test_pairs_are_the_maps_own_figures(
    runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = run(monkeypatch, capsys, runs[0], "--against", runs[1], "--limit", 7)
    config = stored_config(runs[0])
    assert config is not None
    data = open_folder(config.data.data)
    index = data.splits["test"]
    plan = Plan(num_samples=7, global_batch_size=1, lanes=1, shuffle=False)
    reader = Reader(data.shards, index, plan.epoch(0, 0, 1))
    models = [run_models.tested_model(path, config.model, len(data.vocabulary)).eval() for path in runs]
    expected = {}
    for row in range(7):
        image = torch.from_numpy(reader.image(row).copy()).permute(2, 0, 1)[None]
        with torch.inference_mode():
            one, two = (model.cam(image)[0].flatten(1).numpy() for model in models)
            score = torch.sigmoid(models[0](image))[0].numpy()
        for k, label in enumerate(index.labels(np.array([row]))[0]):
            ordered, count = np.sort(one[k]), round(0.05 * one.shape[1])
            rho = stats.spearmanr(one[k], two[k]).statistic if label == POSITIVE else None
            key = (index.keys(np.array([row]))[0], data.vocabulary.class_ids[k])
            expected[key] = (score[k], ordered[-count:].mean(), ordered[:count].mean(), rho)
    found = rows_of(page)
    assert len(found) == len(expected)
    for pair in found:
        score, top, bottom, rho = expected[pair["key"], pair["class_id"]]
        assert [float(pair[name]) for name in ("score", "top", "bottom")] == pytest.approx(
            [score, top, bottom], abs=1e-4
        )
        assert (
            pair["rank_correlation"] == ""
            if rho is None
            else float(pair["rank_correlation"]) == pytest.approx(rho, abs=1e-3)
        )


def test_parts_change_nothing(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run(monkeypatch, capsys, runs[0], "--out", tmp_path / "whole", "--limit", 90)
    monkeypatch.setattr(explain_runs, "PART_SAMPLES", 32)
    parts = run(monkeypatch, capsys, runs[0], "--out", tmp_path / "parts", "--limit", 90)
    for name in ("explanations.json", "pairs.csv"):
        assert (whole.parent / name).read_bytes() == (parts.parent / name).read_bytes()
    found = json.loads((whole.parent / "explanations.json").read_text())
    assert "rank_correlation" not in found
    assert found["localisation"]["pairs_with_boxes"] == found["pairs"]["positive"]
    assert 0 < found["localisation"]["pointing_game_chance"] < 0.5


@pytest.mark.parametrize("show", ["spread", "high", "low", "errors"])
def test_what_is_shown(
    runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], show: str
) -> None:
    chosen: list[tuple[int, int]] = []
    real = explain_page.side_by_side
    monkeypatch.setattr(
        explain_page, "side_by_side", lambda m, d, s, pairs, **k: chosen.extend(pairs) or real(m, d, s, pairs, **k)
    )
    page = run(monkeypatch, capsys, runs[0], "--show", show, "--rows", 4, "--limit", 40, "--beside", runs[1], "--raw")
    rows = [row for row in rows_of(page) if row["positive"] == ("false" if show == "errors" else "true")]
    scores = sorted(float(row["score"]) for row in rows)
    assert len(chosen) == 4
    keys = {(row["key"], row["class_id"]): float(row["score"]) for row in rows}
    data = open_folder(stored_config(runs[0]).data.data)  # type: ignore[union-attr]
    shown = [keys[data.splits["test"].keys(np.array([r]))[0], data.vocabulary.class_ids[k]] for r, k in chosen]
    wanted = {
        "spread": [scores[0], scores[-1]],
        "low": scores[:4],
        "high": scores[::-1][:4],
        "errors": scores[::-1][:4],
    }
    assert ([shown[0], shown[-1]] if show == "spread" else shown) == wanted[show]
    assert page.read_text().count("<figure>") == 4 * 3


def test_bad_wishes(runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="neither the folder of a run nor one of its checkpoints"):
        explain.main([str(tmp_path)])
    with pytest.raises(ValueError, match="split='dev': the data set has train, validation, test"):
        explain.main([str(runs[0]), "--split", "dev"])
    (tmp_path / "file").touch()
    monkeypatch.setattr(explain_runs.ExplainedRuns, "compare", lambda *_: pytest.fail("maps are computed first"))
    with pytest.raises(ValueError, match="classes='red 11': no such class; did you mean 'red 1'"):
        explain.main([str(runs[0]), "--classes", "red 11", "--limit", "5"])
    with pytest.raises(NotADirectoryError):
        explain.main([str(runs[0]), "--out", str(tmp_path / "file"), "--limit", "5"])
    with pytest.raises(ValueError, match="group='G9': must be G1, G2, G3, G4 or G5"):
        explain.main([str(runs[0]), "--group", "G9", "--limit", "5"])


def test_runs_of_one_name_are_not_mixed_up(runs: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(runs[0], tmp_path / "first")
    with pytest.raises(ValueError, match="two runs of one name could not be told apart; give a folder another name"):
        explain.main([str(runs[0]), "--against", str(tmp_path / "first")])


def box_csv(path: Path, boxes: list[tuple[object, ...]]) -> Path:
    """As Open Images V3 writes validation and test boxes."""
    names = ["ImageID", "Source", "LabelName", "Confidence", "XMin", "XMax", "YMin", "YMax", "IsOccluded"]
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(names)
        lines.writerows([(key, "xclick", label, 1, x0, x1, y0, y1, 0) for key, label, x0, y0, x1, y1 in boxes])
    return path


def own_boxes(run: Path) -> list[tuple[object, ...]]:
    """The data set's own boxes, sides as shares."""
    config = stored_config(run)
    assert config is not None
    data = open_folder(config.data.data)
    index, ids = data.splits["test"], data.vocabulary.class_ids
    return [
        (index.keys(np.array([row]))[0], ids[int(box["class"])], *(box[side] / 64 for side in ("x0", "y0", "x1", "y1")))
        for row in range(40)
        for box in index.boxes(row)
    ]


def test_boxes_of_open_images_take_the_place_of_the_datas_own(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    common = (runs[0], "--limit", 40, "--rows", 2)
    own = rows_of(run(monkeypatch, capsys, *common, "--out", tmp_path / "own"))
    boxes = own_boxes(runs[0])
    odd = [("0123456789abcdef", boxes[0][1], 0, 0, 1, 1), (boxes[0][0], "/m/none", 0, 0, 1, 1)]
    odd += [(*boxes[0][:2], 0.5, 0, 0.4, 1)]
    file = box_csv(tmp_path / "boxes.csv", [*odd, *reversed(boxes)])
    assert explain.main([*map(str, common), "--boxes", str(file), "--out", str(tmp_path / "given")]) == 0
    said = capsys.readouterr().err
    assert f"{len(boxes)} of {len(boxes) + 3} boxes; 1 of images that are not in the split, 1 of classes" in said
    assert "1 with sides that are not shares of 0 to 1" in said
    given = rows_of(tmp_path / "given" / "explanations.html")
    assert [row["pointing"] for row in given] == [row["pointing"] for row in own]
    for name in ("chance", "energy", "box_iou"):
        ours, theirs = ([float(row[name] or "nan") for row in rows] for rows in (given, own))
        assert ours == pytest.approx(theirs, nan_ok=True)
    whole = box_csv(tmp_path / "whole.csv", [(*box[:2], 0, 0, 1, 1) for box in boxes])
    everywhere = rows_of(run(monkeypatch, capsys, *common, "--boxes", whole, "--out", tmp_path / "whole"))
    assert {row["pointing"] for row in everywhere} == {"", "1"}


def test_a_box_file_that_does_not_fit_is_said(runs: tuple[Path, Path], tmp_path: Path) -> None:
    stranger = box_csv(tmp_path / "stranger.csv", [("0123456789abcdef", "/m/none", 0, 0, 1, 1)])
    with pytest.raises(ValueError, match="0 of 1 boxes; 1 of images that are not in the split"):
        explain.main([str(runs[0]), "--boxes", str(stranger)])
    (tmp_path / "odd.csv").write_text("image,class\n1,2\n")
    with pytest.raises(ValueError, match="not a table with the columns ImageID, LabelName, XMin, YMin, XMax, YMax"):
        explain.main([str(runs[0]), "--boxes", str(tmp_path / "odd.csv")])


def test_data_that_changed_since_the_run_began_are_said(runs: tuple[Path, Path], tmp_path: Path) -> None:
    changed = shutil.copytree(runs[0], tmp_path / "changed")
    record = json.loads((changed / "config.json").read_text())
    record["data"]["digests"]["test"] = "0" * 64
    (changed / "config.json").write_text(json.dumps(record))
    said: list[str] = []
    explain_runs.ExplainedRuns.open(changed, explain_runs.MapsRequest(), said.append)
    assert [line for line in said if f"changed since {changed} was started: the index of test" in line]

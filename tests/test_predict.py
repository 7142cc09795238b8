"""`python -m raypaml.predict` and `raypaml.load`: the answers of training's own evaluation, however pictures come."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import raypaml
from raypaml.data.batches import Reader
from raypaml.data.data_folder import open_folder
from raypaml.inference.choice import ChoiceRequest, choose
from raypaml.inference.classifying import overlay_name
from raypaml.inference.pictures import find_pictures, fit_to_size, read_picture
from raypaml.metrics.thresholds import sigmoid
from raypaml.names import name_fault
from raypaml.predict import main
from raypaml.runs.checkpoint import valid_checkpoints
from raypaml.runs.mirror import MARKER
from raypaml.runs.pseudo_label_file import read_pseudo_labels
from tests.test_sharding_s3 import running as running_store

Run = tuple[Path, str]


@pytest.fixture(scope="module")
def pictures(evaluated_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty test images as loose JPEGs, named by their keys."""
    folder = tmp_path_factory.mktemp("pictures")
    index = open_folder(evaluated_digits).splits["test"]
    for row in range(40):
        (folder / f"{index.keys(np.array([row]))[0]}.jpg").write_bytes(content(evaluated_digits, row))
    return folder


def content(data: Path, row: int) -> bytes:
    folder = open_folder(data)
    return Reader(folder.shards, folder.splits["test"], ())._checked(row)


def expected(run: Path, data: Path) -> dict[str, dict[int, float]]:
    """Logits of the test split, as training wrote them."""
    found: dict[str, dict[int, float]] = {}
    for part in sorted((run / "predictions" / "test").glob("*.parquet")):
        for row in pq.read_table(part).to_pylist():
            found.setdefault(row["key"], {})[row["class"]] = 5 * row["P"] + row["N"]
    return found


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_answers_are_those_of_the_evaluation(
    trained: Run, evaluated_digits: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained[0]
    assert main([str(run), str(pictures), "--top", "50", "--out", str(tmp_path / "all.csv")]) == 0
    wanted, vocabulary = expected(run, evaluated_digits), open_folder(evaluated_digits).vocabulary
    rows = rows_of(tmp_path / "all.csv")
    assert len(rows) == 40 * 50
    for row in rows:
        logit = wanted[Path(row["image"]).stem][vocabulary.index_of[row["class"]]]
        assert float(row["score"]) == pytest.approx(float(sigmoid(np.array(logit))), abs=2e-5)
    assert "40 images" in capsys.readouterr().err
    best = [row["score"] for row in rows[:50]]
    assert best == sorted(best, key=float, reverse=True)


def test_formats_say_the_same(trained: Run, pictures: Path, tmp_path: Path) -> None:
    for name in ("a.csv", "a.parquet", "a.jsonl"):
        assert main([str(trained[0]), str(pictures), "--threshold", "0.2", "--out", str(tmp_path / name)]) == 0
    table = pq.read_table(tmp_path / "a.parquet").to_pylist()
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert len(lines) == 40
    nothing = [{"class": None, "name": None, "score": None}]
    flat = [(line["image"], answer) for line in lines for answer in line["classes"] or nothing]
    assert [(image, answer["class"], answer["name"]) for image, answer in flat] == [
        (row["image"], row["class"], row["name"]) for row in table
    ]
    assert [(row["image"], row["class"] or "", row["name"] or "") for row in table] == [
        (row["image"], row["class"], row["name"]) for row in rows_of(tmp_path / "a.csv")
    ]
    assert {row["image"] for row in table} == {str(path) for path in pictures.iterdir()}
    assert all(row["score"] >= 0.2 for row in table if row["class"] is not None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.jsonl", "a.parquet"]


def test_a_picture_without_a_class_has_a_row_and_is_counted(
    trained: Run, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some = [str(path) for path in sorted(pictures.iterdir())[:3]]
    for name in ("a.csv", "a.parquet", "a.jsonl"):
        assert main([str(trained[0]), *some, "--threshold", "0.99999", "--out", str(tmp_path / name)]) == 0
        assert "3 without a class that reaches its threshold, which have a row without class and score" in (
            capsys.readouterr().err
        )
    assert rows_of(tmp_path / "a.csv") == [{"image": path, "class": "", "name": "", "score": ""} for path in some]
    nothing = {"class": None, "name": None, "score": None}
    assert pq.read_table(tmp_path / "a.parquet").to_pylist() == [{"image": path} | nothing for path in some]
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"image": path, "classes": []} for path in some]


def test_thresholds_of_a_prediction_set_are_used(trained: Run, pictures: Path, tmp_path: Path) -> None:
    run = trained[0]
    out = tmp_path / "best.parquet"
    assert main([str(run), str(pictures), "--thresholds-from", str(run / "predictions/test"), "--out", str(out)]) == 0
    model = raypaml.load(run)
    limits = choose(model.card, ChoiceRequest(thresholds_from=str(run / "predictions" / "test"))).thresholds
    for row in pq.read_table(out).to_pylist():
        if row["class"] is None:
            continue
        k = model.card.class_ids.index(row["class"])
        assert row["score"] >= sigmoid(limits[k : k + 1])[0] - 1e-6


def test_folders_shards_and_files_hold_the_same_pictures(trained: Run, pictures: Path, tmp_path: Path) -> None:
    first = sorted(pictures.glob("*.jpg"))[:3]
    (tmp_path / "in" / "sub").mkdir(parents=True)
    shutil.copy(first[0], tmp_path / "in" / "sub" / "x.JPG")
    with tarfile.open(tmp_path / "in" / "some?.tar", "w") as tar:
        for path in first[1:]:
            tar.add(path, path.name)
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    (tmp_path / "in" / ".hidden.jpg").write_text("no picture")
    found = list(find_pictures([str(tmp_path / "in"), str(first[0])]))
    assert [picture.name.removeprefix(str(tmp_path)) for picture in found[:3]] == [
        f"/in/some?.tar/{first[1].name}",
        f"/in/some?.tar/{first[2].name}",
        "/in/sub/x.JPG",
    ]
    pixels = [read_picture(picture, 64, 64) for picture in found]
    for one, path in zip(pixels, [first[1], first[2], first[0], first[0]], strict=True):
        np.testing.assert_array_equal(one, np.asarray(Image.open(path)))


@pytest.mark.ray
def test_two_ray_workers_answer_as_one_process_here_and_from_a_store(
    trained: Run, pictures: Path, tmp_path: Path
) -> None:
    here = shutil.copytree(pictures, tmp_path / "here" / "photos")
    (here / "broken.jpg").write_bytes(b"no picture")
    with tarfile.open(here / "some.tar", "w") as tar:
        for path in sorted(pictures.iterdir())[:3]:
            tar.add(path, path.name)
    assert main([str(trained[0]), str(here), "--top", "3", "--out", str(tmp_path / "one.csv")]) == 1
    with running_store(tmp_path / "here", 0.05) as store:
        given = [str(trained[0]), store.address("images/photos"), "--top", "3", "--out", str(tmp_path / "two.csv")]
        command = [sys.executable, "-m", "raypaml.predict", *given, "--workers", "2"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 1, done.stderr
    assert "broken.jpg: not an image of a known format" in done.stderr
    told = [
        [row | {"image": Path(row["image"]).name} for row in rows_of(tmp_path / f"{n}.csv")] for n in ("one", "two")
    ]
    assert len(told[0]) == 43 * 3
    assert told[0] == told[1]


def test_pictures_of_any_size_and_mode_become_the_models(trained: Run, tmp_path: Path) -> None:
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 90, 3), np.uint8))
    assert fit_to_size(wide, 64, 64).shape == (64, 64, 3)
    np.testing.assert_array_equal(
        fit_to_size(wide, 64, 48), np.asarray(wide.resize((48, 64), Image.Resampling.BILINEAR))
    )
    turned = wide.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=turned.getexif())
    with Image.open(tmp_path / "turned.png") as again:
        np.testing.assert_array_equal(fit_to_size(again, 30, 90), np.asarray(wide))
    model = raypaml.load(trained[0])
    for mode in ("L", "RGBA", "P", "CMYK", "I;16"):
        picture = Image.new("I;16", (40, 50)) if mode == "I;16" else wide.convert(mode)
        assert len(model.predict(picture, top=3)) == 3


def test_broken_pictures_are_named_at_the_end(
    trained: Run, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = sorted(pictures.glob("*.jpg"))[0]
    for name, bytes_ in (
        ("b.jpg", b"text"),
        ("a.png", b""),
        ("c.jpg", good.read_bytes()[:300]),
        ("d.jpg", good.read_bytes()),
    ):
        (tmp_path / name).write_bytes(bytes_)
    assert main([str(trained[0]), str(tmp_path), "--top", "1"]) == 1
    said = capsys.readouterr()
    assert [line.split(": ")[1].rpartition("/")[2] for line in said.err.splitlines() if line.startswith("broken")] == [
        *("a.png", "b.jpg", "c.jpg")
    ]
    assert "not an image of a known format" in said.err
    assert "4 images" in said.err
    assert "3 broken" in said.err
    assert [line.split(",")[0] for line in said.out.splitlines()[1:]] == [str(tmp_path / "d.jpg")]


def test_answers_about_shards_are_pseudo_labels_as_they_are(
    trained: Run, evaluated_digits: Path, tmp_path: Path
) -> None:
    data, out = open_folder(evaluated_digits), tmp_path / "teacher.parquet"
    shards = [str(evaluated_digits / name) for name in data.splits["train"].shards]
    assert (
        main([str(trained[0]), *shards, str(evaluated_digits / "test-000000.tar"), "--top", "7", "--out", str(out)])
        == 0
    )
    found = read_pseudo_labels(out, str(out), data)
    assert found.about.startswith("672 scores, of 96 of 96 training images")
    assert "rows of pictures (TAR/KEY.jpg) that are not in the training split" in found.about
    model, index = raypaml.load(trained[0]), data.splits["train"]
    pixels = Reader(data.shards, index, ())._checked(11)
    said = {each.class_id: each.score for each in model.predict(Image.open(io.BytesIO(pixels)), top=7)}
    mine = found.cells // 50 == 11
    classes = [data.vocabulary.class_ids[cell % 50] for cell in found.cells[mine]]
    assert dict(zip(classes, found.scores[mine].tolist(), strict=True)) == pytest.approx(said, rel=1e-5)


def test_overlays_show_every_answered_class_on_the_picture_as_it_is(
    trained: Run, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = tmp_path / ".hidden" / ".a picture.jpg"
    wide.parent.mkdir()
    Image.new("RGB", (300, 100), (0, 0, 250)).save(wide, quality=95)
    assert main([str(trained[0]), str(wide), "--top", "3", "--overlays", str(tmp_path / "maps")]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    written = sorted((tmp_path / "maps").iterdir())
    assert [re.sub("-[0-9a-f]{12}.jpg$", "", file.name) for file in written] == [
        f"a_picture-{place}-{row['name'].replace(' ', '_')}" for place, row in enumerate(rows, start=1)
    ]
    for file in written:
        with Image.open(file) as picture:
            assert picture.size == (300, 100)
            red, green, blue = np.asarray(picture).reshape(-1, 3).astype(int).T
            assert np.mean((blue > 100) & (red < 60) & (green < 60)) > 0.8  # blue stays blue, with a few lines over it


def test_overlays_of_pictures_with_one_name_do_not_overwrite_each_other() -> None:
    names = {overlay_name(picture, 1, "a/b: c") for picture in ("x/cat.jpg", "y/cat.jpg", "y/cat.png", "../.cat")}
    assert len(names) == 4
    assert {name.split("-")[0] for name in names} == {"cat"}
    assert overlay_name("é" * 300, 12, "/").count("-") == 2
    assert all(not name_fault(overlay_name(picture, 1, ".")) for picture in ("", "...", "é" * 300, "x\n"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["nowhere.jpg"], "nowhere.jpg: no such file or folder"),
        (["pipe:ls"], "cannot read pipe: addresses"),
        (["PICTURES", "--out", "x.txt"], "out=x.txt: must end in .csv, .parquet, .jsonl"),
        (["PICTURES", "--threshold", "2"], "threshold=2: a probability"),
        (["PICTURES", "--top", "-1"], "top=-1"),
        (["PICTURES", "--workers", "0"], "workers=0"),
        (["PICTURES", "--threshold", "0.5", "--thresholds-from", "x"], "give one of them"),
    ],
)
def test_what_cannot_be_predicted_is_refused(
    flags: list[str], said: str, trained: Run, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=said):
        main([str(trained[0]), *(str(pictures) if flag == "PICTURES" else flag for flag in flags)])
    assert not capsys.readouterr().out, "a table was begun before the refusal"


def test_pictures_are_found_before_other_processes_start(trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raypaml.api.predicted.device_mapper", lambda _: pytest.fail("processes have started"))
    with pytest.raises(ValueError, match=r"nowhere\.jpg: no such file"):
        main([str(trained[0]), "nowhere.jpg", "--workers", "2"])


def test_without_pictures_the_table_is_its_header(
    trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for out in ([], ["--out", str(tmp_path / "a.csv")]):
        assert main([str(trained[0]), str(tmp_path / "empty"), *out]) == 0
    assert capsys.readouterr().out == (tmp_path / "a.csv").read_text() == "image,class,name,score\n"


# --- raypaml.load -----------------------------------------------------------------------------------------------------


def test_a_loaded_model_predicts(trained: Run, pictures: Path) -> None:
    model = raypaml.load(trained[0])
    with Image.open(sorted(pictures.glob("*.jpg"))[0]) as picture:
        found = model.predict(picture, top=3)
        assert model.map(picture).shape == (50, 8, 8)
        assert model.predict(picture, top=50, threshold=1.0) == []
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert found[0].name == model.card.names[model.card.class_ids.index(found[0].class_id)]


def test_runs_of_another_vocabulary_are_refused(trained: Run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    lines = (run / "vocabulary.csv").read_text().splitlines()
    (run / "vocabulary.csv").write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    with pytest.raises(ValueError, match="of another vocabulary"):
        raypaml.load(run)


class Marker:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "ran")


def payloads(marker: Path) -> list[bytes]:
    file = io.BytesIO()
    torch.save({"weights": Marker(marker)}, file)
    return [pickle.dumps(Marker(marker)), file.getvalue()]


@pytest.mark.parametrize("kind", [0, 1])
def test_pickled_payloads_never_run(kind: int, trained: Run, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    payload = payloads(marker)[kind]
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    for checkpoint in valid_checkpoints(run / "checkpoints")[0]:
        (checkpoint / "model.safetensors").write_bytes(payload)
        with pytest.raises(ValueError, match="damaged checkpoint"):
            raypaml.load(checkpoint)
        digests = json.loads((checkpoint / MARKER).read_text())
        digests["model.safetensors"] = hashlib.sha256(payload).hexdigest()
        (checkpoint / MARKER).write_text(json.dumps(digests))
    with pytest.raises(ValueError, match="not a safetensors file"):
        raypaml.load(run)
    (tmp_path / "model.pt").write_bytes(payload)
    with pytest.raises(ValueError, match="nothing is unpickled"):
        raypaml.load(tmp_path / "model.pt")
    (run / "config.json").write_bytes(payload)
    with pytest.raises(ValueError, match="not the record of a run"):
        raypaml.load(run)
    assert not marker.exists()
    torch.load(tmp_path / "model.pt", weights_only=False) if kind else pickle.loads(payload)
    assert marker.exists()  # it would have run


def test_a_loaded_model_says_what_it_is_and_takes_paths(trained: Run, pictures: Path, tmp_path: Path) -> None:
    model = raypaml.load(trained[0])
    assert repr(model) == "<Classifier small, 50 classes, images of 64 x 64, alpha 5 (that of training), on cpu>"
    paths = sorted(pictures.iterdir())[:35]
    alone = [model.predict(Image.open(path), top=3) for path in paths]
    for given in (paths, [str(path) for path in paths], tuple(map(Image.open, paths))):
        for found, wanted in zip(model.predict(given, top=3), alone, strict=True):
            assert [one.class_id for one in found] == [one.class_id for one in wanted]
            assert [one.score for one in found] == pytest.approx([one.score for one in wanted], abs=1e-5)
    assert model.predict(str(paths[0]), top=3) == model.predict(paths[0], top=3) == alone[0]
    assert model.predict([]) == []
    np.testing.assert_array_equal(model.map(paths[0]), model.map(Image.open(paths[0])))
    for wrong, said in (
        (5, "predict: give a PIL image.*, not int"),
        ([5], "predict: give a PIL image.*, not int"),
        (pictures, f"{pictures}: a folder; give a PIL image"),
        (tmp_path / "none.jpg", "none.jpg: no such file"),
    ):
        with pytest.raises(ValueError, match=said):
            model.predict(wrong)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match=f"^{pictures}: not a run .*, not a checkpoint .*, not an export"):
        raypaml.load(pictures)

"""`python -m raypaml.export`: what other programs compute from it is what PyTorch computes."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import raypaml
from raypaml.export import main
from raypaml.inference import exporting
from raypaml.inference.card_page import card_page
from raypaml.inference.classifier import Classifier
from raypaml.inference.model_card import Card, digest
from raypaml.labels import Vocabulary
from raypaml.model.backbones import build_backbone
from raypaml.model.cam import CamClassifier, boostlu
from raypaml.runs.models import tested_checkpoint as best_of
from tests.test_predict import Marker, payloads

Run = tuple[Path, str]


def make(backbone: str, folder: Path, alpha: float | list[float] = 5.0) -> Classifier:
    """A model of random weights, as it would come from a run."""
    torch.manual_seed(0)
    model = CamClassifier(build_backbone(backbone), 11, 5.0)
    torch.nn.init.normal_(model.head.weight, std=0.05)
    with torch.no_grad():  # running statistics that are not trivial
        model.train()(torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8))
    save_file(model.state_dict(), folder / "model.safetensors")
    ids = [f"class {k}" for k in range(11)]
    Card(
        class_ids=ids,
        names=ids,
        vocabulary=Vocabulary.digest_of(ids),
        backbone=backbone,
        alpha=alpha,
        training_alpha=2.0,
        thresholds=[0.25] * 11 if isinstance(alpha, list) else None,
        height=64,
        width=64,
        weights=digest(folder / "model.safetensors"),
        metrics={},
        origin={},
    ).write(folder)
    return raypaml.load(folder)


@pytest.fixture(
    scope="module", params=[("small", [1 + k / 2 for k in range(11)]), ("resnet18", 5.0)], ids=["small", "resnet18"]
)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All exports of a model: one with an alpha and a threshold for each class, one with neither."""
    given, out = tmp_path_factory.mktemp("in"), tmp_path_factory.mktemp("out")
    make(request.param[0], given, request.param[1])
    assert main([str(given), "--out", str(out)]) == 0
    return out


def test_every_export_gives_the_logits_and_the_map(exported: Path) -> None:
    import onnxruntime

    out, model = exported, raypaml.load(exported)
    alpha = model.alpha
    session = onnxruntime.InferenceSession(out / "model.onnx")
    facts = dict.fromkeys(("alpha", "thresholds", "class_ids", "names", "mean", "std", "height", "width", "input"), "")
    program = torch.export.load(out / "model.pt2", extra_files=facts).module()
    with safe_open(out / "model.safetensors", "np") as file:
        for said in (session.get_modelmeta().custom_metadata_map, facts, file.metadata()):
            told = {
                name: json.loads(said[name]) for name in ("alpha", "thresholds", "class_ids", "names", "mean", "std")
            }
            known = {name: getattr(model.card, name) for name in ("alpha", "thresholds", "class_ids", "names")}
            assert told == known | {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
            assert (said["height"], said["width"]) == ("64", "64")
            assert "uint8 RGB [batch, 3, height, width]" in said["input"]
    blank = Image.new("RGB", (64, 64))
    axes = [session.get_inputs()[0].shape, *(output.shape for output in session.get_outputs())]
    assert axes == [["batch", 3, 64, 64], ["batch", 11], ["batch", 11, *model.map(blank).shape[1:]]]
    for name in ("model.onnx", "model.pt2"):
        assert b"exporting.py" not in (out / name).read_bytes()
    for count in (1, 5):
        images = np.random.default_rng(count).integers(0, 256, (count, 64, 64, 3), np.uint8)
        logits, maps = model.logits_and_map(list(images))
        np.testing.assert_allclose(boostlu(torch.from_numpy(maps), alpha).mean((-2, -1)).numpy(), logits, atol=1e-4)
        given = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        with torch.no_grad():
            ways = [session.run(["logits", "map"], {"images": given}), program(torch.from_numpy(given))]
        for found_logits, found_maps in ways:
            assert np.abs(np.asarray(found_logits) - logits).max() < 1e-4
            assert np.abs(np.asarray(found_maps) - maps).max() < 1e-4 * max(1, np.abs(maps).max())


def test_the_example_classifies_without_pytorch_as_raypaml_does(exported: Path, tmp_path: Path) -> None:
    model = raypaml.load(exported)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 100, 4), np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(pixels[..., :3]).save(tmp_path / "turned.png", exif=turned)
    Image.fromarray(pixels).save(tmp_path / "clear.png")
    for name in ("torch", "raypaml"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not here')")
    agree(example(exported, tmp_path), chosen_classes(model, tmp_path))
    if model.card.thresholds is None:
        agree(example(exported, tmp_path, "--top", "3"), best_classes(model, tmp_path))


def example(exported: Path, folder: Path, *flags: str) -> list[dict[str, str]]:
    """The rows that the example prints of two pictures, in a folder whose `torch` cannot be imported."""
    command = [sys.executable, str(exported / "predict_onnx.py"), "turned.png", "clear.png", *flags]
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    environment = kept | {"PYTHONPATH": str(folder), "XDG_CACHE_HOME": str(folder / "cache")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not (folder / "cache").exists()  # where onnxruntime would keep the id with which it reports its use
    return list(csv.DictReader(done.stdout.splitlines()))


def test_checking_an_export_reports_nothing_to_microsoft(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "")
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
    exporting.onnx_runner(exported / "model.onnx")
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


def agree(rows: list[dict[str, str]], expected: list[tuple[str, str, str, float]]) -> None:
    assert [(row["picture"], row["class"], row["name"]) for row in rows] == [one[:3] for one in expected]
    assert [float(row["score"] or 0) for row in rows] == pytest.approx([one[3] for one in expected], abs=1e-5)


def best_classes(model: Classifier, folder: Path) -> list[tuple[str, str, str, float]]:
    names = ("turned.png", "clear.png")
    return [(name, one.class_id, one.name, one.score) for name in names for one in model.predict(folder / name, top=3)]


def chosen_classes(model: Classifier, folder: Path) -> list[tuple[str, str, str, float]]:
    """As `raypaml predict` writes them: those that reach their threshold, or one row without a class."""
    least = 1 / (1 + math.exp(-model.card.thresholds[0])) if model.card.thresholds else 0.5
    rows: list[tuple[str, str, str, float]] = []
    for name in ("turned.png", "clear.png"):
        found = model.predict(folder / name, top=11, threshold=least)
        rows += [(name, one.class_id, one.name, one.score) for one in found] or [(name, "", "", 0.0)]
    return rows


def test_the_weights_of_the_same_model_are_the_same_file(tmp_path: Path) -> None:
    for name in ("in", "first", "second"):
        (tmp_path / name).mkdir()
    model = make("small", tmp_path / "in")
    files = [exporting.save_weights(model, tmp_path / name) for name in ("first", "second")]
    assert files[0].read_bytes() == files[1].read_bytes()
    with safe_open(files[0], "pt") as file:
        assert all(torch.equal(file.get_tensor(name), value) for name, value in model.model.state_dict().items())


def test_the_page_of_an_export_says_what_the_model_is_and_how_good(trained: Run, tmp_path: Path) -> None:
    main([str(trained[0]), "--formats", "safetensors", "--out", str(tmp_path)])
    page = (tmp_path / "model_card.md").read_text()
    assert "of 50 classes" in page
    assert "height and width are 64 and 64 pixels" in page
    assert "- loss: ll_r (Large-loss rejection" in page
    assert trained[1].split("\n\n")[0] in page
    assert "model.onnx" not in page
    make("small", tmp_path)
    assert "No figures are known." in card_page(raypaml.load(tmp_path), tmp_path, ["safetensors", "onnx"])


def test_names_of_any_kind_stand_in_the_page_as_they_are(tmp_path: Path) -> None:
    model = make("small", tmp_path)
    ids = ["<b>`x`", "[a](http://b)", "# two\nlines", *(f"{k}" for k in range(8))]
    card = dataclasses.replace(model.card, class_ids=ids, names=ids, origin={"run": "<i>"})
    folder = tmp_path / 'a "b"'
    page = card_page(Classifier(model.model, card), folder, ["safetensors"])
    assert "\n# \\<i>\n" in page
    assert "\nIn the order of the logits: \\<b>\\`x\\`, \\[a\\](http://b), # two lines, 0, 1," in page
    assert 'raypaml.load("a \\"b\\"")' in page


def test_the_page_of_another_checkpoint_has_no_test_figures_of_the_best(trained: Run, tmp_path: Path) -> None:
    shutil.copytree(trained[0], tmp_path / "run")
    first = best_of(tmp_path / "run")
    shutil.copytree(first, first.with_name("0009-000000"))
    best = best_of(tmp_path / "run")
    (other,) = {first, first.with_name("0009-000000")} - {best}  # as good, but not the one that was tested
    assert raypaml.load(best).card.metrics["mean_ap"] > 0
    model = raypaml.load(other)
    assert list(model.card.metrics) == ["validation_mean_ap"]
    page = card_page(model, tmp_path, ["safetensors"])
    assert f"{100 * model.card.metrics['validation_mean_ap']:.2f} percent. It was not tested." in page
    assert (
        f"- checkpoint: {other.name} (trained epochs, then trained steps of the next one), of a run of at most 2"
        in page
    )


def test_files_of_an_earlier_export_are_named(trained: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.onnx").touch()
    main([str(trained[0]), "--formats", "safetensors", "--out", str(tmp_path)])
    assert f"{tmp_path / 'model.onnx'}: of an earlier export, perhaps of another model; give" in capfd.readouterr().err
    assert "model.onnx" not in (tmp_path / "model_card.md").read_text()


def test_a_run_is_exported_with_its_card(trained: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained[0]
    assert main([str(run), "--formats", "safetensors"]) == 0
    assert "model.safetensors: logits within 0 of PyTorch's" in capsys.readouterr().out
    card = json.loads((run / "export" / "card.json").read_text())
    assert (card["height"], card["width"], card["backbone"], card["alpha"]) == (64, 64, "small", 5.0)
    assert len(card["class_ids"]) == 50
    assert card["metrics"]["mean_ap"] == json.loads((run / "result.json").read_text())["mean_ap"]
    images = list(np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8))
    np.testing.assert_array_equal(raypaml.load(run / "export").logits(images), raypaml.load(run).logits(images))


def test_an_export_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    model = make("small", tmp_path)
    with pytest.raises(ValueError, match=r"it: logits differ by 0\.001 from PyTorch's, allowed: 0\.0001"):
        exporting.check_parity(model, lambda images: model.model(images) + 1e-3, "it")
    with pytest.raises(ValueError, match="logits differ by nan"):
        exporting.check_parity(model, lambda images: model.model(images) * torch.nan, "it")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"class_ids": [str(k) for k in range(11)]}, "its classes are not those of its vocabulary digest"),
        ({"weights": "0" * 64}, "not the weights that card.json names"),
        ({"format": 9}, "format 9, this version reads 1"),
        ({"more": 1}, "not the card of a model"),
        ({"backbone": "smal"}, "did you mean 'small'"),
        ({"backbone": "resnet18"}, "does not fit resnet18 of 11 classes"),
    ],
)
def test_cards_that_do_not_belong_are_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    make("small", tmp_path)
    card = json.loads((tmp_path / "card.json").read_text())
    (tmp_path / "card.json").write_text(json.dumps(card | change))
    with pytest.raises(ValueError, match=said):
        raypaml.load(tmp_path)


def test_a_pickle_offered_as_weights_never_runs(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    make("small", tmp_path)
    for payload in payloads(marker):
        (tmp_path / "model.safetensors").write_bytes(payload)
        card = json.loads((tmp_path / "card.json").read_text())
        card["weights"] = digest(tmp_path / "model.safetensors")
        (tmp_path / "card.json").write_text(json.dumps(card))
        with pytest.raises(ValueError, match="not a safetensors file"):
            raypaml.load(tmp_path)
    assert not marker.exists()
    assert Marker(marker)


def test_unknown_formats_are_refused(trained: Run) -> None:
    with pytest.raises(ValueError, match="formats=onx: 'onx' is not a format; known: safetensors, onnx, program"):
        main([str(trained[0]), "--formats", "onx"])

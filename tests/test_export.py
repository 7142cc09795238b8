"""`python -m raypaml.export`: what other programs compute from it is what PyTorch computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import raypaml
from raypaml.export import main
from raypaml.inference import exporting
from raypaml.inference.classifier import Classifier
from raypaml.inference.model_card import Card, digest
from raypaml.labels import Vocabulary
from raypaml.model.backbones import build_backbone
from raypaml.model.cam import CamClassifier, boostlu
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


@pytest.mark.parametrize(("backbone", "alpha"), [("small", [1 + k / 2 for k in range(11)]), ("resnet18", 5.0)])
def test_every_export_gives_the_logits_and_the_map(backbone: str, alpha: float | list[float], tmp_path: Path) -> None:
    import onnxruntime

    (tmp_path / "in").mkdir()
    make(backbone, tmp_path / "in", alpha)
    out = tmp_path / "out"
    assert main([str(tmp_path / "in"), "--out", str(out)]) == 0
    model = raypaml.load(out)
    session = onnxruntime.InferenceSession(out / "model.onnx")
    facts = {"alpha": "", "thresholds": ""}
    program = torch.export.load(out / "model.pt2", extra_files=facts).module()
    with safe_open(out / "model.safetensors", "np") as file:
        for said in (session.get_modelmeta().custom_metadata_map, facts, file.metadata()):
            assert json.loads(said["alpha"]) == alpha
            assert json.loads(said["thresholds"]) == model.card.thresholds
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
    with pytest.raises(ValueError, match="formats=onx: 'onx' is none; known: safetensors, onnx, program"):
        main([str(trained[0]), "--formats", "onx"])

"""Weight files: nothing in them runs, prefixes are found, every stranger is named, other networks are refused."""

from __future__ import annotations

import argparse
import os
import pickle
import re
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from raypaml.model.backbones import Backbone, build_backbone
from raypaml.model.cam import CamClassifier, load_classifier
from raypaml.model.weights import NESTED, common_prefix, read_weights
from raypaml.runs.models import build_model
from raypaml.settings import ModelConfig


@pytest.fixture(scope="module")
def whole_resnet18() -> dict[str, Tensor]:
    torch.manual_seed(4)
    return torchvision.models.resnet18().state_dict()


def assert_holds(backbone: Backbone, weights: dict[str, Tensor], prefix: str = "") -> None:
    held = {name.removeprefix("net."): value for name, value in backbone.state_dict().items()}
    assert len(held) == 120
    assert all(torch.equal(value, weights[prefix + name]) for name, value in held.items())


def test_safetensors_weights_load(whole_resnet18: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(whole_resnet18, tmp_path / "w.safetensors")
    assert_holds(build_backbone("resnet18", str(tmp_path / "w.safetensors")), whole_resnet18)


@pytest.mark.parametrize("name", ["w.SAFETENSORS", "w.bin", "w"])
def test_safetensors_are_known_by_what_is_in_the_file(name: str, tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / name)
    assert read_weights(tmp_path / name) == ({"a": 1}, "")


def test_a_dictionary_that_holds_itself_is_refused(tmp_path: Path) -> None:
    inner: dict[str, object] = {"a": torch.ones(1)}
    outer = {"model": inner}
    inner["net"] = outer
    torch.save(outer, tmp_path / "w.pth")
    assert "model.net contains itself, without an end; save the model's state dict" in refusal(tmp_path / "w.pth")


@pytest.mark.parametrize("wrapped", ["", "model"])
def test_pytorch_weights_load(whole_resnet18: dict[str, Tensor], tmp_path: Path, wrapped: str) -> None:
    torch.save({wrapped: whole_resnet18, "epoch": 3} if wrapped else whole_resnet18, tmp_path / "w.pth")
    said: list[str] = []
    assert_holds(build_backbone("resnet18", str(tmp_path / "w.pth"), said.append), whole_resnet18)
    place = f" of {wrapped}" if wrapped else ""
    assert said == [f"weights={tmp_path / 'w.pth'}: 120 tensors{place}, 2 of the classifier left out"]


@pytest.mark.parametrize("wrapped", NESTED)
def test_where_training_scripts_put_their_weights_is_known_and_named(wrapped: str, tmp_path: Path) -> None:
    torch.save({wrapped: {"a": torch.ones(1)}, "epoch": 3, "args": {"lr": 1.0}}, tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth") == ({"a": 1}, f" of {wrapped}")


def test_of_several_state_dicts_one_is_taken_and_all_are_named(tmp_path: Path) -> None:
    weights = build_backbone("small").state_dict()
    others = {name: torch.zeros_like(value) for name, value in weights.items()}
    inner = {"model": {"config": "small"}, "state_dict": {"net": weights}, "state_dict_ema": others}
    torch.save(inner, tmp_path / "w.pth")
    said: list[str] = []
    backbone = build_backbone("small", str(tmp_path / "w.pth"), said.append)
    assert all(torch.equal(value, weights[name]) for name, value in backbone.state_dict().items())
    assert f"{len(weights)} tensors of state_dict.net, and not of state_dict_ema" in said[0]


@pytest.mark.parametrize("prefix", ["module.", "model.", "backbone.", "module.pre.", "a.b.c."])
def test_a_prefix_is_found_and_what_is_left_is_named(
    prefix: str, whole_resnet18: dict[str, Tensor], tmp_path: Path
) -> None:
    found = {prefix + name: value.clone() for name, value in whole_resnet18.items()}
    strangers = [f"{prefix}projector.{n}.weight" for n in range(5)] + ["queue"]
    save_file(found | {name: torch.zeros(1) for name in strangers}, tmp_path / "w.safetensors")
    said: list[str] = []
    assert_holds(build_backbone("resnet18", str(tmp_path / "w.safetensors"), said.append), found, prefix)
    (line,) = said
    assert f"120 tensors by prefix '{prefix}', 2 of the classifier left out; 6 belong to nothing here" in line
    assert line.endswith(" and 2 more")
    assert any(name in line for name in strangers)


def test_without_strangers_nothing_is_said_of_them(whole_resnet18: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(whole_resnet18, tmp_path / "w.safetensors")
    said: list[str] = []
    build_backbone("resnet18", str(tmp_path / "w.safetensors"), said.append)
    assert said == [f"weights={tmp_path / 'w.safetensors'}: 120 tensors, 2 of the classifier left out"]


def test_the_prefix_is_that_of_most_names() -> None:
    assert common_prefix(["m.a.x", "m.b.x", "x"], {"a.x", "b.x", "x"}) == "m."
    assert common_prefix(["a.x"], {"a.x", "x"}) == ""
    assert common_prefix(["other"], {"a.x"}) == ""


@pytest.mark.parametrize(
    ("origin", "backbone", "fault"),
    [
        ("resnet34", "resnet18", r"layer1\.2\.\S+ unknown; .* in all"),  # all of resnet18's keys are there
        ("resnet18", "resnet34", r"layer1.2.conv1.weight missing; .* in all"),
        ("resnet18", "mobilenet_v2", r"features.0.0.weight missing; .* in all"),
        ("shufflenet_v2_x0_5", "shufflenet_v2_x1_0", r"is \[24, 1, 3, 3\], expected|is \[24, 24, 1, 1\], expected"),
    ],
)
def test_weights_of_another_architecture_are_refused(origin: str, backbone: str, fault: str, tmp_path: Path) -> None:
    save_file(torchvision.models.get_model(origin).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=rf"w\.safetensors: another network: .*({fault})"):
        build_backbone(backbone, str(tmp_path / "w.safetensors"))


class Payload:
    """Makes a folder when unpickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_pickled_payload_is_refused_and_never_runs(tmp_path: Path, suffix: str) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "armed")))
    assert (tmp_path / "armed").is_dir()
    torch.save({"conv1.weight": Payload(tmp_path / "ran")}, tmp_path / f"w.{suffix}")
    refusal = "refused, it holds more than tensors" if suffix == "pth" else "not a readable weight file"
    with pytest.raises(ValueError, match=rf"w\.{suffix}: {refusal}"):
        build_backbone("small", str(tmp_path / f"w.{suffix}"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "holds no weights but 0 bytes; copy or download the file itself"),
        (b"\n<!DOCTYPE html><html>", "holds no weights but a web page; copy or"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "but a Git LFS pointer: run git lfs pull;",
        ),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied", "but XML, such as a store's error;"),
        (bytes(1000), "but nothing but zeros;"),
        (b"\x1f\x8b\x08" + bytes(20), "holds no weights but a gzip archive; unpack it"),
        (b"\xfd7zXZ\0" + bytes(20), "holds no weights but an xz archive; unpack it"),
        (b"PK\3\4" + bytes(100), "not a readable weight file (PytorchStreamReader failed reading zip archive: failed "),
    ],
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_what_came_instead_of_weights_is_called_what_it_is(
    content: bytes, reason: str, suffix: str, tmp_path: Path
) -> None:
    (tmp_path / f"w.{suffix}").write_bytes(content)
    said = refusal(tmp_path / f"w.{suffix}")
    assert reason in said or (suffix == "safetensors" and content.startswith(b"PK"))


def refusal(path: Path) -> str:
    """Why a file is refused: one line, without torch's advice and the codes of terminals."""
    with pytest.raises(ValueError, match=f"^weights={re.escape(str(path))}: ") as raised:
        build_backbone("small", str(path))
    said = str(raised.value)
    assert not re.search(r"[\n\t\x1b]|weights_only|safe_globals|PyTorch 2|file an issue", said), said
    return said


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            {"model": {}, "args": argparse.Namespace(lr=1)},
            "more than tensors: argparse.Namespace, which is only made by",
        ),
        (nn.Linear(1, 1), "refused, it holds more than tensors: torch.nn.modules.linear.Linear, which"),
        ({0: torch.zeros(1)}, "not a state dict of tensors by name: 0 is a key;"),
        ({"a": torch.zeros(1), "epoch": 3}, "not a state dict of tensors: epoch is of the type int;"),
        ({"a": torch.eye(2).to_sparse()}, "a is sparse (sparse_coo); save it dense: tensor.to_dense()"),
        ({"a": torch.zeros(2, device="meta")}, "a is a meta tensor, which has a shape and no values;"),
        ({"net": {"a": torch.zeros(2, dtype=torch.complex64)}}, "a is complex (complex64); weights are real numbers"),
        ({"a": torch.zeros(2, dtype=torch.int8)}, "a is quantised (int8); give the weights before they were quantised"),
        ({"a": torch.zeros(2).to(torch.float8_e4m3fn)}, "a is quantised (float8_e4m3fn);"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_contents_that_are_no_weights_are_refused_for_the_true_reason(
    content: object, reason: str, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "w.pth")
    assert reason in refusal(tmp_path / "w.pth")


def test_a_plain_pickle_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"a": 1}))
    assert "refused, it holds more than tensors, or is no weight file (unsupported operand" in refusal(
        tmp_path / "w.pth"
    )


def test_whole_numbers_where_weights_are_wanted_are_another_network(tmp_path: Path) -> None:
    weights = build_backbone("small").state_dict()
    weights["block2.1.bias"] = weights["block2.1.bias"].to(torch.int64)
    torch.save(weights, tmp_path / "w.pth")
    assert "another network: block2.1.bias is torch.int64, expected torch.float32" in refusal(tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth")[1] == ""


@pytest.mark.parametrize("content", [[torch.zeros(1)], {}, {"epoch": 3}, {"model": {}}, torch.zeros(2)])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth: not a state dict of tensors"):
        build_backbone("small", str(tmp_path / "w.pth"))


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_damaged_file_is_refused(whole_resnet18: dict[str, Tensor], tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    (torch.save if path.suffix == ".pth" else save_file)(whole_resnet18, path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=rf"weights=.*{name}: not a readable weight file \(."):
        build_backbone("resnet18", str(path))


def test_weights_that_do_not_fit_name_the_keys(tmp_path: Path) -> None:
    weights = build_backbone("small").state_dict()
    weights["block0.0.weight"] = torch.zeros(1, 2)
    weights["block2.stranger"] = weights.pop("block2.1.bias")
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="another network") as refusal:
        build_backbone("small", str(tmp_path / "w.safetensors"))
    faults = "block2.1.bias missing; block2.stranger unknown; block0.0.weight is [1, 2], expected [32, 3, 4, 4]; 3 in "
    assert faults in str(refusal.value)


def test_a_missing_file_is_refused() -> None:
    with pytest.raises(ValueError, match=r"weights=nowhere\.pth: no such file"):
        build_backbone("small", "nowhere.pth")


# --- The head -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "prefix"), [("resnet18", ""), ("shufflenet_v2_x0_5", "module.")])
@torch.no_grad()
def test_a_classifier_of_the_same_model_becomes_the_cam_head(name: str, prefix: str, tmp_path: Path) -> None:
    """At alpha 1 the CAM classifier is then the original."""
    torch.manual_seed(5)
    whole = torchvision.models.get_model(name, num_classes=7).eval()
    save_file({prefix + key: value for key, value in whole.state_dict().items()}, tmp_path / "w.safetensors")
    config = ModelConfig(backbone=name, weights=str(tmp_path / "w.safetensors"), head_weights=True, alpha=1.0)
    model = build_model(config, 7).eval()
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    torch.testing.assert_close(model(images), whole((images - model.mean) / model.std), rtol=1e-4, atol=1e-6)


def test_a_classifier_of_other_classes_is_refused(tmp_path: Path) -> None:
    model = CamClassifier(build_backbone("small"), 3)
    path = tmp_path / "w.safetensors"
    save_file({"fc.weight": torch.zeros(4, 128), "fc.bias": torch.zeros(4)}, path)
    with pytest.raises(ValueError, match=r"head_weights: fc.weight of .* is \[4, 128\], this head needs \[3, 128\]"):
        load_classifier(model, path)
    save_file({"fc.weight": torch.zeros(3, 128)}, path)
    with pytest.raises(ValueError, match=r"head_weights: .*w.safetensors has no fc.bias; leave --head-weights out"):
        load_classifier(model, path)
    nn.init.ones_(model.head.bias)
    save_file({"x.fc.weight": torch.ones(3, 128), "x.fc.bias": torch.zeros(3)}, path)
    load_classifier(model, path)
    assert model.head.bias.tolist() == [0, 0, 0]

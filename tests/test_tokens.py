"""Vision transformers as backbones: token grids as maps, at several sizes, trained, exported, and loaded from files."""

from __future__ import annotations

import csv
import functools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from raypaml import explain
from raypaml.cluster.checks import FATAL, examine
from raypaml.data.batches import Reader
from raypaml.inference.classifier import Classifier, load
from raypaml.inference.exporting import check_parity, onnx_runner, program_runner, save_onnx, save_program
from raypaml.inference.model_card import Card
from raypaml.model.backbones import build_backbone, build_whole, linear_classifier
from raypaml.model.cam import CamClassifier
from raypaml.recipes import recipe
from raypaml.runs.models import check_images
from raypaml.training.estimate import measure
from raypaml.training.gradients import check_draws_nothing, check_reproducible
from raypaml.training.job import plan_job, prepare_job
from tests.conftest import train_here

pytestmark = pytest.mark.usefixtures("one_thread")
NARROW: dict[str, Any] = {"depth": 2, "embed_dim": 48, "num_heads": 2}
STAGES: dict[str, Any] = {"depths": (1, 1, 1, 1)}
CUT: dict[str, dict[str, Any]] = {
    "test_vit": {"depth": 2},
    "deit_tiny_distilled_patch16_224": NARROW,
    "vit_small_patch14_reg4_dinov2": NARROW,
    "vit_small_patch16_dinov3": NARROW,
    "vit_base_patch16_siglip_224": NARROW,
    "vit_base_patch32_clip_224": NARROW,
    "eva02_tiny_patch14_224": NARROW,
    "swin_tiny_patch4_window7_224": STAGES | {"embed_dim": 24, "num_heads": (1, 1, 2, 2)},
    "swinv2_tiny_window8_256": STAGES | {"embed_dim": 24, "num_heads": (1, 1, 2, 2)},
    "maxvit_pico_rw_256@224": STAGES,
    "test_convnext": {},
    "beit_base_patch16_224@224": NARROW,
}
"""A model of each family, and what it is cut to here."""
SLOWER = ("maxvit_pico_rw_256@224", "swinv2_tiny_window8_256", "test_convnext")


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm makes the models of CUT with few and narrow blocks; all else is as users have it."""
    create = timm.create_model

    def create_cut(name: str, **how: Any) -> nn.Module:
        changes = {known.partition("@")[0]: one for known, one in CUT.items()} | {"vit_base_patch16_224": NARROW}
        return create(name, **how, **changes.get(name.partition(".")[0], {}))  # type: ignore[no-any-return]

    monkeypatch.setattr(timm, "create_model", create_cut)


def images_of(size: int, count: int = 1) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)


@pytest.mark.parametrize("name", [pytest.param(one, marks=[pytest.mark.cluster] * (one in SLOWER)) for one in CUT])
@pytest.mark.usefixtures("cut")
def test_every_family_has_a_map_and_learns_at_two_sizes(name: str) -> None:
    """A gradient reaches every parameter: DDP and exact gradients need that, and it is a test of what was cut off."""
    model = CamClassifier(build_backbone(f"timm:{name}"), 3)
    stride = model.backbone.stride
    assert stride == (14 if "14" in name else 16 if "16_" in name or name == "test_vit" else 32)
    for size in (224,) if "@" in name else (224, 448):
        model.zero_grad()
        assert model.cam(images_of(size)).shape == (1, 3, size // stride, size // stride)
        model(images_of(size)).sum().backward()
        assert [key for key, one in model.named_parameters() if one.grad is None] == []
        assert next(model.backbone.parameters()).grad.abs().sum() > 0


def filled(name: str) -> tuple[nn.Module, nn.Module]:
    """The origin whole, and the backbone with its weights, in evaluation."""
    whole, backbone = build_whole(f"timm:{name}").eval(), build_backbone(f"timm:{name}").eval()
    weights = whole.state_dict()
    with torch.no_grad():  # norms start as ones and zeros, which are of no effect
        for value in weights.values():
            if value.is_floating_point() and value.ndim == 1:
                value.add_(0.2 * torch.rand_like(value))
    own = backbone.state_dict()
    backbone.load_state_dict({key: weights[key.removeprefix(str(backbone.prefix))] for key in own})
    return whole, backbone


@pytest.mark.parametrize("name", [name for name, changes in CUT.items() if "depth" in changes])
@pytest.mark.usefixtures("cut")
@torch.no_grad()
def test_the_map_is_the_origins_normed_tokens_row_by_row(name: str) -> None:
    """Beside `forward_features`, which drops no token; places are counted by hand, on images that are no squares."""
    whole, backbone = filled(name)
    stride = int(backbone.stride)
    height, width = (224, 224) if "@" in name else (6 * stride, 4 * stride)
    images = torch.rand(2, 3, height, width)
    tokens = whole.forward_features(images)
    tokens = whole.fc_norm(tokens) if isinstance(whole.norm, nn.Identity) else tokens
    tokens = tokens[:, whole.num_prefix_tokens :]
    features, columns = backbone(images), width // stride
    assert features.shape[2:] == (height // stride, columns)
    for row, column in ((0, 0), (1, 3), (3, 1)):
        torch.testing.assert_close(features[:, :, row, column], tokens[:, row * columns + column], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in CUT if "maxvit" not in name])  # with random weights it mixes all
@pytest.mark.usefixtures("cut")
@torch.no_grad()
def test_a_patch_that_differs_shows_at_its_place(name: str) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(f"timm:{name}").eval()
    stride = int(backbone.stride)
    height, width = (224, 224) if "@" in name else (6 * stride, 8 * stride)
    images = torch.zeros(2, 3, height, width)
    images[1, :, 1 * stride : 2 * stride, 3 * stride : 4 * stride] = 2 * torch.rand(3, stride, stride)
    features = backbone(images)
    differs = (features[1] - features[0]).norm(dim=0)
    assert divmod(int(differs.argmax()), differs.shape[1]) == (1, 3)


# --- Sizes ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_swin_gives_at_its_own_size_what_it_gave_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs began with windows masked once; they go on with windows masked for each size."""
    name, how = "swin_tiny_patch4_window7_224", {"embed_dim": 24, "depths": (2, 2, 2, 2), "num_heads": (1, 1, 2, 2)}
    before = timm.create_model(name, num_classes=0, global_pool="", **how).eval()
    monkeypatch.setattr(timm, "create_model", functools.partial(timm.create_model, **how))
    backbone = build_backbone(f"timm:{name}").eval()
    backbone.load_state_dict({f"net.0.{key}": value for key, value in before.state_dict().items()})
    images = torch.rand(1, 3, 224, 224)
    assert torch.equal(backbone(images), before(images).permute(0, 3, 1, 2))


@pytest.mark.usefixtures("cut")
def test_a_model_of_one_size_says_how_to_name_another() -> None:
    name = "timm:beit_base_patch16_224"
    hint = rf"backbone='{name}': it does not take .* 448 x 448 pixels \(.*; name their size, --backbone {name}@448, "
    with pytest.raises(ValueError, match=hint):
        check_images(CamClassifier(build_backbone(name), 2), 448, 448, name)
    check_images(CamClassifier(build_backbone(f"{name}@448"), 2), 448, 448, f"{name}@448")


@pytest.mark.usefixtures("cut")
def test_plan_doctor_and_start_refuse_images_of_another_size(tiny_digits: Path, tmp_path: Path) -> None:
    name = "timm:vit_small_patch14_reg4_dinov2"  # 64 pixels are no multiple of 14
    said = rf"backbone='{name}': it does not take the data's images of 64 x 64 pixels \(.*14.*\); prepare the data with"
    config = recipe("digits").override({"data": str(tiny_digits), "backbone": name, "storage": str(tmp_path)})
    for door in (plan_job, prepare_job):
        with pytest.raises(ValueError, match=said):
            door(config, lambda _: None)
    (fatal,) = [finding for finding in examine(config, 0.0, 24.0) if finding.level == FATAL]
    assert re.match(said, fatal.what)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("timm:test_vit@large", "'large' is no size of images; write the pixels of a side, such as @448"),
        ("timm:test_vit@", "'' is no size of images"),
        ("timm:resnet10t@224", "it is not built for one size of images; leave @224 out"),
    ],
)
def test_a_size_that_cannot_be_is_refused(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"backbone='{name}': {reason}"):
        build_backbone(name)


# --- Weights --------------------------------------------------------------------------------------------------------


def saved(tmp_path: Path, weights: dict[str, Tensor]) -> str:
    save_file({key: value.contiguous() for key, value in weights.items()}, tmp_path / "w.safetensors")
    return str(tmp_path / "w.safetensors")


@pytest.mark.usefixtures("cut")
def test_position_embeddings_of_another_size_are_resampled_as_timm_does(tmp_path: Path) -> None:
    weights = build_whole("timm:test_vit").state_dict()
    said: list[str] = []
    backbone = build_backbone("timm:test_vit@224", saved(tmp_path, weights), said.append)
    overlay = {"state_dict": weights, "url": ""}
    expected = timm.create_model("test_vit", pretrained=True, pretrained_cfg_overlay=overlay, img_size=224).state_dict()
    held = {key.removeprefix(str(backbone.prefix)): value for key, value in backbone.state_dict().items()}
    assert {key: torch.equal(value, expected[key]) for key, value in held.items()} == dict.fromkeys(held, True)
    assert "resampled pos_embed from [1, 101, 64] to [1, 197, 64], 2 of the classifier left out" in said[0]


@pytest.mark.usefixtures("cut")
def test_the_authors_names_are_understood(tmp_path: Path) -> None:
    """DINOv2's own files call registers `register_tokens`, and hold a mask token."""
    weights = build_whole("timm:vit_small_patch14_reg4_dinov2").state_dict()
    theirs = {key.replace("reg_token", "register_tokens"): value for key, value in weights.items()}
    theirs["mask_token"] = torch.zeros(1, 48)
    theirs["pos_embed"] = torch.cat([torch.zeros(1, 1, 48), weights["pos_embed"]], 1)
    said: list[str] = []
    backbone = build_backbone("timm:vit_small_patch14_reg4_dinov2", saved(tmp_path, theirs), said.append)
    assert torch.equal(backbone.net.net.reg_token, weights["reg_token"])
    assert torch.equal(backbone.net.net.pos_embed, weights["pos_embed"])
    assert f"{len(weights)} converted from {len(theirs)} of other names" in said[0]


@pytest.mark.usefixtures("cut")
def test_what_differs_in_another_transformer_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path, build_whole("timm:vit_base_patch16_siglip_224").state_dict())
    with pytest.raises(ValueError, match=r"another network: cls_token missing; .*in all"):
        build_backbone("timm:test_vit", path)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("test_vit", "the classifier head of timm:test_vit does not .* as it is \\(it reads the class token\\), so"),
        ("vit_small_patch14_reg4_dinov2", "timm:vit_small_patch14_reg4_dinov2 has no classifier; leave --head-weights"),
    ],
)
@pytest.mark.usefixtures("cut")
def test_a_classifier_of_the_class_token_is_no_head(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"head_weights: {reason}"):
        linear_classifier(f"timm:{name}")


@pytest.mark.parametrize(
    ("name", "mean"),
    [("vit_base_patch16_224", 0.5), ("vit_base_patch16_224.dino", 0.485), ("vit_base_patch32_clip_224", 0.48145466)],
)
@pytest.mark.usefixtures("cut")
def test_pixels_are_normalised_as_the_weights_of_the_tag_expect(name: str, mean: float) -> None:
    assert build_backbone(f"timm:{name}").mean[0] == mean


# --- What can be done with them -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("cut")
def test_they_are_computed_in_other_ways_as_others_are() -> None:
    """Channels last, in bfloat16, and lane by lane with nothing drawn."""
    torch.manual_seed(0)
    model = CamClassifier(build_backbone("timm:eva02_tiny_patch14_224"), 3).eval()
    images = images_of(56, 2)
    features = model.features(images)
    torch.testing.assert_close(model.to(memory_format=torch.channels_last).features(images), features)
    with torch.autocast("cpu", torch.bfloat16):
        assert (model.features(images) - features).abs().max() < 0.1
    check_draws_nothing(model, 56, 56)
    check_reproducible(model, 0, 8)


@pytest.mark.usefixtures("cut")
def test_operations_are_those_of_the_blocks() -> None:
    """Ten products D x D of a token, six of them in the MLP; attention multiplies each with each twice."""
    shape = measure("timm:test_vit", 10, 64, 48, torch.float32)
    width, tokens = 64, 4 * 3 + 1
    block = tokens * width * width * 10 + 2 * tokens * tokens * width
    assert shape.grid == (4, 3)
    assert shape.flops == 2 * (2 * block + (tokens - 1) * 16 * 16 * 3 * width)


@pytest.mark.usefixtures("cut")
def test_a_run_on_frozen_tokens_goes_on_end_to_end_and_is_opened_again(
    tiny_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"epochs": 2, "freeze_backbone": 1, "name": "run", "workers": 1, "flip": False, "ema": 0.0}
    values |= {"data": str(tiny_digits), "storage": str(tmp_path), "backbone": "timm:test_vit", "reproducible": True}
    job = train_here(recipe("digits").override(values))
    model = load(job.folder)
    assert model.map(Image.new("RGB", (80, 60))).shape == (len(model.card.names), 4, 4)
    assert not (job.folder / "features").exists()
    assert explain.main([str(job.folder), "--limit", "8", "--rows", "1"]) == 0
    page, index = Path(capsys.readouterr().out.strip()), job.data.splits["test"]
    cam = model.map(Image.fromarray(Reader(job.data.shards, index, ()).image(0)))
    expected = 1 / (1 + np.exp(-np.where(cam > 0, 5 * cam, cam).mean((1, 2))))
    with (page.parent / "pairs.csv").open() as file:
        scores = {row["class_id"]: float(row["score"]) for row in csv.DictReader(file) if row["key"] == "test-000000"}
    assert scores == pytest.approx(dict(zip(model.card.class_ids, expected.tolist(), strict=True)), abs=1e-5)
    assert page.read_text().count("<figure>") == 2  # the image, and its map


# --- What takes longer ----------------------------------------------------------------------------------------------


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize("name", ["test_vit", "eva02_tiny_patch14_224", "vit_small_patch16_dinov3"])
def test_exports_and_compiled_models_give_the_same(name: str, tmp_path: Path) -> None:
    """The position embeddings of test_vit are of another size than the images: ONNX would resample them otherwise."""
    model = CamClassifier(build_backbone(f"timm:{name}"), 2).eval()
    nn.init.normal_(model.head.weight, std=0.3)
    images = images_of(224)
    compiled = torch.compile(model.features, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), model.features(images))
    about = {"class_ids": ["a", "b"], "names": ["a", "b"], "vocabulary": "", "weights": "", "metrics": {}, "origin": {}}
    card = Card(backbone=f"timm:{name}", alpha=5.0, height=224, width=224, **about)
    classifier = Classifier(model, card)
    assert check_parity(classifier, program_runner(save_program(classifier, tmp_path)), "program") < 1e-4
    assert check_parity(classifier, onnx_runner(save_onnx(classifier, tmp_path)), "onnx") < 1e-4


@pytest.mark.cluster
@pytest.mark.parametrize(
    "name",
    [
        *("vit_tiny_patch16_224", "deit_tiny_patch16_224", "vit_small_patch14_dinov2", "vit_tiny_patch16_dinov3_qkvb"),
        *("eva02_tiny_patch14_224", "vit_base_patch32_clip_224", "vit_base_patch16_siglip_224"),
        *("swin_tiny_patch4_window7_224", "maxvit_pico_rw_256@224", "cait_xxs24_224", "hiera_tiny_224"),
    ],
)
def test_a_whole_model_of_each_family_learns(name: str) -> None:
    model = CamClassifier(build_backbone(f"timm:{name}"), 3)
    model(images_of(224)).sum().backward()
    assert [key for key, one in model.named_parameters() if one.grad is None] == []

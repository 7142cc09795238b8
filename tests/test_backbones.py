"""Backbones found by inspection, beside what a hook on the whole model sees; what can be done with them; refusals."""

from __future__ import annotations

import copy
import re
from typing import Any
from urllib.error import URLError

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from raypaml.model.backbones import build_backbone, build_whole, linear_classifier
from raypaml.model.cam import CamClassifier
from raypaml.runs.models import check_images
from tests.conftest import run_distributed

MAPS = {
    "resnet18": ("layer4", 512, 32),
    "resnet50": ("layer4", 2048, 32),
    "efficientnet_b0": ("features", 1280, 32),
    "mobilenet_v3_small": ("features", 576, 32),
    "convnext_tiny": ("features", 768, 32),
    "densenet121": ("features", 1024, 32),
    "regnet_y_400mf": ("trunk_output", 440, 32),
    "vgg11": ("features", 512, 32),
    "squeezenet1_1": ("features", 512, 16),
    "shufflenet_v2_x0_5": ("conv5", 1024, 32),
    "swin_t": ("permute", 768, 32),
    "googlenet": ("inception5b", 1024, 32),
}
"""Where each model's map comes out, as a person reads its source; channels and stride."""

FEW_THREADS = 2


@pytest.fixture(autouse=True)
def _few_threads() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(FEW_THREADS)
    yield
    torch.set_num_threads(before)


def hooked(whole: nn.Module, module: str, images: Tensor) -> Tensor:
    seen: list[Tensor] = []
    whole.get_submodule(module).register_forward_hook(lambda *args: seen.append(args[-1].clone()))
    whole.eval()(images)
    return seen[-1]


@pytest.mark.parametrize("name", MAPS)
@torch.no_grad()
def test_the_map_is_what_a_hook_on_the_whole_model_sees(name: str) -> None:
    module, channels, stride = MAPS[name]
    whole = build_whole(name)
    backbone = build_backbone(name).eval()
    weights = whole.state_dict()
    backbone.load_state_dict({f"net.{key}": value for key, value in weights.items() if _has(backbone, key)})
    images = torch.rand(2, 3, 96, 64)
    expected = hooked(whole, module, images)
    expected = expected.relu() if name == "densenet121" else expected
    assert torch.equal(backbone(images), expected)
    assert expected.shape[1] == backbone.num_channels == channels
    assert backbone.stride == stride
    assert len(backbone.state_dict()) < len(weights)  # the classifier is gone


def _has(backbone: nn.Module, key: str) -> bool:
    return f"net.{key}" in backbone.state_dict()


@pytest.mark.parametrize(
    ("name", "channels", "mean"),
    [("tf_efficientnet_lite0", 1280, 0.5), ("resnet10t", 512, 0.485), ("swin_tiny_patch4_window7_224", 768, 0.485)],
)
@torch.no_grad()
def test_maps_of_timm(name: str, channels: int, mean: float) -> None:
    """Swin's map has its channels last there, and takes images of one size."""
    backbone = build_backbone(f"timm:{name}").eval()
    whole = timm.create_model(name, num_classes=0, global_pool="").eval()
    key = "net.0." if "swin" in name else "net."
    whole.load_state_dict({k.removeprefix(key): value for k, value in backbone.state_dict().items()})
    images = torch.rand(1, 3, 224, 224)
    expected = whole(images)
    assert torch.equal(backbone(images), expected.permute(0, 3, 1, 2) if "swin" in name else expected)
    assert (backbone.num_channels, backbone.stride) == (channels, 32)
    assert backbone.mean[0] == mean


def test_pixels_are_normalised_as_the_backbone_wants() -> None:
    model = CamClassifier(build_backbone("timm:tf_efficientnet_lite0"), 2)
    assert model.mean.flatten().tolist() == model.std.flatten().tolist() == [127.5] * 3
    model = CamClassifier(build_backbone("small"), 2)
    assert model.mean.flatten().tolist() == pytest.approx([255 * 0.485, 255 * 0.456, 255 * 0.406])


def test_a_model_without_a_map_is_refused_with_what_follows() -> None:
    reason = r"its last map, \[768, 14, 14\] of conv_proj \(Conv2d\), goes on through .*encoder \(Encoder\)"
    with pytest.raises(ValueError, match=rf"backbone='vit_b_16': {reason}.*; .*: use timm:vit_base_patch16_224"):
        build_backbone("vit_b_16")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet52", "no such backbone; did you mean 'resnet152'"),
        ("smal", "no such backbone; did you mean 'small'"),
        (
            "xyz",
            "no such backbone; known: small, torchvision's classification models by their names, timm:NAME; one of",
        ),
        ("timm:resnet19d", "timm has no such model; did you mean 'timm:resnet1"),
        ("fasterrcnn_resnet50_fpn", "no such backbone"),
    ],
)
def test_an_unknown_backbone_is_refused_with_the_nearest_names(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=rf"backbone='{name}': {hint}"):
        build_backbone(name)


def test_without_timm_its_models_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(
        ValueError, match=r"timm:resnet18': timm is not installed; .*python.* -m pip install 'raypaml\[timm\]'"
    ):
        build_backbone("timm:resnet18")


def test_small_has_group_norm_and_no_running_state() -> None:
    backbone = build_backbone("small")
    assert (backbone.num_channels, backbone.stride) == (128, 8)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    assert backbone(torch.zeros(1, 3, 64, 64)).shape == (1, 128, 8, 8)


def test_data_of_a_size_that_a_model_does_not_take_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'timm:test_vit': it does not take .* 64 x 60 pixels \(.*; prepare .*--res"):
        check_images(CamClassifier(build_backbone("timm:test_vit"), 2), 64, 60, "timm:test_vit")
    check_images(CamClassifier(build_backbone("timm:test_vit"), 2), 64, 48, "timm:test_vit")


# --- What can be done with them -------------------------------------------------------------------------------------


def test_dropout_and_batch_norm_follow_training_and_evaluation() -> None:
    torch.manual_seed(0)
    backbone = build_backbone("efficientnet_b0")  # stochastic depth
    images = torch.rand(2, 3, 64, 64)
    assert not torch.equal(backbone(images), backbone(images))
    backbone.eval()
    assert torch.equal(backbone(images), backbone(images))


def test_copies_are_independent() -> None:
    model = CamClassifier(build_backbone("resnet18"), 3).eval()
    other = copy.deepcopy(model)
    images = torch.zeros((1, 3, 64, 64), dtype=torch.uint8)
    assert torch.equal(other(images), model(images))
    nn.init.zeros_(other.backbone.net.conv1.weight)
    assert not torch.equal(other(images), model(images))
    assert list(other.state_dict()) == list(model.state_dict())


def test_batch_norm_converts_to_synchronised() -> None:
    model = CamClassifier(build_backbone("resnet18"), 3)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    norms = [module for module in converted.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 20
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    images = torch.zeros((1, 3, 64, 64), dtype=torch.uint8)
    assert torch.equal(converted.eval()(images), model.eval()(images))


@pytest.mark.filterwarnings("ignore")
def test_torch_compile_takes_them_whole() -> None:
    model = CamClassifier(build_backbone("resnet18"), 3).eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    compiled = torch.compile(model.features, backend="eager", fullgraph=True)
    assert torch.equal(compiled(images), model.features(images))


def averaged_gradient(rank: int, world_size: int) -> Any:
    torch.manual_seed(0)
    model = CamClassifier(build_backbone("shufflenet_v2_x0_5"), 3)
    wrapped = nn.parallel.DistributedDataParallel(model)
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)[2 * rank : 2 * rank + 2]
    wrapped(images).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    return model.backbone.net.get_submodule("conv1.0").weight.grad.numpy()


def test_gradients_average_over_ranks() -> None:
    one, two = run_distributed(averaged_gradient, 2)
    assert (one == two).all()
    assert one.any()


# --- The classifier of the origin -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("small", "fc"),
        ("resnet18", "fc"),
        ("efficientnet_b0", "classifier.1"),
        ("densenet121", "classifier"),
        ("shufflenet_v2_x0_5", "fc"),
        ("timm:resnet10t", "fc"),
    ],
)
def test_the_layer_that_reads_the_pooled_map(name: str, layer: str) -> None:
    assert linear_classifier(name) == layer


@pytest.mark.parametrize(
    ("name", "between"),
    [
        ("mobilenet_v3_small", "classifier.0"),
        ("vgg11", "classifier.0, classifier.3"),
        ("squeezenet1_1", "a function without weights"),  # ReLU after the classifier's convolution
        ("timm:test_convnext", "a function without weights"),
    ],
)
def test_a_classifier_that_does_not_read_the_pooled_map_is_refused(name: str, between: str) -> None:
    with pytest.raises(ValueError, match=rf"head_weights: the classifier .* of {name} .*between them: {between}\)"):
        linear_classifier(name)


# --- Downloads ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "weights", "fetched"),
    [
        ("resnet101", "imagenet", ("resnet101", "DEFAULT")),
        ("resnet18", "imagenet-v1", ("resnet18", "IMAGENET1K_V1")),
        ("resnet50", "imagenet-v1", ("resnet50", "IMAGENET1K_V1")),
        ("resnet50", "imagenet-v2", ("resnet50", "IMAGENET1K_V2")),
        ("timm:resnet10t", "imagenet", ("resnet10t", True)),
        ("timm:resnet50.a1_in1k", "imagenet", ("resnet50.a1_in1k", True)),
        ("timm:resnet50", "imagenet-v1", ("resnet50.tv_in1k", True)),
        ("timm:resnet50", "imagenet-v2", ("resnet50.tv2_in1k", True)),
        ("timm:resnet50.tv2_in1k", "imagenet-v2", ("resnet50.tv2_in1k", True)),
    ],
)
def test_imagenet_weights_are_fetched_by_name_and_without_a_network_it_is_said_what_to_do(
    name: str, weights: str, fetched: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[Any]()

    def offline(model: str, **how: Any) -> None:
        asked.append((model, how.get("pretrained", how.get("weights"))))
        raise URLError(OSError(101, "Network is unreachable"))

    monkeypatch.setattr(torchvision.models, "get_model", offline)
    monkeypatch.setattr(timm, "create_model", offline)
    origin = "timm" if name.startswith("timm:") else "torchvision"
    message = f"weights={weights}: {origin} could not download .* of {name} .*unreachable.* --weights FILE"
    with pytest.raises(ValueError, match=message):
        build_backbone(name, weights)
    assert asked == [fetched]


@pytest.mark.parametrize(
    ("name", "weights", "said"),
    [
        ("small", "imagenet", "there are none for backbone 'small'; give --weights ''"),
        (
            "vgg16",
            "imagenet-v2",
            "torchvision has no IMAGENET1K_V2 for vgg16, it has IMAGENET1K_V1 (imagenet-v1), IMAG",
        ),
        ("vit_h_14", "imagenet-v1", "torchvision has no IMAGENET1K_V1 for vit_h_14, it has IMAGENET1K_SWAG_E2E_V1, IM"),
        (
            "timm:vgg16",
            "imagenet-v2",
            "timm has no tv2_in1k for vgg16, it has tv_in1k (imagenet-v1); --weights imagenet",
        ),
        (
            "timm:resnet10t",
            "imagenet-v1",
            "timm has no tv_in1k for resnet10t, it has c3_in1k; --weights imagenet takes",
        ),
        (
            "timm:resnet14t",
            "imagenet-v1",
            "timm has no tv_in1k for resnet14t, it has c3_in1k; --weights imagenet takes",
        ),
        ("timm:cspresnet50d", "imagenet", "timm has no weights for cspresnet50d, or any other; give a file as --wei"),
        (
            "timm:resnet50.a1_in1k",
            "imagenet-v1",
            "these are timm:resnet50.tv_in1k, and backbone='timm:resnet50.a1_in1k'",
        ),
    ],
)
def test_imagenet_weights_that_a_backbone_does_not_have_are_refused(name: str, weights: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"weights={weights}: {said}")):
        build_backbone(name, weights)

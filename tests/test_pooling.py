"""The head without its map, against the map; and a linear classifier in its place."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from raypaml.model import pooling
from raypaml.model.cam import FeatureClassifier, pool_parts
from raypaml.model.pooling import pooled_map, tile_images
from raypaml.runs.models import build_model
from raypaml.settings import ModelConfig

ALPHA = 5.0


def inputs(
    shape: tuple[int, ...], classes: int, kind: torch.dtype, *, seed: int = 0, exact: bool = False
) -> list[Tensor]:
    """Features, weight, bias; `exact`: small integers, so that attributions are exactly 0 here and there."""
    rng = torch.Generator().manual_seed(seed)
    sizes = (shape, (classes, shape[1], 1, 1), (classes,))
    tensors = [torch.randn(size, generator=rng, dtype=torch.float64) for size in sizes]
    return [(tensor.round() if exact else tensor).to(kind).requires_grad_() for tensor in tensors]


def reference(features: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return pool_parts(F.conv2d(features, weight, bias))


def learnt(parts: tuple[Tensor, Tensor], tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """P, N, and the gradients of some function of both."""
    positive, negative = parts
    slope = torch.linspace(-1, 2, positive.numel(), dtype=positive.dtype).view_as(positive)
    total = ((ALPHA * positive + negative) * slope).sum() + (negative * slope.square()).sum()
    learning = [tensor for tensor in tensors if tensor.requires_grad]
    return positive.detach(), negative.detach(), *torch.autograd.grad(total, learning)


@given(
    shape=st.tuples(st.integers(0, 5), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3)),
    classes=st.integers(1, 6),
    tile=st.integers(1, 60),
    exact=st.booleans(),
    last=st.booleans(),
    frozen=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(deadline=None, max_examples=150)
def test_values_and_gradients_are_those_of_the_whole_map(
    shape: tuple[int, ...], classes: int, tile: int, exact: bool, last: bool, frozen: bool, seed: int
) -> None:
    tensors = inputs(shape, classes, torch.float64, seed=seed, exact=exact)
    if last:
        tensors[0] = tensors[0].detach().to(memory_format=torch.channels_last)
    tensors[0].requires_grad_(not frozen)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(pooling.TILE_VALUES, "cpu", tile)
        found = learnt(pooled_map(*tensors), tensors)
    for one, other in zip(found, learnt(reference(*tensors), tensors), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)
    assert (found[0] >= 0).all()
    assert (found[1] <= 0).all()


def test_the_gradient_lies_as_the_weight() -> None:
    tensors = inputs((4, 32, 7, 7), 18, torch.float32)
    for layout in (torch.contiguous_format, torch.channels_last):
        weight = tensors[1].detach().to(memory_format=layout).requires_grad_()
        assert learnt(pooled_map(tensors[0], weight, tensors[2]), [weight])[2].stride() == weight.stride()


@pytest.mark.parametrize("last", [False, True])
def test_nothing_is_computed_for_a_frozen_backbone(last: bool) -> None:
    tensors = inputs((4, 32, 7, 7), 18, torch.float32)
    if last:
        tensors[0] = tensors[0].detach().to(memory_format=torch.channels_last)
    found = {}
    for frozen in (False, True):
        tensors[0].requires_grad_(not frozen)
        with FlopCounterMode(display=False) as counter:
            learnt(pooled_map(*tensors), tensors)
        found[frozen] = counter.get_total_flops() / (2 * 4 * 7 * 7 * 32 * 18)
    assert found[False] - found[True] == 1  # product, that of the gradient by the features


def test_features_kept_in_half_precision_are_pooled_in_that_of_the_weights() -> None:
    features, weight, bias = inputs((3, 16, 4, 5), 7, torch.float32)
    features = features.detach().half()
    for part, wanted in zip(
        pooled_map(features, weight, bias), pooled_map(features.float(), weight, bias), strict=True
    ):
        assert torch.equal(part, wanted)


@pytest.mark.parametrize("half", [False, True])
def test_the_head_learns_from_kept_features_as_from_their_copy_in_float32(half: bool) -> None:
    torch.manual_seed(0)
    head = FeatureClassifier(build_model(ModelConfig(), 7))
    kept, found = torch.randn(9, head.head.in_channels, 4, 5).half(), []
    for features in (kept, kept.float()):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = head(features)
        found.append((logits, *torch.autograd.grad(logits.square().sum(), [*head.parameters()])))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_in_float32_values_and_gradients_are_right_to_rounding() -> None:
    low = inputs((3, 16, 4, 5), 7, torch.float32)
    high = [tensor.detach().double().requires_grad_() for tensor in low]
    for one, other in zip(learnt(pooled_map(*low), low), learnt(reference(*high), high), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tile", [1, 1000])
def test_under_autocast_the_map_is_bfloat16_and_the_sums_are_float32(
    tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(pooling.TILE_VALUES, "cpu", tile)
    tensors = inputs((2, 64, 14, 14), 5, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = learnt(pooled_map(*tensors), tensors)
        cam = F.conv2d(*tensors)
    assert cam.dtype == torch.bfloat16
    whole = tuple(part.detach() for part in pool_parts(cam))
    for part, wanted in zip(found[:2], whole, strict=True):
        assert part.dtype == torch.float32
        torch.testing.assert_close(part, wanted, rtol=2e-3, atol=2e-3)
    exact = learnt(reference(*tensors), tensors)
    for gradient, wanted in zip(found[2:], exact[2:], strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - wanted).norm() < 0.05 * wanted.norm()


def test_float16_sums_do_not_overflow() -> None:
    """Each attribution is 1,000 and there are 100 of them: their sum is beyond float16."""
    features, weight, bias = torch.full((1, 1, 10, 10), 1000.0), torch.ones(2, 1, 1, 1), torch.zeros(2)
    with torch.autocast("cpu", torch.float16):
        positive, negative = pooled_map(features, weight, bias)
    assert positive.tolist() == [[1000, 1000]]
    assert negative.tolist() == [[0, 0]]


def test_what_is_kept_of_the_map_is_a_byte_a_value() -> None:
    tensors = inputs((4, 8, 7, 7), 50, torch.float32)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        pooled_map(*tensors)
    own = {tensor.data_ptr() for tensor in tensors}
    beside = [tensor for tensor in kept if tensor.data_ptr() not in own]
    assert sum(tensor.nbytes for tensor in beside) == 4 * 50 * 7 * 7
    with torch.no_grad(), torch.autograd.graph.saved_tensors_hooks(lambda _: pytest.fail("kept"), lambda t: t):
        pooled_map(*tensors)


def test_a_tile_is_some_whole_images() -> None:
    assert tile_images(5000, 196, "cpu") == 1
    assert tile_images(50, 64, "cpu") == 327
    assert tile_images(20_000, 28 * 28, "cpu") == 1
    assert tile_images(5000, 196, "cuda") == 68


def test_rows_of_a_batch_do_not_depend_on_their_neighbours() -> None:
    features, weight, bias = inputs((6, 8, 5, 5), 9, torch.float64)
    together = pooled_map(features, weight, bias)
    for row in range(6):
        for part, alone in zip(together, pooled_map(features[row : row + 1], weight, bias), strict=True):
            torch.testing.assert_close(part[row : row + 1], alone, rtol=1e-13, atol=1e-13)


# --- A linear classifier ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def linear() -> torch.nn.Module:
    torch.manual_seed(5)
    return torchvision.models.resnet18(num_classes=11).eval()


def test_a_linear_classifier_gives_its_logits_at_alpha_1(linear: torch.nn.Module, tmp_path: Path) -> None:
    torch.save(linear.state_dict(), tmp_path / "an.pth")
    asked = ModelConfig(backbone="resnet18", weights=str(tmp_path / "an.pth"), head_weights=True, alpha=1.0)
    model = build_model(asked, 11).eval()
    assert torch.equal(model.head.weight[:, :, 0, 0], linear.fc.weight)
    assert torch.equal(model.head.bias, linear.fc.bias)
    images = torch.randint(0, 256, (3, 3, 96, 64), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        logits = linear((images / 255 - mean) / std)
        torch.testing.assert_close(model(images), logits, rtol=1e-4, atol=1e-5)
        model.alpha = 5.0  # and is boosted without any training (BoostLU, section 4)
        boosted = model(images)
    assert (boosted > logits - 1e-4).all()
    assert (boosted > logits + 0.1).any()


def test_a_classifier_of_other_classes_is_refused(linear: torch.nn.Module, tmp_path: Path) -> None:
    torch.save(linear.state_dict(), tmp_path / "an.pth")
    asked = ModelConfig(backbone="resnet18", weights=str(tmp_path / "an.pth"), head_weights=True)
    with pytest.raises(
        ValueError, match=r"head_weights: fc.weight of .*an\.pth is \[11, 512\], this head needs \[12, 512\]"
    ):
        build_model(asked, 12)
    without = {name: value for name, value in linear.state_dict().items() if not name.startswith("fc.")}
    torch.save(without, tmp_path / "an.pth")
    with pytest.raises(ValueError, match=r"head_weights: .*an\.pth has no fc\.weight; leave --head-weights out"):
        build_model(asked, 11)


# --- torch.compile ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # torch's own
def test_the_compiled_network_is_one_graph_and_learns_the_same() -> None:
    from raypaml.losses.large_loss import large_loss

    torch.manual_seed(6)
    model = build_model(ModelConfig(), 7)
    compiled = torch.compile(model, fullgraph=True)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(-1, 2, (2, 7)).to(torch.int8)
    gradients = []
    for network in (model, compiled):
        loss, rejected = large_loss(network(images), labels, "ll_r", 0.2)
        gradients.append([loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))])
        assert rejected.any()
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)

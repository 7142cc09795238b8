"""Augmentation: every operation against torchvision image by image, the published policy, draws, registry, flags."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as v2
import torchvision.transforms.v2.functional as tv
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from raypaml.augmentation import augmentations, geometry, policies
from raypaml.augmentation.augmentations import (
    AUGMENTATIONS,
    Augmentation,
    augmentation_names,
    augmentation_of,
    augmentations_text,
    register_augmentation,
)
from raypaml.augmentation.augmenting import augment
from raypaml.augmentation.draws import Draws, philox
from raypaml.augmentation.operations import OPERATIONS, Steps, take_steps
from raypaml.config import TrainConfig
from raypaml.data.batches import Reader
from raypaml.losses.schemes import SCHEMES
from raypaml.recipes import recipe
from raypaml.runs.events import Event, Message
from raypaml.runs.kept_features import keeps_features
from raypaml.train import parse
from raypaml.training import step
from raypaml.training.loop import train
from raypaml.training.step import train_step
from tests.conftest import run_distributed
from tests.test_loop import config as loop_config
from tests.test_loop import train_here, weights
from tests.test_step import config as step_config
from tests.test_step import reader_of, worker_for

SIZES = [(24, 24), (21, 32), (40, 15)]
CHANGING = [name for name, each in AUGMENTATIONS.items() if each.change]


def pictures(b: int, height: int, width: int, seed: int = 0) -> Tensor:
    """uint8 [b, 3, H, W], channels last: one smooth, one noise, one flat, one dark, and so on."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    images = rng.integers(0, 256, (b, height, width, 3))
    phase = rng.uniform(0, 6, (b, 3))
    smooth = 128 + 127 * np.sin(x[..., None] / 5 + y[..., None] / 7 + phase[:, None, None])
    images[0::4] = smooth[0::4]
    images[2::4] = rng.integers(0, 256, (len(images[2::4]), 1, 1, 3))
    images[3::4] //= 8
    return torch.from_numpy(images.astype(np.uint8)).permute(0, 3, 1, 2)


# --- Each operation, image by image, against torchvision -------------------------------------------------------------


def moved(function: Callable[..., Tensor], image: Tensor, **values: Any) -> Tensor:
    """With grey outside. (torchvision's own `fill` darkens the border: it weighs what is half outside twice.)"""
    around = function(image.float() - geometry.OUTSIDE, **values, interpolation=v2.InterpolationMode.BILINEAR)
    return (around + geometry.OUTSIDE).round().to(torch.uint8)


def affine(**values: Any) -> Callable[[Tensor, float], Tensor]:
    usual = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    return lambda image, amount: moved(tv.affine, image, **usual | {k: f(amount) for k, f in values.items()})


ORACLES: dict[str, tuple[Callable[[Tensor, float], Tensor], tuple[float, float]]] = {
    "identity": (lambda image, _: image, (0, 0)),
    "shear_x": (affine(shear=lambda m: [math.degrees(math.atan(m)), 0.0], center=lambda _: [0, 0]), (-0.3, 0.3)),
    "shear_y": (affine(shear=lambda m: [0.0, math.degrees(math.atan(m))], center=lambda _: [0, 0]), (-0.3, 0.3)),
    "translate_x": (affine(translate=lambda m: [m, 0]), (-15, 15)),
    "translate_y": (affine(translate=lambda m: [0, m]), (-15, 15)),
    "rotate": (lambda image, m: moved(tv.rotate, image, angle=m), (-30, 30)),
    "brightness": (tv.adjust_brightness, (0.1, 1.9)),
    "saturation": (tv.adjust_saturation, (0.1, 1.9)),
    "contrast": (tv.adjust_contrast, (0.1, 1.9)),
    "sharpness": (tv.adjust_sharpness, (0.1, 1.9)),
    "hue": (tv.adjust_hue, (-0.5, 0.5)),
    "posterize": (lambda image, m: tv.posterize(image, round(m)), (1, 8)),
    "solarize": (tv.solarize, (0, 255)),
    "invert": (lambda image, _: tv.invert(image), (0, 0)),
    "auto_contrast": (lambda image, _: tv.autocontrast(image), (0, 0)),
    "equalize": (lambda image, _: tv.equalize(image), (0, 0)),
}
EXACT = {"identity", "posterize", "solarize", "invert", "auto_contrast", "equalize", "translate_x", "translate_y"}
WHOLE = {"translate_x", "translate_y", "posterize"}


def taken(images: Tensor, name: str, amounts: np.ndarray[Any, Any]) -> Tensor:
    three = np.pad(amounts[:, None, None], ((0, 0), (0, 0), (0, 2)))
    return take_steps(images, Steps((name,), np.zeros((len(images), 1), np.int64), three))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", ORACLES)
def test_an_operation_is_torchvisions_image_by_image(name: str, size: tuple[int, int]) -> None:
    oracle, (low, high) = ORACLES[name]
    images = pictures(24, *size)
    amounts = np.random.default_rng(1).uniform(low, high, len(images))
    amounts[:2] = low, high
    amounts = np.rint(amounts) if name in WHOLE else amounts
    found = taken(images, name, amounts)
    expected = torch.stack([oracle(image, float(m)) for image, m in zip(images, amounts, strict=True)])
    away = (found.int() - expected.int()).abs()
    if name in EXACT:
        assert away.max() == 0
    else:  # products are fused there and not here: what lies at a whole number may be cut off to the one below
        assert away.max() <= 1
        assert (away > 0).float().mean() < 0.002
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_every_operation_has_an_oracle() -> None:
    assert ORACLES.keys() == OPERATIONS.keys() - {"patch"}  # which the recorded values of the package hold, below


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_crop_is_torchvisions_resized_crop(size: tuple[int, int]) -> None:
    images = pictures(16, *size)
    boxes = policies.crop_boxes(Draws(0, 0, np.arange(16)), *size, 0.1)
    found = geometry.crop(images, torch.from_numpy(boxes).float())
    expected = [
        tv.resized_crop(image.double(), *box, list(size), antialias=True)
        for image, box in zip(images, boxes.tolist(), strict=True)
    ]
    assert (found.double() - torch.stack(expected)).abs().max() <= 0.501


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_covered_rectangle_is_torchvisions_erase(size: tuple[int, int]) -> None:
    images, draws = pictures(16, *size), Draws(0, 0, np.arange(16))
    boxes, colours = policies.cutout_boxes(draws, *size, 0.5), draws.integers(256, 3)
    found = geometry.cover(images, torch.from_numpy(np.concatenate((boxes, colours), 1)).float())
    for image, (top, left, bottom, right), colour, result in zip(images, boxes, colours, found, strict=True):
        top, left = max(0, top), max(0, left)
        fill = torch.from_numpy(colour).to(torch.uint8)[:, None, None]
        assert torch.equal(result, tv.erase(image, top, left, bottom - top, right - left, fill))


# --- The published policy ---------------------------------------------------------------------------------------------

PACKAGE = {
    "Invert": "invert",
    "Cutout": "patch",
    "Sharpness": "sharpness",
    "AutoContrast": "auto_contrast",
    "Posterize": "posterize",
    "ShearX": "shear_x",
    "TranslateX": "translate_x",
    "TranslateY": "translate_y",
    "ShearY": "shear_y",
    "Rotate": "rotate",
    "Equalize": "equalize",
    "Contrast": "contrast",
    "Color": "saturation",
    "Solarize": "solarize",
    "Brightness": "brightness",
}


class Fixed(Draws):
    """Draws of which all are told: operation, magnitude 1 to 9, positive sign, a centre at row 9, column 12."""

    def __init__(self, operation: int, magnitude: int):
        super().__init__(0, 0, np.arange(1))
        self.told = {2: 1, len(policies.ASL_OPERATIONS) - 1: operation, 9: magnitude - 1}

    def integers(self, below: Any, count: int) -> Any:
        return np.full((1, count), self.told[below])

    def uniform(self, count: int) -> Any:
        return np.tile([9.5 / 16, 12.5 / 20], count // 2)[None]


@pytest.mark.parametrize("magnitude", [3, 9])
@pytest.mark.parametrize("name", PACKAGE)
def test_asl_does_what_the_package_did(name: str, magnitude: int) -> None:
    """Values recorded from randaugment 1.0.2, with Pillow, for one picture of 16 x 20."""
    recorded = np.load(Path(__file__).parent / "fixtures" / "randaugment_1_0_2.npz")
    images = torch.from_numpy(recorded["picture"])[None].permute(0, 3, 1, 2)
    steps = policies.asl_steps(Fixed(policies.ASL_OPERATIONS.index(PACKAGE[name]), magnitude), 16, 20)
    expected = recorded[f"{name} {magnitude}"].astype(int)

    def away(sign: int) -> np.ndarray[Any, Any]:
        one = Steps(steps.names, steps.chosen[:, :1], sign * steps.amounts[:, :1])
        found = take_steps(images, one)[0].permute(1, 2, 0).int().numpy()
        return np.abs(found - expected).max(-1)

    if PACKAGE[name] in ("shear_x", "shear_y", "rotate"):  # Pillow's are bicubic and of the nearest pixel
        assert np.median(away(1)) <= 4
        assert np.median(away(-1)) > 8  # the other way round
    else:
        is_rounded = PACKAGE[name] in (*policies.JITTER_OPERATIONS, "sharpness", "auto_contrast")
        assert away(1).max() <= (1 if is_rounded else 0)


def test_asl_leaves_out_half_and_draws_all_pairs_alike() -> None:
    steps = policies.asl_steps(Draws(3, 1, np.arange(40_000)), 224, 224)
    last = len(policies.ASL_OPERATIONS) - 1
    counts = np.bincount(steps.chosen.ravel(), minlength=last + 1)
    assert stats.chisquare(counts, 80_000 * np.r_[np.full(last, 0.5 / last), 0.5]).pvalue > 1e-3
    shear = steps.amounts[..., 0][steps.chosen == policies.ASL_OPERATIONS.index("shear_x")]
    levels, times = np.unique(np.rint(shear / 0.3 * 9).astype(int), return_counts=True)
    assert levels.tolist() == [*range(-9, 0), *range(1, 10)]
    assert stats.chisquare(times).pvalue > 1e-3
    table = np.histogram2d(*(steps.chosen == last).T, bins=2)[0]  # the two of an image do not know of each other
    assert stats.chi2_contingency(table).pvalue > 1e-3


# --- Draws ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0, 0, 0, 0], [0, 0], "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_has_the_known_answers_of_random123(counter: list[int], key: list[int], expected: str) -> None:
    found = philox(np.array([counter], np.uint32), np.array(key, np.uint32))[0]
    assert " ".join(f"{number:08x}" for number in found) == expected


def test_a_sample_draws_the_same_in_any_company() -> None:
    rows = np.array([5, 90_000_000_000, 17, 3])
    together, alone = Draws(1, 2, rows), [Draws(1, 2, rows[n : n + 1]) for n in range(4)]
    for count in (1, 4, 7):
        assert np.array_equal(together.uniform(count), np.concatenate([each.uniform(count) for each in alone]))
    others = [Draws(1, 3, rows), Draws(2, 2, rows), Draws(1, 2, rows + 1), Draws(1, 2, rows + 2**32)]
    firsts = [Draws(1, 2, rows).uniform(3), *(each.uniform(3) for each in others)]
    assert len(np.unique(firsts)) == 5 * 12


def test_draws_are_uniform_and_independent() -> None:
    draws = Draws(0, 0, np.arange(20_000))
    first, second = draws.uniform(3), draws.uniform(3)
    for column in (*first.T, *second.T):
        assert stats.kstest(column, "uniform").pvalue > 1e-3
    among = np.corrcoef(np.concatenate((first, second), 1).T) - np.eye(6)
    along = [np.corrcoef(column[:-1], column[1:])[0, 1] for column in first.T]
    assert np.abs([*among.ravel(), *along]).max() < 0.03
    whole = draws.integers(7, 1).ravel()
    assert stats.chisquare(np.bincount(whole, minlength=7)).pvalue > 1e-3


@pytest.mark.parametrize("size", [(224, 224), (40, 96), (160, 60)], ids=str)
def test_boxes_are_drawn_as_torchvisions(size: tuple[int, int]) -> None:
    """Areas, aspects and places beside 2,000 boxes of RandomResizedCrop."""
    torch.manual_seed(0)
    crop = v2.RandomResizedCrop(size, scale=(0.3, 1))
    theirs = np.array([[*crop.make_params([torch.empty(3, *size)]).values()] for _ in range(2000)])
    ours = policies.crop_boxes(Draws(0, 0, np.arange(2000)), *size, 0.3)
    for measure in (lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 3] / b[:, 2], lambda b: b[:, 0], lambda b: b[:, 1]):
        assert stats.ks_2samp(measure(ours), measure(theirs)).pvalue > 1e-3
    assert ((ours >= 0) & (ours[:, :2] + ours[:, 2:] <= size).repeat(2, 1)).all()


# --- Policies ---------------------------------------------------------------------------------------------------------


def augmented(name: str, images: Tensor, rows: np.ndarray[Any, Any], seed: int = 0, epoch: int = 0) -> Tensor:
    record = augmentation_of(name)
    return augment(images, record, record.numbers(""), Draws(seed, epoch, rows))


@pytest.mark.parametrize("name", CHANGING)
def test_an_image_is_changed_alike_in_any_company(name: str) -> None:
    images, rows = pictures(70, 37, 29), np.arange(1000, 1070)
    before = images.clone()
    together = augmented(name, images, rows)
    assert torch.equal(images, before)
    assert together.is_contiguous(memory_format=torch.channels_last)
    order = np.random.default_rng(0).permutation(70)
    for part in (order[:1], order[1:4], order[4:40], order[40:]):
        assert torch.equal(augmented(name, images[part], rows[part]), together[part])
    assert not torch.equal(augmented(name, images, rows, epoch=1), together)
    assert not torch.equal(augmented(name, images, rows, seed=1), together)
    assert len({image.numpy().tobytes() for image in augmented(name, images[:1].expand(70, -1, -1, -1), rows)}) > 60


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 5), st.integers(1, 40), st.integers(1, 40), st.sampled_from(CHANGING))
def test_images_of_any_size_keep_it(b: int, height: int, width: int, name: str) -> None:
    images = pictures(b, height, width)
    found = augmented(name, images, np.arange(b))
    assert (found.shape, found.dtype) == (images.shape, torch.uint8)


def test_strong_is_crop_randaugment_and_cutout_as_torchvision_would_with_the_same_numbers() -> None:
    images, rows, size = pictures(12, 32, 32), np.arange(12), (32, 32)
    draws = Draws(0, 0, rows)
    boxes = policies.crop_boxes(draws, *size, 0.5)
    steps = policies.randaugment_steps(draws, *size, 2, 9)
    covered, colours = policies.cutout_boxes(draws, *size, 0.25), draws.integers(256, 3)
    for n, found in enumerate(augmented("strong", images, rows)):
        image = tv.resized_crop(images[n].float(), *boxes[n].tolist(), list(size)).round().to(torch.uint8)
        for chosen, amount in zip(steps.chosen[n], steps.amounts[n, :, 0], strict=True):
            image = ORACLES[steps.names[chosen]][0](image, float(amount))
        top, left, bottom, right = covered[n]
        top, left = max(top, 0), max(left, 0)
        fill = torch.from_numpy(colours[n]).to(torch.uint8)[:, None, None]
        image = tv.erase(image, top, left, bottom - top, right - left, fill)
        away = (found.int() - image.int()).abs()
        assert (away > 3).float().mean() < 0.01, n  # a solarized or equalized pixel may jump


@pytest.mark.parametrize("magnitude", [0, 9, 30])
def test_magnitudes_are_those_of_torchvisions_randaugment(magnitude: int) -> None:
    steps = policies.randaugment_steps(Draws(0, 0, np.arange(500)), 210, 150, 2, magnitude)
    amounts = {n: np.unique(steps.amounts[..., 0][steps.chosen == n]) for n in range(len(steps.names))}
    named = {"Color": "saturation", "AutoContrast": "auto_contrast"}
    for name, (levels, signed) in v2.RandAugment._AUGMENTATION_SPACE.items():
        ours = named.get(name, "".join("_" + c.lower() if c.isupper() else c for c in name).strip("_"))
        found = amounts[steps.names.index(ours)]
        level = 0.0 if (all_levels := levels(31, 210, 150)) is None else float(all_levels[magnitude])
        level = {"TranslateX": int, "TranslateY": int, "Solarize": lambda x: 255 * x}.get(name, float)(level)
        around = 1 if name in ("Brightness", "Color", "Contrast", "Sharpness") else 0
        expected = {around - level, around + level} if signed else {level}
        assert found == pytest.approx(sorted(expected), rel=1e-5, abs=1e-6), name


def test_colours_jitter_in_an_order_of_each_images_own() -> None:
    steps = policies.jitter_steps(Draws(0, 0, np.arange(24_000)), 0.4, 0.1)
    orders, times = np.unique(steps.chosen, axis=0, return_counts=True)
    assert len(orders) == 24
    assert stats.chisquare(times).pvalue > 1e-3
    for n, name in enumerate(policies.JITTER_OPERATIONS):
        low, width = (-0.1, 0.2) if name == "hue" else (0.6, 0.8)
        assert stats.kstest(steps.amounts[..., 0][steps.chosen == n], "uniform", (low, width)).pvalue > 1e-3


def test_cutout_covers_half_of_each_side_around_any_pixel() -> None:
    boxes = policies.cutout_boxes(Draws(0, 0, np.arange(20_000)), 24, 33, 0.5)
    assert (boxes[:, 2] - boxes[:, 0] == 13).all()  # int(.5 x 24 + .5) // 2 = 6 on both sides of the centre
    assert (boxes[:, 3] - boxes[:, 1] == 17).all()
    for first, half, size in ((boxes[:, 0], 6, 24), (boxes[:, 1], 8, 33)):
        assert stats.chisquare(np.bincount(first + half, minlength=size)).pvalue > 1e-3


# --- In training ------------------------------------------------------------------------------------------------------


def trained_on(settings: TrainConfig, data: Path, world_size: int, epoch: int, first_step: int) -> dict[int, Tensor]:
    """The images of an epoch as its steps see them, from some step on, by sample."""
    worker = worker_for(settings, data)
    worker.state.epoch = epoch
    seen: dict[int, Tensor] = {}
    for rank in range(world_size):
        parts = worker.plan.epoch(epoch, rank, world_size)
        for batch in list(Reader(worker.data.path, worker.data.splits["train"], parts))[first_step:]:
            seen |= zip(batch.rows.tolist(), step._send(worker, batch).images, strict=True)
    return seen


@pytest.mark.parametrize("name", ["asl", "strong"])
def test_samples_look_alike_on_any_number_of_workers_and_after_resuming(name: str, tiny_digits: Path) -> None:
    settings = step_config(augment=name)
    alone = trained_on(settings, tiny_digits, 1, 1, 0)
    assert len(alone) == 96
    for world_size in (2, 3, 4):
        together = trained_on(settings, tiny_digits, world_size, 1, 0)
        assert alone.keys() == together.keys()
        assert all(torch.equal(alone[row], together[row]) for row in alone)
    resumed = trained_on(settings, tiny_digits, 3, 1, 2)
    assert len(resumed) == 32
    assert all(torch.equal(alone[row], resumed[row]) for row in resumed)
    smaller = trained_on(settings.override({"global_batch_size": 16}), tiny_digits, 1, 1, 0)
    assert all(torch.equal(alone[row], smaller[row]) for row in alone)
    assert not all(torch.equal(alone[row], later) for row, later in trained_on(settings, tiny_digits, 1, 2, 0).items())


@pytest.mark.parametrize("values", [{}, {"reproducible": False, "micro_batch_size": 5}, {"micro_batch_size": 16}])
def test_both_passes_and_all_pieces_of_a_step_see_the_same_images(
    values: dict[str, Any], tiny_digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = worker_for(step_config(augment="strong", flip=True, **values), tiny_digits)
    batch = reader_of(worker, 0)[0]
    expected, seen = step._send(worker, batch).images, list[Tensor]()
    forward = worker.wrapped.forward
    monkeypatch.setattr(worker.wrapped, "forward", lambda images: seen.append(images) or forward(images))
    train_step(worker, batch)
    passes = torch.cat(seen)
    assert len(passes) in (len(batch.rows), 2 * len(batch.rows))
    assert len(passes) == len(batch.rows) * (2 if values else 1)
    assert all(torch.equal(images, expected) for images in passes.split(len(batch.rows)))
    assert not torch.equal(expected, batch.images)


def test_mirrored_by_flag_or_by_policy_is_mirrored_once(tiny_digits: Path) -> None:
    plain, flipped, mirror, both = (
        trained_on(step_config(flip=flip, augment=name), tiny_digits, 1, 0, 0)
        for flip, name in ((False, "none"), (True, "none"), (False, "mirror"), (True, "published"))
    )
    for row, image in plain.items():
        assert torch.equal(flipped[row], mirror[row])
        assert torch.equal(flipped[row], both[row])
        assert torch.equal(flipped[row], image) or torch.equal(flipped[row], image.flip(-1))
    assert 30 < sum(not torch.equal(flipped[row], image) for row, image in plain.items()) < 66


def test_a_rank_without_images_of_a_short_batch_takes_part(tiny_digits: Path) -> None:
    worker = worker_for(step_config(augment="strong", global_batch_size=95, lanes=5), tiny_digits)
    parts = worker.plan.epoch(0, 0, 5)
    batch = Reader(worker.data.path, worker.data.splits["train"], parts)[1]
    assert len(batch.rows) == 0
    assert step._send(worker, batch).images.shape == batch.images.shape


def test_frozen_epochs_say_that_their_features_are_not_kept(tiny_digits: Path, tmp_path: Path) -> None:
    events: list[Event] = []

    def report(event: Event) -> bool:
        events.append(event)
        return False

    settings = step_config(augment="light", epochs=1, freeze_backbone=1)
    assert train(settings, tiny_digits, tmp_path, torch.device("cpu"), report)
    said = [event.text for event in events if isinstance(event, Message)]
    assert any("augment=light: frozen epochs compute the backbone's features again" in line for line in said)


@pytest.mark.cluster
def test_augmented_runs_end_alike_on_any_number_of_workers_and_after_a_stop(tiny_digits: Path, tmp_path: Path) -> None:
    settings = loop_config(augment="strong", checkpoint_steps=1)
    assert train_here(0, 1, settings, tiny_digits, tmp_path / "one", None)
    assert run_distributed(train_here, 2, settings, tiny_digits, tmp_path / "many", 2) == [False, False]
    assert run_distributed(train_here, 3, settings, tiny_digits, tmp_path / "many", None) == [True] * 3
    assert weights(tmp_path / "many") == weights(tmp_path / "one")
    assert train_here(0, 1, loop_config(), tiny_digits, tmp_path / "plain", None)
    assert weights(tmp_path / "plain") != weights(tmp_path / "one")


# --- Registry and flags -----------------------------------------------------------------------------------------------


def test_published_is_what_the_schemes_paper_did() -> None:
    published = {name: recipe("digits").override({"scheme": name, "augment": "published"}) for name in SCHEMES}
    did = {name: config.augmentation.name for name, config in published.items()}
    assert {name for name in did if did[name] == "asl"} == {"asl", "pasl", "csl", "hill", "splc"}
    assert {did[name] for name in did.keys() - {"asl", "pasl", "csl", "hill", "splc"}} == {"mirror"}
    assert published["ll_r"].mirrors
    assert not published["asl"].mirrors
    assert published["asl"].override({"flip": True}).mirrors


def test_none_is_the_default_and_what_earlier_runs_had() -> None:
    config = recipe("digits")
    assert (config.data.augment, config.mirrors, config.augmentation.changes_images) == ("none", False, False)
    stored = config.override({"augment": "strong"}).to_dict()
    assert TrainConfig.from_dict(stored).data.augment == "strong"
    del stored["data"]["augment"], stored["data"]["augment_settings"]
    assert TrainConfig.from_dict(stored).data.augment == "none"
    images = pictures(3, 8, 8)
    assert augmented("none", images, np.arange(3)) is images


@pytest.mark.parametrize("name", [name for name in augmentation_names() if name != "none"])
def test_augmented_images_have_no_kept_features(name: str) -> None:
    assert keeps_features(recipe("digits").override({"flip": False}))
    assert not keeps_features(recipe("digits").override({"flip": False, "augment": name}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"augment": "stron"}, "augment='stron': must be one of none, mirror, asl, light, strong, published"),
        (
            {"augment": "strong", "augment_settings": "magnitud=3"},
            "augment_settings: magnitud: augmentation strong has no such setting; did you mean magnitude? "
            "It has: crop=0.5, operations=2, magnitude=9, cutout=0.25",
        ),
        ({"augment": "strong", "augment_settings": "magnitude=31"}, "augment_settings: magnitude=31: 0 to 30"),
        ({"augment": "strong", "augment_settings": "operations=1.5"}, "a whole number from 0 to 10"),
        ({"augment": "light", "augment_settings": "crop=0"}, "a share of the area, above 0 and at most 1"),
        ({"augment": "asl", "augment_settings": "cutout=x"}, "augment_settings: cutout=x: not a number"),
        ({"augment_settings": "crop=0.3"}, "crop: augmentation none has no such setting. It has: none"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        recipe("digits").override(values).check()


def test_settings_reach_the_images() -> None:
    record, images, rows = augmentation_of("asl"), pictures(8, 20, 20), np.arange(8)
    plain = augment(images, record, record.numbers("cutout=0"), Draws(0, 0, rows))
    assert not torch.equal(plain, augmented("asl", images, rows))
    strong = augmentation_of("strong")
    still = augment(images, strong, strong.numbers("crop=1,operations=0,cutout=0"), Draws(0, 0, rows))
    assert torch.equal(still, images)  # a box of all the area is the image itself
    one = augment(images, strong, strong.numbers("crop=1,operations=1,cutout=0,magnitude=0"), Draws(0, 0, rows))
    away = (one.int() - images.int()).abs().flatten(1).amax(1)
    assert 0 < away.count_nonzero() < 8  # at magnitude 0 only auto_contrast and equalize do anything
    config = parse(["--augment", "strong", "--augment-settings", "crop=0.8,magnitude=5"])[0]
    assert config.augmentation.numbers(config.data.augment_settings) == {
        "crop": 0.8,
        "operations": 2,
        "magnitude": 5,
        "cutout": 0.25,
    }


def darker(images: Tensor, draws: Draws, *, by: float) -> Tensor:
    """An augmentation of a user's own."""
    return images // (1 + int(by))


def test_one_of_a_users_own_is_registered_by_its_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augmentations, "AUGMENTATIONS", dict(AUGMENTATIONS))
    own = Augmentation(name="darker", about="Darker.", source="a test", change=f"{__name__}:darker")
    register_augmentation(own)
    assert augmentation_names()[-2:] == ("darker", "published")
    assert "  darker     Darker. (a test)" in augmentations_text()
    images = pictures(2, 5, 5)
    assert torch.equal(augment(images, own, {"by": 1.0}, Draws(0, 0, np.arange(2))), images // 2)
    with pytest.raises(ValueError, match="there is one of this name already"):
        register_augmentation(own)
    with pytest.raises(ValueError, match="there is one of this name already"):
        register_augmentation(Augmentation(name="published", about="x.", source="y"))
    with pytest.raises(ValueError, match="give it as 'module:function'"):
        Augmentation(name="x", about="x.", source="y", change="no function")


def cut_in_half(images: Tensor, draws: Draws) -> Tensor:
    return images[..., ::2].float()


def test_a_function_that_returns_anything_else_is_named() -> None:
    wrong = Augmentation(name="wrong", about="x.", source="y", change=f"{__name__}:cut_in_half")
    with pytest.raises(ValueError, match=r"augmentation wrong: .* returned torch\.float32 \[2, 3, 4, 4\] on cpu"):
        augment(pictures(2, 4, 8), wrong, {}, Draws(0, 0, np.arange(2)))
    missing = Augmentation(name="missing", about="x.", source="y", change=f"{__name__}:nothing")
    with pytest.raises(ValueError, match=r"test_augmentation:nothing: cannot be imported"):
        augment(pictures(2, 4, 8), missing, {}, Draws(0, 0, np.arange(2)))

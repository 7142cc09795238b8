"""The embedded data set: the same bytes everywhere, honest boxes, labels hidden as each hiding says."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from raypaml.data import digits
from raypaml.data.data_folder import open_folder
from raypaml.data.digits import CLASS_IDS, COLOURS, HANDWRITING, NUM_SCENES, SIDE, class_weights, digits_folder, scenes
from raypaml.data.shards import Sample
from raypaml.labels import NEGATIVE, POSITIVE, UNOBSERVED

SMALL = {"train": 12, "validation": 3, "test": 4}


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def _write_into(cache: str, hiding: str, seed: int) -> dict[str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", cache)
        return _hashes(digits_folder(hiding, seed, SMALL))


@pytest.mark.parametrize("hiding", list(digits.HIDINGS))
def test_the_same_seed_gives_the_same_bytes_in_another_cache(tmp_path: Path, hiding: str) -> None:
    first, second = (_write_into(str(tmp_path / cache), hiding, 3) for cache in ("a", "b"))
    assert first == second
    assert {"vocabulary.csv", "train.arrow", "train-000000.tar"} <= set(first)


def test_another_seed_gives_other_images(tmp_path: Path) -> None:
    first, second = (_write_into(str(tmp_path), "verified", seed) for seed in (0, 1))
    assert all(first[f"{split}-000000.tar"] != second[f"{split}-000000.tar"] for split in SMALL)
    assert first["vocabulary.csv"] != second["vocabulary.csv"]


def test_a_written_data_set_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = digits_folder(num_scenes=SMALL)
    monkeypatch.setattr(digits, "write_dataset", lambda *_: pytest.fail("written twice"))
    assert digits_folder(num_scenes=SMALL) == folder
    assert [path.name for path in (tmp_path / "raypaml").iterdir()] == [folder.name]  # nothing unfinished remains


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def disk_full(out: Path, *_: Any) -> None:
        (out / "train-000000.tar").write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(digits, "write_dataset", disk_full)
    with pytest.raises(OSError, match="disk full"):
        digits_folder(num_scenes=SMALL)
    assert list((tmp_path / "raypaml").iterdir()) == []


def test_two_processes_writing_at_once_leave_one_whole_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        both = pool.starmap(_write_into, [(str(tmp_path / "shared"), "single_positive", 0)] * 2, chunksize=1)
    alone = _write_into(str(tmp_path / "alone"), "single_positive", 0)
    assert both == [alone, alone]
    assert len(list((tmp_path / "shared" / "raypaml").iterdir())) == 1


def test_the_loser_of_a_race_uses_the_winners_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    write = digits.write_dataset

    def write_while_another_finishes(out: Path, *args: Any) -> None:
        write(out, *args)
        monkeypatch.setattr(digits, "write_dataset", write)
        digits_folder(num_scenes=SMALL)

    monkeypatch.setattr(digits, "write_dataset", write_while_another_finishes)
    folder = digits_folder(num_scenes=SMALL)
    assert len(open_folder(folder).splits["train"]) == SMALL["train"]
    assert list((tmp_path / "raypaml").iterdir()) == [folder]


def test_unknown_hiding_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no hiding 'secret'; known: single_positive, verified"):
        digits_folder("secret")


def test_fifty_classes_of_a_long_tail() -> None:
    assert len(set(CLASS_IDS)) == len(digits.NAMES) == 50
    weights = np.sort(class_weights(0))[::-1]
    assert weights.sum() == pytest.approx(1)
    np.testing.assert_allclose(weights[0] / weights, np.arange(1, 51) ** digits.TAIL_EXPONENT)
    scarcest = weights[-1] * NUM_SCENES["train"]  # a scene has at least one class, so at least this many positives
    assert 40 < scarcest < weights[0] * NUM_SCENES["train"] / 10


def test_scenes_follow_the_long_tail() -> None:
    weights = class_weights(0)
    rng, glyphs = np.random.default_rng(0), np.zeros((10, 8, 8), np.uint8)
    drawn = [digits.draw_scene(rng, glyphs, np.arange(10), weights).classes for _ in range(1000)]
    assert all(len(set(classes)) == len(classes) for classes in drawn)
    assert {len(classes) for classes in drawn} == {1, 2, 3, 4}
    counts = np.bincount(np.concatenate(drawn), minlength=50)[np.argsort(weights)]
    assert counts[-10:].sum() > 4 * counts[:10].sum() > 0


def test_handwriting_slices_are_disjoint_and_cover_everything() -> None:
    taken = [number for part in HANDWRITING.values() for number in range(part.start, part.stop)]
    assert sorted(taken) == list(range(1797))


def test_splits_paint_with_disjoint_handwriting(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Counter[tuple[bytes, int]]] = []
    draw = digits.draw_scene

    def spy(rng: Any, glyphs: Any, labels: Any, weights: Any) -> Any:
        seen.append(Counter((glyph.tobytes(), int(label)) for glyph, label in zip(glyphs, labels, strict=True)))
        return draw(rng, glyphs, labels, weights)

    monkeypatch.setattr(digits, "draw_scene", spy)
    for split in HANDWRITING:
        next(scenes(split, "verified", 0, 1))
    images, labels = load_digits(return_X_y=True)
    whole = (images * (255 / 16)).astype(np.uint8)
    assert [part.total() for part in seen] == [1000, 300, 497]
    assert sum(seen, Counter()) == Counter((image.tobytes(), int(k)) for image, k in zip(whole, labels, strict=True))


def _pixels(sample: Sample) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(sample.image))).astype(float)


def _painted(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Pixels that are some bright shade of the colour."""
    wanted = np.array(colour) / np.linalg.norm(colour)
    shade = pixels @ wanted
    return (np.linalg.norm(pixels - shade[..., None] * wanted, axis=-1) < 40) & (shade > 0.7 * np.linalg.norm(colour))


def test_every_box_lies_in_the_scene_and_holds_its_glyphs_colour() -> None:
    for sample in scenes("train", "verified", 0, 60):
        pixels = _pixels(sample)
        assert pixels.shape == (SIDE, SIDE, 3)
        assert [box[0] for box in sample.boxes] == list(sample.truth or ())
        outside = np.ones((SIDE, SIDE), bool)
        for class_id, x0, y0, x1, y1 in sample.boxes:
            assert 0 <= x0 < x1 <= SIDE
            assert 0 <= y0 < y1 <= SIDE
            box = np.s_[int(y0) : int(y1), int(x0) : int(x1)]
            assert _painted(pixels[box], COLOURS[class_id.split("_")[0]]).sum() >= 5, (sample.key, class_id)
            outside[box] = False
        assert not any(_painted(pixels, colour)[outside].any() for colour in COLOURS.values()), sample.key


def test_both_hidings_show_the_same_scenes() -> None:
    for first, second in zip(scenes("train", "single_positive", 0, 8), scenes("train", "verified", 0, 8), strict=True):
        assert (first.image, first.truth, first.boxes) == (second.image, second.truth, second.boxes)
        assert (first.positive, first.negative) != (second.positive, second.negative)


def test_single_positive_keeps_exactly_one_label_and_it_is_true(tiny_digits: Path) -> None:
    index = open_folder(tiny_digits).splits["train"]
    rows = np.arange(len(index))
    labels, truth = index.labels(rows), index.truth(rows)
    assert ((labels == POSITIVE).sum(1) == 1).all()
    assert not (labels == NEGATIVE).any()
    assert (truth[labels == POSITIVE] == POSITIVE).all()
    assert (truth == POSITIVE).sum(1).max() > 1  # something is hidden


def test_single_positive_keeps_each_of_the_true_labels_equally_often() -> None:
    rng = np.random.default_rng(0)
    kept = Counter(digits.hide_single_positive(rng, (3, 7, 9), class_weights(0))[0][0] for _ in range(3000))
    assert set(kept) == {3, 7, 9}
    assert max(kept.values()) - min(kept.values()) < 200


@pytest.mark.parametrize("split", ["validation", "test"])
def test_validation_and_test_are_fully_observed(tiny_digits: Path, split: str) -> None:
    index = open_folder(tiny_digits).splits[split]
    rows = np.arange(len(index))
    labels = index.labels(rows)
    assert not (labels == UNOBSERVED).any()
    assert (labels == index.truth(rows)).all()


def test_verified_keeps_a_positive_and_four_negatives_true_to_the_scene() -> None:
    for sample in scenes("train", "verified", 0, 50):
        truth = set(sample.truth or ())
        assert sample.positive
        assert set(sample.positive) <= truth
        assert len(set(sample.negative)) == 4
        assert not set(sample.negative) & truth
        json.loads(sample.members()["json"])


def test_verified_looks_at_frequent_classes_more_often() -> None:
    weights = class_weights(0)
    order = np.argsort(weights)
    rng = np.random.default_rng(0)
    positives, negatives = np.zeros(50), np.zeros(50)
    rarest, commonest, asked = int(order[0]), int(order[-1]), 3000
    for _ in range(asked):
        kept, absent = digits.hide_verified(rng, (rarest, commonest), weights)
        positives[kept] += 1
        negatives[absent] += 1
    odds = 0.6 * (weights[[rarest, commonest]] / weights.max()) ** 0.25
    neither = (1 - odds).prod()
    np.testing.assert_allclose(positives[[rarest, commonest]] / asked, odds + neither / 2, atol=0.04)
    groups = negatives[order[1:-1]].reshape(4, 12).sum(1)
    assert (np.diff(groups) > 0).all()
    assert groups[-1] > 1.5 * groups[0]

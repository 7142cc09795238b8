"""Open Images from its official files to shards: everything is there once, counted, and the same however made."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import webdataset

from raypaml.data.data_folder import open_folder
from raypaml.data.index import open_index
from raypaml.labels import Vocabulary
from raypaml.preparation.openimages.release_labels import OFFICIAL_TOTALS
from tests.odd_images import RESIZED
from tests.openimages_release import NO_LABEL, NO_NEGATIVE, NO_POSITIVE, THRESHOLD, TRAINABLE, Planted, Release
from tests.shard_tool import card, contents, fates, flags, hashes, labels_of, ledger, run_tool, shard

SPLITS = ("train", "validation", "test")
PARTS = [(split, name) for split in SPLITS for name in ("positives", "negatives")]


def written(planted: Planted) -> dict[str, dict[str, bool]]:
    return {key: labels for key, labels in planted.labels.items() if key not in planted.fates}


def count(labels: dict[str, dict[str, bool]], name: str) -> list[int]:
    """Labels per class."""
    found = Counter(c for own in labels.values() for c, positive in own.items() if positive == (name == "positives"))
    return [found[c] for c in TRAINABLE]


def groups(release: Release) -> list[int]:
    """Five equal groups by number of training annotations, ties by vocabulary order, by sorting."""
    labels = release.splits["train"].labels
    total = np.add(count(labels, "positives"), count(labels, "negatives")).tolist()
    rank = sorted(range(len(TRAINABLE)), key=lambda k: (total[k], k))
    return [rank.index(k) * 5 // len(TRAINABLE) + 1 for k in range(len(TRAINABLE))]


# --- The data card ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_images_by_fate_are_those_planted(split: str, prepared: Path, release: Release) -> None:
    planted = release.splits[split]
    every = [*planted.labels, *planted.outside, *planted.unlabelled]
    expected = Counter(planted.fate(key) for key in every)
    assert {"not_found", "undecodable", "no_label", "no_label_in_vocabulary"} < expected.keys()
    assert card(prepared)["splits"][split]["images"] == {"requested": len(planted.labels), **expected}


@pytest.mark.parametrize("split", SPLITS)
def test_the_doctor_counts_what_was_planted(split: str, prepared: Path, release: Release) -> None:
    found = card(prepared)["splits"][split]["doctor"]
    expected = {k: count for k, count in release.splits[split].doctor.items() if not k.startswith("machine")}
    assert {name: content["count"] for name, content in found.items() if content["count"]} == expected


@pytest.mark.parametrize(("split", "name"), PARTS)
def test_labels_per_class_and_group_are_exact(split: str, name: str, prepared: Path, release: Release) -> None:
    found, planted = card(prepared)["splits"][split], release.splits[split]
    for state, labels in (("requested", planted.labels), ("written", written(planted))):
        counts = count(labels, name)
        assert found["classes"][f"{name} {state}"] == counts
        assert found["labels"][name][state] == sum(counts)
        by_group = [found["groups"][f"G{g}"][f"{name} {state}"] for g in range(1, 6)]
        assert by_group == [
            sum(c for c, own in zip(counts, groups(release), strict=True) if own == g) for g in range(1, 6)
        ]
    assert sum(group["classes"] for group in found["groups"].values()) == len(TRAINABLE)


@pytest.mark.parametrize("split", SPLITS)
def test_classes_unusable_in_a_split_are_named(split: str, prepared: Path) -> None:
    found = card(prepared)["splits"][split]
    assert found["unusable"] == {"no label": [NO_LABEL], "no positive": [NO_POSITIVE], "no negative": [NO_NEGATIVE]}
    assert found["official"] == OFFICIAL_TOTALS[split]


def test_images_in_two_splits_are_counted(prepared: Path) -> None:
    assert card(prepared)["in_two_splits"] == {
        "train and validation": 2,
        "train and test": 2,
        "validation and test": 2,
    }


def test_the_page_says_the_same(prepared: Path, release: Release) -> None:
    text, planted = (prepared / "data_card.md").read_text(), release.splits["train"]
    assert f"Digest of the data: `{card(prepared)['digest']}`" in text
    assert "**Images in two splits**: train and validation 2" in text
    positives = planted.doctor["positives"]
    assert f"| positives | {positives:,} | 9,741,876 | {positives - 9_741_876:+,} |" in text
    assert f"| written | {len(written(planted)):,} |" in text
    assert f"- conflicting labels: {planted.doctor['conflicting labels']}" in text
    assert f"classes with no label in this split: 1 (Class {NO_LABEL[3:]})" in text


def test_the_digest_covers_vocabulary_and_indexes(prepared: Path) -> None:
    files = [prepared / name for name in ("vocabulary.csv", *(f"{split}.arrow" for split in SPLITS))]
    digests = [hashlib.sha256(path.read_bytes()).digest() for path in files]
    assert card(prepared)["digest"] == hashlib.sha256(b"".join(digests)).hexdigest()


# --- Ledger, vocabulary, shards ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_the_ledger_has_every_listed_image_once(split: str, prepared: Path, release: Release) -> None:
    planted = release.splits[split]
    every = [*planted.labels, *planted.outside, *planted.unlabelled]
    assert fates(prepared, split) == {key: planted.fate(key) for key in every}
    index = open_index(prepared / f"{split}.arrow")
    shard_of = dict(zip(index.key_column.to_pylist(), index.shard.tolist(), strict=True))
    rows = [row for row in ledger(prepared) if row["split"] == split]
    assert all(row["shard"] == shard_of.get(row["key"]) for row in rows)
    assert all(bool(row["detail"]) == (row["fate"] == "undecodable") for row in rows)


def test_the_vocabulary_counts_the_official_training_labels(prepared: Path, release: Release) -> None:
    vocabulary, labels = Vocabulary.read(prepared / "vocabulary.csv"), release.splits["train"].labels
    assert vocabulary.class_ids == TRAINABLE
    assert vocabulary.train_positives.tolist() == count(labels, "positives")
    assert vocabulary.train_negatives.tolist() == count(labels, "negatives")
    assert vocabulary.class_group.tolist() == groups(release)
    assert sum(count(labels, "positives")) > sum(count(written(release.splits["train"]), "positives"))


@pytest.mark.parametrize("split", SPLITS)
def test_the_index_holds_the_labels(split: str, prepared: Path, release: Release) -> None:
    assert labels_of(prepared, split) == written(release.splits[split])


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset's own
@pytest.mark.parametrize("split", SPLITS)
def test_webdataset_itself_reads_the_shards(split: str, prepared: Path, release: Release) -> None:
    shards = [str(path) for path in sorted(prepared.glob(f"{split}-*.tar"))]
    dataset = webdataset.WebDataset(shards, shardshuffle=False).decode("pil")
    found = {sample["__key__"]: sample for sample in dataset}
    expected = written(release.splits[split])
    assert {sample["jpg"].size for sample in found.values()} == {(RESIZED, RESIZED)}
    assert {
        key: dict.fromkeys(sample["json"]["positive"], True) | dict.fromkeys(sample["json"]["negative"], False)
        for key, sample in found.items()
    } == expected
    assert list(found) == open_index(prepared / f"{split}.arrow").key_column.to_pylist()


def test_training_can_open_it(prepared: Path) -> None:
    assert {split: len(index) for split, index in open_folder(prepared).splits.items()} == {
        split: card(prepared)["splits"][split]["images"]["written"] for split in SPLITS
    }


def test_a_jpeg_of_the_right_size_is_copied(prepared: Path, release: Release) -> None:
    for split, planted in release.splits.items():
        key = planted.special["right size"]
        assert contents(prepared, split)[key] == (release.images / split / f"{key}.jpg").read_bytes()


def test_neighbours_are_unrelated(prepared: Path) -> None:
    """The mean distance of two neighbours, by rank of their keys, is that of a random order: a third."""
    keys = open_index(prepared / "train.arrow").key_column.to_pylist()
    rank = np.argsort(np.argsort(keys))
    assert abs(np.abs(np.diff(rank)).mean() / len(keys) - 1 / 3) < 0.03


# --- Options ----------------------------------------------------------------------------------------------------------


def test_split_by_split_is_the_same_as_all_at_once(prepared: Path, release: Release, tmp_path: Path) -> None:
    for split in ("test", "train", "validation"):
        shard(release, tmp_path / "out", "--split", split)
    assert hashes(tmp_path / "out") == hashes(prepared)


def test_again_does_nothing(release: Release, prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in prepared.glob("*.tar")}
    shard(release, prepared)
    assert {path: path.stat().st_mtime_ns for path in prepared.glob("*.tar")} == before
    assert "validation: is finished; nothing to do (--verify reads it again)" in capsys.readouterr().err


def test_a_sample_is_a_part_of_the_whole(release: Release, prepared: Path, tmp_path: Path) -> None:
    out = shard(release, tmp_path / "out", "--limit", 60, "--shard-samples", 25)
    for split in SPLITS:
        whole, found = labels_of(prepared, split), labels_of(out, split)
        assert found.items() <= whole.items()
        assert 50 <= len(found) <= 60
        assert card(out)["splits"][split]["images"]["requested"] == 60
    assert Vocabulary.read(out / "vocabulary.csv").train_positives.sum() > 60 * 10
    other = shard(release, tmp_path / "other", "--limit", 60, "--seed", 1, "--split", "test")
    assert labels_of(other, "test").keys() != labels_of(out, "test").keys()


def test_shards_of_a_size(release: Release, prepared: Path, tmp_path: Path) -> None:
    out = shard(release, tmp_path / "out", "--split", "train", "--shard-bytes", "400KB")
    sizes = [path.stat().st_size for path in sorted(out.glob("train-*.tar"))]
    assert len(sizes) > 3
    assert all(300_000 < size < 700_000 for size in sizes[:-1])
    assert labels_of(out, "train") == labels_of(prepared, "train")


def test_classes_of_ones_own(release: Release, tmp_path: Path) -> None:
    chosen = tmp_path / "mine.txt"
    chosen.write_text("/m/0bt9lr\n/m/01g317\n")
    out = shard(release, tmp_path / "out", "--classes", chosen, "--split", "test")
    assert Vocabulary.read(out / "vocabulary.csv").names == ("Dog", "Person")
    planted = release.splits["test"]
    mine = {key for key, labels in written(planted).items() if labels.keys() & {"/m/0bt9lr", "/m/01g317"}}
    assert set(open_index(out / "test.arrow").key_column.to_pylist()) == mine
    assert "no_label_in_vocabulary" in fates(out, "test").values()


def test_machine_labels_go_into_train_alone(release: Release, prepared: Path, tmp_path: Path) -> None:
    out = shard(release, tmp_path / "out", "--machine-labels", THRESHOLD)
    machine, planted = release.splits["train"].machine, release.splits["train"]
    added = {key: labels for key, labels in labels_of(out, "train").items() if key in machine}
    assert all(labels.items() >= dict.fromkeys(machine[key], True).items() for key, labels in added.items())
    assert added.keys() == machine.keys() - planted.outside - planted.unlabelled  # of the others there is no file
    assert labels_of(out, "test") == labels_of(prepared, "test")
    assert (out / "vocabulary.csv").read_bytes() == (prepared / "vocabulary.csv").read_bytes()
    assert card(out)["parameters"]["machine_labels"] == THRESHOLD


def test_a_dry_run_writes_nothing(release: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool([*flags(release, tmp_path / "out"), "--dry-run"]) == 0
    said = capsys.readouterr().err
    assert not any(tmp_path.iterdir())
    assert "train: 1,691 labelled images, 1,691 of them requested" in said
    assert "kB written each; the split will have about" in said
    assert re.search(
        r"train: the time is estimated from these 64 images, .* one process .* ms of processor time each", said
    )
    assert "in all about 0.00 GB" in said


def test_without_resizing_images_stay_as_they_are(release: Release, tmp_path: Path) -> None:
    out = shard(release, tmp_path / "out", "--resize", "none", "--split", "validation")
    planted, copied = release.splits["validation"], contents(out, "validation")
    plain = written(planted).keys() - planted.special.values()
    assert all(copied[key] == (release.images / "validation" / f"{key}.jpg").read_bytes() for key in plain)


@pytest.mark.ray
def test_two_workers_write_the_same_bytes(release: Release, prepared: Path, tmp_path: Path) -> None:
    assert hashes(shard(release, tmp_path / "out", "--workers", 2)) == hashes(prepared)


def test_tars_hold_pairs_of_plain_files(prepared: Path) -> None:
    with tarfile.open(prepared / "test-000000.tar") as tar:
        names = tar.getnames()
        assert all(json.loads(tar.extractfile(name).read()) for name in names[1::2])  # type: ignore[union-attr]
    assert [name.removesuffix("jpg") for name in names[::2]] == [name.removesuffix("json") for name in names[1::2]]

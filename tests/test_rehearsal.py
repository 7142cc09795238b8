"""The rehearsal: its release has exactly the true counts, its truth is true, and what it measures is right."""

from __future__ import annotations

import io
import json
import math
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raypaml.audit import parse as audit_flags
from raypaml.preparation.openimages.release_labels import OFFICIAL_TOTALS, read_classes, read_split
from raypaml.recipes import recipe
from raypaml.search.spaces import parse_search
from raypaml.search.trials import grid_trials
from tools.full_size import labels, scenes
from tools.full_size.growth import exponent, faults, table
from tools.full_size.measured import bytes_below, measure
from tools.full_size.phases import NAMES, Phase, Place, chosen, command_of, rehearse
from tools.full_size.release import read_vocabulary, units_of, write_release, write_unit

SCALE = 0.01


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A release, where it lies, and what was planted in it."""
    out = tmp_path_factory.mktemp("release") / "release"
    return out, write_release(out, SCALE, None, 0, 1, lambda _: None)


def rows_of(path: Path) -> list[list[str]]:
    return [line.split(",") for line in path.read_text(encoding="utf-8").splitlines()[1:]]


def truth_of(out: Path, split: str):
    tables = [pq.read_table(path) for path in sorted((out / "truth").glob(f"{split}*.parquet"))]
    image, classes, verified = (np.concatenate([t[name].to_numpy() for t in tables]) for name in tables[0].column_names)
    return [f"{value:016x}" for value in image.tolist()], classes, verified


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_counts_are_those_of_the_release(release, split):
    out, planted = release
    expected = {name: round(count * SCALE) for name, count in OFFICIAL_TOTALS[split].items()}
    rows = rows_of(out / "metadata" / "2017_11" / split / "annotations-human.csv")
    signs = Counter(row[3] for row in rows)
    assert signs == {"1": expected["positives"], "0": expected["negatives"]}
    assert {row[1] for row in rows} == {"verification", "crowdsource-verification"}
    labelled = {row[0] for row in rows}
    assert len(labelled) == planted[split]["labelled"] == round(labels.LABELLED[split] * SCALE)
    listed = [row[0] for row in rows_of(out / "metadata" / "2017_11" / split / "images.csv")]
    assert len(listed) == len(set(listed)) == expected["images"]
    assert labelled <= set(listed)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_what_shard_reads_is_what_was_planted(release, split):
    out, planted = release
    metadata = out / "metadata"
    classes = read_classes(metadata)
    read = read_split(metadata, split, classes)
    counts = read.findings.counts
    mine = planted[split]
    assert (counts["images listed"], counts["label rows"]) == (mine["images"], mine["rows"])
    assert counts.get("duplicate labels", 0) == mine["said twice"]
    assert counts.get("conflicting labels", 0) == mine["contradicted"]
    usual = {"images listed", "label rows", "positives", "negatives", "duplicate labels", "conflicting labels"}
    assert not any(count for name, count in counts.items() if name not in usual)
    keys, true, verified = truth_of(out, split)
    positives = {(key, k) for key, k, seen in zip(keys, true.tolist(), verified, strict=True) if seen}
    missed = {(key, k) for key, k, seen in zip(keys, true.tolist(), verified, strict=True) if not seen}
    said = read.table.to_pylist()
    assert {(row["key"], k) for row in said for k in row["positives"]} == positives
    negatives = {(row["key"], k) for row in said for k in row["negatives"]}
    assert len(negatives) == mine["negatives"]
    assert not negatives & (positives | missed)


def test_every_class_has_the_share_of_labels_that_it_has_at_full_size(release):
    out, _ = release
    positives, negatives = labels.expected_labels()
    for expected, name in ((positives, "positives"), (negatives, "negatives")):
        quota = labels.quotas("train", SCALE)
        own = getattr(quota, name)
        assert np.abs(own - expected * own.sum() / expected.sum()).max() < 1
    every = positives + negatives
    assert every[0] == pytest.approx(1.5e6)
    assert every[-1] == pytest.approx(30)
    assert (np.diff(every) < 0).all()
    vocabulary = read_vocabulary(None)
    _, true, verified = truth_of(out, "train")
    counted = np.bincount(true[verified], minlength=scenes.CLASSES)[vocabulary.of_rank]
    assert (counted == labels.quotas("train", SCALE).positives).all()


def test_what_is_true_includes_all_classes_above(release):
    out, _ = release
    vocabulary = read_vocabulary(None)
    rank = np.argsort(vocabulary.of_rank)
    keys, true, _ = truth_of(out, "test")
    cells = set(zip(keys, rank[true].tolist(), strict=True))
    above = scenes.parents()
    assert all((key, above[k]) in cells for key, k in cells if above[k] != scenes.EMPTY)
    assert any(above[k] != scenes.EMPTY for _, k in cells)


def test_archives_hold_the_pictures_of_labelled_images_by_their_first_digit(release):
    out, planted = release
    names, forms = [], Counter()
    for archive in sorted((out / "images").glob("*.tar.gz")):
        with tarfile.open(archive) as tar:
            for member in tar:
                names.append((archive.name.partition(".")[0], member.name.removesuffix(".jpg")))
                content = tar.extractfile(member).read()
                try:
                    with Image.open(io.BytesIO(content)) as image:
                        image.load()
                        forms[image.mode] += 1
                        assert 16 <= image.width == image.height <= 32
                except OSError:
                    forms["cut off"] += 1
    assert all(name.removeprefix("train_") == key[0] for name, key in names if name.startswith("train"))
    pictures = {split: {key for name, key in names if name.startswith(split)} for split in planted}
    for split, keys in pictures.items():
        assert len(keys) == planted[split]["pictures"]
        labelled = {row[0] for row in rows_of(out / "metadata" / "2017_11" / split / "annotations-human.csv")}
        assert keys <= labelled
        assert len(labelled - keys) == planted[split]["not on the store"]
    assert planted["train"]["not on the store"] / planted["train"]["labelled"] == pytest.approx(0.07, abs=0.03)
    for form, name in (("L", "grey"), ("cut off", "cut off")):
        assert forms[form] == sum(one[name] for one in planted.values()) > 0


def test_the_same_seed_writes_the_same_bytes_in_any_process(tmp_path, release):
    out, _ = release
    (tmp_path / "images").mkdir()
    (tmp_path / "truth").mkdir()
    (tmp_path / "parts").mkdir()
    unit = next(unit for unit in units_of(tmp_path, SCALE, 0, read_vocabulary(None)) if unit.name == "train_7")
    write_unit(unit)
    for name in ("images/train_7.tar.gz", "truth/train_7.parquet"):
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes()
    other = next(unit for unit in units_of(tmp_path, SCALE, 1, read_vocabulary(None)) if unit.name == "train_7")
    write_unit(other)
    assert (tmp_path / "images/train_7.tar.gz").read_bytes() != (out / "images/train_7.tar.gz").read_bytes()


def test_parts_of_a_count_add_up_to_it():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 50, 200)
    parts = labels.dealt(counts, 16, rng)
    assert (parts.sum(0) == counts).all()
    assert (np.abs(parts - counts / 16) <= 1.5).all()


def test_classes_look_different_and_a_branch_shares_its_first_colour():
    patterns = scenes.patterns().reshape(scenes.CLASSES, -1)
    assert len({pattern.tobytes() for pattern in patterns}) == scenes.CLASSES
    lineage = scenes.lineages()
    assert lineage[4999].tolist() == [4999, 624, 78, 9, 1]


PRINTS = """
import subprocess, sys, time
seconds = float(sys.argv[1])
held = bytearray(60_000_000)
held[::4096] = b"x" * len(held[::4096])
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("epoch 1/3", flush=True)
time.sleep(seconds)
child.kill()
"""


def test_a_command_is_measured_with_what_it_starts(tmp_path):
    figures = measure([sys.executable, "-c", PRINTS, "4"], tmp_path / "log", {}, {"first step": r"epoch \d+/"})
    assert figures.exit_code == 0
    assert 4 <= figures.seconds < 60
    assert 0 < figures.marks["first step"] < figures.seconds - 1
    assert max(figures.peaks.values()) > max(figures.own.values()) > 60
    assert figures.together >= max(figures.peaks.values())
    assert b"epoch 1/3" in (tmp_path / "log").read_bytes()


def test_phases_are_killed_recorded_and_judged(tmp_path, monkeypatch):
    script = tmp_path / "phase.py"
    script.write_text(PRINTS)
    place = Place(tmp_path / "out", 0.002)
    kept = tmp_path / "kept"
    kept.write_bytes(bytes(1000))
    phases = [
        Phase("release", lambda _: [script, "0.6"], lambda _: kept),
        Phase("train-killed", lambda _: [script, "50"], None, {"first step": "epoch"}, lambda _: True),
        Phase("test", lambda _: [script, "no number"]),
    ]
    said: list[str] = []
    assert rehearse(place, phases, "abc", said.append) == 1
    records = [json.loads(line) for line in (place.out / "results.jsonl").read_text().splitlines()]
    assert [(one["phase"], one["exit_code"], one["right"]) for one in records] == [
        *(("release", 0, True), ("train-killed", None, True), ("test", 1, False))
    ]
    assert records[0]["bytes"] == 1000
    assert records[1]["seconds"] < 40
    assert "test: " in said[2]
    assert "failure" in said[2]
    assert "| train-killed" in table([place.out])


def test_the_search_is_asked_for_in_words_that_it_takes(tmp_path):
    (phase,) = chosen("search", 0.01)
    words = phase.words(Place(tmp_path, 0.01, None, 1))
    (space,) = parse_search(words[words.index("--search") + 1], recipe("openimages_v3"), {}, None)
    assert (space.field, space.values) == ("delta_rel", (0.005, 0.01, 0.02, 0.05))
    config = recipe("openimages_v3").override({"scheme": "ll_r", "delta_rel": 0.02})
    assert len(grid_trials(config, [space], 4)) == 4
    runs = {f"search/trials/{trial.run_name}" for trial in grid_trials(config, [space], 4)}
    after = [one for one in chosen("", 0.1) if one.name.startswith("search-")]
    assert {str(one.words(Place(tmp_path, 0.1))[1]) for one in after} == {str(tmp_path / "runs" / run) for run in runs}


def test_phases_are_chosen_by_name():
    assert [phase.name for phase in chosen("shard,verify", 1.0)] == ["shard", "verify"]
    assert [phase.name for phase in chosen("train-killed", 1.0)] == ["train-killed"]
    assert [phase.name for phase in chosen("train-killed,test", 1.0)] == ["train-killed", "test"]
    small, large = ([phase.name for phase in chosen("", scale)] for scale in (0.1, 1.0))
    assert set(NAMES) - set(small) == {"train-finished"}
    assert "search" not in large
    assert large.index("train-resumed") + 1 == large.index("train-finished") < large.index("report")
    with pytest.raises(ValueError, match="'nothing': there is no such phase; choose from release, shard"):
        chosen("nothing", 1.0)


def test_rare_groups_are_audited_by_themselves(tmp_path):
    run = tmp_path / "runs" / "ll_r"
    for group in ("g1", "g2", "g3", "g4"):
        (phase,) = chosen(f"audit-{group}", 0.1)
        command = command_of(phase, Place(tmp_path, 0.1))
        flags = ["--classes", group.upper(), "--top", "1000", "--workers", "2", "--out", str(run / f"audit-{group}")]
        assert command[3:] == ["audit", str(run), *flags]
        assert audit_flags(command[4:]).classes == group.upper()
        assert phase.kept is not None
        assert phase.kept(Place(tmp_path, 0.1)) == run / f"audit-{group}"
    assert NAMES.index("audit") + 1 == NAMES.index("audit-g1")
    assert "audit-g1" not in [phase.name for phase in chosen("", 1.0)]


def test_every_phase_is_a_command(tmp_path):
    place = Place(tmp_path, 0.1)
    commands = [command_of(phase, place) for phase in chosen("", 0.1)]
    assert all(command[1].endswith("rehearsal.py") or command[1:3] == ["-m", "raypaml"] for command in commands)


def test_exponents_and_limits(tmp_path):
    assert exponent([0.01, 0.1, 1], [3, 30, 300]) == pytest.approx(1)
    assert math.isnan(exponent([0.01], [3]))
    record = {"phase": "aggregate", "largest": 450.0, "marks": {"first step": 61}, "bytes": 0, "right": False}
    assert faults(record) == ["more than 400 MB a process", "more than 60 s to the first step", "failed"]
    for folder, scale, cpu in (("a", 0.1, 10.0), ("b", 1.0, 200.0)):
        (tmp_path / folder).mkdir()
        line = {"phase": "shard", "scale": scale, "cpu_seconds": cpu, "seconds": cpu, "peaks": {"command": 100.0}}
        line |= {"together": 200.0, "bytes": round(scale * 1e9), "files": 5, "marks": {}, "right": True}
        (tmp_path / folder / "results.jsonl").write_text(json.dumps(line) + "\n")
    assert "1.30 !" in table([tmp_path / "a", tmp_path / "b"])
    assert bytes_below(tmp_path / "nothing") == (0, 0)

"""The truth about a rehearsal's runs, against sets of entries and scikit-learn on a data set made by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import average_precision_score

from raypaml.data.data_folder import open_folder
from raypaml.data.index import write_index
from raypaml.data.index_table import SCHEMA
from raypaml.evaluation.parts import PredictionPart, open_set, write_part
from raypaml.labels import Vocabulary
from raypaml.recipes import recipe
from raypaml.sealed_tables import write_parquet
from tools.full_size.judged import audit_of, evaluated, rejections_of, runs_of, with_truth
from tools.full_size.true_labels import SplitTruth, read_truth
from tools.full_size.truth import page

K = 10
IMAGES = {"train": 40, "validation": 12, "test": 30}
CLASSES = tuple("abcdefghij")
RELEASED = ("x", *reversed(CLASSES))
"""The classes of the release, in another order than those of the data set, which lacks the first."""
Cells = set[tuple[int, int]]


class Made:
    """A folder as a rehearsal leaves it, and all that is in it as sets of (row, class)."""

    def __init__(self, out: Path):
        self.out, self.rng = out, np.random.default_rng(0)
        self.true: dict[str, Cells] = {}
        self.positive: dict[str, Cells] = {}
        self.negative: dict[str, Cells] = {}
        self.keys: dict[str, list[str]] = {}
        for split, images in IMAGES.items():
            every = [(int(row), int(k)) for row in range(images) for k in range(K)]
            drawn = self.rng.random(len(every))
            self.true[split] = {cell for cell, u in zip(every, drawn, strict=True) if u < 0.4}
            self.positive[split] = {
                cell for cell, u in zip(every, drawn, strict=True) if u < (0.3 if split == "validation" else 0.2)
            }
            self.negative[split] = {cell for cell, u in zip(every, drawn, strict=True) if u > 0.7}
            self.keys[split] = [f"{int(n):016x}" for n in self.rng.integers(0, 2**63, images)]
        counts = [
            np.bincount([k for _, k in cells["train"]], minlength=K).astype(np.int64)
            for cells in (self.positive, self.negative)
        ]
        self.vocabulary = Vocabulary(
            class_ids=CLASSES, names=CLASSES, train_positives=counts[0], train_negatives=counts[1]
        )
        self._write_data()
        self._write_release()

    @property
    def missed(self) -> Cells:
        return self.true["train"] - self.positive["train"]

    def group(self, cells: Cells, group: int) -> Cells:
        return {(row, k) for row, k in cells if self.vocabulary.class_group[k] == group}

    def _write_data(self) -> None:
        (self.out / "data").mkdir(parents=True)
        self.vocabulary.write(self.out / "data" / "vocabulary.csv")
        for split, images in IMAGES.items():
            (self.out / "data" / f"{split}.tar").write_bytes(bytes(images))
            lists = {
                name: [sorted(k for row, k in cells[split] if row == one) for one in range(images)]
                for name, cells in (("positives", self.positive), ("negatives", self.negative))
            }
            columns = {"key": self.keys[split], "shard": [0] * images, "offset": list(range(images))}
            columns |= {"size": [1] * images, "crc32": [0] * images, "truth": [None] * images, "boxes": [None] * images}
            table = pa.table(columns | lists).select(SCHEMA.names).cast(SCHEMA)
            write_index(
                self.out / "data" / f"{split}.arrow",
                table,
                shards=[f"{split}.tar"],
                shard_bytes=[images],
                vocabulary=self.vocabulary,
                has_truth=False,
            )

    def _write_release(self) -> None:
        metadata = self.out / "release" / "metadata" / "2017_11"
        metadata.mkdir(parents=True)
        (self.out / "release" / "truth").mkdir()
        (metadata / "classes-trainable.txt").write_text("".join(f"{name}\n" for name in RELEASED))
        for split in IMAGES:
            cells = sorted(self.true[split], key=lambda cell: self.keys[split][cell[0]])
            half = len(cells) // 2
            for part, mine in enumerate((cells[:half], cells[half:])):
                rows = [(int(self.keys[split][row], 16), K - k, (row, k) in self.positive[split]) for row, k in mine]
                rows += [(5, 1, True), (int(self.keys[split][0], 16), 0, True)]  # another image, a class of no column
                image, classes, seen = zip(*rows, strict=True)
                table = {
                    "image": pa.array(image, pa.uint64()),
                    "class": pa.array(classes, pa.int16()),
                    "verified": seen,
                }
                pq.write_table(pa.table(table), self.out / "release" / "truth" / f"{split}_{part}.parquet")

    def run(self, name: str, **settings: object) -> Path:
        """Writes the record of a run."""
        folder = self.out / "runs" / name
        folder.mkdir(parents=True)
        data = open_folder(self.out / "data")
        record = {
            "config": recipe("openimages_v3").override({"history": True, "epochs": 3, **settings}).to_dict(),
            "data": {
                "folder": str(data.path),
                "vocabulary": self.vocabulary.digest,
                "num_classes": K,
                "image_size": (32, 32),
                "samples": IMAGES,
                "digests": {},
            },
            "versions": {},
            "commit": "",
        }
        (folder / "config.json").write_text(json.dumps(record))
        return folder

    def reject(self, run: Path, epoch: int, cells: Cells, rank: int = 0) -> None:
        """Writes what a rank rejected in an epoch."""
        rows, classes = zip(*sorted(cells), strict=True)
        about = {"samples": str(IMAGES["train"]), "vocabulary": self.vocabulary.digest}
        schema = pa.schema([("row", pa.int64()), ("class", pa.int32())], metadata=about)
        (run / "rejected").mkdir(exist_ok=True)
        write_parquet(run / "rejected" / f"{epoch:04d}-000010-{rank}.parquet", pa.table([rows, classes], schema=schema))

    def predict(self, run: Path, *, unobserved: bool) -> dict[tuple[int, int], float]:
        """Writes predictions of the test split; returns the logit of every entry."""
        images = IMAGES["test"]
        p, n = self.rng.random((2, images, K)).astype(np.float32)
        label = dict.fromkeys(self.positive["test"], True) | dict.fromkeys(self.negative["test"], False)
        cells = [(row, k) for row in range(images) for k in range(K) if unobserved or (row, k) in label]
        rows, classes = zip(*cells, strict=True)
        about = PredictionPart(
            split="test",
            vocabulary=self.vocabulary.digest,
            num_classes=K,
            alpha=5.0,
            model="m",
            data="d",
            unobserved=unobserved,
            samples=images,
            parts=1,
            part=0,
            part_samples=images,
        )
        columns = {
            "key": [self.keys["test"][row] for row in rows],
            "class": pa.array(classes, pa.int32()),
            "positive": [label.get(cell) for cell in cells],
            "P": p[rows, classes],
            "N": -n[rows, classes],
        }
        folder = run / "predictions" / ("test-unobserved" if unobserved else "test")
        write_part(folder, about, pa.table(columns))
        self.vocabulary.write(folder / "vocabulary.csv")
        return {cell: float(np.float32(5) * p[cell] - n[cell]) for cell in cells}


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path / "r")


def truth_of(made: Made, split: str = "train") -> SplitTruth:
    data = open_folder(made.out / "data")
    return read_truth(made.out / "release", split, data.splits[split], data.vocabulary)


def numbers(cells: Cells) -> list[int]:
    return sorted(row * K + k for row, k in cells)


def test_missed_positives_are_what_is_true_and_not_observed(made: Made) -> None:
    truth = truth_of(made)
    assert truth.missed.tolist() == numbers(made.missed)
    observed = made.positive["train"] | made.negative["train"]
    unobserved = {(row, k) for row in range(IMAGES["train"]) for k in range(K)} - observed
    for group in range(1, 6):
        assert truth.unobserved[group - 1] == len(made.group(unobserved, group))
        chance = len(made.group(made.missed, group)) / len(made.group(unobserved, group))
        assert truth.chance[group - 1] == pytest.approx(chance)
    assert truth.chance[-1] == pytest.approx(len(made.missed) / len(unobserved))
    assert truth_of(made, "test").true_cells.tolist() == numbers(made.true["test"])


def test_precision_and_recall_of_rejections_by_epoch_and_group(made: Made) -> None:
    run = made.run("ll_r", scheme="ll_r")
    wrong = {(row, k) for row in range(40) for k in range(K)} - made.true["train"] - made.negative["train"]
    some, other = sorted(made.missed), sorted(made.group(wrong, 3) | made.group(wrong, 5))
    epochs = [set(some[:20] + other[:10]), set(some[10:30] + other[:5])]
    made.reject(run, 1, set(sorted(epochs[0])[:12]), rank=0)
    made.reject(run, 1, set(sorted(epochs[0])[10:]), rank=1)  # two entries twice, as after an interruption
    made.reject(run, 2, epochs[1])
    judged = list(rejections_of(run, truth_of(made)))
    assert [one.epochs for one in judged] == ["2", "3", "all"]
    for one, cells in zip(judged, (*epochs, epochs[0] | epochs[1]), strict=True):
        for place, mine in enumerate([*(made.group(cells, group) for group in range(1, 6)), cells]):
            missed = made.group(made.missed, place + 1) if place < 5 else made.missed
            assert one.count[place] == len(mine)
            assert one.recall[place] == pytest.approx(len(mine & missed) / len(missed))
            precision = len(mine & missed) / len(mine) if mine else math.nan
            assert one.precision[place] == pytest.approx(precision, nan_ok=True)
    assert (judged[2].count[-1], judged[2].precision[-1]) == (40, 0.75)


def test_ap_with_verified_and_with_all_true_labels(made: Made) -> None:
    run = made.run("an", scheme="an")
    scores = made.predict(run, unobserved=False), made.predict(run, unobserved=True)
    (judged,), _ = runs_of(made.out, made.vocabulary)
    evaluations = evaluated(judged, truth_of(made, "test"))
    for evaluation, given, positive in zip(
        evaluations, scores, (made.positive["test"], made.true["test"]), strict=True
    ):
        assert evaluation is not None
        for k in range(K):
            mine = [cell for cell in given if cell[1] == k]
            expected = average_precision_score([cell in positive for cell in mine], [given[cell] for cell in mine])
            assert evaluation.ap[k] == pytest.approx(expected)
    with pytest.raises(ValueError, match="entries of 30 images and 10 classes; predict them all"):
        with_truth(open_set(run / "predictions" / "test"), truth_of(made, "test"))


def test_the_page_says_what_runs_lack(made: Made) -> None:
    run, trial = made.run("ll_r", scheme="ll_r"), made.run("search/trials/delta_rel=0.05", scheme="ll_r")
    (made.out / "runs" / "search" / "search.json").write_text("{}")
    (made.out / "runs" / "search" / "trials" / "delta_rel=9").mkdir()
    plain = made.run("an", scheme="an", history=False)
    made.run("none", scheme="ll_r", history=False)
    epoch = {"epoch": 0, "loss": 1.0, "expected": 40, "samples": 40, "skipped": 0, "rejected": 0, "corrected": 0}
    epoch |= dict.fromkeys(("rejected_missed", "missed", "rejection_precision", "rejection_recall"))
    epoch |= {"validation_skipped": 0, "validation_mean_ap": 0.5, "validation_groups": {}, "seconds": 1.0}
    (trial / "metrics.jsonl").write_text(json.dumps(epoch) + "\n")
    missed = sorted(made.missed)
    made.reject(trial, 2, set(missed[:7]))
    for one in (run, plain):
        made.predict(one, unobserved=False)
    listed = missed[:60] + sorted(made.negative["train"])[:40]
    table = {
        "rank": list(range(1, 101)),
        "key": [made.keys["train"][row] for row, _ in listed],
        "class_id": [CLASSES[k] for _, k in listed],
        "score": np.linspace(0, 1, 100),
    }
    (run / "audit").mkdir()
    pq.write_table(pa.table(table), run / "audit" / "candidates.parquet")
    rare = sorted(made.group(made.missed, 2))[:5] + sorted(made.group(made.negative["train"], 2))[:20]
    places = (np.arange(120) * 7) % 25  # 120 entries of 25 different ones, in a mixed order
    table = {
        "rank": list(range(1, 121)),
        "key": [made.keys["train"][rare[n][0]] for n in places],
        "class_id": [CLASSES[rare[n][1]] for n in places],
        "score": np.linspace(0, 1, 120),
    }
    (run / "audit-g2").mkdir()
    pq.write_table(pa.table(table), run / "audit-g2" / "candidates.parquet")
    read = audit_of(run, open_folder(made.out / "data").splits["train"], made.vocabulary)
    assert read is not None
    assert read.entries.tolist() == [row * K + k for row, k in listed]
    assert read.by_score.tolist() == read.entries[::-1].tolist()
    text = page(made.out)
    for line in (
        "- search: delta_rel=9: no config.json, so that it is no run",
        "- an: scheme an rejects nothing",
        "- ll_r: nothing was rejected",
        "- none: trained without --history",
        "- none: no predictions of the test",
        "- an: no predictions of all entries of the test (--unobserved)",
        "- search: delta_rel=0.05: no audit",
        "- ll_r: its list has 100 entries",
        "- ll_r, G1: no audit",
        "- ll_r, G2: its list has 120 entries",
        "- an: not finished",
        "- search: delta_rel=0.05: 1 epochs, and an 0, so that the gain is not that of its rejections alone",
    ):
        assert line in text.splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert [row[-1] for row in rows if row[:2] == ["search: delta_rel=0.05", "3"]] == [
        *("7", "100.00", f"{100 * 7 / len(missed):.2f}")
    ]
    assert ["ll_r", "100", "60.00"] in [row[:3] for row in rows]
    assert ["ll_r", "500", *["–"] * 8] in rows
    assert [row[1] for row in rows if row[0] == "ll_r, G2"] == ["100"]  # longer ones are longer than the list
    hits, by_score = int((places[:100] < 5).sum()), int((places[20:] < 5).sum())
    by_chance, unseen = truth_of(made).chance, ["0 of 0"] * 4
    expected = [f"{hits:.2f}", f"{100 * by_chance[1]:.3f}", f"{by_score:.2f}", *unseen]
    expected.insert(4, f"{hits} of 100")
    assert ["ll_r, G2", "100", *expected] in rows
    assert next(row[3] for row in rows if row[:2] == ["ll_r", "100"]) == f"{100 * by_chance[-1]:.3f}"
    assert ["verified, paper", "none", *["–"] * 12] in rows
    (own, base) = (next(row for row in rows if row[:2] == ["verified, paper", name]) for name in ("ll_r", "an"))
    assert float(own[-1]) == pytest.approx(float(own[7]) - float(base[7]), abs=0.011)
    per_image = {row[0]: row[-1] for row in rows if len(row) == 7}
    assert per_image["missed positives of train in truth"] == f"{len(missed) / 40:.3f}"
    delta_rel = 100 * len(missed) / (40 * K) / (2 * 0.5)
    assert f"the same rule on what was really missed gives {delta_rel:.2g}" in text
    assert "it suggests" in text
    assert per_image["observed positives, train"] == f"{len(made.positive['train']) / 40:.3f}"
    assert per_image["there in truth, validation"] == f"{len(made.true['validation']) / 12:.3f}"


def test_what_is_no_rehearsal_is_refused_in_one_line(made: Made, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"runs: no run; the phases of tools/rehearsal.py that train make them"):
        page(made.out)
    made.run("an", scheme="an")
    with pytest.raises(ValueError, match=r"data=.*nothing.*no such folder"):
        page(tmp_path / "nothing")
    other = made.out / "release" / "truth" / "train_1.parquet"
    content = other.read_bytes()
    other.unlink()
    with pytest.raises(ValueError, match="this is the truth of another release, shard this one"):
        page(made.out)
    other.write_bytes(content)
    for path in (made.out / "release" / "truth").glob("test*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"no truth of test; the phase release of tools/rehearsal\.py writes it"):
        page(made.out)

"""Sound examples of every kind of file, each of a few kilobytes, the same at every call."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from raypaml.config import TrainConfig
from raypaml.data.data_folder import DataFolder, open_folder
from raypaml.data.shards import SPLITS, Sample, write_dataset
from raypaml.evaluation.parts import PredictionPart, write_part
from raypaml.files import write_json
from raypaml.inference import exporting
from raypaml.inference.classifier import load
from raypaml.labels import Vocabulary
from raypaml.recipes import recipe
from raypaml.runs.checkpoint import State
from raypaml.runs.checkpoint_writer import take_snapshot, write_checkpoint
from raypaml.runs.corrections import Corrections
from raypaml.runs.models import build_model
from raypaml.runs.run_folder import claim
from raypaml.search.search_folder import SearchPlan, open_search
from raypaml.search.spaces import make_space
from tests.odd_images import encoded, picture
from tests.test_damaged_records import CHOICE
from tests.whole_records import EPOCH_RECORD, RESULT

K, SIDE = 5, 32
IDS = tuple(f"class-{k}" for k in range(K))
PIXELS = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
_SPACES = [
    {"name": "alpha", "field": "alpha", "distribution": "uniform", "low": 1, "high": 10, "unit": ""},
    {"name": "scheme", "field": "scheme", "distribution": "choice", "values": ["an", "ll_r"]},
]


def _sample(number: int) -> Sample:
    rng = np.random.default_rng(number)
    seen, other = IDS[number % K], IDS[(number + 1) % K]
    boxes = ((seen, 1.0, 2.0, 20.0, 30.0),)
    image = encoded(picture(rng, (SIDE, SIDE)), quality=60)
    return Sample(key=f"s{number:03d}", image=image, positive=(seen,), negative=(other,), truth=(seen,), boxes=boxes)


def make_data(folder: Path) -> None:
    """A data set of three splits."""
    samples = {split: [_sample(100 * n + m) for m in range(6)] for n, split in enumerate(SPLITS)}
    write_dataset(folder, samples, IDS, [f"name {k}" for k in range(K)], samples_per_shard=4)


def make_tar(folder: Path) -> None:
    """A tar as other programs write it: folders in names, a folder's own member, labels by their names."""
    with tarfile.open(folder / "foreign.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.add(folder, "pictures", recursive=False)
        for number in range(4):
            labels = json.dumps({"pos": [IDS[number]], "neg": []}).encode()
            for suffix, content in (("jpg", _sample(number).image), ("json", labels)):
                member = tarfile.TarInfo(f"pictures/ä{number}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def optimizer_of(model: torch.nn.Module) -> torch.optim.Optimizer:
    """The optimizer of the example's run."""
    return torch.optim.Adam(model.parameters(), lr=0.01)


def _checkpoint(folder: Path, config: TrainConfig, data: DataFolder) -> None:
    torch.manual_seed(0)
    model, index = build_model(config.model, K), data.splits["train"]
    optimizer = optimizer_of(model)
    model(torch.from_numpy(PIXELS).permute(2, 0, 1)[None].repeat(2, 1, 1, 1)).sum().backward()
    optimizer.step()
    state = State(
        epoch=1, history=[EPOCH_RECORD], vocabulary=data.vocabulary.digest, skipped=[(0, 1, "cannot be decoded")]
    )  # type: ignore[arg-type]
    write_checkpoint(
        folder,
        take_snapshot(state, model, optimizer, Corrections(K, np.array([1, 7])), index, memory={"a.b": torch.ones(3)}),
    )


def make_run(folder: Path) -> None:
    """A run of one epoch, its data set, its export, and a search."""
    (folder / "data").mkdir()
    make_data(folder / "data")
    data = open_folder(folder / "data")
    values = {"backbone": "small", "data": str(folder / "data"), "epochs": 1, "name": folder.name, "workers": 1}
    config = recipe("digits").override({**values, "storage": str(folder.parent)})
    claim(folder, config, data)
    data.vocabulary.write(folder / "vocabulary.csv")
    (folder / "metrics.jsonl").write_text(json.dumps(EPOCH_RECORD) + "\n")
    _checkpoint(folder / "checkpoints", config, data)
    (folder / "export").mkdir()
    exporting.save_weights(load(folder), folder / "export")
    write_json(folder / "result.json", RESULT)
    choice = {"alpha": [1] * K, "thresholds": [0.0] * K, "vocabulary": data.vocabulary.digest}
    write_json(folder / "alpha_of_use.json", CHOICE | choice)
    make_search(folder, config)


def make_search(folder: Path, config: TrainConfig) -> None:
    """A search of three trials, of which none has begun."""
    spaces = (make_space(config, name="alpha", field="alpha", distribution="uniform", low=1, high=10),)
    search = SearchPlan(base=config.override({"name": "search", "storage": str(folder)}), spaces=spaces)
    open_search(search, 3)
    found = {"trial": "alpha=2", "validation_mean_ap": 0.5, "verdict": "no better", "folder": str(folder)}
    write_json(folder / "search" / "best.json", {"config": config.to_dict(), "found": found})


def _vocabulary() -> Vocabulary:
    counts = np.arange(K)
    return Vocabulary(class_ids=IDS, names=IDS, train_positives=counts, train_negatives=counts)


def _entries() -> tuple[list[str], list[int], list[bool], np.ndarray]:
    rng = np.random.default_rng(0)
    keys = [f"image-{n}" for n in range(40) for _ in range(K)]
    return keys, [*range(K)] * 40, (rng.random(40 * K) < 0.3).tolist(), rng.normal(size=(2, 40 * K)).astype("f4")


def make_predictions(folder: Path) -> None:
    """A prediction set of two parts."""
    vocabulary = _vocabulary()
    vocabulary.write(folder / "vocabulary.csv")
    keys, classes, positive, (p, n) = _entries()
    table = pa.table({"key": keys, "class": pa.array(classes, pa.int32()), "positive": positive, "P": abs(p), "N": n})
    common = {"split": "test", "vocabulary": vocabulary.digest, "num_classes": K, "alpha": 5.0, "model": "0" * 64}
    rest = {"data": "1" * 64, "unobserved": False, "samples": 40, "parts": 2, "part_samples": 20}
    for number in range(2):
        part = PredictionPart(**common, **rest, part=number)  # type: ignore[arg-type]
        write_part(folder, part, table.slice(number * 20 * K, 20 * K))


def make_scores(folder: Path) -> None:
    """Predictions of another program."""
    _vocabulary().write(folder / "vocabulary.csv")
    keys, classes, positive, (_, scores) = _entries()
    rows = zip(keys, classes, positive, scores, strict=True)
    text = "".join(f"{key},{IDS[k]},{int(label)},{score:.6f}\n" for key, k, label, score in rows)
    (folder / "scores.csv").write_text("key,class,label,score\n" + text)


def make_tables(folder: Path) -> None:
    """Labels as people have them."""
    rows = [(f"a/{n}.jpg", f"{IDS[n % K]} {IDS[(n + 1) % K]}", "test" if n % 4 == 0 else "train") for n in range(40)]
    lines = [f'"{file}",{labels},{split}\n' for file, labels, split in rows]
    (folder / "labels.csv").write_text("image,labels,split\n" + "".join(lines))
    files, labels, splits = zip(*rows, strict=True)
    pq.write_table(pa.table({"image": files, "labels": labels, "split": splits}), folder / "labels.parquet")


def make_spaces(folder: Path) -> None:
    """Search spaces, in YAML and in JSON."""
    import yaml

    (folder / "spaces.yaml").write_text(yaml.safe_dump(_SPACES))
    (folder / "spaces.json").write_text(json.dumps(_SPACES))


def make_pictures(folder: Path) -> None:
    """One picture of each common format."""
    rng = np.random.default_rng(3)
    for suffix, kind in (("jpg", "JPEG"), ("png", "PNG"), ("gif", "GIF"), ("webp", "WEBP"), ("tif", "TIFF")):
        (folder / f"picture.{suffix}").write_bytes(encoded(picture(rng, (40, 24)), kind))

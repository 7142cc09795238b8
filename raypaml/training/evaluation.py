"""Predict the observed entries of a split, in parts, one a worker; nothing dense, nothing lost."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from raypaml.data.batches import Reader, read
from raypaml.data.folder import DataFolder
from raypaml.data.plan import Plan
from raypaml.labels import POSITIVE, UNOBSERVED, Vocabulary
from raypaml.metrics.average_precision import average_precision
from raypaml.model.cam import CamClassifier
from raypaml.training.distributed import Team
from raypaml.training.gradients import lane_slices

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Predictions:
    """R observed entries: the sample, the class, whether positive, and the score's parts P and N."""

    row: NDArray[np.int64]
    class_index: NDArray[np.int64]
    positive: NDArray[np.bool_]
    P: NDArray[np.float32]
    N: NDArray[np.float32]

    def ap(self, alpha: float, num_classes: int) -> Floats:
        """[K] average precision with this alpha, convention `paper`."""
        logits = np.float32(alpha) * self.P + self.N
        return average_precision(self.class_index, logits, self.positive, num_classes)

    def gather(self, team: Team) -> Predictions:
        """The entries of all ranks, on every rank."""
        columns = (self.row, self.class_index, self.positive.view(np.uint8), self.P, self.N)
        row, class_index, positive, p, n = (team.gather(column) for column in columns)
        return Predictions(row, class_index, positive.view(np.bool_), p, n)  # type: ignore[arg-type]


def predict(
    model: CamClassifier, data: DataFolder, split: str, team: Team, *, lanes: int, batch_size: int, loader_workers: int
) -> Predictions:
    """Predict this rank's part of a split; every sample belongs to exactly one rank."""
    index = data.splits[split]
    plan = Plan(num_samples=len(index), global_batch_size=batch_size, lanes=lanes, shuffle=False)
    reader = Reader(data.path, index, plan.epoch(0, team.rank, team.world_size))
    columns = [_empty()]
    model.eval()
    with torch.inference_mode():
        for batch in read(reader, loader_workers=loader_workers, pin_memory=team.device.type == "cuda"):
            if not len(batch.rows):
                continue
            # lane by lane: a convolution's last bit may depend on the batch's shape, not so the lanes'
            parts = [model.pooled(batch.images[lane].to(team.device)) for lane in lane_slices(batch.lane_sizes)]
            p, n = (torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True))
            labels = batch.labels.numpy()
            position, classes = np.nonzero(labels != UNOBSERVED)
            cell = (position, classes)
            columns.append((batch.rows[position], classes, labels[cell] == POSITIVE, p[cell], n[cell]))
    model.train()
    return Predictions(*(np.concatenate(column) for column in zip(*columns, strict=True)))


def _empty() -> tuple[NDArray[np.generic], ...]:
    return tuple(np.empty(0, kind) for kind in (np.int64, np.int64, np.bool_, np.float32, np.float32))


def write_part(folder: Path, predictions: Predictions, data: DataFolder, split: str, team: Team) -> None:
    """Write one rank's `part-00000-of-00002.parquet`; the metadata says what set it belongs to."""
    folder.mkdir(parents=True, exist_ok=True)
    meta = {"vocabulary": data.vocabulary.digest, "split": split, "parts": team.world_size, "part": team.rank}
    table = pa.table(
        {
            "key": pa.array(data.splits[split].keys(predictions.row), pa.string()),
            "class": pa.array(predictions.class_index, pa.int32()),
            "positive": predictions.positive,
            "P": predictions.P,
            "N": predictions.N,
        }
    )
    path = folder / f"part-{team.rank:05d}-of-{team.world_size:05d}.parquet"
    unfinished = path.with_suffix(".unfinished")
    pq.write_table(table.replace_schema_metadata({"raypaml": json.dumps(meta)}), unfinished)
    unfinished.replace(path)


def read_parts(folder: Path, vocabulary: Vocabulary) -> pa.Table:
    """All entries of one prediction set; ValueError if a part is missing or belongs to another vocabulary."""
    paths = sorted(folder.glob("part-*.parquet"))
    if not paths:
        raise ValueError(f"{folder}: no predictions; run the evaluation again")
    tables = [pq.read_table(path) for path in paths]
    metas = [json.loads((table.schema.metadata or {}).get(b"raypaml", b"{}")) for table in tables]
    wanted = metas[0].get("parts", 0)
    if sorted((meta.get("parts"), meta.get("part")) for meta in metas) != [(wanted, part) for part in range(wanted)]:
        raise ValueError(
            f"{folder}: {len(paths)} files are not the {wanted} parts of one set; run the evaluation again"
        )
    if len({meta["split"] for meta in metas}) > 1:
        raise ValueError(f"{folder}: parts of several splits; run the evaluation again")
    if {meta["vocabulary"] for meta in metas} != {vocabulary.digest}:
        raise ValueError(f"{folder}: predictions of another vocabulary than the data set's")
    return pa.concat_tables(table.replace_schema_metadata(None) for table in tables)

"""Reads NUS-WIDE from its official lists, or from the re-crawled arrays of E. Cole et al. (CVPR 2021)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from raypaml.bounded import open_npy
from raypaml.preparation.findings import Findings
from raypaml.preparation.formats.common import Source, SourceSplit, classes_of, from_matrix, text_lines


def read_nuswide(folder: Path) -> Source:
    """Reads `ImageList/`, `Groundtruth/TrainTestLabels/` and `Concepts81.txt`, or `formatted_{train,val}_*.npy`.

    In the official lists Train is the training split and Test the test split; images without a concept are left out and
    counted. In the re-crawled arrays val is the test split, and all rows are kept, as published, even those without a
    concept. The two are different sets of images: results on one do not compare with results on the other.

    Raises:
        ValueError: a file is missing or wrong; the message names file and line.
    """
    if (folder / "formatted_train_images.npy").is_file():
        return _read_arrays(folder)
    concepts = [line.strip() for line in text_lines(_below(folder, "Concepts81.txt")) if line.strip()]
    splits = {split: _read_lists(folder, name, concepts) for split, name in (("train", "Train"), ("test", "Test"))}
    return Source(classes_of(concepts), splits, folder / "Flickr")


def _below(folder: Path, name: str) -> Path:
    """Returns the path of a file of the official archives, wherever below the folder these were extracted."""
    paths = sorted(folder.rglob(name))
    if not paths:
        raise ValueError(f"{folder}: no {name}, nor formatted_train_images.npy; give the folder of NUS-WIDE's files")
    return paths[0]


def _read_lists(folder: Path, name: str, concepts: list[str]) -> SourceSplit:
    listed = _below(folder, f"{name}Imagelist.txt")
    files = [line.strip().replace("\\", "/") for line in text_lines(listed) if line.strip()]
    labels = np.zeros((len(files), len(concepts)), np.int8)
    for column, concept in enumerate(concepts):
        path = _below(folder, f"Labels_{concept}_{name}.txt")
        values = [line.strip() for line in text_lines(path) if line.strip()]
        wrong = next((number for number, value in enumerate(values, start=1) if value not in ("0", "1")), 0)
        if wrong or len(values) != len(files):
            what = f"line {wrong}: {values[wrong - 1]!r}" if wrong else f"{len(values)} lines for {len(files)} images"
            raise ValueError(f"{path}: {what}; expected 0 or 1 for every image of {listed.name}")
        labels[:, column] = np.array(values, np.int8)
    findings = Findings()
    labelled = np.flatnonzero(labels.any(1))
    findings.add("images listed", len(files))
    findings.add("images without a concept, left out", len(files) - len(labelled))
    return SourceSplit([files[row] for row in labelled], from_matrix(labels[labelled]), findings=findings)


def _read_arrays(folder: Path) -> Source:
    splits = {}
    for split, name in (("train", "train"), ("test", "val")):
        paths = (folder / f"formatted_{name}_{part}.npy" for part in ("images", "labels"))
        files, labels = (np.asarray(open_npy(path, also="U")) for path in paths)  # names of files are text
        if labels.ndim != 2 or len(files) != len(labels) or not np.isin(labels, (0, 1)).all():
            raise ValueError(f"{folder}: {name} has {len(files)} images and labels {labels.shape}; expected 0 and 1")
        findings = Findings()
        findings.add("images listed", len(files))
        splits[split] = SourceSplit([str(file).lstrip("/") for file in files], from_matrix(labels), findings=findings)
    num_classes = labels.shape[1]
    listed = folder / "Concepts81.txt"
    concepts = [line.strip() for line in text_lines(listed) if line.strip()] if listed.is_file() else []
    names = concepts if len(concepts) == num_classes else [f"concept_{k:02d}" for k in range(num_classes)]
    return Source(classes_of(names), splits, folder / "Flickr")

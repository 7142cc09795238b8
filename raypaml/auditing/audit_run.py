"""Audits a run: ranks the entries that training rejected and writes the first of them with a picture each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from raypaml.auditing.answers import AnswersRecord, apply_answers, read_answers
from raypaml.auditing.audit_page import PICTURES, Candidate, place, strip, write_audit_page, write_tables
from raypaml.auditing.candidates import (
    AuditFigures,
    Rejected,
    audit_figures,
    history,
    most_often,
    ranking,
    rejected_entries,
    score,
)
from raypaml.bounds import check_bounds
from raypaml.config import TrainConfig
from raypaml.counting import Count
from raypaml.data.batches import Reader
from raypaml.data.data_folder import DataFolder, open_folder, resolve_data
from raypaml.files import write_json
from raypaml.labels import IntArray, RealArray
from raypaml.losses.schemes import scheme_of
from raypaml.metrics.thresholds import sigmoid
from raypaml.model.cam import CamClassifier
from raypaml.runs.alpha_of_use import alpha_text, used_alpha
from raypaml.runs.history import read_history
from raypaml.runs.models import checkpoint_model, tested_checkpoint
from raypaml.runs.run_files import CONFIG, STATE
from raypaml.runs.run_folder import changed_data, check_trained_classes, read_config

MOST_ENTRIES = 100_000
"""The most entries of a list; each has a picture on the page."""
LENGTHS = (100, 200, 500, 1000, 2000)
"""Lengths of the list at which its precision is given, where the full labels are known."""


@dataclass(frozen=True)
class AuditedRun:
    """A run and the data set whose training labels are audited."""

    folder: Path
    config: TrainConfig
    data: DataFolder

    @classmethod
    def open(cls, run: Path, data: str, say: Callable[[str], None]) -> AuditedRun:
        """Open a run, and its own data or another data set of the same classes.

        Raises:
            ValueError: the classes do not fit, or a checkpoint was given.
        """
        if (run / STATE).is_file():
            raise ValueError(f"{run}: a checkpoint; the best one of a run is audited, give {run.parent.parent}")
        config = read_config(run / CONFIG)
        folder = open_folder(resolve_data(data or config.data.data, say), **config.data.opening)
        check_trained_classes(run, folder.vocabulary.digest, folder.address)
        if not data and (changed := changed_data(run, folder, ["train"])):
            say(changed)
        return cls(run, config, folder)

    def apply(self, answers: Path, out: Path) -> AnswersRecord:
        """Write a data set to `out` with the answers of a file; returns the record of the answers."""
        given = read_answers(answers, self.data.splits["train"], self.data.vocabulary)
        return apply_answers(self.data, given, out, answers)


@dataclass(frozen=True, kw_only=True)
class AuditRequest:
    """What `raypaml audit` is asked for; the fields are its flags.

    Raises:
        ValueError: `top` is out of range.
    """

    data: str = ""
    """A data set of the same classes, in the place of the run's own; "" for the run's own."""
    top: int = 500
    """Number of entries in the list."""
    out: str = ""
    """Folder of the audit; "" for `audit` in the run's folder."""
    alpha: str = ""
    """The alpha of the scores, as `used_alpha` takes it."""
    device: str = "auto"
    """Where the model computes: auto (a GPU if there is one), cpu or cuda."""

    def __post_init__(self) -> None:
        check_bounds("top", self.top, 1, MOST_ENTRIES)


def audit_run(
    run: AuditedRun, request: AuditRequest, out: Path, device: str, say: Callable[[str], None]
) -> AuditFigures | None:
    """Rank the rejected entries of a run, and write the folder of the audit with the first of them.

    Args:
        run: a run of a large-loss scheme that was trained with --history.
        request: the length of the list and the alpha of its scores.
        out: folder of the audit.
        device: "cuda" or "cpu", where the model computes.
        say: prints a line of progress.

    Returns:
        How good the ranking is, where the full labels are known; else None.

    Raises:
        ValueError: the run rejected nothing.
    """
    config, data, index = run.config, run.data, run.data.splits["train"]
    keeping, epochs = scheme_of(config.loss.scheme).corrects, len(read_history(run.folder))
    rejected = most_often(rejected_entries(run.folder, index, keeping=keeping, epochs=epochs))
    (out / PICTURES).mkdir(parents=True, exist_ok=True)  # before the work, in case it cannot be written
    torch.set_num_threads(1)  # as for prediction: several threads wait for each other on a busy machine
    checkpoint = tested_checkpoint(run.folder)
    used = used_alpha(run.folder, checkpoint, config.model.alpha, request.alpha)
    say(f"alpha {alpha_text(used.alpha)}: {used.alpha_origin}")
    model = checkpoint_model(checkpoint, config.model, len(data.vocabulary), used.alpha).to(device)
    rows = np.arange(len(index)) if index.has_truth else np.unique(rejected.entries // index.num_classes)
    say(f"{len(rejected.entries):,} entries were rejected; scoring them on {len(rows):,} images")
    scored = score(model, data, rejected.entries, rows, max(request.top, *LENGTHS), say)
    if scored.broken:
        say(f"{scored.broken:,} broken images left out")
    order = ranking(rejected, scored.logits)
    known = audit_figures(index, rejected.entries[order], scored.best, LENGTHS) if index.has_truth else None
    candidates = _candidates(order[: request.top], rejected, scored.logits, run, model, out / PICTURES, say)
    write_tables(out, candidates)
    write_json(out / "audit.json", {"entries": len(order), "figures": known, "alpha": used.alpha})
    write_audit_page(out, run.folder, candidates, epochs, known)
    return known


def _candidates(
    order: IntArray,
    rejected: Rejected,
    logits: RealArray,
    run: AuditedRun,
    model: CamClassifier,
    pictures: Path,
    say: Callable[[str], None],
) -> list[Candidate]:
    """The candidates at the positions `order` among the rejected entries; writes the picture of each."""
    index, vocabulary = run.data.splits["train"], run.data.vocabulary
    reader = Reader(run.data.shards, index, (), skip_broken=True)
    entries = rejected.entries[order]
    epochs = history(run.folder, index, entries)
    made = []
    listed = Count("drawing", len(order), say, unit="entries").each(zip(order, entries.tolist(), strict=True))
    for rank, (position, entry) in enumerate(listed, start=1):
        row, k = divmod(entry, index.num_classes)
        pixels = reader.image(row)
        with torch.inference_mode():
            image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].to(next(model.parameters()).device)
            cam = model.cam(image)[0, k].float().cpu().numpy()
        box = place(cam, *pixels.shape[:2])
        strip(pixels, cam, box).save(pictures / f"{rank:05d}.jpg", quality=90)
        made.append(
            Candidate(
                rank=rank,
                key=index.keys(np.array([row]))[0],
                class_id=vocabulary.class_ids[k],
                name=vocabulary.names[k],
                score=float(sigmoid(logits[position : position + 1])[0]),
                times=int(rejected.times[position]),
                epochs=tuple(epochs[entry]),
                box=box,
                picture=f"{rank:05d}.jpg",
            )
        )
    return made


def figures_as_text(figures: AuditFigures) -> str:
    """How good the ranking is, a line for each length of the list."""
    return "\n".join(
        f"first {at:,}: {100 * value:.1f} % really missing; by score alone {100 * figures['score_alone'][at]:.1f} %, "
        f"at random {100 * figures['chance']:.1f} %"
        for at, value in figures["precision"].items()
    )

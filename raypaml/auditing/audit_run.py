"""Audits a run: ranks its unobserved training entries and writes the first of them with a picture each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from raypaml.auditing.annotation_tools import write_fiftyone, write_label_studio
from raypaml.auditing.answers import AnswersRecord, apply_answers, read_answers
from raypaml.auditing.audit_folder import AUDIT_RECORD, PICTURES, apply_command, remove_other_pictures
from raypaml.auditing.audit_page import Candidate, digest_of, write_audit_page, write_candidates
from raypaml.auditing.candidates import AuditFigures, Likeliest, find_likeliest, history, times_rejected
from raypaml.auditing.entry_scores import AuditedModel, opened_model
from raypaml.auditing.given_answers import ANSWERS, Entry, read_given, write_given
from raypaml.auditing.places import outline, place
from raypaml.bounds import check_bounds
from raypaml.config import TrainConfig
from raypaml.counting import Count
from raypaml.data.batches import Reader
from raypaml.data.data_folder import DataFolder, open_folder, resolve_data
from raypaml.data.index import Index
from raypaml.files import Place, as_texts, write_json
from raypaml.labels import IntArray, Vocabulary
from raypaml.losses.schemes import scheme_of
from raypaml.mapper import Mapper
from raypaml.runs.alpha_of_use import alpha_text, model_digest, used_alpha
from raypaml.runs.history import read_history
from raypaml.runs.models import tested_checkpoint
from raypaml.runs.run_files import CONFIG, STATE
from raypaml.runs.run_folder import changed_data, check_trained_classes, read_config
from raypaml.training.rejections import OtherDataError

MOST_ENTRIES = 100_000
"""The most entries of a list; each has a picture on the page."""
_WORDS = 6
"""Words of `--classes` that the page names."""
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
        ValueError: `top` or `class_share` is out of range.
    """

    data: Place = ""
    """A data set of the same classes, in the place of the run's own; "" for the run's own."""
    top: int = 500
    """Number of entries in the list."""
    out: Place = ""
    """Folder of the audit; "" for `audit` in the run's folder."""
    alpha: float | str = ""
    """The alpha of the scores, as `used_alpha` takes it."""
    class_share: float = 0.25
    """The largest share of the list, above 0, that one class gets while other classes have further entries."""
    classes: str | Sequence[str] = ()
    """The class or classes that are listed, by name or id, or G1 to G5 for those of a class group; empty for all."""

    def __post_init__(self) -> None:
        check_bounds("top", self.top, 1, MOST_ENTRIES)
        if not 0 < self.class_share <= 1:
            raise ValueError(f"class_share={self.class_share:g}: must be above 0 and at most 1, which is no limit")

    @property
    def asked(self) -> dict[str, object]:
        """What decides the list."""
        asked = {"data": str(self.data), "top": self.top, "alpha": str(self.alpha), "class_share": self.class_share}
        return asked | {"classes": sorted(set(as_texts(self.classes)))}

    def only(self, vocabulary: Vocabulary) -> tuple[IntArray | None, str]:
        """The columns of the classes that are listed, None for all, and in words which they are, empty for all.

        Raises:
            ValueError: there is no such class.
        """
        if not (words := as_texts(self.classes)):
            return None, ""
        columns, more = vocabulary.columns_of(words), ", ..." if len(words) > _WORDS else ""
        return columns, f"{len(columns):,} of {len(vocabulary):,} classes: {', '.join(words[:_WORDS])}{more}"

    def folder(self, run: Path) -> Path:
        """The folder of the audit of a run."""
        return Path(self.out) if self.out else run / "audit"


def audit_run(
    run: AuditedRun, request: AuditRequest, out: Path, mapper: Mapper, device: str, say: Callable[[str], None]
) -> AuditFigures | None:
    """Rank the unobserved training entries of a run, and write the folder of the audit with the first of them.

    Args:
        run: a trained run.
        request: the length of the list, its classes, the share of a class in it, and the alpha of its scores.
        out: folder of the audit.
        mapper: maps calls over processes; the list is the same for any number of them.
        device: "cuda" or "cpu", where each of these processes computes.
        say: prints a line of progress.

    Returns:
        How good the ranking is, where the full labels are known; else None.
    """
    given = _kept_answers(out / ANSWERS, run)
    config, data = run.config, run.data
    only, in_words = request.only(data.vocabulary)
    (out / PICTURES).mkdir(parents=True, exist_ok=True)  # before the work, in case it cannot be written
    checkpoint = tested_checkpoint(run.folder)
    used = used_alpha(run.folder, checkpoint, config.model.alpha, str(request.alpha))
    say(f"alpha {alpha_text(used.alpha)}: {used.alpha_origin}")
    if in_words:
        say(f"listing only {in_words}")
    model = AuditedModel(checkpoint, model_digest(checkpoint), config, data.address, device)
    listed = find_likeliest(model, data, used.alpha, request.top, request.class_share, only, mapper, say)
    if not len(listed.entries):
        of = "these classes" if in_words else "the training images"
        say(f"every label of {of} is observed, so that none can be missing: the list is empty")
    known = listed.figures(data.splits["train"], LENGTHS)
    candidates = _candidates(listed, run, model, out / PICTURES, say)
    facts: dict[str, object] = {
        "entries": len(candidates),
        "figures": known,
        "alpha": used.alpha,
        "class_share": request.class_share,
    }
    facts |= {"ranking": listed.said, "digest": digest_of(candidates), "asked": request.asked}
    epochs = len(read_history(run.folder)) if any(one.times for one in candidates) else 0
    write_candidates(out, candidates)
    write_label_studio(out, run.folder.name, candidates)
    write_fiftyone(out, candidates)
    write_given(out / ANSWERS, [one.entry for one in candidates], given)
    apply = apply_command(run.folder, config.run.imports, str(request.data), ANSWERS)
    write_audit_page(out, run.folder, candidates, epochs, known, apply, given, in_words)
    write_json(out / AUDIT_RECORD, facts)
    remove_other_pictures(out, {one.picture for one in candidates})
    if given:
        say(f"{out / ANSWERS}: keeps the {len(given):,} answers that it had")
    return known


def _kept_answers(path: Path, run: AuditedRun) -> dict[Entry, str]:
    """The answers of an earlier audit in the same folder, which are tried before the work, and kept."""
    given = read_given(path)
    try:
        if given:
            read_answers(path, run.data.splits["train"], run.data.vocabulary)
    except ValueError as error:
        raise ValueError(f"{error}; these answers are not to this data: give another --out, or move the file") from None
    return given


def _candidates(
    listed: Likeliest, run: AuditedRun, model: AuditedModel, pictures: Path, say: Callable[[str], None]
) -> list[Candidate]:
    """The entries of the list as candidates; writes the picture of each."""
    index, vocabulary, (classifier, _) = run.data.splits["train"], run.data.vocabulary, opened_model(model)
    reader = Reader(run.data.shards, index, (), skip_broken=True)
    keeping, trained = scheme_of(run.config.loss.scheme).corrects, len(read_history(run.folder))
    epochs = _history(run.folder, index, listed.entries, say)
    made: list[Candidate] = []
    picture_of: dict[int, str] = {}
    entries = Count("drawing", len(listed.entries), say, unit="entries").each(listed.entries.tolist())
    for rank, entry in enumerate(entries, start=1):
        row, k = divmod(entry, index.num_classes)
        pixels = reader.image(row)
        with torch.inference_mode():
            image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].to(model.device)
            cam = classifier.cam(image)[0, k].float().cpu().numpy()
        height, width = pixels.shape[:2]
        if row not in picture_of:
            picture_of[row] = f"{rank:05d}.jpg"
            Image.fromarray(pixels).save(pictures / picture_of[row], quality=95, subsampling=0)
        made.append(
            Candidate(
                rank=rank,
                key=index.keys(np.array([row]))[0],
                class_id=vocabulary.class_ids[k],
                name=vocabulary.names[k],
                score=float(listed.scores[rank - 1]),
                times=times_rejected(epochs[entry], trained, keeping=keeping),
                epochs=tuple(epochs[entry]),
                box=place(cam, height, width),
                outline=outline(cam, height, width),
                picture=picture_of[row],
                width=width,
                height=height,
                chance=None if listed.chances is None else float(listed.chances[rank - 1]),
            )
        )
    return made


def _history(run: Path, index: Index, entries: IntArray, say: Callable[[str], None]) -> dict[int, list[int]]:
    """The epochs in which each entry was rejected; none where the run recorded that for another data set."""
    try:
        return history(run, index, entries)
    except OtherDataError as error:
        say(f"which labels training rejected is not shown: {error}")
        return {entry: [] for entry in entries.tolist()}


def figures_as_text(figures: AuditFigures) -> str:
    """How good the ranking is, a line for each length of the list."""
    return "\n".join(
        f"first {at:,}: {100 * value:.1f} % really missing; by score alone {100 * figures['score_alone'][at]:.1f} %, "
        f"at random {100 * figures['chance']:.1f} %"
        for at, value in figures["precision"].items()
    )

"""The list of an audit as a table, and its page, on which people answer."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from raypaml.auditing.audit_folder import AUDIT_PAGE, CANDIDATE_TABLE
from raypaml.auditing.candidates import AuditFigures
from raypaml.auditing.given_answers import Entry
from raypaml.counting import epoch_number
from raypaml.files import whole
from raypaml.reports.pages import write_page


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An entry of the training labels that is likely a missing positive."""

    rank: int
    """Place in the list, from 1."""
    key: str
    """Key of the image."""
    class_id: str
    name: str
    """Name of the class."""
    score: float
    """Probability, 0..1, that the tested model gives."""
    times: int
    """Epochs in which training rejected it; where rejected labels stay positive, all since the first rejection."""
    epochs: tuple[int, ...]
    """The epochs, from 0, in which training rejected it."""
    box: tuple[int, int, int, int]
    """Pixels x0 y0 x1 y1 of the box around the largest attributions of the map."""
    outline: str
    """SVG path, in pixels, along which the map is half its largest attribution; empty where none is positive."""
    picture: str
    """Name of the picture below `data/`; entries of one image share it."""
    width: int
    height: int
    """Size of the picture, in pixels."""
    chance: float | None = None
    """Estimated chance, 0..1, that the label is missing; None where the labels of validation cannot say."""

    @property
    def entry(self) -> Entry:
        """Key of the image, and id of the class."""
        return self.key, self.class_id

    def facts(self, epochs: int) -> str:
        """What the page says of it besides its class and its image, for a run of so many epochs."""
        numbers = ", ".join(str(epoch_number(epoch)) for epoch in self.epochs)
        rejected = f"rejected in {self.times} of {epochs} epochs" + (f": {numbers}" if numbers else "")
        chance = "" if self.chance is None else f"estimated chance {100 * self.chance:.0f}\u00a0%"
        parts = [rejected if epochs else "", f"score {self.score:.2f}", chance]
        return " · ".join(filter(None, [*parts, "" if self.outline else "no place: its map is nowhere above zero"]))


def write_candidates(out: Path, candidates: Sequence[Candidate]) -> None:
    """Write `candidates.parquet`, which has every field of the list."""
    rows = [dataclasses.asdict(one) | {"epochs": ", ".join(map(str, one.epochs))} for one in candidates]
    with whole(out / CANDIDATE_TABLE) as unfinished:
        pq.write_table(pa.Table.from_pylist(rows), unfinished)


def digest_of(candidates: Sequence[Candidate]) -> str:
    """A digest of the list, by which answers in a browser or on their way to a server are those to this list."""
    facts = [[one.key, one.class_id, one.score] for one in candidates]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def write_audit_page(
    out: Path,
    run: Path,
    candidates: Sequence[Candidate],
    epochs: int,
    figures: AuditFigures | None,
    apply: str,
    given: Mapping[Entry, str] | None = None,
    only: str = "",
) -> None:
    """Write `index.html`, which shows the pictures in `data`, needs no network, and lets the browser save the answers.

    Args:
        out: folder of the audit.
        run: folder of the run.
        candidates: the list.
        epochs: epochs that the run was trained; 0 where it did not record which labels it rejected.
        figures: how good the list is, where the full labels are known.
        apply: the command that writes answers into a new data set.
        given: answers from before, which the page begins with.
        only: in words, the classes that are listed; empty for all.
    """
    write_page(
        out / AUDIT_PAGE,
        Path(__file__).with_name("audit.html.j2"),
        run=run.name,
        apply=apply,
        count=len(candidates),
        only=only,
        audit=_listed(candidates, epochs, given or {}),
        figures=figures,
    )


def _listed(candidates: Sequence[Candidate], epochs: int, given: Mapping[Entry, str]) -> dict[str, object]:
    """What the page's script reads: classes once, and an array for each candidate, in the order of the list."""
    classes = {one.class_id: one.name for one in candidates}
    column = {class_id: number for number, class_id in enumerate(classes)}
    entries = [
        [one.key, column[one.class_id], one.picture, one.width, one.height, one.box, one.outline, one.facts(epochs)]
        for one in candidates
    ]
    answers = [[number, given[one.entry]] for number, one in enumerate(candidates) if one.entry in given]
    return {
        "digest": digest_of(candidates),
        "classes": list(classes.items()),
        "entries": entries,
        "given": answers,
    }

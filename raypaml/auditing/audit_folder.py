"""What the folder of an audit says of itself, so that its list can be answered later without being made again."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq

from raypaml.auditing.answer_server import AnswerBook, AnswerServer
from raypaml.auditing.given_answers import ANSWERS, Entry
from raypaml.cli import command
from raypaml.json_types import check_fields
from raypaml.stored_json import read_if_there, refused_as

PICTURES = "data"
"""Folder of the pictures."""
AUDIT_PAGE, CANDIDATE_TABLE, AUDIT_RECORD = "index.html", "candidates.parquet", "audit.json"
"""The page, the table of the list, and the record, in the folder of an audit."""
_SERVED = b"<html data-served "


@dataclass(frozen=True)
class AuditRecord:
    """What `audit.json` says of a list, besides how good it is."""

    digest: str
    """The digest of the list."""
    asked: dict[str, object]
    """What the list was asked to be: those flags of `raypaml audit` that decide what it holds."""


def read_audit_record(folder: Path) -> AuditRecord | None:
    """The record of the audit in a folder; None where there is none, or an earlier version has made it.

    Raises:
        ValueError: the record is damaged.
    """
    remedy = "run raypaml audit again"
    record = read_if_there(folder / AUDIT_RECORD, dict[str, object], "the record of an audit", remedy)
    if record is None or "digest" not in record:
        return None
    known = {name: record.get(name) for name in ("digest", "asked")}
    with refused_as(folder / AUDIT_RECORD, "the record of an audit", remedy):
        check_fields(known, AuditRecord)
    return AuditRecord(**cast("dict[str, Any]", known))


def apply_command(run: Path, imports: str, data: str, answers: object) -> str:
    """The command that writes answers to an audit into a new data set.

    Args:
        run: folder of the run.
        imports: the modules that the run needs, separated by commas.
        data: the data set that was audited in the place of the run's own; "" for the run's own.
        answers: the file with the answers.
    """
    given = [*(["--data", data] if data else []), *(["--import", imports] if imports else [])]
    return command("audit", run, "--apply", answers, "--out", "NEW_DATA", *given)


def remove_other_pictures(folder: Path, names: Collection[str]) -> None:
    """Remove the pictures of an earlier list that this one does not have."""
    for path in (folder / PICTURES).glob("[0-9]*.jpg"):
        if path.name not in names:
            path.unlink(missing_ok=True)


def answer_server(folder: Path, record: AuditRecord, port: int) -> AnswerServer:
    """A server for the page in the folder of an audit, which goes on with the answers in its `answers.csv`.

    Raises:
        ValueError: the answers cannot be read, or the page is another one.
        OSError: the port cannot be used.
    """
    table = pq.read_table(folder / CANDIDATE_TABLE, columns=["key", "class_id", "picture"])
    entries: list[Entry] = list(zip(table["key"].to_pylist(), table["class_id"].to_pylist(), strict=True))
    book = AnswerBook(folder / ANSWERS, record.digest, entries)
    book.refresh()
    page = (folder / AUDIT_PAGE).read_bytes().replace(b"<html ", _SERVED, 1)
    if record.digest.encode() not in page or _SERVED not in page:
        raise ValueError(f"{folder / AUDIT_PAGE}: not the page of this list; run raypaml audit again")
    return AnswerServer(page, folder / PICTURES, frozenset(table["picture"].to_pylist()), book, port)

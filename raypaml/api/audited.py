"""An audit of a run's training labels: its list, and the page to look at it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from raypaml.auditing.audit_run import AuditedRun, audit_run
from raypaml.cluster.tasks import own_device
from raypaml.runs.ranks import one_thread


@dataclass(frozen=True)
class Audited:
    """Training labels that are likely missing, the likeliest first."""

    folder: Path
    figures: dict[str, Any] | None
    """How good the list is, where the full labels are known: `precision` of its first so many, ..."""

    @classmethod
    def of(
        cls, run: Path, *, data: str, top: int, out: str, alpha: str, device: str, say: Callable[[str], None]
    ) -> Self:
        """Audit a run, as `auditing.audit_run.audit_run` does; ValueError where it cannot be."""
        audited = AuditedRun.open(run, data, say)
        folder = Path(out) if out else audited.folder / "audit"
        with one_thread():
            return cls(folder, audit_run(audited, top, folder, own_device(device), say, alpha))

    @property
    def page(self) -> Path:
        """The page on which people answer."""
        return self.folder / "index.html"

    @property
    def candidates(self) -> pa.Table:
        """A row for each entry of the list: `key`, `class_id`, `name`, `score`, `times` it was rejected, ..."""
        return pq.read_table(self.folder / "candidates.parquet")

    def __repr__(self) -> str:
        return f"<Audited {self.candidates.num_rows:,} entries, page {self.page}>"

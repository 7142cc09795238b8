"""The result of an audit of a run's training labels: the list of likely missing positives, and its page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from raypaml.auditing.audit_run import AuditedRun, audit_run
from raypaml.auditing.candidates import AuditFigures
from raypaml.cluster.tasks import own_device
from raypaml.runs.ranks import one_thread


@dataclass(frozen=True)
class Audited:
    """The training labels of a run that are likely missing, the likeliest first."""

    folder: Path
    """Folder of the audit."""
    figures: AuditFigures | None
    """How good the list is, where the full labels are known; else None."""

    @classmethod
    def of(
        cls, run: Path, *, data: str, top: int, out: str, alpha: str, device: str, say: Callable[[str], None]
    ) -> Self:
        """Audit a run.

        Args:
            run: folder of the run.
            data: a data set of the same classes; "" for the run's own.
            top: number of entries in the list.
            out: folder of the audit; "" for `audit` in the run's folder.
            alpha: the alpha of the scores, as `raypaml.load` takes it.
            device: auto, cpu or cuda.
            say: prints a line of progress.

        Raises:
            ValueError: the run cannot be audited; the message says why.
        """
        audited = AuditedRun.open(run, data, say)
        folder = Path(out) if out else audited.folder / "audit"
        with one_thread():
            return cls(folder, audit_run(audited, top, folder, own_device(device), say, alpha))

    @property
    def page(self) -> Path:
        """The page on which people answer whether a label is missing."""
        return self.folder / "index.html"

    @property
    def candidates(self) -> pa.Table:
        """A row for each entry of the list, with the fields of `auditing.audit_page.Candidate`."""
        return pq.read_table(self.folder / "candidates.parquet")

    def __repr__(self) -> str:
        return f"<Audited {self.candidates.num_rows:,} entries, page {self.page}>"

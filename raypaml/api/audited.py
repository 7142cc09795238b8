"""The result of an audit of a run's training labels: the list of likely missing positives, and its page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from raypaml.auditing.audit_run import AuditedRun, AuditRequest, audit_run
from raypaml.auditing.candidates import AuditFigures
from raypaml.cluster.tasks import device_mapper
from raypaml.mapper import Processes
from raypaml.outputs import output_folder
from raypaml.runs.ranks import one_thread


@dataclass(frozen=True)
class Audited:
    """The training labels of a run that are likely missing, the likeliest first."""

    folder: Path
    """Folder of the audit."""
    figures: AuditFigures | None
    """How good the list is, where the full labels are known; else None."""

    @classmethod
    def of(cls, run: Path, request: AuditRequest, processes: Processes, say: Callable[[str], None]) -> Self:
        """Audit a run.

        Args:
            run: folder of the run.
            request: the data set, the length of the list, the share of a class in it, its folder and the alpha.
            processes: the processes that share the images; the list is the same for any number of them.
            say: prints a line of progress.

        Raises:
            ValueError: the run cannot be audited; the message says why.
        """
        audited = AuditedRun.open(run, str(request.data), say)
        folder = Path(request.out) if request.out else audited.folder / "audit"
        with output_folder(folder), one_thread(), device_mapper(processes) as (mapper, device):
            return cls(folder, audit_run(audited, request, folder, mapper, device, say))

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

"""The result of an audit of a run's training labels: the list of likely missing positives, and its page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from raypaml.auditing.audit_folder import AUDIT_PAGE, CANDIDATE_TABLE, answer_server, read_audit_record
from raypaml.auditing.audit_run import AuditedRun, AuditRequest, audit_run
from raypaml.auditing.candidates import AuditFigures
from raypaml.auditing.given_answers import ANSWERS
from raypaml.cli import command, say
from raypaml.cluster.signals import ending_on_sigterm
from raypaml.cluster.tasks import device_mapper
from raypaml.errors import told_as_user_errors
from raypaml.mapper import Processes
from raypaml.outputs import output_folder
from raypaml.runs.ranks import one_thread
from raypaml.runs.sole_writer import sole_writer
from raypaml.writable import try_folder


@dataclass(frozen=True)
class Audited:
    """The training labels of a run that are likely missing, the likeliest first."""

    folder: Path
    """Folder of the audit."""
    figures: AuditFigures | None
    """How good the list is, where the full labels are known and this process made the list; else None."""

    @classmethod
    def of(cls, run: Path, request: AuditRequest, processes: Processes, say: Callable[[str], None]) -> Self:
        """Audit a run. Answers that the folder holds from an earlier audit are kept.

        Args:
            run: folder of the run.
            request: the data set, the length of the list, its classes, the share of a class, the folder and the alpha.
            processes: the processes that share the images; the list is the same for any number of them.
            say: prints a line of progress.

        Raises:
            ValueError: the run cannot be audited; the message says why.
        """
        audited = AuditedRun.open(run, str(request.data), say)
        folder = request.folder(run)
        request.only(audited.data.vocabulary)  # an unknown class is refused before processes start
        with (
            output_folder(folder),
            sole_writer(folder, command("audit"), say, flag="--out"),
            one_thread(),
            device_mapper(processes) as (mapper, device),
        ):
            return cls(folder, audit_run(audited, request, folder, mapper, device, say))

    @classmethod
    def made(cls, run: Path, request: AuditRequest, processes: Processes, say: Callable[[str], None]) -> Self:
        """The audit that the folder holds already, if it is what is asked for; otherwise a new one as `of` makes."""
        record, usual = read_audit_record(request.folder(run)), AuditRequest().asked
        asked = {name: value for name, value in request.asked.items() if value != usual[name]}
        if record is None or not asked.items() <= record.asked.items():
            return cls.of(run, request, processes, say)
        say(f"{request.folder(run)}: holds this list already; it is not made again")
        return cls(request.folder(run), None)

    @property
    def page(self) -> Path:
        """The page on which people answer whether a label is missing."""
        return self.folder / AUDIT_PAGE

    @property
    def answers(self) -> Path:
        """The file to fill in, which `serve` fills, and which `Run.apply_answers` reads."""
        return self.folder / ANSWERS

    @property
    def data(self) -> str:
        """The data set whose labels were audited in the place of the run's own; "" for the run's own."""
        record = read_audit_record(self.folder)
        return "" if record is None else str(record.asked.get("data", ""))

    @property
    def candidates(self) -> pa.Table:
        """A row for each entry of the list, with the fields of `auditing.audit_page.Candidate`."""
        return pq.read_table(self.folder / CANDIDATE_TABLE)

    @told_as_user_errors()
    def serve(self, port: int = 0, told: Callable[[str], None] = say) -> int:
        """Serve the page to this machine until Ctrl-C or SIGTERM, and write each answer into `answers` as it is given.

        Args:
            port: the port; 0 for one that is free.
            told: is called with the address, which holds a secret; whoever has it can answer.

        Returns:
            The number of entries that are answered.

        Raises:
            UserError: another process audits or serves this folder, or what it holds is no audit or no answers.
            OSError: the port is taken, or the folder cannot be written, as on a full disk.
        """
        record = read_audit_record(self.folder)
        if record is None:
            raise ValueError(f"{self.folder}: holds no audit that can be served; run raypaml audit again")
        try_folder(self.folder)
        with (
            sole_writer(self.folder, f"{command('audit')} --serve", say, flag="--out"),
            answer_server(self.folder, record, port) as server,
            ending_on_sigterm(),
        ):
            told(server.address)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                with server.book.lock:  # an answer that is being written is written whole
                    return len(server.book.given)
        raise AssertionError("the server ends by a signal alone")

    def __repr__(self) -> str:
        return f"<Audited {self.candidates.num_rows:,} entries, page {self.page}>"

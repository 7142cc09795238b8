"""`python -m raypaml.audit`: which training labels are likely missing, and what those who looked at them answered."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raypaml.cli import Parser, add_alpha_flag, command, run_command, say
from raypaml.extensions import add_import_flag


def parse(argv: Sequence[str]) -> Any:
    """The flags."""
    about = "List the training labels that are likely missing, or apply the answers."
    parser = Parser(prog=command("audit"), description=about)
    add = parser.add_argument
    add("run", metavar="RUN", help="folder of a finished run of a large-loss scheme")
    add("--data", default="", help="folder of shards, index and vocabulary [the run's]")
    add("--top", type=int, default=500, metavar="N", help="entries listed [500]")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="[auto]")
    add("--apply", default="", metavar="ANSWERS.CSV", help="write a data set with these answers")
    about = "folder of the audit [audit, in the run's]; with --apply: of the new data set"
    add("--out", default="", metavar="DIR", help=about)
    add_alpha_flag(parser)
    add_import_flag(parser)
    return parser.parse(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Audit, or apply."""
    asked = parse(sys.argv[1:] if argv is None else argv)
    if asked.apply and not asked.out:
        raise ValueError("apply: --out DIR is needed, the folder of the new data set")
    from raypaml.auditing.audit_run import AuditedRun, apply_file, audit_run, figures_as_text  # with torch
    from raypaml.cluster.tasks import own_device

    run = AuditedRun.open(Path(asked.run), asked.data, say)
    if asked.apply:
        record = apply_file(run, Path(asked.apply), Path(asked.out))
        print(f"{asked.out}: {record['positive']:,} new positives, {record['negative']:,} new negatives")
        say(f"next: {command('train')} --data {asked.out} --config {run.folder / 'config.json'}")
        return 0
    out = Path(asked.out) if asked.out else run.folder / "audit"
    known = audit_run(run, asked.top, out, own_device(asked.device), say, asked.alpha)
    if known is not None and known["precision"]:
        print(figures_as_text(known))
    print(out / "index.html")
    return 0


if __name__ == "__main__":
    run_command(main, command("audit"))

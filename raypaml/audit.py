"""`python -m raypaml.audit`: lists training labels that are likely missing, or applies people's answers to the list."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence

from raypaml.cli import Parser, add_alpha_flag, command, requested, run_command, say, show
from raypaml.extensions import add_import_flag
from raypaml.runs.run_files import CONFIG

TOP = 500
"""Entries of the list where --top does not say."""


def parse(argv: Sequence[str]) -> Namespace:
    """Read the flags."""
    about = "List the training labels that are likely missing, or write a data set with people's answers to the list."
    parser = Parser(prog=command("audit"), description=about)
    add = parser.add_argument
    add("run", metavar="RUN", help="folder of a finished run of a large-loss scheme, trained with --history")
    add("--data", default="", help="data set (folder of shards, index and vocabulary) [the run's]")
    add("--top", type=int, default=TOP, metavar="N", help="number of entries in the list [500]")
    about = "where the model computes; auto takes a GPU if there is one [auto]"
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help=about)
    about = "write a data set with the answers in this file instead of a list; needs --out"
    add("--apply", default="", metavar="ANSWERS.CSV", help=about)
    about = "folder of the list [audit in the run's folder], or of the new data set with --apply"
    add("--out", default="", metavar="DIR", help=about)
    add_alpha_flag(parser)
    add_import_flag(parser)
    return parser.parse(argv)


def _check_apply(asked: Namespace) -> None:
    if not asked.out:
        raise ValueError("apply: --apply needs --out DIR, the folder of the new data set")
    for name, usual in (("top", TOP), ("alpha", ""), ("device", "auto")):
        if getattr(asked, name) != usual:
            raise ValueError(f"{name}: has no effect with --apply, which lists nothing; leave --{name} out")


def main(argv: Sequence[str] | None = None) -> int:
    """Audit the run and print the path of the page, or apply answers."""
    asked = parse(sys.argv[1:] if argv is None else argv)
    if asked.apply:
        _check_apply(asked)
    from raypaml.api.audited import Audited  # with torch
    from raypaml.api.run import Run
    from raypaml.auditing.audit_run import AuditRequest, figures_as_text

    run = Run.open(asked.run)
    if asked.apply:
        record = run.apply_answers(asked.apply, asked.out, data=asked.data)
        show(f"{asked.out}: {record['positive']:,} new positives, {record['negative']:,} new negatives")
        say(f"next: {command('train')} --data {asked.out} --config {run.folder / CONFIG}")
        return 0
    audited = Audited.of(run.path, requested(AuditRequest, asked), say)
    if audited.figures is not None and audited.figures["precision"]:
        show(figures_as_text(audited.figures))
    show(audited.page)
    return 0


if __name__ == "__main__":
    run_command(main, command("audit"))

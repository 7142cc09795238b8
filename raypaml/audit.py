"""`python -m raypaml.audit`: lists training labels that are likely missing, or applies people's answers to the list."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence

from raypaml.bounds import check_bounds
from raypaml.cli import Parser, add_alpha_flag, add_worker_flags, command, requested, run_command, say, show
from raypaml.extensions import add_import_flag
from raypaml.labels import class_words
from raypaml.mapper import Processes
from raypaml.runs.run_files import CONFIG

TOP = 500
"""Entries of the list where --top does not say."""
CLASS_SHARE = 0.25
"""Share of the list where --class-share does not say."""


def parse(argv: Sequence[str]) -> Namespace:
    """Read the flags."""
    about = "List the training labels that are likely missing, or write a data set with people's answers to the list."
    parser = Parser(prog=command("audit"), description=about)
    add = parser.add_argument
    add("run", metavar="RUN", help="folder of a trained run, of any scheme")
    add("--data", default="", help="data set (folder of shards, index and vocabulary) [the run's]")
    add("--top", type=int, default=TOP, metavar="N", help="number of entries in the list [500]")
    about = f"largest share of the list, 0 to 1, that one class gets while others have entries; 1: all [{CLASS_SHARE}]"
    add("--class-share", type=float, default=CLASS_SHARE, metavar="S", help=about)
    about = "list only these classes, by name or id; G1 to G5: those of a class group, G1 the rarest [all]"
    add("--classes", default="", metavar="NAME,NAME", help=about)
    about = (
        "show the page at an address of this machine alone, and write every answer into answers.csv as it is given, "
        "until Ctrl-C; a list that is there already, and its answers, are gone on with"
    )
    add("--serve", action="store_true", help=about)
    add("--port", type=int, default=0, metavar="N", help="port of --serve [0: one that is free]")
    about = "write a data set with the answers in this file, a CSV or a JSON export of Label Studio; needs --out"
    add("--apply", default="", metavar="FILE", help=about)
    about = "folder of the list [audit in the run's folder], or of the new data set with --apply"
    add("--out", default="", metavar="DIR", help=about)
    add_alpha_flag(parser)
    add_worker_flags(parser)
    add_import_flag(parser)
    return parser.parse(argv)


def _check_apply(asked: Namespace) -> None:
    if not asked.out:
        raise ValueError("apply: --apply needs --out DIR, the folder of the new data set")
    usual = {"top": TOP, "class_share": CLASS_SHARE, "alpha": "", "workers": 1, "address": "", "device": "auto"}
    usual |= {"serve": False, "classes": ""}
    for name, value in usual.items():
        if getattr(asked, name) != value:
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{name}: has no effect with --apply, which lists nothing; leave {flag} out")


def main(argv: Sequence[str] | None = None) -> int:
    """Audit the run and print the path of the page, or apply answers."""
    asked = parse(sys.argv[1:] if argv is None else argv)
    check_bounds("port", asked.port, 0, 65535)
    if asked.port and not asked.serve:
        raise ValueError("port: has no effect without --serve; leave --port out")
    if asked.apply:
        _check_apply(asked)
    from raypaml.api.audited import Audited  # with torch
    from raypaml.api.run import Run
    from raypaml.auditing.audit_folder import apply_command
    from raypaml.auditing.audit_run import AuditRequest, figures_as_text

    asked.classes = class_words(asked.classes)
    run = Run.open(asked.run)
    if asked.apply:
        record = run.apply_answers(asked.apply, asked.out, data=asked.data)
        show(f"{asked.out}: {record['positive']:,} new positives, {record['negative']:,} new negatives")
        parts = ("--import", run.config.run.imports) if run.config.run.imports else ()
        say(f"next: {command('train', '--data', asked.out, '--config', run.folder / CONFIG, *parts)}")
        return 0
    make = Audited.made if asked.serve else Audited.of
    audited = make(run.path, requested(AuditRequest, asked), requested(Processes, asked), say)
    if audited.figures is not None and audited.figures["precision"]:
        show(figures_as_text(audited.figures))
    show(audited.page)
    if asked.serve:
        answered = audited.serve(asked.port, show)
        say(f"{answered:,} answers in {audited.answers}")
        say(f"next: {apply_command(run.folder, run.config.run.imports, audited.data, audited.answers)}")
    return 0


if __name__ == "__main__":
    run_command(main, command("audit"))

"""`python -m raypaml.tune`: searches the best values of a run's settings; every trial is a run of raypaml.train."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from raypaml.cli import Parser, command, requested, run_command, say, show
from raypaml.config import TrainConfig
from raypaml.counting import number_of
from raypaml.runs.run_files import REPORT
from raypaml.runs.run_flags import AskedConfig, parse_run
from raypaml.search.search_flags import NOT_OF_TRIALS, OF_EACH_TRIAL, USUAL, SearchSettings, add_search_flags

_ABOUT = (
    "Search the best values of a run's settings; every trial is a run of raypaml.train. After an interruption the same "
    "command goes on."
)


@dataclass(frozen=True, kw_only=True)
class TuneFlags:
    """The search that the flags ask for."""

    base: AskedConfig
    """The configuration that the search starts from."""
    settings: SearchSettings
    """The searched spaces, and how they are searched."""
    suggest: bool
    """Whether only to print the delta_rel that the labels suggest, without a search."""


def parse(argv: Sequence[str]) -> tuple[TrainConfig, TuneFlags]:
    """The configuration that the search starts from, and the search that the flags ask for."""
    base, own = parse_run(argv, command("tune"), _ABOUT, _add_own, USUAL)
    return base.config, TuneFlags(base=base, settings=requested(SearchSettings, own), suggest=own.suggest)


def _add_own(parser: Parser) -> None:
    more = " But for workers: a trial has one unless told otherwise."
    parser.epilog = (parser.epilog or "").replace("recipe's.", "recipe's." + more, 1)
    for action in parser._actions:
        if action.dest in NOT_OF_TRIALS:
            action.help = argparse.SUPPRESS
        elif action.dest in OF_EACH_TRIAL:
            value = str(action.help).rpartition(" ")[2]
            action.help = f"{OF_EACH_TRIAL[action.dest]} {value}"
    add_search_flags(parser)


def main(argv: Sequence[str] | None = None) -> int:
    """Search, and print the table of trials, the verdict and the path of the report."""
    config, asked = parse(sys.argv[1:] if argv is None else argv)
    for name in NOT_OF_TRIALS:
        if name in asked.base.given:
            flag = "--" + name.replace("_", "-")
            say(f"{flag} has no effect on trials; metrics.jsonl in a trial's folder has what a tracker would get")
    from raypaml.api.search import Search  # --help needs neither torch nor matplotlib

    if asked.suggest:  # needs labels only: no weights, no folder of a run
        show(Search.suggest(config).text)
        return 0
    search = Search.run_asked(asked.base, asked.settings)
    if search.stopped:
        return 128 + search.stopped
    from raypaml.search.search_result import trial_table

    outcomes = search.outcomes
    show(f"{trial_table(search.plan, outcomes)}\n\n{search.verdict}\n\nReport: {search.folder / REPORT}")
    if failed := sum(one.may_go_better for one in outcomes):
        say(f"{number_of(failed, 'trial')} failed and may succeed in another try: give the command again")
    return int(failed > 0)


if __name__ == "__main__":
    run_command(main, command("tune"))

"""`python -m raypaml.tune`: search fields of a recipe; every trial is a run of raypaml.train."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raypaml.cli import Parser, command, run_command
from raypaml.config import TrainConfig
from raypaml.runs.run_flags import parse_run
from raypaml.search.search_flags import add_search_flags, check_search_flags

_ABOUT = "Search fields of a recipe; every trial is a run of raypaml.train. The same command goes on after a kill."
CHECKED = ("pseudo_labels", "pseudo_labels_sha256", "from_run", "from_sha256")
"""What a search takes over from the run that it checks: full paths, and digests."""
NOT_OF_TRIALS = ("max_failures", "hang_seconds", "tracker")
"""Flags of a run that trials have no use for: a trial is neither watched, nor started again, nor tracked."""


def parse(argv: Sequence[str]) -> tuple[TrainConfig, Any]:
    """The configuration that the search starts from, and the search's own flags."""
    config, asked = parse_run(argv, command("tune"), _ABOUT, _add_own, {"workers": 1})
    check_search_flags(asked)
    return config, asked


def _add_own(parser: Parser) -> None:
    more = " But for workers: a trial has one unless told otherwise."
    parser.epilog = (parser.epilog or "").replace("recipe's.", "recipe's." + more, 1)
    for action in parser._actions:
        if action.dest in NOT_OF_TRIALS:
            action.help = argparse.SUPPRESS
    add_search_flags(parser)


def main(argv: Sequence[str] | None = None) -> int:
    """Search, conclude, report."""
    argv = sys.argv[1:] if argv is None else argv
    config, asked = parse(argv)
    # --help needs none of these, which bring torch and matplotlib
    from raypaml.search.search_flags import open_queue, passed_over_by_trials, plan_search
    from raypaml.search.search_folder import outcome
    from raypaml.search.search_page import write_search_page
    from raypaml.search.search_progress import SearchDisplay
    from raypaml.search.search_result import conclude_search, trial_table
    from raypaml.search.suggestion import suggest
    from raypaml.training.job import checked_data, prepare_job

    with SearchDisplay() as display:
        for name in NOT_OF_TRIALS:
            if name in asked.given:
                flag = "--" + name.replace("_", "-")
                display.say(f"{flag} has no effect: trials are neither watched, nor started again, nor tracked")
        if asked.suggest:  # needs labels only: no weights, no folder of a run
            data = checked_data(config, display.say)
            print(suggest(data.splits["train"], data.splits["validation"], config).text)
            return 0
        job = prepare_job(config, display.say)
        data = job.data
        config = config.override({name: job.config.flat()[name] for name in CHECKED})
        # trials may start in another folder of another machine
        places = {"storage": str(Path(config.run.storage).absolute())}
        if data.path == Path(config.data.data):  # a folder, not a name
            places["data"] = str(data.path.absolute())
        config, asked.plain = config.override(places), asked.plain.override(places)
        search = plan_search(asked, config, data)
        for said in passed_over_by_trials(search):
            display.say(said)
        queue, proposals = open_queue(search, asked, display.say)
        display.begin(search, [outcome(search, trial) for trial in queue.trials])
        if (proposals and proposals.has_more) or queue.has_more():
            from raypaml.cluster.ray_tune import run_search

            if stopped := run_search(search, queue, proposals, display):
                return 128 + stopped
    outcomes = [outcome(search, trial) for trial in queue.trials]
    verdict = conclude_search(search, outcomes, data.vocabulary)
    write_search_page(search, outcomes, verdict)
    print(f"{trial_table(search, outcomes)}\n\n{verdict.text}\n\nReport: {search.folder / 'report.html'}")
    return 0


if __name__ == "__main__":
    run_command(main, command("tune"))

"""Writes the page of a search, one file that needs no network: map of scores, curves of trials, importance, cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raypaml.cli import command
from raypaml.reports.pages import write_page
from raypaml.runs.run_files import REPORT
from raypaml.search.faults import told_fault
from raypaml.search.importance import LEAST, comparable, importance
from raypaml.search.search_figures import alpha_curves, importances, score_map, trial_curves
from raypaml.search.search_folder import Outcome, SearchPlan
from raypaml.search.search_records import BEST_FILE
from raypaml.search.search_result import Verdict, cost
from raypaml.search.trial_rows import row


def write_search_page(search: SearchPlan, outcomes: Sequence[Outcome], verdict: Verdict) -> None:
    """Write `report.html` into the search's folder."""
    ended, epoch = comparable(outcomes)
    ranges = [space for space in search.spaces if not space.values]
    begun = [one for one in outcomes if one.history]
    shares = importance(outcomes, search.spaces)
    parts = ("--import", search.base.run.imports) if search.base.run.imports else ()
    write_page(
        search.folder / REPORT,
        Path(__file__).with_name("search.html.j2"),
        name=search.folder.name,
        spaces=[space.text for space in search.spaces],
        search=search,
        verdict=verdict,
        use=command("train", "--config", search.folder / BEST_FILE, *parts),
        score_map=score_map(ended, epoch, ranges[:2]) if ranges and ended else "",
        curves=trial_curves(begun, verdict.best, verdict.own) if begun else "",
        alphas=alpha_curves([one for one in outcomes if one.curve], verdict.best, verdict.own)
        if any(one.curve for one in outcomes)
        else "",
        importances=importances(shares) if shares else "",
        comparable=len(ended),
        epoch=epoch,
        least=LEAST,
        rows=[row(one) for one in sorted(outcomes, key=lambda one: -one.score)],
        faults=[f"{one.trial.name}, {fault['time']}: {told_fault(fault)}" for one in outcomes for fault in one.faults],
        cost=cost(search, outcomes),
    )

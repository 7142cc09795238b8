"""The page of a search: one file, no network; the map of scores, curves of all trials, importance, cost."""

from __future__ import annotations

from collections.abc import Sequence

import jinja2

from raypaml.reports.result import percent
from raypaml.reports.search_figures import alpha_curves, curves, importances, score_map
from raypaml.reports.search_result import Verdict, cost
from raypaml.search.folder import Outcome, Search, row
from raypaml.search.importance import LEAST, comparable, importance


def write_page(search: Search, outcomes: Sequence[Outcome], verdict: Verdict) -> None:
    """Write `report.html` into the search's folder."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("raypaml.reports", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    ended, epoch = comparable(outcomes)
    ranges = [space for space in search.spaces if not space.values]
    begun = [found for found in outcomes if found.history]
    shares = importance(outcomes, search.spaces)
    page = environment.get_template("search.html.j2").render(
        name=search.folder.name,
        spaces=[space.text for space in search.spaces],
        search=search,
        verdict=verdict,
        score_map=score_map(ended, epoch, ranges[:2]) if ranges and ended else "",
        curves=curves(begun, verdict.best, verdict.own) if begun else "",
        alphas=alpha_curves([found for found in outcomes if found.curve], verdict.best, verdict.own)
        if any(found.curve for found in outcomes)
        else "",
        importances=importances(shares) if shares else "",
        comparable=len(ended),
        epoch=epoch,
        least=LEAST,
        rows=[row(found) for found in sorted(outcomes, key=lambda found: -found.score)],
        percent=lambda value: "–" if value is None else percent(value),
        cost=cost(search, outcomes),
    )
    unfinished = search.folder / ".report.unfinished"
    unfinished.write_text(page, encoding="utf-8")
    unfinished.replace(search.folder / "report.html")

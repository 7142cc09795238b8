"""Writes `experiment.html` and `experiment.json`: which of the papers' claims hold, and all figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raypaml.explanations.explanation_figures import attributions, correlations
from raypaml.explanations.gallery import Row as PictureRow
from raypaml.explanations.pairs import Pairs
from raypaml.files import finite_json, write_json
from raypaml.reports.figures import missed_positives
from raypaml.reports.pages import write_page
from tools.papers.claims import Claim, claims, controls
from tools.papers.experiment_figures import Findings, alpha_curves, gains, overview, rejecting_runs, sweep, table


@dataclass(frozen=True)
class Looks:
    """The maps of one seed's models, for one way of hiding labels."""

    names: tuple[str, str]
    """The names of the model trained on partial labels and of the one on full labels that it is compared with."""
    pairs: Pairs
    gallery: Sequence[PictureRow]


def write_experiment_page(
    folder: Path,
    about: Mapping[str, Any],
    found: Sequence[Findings],
    by_delta: Mapping[float, Mapping[int, Mapping[str, float]]],
    looks: Mapping[str, Looks],
) -> None:
    """Writes the page, and every verdict and table as JSON.

    Args:
        folder: the folder to write both files to.
        about: settings and cost of the experiment; the page shows its `text`.
        found: the results for each way of hiding labels.
        by_delta: the figures of the sweep by delta_rel and seed; empty if there is none.
        looks: the compared maps, by the way of hiding labels.
    """
    judged = {each.hiding: claims(each.figures) for each in found}
    beside = {each.hiding: controls(each.figures) for each in found}
    write_page(
        folder / "experiment.html",
        Path(__file__).with_name("experiment.html.j2"),
        about=about,
        hidings=list(judged),
        claims=list(zip(*judged.values(), strict=True)),
        controls=list(zip(*beside.values(), strict=True)),
        tables={each.hiding: table(each.figures) for each in found},
        overview=overview(found),
        alpha_curves=alpha_curves(found),
        rejections={each.hiding: missed_positives(runs) for each in found if (runs := rejecting_runs(each))},
        gains={each.hiding: gains(each) for each in found},
        sweep=sweep(by_delta) if by_delta else "",
        looks=looks,
        correlations={hiding: correlations(look.pairs) for hiding, look in looks.items()},
        attributions={hiding: attributions(look.pairs, look.names) for hiding, look in looks.items()},
    )
    content = {
        "about": dict(about),
        "claims": {hiding: [_as_json(claim) for claim in every] for hiding, every in judged.items()},
        "controls": {hiding: [_as_json(claim) for claim in every] for hiding, every in beside.items()},
        "tables": {each.hiding: [vars(line) for line in table(each.figures)] for each in found},
        "sweep": {f"{delta:g}": found for delta, found in by_delta.items()},
    }
    write_json(folder / "experiment.json", finite_json(content))


def _as_json(claim: Claim) -> dict[str, Any]:
    fields = {name: getattr(claim, name) for name in ("letter", "statement", "measure", "bound", "unit", "note")}
    figures = {"values": claim.values.tolist(), "mean": claim.mean, "interval": list(claim.interval)}
    return {**fields, **figures, "verdict": claim.verdict}

"""Whether the papers' claims hold in an experiment: verdicts worked out from figures paired by seed, never written.

A claim says that a difference lies above a bound. It holds where the whole 95 % interval of the mean over seeds does
(Student's t), does not hold where the whole interval lies below, and is undecided otherwise, as with a single seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raypaml.labels import GROUP_NAMES
from raypaml.reports.tables import seed_interval

Row = tuple[str, str]
"""A scheme, and where BoostLU was used: `none`, in evaluation alone (`inference`), or in both (`training`)."""
Figures = Mapping[Row, Mapping[int, Mapping[str, float]]]
"""For each row and seed, by name: `All` and G1..G5 (mAP, 0..1); `recall` and `precision` of rejection; and, comparing
maps, `rank_correlation`, `control` and `scale_ratio`. Unknown figures are missing."""
Floats = NDArray[np.float64]
KEPT = 0.75
"""For "the order stays": the share that must remain of the rank correlation between two trainings on full labels, as
far as it exceeds that with a centred Gaussian."""


@dataclass(frozen=True)
class Claim:
    """A statement, and what was measured about it."""

    letter: str
    statement: str
    measure: str
    """What the difference compares."""
    values: Floats
    """One difference a seed."""
    bound: float = 0.0
    unit: str = ""
    note: str = ""
    """A remark on this claim."""

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return float(self.values.mean()) if len(self.values) else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the mean."""
        half = half_interval(self.values)
        return self.mean - half, self.mean + half

    @property
    def verdict(self) -> str:
        """The verdict: holds, does not hold, or undecided."""
        low, high = self.interval
        if low > self.bound:
            return "holds"
        return "does not hold" if high < self.bound else "undecided"


def half_interval(values: Floats) -> float:
    """Half the 95 % interval of the mean; nan below two values."""
    if len(values) < 2:
        return float("nan")
    mean, _, high = seed_interval(values.tolist())
    return high - mean


def value(figures: Figures, row: Row, name: str) -> dict[int, float]:
    """A figure by seed, of the seeds that have it."""
    return {seed: found[name] for seed, found in figures.get(row, {}).items() if name in found}


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> dict[int, float]:
    """The difference for each seed that both have."""
    return {seed: first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())}


def points(figures: Figures, first: Row, second: Row, name: str = "All") -> dict[int, float]:
    """How many points of mAP the first row stands above the second, by seed."""
    found = difference(value(figures, first, name), value(figures, second, name))
    return {seed: 100 * gained for seed, gained in found.items()}


def claims(figures: Figures) -> list[Claim]:
    """Every claim of the papers that the figures can speak to."""
    return [*_maps(figures), *_inference(figures), *_rejection(figures), *_rare(figures)]


def controls(figures: Figures) -> list[Claim]:
    """What no paper claims, and what the claims have to be read beside: BoostLU where no label is missing."""
    none, inference, training = (("full", mode) for mode in ("none", "inference", "training"))
    return [
        Claim(
            "full",
            "BoostLU helps even where no label is missing, in training",
            "mAP of full labels with BoostLU less without",
            _array(points(figures, training, none)),
            unit="points",
        ),
        Claim(
            "full",
            "BoostLU helps even where no label is missing, at inference alone",
            "mAP of full labels with BoostLU at inference less without",
            _array(points(figures, inference, none)),
            unit="points",
        ),
    ]


def _array(values: Mapping[int, float]) -> Floats:
    return np.array(list(values.values()), np.float64)


def _maps(figures: Figures) -> list[Claim]:
    partial, full = ("an", "none"), ("full", "none")
    smaller = difference(value(figures, full, "scale_ratio"), value(figures, partial, "scale_ratio"))
    control = value(figures, full, "control")
    above = [difference(value(figures, row, "rank_correlation"), control) for row in (partial, full)]
    kept = {seed: above[0][seed] / above[1][seed] for seed in sorted(above[0].keys() & above[1].keys())}
    return [
        Claim(
            "a",
            "AN shrinks the top attributions of positives",
            "scale ratio of full labels less that of AN, against full labels of another seed",
            _array(smaller),
        ),
        Claim(
            "a",
            "while the order of places stays",
            "rank correlation of AN's maps with full labels of another seed, beyond a centred Gaussian's, as a share "
            "of the one between two full-label trainings",
            _array(kept),
            KEPT,
            note="the bound is our choice",
        ),
    ]


def _inference(figures: Figures) -> list[Claim]:
    return [
        Claim(
            "b",
            "BoostLU at inference alone helps AN",
            "mAP of AN with BoostLU at inference less without",
            _array(points(figures, ("an", "inference"), ("an", "none"))),
            unit="points",
        ),
        Claim(
            "c",
            "Training AN with BoostLU helps less than inference only",
            "mAP of AN with BoostLU at inference less trained with it",
            _array(points(figures, ("an", "inference"), ("an", "training"))),
            unit="points",
        ),
    ]


def _rejection(figures: Figures) -> list[Claim]:
    best, plain = ("ll_r", "training"), ("ll_r", "none")
    recall = difference(value(figures, best, "recall"), value(figures, plain, "recall"))
    rival = nearest_rival(figures, best)
    return [
        Claim(
            "d",
            "LL-R + BoostLU rejects more missed positives than LL-R",
            "share of missed positives rejected, over the rejecting epochs, less LL-R's",
            100 * _array(recall),
            unit="points",
        ),
        Claim(
            "d",
            "and is the best of AN and the large-loss schemes",
            "mAP of LL-R + BoostLU less the best other's",
            _array(points(figures, best, rival)) if rival else _array({}),
            unit="points",
            note=f"best other: {title(rival)}" if rival else "",
        ),
    ]


def nearest_rival(figures: Figures, best: Row) -> Row | None:
    """The row of partial labels that comes nearest to `best`, or stands above it most."""
    rivals = {row: _array(points(figures, best, row)) for row in figures if row[0] != "full" and row != best}
    known = {row: found.mean() for row, found in rivals.items() if len(found)}
    return min(known, key=known.__getitem__, default=None)


def _rare(figures: Figures) -> list[Claim]:
    return [
        Claim(
            "e",
            f"Rare groups gain most: {title(better)} over {title(base)}",
            "mean gain of G1 and G2 less that of G4 and G5",
            _array(_tilt(figures, better, base)),
            unit="points",
        )
        for better, base in GAINS
    ]


GAINS: tuple[tuple[Row, Row], ...] = (
    (("an", "inference"), ("an", "none")),
    (("ll_r", "training"), ("ll_r", "none")),
    (("ll_r", "training"), ("an", "none")),
)
"""The comparisons that are made by class group."""


def _tilt(figures: Figures, better: Row, base: Row) -> dict[int, float]:
    by_group = [points(figures, better, base, name) for name in GROUP_NAMES]
    return {s: (by_group[0][s] + by_group[1][s] - by_group[3][s] - by_group[4][s]) / 2 for s in by_group[0]}


def title(row: Row) -> str:
    """The name of a row for people, such as `LL-R + BoostLU`."""
    scheme, mode = row
    name = {"full": "full labels", "an": "AN", "ll_r": "LL-R", "ll_ct": "LL-Ct", "ll_cp": "LL-Cp"}[scheme]
    return name + {"none": "", "inference": ", BoostLU at inference", "training": " + BoostLU"}[mode]

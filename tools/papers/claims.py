"""Computes from the figures of an experiment, paired by seed, whether the papers' claims hold in it.

A claim says that a difference is above a bound. It holds if the whole 95 % interval of the mean over seeds is above the
bound (Student's t), does not hold if the whole interval is below, and is undecided otherwise, as with a single seed.
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
"""For each row and seed, by name: `All` and G1..G5 (mAP, 0..1); `recall` and `precision` of rejection; and, of the
comparison of maps, `rank_correlation`, `control` and `scale_ratio`. Unknown figures are missing."""
Floats = NDArray[np.float64]
KEPT = 0.75
"""The bound of the claim that the order of places stays. It is compared with (r - g) / (f - g), where r is the rank
correlation of AN's maps with those of full labels, f that between two trainings on full labels, and g that of these
with a centred Gaussian."""


@dataclass(frozen=True)
class Claim:
    """A statement of the papers, and the differences that it is judged by."""

    letter: str
    statement: str
    measure: str
    """The difference in words."""
    values: Floats
    """One difference for each seed."""
    bound: float = 0.0
    unit: str = ""
    note: str = ""
    """A remark that is shown with the verdict."""

    @property
    def mean(self) -> float:
        """The mean of the differences over seeds; NaN if there are none."""
        return float(self.values.mean()) if len(self.values) else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the mean."""
        half = half_interval(self.values)
        return self.mean - half, self.mean + half

    @property
    def verdict(self) -> str:
        """The verdict: "holds", "does not hold" or "undecided"."""
        low, high = self.interval
        if low > self.bound:
            return "holds"
        return "does not hold" if high < self.bound else "undecided"


def half_interval(values: Floats) -> float:
    """Returns half the width of the 95 % interval of the mean; NaN for fewer than two values."""
    if len(values) < 2:
        return float("nan")
    mean, _, high = seed_interval(values.tolist())
    return high - mean


def value(figures: Figures, row: Row, name: str) -> dict[int, float]:
    """Returns a figure of a row by seed, for the seeds that have it."""
    return {seed: by_name[name] for seed, by_name in figures.get(row, {}).items() if name in by_name}


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> dict[int, float]:
    """Returns `first` minus `second` for each seed that both have."""
    return {seed: first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())}


def points(figures: Figures, first: Row, second: Row, name: str = "All") -> dict[int, float]:
    """Returns by how many points of mAP the first row is above the second, by seed."""
    gains = difference(value(figures, first, name), value(figures, second, name))
    return {seed: 100 * gain for seed, gain in gains.items()}


def claims(figures: Figures) -> list[Claim]:
    """Returns the papers' claims with the differences that the figures give."""
    return [*_maps(figures), *_inference(figures), *_rejection(figures), *_rare(figures)]


def controls(figures: Figures) -> list[Claim]:
    """Returns claims that no paper makes, to be read with the papers': BoostLU's gain where no label is missing."""
    none, inference, training = (("full", mode) for mode in ("none", "inference", "training"))
    return [
        Claim(
            "full",
            "BoostLU helps even where no label is missing, in training",
            "mAP with full labels, trained with BoostLU minus trained without",
            _array(points(figures, training, none)),
            unit="points",
        ),
        Claim(
            "full",
            "BoostLU helps even where no label is missing, at inference alone",
            "mAP with full labels, BoostLU at inference minus without",
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
            "scale ratio of full labels minus that of AN, both relative to full labels of another seed",
            _array(smaller),
        ),
        Claim(
            "a",
            "while the order of places stays",
            "rank correlation of AN's maps with those of full labels and another seed, relative to that between two "
            "trainings on full labels; the correlation with a centred Gaussian is subtracted from both",
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
            "mAP of AN with BoostLU at inference minus without",
            _array(points(figures, ("an", "inference"), ("an", "none"))),
            unit="points",
        ),
        Claim(
            "c",
            "Training AN with BoostLU helps less than inference only",
            "mAP of AN with BoostLU at inference minus that of AN trained with it",
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
            "recall of missed positives over the epochs that reject, LL-R + BoostLU minus LL-R",
            100 * _array(recall),
            unit="points",
        ),
        Claim(
            "d",
            "and is the best of AN and the large-loss schemes",
            "mAP of LL-R + BoostLU minus that of the best other scheme",
            _array(points(figures, best, rival)) if rival else _array({}),
            unit="points",
            note=f"best other scheme: {title(rival)}" if rival else "",
        ),
    ]


def nearest_rival(figures: Figures, best: Row) -> Row | None:
    """Returns the row of partial labels with the highest mean mAP apart from `best`, on the seeds of both."""
    rivals = {row: _array(points(figures, best, row)) for row in figures if row[0] != "full" and row != best}
    known = {row: leads.mean() for row, leads in rivals.items() if len(leads)}
    return min(known, key=known.__getitem__, default=None)


def _rare(figures: Figures) -> list[Claim]:
    return [
        Claim(
            "e",
            f"Rare groups gain most: {title(better)} over {title(base)}",
            "mean gain of G1 and G2 minus that of G4 and G5",
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
"""Pairs of rows whose difference is shown for each class group."""


def _tilt(figures: Figures, better: Row, base: Row) -> dict[int, float]:
    by_group = [points(figures, better, base, name) for name in GROUP_NAMES]
    return {s: (by_group[0][s] + by_group[1][s] - by_group[3][s] - by_group[4][s]) / 2 for s in by_group[0]}


def title(row: Row) -> str:
    """Returns the name of a row for people, such as `LL-R + BoostLU`."""
    scheme, mode = row
    name = {"full": "full labels", "an": "AN", "ll_r": "LL-R", "ll_ct": "LL-Ct", "ll_cp": "LL-Cp"}[scheme]
    return name + {"none": "", "inference": ", BoostLU at inference", "training": " + BoostLU"}[mode]

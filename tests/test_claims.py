"""Verdicts follow from the figures: planted truths are found, and turned round they are denied."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from raypaml.labels import GROUP_NAMES
from tools.papers.claims import Claim, Row, claims, controls, half_interval, nearest_rival, title
from tools.papers.experiment_figures import table

SEEDS = (0, 1, 2, 3, 4)


def planted(scores: dict[Row, float], more: dict[Row, dict[str, float]] | None = None) -> dict[Row, dict[int, dict]]:
    """Every group at the row's score; seeds differ much, and nearly alike in every row."""
    found: dict[Row, dict[int, dict]] = {}
    for n, (row, score) in enumerate(scores.items()):
        for seed in SEEDS:
            wobble = 0.03 * seed + 1e-4 * ((7 * seed + 3 * n) % 5)
            values = dict.fromkeys(("All", *GROUP_NAMES), score + wobble)
            extra = {name: value + 1e-3 * ((seed + n) % 3) for name, value in (more or {}).get(row, {}).items()}
            found.setdefault(row, {})[seed] = values | extra
    return found


SCORES: dict[Row, float] = {
    ("full", "none"): 0.8,
    ("full", "training"): 0.9,
    ("full", "inference"): 0.81,
    ("an", "none"): 0.5,
    ("an", "inference"): 0.6,
    ("an", "training"): 0.55,
    ("ll_r", "none"): 0.62,
    ("ll_r", "training"): 0.7,
    ("ll_cp", "training"): 0.69,
}
MORE: dict[Row, dict[str, float]] = {
    ("full", "none"): {"rank_correlation": 0.9, "control": 0.1, "scale_ratio": 1.0},
    ("an", "none"): {"rank_correlation": 0.85, "control": 0.1, "scale_ratio": 0.4},
    ("ll_r", "none"): {"recall": 0.2, "precision": 0.5},
    ("ll_r", "training"): {"recall": 0.4, "precision": 0.6},
}


def verdicts(found: list[Claim]) -> list[tuple[str, str]]:
    return [(claim.letter, claim.verdict) for claim in found]


def test_what_is_planted_is_found_and_its_opposite_denied() -> None:
    figures = planted(SCORES, MORE)
    for seed in SEEDS:  # rare groups gain two points more
        for row in (("an", "inference"), ("ll_r", "training")):
            figures[row][seed]["G1"] += 0.04
    found = claims(figures)
    assert verdicts(found) == [(letter, "holds") for letter in "aabcddeee"]
    assert [claim.verdict for claim in controls(figures)] == ["holds", "holds"]
    assert found[5].note == "best other scheme: LL-Cp + BoostLU"
    assert found[5].mean == pytest.approx(1, abs=0.1)
    assert found[6].mean == pytest.approx(2, abs=0.1)

    swapped = {("an", "none"): 0.6, ("an", "inference"): 0.5, ("ll_r", "training"): 0.6}
    other = MORE | {("an", "none"): MORE["an", "none"] | {"scale_ratio": 1.5, "rank_correlation": 0.3}}
    other |= {("ll_r", "none"): MORE["ll_r", "training"], ("ll_r", "training"): MORE["ll_r", "none"]}
    figures = planted(SCORES | swapped, other)
    for seed in SEEDS:
        for row in (("an", "inference"), ("ll_r", "training")):
            figures[row][seed]["G5"] += 0.04
    assert verdicts(claims(figures)) == [(letter, "does not hold") for letter in "aabcddeee"]


def test_the_order_stays_by_what_two_full_label_trainings_have_in_common() -> None:
    more = {("full", "none"): {"rank_correlation": 0.9, "control": 0.1}}
    more[("an", "none")] = {"rank_correlation": 0.5}
    claim = claims(planted(dict.fromkeys(more, 0.5), more))[1]
    assert claim.mean == pytest.approx(0.4 / 0.8, abs=0.01)
    assert claim.bound == 0.75
    assert claim.verdict == "does not hold"


@pytest.mark.parametrize("seeds", [0, 1])
def test_fewer_than_two_seeds_decide_nothing(seeds: int) -> None:
    figures = {row: {seed: by_seed[seed] for seed in range(seeds)} for row, by_seed in planted(SCORES, MORE).items()}
    found = claims(figures)
    assert {claim.verdict for claim in found} == {"undecided"}
    assert all(len(claim.values) == seeds for claim in found)
    assert all(np.isnan(claim.interval).all() for claim in found)


def test_seeds_are_paired_and_those_without_a_partner_left_out() -> None:
    figures = planted(SCORES, MORE)
    del figures["an", "none"][3]
    found = {claim.statement: claim for claim in claims(figures)}
    helped = found["BoostLU at inference alone helps AN"]
    assert len(helped.values) == 4
    first, second = (
        [100 * figures["an", mode][seed]["All"] for seed in (0, 1, 2, 4)] for mode in ("inference", "none")
    )
    oracle = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert helped.interval == pytest.approx((oracle.low, oracle.high))
    assert half_interval(np.array(first)) > 20 * half_interval(helped.values)  # seeds differ far more than their pairs


def test_the_nearest_rival_is_the_best_of_partial_labels() -> None:
    figures = planted(SCORES)
    assert nearest_rival(figures, ("ll_r", "training")) == ("ll_cp", "training")
    assert (
        nearest_rival({row: figures[row] for row in [("full", "none"), ("ll_r", "training")]}, ("ll_r", "training"))
        is None
    )


@given(st.lists(st.floats(-10, 10), max_size=6), st.floats(-1, 1))
def test_a_verdict_turns_with_its_sign(values: list[float], bound: float) -> None:
    def judged(sign: float) -> str:
        return Claim("x", "", "", sign * np.array(values, np.float64), sign * bound).verdict

    opposite = {"holds": "does not hold", "does not hold": "holds", "undecided": "undecided"}
    assert judged(-1) == opposite[judged(1)]


def test_the_table_says_how_many_seeds_a_row_has() -> None:
    figures = planted(SCORES, MORE)
    del figures["ll_cp", "training"][4]
    lines = {line.title: line for line in table(figures)}
    assert list(lines) == [title(row) for row in sorted(SCORES, key=_place)]
    assert (lines["LL-Cp + BoostLU"].seeds, lines["AN"].seeds) == (4, 5)
    scores = [100 * figures["an", "none"][seed]["All"] for seed in SEEDS]
    assert lines["AN"].values["All"] == pytest.approx(np.mean(scores))
    low, high = stats.t.interval(0.95, 4, np.mean(scores), stats.sem(scores))
    assert lines["AN"].half == pytest.approx((high - low) / 2)
    assert lines["LL-R"].values["recall"] == pytest.approx(20, abs=0.3)


def _place(row: Row) -> tuple[int, int]:
    return ("full", "an", "ll_r", "ll_ct", "ll_cp").index(row[0]), ("none", "inference", "training").index(row[1])

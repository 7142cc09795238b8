"""Times the analysis of 10,000 pairs of class activation maps, and compares its rank correlation with scipy's.

python tools/bench/explain.py [--pairs 10000] [--grid 14]
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats

from raypaml.cli import Parser, run_command
from raypaml.metrics.localisation import max_box_iou
from raypaml.metrics.maps import chance_level, energy_inside, extremes, pointing_game, spearman

PROG = "python tools/bench/explain.py"


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """Returns the shortest of three measurements in seconds, and the result of the call."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - began)
    return min(times), result


def main() -> None:
    """Measures every step of the analysis and prints a table."""
    flags = Parser(prog=PROG, description=__doc__.split("\n")[0])
    flags.add_argument("--pairs", type=int, default=10_000, metavar="N", help="pairs of image and class [10000]")
    flags.add_argument("--grid", type=int, default=14, metavar="N", help="cells on each side of a map [14]")
    asked = flags.parse()
    rng = np.random.default_rng(0)
    a = rng.normal(size=(asked.pairs, asked.grid**2)).astype(np.float32)
    b = (a + rng.normal(size=a.shape)).astype(np.float32)
    corners = rng.uniform(0, 448, size=(asked.pairs, 2, 2))
    boxes = [np.concatenate([pair.min(0), pair.max(0)])[None] for pair in corners]
    grid, image = (asked.grid, asked.grid), (448, 448)
    ours, correlations = seconds(lambda: spearman(a, b))
    began = time.perf_counter()
    expected = [stats.spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
    theirs = time.perf_counter() - began
    assert np.allclose(correlations, expected, atol=1e-10)
    rows = {
        "rank correlation": ours,
        "rank correlation, scipy pair by pair": theirs,
        "largest and smallest 5 % of both maps": seconds(lambda: (extremes(a), extremes(b)))[0],
        "pointing game and chance": seconds(
            lambda: (pointing_game(a, boxes, grid, image), chance_level(boxes, grid, image))
        )[0],
        "energy inside the box": seconds(lambda: energy_inside(a, boxes, grid, image))[0],
        "best box IoU over 19 thresholds": seconds(lambda: max_box_iou(a, boxes, grid, image))[0],
    }
    print(f"| {asked.pairs:,} pairs at {asked.grid} x {asked.grid} | seconds |\n| --- | ---: |")
    for name, value in rows.items():
        print(f"| {name} | {value:.2f} |")
    print(
        f"\nThe rank correlation is {theirs / ours:.0f} times as fast as scipy's, which is computed pair by pair; the "
        f"whole analysis takes {sum(rows.values()) - theirs:.1f} s."
    )


if __name__ == "__main__":
    run_command(main, PROG)

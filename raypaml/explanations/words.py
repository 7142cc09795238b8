"""What the comparison of two models' maps means, in whole sentences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from raypaml.explanations.explanation_figures import MapFigures

_ALIKE = ((0.8, "almost the same places"), (0.6, "much the same places"), (0.3, "partly the same places"))
"""Words for a median rank correlation of at least this value; below the last one the places differ."""
_EQUAL = 0.1
"""Ratios that differ from 1 by less than this are called equal."""


def meaning(figures: MapFigures, names: tuple[str, str]) -> list[str]:
    """Sentences on the places and on the strength of the maps of `names[0]` compared with those of `names[1]`.

    A sentence whose figure does not exist is left out.
    """
    return [*_places(figures, *names), *_strength(figures, *names)]


def _places(figures: MapFigures, name: str, other: str) -> Iterator[str]:
    correlation = cast("float | None", figures["rank_correlation"]["p50"])
    control = cast("float | None", figures["rank_correlation_control"]["p50"])
    if correlation is None:
        return
    words = next((words for least, words in _ALIKE if correlation >= least), "")
    told = f"{name} looks at {words} as {other}" if words else f"{name} and {other} look at different places"
    yield (
        f"{told}: the median rank correlation of their maps is {correlation:.2f}, where 1 means that they rank all "
        "places alike, and 0 that they have nothing in common."
    )
    if control is not None:
        judged = "." if correlation > control else ", so that this likeness says nothing."
        yield f"A bell in the middle of every image, which knows nothing of the image, reaches {control:.2f}{judged}"


def _strength(figures: MapFigures, name: str, other: str) -> Iterator[str]:
    raw, boosted = figures["scale_ratio"], figures["scale_ratio_boosted"]
    if raw is None:
        return
    surer = f"{name} is {'surer' if raw > 1 else 'less sure'} of what is there"
    equal = "both are about equally sure of what is there"
    told = equal if abs(raw - 1) < _EQUAL else surer
    yield f"The top attributions of {name} are {raw:.2f} times those of {other}: {told}."
    if boosted is not None:
        nearer = "nearer to each other than before" if abs(boosted - 1) < abs(raw - 1) else "no nearer to each other"
        yield f"After BoostLU, each model with its own alpha, they are {boosted:.2f} times the other's: {nearer}."

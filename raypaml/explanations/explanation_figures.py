"""Figures of the maps of one model, or of two compared, by label and by class group, and the drawings of the paper."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict, cast

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from numpy.typing import NDArray

from raypaml.explanations.pairs import Pairs
from raypaml.files import number_or_null
from raypaml.labels import GROUP_NAMES, FloatArray
from raypaml.metrics.maps import scale_ratio
from raypaml.reports.plots import BLUE, GREY, ORANGE, STYLE, panels, plots
from raypaml.reports.tables import figure as figure_text

QUARTILES = (25, 50, 75)

Quartiles = dict[str, float | None]
"""Quartiles `p25`, `p50` and `p75`; None where there is no value."""


class Localisation(TypedDict):
    """How well maps point at known boxes; a mean is None where there is no pair with a box."""

    pairs_with_boxes: int
    """Positive pairs of image and class with a known box."""
    pointing_game: float | None
    """Share of pairs whose largest attribution lies in a box of the class."""
    pointing_game_chance: float | None
    """The same share for a cell of the map drawn at random."""
    energy_inside: float | None
    """Mean share of positive attribution that lies in the boxes."""
    box_iou_mean: float | None
    """Mean overlap of the best box read off the map with a known one."""
    box_iou_above_half: float | None
    """Share of pairs whose overlap is at least one half."""


class Compared(TypedDict, total=False):
    """How the maps of positive pairs compare with another model's; missing where there is no other model."""

    rank_correlation: dict[str, float | int | None]
    """Quartiles and mean of Spearman's correlation, how many pairs there are, and for how many it is undefined."""
    scale_ratio: float | None
    """Top attributions of the raw maps over those of the other model."""
    scale_ratio_boosted: float | None
    """The same ratio after BoostLU, each model at its own alpha."""


class GroupMaps(Localisation, Compared):
    """The figures of the pairs of one class group."""

    positive_pairs: int


class MapFigures(Compared):
    """All figures of the maps on one split, as `explanations.json` has them."""

    pairs: dict[str, int]
    """Numbers of `positive` and `negative` pairs."""
    attributions: dict[str, dict[str, Quartiles | None]]
    """Quartiles of the mean of the largest and of the smallest 5 % of attributions, by label and end such as `positive
    top`, then by model and map such as `this` or `other_boosted`."""
    localisation: Localisation
    groups: dict[str, GroupMaps]
    rank_correlation_control: NotRequired[dict[str, float | int | None]]
    """Correlation of the other model's maps with a centred Gaussian, as `rank_correlation`."""
    rejection: NotRequired[dict[str, dict[str, float | None]]]
    """Recall and precision of rejection, by run, where the truth is known; no recall where nothing was missed."""
    alpha: NotRequired[dict[str, dict[str, object]]]
    """The alpha of each model and where it comes from."""


def map_summary(pairs: Pairs, class_group: NDArray[np.int64]) -> MapFigures:
    """All figures of the maps on one split; None where there is nothing to average.

    Attributions and their ratio are those of the raw maps; those after BoostLU are named `boosted`.

    Args:
        pairs: figures of the pairs of image and class of the split.
        class_group: [K] 1..5.
    """
    positive = pairs.positive
    compared = bool(np.isfinite(pairs.top_other).any())
    figures = MapFigures(
        pairs={"positive": int(positive.sum()), "negative": int((~positive).sum())},
        attributions={
            f"{label} {end}": _attributions(pairs, mask, end, compared=compared)
            for label, mask in (("positive", positive), ("negative", ~positive))
            for end in ("top", "bottom")
        },
        localisation=_localisation(pairs, np.ones(len(pairs), bool)),
        groups={
            name: _group(pairs, class_group[pairs.class_index] == number, compared=compared)
            for number, name in enumerate(GROUP_NAMES, start=1)
        },
    )
    if compared:
        figures["rank_correlation"] = _correlation(pairs.rank_correlation[positive])
        figures["rank_correlation_control"] = _correlation(pairs.rank_correlation_control[positive])
        _add_ratios(figures, pairs, positive)
    return figures


def _attributions(pairs: Pairs, mask: NDArray[np.bool_], end: str, *, compared: bool) -> dict[str, Quartiles | None]:
    """Quartiles of one end of the attributions, raw and boosted, for this model and for the other."""
    columns = {"this": end, "other": f"{end}_other", "this_boosted": f"{end}_boosted"}
    columns |= {"other_boosted": f"{end}_other_boosted"}
    return {
        name: _quartiles(getattr(pairs, column)[mask]) if compared or name.startswith("this") else None
        for name, column in columns.items()
    }


def _add_ratios(figures: Compared, pairs: Pairs, mask: NDArray[np.bool_]) -> None:
    """Add the ratios of this model's top attributions to the other's, for the raw and for the boosted maps."""
    figures["scale_ratio"] = number_or_null(scale_ratio(pairs.top[mask], pairs.top_other[mask]))
    figures["scale_ratio_boosted"] = number_or_null(scale_ratio(pairs.top_boosted[mask], pairs.top_other_boosted[mask]))


def _group(pairs: Pairs, mask: NDArray[np.bool_], *, compared: bool) -> GroupMaps:
    positive = mask & pairs.positive
    figures = cast("GroupMaps", {"positive_pairs": int(positive.sum()), **_localisation(pairs, mask)})
    if compared:
        figures["rank_correlation"] = _correlation(pairs.rank_correlation[positive])
        _add_ratios(figures, pairs, positive)
    return figures


def _localisation(pairs: Pairs, mask: NDArray[np.bool_]) -> Localisation:
    known = np.isfinite(pairs.pointing) & mask
    return {
        "pairs_with_boxes": int(known.sum()),
        "pointing_game": _mean(pairs.pointing[known]),
        "pointing_game_chance": _mean(pairs.chance[known]),
        "energy_inside": _mean(pairs.energy[known]),
        "box_iou_mean": _mean(pairs.box_iou[known]),
        "box_iou_above_half": _mean((pairs.box_iou[known] >= 0.5).astype(float)),
    }


def _correlation(values: FloatArray) -> dict[str, float | int | None]:
    defined = values[np.isfinite(values)]
    return {
        "pairs": len(values),
        "undefined": len(values) - len(defined),
        **_quartiles(defined),
        "mean": _mean(defined),
    }


def _quartiles(values: FloatArray) -> Quartiles:
    quartiles = np.percentile(values, QUARTILES) if len(values) else [np.nan] * len(QUARTILES)
    return {f"p{q}": number_or_null(value) for q, value in zip(QUARTILES, quartiles, strict=True)}


def _mean(values: FloatArray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else None


@mpl.rc_context(STYLE)
def correlations(pairs: Pairs) -> str:
    """Histograms of the rank correlation of the two models' maps and, as a control, with a centred Gaussian."""
    (axis,) = panels(1)
    bins = np.linspace(-1, 1, 61).tolist()
    for values, colour, label in (
        (pairs.rank_correlation, BLUE, "this model and the other"),
        (pairs.rank_correlation_control, GREY, "centred Gaussian and the other"),
    ):
        kept = values[np.isfinite(values)]
        # the density of nothing is 0 / 0
        axis.hist(kept, bins, density=len(kept) > 0, color=colour, alpha=0.7, label=label)
    axis.set(
        title="rank correlation of maps, positive labels",
        xlabel="Spearman",
        ylabel="density",
        xlim=(-1, 1),
        xticks=(-1, -0.5, 0, 0.5, 1),
    )
    return plots(axis)


@mpl.rc_context(STYLE)
def attributions(pairs: Pairs, names: tuple[str, str]) -> str:
    """Box plots of the largest and smallest 5 % of attributions, for positive and for negative labels."""
    axes = panels(2)
    sides = (("top 5 %", pairs.top, pairs.top_other), ("bottom 5 %", pairs.bottom, pairs.bottom_other))
    for axis, (title, own, others) in zip(axes, sides, strict=True):
        boxes = _boxes(axis, [values[mask] for mask in (pairs.positive, ~pairs.positive) for values in (own, others)])
        axis.set(title=f"mean of the {title} of attributions")
        for box, name in zip(boxes, names, strict=False):  # the first two, of the positive labels
            box.set_label(name)
    return plots(*axes)


def _boxes(axis: Axes, values: list[FloatArray]) -> list[Patch]:
    """Draw box plots for positive and negative labels, two models each; returns the boxes, for a legend."""
    drawn = axis.boxplot([v[np.isfinite(v)] for v in values], showfliers=False, patch_artist=True, widths=0.6)
    for n, patch in enumerate(drawn["boxes"]):
        patch.set_facecolor((ORANGE, BLUE)[n % 2])
        patch.set_alpha(0.7)
    for line in drawn["medians"]:
        line.set_color("black")
    axis.set_xticks((1.5, 3.5), ("positive labels", "negative labels"))
    axis.axhline(0, color=GREY, lw=0.8, zorder=0)
    return list(drawn["boxes"])


@mpl.rc_context(STYLE)
def by_group(figures: MapFigures) -> str:
    """Bars of the scale ratios and of the pointing game by class group; "" where there are no such figures."""
    groups = figures["groups"]
    drawings: list[tuple[Literal["scale_ratio", "scale_ratio_boosted", "pointing_game"], str]] = [
        ("scale_ratio", "raw top attributions over the other's"),
        ("scale_ratio_boosted", "boosted top attributions over the other's"),
        ("pointing_game", "pointing game: largest attribution in a known box"),
    ]
    shown = [(key, title) for key, title in drawings if any(g.get(key) is not None for g in groups.values())]
    if not shown:
        return ""
    axes = panels(len(shown))
    for axis, (key, title) in zip(axes, shown, strict=True):
        values = [group.get(key) for group in groups.values()]
        bars = axis.bar(list(groups), [value or 0 for value in values], color=BLUE, label="this model")
        axis.bar_label(bars, [figure_text(value) for value in values], padding=2)
        axis.set(title=title)
        if key == "pointing_game":
            chance = [group["pointing_game_chance"] or np.nan for group in groups.values()]
            axis.plot(list(groups), chance, color=ORANGE, marker="_", ms=30, ls="", label="a random cell")
    return plots(*axes)

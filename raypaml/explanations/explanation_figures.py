"""What the comparison of two models' maps says: figures by label and by class group, and the drawings of the paper."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from raypaml.explanations.pairs import Pairs
from raypaml.labels import GROUP_NAMES, FloatArray
from raypaml.metrics.maps import scale_ratio
from raypaml.reports.figures import BLUE, GREY, ORANGE, STYLE, panels, svg

QUARTILES = (25, 50, 75)


def map_summary(pairs: Pairs, class_group: NDArray[np.int64]) -> dict[str, Any]:
    """Every figure of the analysis, for JSON; null where nothing was there to count.

    Attributions and their ratio are the raw maps'; those after BoostLU are named `boosted`.

    Args:
        pairs: of one split.
        class_group: [K] 1..5.
    """
    positive = pairs.positive
    compared = bool(np.isfinite(pairs.top_other).any())
    found: dict[str, Any] = {
        "pairs": {"positive": int(positive.sum()), "negative": int((~positive).sum())},
        "attributions": {
            f"{label} {end}": _attributions(pairs, mask, end, compared=compared)
            for label, mask in (("positive", positive), ("negative", ~positive))
            for end in ("top", "bottom")
        },
        "localisation": _localisation(pairs),
        "groups": {
            name: _group(pairs, class_group[pairs.class_index] == number, compared=compared)
            for number, name in enumerate(GROUP_NAMES, start=1)
        },
    }
    if compared:
        found["rank_correlation"] = _correlation(pairs.rank_correlation[positive])
        found["rank_correlation_control"] = _correlation(pairs.rank_correlation_control[positive])
        found |= _ratios(pairs, positive)
    return found


def _attributions(pairs: Pairs, mask: NDArray[np.bool_], end: str, *, compared: bool) -> dict[str, Any]:
    """Quartiles of one end of the attributions, raw and boosted, of this model and of the other."""
    columns = {"this": end, "other": f"{end}_other", "this_boosted": f"{end}_boosted"}
    columns |= {"other_boosted": f"{end}_other_boosted"}
    return {
        name: _quartiles(getattr(pairs, column)[mask]) if compared or name.startswith("this") else None
        for name, column in columns.items()
    }


def _ratios(pairs: Pairs, mask: NDArray[np.bool_]) -> dict[str, float | None]:
    """Top attributions of this model over the other's: of the raw maps, and of each boosted with its own alpha."""
    return {
        "scale_ratio": _number(scale_ratio(pairs.top[mask], pairs.top_other[mask])),
        "scale_ratio_boosted": _number(scale_ratio(pairs.top_boosted[mask], pairs.top_other_boosted[mask])),
    }


def _group(pairs: Pairs, mask: NDArray[np.bool_], *, compared: bool) -> dict[str, Any]:
    positive = mask & pairs.positive
    found = {"positive_pairs": int(positive.sum()), **_localisation(pairs, mask)}
    if compared:
        found["rank_correlation"] = _correlation(pairs.rank_correlation[positive])
        found |= _ratios(pairs, positive)
    return found


def _localisation(pairs: Pairs, mask: NDArray[np.bool_] | None = None) -> dict[str, Any]:
    known = np.isfinite(pairs.pointing) & (True if mask is None else mask)
    return {
        "pairs_with_boxes": int(known.sum()),
        "pointing_game": _mean(pairs.pointing[known]),
        "pointing_game_chance": _mean(pairs.chance[known]),
        "energy_inside": _mean(pairs.energy[known]),
        "box_iou_mean": _mean(pairs.box_iou[known]),
        "box_iou_above_half": _mean((pairs.box_iou[known] >= 0.5).astype(float)),
    }


def _correlation(values: FloatArray) -> dict[str, Any]:
    defined = values[np.isfinite(values)]
    return {
        "pairs": len(values),
        "undefined": len(values) - len(defined),
        **_quartiles(defined),
        "mean": _mean(defined),
    }


def _quartiles(values: FloatArray) -> dict[str, float | None]:
    found = np.percentile(values, QUARTILES) if len(values) else [np.nan] * len(QUARTILES)
    return {f"p{q}": _number(value) for q, value in zip(QUARTILES, found, strict=True)}


def _mean(values: FloatArray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else None


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


@mpl.rc_context(STYLE)
def correlations(pairs: Pairs) -> str:
    """How alike the two models' maps are, and the control that knows nothing but the middle of the image."""
    figure, (axis,) = panels(1)
    bins = np.linspace(-1, 1, 61).tolist()
    for values, colour, label in (
        (pairs.rank_correlation, BLUE, "this model and the other"),
        (pairs.rank_correlation_control, GREY, "centred Gaussian and the other"),
    ):
        kept = values[np.isfinite(values)]
        axis.hist(kept, bins, density=True, color=colour, alpha=0.7, label=label)
    axis.set(title="rank correlation of maps, positive labels", xlabel="Spearman", ylabel="density", xlim=(-1, 1))
    axis.margins(y=0.3)
    axis.legend(frameon=False, loc="upper left")
    return svg(figure)


@mpl.rc_context(STYLE)
def attributions(pairs: Pairs, names: tuple[str, str]) -> str:
    """Box plots of the largest and smallest 5 % of attributions, of positive and of negative labels."""
    figure, axes = panels(2)
    sides = (("top 5 %", pairs.top, pairs.top_other), ("bottom 5 %", pairs.bottom, pairs.bottom_other))
    for axis, (title, own, others) in zip(axes, sides, strict=True):
        drawn = _boxes(axis, [values[mask] for mask in (pairs.positive, ~pairs.positive) for values in (own, others)])
        axis.set(title=f"mean of the {title} of attributions")
    figure.legend(drawn[:2], names, loc="outside lower center", frameon=False)
    return svg(figure)


def _boxes(axis: Axes, values: list[FloatArray]) -> list[Any]:
    """Box plots of positive and negative labels, two models each; the boxes drawn."""
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
def by_group(found: dict[str, Any]) -> str:
    """Scale ratios and pointing game by class group, where there are such figures."""
    groups = found["groups"]
    drawings = [
        ("scale_ratio", "raw top attributions over the other's"),
        ("scale_ratio_boosted", "boosted top attributions over the other's"),
        ("pointing_game", "pointing game; line: chance"),
    ]
    shown = [(key, title) for key, title in drawings if any(g.get(key) is not None for g in groups.values())]
    if not shown:
        return ""
    figure, axes = panels(len(shown))
    for axis, (key, title) in zip(axes, shown, strict=True):
        bars = axis.bar(list(groups), [group.get(key) or 0 for group in groups.values()], color=BLUE)
        axis.bar_label(bars, fmt="%.2f", padding=2)
        axis.set(title=title)
        if key == "pointing_game":
            chance = [group["pointing_game_chance"] or np.nan for group in groups.values()]
            axis.plot(list(groups), chance, color=ORANGE, marker="_", ms=30, ls="")
    return svg(figure)

"""The figures that are kept of each pair of image and class when maps are compared; the maps themselves are not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Pairs:
    """Figures of n pairs of image and class, each [n]; NaN where one does not apply.

    The model that is explained may be compared with another one. Maps are raw, that is, before BoostLU, unless a field
    says otherwise.
    """

    row: NDArray[np.int64]
    """Sample number of the image."""
    class_index: NDArray[np.int64]
    """Column of the class in the vocabulary."""
    positive: NDArray[np.bool_]
    """Whether the class is an observed positive of the image; else it is an observed negative."""
    score: NDArray[np.float64]
    """Probability that the explained model gives, 0 to 1."""
    top: NDArray[np.float64]
    """Mean of the largest 5 % of the map's attributions."""
    bottom: NDArray[np.float64]
    """Mean of the smallest 5 % of the map's attributions."""
    top_other: NDArray[np.float64]
    """Mean of the largest 5 % of attributions in the other model's map."""
    bottom_other: NDArray[np.float64]
    """Mean of the smallest 5 % of attributions in the other model's map."""
    rank_correlation: NDArray[np.float64]
    """Spearman's correlation of the two models' maps; for positives only."""
    rank_correlation_control: NDArray[np.float64]
    """Spearman's correlation of a centred Gaussian and the other model's map; for positives only."""
    pointing: NDArray[np.float64]
    """1 where the largest attribution lies in a known box of the class, else 0."""
    chance: NDArray[np.float64]
    """The mean value of `pointing` if a random cell is taken instead."""
    energy: NDArray[np.float64]
    """Share of positive attribution inside the boxes."""
    box_iou: NDArray[np.float64]
    """Greatest IoU, over all thresholds, of a known box with the box around the map's largest part above one."""
    top_boosted: NDArray[np.float64]
    """As `top`, after BoostLU with the model's alpha."""
    bottom_boosted: NDArray[np.float64]
    """As `bottom`, after BoostLU with the model's alpha."""
    top_other_boosted: NDArray[np.float64]
    """As `top_other`, after BoostLU with the other model's alpha."""
    bottom_other_boosted: NDArray[np.float64]
    """As `bottom_other`, after BoostLU with the other model's alpha."""

    def __len__(self) -> int:
        return len(self.row)

    def take(self, order: NDArray[np.int64]) -> Pairs:
        """These pairs in another order."""
        return Pairs(*(getattr(self, f.name)[order] for f in fields(self)))

    @classmethod
    def concatenated(cls, parts: Sequence[Pairs]) -> Pairs:
        """All pairs of several parts."""
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))

    @classmethod
    def empty(cls) -> Pairs:
        """No pairs."""
        kinds = {"row": np.int64, "class_index": np.int64, "positive": np.bool_}
        return cls(*(np.empty(0, kinds.get(f.name, np.float64)) for f in fields(cls)))

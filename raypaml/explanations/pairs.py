"""What is kept of each (image, class) when maps are compared: figures only, no maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Pairs:
    """Figures of n (image, class) pairs; nan where one does not apply."""

    row: NDArray[np.int64]
    """Sample number."""
    class_index: NDArray[np.int64]
    positive: NDArray[np.bool_]
    score: NDArray[np.float64]
    """This model's, 0 to 1."""
    top: NDArray[np.float64]
    """Mean of the largest 5 % of attributions."""
    bottom: NDArray[np.float64]
    """Mean of the smallest 5 %."""
    top_other: NDArray[np.float64]
    """... of the model compared with."""
    bottom_other: NDArray[np.float64]
    rank_correlation: NDArray[np.float64]
    """Of the two models' maps (Spearman); of positives only."""
    rank_correlation_control: NDArray[np.float64]
    """Of a centred Gaussian and the map compared with; of positives only."""
    pointing: NDArray[np.float64]
    """1 where the largest attribution lies in a known box of the class, else 0."""
    chance: NDArray[np.float64]
    """What a cell chosen at random would give."""
    energy: NDArray[np.float64]
    """Share of positive attribution inside the boxes."""
    box_iou: NDArray[np.float64]
    """Best overlap, at any threshold, of the box around the map's largest part with a known one."""
    top_boosted: NDArray[np.float64]
    """As `top`, after BoostLU with the model's alpha."""
    bottom_boosted: NDArray[np.float64]
    """As `bottom`, after BoostLU with the model's alpha."""
    top_other_boosted: NDArray[np.float64]
    """As `top_other`, after BoostLU with the alpha of the model compared with."""
    bottom_other_boosted: NDArray[np.float64]
    """As `bottom_other`, after BoostLU with the alpha of the model compared with."""

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

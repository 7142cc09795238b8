"""The curve and the most surprising images of each class, compared with a plain computation."""

from __future__ import annotations

import numpy as np

from raypaml.evaluation.class_details import CURVE_POINTS, NOBODY, ClassDetails
from raypaml.metrics.average_precision import rank_entries

K = 6


def test_curves_and_surprises_are_those_of_a_plain_computation() -> None:
    rng = np.random.default_rng(0)
    classes, image = rng.integers(0, K - 1, 3000), rng.permutation(3000)
    scores = rng.normal(size=3000).round(2).astype(np.float32)  # with ties
    positive = (rng.random(3000) < 0.2) & (classes != 1)  # class 1 has no positive, class 5 no entry
    details = ClassDetails.empty(K)
    details.add(rank_entries(classes, scores, positive, K), image)
    for k in range(K):
        mine = classes == k
        hits = np.sort(scores[mine & positive])[::-1]
        found = np.array(details.curves[k]).reshape(-1, 2)
        assert len(found) <= CURVE_POINTS
        every = [
            (round(1000 * np.mean(hits >= at)), round(1000 * np.mean(positive[mine & (scores >= at)]))) for at in hits
        ]
        assert {tuple(point) for point in found} <= set(every)
        if len(hits):
            assert (tuple(found[0]), tuple(found[-1])) == (every[0], every[-1])
            low = details.positives.image[k]
            assert scores[image == low] == details.positives.score[k] == hits[-1]
            assert positive[image == low] & mine[image == low]
        if mine.any():
            high = details.negatives.image[k]
            assert scores[image == high] == details.negatives.score[k] == scores[mine & ~positive].max()
    assert details.curves[1] == details.curves[5] == []
    assert details.positives.image[1] == details.negatives.image[5] == NOBODY
    assert np.isnan(details.positives.score[5])

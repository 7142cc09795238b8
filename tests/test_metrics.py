"""Average precision against scikit-learn, class groups, and the vocabulary they belong to."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from raypaml.labels import Vocabulary, class_groups, each_once
from raypaml.metrics.average_precision import average_precision, group_means, mean_ap

INF = float("inf")


def by_sklearn(classes: NDArray, scores: NDArray, positive: NDArray, num_classes: int) -> NDArray[np.float64]:
    """Class by class; scikit-learn refuses infinities, so it gets the ranks of the scores."""
    ap = np.full(num_classes, np.nan)
    for k in np.unique(classes):
        ranks = np.unique(scores[classes == k], return_inverse=True)[1]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "No positive class found", UserWarning)
            ap[k] = average_precision_score(positive[classes == k], ranks)
    return ap


def assert_as_sklearn(classes: NDArray, scores: NDArray, positive: NDArray, num_classes: int) -> None:
    found = average_precision(classes, scores, positive, num_classes)
    np.testing.assert_allclose(found, by_sklearn(classes, scores, positive, num_classes), rtol=0, atol=1e-12)


SCORES = (st.floats(allow_nan=False), st.sampled_from([-INF, -1.0, -0.0, 0.0, 1.0, INF]), st.just(0.5))
POSITIVES = (st.booleans(), st.just(True), st.just(False))


@st.composite
def observed_rows(draw: st.DrawFn) -> tuple[NDArray, NDArray, NDArray, int]:
    num_classes, score, positive = (
        draw(st.integers(1, 5)),
        draw(st.sampled_from(SCORES)),
        draw(st.sampled_from(POSITIVES)),
    )
    rows = draw(st.lists(st.tuples(st.integers(0, num_classes - 1), score, positive), min_size=1, max_size=40))
    classes, scores, positives = zip(*rows, strict=True)
    return np.array(classes), np.array(scores), np.array(positives), num_classes


@given(observed_rows())
@settings(deadline=None, max_examples=150)
def test_ap_is_scikit_learns(case: tuple[NDArray, NDArray, NDArray, int]) -> None:
    assert_as_sklearn(*case)


def test_ap_of_2000_random_classes_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    sizes = np.where(np.arange(2000) % 10 == 0, 1, rng.integers(2, 60, 2000))  # every tenth has one row
    classes = np.repeat(np.arange(2000), sizes)
    rows = len(classes)
    scores = rng.normal(size=rows).astype(np.float32)
    coarse = classes % 2 == 0
    scores[coarse] = scores[coarse].round()  # ties
    scores[rng.random(rows) < 0.02] = INF
    scores[rng.random(rows) < 0.02] = -INF
    share = rng.choice([0, 0.05, 0.3, 0.9, 1], 2000)  # no positives ... all positives
    positive = rng.random(rows) < share[classes]
    order = rng.permutation(rows)
    assert_as_sklearn(classes[order], scores[order], positive[order], 2000)


@given(observed_rows(), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=50)
def test_the_order_of_rows_does_not_matter(case: tuple[NDArray, NDArray, NDArray, int], random: object) -> None:
    classes, scores, positive, num_classes = case
    order = list(range(len(classes)))
    random.shuffle(order)
    shuffled = average_precision(classes[order], scores[order], positive[order], num_classes)
    np.testing.assert_array_equal(shuffled, average_precision(*case))


def test_ap_by_hand() -> None:
    # class 0: + - + by rank; class 2: a tie of + and -, then +
    ap = average_precision([0, 0, 0, 2, 2, 2], [3, 2, 1, 5, 5, 4], [True, False, True, True, False, True], 4)
    np.testing.assert_allclose(ap, [(1 + 2 / 3) / 2, np.nan, (1 / 2 + 2 / 3) / 2, np.nan], rtol=1e-15)


def test_a_class_without_positives_counts_0_and_one_without_rows_is_skipped() -> None:
    """Convention `paper`: a class with observed negatives only has AP 0 and is not skipped."""
    ap = average_precision([0, 0, 2], [1.0, 2.0, 3.0], [False, False, True], 4)
    np.testing.assert_array_equal(ap, [0, np.nan, 1, np.nan])
    assert mean_ap(ap) == 0.5


def test_no_rows_at_all() -> None:
    np.testing.assert_array_equal(average_precision([], [], [], 3), [np.nan] * 3)
    assert average_precision([], [], [], 0).shape == (0,)


def test_a_nan_score_is_refused_by_row_and_class() -> None:
    with pytest.raises(ValueError, match="scores: 2 are NaN, first in row 1, class 7"):
        average_precision([3, 7, 8], [0.0, math.nan, math.nan], [True, True, False], 9)


@pytest.mark.parametrize(("classes", "message"), [([0, 3], "from 0 to 3: expected 0..2"), ([-1, 0], "from -1 to 0")])
def test_a_class_out_of_range_is_refused(classes: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=f"class_index {message}"):
        average_precision(classes, [0.0, 1.0], [True, False], 3)


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="rows differ: 2 classes, 3 scores, 1 labels"):
        average_precision([0, 1], [0.0, 1.0, 2.0], [True], 2)


def test_mean_ap_is_over_scored_classes() -> None:
    assert mean_ap(np.array([0.5, np.nan, 0.0, 1.0])) == 0.5
    assert math.isnan(mean_ap(np.array([np.nan])))
    assert math.isnan(mean_ap(np.array([])))


def test_group_means() -> None:
    ap = np.array([0.1, 0.3, np.nan, np.nan, 0.7, 1.0])
    found = group_means(ap, np.array([1, 1, 2, 3, 3, 5]))
    expected = {"G1": 0.2, "G2": math.nan, "G3": 0.7, "G4": math.nan, "G5": 1.0}
    assert list(found) == list(expected)
    assert found == pytest.approx(expected, nan_ok=True)


# --- Class groups ---------------------------------------------------------------------------------------------------


def test_groups_are_equal_and_rise_with_the_annotations() -> None:
    annotations = np.random.default_rng(0).permutation(5000)
    groups = class_groups(annotations)
    assert np.bincount(groups).tolist() == [0, 1000, 1000, 1000, 1000, 1000]
    assert np.array_equal(groups, annotations // 1000 + 1)


@pytest.mark.parametrize("numbers", [[], [7], [3, 1, 3, -2, 1], [5, 5, 5], [2**62, -(2**62), 0]])
def test_numbers_in_order_each_once_are_numpys(numbers: list[int]) -> None:
    given_numbers = np.array(numbers, np.int64)
    assert each_once(given_numbers).tolist() == np.unique(given_numbers).tolist()
    assert each_once(given_numbers).dtype == np.int64
    assert given_numbers.tolist() == numbers


def test_ties_between_groups_keep_vocabulary_order() -> None:
    assert class_groups(np.array([7, 7, 0, 7, 7, 7, 7, 7, 7, 99])).tolist() == [1, 2, 1, 2, 3, 3, 4, 4, 5, 5]
    half, odd = divmod(np.arange(5000), 2)
    assert np.array_equal(class_groups(odd), (half + 2500 * odd) // 1000 + 1)


@pytest.mark.parametrize("num_classes", [1, 3, 5, 7, 11, 48, 4999])
def test_sizes_of_uneven_groups_differ_by_at_most_one(num_classes: int) -> None:
    groups = class_groups(np.arange(num_classes))
    sizes = np.bincount(groups, minlength=6)[1:]
    assert sizes.sum() == num_classes
    assert sizes.max() - sizes.min() <= 1
    assert (np.diff(groups) >= 0).all()


# --- Vocabulary -----------------------------------------------------------------------------------------------------


def vocabulary(*ids: str) -> Vocabulary:
    counts = np.arange(len(ids))
    names = tuple(f'the "{name}", Ä' for name in ids)
    return Vocabulary(class_ids=ids, names=names, train_positives=counts, train_negatives=10 - 3 * counts)


def test_a_written_vocabulary_reads_back(tmp_path: Path) -> None:
    written = vocabulary("/m/b", "/m/a", "/m/c")
    written.write(tmp_path / "vocabulary.csv")
    again = Vocabulary.read(tmp_path / "vocabulary.csv")
    assert (again.class_ids, again.names, again.digest) == (written.class_ids, written.names, written.digest)
    assert again.train_positives.tolist() == [0, 1, 2]
    assert again.train_negatives.tolist() == [10, 7, 4]
    assert again.index_of == {"/m/b": 0, "/m/a": 1, "/m/c": 2}
    header, first = (tmp_path / "vocabulary.csv").read_text().splitlines()[:2]
    assert header == "class_id,name,train_positives,train_negatives,class_group"
    assert first == '/m/b,"the ""/m/b"", Ä",0,10,4'


def test_groups_count_positives_and_negatives_and_are_recomputed_on_reading(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.csv"
    rows = ["class_id,name,train_positives,train_negatives,class_group"]
    rows += [f"c{k},n,{positives},{100 - 20 * k - positives},1" for k, positives in enumerate([0, 1, 2, 3, 4])]
    path.write_text("\ufeff" + "\r\n".join(rows), encoding="utf-8")  # as a spreadsheet program saves it
    assert Vocabulary.read(path).class_group.tolist() == [5, 4, 3, 2, 1]


def test_the_digest_depends_on_the_ids_and_their_order_alone() -> None:
    assert vocabulary("a", "b").digest != vocabulary("b", "a").digest
    other = Vocabulary(class_ids=("a", "b"), names=("", ""), train_positives=np.ones(2), train_negatives=np.ones(2))
    assert other.digest == vocabulary("a", "b").digest


def test_class_ids_given_twice_are_refused() -> None:
    with pytest.raises(ValueError, match=r"class ids given twice: \['a', 'b'\]; keep one row each"):
        vocabulary("b", "a", "c", "a", "b")


HEADER = "class_id,name,train_positives,train_negatives\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEADER + "a,A,1,2\nb,B,one,2\n", r"vocabulary\.csv:3: invalid literal .*'one'; expected class_id,name,"),
        (HEADER + "a,A,1\n", r"vocabulary\.csv:2: .*expected class_id,name,"),
        (
            "class_id,name\na,A\n",
            r"vocabulary\.csv: columns \['class_id', 'name'\], expected at least class_id, name, t",
        ),
        ("", r"vocabulary\.csv: columns \[\], expected"),
        (HEADER, r"vocabulary: no classes; give at least one class id"),
    ],
)
def test_a_malformed_vocabulary_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "vocabulary.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        Vocabulary.read(tmp_path / "vocabulary.csv")


def test_a_missing_vocabulary_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"nowhere\.csv: no such vocabulary; write it with python -m raypaml\.shard index DIR"
    ):
        Vocabulary.read(tmp_path / "nowhere.csv")

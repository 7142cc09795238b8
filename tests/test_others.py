"""Predictions of others: tables and matrices, every coding declared, nothing guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import average_precision_score

from raypaml.evaluation.foreign import Coding, open_others
from raypaml.evaluation.measures import Evaluation, EvaluationOptions, evaluate_set
from tests.test_parts import vocabulary

B, K = 40, 12


def matrices() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.normal(size=(B, K)), rng.choice([1, 0, -1], (B, K), p=[0.3, 0.4, 0.3])


def as_table(scores: np.ndarray, labels: np.ndarray, ids: bool = True) -> pa.Table:
    image, classes = np.indices(scores.shape).reshape(2, -1)
    names = [vocabulary().class_ids[k] for k in classes] if ids else classes.tolist()
    keys = [f"{number:09d}" for number in image]
    return pa.table({"key": keys, "class": names, "label": labels.ravel(), "score": scores.ravel()})


def write(tmp_path: Path, form: str, labels: np.ndarray) -> tuple[Path, dict[str, Any]]:
    scores, _ = matrices()
    path = tmp_path / f"scores.{form.split('-')[0]}"
    if form == "npy":
        np.save(path, scores)
        np.save(tmp_path / "labels.npy", labels)
        return path, {"labels": tmp_path / "labels.npy"}
    table = as_table(scores, labels, ids=form != "parquet-columns")
    if form == "csv":
        pyarrow.csv.write_csv(table, path)
    else:
        pq.write_table(table, path)
    return path, {}


def evaluated(path: Path, **options: Any) -> Evaluation:
    return evaluate_set(
        open_others(path, vocabulary(), scores="logits", **options), vocabulary(), EvaluationOptions(threshold=0.5)
    )


@pytest.mark.parametrize("form", ["npy", "csv", "parquet", "parquet-columns"])
def test_every_form_gives_scikit_learns_ap(form: str, tmp_path: Path) -> None:
    scores, labels = matrices()
    path, options = write(tmp_path, form, labels)
    found = evaluated(path, **options)
    for k in range(K):
        seen = labels[:, k] != -1
        expected = average_precision_score(labels[seen, k], scores[seen, k])
        assert found.ap[k] == pytest.approx(expected, abs=1e-12)
        whole = average_precision_score(labels[:, k] == 1, scores[:, k])
        assert found.unobserved_ap is not None
        assert found.unobserved_ap[k] == pytest.approx(whole, abs=1e-12)
    assert found.decisions is not None
    assert found.decisions.true_positives.sum() == ((scores >= 0) & (labels == 1)).sum()


def test_another_coding_is_declared(tmp_path: Path) -> None:
    _, labels = matrices()
    path, options = write(tmp_path, "npy", labels)
    wanted = evaluated(path, **options)
    other = np.select([labels == 1, labels == 0], [1, -1], 0)  # single-positive code: 0 is unobserved
    write(tmp_path, "npy", other)
    found = evaluated(path, coding=Coding.parse("1,-1,0"), **options)
    np.testing.assert_array_equal(found.ap, wanted.ap)
    write(tmp_path, "npy", np.where(labels == 1, 2, labels))
    with pytest.raises(ValueError, match=r"label 2 is not among the declared Coding\(positive=1, negative=0"):
        evaluated(path, **options)


@pytest.mark.parametrize("text", ["1,0", "1,0,x", "1,1,0", "1,0,-1,2"])
def test_a_coding_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="coding"):
        Coding.parse(text)


def refuse(path: Path, message: str, **options: Any) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        evaluate_set(open_others(path, vocabulary(), **({"scores": "logits"} | options)), vocabulary())
    assert "\n" not in str(caught.value)


def test_logits_or_probabilities_is_never_guessed(tmp_path: Path) -> None:
    path, options = write(tmp_path, "csv", matrices()[1])
    refuse(path, "give --scores logits or --scores probabilities", scores=None, **options)
    refuse(path, r"score -?\d.* is no probability", scores="probabilities", **options)


def test_a_matrix_needs_its_labels_and_their_shape(tmp_path: Path) -> None:
    path, _ = write(tmp_path, "npy", matrices()[1])
    refuse(path, "needs its labels; say --labels FILE.npy")
    np.save(tmp_path / "labels.npy", np.zeros((B, K - 1)))
    refuse(path, r"\[40, 12\], labels \[40, 11\]; expected both \[images, 12", labels=tmp_path / "labels.npy")
    path.write_bytes(path.read_bytes()[:-8])
    refuse(path, "not a readable npy file", labels=tmp_path / "labels.npy")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"key,class,score\na,/m/00,1\n", "expected the columns key, class, label, score"),
        (b"key,class,label,score\na,/m/99,1,0.5\n", "class '/m/99' is not among the 12"),
        (b"key,class,label,score\na,/m/00,1,x\n", "expected the columns"),
        (b"key,class,label,score\na,/m/00,1,\n", "empty cells in column 'score'"),
        (b"key,class,label,score\na,/m/00,7,0.5\n", "label 7 is not among the declared"),
        (b"key,class,label,score\na,/m/00,1,nan\n", "1 scores are not a number, first of image 'a', class 0"),
        (b"key,class,label,score\na,/m/00,1,2\na,/m/00,0,1\n", "image 'a' has class 0 twice"),
        (b"key,class,label,score\n", "no rows"),
    ],
)
def test_malformed_tables(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(content)
    refuse(tmp_path / "x.csv", message)


def test_a_truncated_parquet_file(tmp_path: Path) -> None:
    path, _ = write(tmp_path, "parquet", matrices()[1])
    path.write_bytes(path.read_bytes()[:-9])
    refuse(path, "not a whole Parquet file")


def test_infinite_scores_rank(tmp_path: Path) -> None:
    lines = ["a,/m/00,1,inf", "b,/m/00,0,3", "c,/m/00,1,-inf"]
    (tmp_path / "x.csv").write_text("\n".join(["key,class,label,score", *lines]))
    assert evaluated(tmp_path / "x.csv").ap[0] == pytest.approx((1 + 2 / 3) / 2)


@pytest.mark.parametrize(
    ("asked", "said"), [(EvaluationOptions(alphas=(2.0,)), 2), (EvaluationOptions(alpha_of_use=True), "chosen")]
)
def test_one_score_has_no_alpha(asked: EvaluationOptions, said: object, tmp_path: Path) -> None:
    path, _ = write(tmp_path, "csv", matrices()[1])
    with pytest.raises(ValueError, match=f"alpha={said} needs P and N of every entry"):
        evaluate_set(open_others(path, vocabulary(), scores="logits"), vocabulary(), asked)

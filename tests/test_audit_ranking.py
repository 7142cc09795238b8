"""The ranking of `raypaml audit` against straight recomputations: fit, order, limit by class, any run, any workers."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from raypaml.api.audited import Audited
from raypaml.audit import main
from raypaml.auditing import entry_scores
from raypaml.auditing.audit_run import AuditRequest
from raypaml.auditing.candidates import estimated
from raypaml.auditing.entry_scores import AuditedModel, observed_scores
from raypaml.auditing.ranking import NOTHING, RIDGE, ChanceEstimate, EntryRanking, ObservedScores, Scored, fit_estimate
from raypaml.data.batches import Reader
from raypaml.data.data_folder import DataFolder, open_folder
from raypaml.data.index import Index, write_index
from raypaml.labels import UNOBSERVED
from raypaml.mapper import Processes, in_this_process
from raypaml.runs import models
from raypaml.runs.alpha_of_use import model_digest
from raypaml.runs.run_folder import read_config

Run = tuple[Path, str]
K = 7


def some_observed(entries: int, seed: int = 0) -> ObservedScores:
    rng = np.random.default_rng(seed)
    classes, p, n = rng.integers(K, size=entries), rng.gamma(1, 2, entries), -rng.gamma(1, 3, entries)
    chance = 1 / (1 + np.exp(-(1.5 * p + 0.4 * n - 1 + 0.5 * classes)))
    weight = rng.choice([1.0, 2.5], entries)
    return ObservedScores(classes, p.astype(np.float32), n.astype(np.float32), rng.random(entries) < chance, weight)


def test_the_fit_is_the_maximum_of_the_penalised_likelihood() -> None:
    seen = some_observed(400)
    given, said = fit_estimate(seen, K)
    assert given is not None, said

    def loss(x: Any) -> Any:
        odds = x[0] + x[1] * seen.P + x[2] * seen.N + x[3 + seen.class_index]
        likelihood = np.where(seen.positive, -np.log1p(np.exp(-odds)), -np.log1p(np.exp(odds)))
        return -(seen.weight * likelihood).sum() + RIDGE / 2 * (x[3:] ** 2).sum()

    best = minimize(loss, np.zeros(3 + K), method="BFGS", options={"gtol": 1e-5}).x
    np.testing.assert_allclose([given.above[0], given.below], best[1:3], rtol=0.01)
    np.testing.assert_allclose(given.offset, best[0] + best[3:], atol=0.02)


def test_with_one_class_the_fit_is_that_of_scikit_learn() -> None:
    seen = some_observed(3000)
    seen = ObservedScores(np.zeros(3000, np.int64), seen.P, seen.N, seen.positive, seen.weight)
    given, _ = fit_estimate(seen, 1)
    assert given is not None
    other = LogisticRegression(C=1e6, tol=1e-8, max_iter=1000).fit(
        np.stack([seen.P, seen.N], 1).astype(np.float64), seen.positive, seen.weight
    )
    np.testing.assert_allclose([given.above[0], given.below], other.coef_[0], rtol=1e-3)
    np.testing.assert_allclose(given.offset, other.intercept_, rtol=1e-3)


@pytest.mark.parametrize("kind", ["separable", "huge", "constant"])
def test_labels_that_are_hard_to_fit_give_finite_numbers_or_a_reason(kind: str) -> None:
    seen = some_observed(200)
    positive = {"separable": seen.P > 1, "huge": seen.positive, "constant": seen.positive}[kind]
    factor = np.float32({"separable": 1, "huge": 1e30, "constant": 0}[kind])
    estimate, said = fit_estimate(
        ObservedScores(seen.class_index, seen.P * factor, seen.N * factor, positive, seen.weight), K
    )
    assert (estimate is None) == (kind == "constant")
    if estimate is None:
        assert said == "on validation, positives have no higher scores than negatives"
    else:
        assert np.isfinite([*estimate.offset, *estimate.above, estimate.below]).all()


def test_too_few_labels_and_labels_against_the_scores_are_told() -> None:
    seen = some_observed(200)
    few = ObservedScores(seen.class_index, seen.P, seen.N, np.arange(200) < 29, seen.weight)
    assert fit_estimate(few, K) == (None, "validation has 29 positives and 171 negatives; 30 each are needed")
    against = ObservedScores(seen.class_index, seen.P, seen.N, ~seen.positive, seen.weight)
    assert fit_estimate(against, K) == (None, "on validation, positives have no higher scores than negatives")


def by_hand(scored: Scored, ranking: EntryRanking) -> list[int]:
    """The order as its sentence says it, one entry after the other."""
    estimate = ranking.estimate
    rows = []
    for entry, p, n in zip(scored.entries.tolist(), scored.P.tolist(), scored.N.tolist(), strict=True):
        k = entry % K
        rows.append((-(float(estimate.offset[k]) + float(estimate.above[k]) * p + estimate.below * n), entry))
    seen, front, back = Counter[int](), list[int](), list[int]()
    for _, entry in sorted(rows):
        (front if seen[entry % K] < ranking.quota else back).append(entry)
        seen[entry % K] += 1
    return [*front, *back][: ranking.most]


@pytest.mark.parametrize(("most", "quota"), [(10, 10), (20, 3), (20, 2), (40, 1), (500, 40)])
def test_the_order_is_that_by_hand_in_any_parts(most: int, quota: int) -> None:
    rng = np.random.default_rng(most)
    entries = rng.permutation(300)[:200].astype(np.int64)
    scored = Scored(entries, *(rng.integers(0, 6, 200).astype(np.float32) for _ in "PN"))  # many are equal
    estimate = ChanceEstimate(rng.normal(size=K).round(1) * (np.arange(K) > 3), np.ones(K), 0.5)
    ranking = EntryRanking(estimate, most, quota)
    expected = by_hand(scored, ranking)
    assert ranking.first(scored).entries.tolist() == expected
    parts = [scored.take(np.arange(start, 200, 9)) for start in range(9)]
    random.Random(1).shuffle(parts)
    best = NOTHING
    for part in parts:
        new = part.take(ranking.log_odds(part) >= ranking.least(best))
        best = ranking.first(best.joined(ranking.first(new)))
    assert best.entries.tolist() == expected


# --- Whole audits ----------------------------------------------------------------------------------------------------


def audited_model(run: Path, data: Path) -> AuditedModel:
    checkpoint = models.tested_checkpoint(run)
    return AuditedModel(checkpoint, model_digest(checkpoint), read_config(run / "config.json"), str(data), "cpu")


def dense(run: Path, index: Index, data: DataFolder) -> tuple[Any, Any]:
    """P and N of all entries of a split, computed at once."""
    model = models.tested_model(run, read_config(run / "config.json").model, 50).eval()
    reader = Reader(data.shards, index, ())
    images = torch.from_numpy(np.stack([reader.image(row) for row in range(len(index))])).permute(0, 3, 1, 2)
    with torch.inference_mode():
        return tuple(part.numpy() for part in model.pooled(images))  # type: ignore[return-value]


def listed(folder: Path, data: DataFolder) -> list[int]:
    index = data.splits["train"]
    table = pq.read_table(folder / "candidates.parquet")
    columns = [data.vocabulary.index_of[name] for name in table["class_id"].to_pylist()]
    return [int(row) * 50 + k for row, k in zip(index.rows_of(table["key"]), columns, strict=True)]


def test_an_audit_lists_what_a_dense_recomputation_ranks_first(
    trained: Run, evaluated_digits: Path, tmp_path: Path
) -> None:
    assert main([str(trained[0]), "--top", "40", "--class-share", "0.1", "--out", str(tmp_path / "a")]) == 0
    data = open_folder(evaluated_digits)
    train, validation = data.splits["train"], data.splits["validation"]
    p, n = dense(trained[0], validation, data)
    labels = validation.labels(np.arange(len(validation)))
    row, k = np.nonzero(labels != UNOBSERVED)
    seen = ObservedScores(k, p[row, k], n[row, k], labels[row, k] == 1, np.ones(len(k)))
    estimate, said = fit_estimate(seen, 50)
    assert estimate is not None, said
    p, n = dense(trained[0], train, data)
    odds = estimate.offset + estimate.above * p + estimate.below * n
    odds[train.labels(np.arange(len(train))) != UNOBSERVED] = -np.inf
    expected, had = list[int](), Counter[int]()
    for entry in np.argsort(-odds.ravel(), kind="stable").tolist():
        if had[entry % 50] < 4:
            expected.append(entry)
        had[entry % 50] += 1
    assert listed(tmp_path / "a", data) == expected[:40]
    table = pq.read_table(tmp_path / "a" / "candidates.parquet")
    np.testing.assert_allclose(table["chance"], 1 / (1 + np.exp(-odds.ravel()[expected[:40]])), atol=1e-4)
    alpha = json.loads((tmp_path / "a" / "audit.json").read_text())["alpha"]
    score = 1 / (1 + np.exp(-(alpha * p + n).ravel()[expected[:40]]))
    np.testing.assert_allclose(table["score"], score, atol=1e-4)


def test_a_run_without_history_is_audited_with_the_same_list(
    trained: Run, evaluated_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(trained[0], tmp_path / "run", ignore=shutil.ignore_patterns("rejected", "audit"))
    for one, name in ((trained[0], "with"), (run, "without")):
        assert main([str(one), "--top", "12", "--out", str(tmp_path / name)]) == 0
    data = open_folder(evaluated_digits)
    assert listed(tmp_path / "with", data) == listed(tmp_path / "without", data)
    table = pq.read_table(tmp_path / "without" / "candidates.parquet")
    assert set(table["times"].to_pylist()) == {0}
    assert "rejected in" not in (tmp_path / "without" / "index.html").read_text()
    assert "rejected in" in (tmp_path / "with" / "index.html").read_text()
    assert "ranked by the chance that validation suggests (40 images, complete labels)" in capsys.readouterr().err


def backwards(function: Any, calls: Any) -> Iterator[Any]:
    return (function(*call) for call in list(calls)[::-1])


def test_parts_that_end_in_another_order_give_the_same_list(
    trained: Run, evaluated_digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entry_scores, "PART_IMAGES", 10)
    data, model = open_folder(evaluated_digits), audited_model(trained[0], evaluated_digits)
    index, silent = data.splits["validation"], lambda _: None
    seen = [observed_scores(model, index, run, silent) for run in (in_this_process, backwards)]
    for name in ("class_index", "P", "N", "positive", "weight"):
        np.testing.assert_array_equal(*(getattr(one, name) for one in seen))
    ranking = EntryRanking(ChanceEstimate.score_alone(5.0, 50), 30, 3)
    (one,), _ = entry_scores.likeliest(model, 96, [ranking], in_this_process, silent)
    (other,), _ = entry_scores.likeliest(model, 96, [ranking], backwards, silent)
    np.testing.assert_array_equal(one.entries, other.entries)


@pytest.mark.cluster
def test_two_ray_workers_list_what_one_process_lists(trained: Run, tmp_path: Path) -> None:
    def audit(name: str, workers: int) -> bytes:
        request = AuditRequest(top=30, out=str(tmp_path / name))
        audited = Audited.of(trained[0], request, Processes(workers, "local" if workers > 1 else ""), lambda _: None)
        return (audited.folder / "candidates.parquet").read_bytes()

    assert audit("one", 1) == audit("two", 2)


def test_of_more_labels_than_are_fitted_a_weighted_sample_is_drawn(
    trained: Run, evaluated_digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entry_scores, "MOST_FITTED", 400)
    data = open_folder(evaluated_digits)
    index = data.splits["validation"]
    model = audited_model(trained[0], evaluated_digits)
    seen = observed_scores(model, index, in_this_process, lambda _: None)
    positives, negatives = len(index.positives.values), len(index.negatives.values)
    assert positives < 400 < negatives
    assert seen.positive.sum() == positives
    assert (seen.weight[seen.positive] == 1).all()
    assert abs((~seen.positive).sum() - 400) < 80
    assert abs(seen.weight.sum() - positives - negatives) < 0.2 * negatives


def with_partial_validation(data: Path, out: Path, every: int) -> Path:
    """A copy of a data set of which validation shows only every so many-th label."""
    shutil.copytree(data, out)
    folder = open_folder(data)
    index = folder.splits["validation"]
    table = index.table
    for name in ("positives", "negatives"):
        lists = [values[:: every or 10**6][: 10**6 if every else 0] for values in table[name].to_pylist()]
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(place), [pa.array(lists, table[name].type)])
    (out / "validation.arrow").unlink()
    write_index(
        out / "validation.arrow",
        table.combine_chunks(),
        shards=index.shards,
        shard_bytes=index.shard_bytes,
        vocabulary=folder.vocabulary,
        has_truth=index.has_truth,
    )
    return out


@pytest.mark.parametrize(
    ("every", "said"),
    [
        (2, "ranked by the chance that validation suggests (40 images, partial labels)"),
        (0, "ranked by score alone: validation has 0 positives and 0 negatives; 30 each are needed"),
    ],
)
def test_partial_labels_give_an_order_and_no_chance(
    every: int, said: str, trained: Run, evaluated_digits: Path, tmp_path: Path
) -> None:
    data = with_partial_validation(evaluated_digits, tmp_path / "data", every)
    model = audited_model(trained[0], data)
    estimate, told, is_chance = estimated(model, open_folder(data), in_this_process, lambda _: None)
    assert (told, is_chance, estimate is None) == (said, False, every == 0)
    assert main([str(trained[0]), "--data", str(data), "--top", "5", "--out", str(tmp_path / "audit")]) == 0
    assert set(pq.read_table(tmp_path / "audit" / "candidates.parquet")["chance"].to_pylist()) == {None}
    assert "estimated chance" not in (tmp_path / "audit" / "index.html").read_text()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--class-share", "0"], "class_share=0: must be above 0 and at most 1"),
        (["--class-share", "1.5"], "class_share=1.5: must be above 0"),
        (["--class-share", "nan"], "class_share=nan: must be above 0"),
        (["--apply", "a.csv", "--out", "new", "--class-share", "1"], "leave --class-share out"),
        (["--apply", "a.csv", "--out", "new", "--workers", "2"], "workers: has no effect with --apply"),
        (["--workers", "0"], "workers=0"),
    ],
)
def test_flags_that_cannot_be_are_refused(flags: list[str], said: str, trained: Run) -> None:
    with pytest.raises(ValueError, match=said):
        main([str(trained[0]), *flags])


def test_scores_that_are_not_finite_are_refused(
    trained: Run, evaluated_digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = audited_model(trained[0], evaluated_digits)
    entry_scores.opened_model.cache_clear()
    classifier, _ = entry_scores.opened_model(model)
    torch.nn.init.constant_(classifier.head.bias, float("nan"))  # type: ignore[arg-type]
    try:
        with pytest.raises(ValueError, match=r"the scores of image '.*' are not finite numbers"):
            observed_scores(model, open_folder(evaluated_digits).splits["validation"], in_this_process, lambda _: None)
    finally:
        entry_scores.opened_model.cache_clear()

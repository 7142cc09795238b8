"""Alpha chosen on validation: every step against loops with scikit-learn, and what the commands make of the choice."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import average_precision_score

import raypaml
from raypaml import aggregate, audit, evaluate, explain, export, predict
from raypaml.data.batches import Reader
from raypaml.data.data_folder import open_folder
from raypaml.evaluation import choosing
from raypaml.evaluation.choosing import alpha_table, choose_alpha
from raypaml.evaluation.measures import read_alphas
from raypaml.evaluation.parts import PredictionPart, PredictionSet, open_set, write_part
from raypaml.evaluation.result_records import Summary
from raypaml.evaluation.summary import table
from raypaml.inference.model_card import digest
from raypaml.labels import Vocabulary, class_groups
from raypaml.metrics.alpha_choice import FOLDS, SHRINKAGE, AlphaTable, candidates, fold_of_images
from raypaml.metrics.thresholds import sigmoid
from raypaml.run_report.conclude import add_chosen_alpha
from raypaml.runs import models as run_models
from raypaml.runs.alpha_of_use import AlphaChoice, ModelClasses, model_digest
from raypaml.runs.mirror import MARKER
from raypaml.runs.run_files import MODEL
from raypaml.runs.run_folder import stored_config
from raypaml.training.job import Job

K, IMAGES = 10, 60
BY_CLASS = [1 + k / 10 for k in range(50)]
"""Made-up alphas for the classes of digits."""
COUNTS = np.arange(K) + 10
GROUPS = class_groups(2 * COUNTS)
ALPHAS = [1.0, 2.2, 6.0, 20.0]


@pytest.fixture(autouse=True)
def _small_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "GRID", (1.0, 6.0, 20.0))  # and 2.2 of training; scikit-learn is slow


@dataclasses.dataclass
class Rows:
    """Entries of a made-up validation split whose best alpha differs by group; the last class has no positive."""

    image: np.ndarray
    k: np.ndarray
    positive: np.ndarray
    p: np.ndarray
    n: np.ndarray


def made_up(seed: int, noise: float = 1.0) -> Rows:
    rng = np.random.default_rng(seed)
    image, k = np.nonzero(rng.random((IMAGES, K)) < 0.8)
    positive = (rng.random(len(image)) < 0.4) & (k != K - 1)
    strength = np.array([3.0, 3.0, 0.2, 0.2, *[1.0] * (K - 4)])[k]  # how much P says of the label
    p = (np.abs(rng.normal(size=len(image))) + strength * positive).round(1).astype(np.float32)
    n = -np.abs(noise * rng.normal(size=len(image)) - positive).round(1).astype(np.float32)
    return Rows(image, k, positive, p, n)


def vocabulary() -> Vocabulary:
    ids = tuple(f"class {k}" for k in range(K))
    return Vocabulary(class_ids=ids, names=ids, train_positives=COUNTS, train_negatives=COUNTS)


def part_of(**change: Any) -> PredictionPart:
    known = {"split": "validation", "vocabulary": vocabulary().digest, "num_classes": K, "alpha": 2.2, "model": "m"}
    known |= {"data": "d", "unobserved": False, "samples": IMAGES, "parts": 1, "part": 0, "part_samples": IMAGES}
    return PredictionPart(**(known | change))


def table_of(rows: Rows, order: np.ndarray) -> pa.Table:
    columns = {"key": [f"image {i:03d}" for i in rows.image[order]], "class": rows.k[order]}
    return pa.table(columns | {"positive": rows.positive[order], "P": rows.p[order], "N": rows.n[order]})


def written(rows: Rows, folder: Path) -> PredictionSet:
    write_part(folder, part_of(), table_of(rows, np.arange(len(rows.image))))
    return open_set(folder)


def f1(positive: np.ndarray, said: np.ndarray) -> float:
    return float(2 * (positive & said).sum() / (positive.sum() + said.sum()))


def ap(rows: Rows, inside: np.ndarray, k: int, alpha: float) -> float:
    """scikit-learn's AP of one class on some images; nan without a positive."""
    mine = inside[rows.image] & (rows.k == k)
    if not rows.positive[mine].any():
        return float("nan")
    logits = np.float32(alpha) * rows.p[mine] + rows.n[mine]
    return float(average_precision_score(rows.positive[mine], logits))


SEEN: dict[bytes, dict[int, list[float]]] = {}


def _curves(rows: Rows, inside: np.ndarray) -> dict[int, list[float]]:
    """AP by class and alpha, once for each set of images."""
    known = rows.p.tobytes() + inside.tobytes()
    if known not in SEEN:
        SEEN[known] = {k: [ap(rows, inside, k, alpha) for alpha in ALPHAS] for k in range(K)}
    return SEEN[known]


def brute_alphas(rows: Rows, inside: np.ndarray, way: str) -> list[float]:
    """The alpha of each class by trying all of them, in plain loops."""
    curves = _curves(rows, inside)
    count = {k: int((rows.positive & inside[rows.image] & (rows.k == k)).sum()) for k in range(K)}
    known = [k for k in range(K) if count[k]]
    overall = [sum(curves[k][a] for k in known) / len(known) for a in range(len(ALPHAS))]

    def best(own: list[float], positives: int) -> float:
        curve = [(positives * x + SHRINKAGE * y) / (positives + SHRINKAGE) for x, y in zip(own, overall, strict=True)]
        return next(alpha for alpha, value in zip(ALPHAS, curve, strict=True) if value > max(curve) - 1e-9)

    if way == "training":
        return [2.2] * K
    if way == "one":
        return [best(overall, 0)] * K
    if way == "class":
        return [best(curves[k] if count[k] else overall, count[k]) for k in range(K)]
    found = []
    for k in range(K):
        mine = [other for other in known if GROUPS[other] == GROUPS[k]]
        own = [sum(curves[other][a] for other in mine) / max(1, len(mine)) for a in range(len(ALPHAS))]
        found.append(best(own, sum(count[other] for other in mine)))
    return found


def test_the_choice_is_that_of_loops_over_scikit_learn(tmp_path: Path) -> None:
    rows = made_up(0)
    found = candidates(alpha_table(written(rows, tmp_path), vocabulary(), 2.2))
    fold = fold_of_images(IMAGES)
    assert sorted(np.bincount(fold)) == [IMAGES // FOLDS] * FOLDS
    standing: list[float] = []
    for candidate in found:
        assert candidate.alpha.tolist() == brute_alphas(rows, np.ones(IMAGES, bool), candidate.way)
        figures = []
        for number in range(FOLDS):
            alphas = brute_alphas(rows, fold != number, candidate.way)
            curves = _curves(rows, fold == number)
            values = [curves[k][ALPHAS.index(alphas[k])] for k in range(K)]
            figures.append(np.nanmean(values))
        assert candidate.held_out == pytest.approx(np.mean(figures), abs=1e-12)
        gains = np.subtract(figures, standing or figures)
        noise = np.std(gains, ddof=1) / FOLDS**0.5
        assert (candidate.gain, candidate.noise) == pytest.approx((gains.mean(), noise), abs=1e-12)
        assert candidate.wins == (not standing or gains.mean() > noise)
        standing = figures if candidate.wins else standing


def test_groups_win_where_they_differ_and_the_simplest_where_nothing_does(tmp_path: Path) -> None:
    ap_by_alpha = np.tile(np.array([[0.5] * 4, [0.6, 0.4, 0.6, 0.4]]), (FOLDS, 1, 1))  # [F, A, K]
    positives = np.full((FOLDS, 4), 1000)
    group = np.array([1, 2, 1, 2])
    table = AlphaTable(np.array([1.0, 5.0]), 0, ap_by_alpha, ap_by_alpha, ap_by_alpha[0], positives, group)
    assert [(c.way, c.wins) for c in candidates(table)] == [
        ("training", True),
        ("one", False),
        ("group", True),
        ("class", False),  # no better than by group
    ]
    assert candidates(table)[2].alpha.tolist() == [5, 1, 5, 1]
    few = dataclasses.replace(table, positives=np.array([[0, 3, 0, 3]] * FOLDS))  # nothing known of group 1
    few.held_out[:, :, [0, 2]] = few.others[:, :, [0, 2]] = np.nan
    assert candidates(few)[2].alpha.tolist() == [1] * 4  # group 1 has that of all classes
    flat = dataclasses.replace(table, **{name: np.full_like(ap_by_alpha, 0.5) for name in ("held_out", "others")})
    assert [c.wins for c in candidates(flat)] == [True, False, False, False]


def test_nothing_is_chosen_without_positives() -> None:
    nothing = np.full((FOLDS, 2, 3), np.nan)
    none = np.zeros((FOLDS, 3), np.int64)
    table = AlphaTable(np.array([1.0, 5.0]), 1, nothing, nothing, nothing[0], none, np.array([1, 2, 3]))
    found = candidates(table)
    assert [c.wins for c in found] == [True, False, False, False]
    assert all(c.alpha.tolist() == [5] * 3 and np.isnan(c.held_out) for c in found)


def test_neither_the_order_of_rows_nor_their_files_matter(tmp_path: Path) -> None:
    rows = made_up(3)
    one = choose_alpha(written(rows, tmp_path / "one"), vocabulary(), part_of(), "0001-000000")
    mixed = np.random.default_rng(0).permutation(len(rows.image))
    for part, half in enumerate((rows.image[mixed] % 2 == 0, rows.image[mixed] % 2 == 1)):
        own = part_of(parts=2, part=part, part_samples=IMAGES // 2)
        write_part(tmp_path / "other", own, table_of(rows, mixed[half]))
    other = choose_alpha(open_set(tmp_path / "other"), vocabulary(), part_of(), "0001-000000")
    assert one == other


def test_thresholds_are_of_best_f1_at_the_chosen_alpha(tmp_path: Path) -> None:
    rows = made_up(0)
    choice = choose_alpha(written(rows, tmp_path), vocabulary(), part_of(), "0001-000000")
    assert choice.thresholds is not None
    assert choice.pooled_thresholds == [K - 1]  # without a positive
    alpha = np.broadcast_to(np.asarray(choice.alpha, np.float32), K)
    logits = alpha[rows.k] * rows.p + rows.n
    for k in range(K - 1):
        mine = rows.k == k
        reached = [f1(rows.positive[mine], logits[mine] >= t) for t in np.unique(logits[mine])]
        own = f1(rows.positive[mine], logits[mine] >= choice.thresholds[k])
        assert own == pytest.approx(max(reached), abs=1e-12)
    reached = [f1(rows.positive, logits >= t) for t in np.unique(logits)]
    assert f1(rows.positive, logits >= choice.thresholds[K - 1]) == pytest.approx(max(reached), abs=1e-12)
    assert choice.labels == "partial"
    assert choice.observed_share == pytest.approx(len(rows.image) / (IMAGES * K))


@pytest.mark.parametrize(("with_negatives", "said"), [(0, "cannot decide"), (1, "hardly decide"), (K, "")])
def test_labels_that_cannot_decide_are_said(with_negatives: int, said: str, tmp_path: Path) -> None:
    rows = made_up(0)
    kept = rows.positive | (rows.k < with_negatives)
    rows = Rows(*(getattr(rows, field.name)[kept] for field in dataclasses.fields(rows)))
    choice = choose_alpha(written(rows, tmp_path), vocabulary(), part_of(), "0001-000000")
    text = choosing.choice_text(choice, vocabulary())
    assert "decide" not in text if not said else said in text
    if with_negatives == 1:
        positives = (rows.positive & (rows.k == 0)).sum()
        negatives = (~rows.positive).sum()
        counts = f"({positives} positives and {negatives} negatives in them)"
        assert f"only 1 of {K} classes have both positives and negatives {counts}" in text
    if not with_negatives:
        kept_alpha = "Alpha of use 2.2: that of training, kept, for none was clearly better on validation ("
        assert kept_alpha in text
        choice.write(tmp_path / "choice.json")
        assert AlphaChoice.read(tmp_path / "choice.json", ModelClasses(vocabulary().digest, K)) == choice


# --- The commands -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chosen(trained: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run for which alpha was chosen by class: each class has its own, so that a mix-up of classes is seen."""
    run = shutil.copytree(trained[0], tmp_path_factory.mktemp("chosen") / "run")
    before, choices = json.loads((run / "result.json").read_text()), list[AlphaChoice]()

    def by_class(*arguments: Any) -> AlphaChoice:
        choices.append(choose_alpha(*arguments))
        return dataclasses.replace(choices[0], way="class", alpha=BY_CLASS, thresholds=np.linspace(-2, 1, 50).tolist())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choosing, "choose_alpha", by_class)
        assert evaluate.main([str(run), "--choose-alpha"]) == 0
    (choice,) = choices
    assert (choice.labels, choice.observed_share, choice.training_alpha) == ("complete", 1, 5)
    assert choice.model == model_digest(run_models.tested_checkpoint(run))
    after = json.loads((run / "result.json").read_text())
    assert {name: after[name] for name in before} == before  # the headline stays
    return run


def brute_test_ap(run: Path, alphas: list[float]) -> float:
    rows = pa.concat_tables([pq.read_table(part) for part in sorted((run / "predictions/test").glob("*.parquet"))])
    k, positive, p, n = (rows[name].to_numpy(zero_copy_only=False) for name in ("class", "positive", "P", "N"))
    logits = np.array(alphas, np.float32)[k] * p + n
    return float(np.mean([average_precision_score(positive[k == c], logits[k == c]) for c in np.unique(k)]))


def test_result_and_report_show_both(chosen: Path) -> None:
    result = json.loads((chosen / "result.json").read_text())
    assert result["chosen_alpha"]["alpha"] == BY_CLASS
    assert result["chosen_alpha"]["mean_ap"] == pytest.approx(brute_test_ap(chosen, BY_CLASS), abs=1e-12)
    assert result["mean_ap"] == pytest.approx(brute_test_ap(chosen, [5.0] * 50), abs=1e-12)
    assert result["validation_labels"] == "complete"
    text = table(result)
    assert "alpha 1 to 5.9 (alpha by class, chosen on validation (40 images, complete labels))" in text
    page = (chosen / "report.html").read_text()
    for figures in (result, result["chosen_alpha"]):
        assert f"{100 * figures['mean_ap']:.2f}" in text
        assert f"{100 * figures['mean_ap']:.2f}</td>" in page


def test_aggregate_gives_everything_at_the_chosen_alpha(
    chosen: Path, trained: tuple[Path, str], tmp_path: Path
) -> None:
    assert aggregate.main([str(chosen), "--alpha", "chosen", "--json", str(tmp_path / "a.json")]) == 0
    found = json.loads((tmp_path / "a.json").read_text())["runs"][0]
    assert found["alpha"] == BY_CLASS
    assert found["mean_ap"] == pytest.approx(brute_test_ap(chosen, BY_CLASS), abs=1e-12)
    with pytest.raises(ValueError, match=r"alpha=chosen: .*: none was chosen for these predictions; run raypaml"):
        aggregate.main([str(trained[0]), "--alpha", "chosen"])


def some_pictures(data: Path, folder: Path, count: int = 8) -> Path:
    opened = open_folder(data)
    reader = Reader(opened.shards, opened.splits["test"], ())
    folder.mkdir()
    for row in range(count):
        (folder / f"{opened.splits['test'].keys(np.array([row]))[0]}.jpg").write_bytes(reader._checked(row))
    return folder


def test_predict_answers_with_the_chosen_alpha_and_thresholds(
    chosen: Path, evaluated_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = some_pictures(evaluated_digits, tmp_path / "pictures")
    model = raypaml.load(chosen)
    assert model.alpha == BY_CLASS
    assert model.card.training_alpha == 5
    assert predict.main([str(chosen), str(pictures), "--out", str(tmp_path / "a.parquet")]) == 0
    said = capsys.readouterr().err
    assert "alpha 1 to 5.9: alpha by class, chosen on validation (40 images, complete labels)" in said
    assert "threshold: each class's best F1 on validation, at this alpha" in said
    rows = pa.concat_tables([pq.read_table(part) for part in sorted((chosen / "predictions/test").glob("*.parquet"))])
    wanted: dict[str, dict[str, float]] = {path.stem: {} for path in pictures.iterdir()}
    for row in rows.to_pylist():
        logit = np.float32(BY_CLASS[row["class"]]) * np.float32(row["P"]) + np.float32(row["N"])
        if row["key"] in wanted and logit >= np.linspace(-2, 1, 50)[row["class"]]:
            wanted[row["key"]][model.card.class_ids[row["class"]]] = float(sigmoid(np.array(logit)))
    found: dict[str, dict[str, float]] = {path.stem: {} for path in pictures.iterdir()}
    for row in pq.read_table(tmp_path / "a.parquet").to_pylist():
        if row["class"] is not None:
            found[Path(row["image"]).stem][row["class"]] = row["score"]
    for key, answers in wanted.items():
        assert found[key] == pytest.approx(answers, abs=2e-5)
    assert any(found.values())


def test_alpha_overrides_and_stale_choices_are_said(chosen: Path, tmp_path: Path) -> None:
    asked = raypaml.load(chosen, alpha=2.5)
    assert (asked.alpha, asked.card.thresholds, asked.card.alpha_origin) == (2.5, None, "as asked for")
    assert raypaml.load(chosen, alpha="training").alpha == 5
    one = dataclasses.replace(raypaml.load(chosen).card, alpha=3.0)
    assert one.at_alpha("3").thresholds == one.thresholds  # of this very alpha
    for wrong in ("0.5", "much", "nan"):
        with pytest.raises(
            ValueError, match=f"alpha={wrong}: expected a number of at least 1 and at most .*, or training or chosen"
        ):
            raypaml.load(chosen, alpha=wrong)
    run = shutil.copytree(chosen, tmp_path / "run")
    stored = json.loads((run / "alpha_of_use.json").read_text())
    (run / "alpha_of_use.json").write_text(json.dumps(stored | {"model": "0" * 64}))
    stale = raypaml.load(run)
    assert stale.alpha == 5
    assert stale.card.thresholds is None
    assert "alpha_of_use.json is of other weights (checkpoint " in stale.card.alpha_origin
    assert "run raypaml evaluate --choose-alpha again" in stale.card.alpha_origin
    config = stored_config(run)
    assert config is not None
    job = Job(config, open_folder(config.data.data), run)
    figures = cast("Summary", {})
    add_chosen_alpha(figures, job, open_set(run / "predictions" / "test"))
    assert figures["chosen_alpha"] is None
    assert "of other weights" in figures["chosen_alpha_unused"]
    (run / "alpha_of_use.json").write_text(json.dumps(stored | {"alpha": 0.5}))
    with pytest.raises(ValueError, match="not a choice of alpha"):
        raypaml.load(run)
    with pytest.raises(ValueError, match="split=test: alpha is chosen on validation alone"):
        evaluate.main([str(run), "--choose-alpha", "--split", "test"])


def raise_biases(checkpoint: Path, by: float) -> None:
    weights = load_file(checkpoint / MODEL)
    save_file(weights | {"head.bias": weights["head.bias"] + by}, checkpoint / MODEL)
    marker = json.loads((checkpoint / MARKER).read_text()) | {MODEL: digest(checkpoint / MODEL)}
    (checkpoint / MARKER).write_text(json.dumps(marker))


def test_a_named_checkpoint_has_a_choice_of_its_own(chosen: Path, tmp_path: Path) -> None:
    run = shutil.copytree(chosen, tmp_path / "run")
    best, stored = run_models.tested_checkpoint(run), (run / "alpha_of_use.json").read_bytes()
    other = shutil.copytree(best, best.with_name("0009-000000"))  # no better than the best, which is earlier
    raise_biases(other, 0.1)
    assert evaluate.main([str(other), "--choose-alpha"]) == 0
    assert (run / "alpha_of_use.json").read_bytes() == stored
    assert (
        raypaml.load(other).card.alpha_origin
        == AlphaChoice.read(run / f"alpha_of_use-{other.name}.json", ModelClasses.of(other)).said
    )
    assert raypaml.load(run).alpha == BY_CLASS
    assert evaluate.main([str(best), "--choose-alpha"]) == 0
    assert (run / "alpha_of_use.json").read_bytes() != stored  # the best one's is the run's


def test_a_run_without_a_choice_is_as_before(trained: tuple[Path, str]) -> None:
    model = raypaml.load(trained[0])
    assert (model.alpha, model.card.thresholds, model.card.alpha_origin) == (5.0, None, "that of training")
    assert "chosen_alpha" not in json.loads((trained[0] / "result.json").read_text())


def test_an_export_contains_it(chosen: Path, tmp_path: Path) -> None:
    assert export.main([str(chosen), "--out", str(tmp_path), "--formats", "safetensors"]) == 0
    model = raypaml.load(tmp_path)
    assert model.alpha == BY_CLASS
    assert model.card.thresholds == raypaml.load(chosen).card.thresholds
    images = list(np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8))
    logits, maps = raypaml.load(chosen).logits_and_map(images)
    np.testing.assert_allclose(raypaml.boostlu(torch.from_numpy(maps), BY_CLASS).mean((-2, -1)), logits, atol=1e-4)
    np.testing.assert_array_equal(model.logits(images), raypaml.load(chosen).logits(images))
    assert raypaml.load(tmp_path, alpha="training").alpha == 5
    assert export.main([str(tmp_path), "--out", str(tmp_path / "again"), "--formats", "safetensors"]) == 0
    again = raypaml.load(tmp_path / "again")  # an export of an export
    assert (again.alpha, again.card.training_alpha) == (BY_CLASS, 5)


@pytest.fixture
def raised(chosen: Path, trained: tuple[Path, str], tmp_path: Path) -> tuple[Path, Path]:
    """The run and a copy without a choice, their maps raised, for a young model's hardly are positive anywhere."""
    run, full = shutil.copytree(chosen, tmp_path / "run"), shutil.copytree(trained[0], tmp_path / "full")
    for folder in (run, full):
        raise_biases(run_models.tested_checkpoint(folder), 0.3)
    stored = json.loads((run / "alpha_of_use.json").read_text())
    stored["model"] = model_digest(run_models.tested_checkpoint(run))
    (run / "alpha_of_use.json").write_text(json.dumps(stored))
    return run, full


def test_explain_uses_it_and_reports_raw_and_boosted(raised: tuple[Path, Path]) -> None:
    chosen, full = raised
    assert explain.main([str(chosen), "--against", str(full), "--limit", "6", "--rows", "1"]) == 0
    folder = chosen / "explanations" / "test-against-full"
    found = json.loads((folder / "explanations.json").read_text())
    assert found["alpha"]["full"] == {"alpha": 5.0, "origin": "that of training"}
    assert found["alpha"]["run"]["alpha"][3] == 1.3
    assert found["rank_correlation"]["p50"] == pytest.approx(1)  # the same weights
    assert found["scale_ratio"] == pytest.approx(1)
    with (folder / "pairs.csv").open(newline="") as file:
        pairs = list(csv.DictReader(file))
    model = raypaml.load(chosen)
    index = open_folder(stored_config(chosen).data.data).splits["test"]  # type: ignore[union-attr]
    reader = Reader(open_folder(stored_config(chosen).data.data).shards, index, ())  # type: ignore[union-attr]
    logits, maps = model.logits_and_map([reader.image(0)])
    assert 0.1 < (maps > 0).mean() < 0.9
    first = index.keys(np.array([0]))[0]
    checked = [pair for pair in pairs if pair["key"] == first]
    assert len(checked) == 50
    for pair in checked:
        k = model.card.class_ids.index(pair["class_id"])
        for alpha, column in ((1 + k / 10, "top_boosted"), (5.0, "top_other_boosted"), (1.0, "top")):
            values = np.sort(np.where(maps[0, k] > 0, alpha * maps[0, k], maps[0, k]).ravel())
            assert float(pair[column]) == pytest.approx(values[-round(0.05 * values.size) :].mean(), abs=1e-4)
        assert float(pair["score"]) == pytest.approx(float(sigmoid(logits[0, k : k + 1])[0]), abs=1e-4)
    positive = [pair for pair in pairs if pair["positive"] == "true"]
    medians = [np.median([float(pair[name]) for pair in positive]) for name in ("top_boosted", "top_other_boosted")]
    assert found["scale_ratio_boosted"] == pytest.approx(medians[0] / medians[1], rel=1e-4)
    assert "alpha by class, chosen on validation" in (folder / "explanations.html").read_text()


def test_boostlu_takes_an_alpha_for_each_class() -> None:
    cam = torch.tensor([[[[-2.0, 3.0]], [[4.0, 0.0]]]])
    for alphas in ([1.0, 5.0], (1.0, 5.0), np.array([1.0, 5.0]), torch.tensor([1.0, 5.0])):
        assert raypaml.boostlu(cam, alphas).tolist() == [[[[-2, 3]], [[20, 0]]]]
    with pytest.raises(ValueError, match="alpha: 3 values for 2 classes; give one for each, or one for all"):
        raypaml.boostlu(cam, [1, 2, 3])
    with pytest.raises(ValueError, match=r"alpha=0\.5: BoostLU needs alpha >= 1"):
        raypaml.boostlu(cam, [1, 0.5])


def test_training_and_chosen_are_understood_by_all(chosen: Path, trained: tuple[Path, str], tmp_path: Path) -> None:
    assert raypaml.load(chosen, alpha="chosen").card == raypaml.load(chosen).card
    assert export.main([str(chosen), "--out", str(tmp_path / "a"), "--formats", "safetensors"]) == 0
    assert raypaml.load(tmp_path / "a", alpha="chosen").alpha == BY_CLASS
    asked = [str(chosen), "--out", str(tmp_path / "b"), "--formats", "safetensors", "--alpha", "training"]
    assert export.main(asked) == 0
    for model, said in ((tmp_path / "b", "this model's alpha was not chosen on validation"), (trained[0], "was not")):
        with pytest.raises(ValueError, match=f"^alpha=chosen: .*{said}.* evaluate RUN --choose-alpha"):
            raypaml.load(model, alpha="chosen")
    with pytest.raises(ValueError, match=r"^alpha=chosen: .*: none was chosen for these weights; run raypaml evaluate"):
        explain.main([str(trained[0]), "--alpha", "chosen"])
    assert aggregate.main([str(chosen), "--alpha", "training", "--json", str(tmp_path / "a.json")]) == 0
    assert json.loads((tmp_path / "a.json").read_text())["runs"][0]["alpha"] == 5


def test_a_curve_over_too_many_alphas_is_refused() -> None:
    assert read_alphas("1:1000") == (None, tuple(float(alpha) for alpha in range(1, 1001)))
    assert read_alphas("1.5:3") == (None, (1.5, 2.5))
    for text, said in (
        ("1:1001", "at most 1,000 values"),
        ("1:1e300", "at most 1,000 values"),
        ("1:inf", "expected A or A:B, such as .* training or chosen"),
        ("2:1", "B >= A"),
    ):
        with pytest.raises(ValueError, match=said):
            read_alphas(text)


def test_audit_scores_with_it(chosen: Path) -> None:
    chosen_one = raypaml.load(chosen).alpha
    for flags, alpha in (([], chosen_one), (["--alpha", "training"], 5.0), (["--alpha", "chosen"], chosen_one)):
        assert audit.main([str(chosen), "--top", "5", *flags]) == 0
        assert json.loads((chosen / "audit" / "audit.json").read_text())["alpha"] == alpha

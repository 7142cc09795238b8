"""Pseudo labels: what a file may say, the table that workers share, the runs that use it, and the published loss."""

from __future__ import annotations

import dataclasses
import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import average_precision_score

from raypaml import train, tune
from raypaml.cluster.checks import examine
from raypaml.config import TrainConfig
from raypaml.data.data_folder import DataFolder, open_folder
from raypaml.data.digits import digits_folder
from raypaml.data.score_table import open_scores, write_scores
from raypaml.labels import NEGATIVE, POSITIVE, UNOBSERVED, Vocabulary
from raypaml.losses import formulas
from raypaml.losses.pseudo_label_losses import pseudo_labels_of
from raypaml.losses.scheme_losses import StepContext, regularised, scheme_loss
from raypaml.losses.schemes import SCHEMES, passed_over, read_settings
from raypaml.recipes import recipe
from raypaml.runs import pseudo_labels
from raypaml.runs.pseudo_label_file import read_pseudo_labels
from raypaml.runs.pseudo_labels import open_pseudo_labels, with_pseudo_labels
from raypaml.runs.run_folder import claim
from raypaml.search.search_flags import passed_over_by_trials, plan_search
from raypaml.settings import LossConfig
from raypaml.training.job import plan_job, prepare_job
from raypaml.training.scheme_state import PseudoScores
from tests.test_loop import config, history, train_here
from tests.test_sharding_s3 import running
from tools.papers import compare_schemes

HOW = "losses/README.md"


@pytest.fixture(scope="module")
def data(tiny_digits: Path) -> DataFolder:
    return open_folder(tiny_digits)


def keys_of(data: DataFolder) -> list[str]:
    index = data.splits["train"]
    return index.keys(np.arange(len(index)))


def write_csv(path: Path, *rows: str, header: str = "key,class,score") -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def write_parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


# --- The file ---------------------------------------------------------------------------------------------------------


def test_scores_are_read_by_key_and_class_and_all_else_is_counted(data: DataFolder, tmp_path: Path) -> None:
    keys, ids, names = keys_of(data), data.vocabulary.class_ids, data.vocabulary.names
    rows = [f"{keys[3]},{ids[7]},0.25", f"{keys[0]},{names[1]},1", f"{keys[3]},{ids[2]},0", f"{keys[3]},{ids[7]},0.25"]
    rows += [f"nobody,{ids[0]},0.5", f"{keys[1]},unicorn,0.5", f"{keys[1]},{ids[0]},", f",{ids[0]},0.5"]
    path = write_csv(tmp_path / "a.csv", *rows)
    found = read_pseudo_labels(path, str(path), data)
    k = len(ids)
    assert dict(zip(found.cells.tolist(), found.scores.tolist(), strict=True)) == {
        1: 1.0,
        3 * k + 2: 0.0,
        3 * k + 7: 0.25,
    }
    assert found.about.startswith(
        "3 scores, of 2 of 96 training images and 3 of 50 classes; 94 images have none; skipped"
    )
    for part in (
        "1 rows of keys that are not in the training split (such as 'nobody')",
        "1 rows of classes that are not in the vocabulary (such as 'unicorn')",
        "1 rows without a score",
        "1 rows with a score but without key or class",
        "1 rows that are there twice",
    ):
        assert part in found.about


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "tsv", "parquet"])
def test_every_form_of_file_says_the_same(suffix: str, data: DataFolder, tmp_path: Path) -> None:
    keys, ids = keys_of(data)[:20], data.vocabulary.class_ids[:10]
    scores = np.random.default_rng(0).random((20, 10)).round(4)
    cells = [(key, each, scores[row, k]) for row, key in enumerate(keys) for k, each in enumerate(ids)]
    path = tmp_path / f"scores.{suffix}"
    if suffix == "parquet":
        key, name, score = zip(*cells, strict=True)
        write_parquet(path, Score=score, other=[None] * 200, **{"class": pa.array(name).dictionary_encode()}, key=key)
    else:
        sign = "\t" if suffix == "tsv" else ","
        text = "\n".join(sign.join([f"{score:g}", "x", key, f'"{each}"']) for key, each, score in cells)
        text = f"\ufeff{sign.join(['score', 'other', 'key', 'class'])}\r\n{text}"
        path.write_bytes(gzip.compress(text.encode()) if suffix == "csv.gz" else text.encode())
    found = read_pseudo_labels(path, str(path), data)
    np.testing.assert_array_equal(found.cells, (np.arange(20)[:, None] * 50 + np.arange(10)).ravel())
    np.testing.assert_array_equal(found.scores, scores.ravel().astype(np.float32))


FAULTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda folder: folder / "no.csv", "cannot be read: No such file"),
    "a folder": (lambda folder: folder, "cannot be read"),
    "columns": (
        lambda f: write_csv(f / "a.csv", "1,2", header="key,label"),
        "no column class, score; it has key, label",
    ),
    "columns of parquet": (lambda f: write_parquet(f / "a.parquet", key=["a"]), f"no column class, score.*{HOW}"),
    "twice": (lambda f: write_csv(f / "a.csv", header="key,class,SCORE,Score"), "several columns are called score"),
    "above 1": (
        lambda f: write_csv(f / "a.csv", "a,b,0.5", "a,c,1.5"),
        r"1 scores are not within 0 and 1, such as 1\.5",
    ),
    "row": (lambda f: write_csv(f / "a.csv", "a,b,0.5", "a,c,-2"), "-2.0 in row 2. Make probabilities of logits"),
    "NaN": (lambda f: write_csv(f / "a.csv", "a,b,nan"), "nan in row 1"),
    "a little over 1": (lambda f: write_csv(f / "a.csv", "a,b,1.0000001"), "such as 1.0000001 in row 1"),
    "infinite": (lambda f: write_csv(f / "a.csv", "a,b,inf"), "inf in row 1"),
    "text for a score": (
        lambda f: write_csv(f / "a.csv", "a,b,0.5", "a,c,high"),
        "score 'high' in row 2 is no number; give one from 0 to 1, or leave the field empty",
    ),
    "a word for no score": (lambda f: write_csv(f / "a.csv", "a,b,NA"), "score 'NA' in row 1 is no number"),
    "a binary file": (lambda f: write_csv(f / "a.csv", header="\x00\x1bP"), r"it has '\\x00\\x1bP'\. "),
    "no byte": (lambda f: write_csv(f / "a.csv", header=""), "it has ''"),
    "a key of two lines": (lambda f: write_csv(f / "a.csv", '"a\nb",c,1'), r"such as 'a\\nb'"),
    "a blank": (lambda f: write_csv(f / "a.csv", "a, c,1"), "such as ' c'"),
    "a short row": (lambda f: write_csv(f / "a.csv", "a,b"), "cannot be read: .*[Ee]xpected 3 columns, got 2"),
    "text in parquet": (
        lambda f: write_parquet(f / "a.parquet", key=["a"], score=["0.5"], **{"class": ["b"]}),
        "column score holds string; expected numbers from 0 to 1",
    ),
    "lists": (
        lambda f: write_parquet(f / "a.parquet", key=["a"], score=[0.5], **{"class": [["b"]]}),
        r"column class holds list<.*>; expected text or whole numbers",
    ),
    "no parquet": (lambda f: write_csv(f / "a.parquet", "a,b,1"), "cannot be read"),
    "empty": (lambda f: write_csv(f / "a.csv"), "none of its 0 rows is about the training split"),
    "other data": (
        lambda f: write_csv(f / "a.csv", "a,b,1"),
        "none of its 1 rows .*such as 'a'.*; its keys are such as",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_read_is_refused_by_name(fault: str, data: DataFolder, tmp_path: Path) -> None:
    make, said = FAULTS[fault]
    path = make(tmp_path)
    with pytest.raises(ValueError, match=rf"pseudo_labels={path}: .*{said}"):
        with_pseudo_labels(config(scheme="gpr", pseudo_labels=str(path)), data, lambda _: None)


def test_an_entry_with_two_scores_and_a_name_of_two_classes_are_refused(data: DataFolder, tmp_path: Path) -> None:
    key, ids = keys_of(data)[0], data.vocabulary.class_ids
    path = write_csv(tmp_path / "a.csv", f"{key},{ids[4]},0.5", f"{key},{ids[4]},0.75")
    with pytest.raises(
        ValueError, match=rf"1 entries have two scores, such as key {key}, class {ids[4]}: 0.5 and 0.75"
    ):
        read_pseudo_labels(path, "a.csv", data)
    names = ("both", "both", *data.vocabulary.names[2:])
    twins: Vocabulary = dataclasses.replace(data.vocabulary, names=names)
    path = write_csv(tmp_path / "b.csv", f"{key},both,0.5")
    with pytest.raises(ValueError, match="several classes are called both; give their ids"):
        read_pseudo_labels(path, "b.csv", dataclasses.replace(data, vocabulary=twins))


def test_what_predict_says_of_shards_is_read_as_it_is(data: DataFolder, tmp_path: Path) -> None:
    keys, shard = keys_of(data), data.splits["train"].shards[0]
    other = "validation-000000.tar"
    rows = [f"/somewhere/{shard}/{keys[2]}.jpg,{data.vocabulary.class_ids[5]},a name,0.75"]
    rows += [f"/somewhere/{other}/{keys[2]}.jpg,{data.vocabulary.class_ids[5]},a name,0.5", f"{keys[3]}.jpg,x,x,0.5"]
    path = write_csv(tmp_path / "a.csv", *rows, header="image,class,name,score")
    found = read_pseudo_labels(path, "a.csv", data)
    assert found.cells.tolist() == [2 * 50 + 5]
    assert "2 rows of pictures (TAR/KEY.jpg) that are not in the training split" in found.about


# --- The table --------------------------------------------------------------------------------------------------------


def test_a_table_is_the_dense_matrix_of_any_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    dense = np.where(rng.random((40, 9)) < 0.3, rng.random((40, 9)).astype(np.float32), np.float32(np.nan))
    cells = np.flatnonzero(~np.isnan(dense))
    write_scores(tmp_path / "a.arrow", cells, dense.ravel()[cells], 40, 9, "said")
    table = open_scores(tmp_path / "a.arrow", 40, 9)
    assert table.about == "said"
    rows = np.array([39, 0, 7, 7, 12])
    np.testing.assert_array_equal(table.scores(rows), dense[rows])
    assert table.scores(rows[:0]).shape == (0, 9)
    with pytest.raises(ValueError, match="not a table of the scores of 41 samples; delete it"):
        open_scores(tmp_path / "a.arrow", 41, 9)
    (tmp_path / "a.arrow").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.arrow: cannot be read \(.*delete it, it is made again"):
        open_scores(tmp_path / "a.arrow", 40, 9)


def test_a_table_of_open_images_size_stays_sparse(tmp_path: Path) -> None:
    samples, classes = 3_660_000, 5_000
    cells = np.arange(0, samples * classes, 50_000_000)
    write_scores(tmp_path / "a.arrow", cells, np.full(len(cells), 0.5, np.float32), samples, classes, "")
    assert (tmp_path / "a.arrow").stat().st_size < 8 * samples + 10_000 + 8 * len(cells)
    scores = open_scores(tmp_path / "a.arrow", samples, classes).scores(np.array([10_000, 10_001, samples - 10_000]))
    assert np.nan_to_num(scores, nan=-1).max(1).tolist() == [0.5, -1, 0.5]


# --- Runs -------------------------------------------------------------------------------------------------------------


def test_a_run_keeps_to_its_file_wherever_that_lies(data: DataFolder, tmp_path: Path) -> None:
    key, ids = keys_of(data)[0], data.vocabulary.class_ids
    path = write_csv(tmp_path / "a.csv", f"{key},{ids[0]},0.5")
    said: list[str] = []
    settings = config(
        scheme="gpr",
        pseudo_labels=str(path),
        data=str(data.path),
        storage=str(tmp_path / "runs"),
        name="run",
        workers=1,
    )
    job = prepare_job(settings, said.append)
    claim(job.folder, job.config, data)
    assert said[0].startswith(f"pseudo labels {path}: 1 scores, of 1 of 96 training images")
    assert len(job.config.loss.pseudo_labels_sha256) == 64
    moved = tmp_path / "b.csv"
    shutil.copy(path, moved)
    prepare_job(job.config.override({"pseudo_labels": str(moved)}), said.append)  # the same content
    prepare_job(settings, said.append)
    write_csv(path, f"{key},{ids[0]},0.6")
    with pytest.raises(
        ValueError, match=r"SHA-256 .* with which the run was begun; give the same file, or for a new run another"
    ):
        prepare_job(job.config, said.append)
    with pytest.raises(ValueError, match="the run was started with pseudo_labels_sha256="):
        prepare_job(settings, said.append)


def test_a_scheme_that_needs_pseudo_labels_says_so_and_others_refuse_them(data: DataFolder) -> None:
    with pytest.raises(ValueError, match=f"scheme=gpr needs pseudo labels: give --pseudo-labels FILE.*{HOW}"):
        with_pseudo_labels(config(scheme="gpr"), data, lambda _: None)
    with pytest.raises(ValueError, match=r"pseudo_labels=a\.csv: scheme an takes none; these do: gpr"):
        config(scheme="an", pseudo_labels="a.csv").check()
    with pytest.raises(
        ValueError, match="pseudo_labels_sha256: there is no file it belongs to; give --pseudo-labels FILE too"
    ):
        config(scheme="gpr", pseudo_labels_sha256="ab").check()


def test_a_file_given_over_a_stored_configuration_wins_and_another_scheme_has_none(
    data: DataFolder, tmp_path: Path
) -> None:
    values = {"scheme": "gpr", "pseudo_labels": "a.csv", "pseudo_labels_sha256": "ab" * 32}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"config": recipe("digits").override(values).to_dict()}))

    def loss_of(*flags: str) -> LossConfig:
        return train.parse(["--config", str(path), *flags])[0].loss

    assert (loss_of().pseudo_labels, loss_of().pseudo_labels_sha256) == ("a.csv", "ab" * 32)
    other = loss_of("--pseudo-labels", "b.csv")
    assert (other.pseudo_labels, other.pseudo_labels_sha256) == ("b.csv", "")
    assert loss_of("--pseudo-labels", "b.csv", "--pseudo-labels-sha256", "cd").pseudo_labels_sha256 == "cd"
    left = loss_of("--scheme", "ll_r")
    assert (left.pseudo_labels, left.pseudo_labels_sha256) == ("", "")


def test_schemes_are_compared_that_have_no_use_for_pseudo_labels_or_for_a_setting(
    data: DataFolder, tmp_path: Path
) -> None:
    flags = ["--scheme", "gpr", "--pseudo-labels", "a.csv", "--pseudo-labels-sha256", "ab", "--data", str(data.path)]
    flags += ["--scheme-settings", "top=4,q3=2", "--storage", str(tmp_path)]
    _, asked = tune.parse([*flags, "--search", "scheme=gpr|gr|ll_r"])
    search = plan_search(asked.settings, asked.base, data)
    parser = compare_schemes.arguments()
    compared = parser.parse(["--storage", str(tmp_path), "--", *flags[2:]])
    wanted = {"gpr": ("a.csv", "ab", "top=4,q3=2"), "gr": ("", "", "q3=2"), "ll_r": ("", "", "")}
    for scheme, (file, digest, settings) in wanted.items():
        for found in (search.with_values({"scheme": scheme}), compare_schemes.run_config(compared, scheme, 1.0, 0)):
            assert (found.loss.pseudo_labels, found.loss.pseudo_labels_sha256) == (file, digest)
            assert read_settings(scheme, found.loss.scheme_settings) == read_settings(scheme, settings)
    assert passed_over_by_trials(search) == [
        "pseudo_labels=a.csv: not used by gr, ll_r",
        "scheme_settings top=4: not used by gr, ll_r, which have no such setting",
        "scheme_settings q3=2: not used by ll_r, which have no such setting",
    ]
    with pytest.raises(ValueError, match="none of gr, ll_r has such a setting"):
        list(passed_over(["gr", "ll_r"], *compare_schemes.given_to_all(["--scheme-settings=tpo=4"])))


@pytest.mark.cluster
def test_a_file_in_a_store_is_read_as_one_here(data: DataFolder, tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    path = noisy_truth(data, tmp_path / "bucket" / "a.parquet", 0.1)
    here = with_pseudo_labels(gpr_config(path), data, lambda _: None)
    with running(tmp_path / "bucket", 0.1) as store:
        there = gpr_config(path, pseudo_labels=store.address("images/a.parquet"), cache=str(tmp_path / "cache"))
        found = with_pseudo_labels(there, data, lambda _: None)
        with pytest.raises(ValueError, match=r"pseudo_labels=.*b\.parquet.*: cannot be read"):
            with_pseudo_labels(there.override({"pseudo_labels": store.address("images/b.parquet")}), data, print)
    assert found.loss.pseudo_labels_sha256 == here.loss.pseudo_labels_sha256
    rows = np.arange(96)
    one, two = (open_pseudo_labels(settings, data).scores(rows) for settings in (here, found))
    np.testing.assert_array_equal(one, two)
    assert [each.suffix for each in sorted((tmp_path / "cache" / "pseudo_labels").iterdir())] == [".arrow", ".lock"]


def test_a_compressed_file_in_a_store_is_unpacked(
    data: DataFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"key,class,score\n{keys_of(data)[0]},{data.vocabulary.class_ids[0]},0.5"
    monkeypatch.setattr(pseudo_labels, "copy", lambda _, target, __: target.write_bytes(gzip.compress(text.encode())))
    settings = gpr_config(tmp_path, pseudo_labels="s3://bucket/a.csv.gz?region=us-east-1", cache=str(tmp_path))
    assert open_pseudo_labels(with_pseudo_labels(settings, data, print), data).scores(np.arange(1))[0, 0] == 0.5


def test_plan_and_doctor_look_at_the_file(data: DataFolder, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", f"{keys_of(data)[0]},{data.vocabulary.class_ids[0]},0.5")
    settings = config(scheme="gpr", pseudo_labels=str(path), data=str(data.path), storage=str(tmp_path))
    said: list[str] = []
    assert "scores of pseudo labels" in plan_job(settings, said.append)
    assert any("1 scores, of 1 of 96" in line for line in said)
    assert any("1 scores, of 1 of 96" in str(finding) for finding in examine(settings, 0.0, 24.0))
    write_csv(path, "a,b,3")
    assert any("not within 0 and 1" in str(finding) for finding in examine(settings, 0.0, 24.0))


def test_runs_from_before_have_none() -> None:
    stored = config(scheme="gr").to_dict()
    del stored["loss"]["pseudo_labels"], stored["loss"]["pseudo_labels_sha256"]
    assert TrainConfig.from_dict(stored) == config(scheme="gr")


def noisy_truth(data: DataFolder, path: Path, noise: float, seed: int = 0) -> Path:
    """Scores of all entries: 0.8 where the truth is positive, else 0.2; a share of them is of another image."""
    index, rng = data.splits["train"], np.random.default_rng(seed)
    truth = index.truth(np.arange(len(index))) == POSITIVE
    others = truth[rng.permutation(len(truth))]
    scores = np.where(np.where(rng.random(truth.shape) < noise, others, truth), 0.8, 0.2)
    key, name = np.repeat(keys_of(data), truth.shape[1]), np.tile(data.vocabulary.class_ids, len(truth))
    return write_parquet(path, key=key, score=scores.ravel(), **{"class": name})


def gpr_config(path: Path, **values: Any) -> TrainConfig:
    usual = {"scheme": "gpr", "pseudo_labels": str(path), "checkpoint_steps": 1, "scheme_settings": "top=20"}
    return config(**usual | values)


def test_good_pseudo_labels_help_a_linear_classifier(tmp_path: Path) -> None:
    """The same scheme and the same labels, one positive an image, with scores of the truth and of other images."""
    rng = np.random.default_rng(0)
    direction, features = rng.normal(size=(16, 10)), rng.normal(size=(800, 16))
    truth = features @ direction > 3
    truth[np.arange(800), (features @ direction).argmax(1)] = True
    labels = torch.full((400, 10), UNOBSERVED, dtype=torch.int8)
    labels[torch.arange(400), torch.tensor([rng.choice(np.flatnonzero(row)) for row in truth[:400]])] = POSITIVE
    found = []
    for shown in (truth[:400], truth[rng.permutation(400)]):
        scores = np.where(shown ^ (rng.random(shown.shape) < 0.05), 0.8, 0.2).astype(np.float32)
        write_scores(tmp_path / "a.arrow", np.arange(4000), scores.ravel(), 400, 10, "")
        state = PseudoScores(open_scores(tmp_path / "a.arrow", 400, 10), truth.sum() / 800)
        head = torch.nn.Linear(16, 10)
        optimizer = torch.optim.Adam(head.parameters(), 0.05)
        for step in range(100):
            at = StepContext(
                epoch=step // 10,
                epochs=10,
                global_rows=400,
                settings={"top": 10.0},
                known=state.known(np.arange(400), labels),
            )
            loss, _ = scheme_loss("gpr", head(torch.from_numpy(features[:400]).float()), labels, at)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        logits = head(torch.from_numpy(features[400:]).float()).detach().numpy()
        found.append(average_precision_score(truth[400:], logits))
    assert found[0] > found[1] + 0.05


@pytest.mark.cluster
def test_good_pseudo_labels_help_on_pictures(tmp_path: Path) -> None:
    scenes = digits_folder(num_scenes={"train": 400, "validation": 150, "test": 40})
    data, found = open_folder(scenes), []
    for noise in (0.1, 1.0):
        settings = gpr_config(noisy_truth(data, tmp_path / f"{noise}.parquet", noise), epochs=12, lr=8e-3)
        settings = with_pseudo_labels(settings, data, lambda _: None)
        assert train_here(0, 1, settings, scenes, tmp_path / f"{noise}", None)
        found.append(history(tmp_path / f"{noise}")[-1]["validation_mean_ap"])
    assert found[0] > 1.3 * found[1]


def test_every_worker_opens_the_same_table(data: DataFolder, tmp_path: Path) -> None:
    path = noisy_truth(data, tmp_path / "a.parquet", 0.0)
    settings = with_pseudo_labels(gpr_config(path), data, lambda _: None)
    path.unlink()  # not read again
    rows = np.array([5, 1])
    truth = data.splits["train"].truth(rows) == POSITIVE
    np.testing.assert_allclose(open_pseudo_labels(settings, data).scores(rows), np.where(truth, 0.8, 0.2), rtol=1e-6)


# --- The published loss -----------------------------------------------------------------------------------------------

PUBLISHED: dict[str, tuple[int, float, Any, dict[int, tuple[float, float]]]] = {
    "VOC": (
        20,
        0.01,
        [(1, 17), (3, 6), (4, 3), (5, 14)],
        {
            0: (0.5632161869039306, 0.0186409721270233),
            4: (0.5371819727394728, 0.01734360050230564),
            7: (0.41327428140546935, 0.016641384970915045),
        },
    ),
    "COCO": (
        80,
        0.01,
        [(0, 3), (3, 64), (5, 40)],
        {
            0: (0.518467833200345, 0.005966624571693589),
            4: (0.34933572481321745, 0.006639765239727623),
            7: (0.2623895194644505, 0.005760405797104382),
        },
    ),
    "NUS-WIDE": (
        81,
        0.01,
        [(1, 66)],
        {
            0: (0.5316502631095533, 0.006342750968422925),
            4: (0.38229897178502, 0.006935259796988451),
            9: (0.2718615252887915, 0.0061458558204621665),
        },
    ),
    "CUB": (
        312,
        0.1,
        [16, 21, 12, 12, 19, 16],
        {
            0: (0.4361978004548991, 0.0017892833845164593),
            4: (0.2928882674561122, 0.0021419800222228056),
            9: (0.23118750767719248, 0.002505591253991724),
        },
    ),
}
"""By data set, what AEVLP's own functions gave on the inputs below: classes, temperature, the pseudo-positives (of CUB
their number), and by epoch the loss and the Euclidean norm of its gradient."""


def published_inputs(num_classes: int, temperature: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits and labels of a batch, and scores: the mean of the softmax over similarities of two views."""
    rng, rows = torch.Generator().manual_seed(17), 6
    logits = 2 * torch.randn((rows, num_classes), generator=rng, dtype=torch.float64) - 1
    labels = torch.full((rows, num_classes), UNOBSERVED, dtype=torch.int8)
    labels[torch.arange(rows), torch.randint(0, num_classes, (rows,), generator=rng)] = POSITIVE
    similarity = 0.03 * torch.randn((2 * rows, num_classes), generator=rng, dtype=torch.float64)
    likely = torch.randint(0, num_classes, (rows, 1), generator=rng)
    similarity[:rows].scatter_add_(1, likely, torch.full((rows, 1), 0.05, dtype=torch.float64))
    noise = torch.randn((rows, num_classes), generator=rng, dtype=torch.float64)
    similarity[rows:] = similarity[:rows] + 0.002 * noise
    views = torch.softmax(similarity / temperature, -1)
    return logits, labels, (views[:rows] + views[rows:]) / 2


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings_give_the_published_loss(name: str) -> None:
    num_classes, temperature, positives, by_epoch = PUBLISHED[name]
    published = SCHEMES["gpr"].published_for(name)
    given = {key: float(value) for key, value in published.items() if key in SCHEMES["gpr"].defaults}
    settings = SCHEMES["gpr"].defaults | given
    logits, labels, scores = published_inputs(num_classes, temperature)
    pseudo = pseudo_labels_of(scores, settings["threshold"], int(settings["top"]), 0.0) == POSITIVE
    assert (pseudo.sum(1).tolist() if name == "CUB" else [tuple(at) for at in pseudo.nonzero().tolist()]) == positives
    for epoch, (loss, norm) in by_epoch.items():
        known = {"scores": scores, "expected": 0.0}
        epochs = int(published["epochs"])
        at = StepContext(epoch=epoch, epochs=epochs, global_rows=len(logits), settings=given, known=known)
        leaf = logits.clone().requires_grad_()
        value, _ = scheme_loss("gpr", leaf, labels, at)
        value.backward()
        assert value.item() == pytest.approx(loss, rel=1e-9)
        assert leaf.grad.norm().item() == pytest.approx(norm, rel=1e-9)


def test_pseudo_negatives_cost_what_the_published_function_has_for_them() -> None:
    """AEVLP's function, given the pseudo labels -1 that the rest of its code never makes."""
    logits = torch.randn((3, 5), generator=torch.Generator().manual_seed(18), dtype=torch.float64).requires_grad_()
    labels = torch.tensor([POSITIVE] + 4 * [UNOBSERVED], dtype=torch.int8).repeat(3, 1)
    published = torch.tensor([[0, 1, -1, 0, -1], [1, 0, 0, -1, 1], [-1, -1, 1, 0, 0]])
    pseudo = torch.tensor([NEGATIVE, UNOBSERVED, POSITIVE], dtype=torch.int8)[published + 1]
    known = {"q2": 0.01, "q3": 1.0, "slope": 1.0, "offset": -2.0, "centre": 0.6, "width": 1.1, "pseudo": pseudo}
    known |= {"lightest": 0.4, "heaviest": 0.7, "target": 0.9, "regulariser": 0.05}
    at = StepContext(global_rows=3, settings={"expected": 1.5, "epsilon": 1e-7}, known=known)
    loss = regularised(formulas.gpr, 0.05, logits, labels, at)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(0.4365496986768508, rel=1e-9)
    assert gradient.flatten().tolist() == pytest.approx(
        [
            *(-0.02339950898313904, -0.011171972616383877, 0.0213341265996866, 0.007330377723456107),
            *(0.023902045213722294, -0.02364284539122061, 0.008000153728480489, 0.007576058164858863),
            *(0.027416141642764888, 0.0009614088245756781, -0.020363842999181148, 0.029296521835421432),
            *(-0.013877154106432107, 0.0024885802058302446, 0.001143822820266041),
        ],
        rel=1e-9,
    )

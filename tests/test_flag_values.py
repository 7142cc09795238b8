"""Values of flags that nobody means are refused with the limit, and flags without an effect are spoken of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from raypaml import aggregate, audit, doctor, evaluate, explain, export, predict, report, shard, train, tune
from raypaml.cli import run_command
from raypaml.recipes import recipe
from raypaml.runs.idle_settings import idle_settings

Main = Callable[[list[str]], int]

REFUSED: list[tuple[Main, str, str]] = [
    (aggregate.main, "RUN --alpha 1:1e9", "alpha='1:1e9': expected A or A:B with B >= A; at most 1,000 values"),
    (aggregate.main, "RUN --alpha 1:inf", "alpha='1:inf': expected A or A:B"),
    (aggregate.main, "RUN --alpha nan", "alpha=nan: must be at least 1"),
    (aggregate.main, "RUN --alpha 1e9", "alpha=1e+09: must be at least 1 (1 switches BoostLU off) and at most 1e+06"),
    (aggregate.main, "RUN --bootstrap 999999999", "bootstrap=999999999: must be at least 0 and at most 100,000"),
    (aggregate.main, "RUN --bootstrap -3", "bootstrap=-3: must be at least 0"),
    (aggregate.main, "RUN --seed 3", "seed=3: has no effect without --bootstrap N; give it too"),
    (aggregate.main, "RUN --seed -1 --bootstrap 2", "seed=-1: must be at least 0 and at most 4,294,967,295"),
    (aggregate.main, "RUN --threshold nan", "threshold=nan: a probability, must be above 0 and below 1"),
    (aggregate.main, "RUN --recall 2", "recall=2.0: must be above 0 and at most 1"),
    (aggregate.main, "RUN --threshold 0.5 --thresholds-from RUN", "threshold and thresholds-from: give one of them"),
    (
        aggregate.main,
        "RUN --scores logits",
        "scores=logits: has no effect, for none of the predictions is a file of an",
    ),
    (aggregate.main, "RUN --labels x.npy", "labels=x.npy: has no effect, for none of the predictions is a .npy file"),
    (aggregate.main, "RUN --coding 1,2,3", "coding=1,2,3: has no effect"),
    (aggregate.main, "RUN --json ''", "--json '': the text is empty; give one, or leave it out"),
    (aggregate.main, "''", "argument '': the text is empty"),
    (audit.main, "RUN --top 0", "top=0: must be at least 1 and at most 100,000"),
    (audit.main, "RUN --top 1000000000", "top=1000000000: must be at least 1 and at most 100,000"),
    (audit.main, "RUN --apply a.csv --out new --top 3", "top: has no effect with --apply"),
    (
        audit.main,
        "RUN --out DATA",
        "the folder holds a data set, which the files would be mixed with; give another one",
    ),
    (doctor.main, "--tflops -1", "argument --tflops: -1: must be at least 0 and at most 1,000,000"),
    (doctor.main, "--node-hours nan", "argument --node-hours: nan: must be at least 0.01"),
    (evaluate.main, "RUN --workers 0", "workers=0: must be at least 1 and at most 10,000"),
    (evaluate.main, "RUN --workers 1000000000", "workers=1000000000: must be at least 1 and at most 10,000"),
    (evaluate.main, "RUN --skip-budget nan", "skip_budget=nan: a share of the samples, at least 0 and below 1"),
    (evaluate.main, "RUN --out DATA", "the folder holds a data set, which the files would be mixed with"),
    (evaluate.main, "RUN --out RUN", "the folder holds a run, which the files would be mixed with"),
    (explain.main, "RUN --rows 1000000000", "rows=1000000000: must be at least 0 and at most 1,000"),
    (explain.main, "RUN --out DATA", "the folder holds a data set"),
    (explain.main, "RUN --classes ''", "--classes '': the text is empty"),
    (export.main, "RUN --out DATA", "the folder holds a data set"),
    (export.main, "RUN --formats=", "--formats '': the text is empty"),
    (export.main, "RUN --alpha 1e9", "alpha=1e9: expected a number of at least 1 and at most 1e+06"),
    (predict.main, "RUN ''", "argument '': the text is empty; give one, or leave it out"),
    (predict.main, "RUN PICTURES --top -1", "top=-1: must be at least 1"),
    (predict.main, "RUN PICTURES --threshold 1", "threshold=1: a probability"),
    (predict.main, "RUN PICTURES --out DATA/x.csv", "the folder holds a data set, which the file would change"),
    (predict.main, "RUN PICTURES --overlays DATA", "the folder holds a data set, which the files would be mixed with"),
    (predict.main, "RUN a\udcffb", "a\\udcffb: is not UTF-8, as records and pages are"),
    (report.main, "''", "argument '': the text is empty"),
    (shard.main, "folder PICTURES --out ''", "--out '': the text is empty"),
    (
        shard.main,
        "folder PICTURES --out NEW --validation -1",
        "argument --validation: -1: must be at least 0 and at most 1",
    ),
    (
        shard.main,
        "folder PICTURES --out NEW --hide-seed -1",
        "argument --hide-seed: -1: must be at least 0 and at most",
    ),
    (
        shard.main,
        "folder PICTURES --out NEW --concurrency 1000000000",
        "concurrency=1000000000: must be at least 1 and",
    ),
    (shard.main, "folder PICTURES --out NEW --quality 0", "quality=0: give a JPEG quality, 1..95"),
    (train.main, "--alpha 1e9", "alpha=1000000000.0: must be at most 1,000,000"),
    (train.main, "--threads 1000000000", "threads=1000000000: must be at most 1,024"),
    (train.main, "--loader-workers 1000000000", "loader_workers=1000000000: must be at most 1,024"),
    (train.main, "--config ''", "--config '': the text is empty"),
    (train.main, "--data \udcff", "is not UTF-8"),
    (tune.main, "--trials 1000000000", "trials=1000000000: must be at least 1 and at most 10,000"),
    (tune.main, "--points 7", "points=7: has no effect with searcher=random; use --searcher grid"),
]


@pytest.mark.parametrize(("main", "asked", "said"), REFUSED, ids=[ascii(asked) for _, asked, _ in REFUSED])
def test_absurd_values_are_refused(
    main: Main,
    asked: str,
    said: str,
    trained: tuple[Path, str],
    evaluated_digits: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "pictures").mkdir()
    paths = {"RUN": trained[0], "DATA": evaluated_digits, "PICTURES": tmp_path / "pictures", "NEW": tmp_path / "new"}
    argv = [word.strip("'") for word in asked.split()]
    for name, path in paths.items():
        argv = [word.replace(name, str(path)) for word in argv]
    with pytest.raises(SystemExit) as stopped:
        run_command(lambda: main(argv), "raypaml")
    last = capfd.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2
    assert said in last
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_a_setting_may_be_an_empty_text() -> None:
    config, _ = train.parse(["digits", "--weights", "", "--scheme-settings="])
    assert (config.model.weights, config.loss.scheme_settings) == ("", "")


def test_settings_without_effect_are_spoken_of() -> None:
    config = recipe("digits").override({"scheme": "an", "probe_images": 7, "delta_rel": 0.3})
    assert list(idle_settings(config, ["delta_rel", "probe_images", "epochs", "decay_biases", "cache_gb"])) == [
        "cache_gb=50.0 has no effect: the data lie on this machine, not in a store",
        "decay_biases=True has no effect: there is no weight decay; give --weight-decay",
        "delta_rel=0.3 has no effect: an does not reject by a rate",
        "probe_images=7 has no effect: maps are compared with those of --reference, which is not given",
    ]
    assert not list(idle_settings(config, []))
    assert not list(idle_settings(config.override({"scheme": "ll_r"}), ["delta_rel", "history", "rejection_scope"]))


def test_train_says_which_flags_have_no_effect(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="epochs=0"):
        train.main(["digits", "--scheme", "an", "--history", "--epochs", "0"])
    assert "history=True has no effect: an rejects nothing" in capfd.readouterr().err

"""One documented flag a field; what is out of range or misspelt is refused in one line that names the remedy."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raypaml import cli
from raypaml.config import EXECUTION_FIELDS, TrainConfig, rejecting_epochs
from raypaml.errors import StoppedAtOnce
from raypaml.fields import field_docs
from raypaml.recipes import RECIPES, recipe
from raypaml.runs.kept_features import keeps_features
from raypaml.train import parse

GROUPS = dict(TrainConfig().groups())


# --- The fields ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", GROUPS)
def test_every_field_has_a_docstring(group: str) -> None:
    docs = field_docs(type(GROUPS[group]))
    assert list(docs) == [field.name for field in dataclasses.fields(GROUPS[group])]
    assert all(doc.endswith(".") and "\n" not in doc for doc in docs.values())


@dataclasses.dataclass(frozen=True)
class _Undocumented:
    told: int = 0
    """A field with its help."""
    silent: int = 0


@dataclasses.dataclass(frozen=True)
class _Optional:
    limit: float | None = None
    """A field whose type no flag has."""


@pytest.mark.parametrize(
    ("group", "said"),
    [(_Undocumented, "_Undocumented.silent: write a docstring"), (_Optional, r"_Optional.limit: .*float \| None")],
)
def test_a_field_that_cannot_be_a_flag_is_named(group: type, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        cli.check_flag_fields(group)
    with pytest.raises(TypeError, match=said):
        cli.add_config_flags(cli.Parser(prog="raypaml.train"), group())


def test_every_field_has_a_name_of_its_own() -> None:
    names = [field.name for group in GROUPS.values() for field in dataclasses.fields(group)]
    assert len(set(names)) == len(names) == len(TrainConfig().flat())


def test_the_configuration_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().optim.lr = 1.0  # type: ignore[misc]


def test_execution_fields_are_fields() -> None:
    assert set(EXECUTION_FIELDS) <= set(TrainConfig().flat())


# --- Recipes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_sound_and_know_their_name(name: str) -> None:
    config = recipe(name)
    config.check()
    assert config.recipe == name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("digit", "did you mean 'digits'?"),
        ("openimages", "did you mean 'openimages_v7'?"),
        ("zzz", "no such recipe. Known"),
    ],
)
def test_an_unknown_recipe_is_answered_with_the_nearest(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=rf"recipe '{name}': no such recipe.*Known: digits, openimages_v3") as error:
        recipe(name)
    assert said in str(error.value)


def test_linear_init_never_trains_the_backbone_and_keeps_its_features() -> None:
    longer = recipe("linear_init").override({"epochs": 100})
    longer.check()
    assert longer.optim.freeze_backbone >= longer.optim.epochs
    assert keeps_features(longer)
    recipe("linear_init").override({"scheme": "an"}).check()


# --- Override -----------------------------------------------------------------------------------------------------


def test_override_finds_each_field_in_its_group_and_leaves_the_rest() -> None:
    before = recipe("digits")
    after = before.override({"alpha": 2.0, "epochs": 3, "name": "x"})
    assert (after.model.alpha, after.optim.epochs, after.run.name) == (2.0, 3, "x")
    assert after.flat() == before.flat() | {"alpha": 2.0, "epochs": 3, "name": "x"}
    assert before == recipe("digits")


def test_override_refuses_unknown_fields_and_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"no such settings: aplha, zeta; known: data, global_batch_size, .*alpha"):
        TrainConfig().override({"zeta": 1, "aplha": 2, "alpha": 3.0})


@pytest.mark.parametrize("name", RECIPES)
def test_a_configuration_survives_json(name: str) -> None:
    config = recipe(name).override({"alpha": 1.5, "flip": True, "lanes": 4})
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"extra": {}}, r"^config\.extra: no such field"),
        (
            {"model": TrainConfig().to_dict()["model"] | {"alpah": 1.0}},
            r"^config\.model\.alpah: no such field; did you mean 'alpha'",
        ),
        ({"model": {}}, r"^config\.model\.backbone is missing"),
    ],
)
def test_a_stored_configuration_with_unknown_parts_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TrainConfig.from_dict(TrainConfig().to_dict() | change)


# --- Ranges -------------------------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
BAD: list[tuple[dict[str, Any], str]] = [
    ({"alpha": 0.99}, "alpha=0.99: must be at least 1 (1 switches BoostLU off; below 1 it would shrink"),
    ({"alpha": NAN}, "alpha=nan: must be at least 1"),
    ({"alpha": INF}, "alpha=inf: must be"),
    ({"delta_rel": -0.1}, "delta_rel=-0.1: must be at least 0"),
    ({"delta_rel": NAN}, "delta_rel=nan: must be at least 0"),
    ({"warmup_epochs": 0}, "warmup_epochs=0: must be at least 1"),
    ({"epochs": 0}, "epochs=0: must be at least 1"),
    ({"global_batch_size": 0}, "global_batch_size=0: must be at least 1"),
    ({"workers": 0}, "workers=0: must be at least 1"),
    ({"lanes": -1}, "lanes=-1: must be at least 0"),
    ({"loader_workers": -1}, "loader_workers=-1: must be at least 0"),
    ({"seed": -1}, "seed=-1: must be at least 0"),
    ({"checkpoint_steps": -1}, "checkpoint_steps=-1: must be at least 0"),
    ({"micro_batch_size": -1}, "micro_batch_size=-1: must be at least 0"),
    ({"clip_gradient": -0.5}, "clip_gradient=-0.5: must be at least 0"),
    ({"clip_gradient": INF}, "clip_gradient=inf: must be at least 0"),
    ({"ema": -0.1}, "ema=-0.1: must be at least 0"),
    ({"ema": NAN}, "ema=nan: must be at least 0"),
    ({"ema": 1.0}, "ema=1.0: must be below 1"),
    ({"compile": True, "reproducible": True}, "compile: compiled kernels may differ between workers; use --no-compile"),
    ({"head_weights": True}, "head_weights: weights='' has no classifier of your classes; give a file"),
    ({"head_weights": True, "weights": "imagenet"}, "head_weights: weights='imagenet' has no classifier"),
    ({"momentum": 1.0, "optimizer": "sgd"}, "momentum=1.0: must be below 1"),
    ({"momentum": 0.5}, "momentum=0.5: adam has none; use --optimizer sgd"),
    ({"lr_warmup": "5"}, "lr_warmup='5': give steps, epochs or a share of the run: '100 steps', '1 epoch', '20%'"),
    ({"lr_warmup": "-1 epoch"}, "lr_warmup='-1 epoch': give steps, epochs or a share"),
    ({"lr_warmup": "120%"}, "lr_warmup='120%': longer than the run of 10 epochs"),
    (
        {"lr_schedule": "one-cycle", "optimizer": "sgd", "momentum": 0.5},
        "momentum=0.5: --lr-schedule one-cycle sets it;",
    ),
    ({"patience": -1}, "patience=-1: must be at least 0"),
    ({"stop_below": -3.0}, "stop_below=-3.0: must be at least 0"),
    ({"stop_below": INF}, "stop_below=inf: must be at least 0 and finite"),
    ({"weight_decay": -0.1}, "weight_decay=-0.1: must be at least 0"),
    ({"head_weights": True, "weights": "imagenet-v1"}, "head_weights: weights='imagenet-v1' has no classifier"),
    ({"rejection_alpha": 0.5}, "rejection_alpha=0.5: must be at least 1, or 0 for the alpha of training"),
    ({"rejection_alpha": NAN}, "rejection_alpha=nan: must be at least 1"),
    ({"head_prior": 1.0}, "head_prior=1.0: a probability, at least 0 and below 1"),
    ({"head_prior": NAN}, "head_prior=nan: a probability"),
    (
        {"head_weights": True, "weights": "some.safetensors", "head_prior": 0.05},
        "head_prior: with head_weights the biases are the file's",
    ),
    ({"sync_batchnorm": True, "micro_batch_size": 4}, "sync_batchnorm: statistics would be those of micro batches"),
    ({"lr": 0.0}, "lr=0.0: must be above 0"),
    ({"lr": NAN}, "lr=nan: must be above 0"),
    ({"lr": INF}, "lr=inf: must be above 0"),
    ({"head_lr_mult": -10.0}, "head_lr_mult=-10.0: must be above 0"),
    ({"global_batch_size": 32, "lanes": 3}, "lanes=3: must divide global_batch_size=32"),
    ({"global_batch_size": 32, "lanes": 64}, "lanes=64: must divide global_batch_size=32"),
]


@pytest.mark.parametrize(("values", "said"), BAD)
def test_values_out_of_range_are_refused_by_name(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        TrainConfig().override(values).check()


@pytest.mark.parametrize("values", [{"alpha": 1.0}, {"delta_rel": 0.0}, {"epochs": 1}, {"lanes": 16}, {"seed": 2**40}])
def test_values_at_the_edge_of_their_range_pass(values: dict[str, Any]) -> None:
    TrainConfig().override(values).check()


@pytest.mark.parametrize(
    ("scheme", "schedule", "warmup_epochs", "most"),
    [
        ("ll_r", "epoch", 1, 10.0),
        ("ll_ct", "epoch", 1, 10.0),
        ("ll_r", "epoch", 6, 20.0),
        ("ll_r", "samples", 2, 10.0),
        ("ll_cp", "epoch", 1, 100.0),  # constant: what was corrected stays corrected
        ("ll_cp", "samples", 1, 100.0),
    ],
)
def test_delta_rel_may_just_reach_all_entries(scheme: str, schedule: str, warmup_epochs: int, most: float) -> None:
    values = {"epochs": 11, "scheme": scheme, "schedule": schedule, "warmup_epochs": warmup_epochs}
    TrainConfig().override(values | {"delta_rel": most}).check()
    said = rf"delta_rel={most * 1.01} %/epoch over 11 epochs \({warmup_epochs} of warm-up\) asks to reject 101 % of all"
    with pytest.raises(ValueError, match=said):
        TrainConfig().override(values | {"delta_rel": most * 1.01}).check()


@pytest.mark.parametrize("scheme", ["full", "an", "ignore"])
def test_delta_rel_does_not_matter_to_schemes_that_do_not_reject(scheme: str) -> None:
    TrainConfig().override({"scheme": scheme, "delta_rel": 5000.0}).check()


@pytest.mark.parametrize(("epochs", "warmup", "rejecting"), [(10, 1, 9), (1, 1, 0), (3, 8, 0), (25, 8, 17)])
def test_rejecting_epochs_are_those_after_the_warm_up(epochs: int, warmup: int, rejecting: int) -> None:
    assert rejecting_epochs(epochs, warmup) == rejecting


# --- Flags --------------------------------------------------------------------------------------------------------


def _parser() -> cli.Parser:
    parser = cli.Parser(prog="raypaml.train")
    for group in GROUPS.values():
        cli.add_config_flags(parser, group)
    return parser


def _answer(run: Callable[[], Any], capsys: pytest.CaptureFixture[str]) -> tuple[int | str | None, str, str]:
    """Exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as stop:
        run()
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def test_only_the_flags_given_appear_with_their_types() -> None:
    given = vars(_parser().parse(["--alpha", "2", "--epochs=3", "--flip", "--scheme", "an", "--name", "x y"]))
    assert given == {"alpha": 2.0, "epochs": 3, "flip": True, "scheme": "an", "name": "x y"}
    assert vars(_parser().parse(["--no-flip"])) == {"flip": False}
    assert vars(_parser().parse([])) == {}
    assert TrainConfig().override(given).model.alpha == 2.0


@pytest.mark.parametrize(
    ("argv", "near"),
    [
        (["--aplha", "2"], "--aplha: no such flag; did you mean --alpha?"),
        (["--epochs", "3", "--delta_rel=0.1"], "--delta_rel: no such flag; did you mean --delta-rel?"),
        (["--no-filp"], "--no-filp: no such flag; did you mean --no-flip?"),
        (["--qqqqqq"], "--qqqqqq: no such flag; --help lists them"),
        (["stray"], "stray: no such flag"),
    ],
)
def test_an_unknown_flag_is_one_line_with_the_nearest(
    argv: list[str], near: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = _answer(lambda: _parser().parse(argv), capsys)
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"raypaml\.train: {re.escape(near)}.*\n", err)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--epochs", "many"], "--epochs.*many"),
        (["--alpha", "5x"], "--alpha.*5x"),
        (["--epochs", "1.5"], "--epochs.*1.5"),
        (["--scheme", "llr"], "--scheme.*llr.*ll_r"),
        (["--lr"], "--lr: expected one argument"),
    ],
)
def test_a_bad_value_is_one_line(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = _answer(lambda: _parser().parse(argv), capsys)
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"raypaml\.train: .*{said}.*\n", err)


def test_help_lists_every_group_flag_and_default(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    code, out, err = _answer(lambda: _parser().parse(["--help"]), capsys)
    assert (code, err) == (0, "")
    text = " ".join(out.split())
    for title in ("Data:", "Model:", "Loss and rejection:", "Optimisation:", "Run:"):
        assert f" {title} " in text
    for group in GROUPS.values():
        for name, doc in field_docs(type(group)).items():
            value = getattr(group, name)
            shown = {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value) or "none"
            flag = {"imports": "import", "from_run": "from"}.get(name, name.replace("_", "-"))
            assert f"--{flag} " in text
            assert f"{doc} [{shown}]" in text


# --- Commands -----------------------------------------------------------------------------------------------------


def _refuse() -> int:
    raise ValueError("lr=0: must be above 0")


def _no_folder() -> int:
    return len(Path("/nowhere/at/all").read_text())


def _interrupted() -> int:
    raise KeyboardInterrupt


def _stopped_at_once() -> int:
    raise StoppedAtOnce(signal.SIGTERM)


@pytest.mark.parametrize(
    ("main", "answer"),
    [
        (_refuse, (2, "", "raypaml.train: lr=0: must be above 0\n")),
        (_no_folder, (2, "", "raypaml.train: /nowhere/at/all: No such file or directory; check the path\n")),
        (_interrupted, (130, "", "")),
        (_stopped_at_once, (143, "", "")),
        (lambda: None, (0, "", "")),
        (lambda: 3, (3, "", "")),
    ],
)
def test_a_command_ends_with_a_code_and_at_most_one_line(
    main: Callable[[], int | None], answer: tuple[int, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert _answer(lambda: cli.run_command(main, "raypaml.train"), capsys) == answer


def test_a_reader_that_has_had_enough_ends_a_command_in_silence() -> None:
    lists = [sys.executable, "-m", "raypaml", "--help"]
    reads, writes = os.pipe()
    os.close(reads)  # before the command begins, which might else have written all of it
    process = subprocess.Popen(lists, stdout=writes, stderr=subprocess.PIPE)
    os.close(writes)
    _, said = process.communicate(timeout=120)
    assert (process.returncode, said) == (128 + signal.SIGPIPE, b"")


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        cli.run_command(lambda: 1 // 0, "raypaml.train")


# --- --config -------------------------------------------------------------------------------------------------------


def stored(path: Path, **values: Any) -> str:
    config = recipe("digits").override({"name": "found", "storage": "elsewhere", "alpha": 3.0} | values)
    path.write_text(json.dumps({"found": {"trial": "alpha=3"}, "config": config.to_dict()}))
    return str(path)


def test_a_configuration_file_stands_in_for_the_recipe_and_flags_win(tmp_path: Path) -> None:
    path = stored(tmp_path / "best.json", delta_rel=0.7)
    found, _ = parse(["--config", path, "--alpha", "4"])
    assert (found.model.alpha, found.loss.delta_rel) == (4.0, 0.7)
    assert (found.run.name, found.run.storage) == ("", "runs")
    assert parse(["digits", "--config", path, "--name", "mine"])[0].run.name == "mine"


def test_a_configuration_file_of_another_recipe_or_none_is_refused(tmp_path: Path) -> None:
    path = stored(tmp_path / "best.json")
    with pytest.raises(ValueError, match=r"started with recipe digits, asked: openimages_v3; leave the recipe out"):
        parse(["openimages_v3", "--config", path])
    with pytest.raises(ValueError, match=r"none\.json: no such file"):
        parse(["--config", str(tmp_path / "none.json")])
    (tmp_path / "bad.json").write_text('{"config": {"recipe": "digits"}}')
    with pytest.raises(ValueError, match=r"bad\.json: not the record of a run"):
        parse(["--config", str(tmp_path / "bad.json")])


# --- The papers' recipes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["voc2012_single", "coco2014_single", "nuswide_single", "cub_single"])
def test_the_papers_recipes_hold_the_published_settings(name: str) -> None:
    config = recipe(name)
    config.check()
    values = config.flat()
    assert config.recipe == values["data"] == name
    published = {"backbone": "resnet50", "weights": "imagenet-v1", "alpha": 5, "scheme": "ll_r", "delta_rel": 0.5}
    published |= {
        "lr": 1e-5,
        "head_lr_mult": 10,
        "global_batch_size": 16,
        "epochs": 10,
        "flip": True,
        "warmup_epochs": 1,
    }
    assert {key: values[key] for key in published} == published

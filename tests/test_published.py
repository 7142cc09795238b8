"""What is published for a scheme on a recipe's data set holds at every door, under flags, and never for begun runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raypaml import doctor, train, tune
from raypaml.config import EARLIER, TrainConfig
from raypaml.data.data_folder import open_folder
from raypaml.labels import GROUP_NAMES
from raypaml.losses.schemes import SCHEMES, join_settings
from raypaml.recipes import DATA_SETS, RECIPES, otherwise_than_own, own_values, recipe, resolve
from raypaml.runs.run_folder import as_begun, check_same_run, claim, stored_config
from raypaml.search.search_flags import plan_search
from raypaml.search.search_folder import SearchPlan, open_search
from raypaml.search.trials import Trial
from raypaml.search.warmup import warmup_key
from raypaml.training.estimate import describe_estimate, estimate
from raypaml.training.job import prepare_job
from tools.papers import compare_schemes

VOC = "voc2012_single"

PUBLISHED: dict[tuple[str, str], dict[str, Any]] = {
    ("voc2012_single", "ll_r"): {"delta_rel": 0.5, "lr": 1e-5, "global_batch_size": 16, "alpha": 5.0, "epochs": 10},
    ("voc2012_single", "ll_ct"): {"delta_rel": 0.2, "lr": 1e-5, "global_batch_size": 16, "head_lr_mult": 10.0},
    ("nuswide_single", "ll_cp"): {"delta_rel": 0.1, "warmup_epochs": 1},
    ("voc2012_single", "em"): {"global_batch_size": 8, "lr": 1e-5, "head_lr_mult": 1.0, "alpha": 1.0, "patience": 1},
    ("voc2012_single", "em_apl"): {"global_batch_size": 8, "lr": 1e-5, "head_lr_mult": 1.0, "warmup_epochs": 5},
    ("coco2014_single", "em_apl"): {"global_batch_size": 16, "lr": 1e-5, "head_lr_mult": 1.0, "warmup_epochs": 5},
    ("nuswide_single", "em_apl"): {"global_batch_size": 16, "lr": 1e-5, "head_lr_mult": 1.0, "warmup_epochs": 4},
    ("cub_single", "em_apl"): {"global_batch_size": 8, "lr": 1e-4, "head_lr_mult": 1.0, "warmup_epochs": 3},
    ("voc2012_single", "gr"): {"global_batch_size": 8, "epochs": 8, "alpha": 1.0, "stop_below": 2.0},
    ("cub_single", "gr"): {"global_batch_size": 8, "epochs": 10, "lr": 1e-5},
    ("openimages_v3", "ll_cp"): {"delta_rel": 0.01, "epochs": 20, "lr": 2e-5, "alpha": 5.0},
    ("digits", "ll_r"): {"delta_rel": 0.25, "epochs": 18, "lr": 4e-3},
}
"""As Correr-Zhou/SPML-AckTheUnknown, yan4xi1/GRLoss, Fsoft-AIC/AEVLP and youngwk/BridgeGapExplanationPAMC have them."""
SETTINGS = {
    ("voc2012_single", "em_apl"): "weight=0.2,pseudo_weight=0.02,share=0.9",
    ("coco2014_single", "em_apl"): "weight=0.1,pseudo_weight=0.9,share=0.9",
    ("nuswide_single", "em_apl"): "weight=0.1,pseudo_weight=0.2,share=0.9",
    ("cub_single", "em_apl"): "weight=0.01,pseudo_weight=0.4,share=0.9",
    ("cub_single", "em"): "weight=0.01",
    ("coco2014_single", "csl"): "prior=0.5",
    ("cub_single", "role"): "expected=31.4",
    ("digits", "em_apl"): "",
    ("voc2012_single", "an"): "",
}


def parsed(*flags: str) -> TrainConfig:
    return train.parse(flags)[0]


@pytest.mark.parametrize(("name", "scheme"), PUBLISHED)
def test_a_recipe_has_what_is_published_for_the_scheme(name: str, scheme: str) -> None:
    values = parsed(name, "--scheme", scheme).flat()
    expected = PUBLISHED[name, scheme]
    assert {field: values[field] for field in expected} == expected


@pytest.mark.parametrize(("name", "scheme"), SETTINGS)
def test_settings_of_the_scheme_too(name: str, scheme: str) -> None:
    given = join_settings(scheme, SETTINGS[name, scheme])
    assert parsed(name, "--scheme", scheme).loss.scheme_settings == given


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_and_every_scheme_can_be_exchanged_and_differ_in_nothing_else(name: str) -> None:
    usual = recipe(name)
    assert otherwise_than_own(usual) == []
    for scheme in SCHEMES:
        config = resolve(usual, {"scheme": scheme})
        config.check()
        assert otherwise_than_own(config) == []
        assert resolve(config, {"scheme": usual.loss.scheme}) == usual
        own = own_values(name, scheme).keys() | own_values(name, usual.loss.scheme).keys()
        changed = {field for field, value in config.flat().items() if usual.flat()[field] != value}
        assert changed <= own | {"scheme", "scheme_settings"}


def test_every_published_value_is_either_a_field_or_a_setting() -> None:
    fields = TrainConfig().flat().keys()
    for name in RECIPES:
        for scheme, record in SCHEMES.items():
            for value in own_values(name, scheme):
                assert (value in fields) != (value in record.defaults), (name, scheme, value)
    assert DATA_SETS.keys() < RECIPES.keys()


def test_flags_win_over_what_is_published_and_settings_one_by_one() -> None:
    flags = ("--scheme", "em_apl", "--lr", "0.001", "--scheme-settings", "share=0.5,weight=0.3")
    config = parsed("cub_single", *flags)
    assert (config.optim.lr, config.data.global_batch_size) == (1e-3, 8)
    assert config.loss.scheme_settings == "weight=0.3,pseudo_weight=0.4,share=0.5"
    assert parsed("digits", "--scheme", "em_apl", *flags[4:]).loss.scheme_settings == flags[5]
    with pytest.raises(ValueError, match="scheme_settings: weigth: scheme em_apl has no such setting; did you mean"):
        parsed("cub_single", "--scheme", "em_apl", "--scheme-settings", "weigth=1")


@pytest.mark.parametrize("door", [train, doctor, tune])
def test_every_command_resolves_alike(door: Any) -> None:
    config, _ = door.parse([VOC, "--scheme", "ll_ct"])
    assert (config.loss.delta_rel, config.optim.epochs) == (0.2, 10)


def test_help_shows_the_values_of_the_scheme_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(VOC, "--scheme", "em_apl", "--help")
    out = " ".join(capsys.readouterr().out.split())
    assert "[weight=0.2,pseudo_weight=0.02,share=0.9]" in out
    assert "EM, EM+APL: 1. [1.0]" in out


def compared(tmp_path: Path, *flags: str) -> TrainConfig:
    parser = compare_schemes.arguments()
    return compare_schemes.run_config(parser.parse(["--storage", str(tmp_path), *flags]), "ll_ct", 1.0, 2)


def test_compare_schemes_resolves_too(tmp_path: Path) -> None:
    config = compared(tmp_path, "--recipe", VOC)
    assert (config.loss.delta_rel, config.model.alpha, config.run.seed) == (0.2, 1.0, 2)
    assert config.run.name == "voc2012_single-ll_ct-alpha1-seed2-epochs10"
    assert compared(tmp_path, "--epochs", "3", "--", "--delta-rel", "0.7").loss.delta_rel == 0.7


# --- What a run says of itself ----------------------------------------------------------------------------------------


def test_a_run_names_the_published_values_that_it_has_not(tiny_digits: Path, tmp_path: Path) -> None:
    flags = ("--scheme", "ll_ct", "--data", str(tiny_digits), "--storage", str(tmp_path), "--backbone", "small")
    flags += ("--weights", "", "--device", "cpu")
    sentence = "delta_rel 0.5 where ll_ct's published value for VOC is 0.2"
    for more, expected in (((), []), (("--delta-rel", "0.5"), [sentence])):
        config, said = parsed(VOC, *flags, *more), list[str]()
        data = prepare_job(config, said.append).data
        assert [line for line in said if "published" in line] == expected
    assert sentence in describe_estimate(config, estimate(config, data))
    other = parsed("cub_single", "--scheme", "em_apl", "--scheme-settings", "weight=0.3", "--alpha", "5")
    assert otherwise_than_own(other) == [
        "alpha 5 where em_apl's published value for CUB is 1",
        "weight 0.3 where em_apl's published value for CUB is 0.01",
    ]
    own = parsed("digits", "--scheme", "ll_r", "--delta-rel", "0.5")
    assert otherwise_than_own(own) == ["delta_rel 0.5 where digits has for ll_r 0.25"]


def test_what_has_no_effect_or_is_more_than_published_is_said(tiny_digits: Path, tmp_path: Path) -> None:
    places = ("--data", str(tiny_digits), "--storage", str(tmp_path), "--backbone", "small", "--weights", "")
    alpha = "rejection_alpha=20 has no effect: {} does not reject by delta_rel"
    mirrored = "images are mirrored too, which asl's published augmentation does not: --no-flip leaves it out"
    published = ("--scheme", "asl", "--augment", "published")
    for flags, expected in (
        (("linear_init",), []),
        (("linear_init", "--scheme", "ll_r_abs"), [alpha.format("ll_r_abs")]),
        (("linear_init", *published), [alpha.format("asl")]),
        ((VOC, *published), [mirrored]),
        ((VOC, *published, "--no-flip"), []),
        ((VOC, "--scheme", "ll_r", "--augment", "published"), []),
    ):
        said: list[str] = []
        prepare_job(parsed(*flags, *places, "--epochs", "5"), said.append)
        assert [line for line in said if "no effect" in line or "mirrored" in line] == expected


# --- Runs that were begun ---------------------------------------------------------------------------------------------


def begin_as_before(folder: Path, config: TrainConfig, data: Path) -> None:
    """A run folder with the config.json of an earlier version."""
    claim(folder, config, open_folder(data))
    record = json.loads((folder / "config.json").read_text())
    for group in record["config"].values():
        for name in EARLIER if isinstance(group, dict) else ():
            group.pop(name, None)
    (folder / "config.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("scheme", "more"),
    [
        ("ll_ct", ()),
        ("em_apl", ()),
        ("em_apl", ("--scheme-settings", "weight=0.3, share=0.5")),
        ("gr", ("--lr", "1e-3")),
    ],
)
def test_a_run_that_an_earlier_version_began_goes_on_as_it_began(
    scheme: str, more: tuple[str, ...], tiny_digits: Path, tmp_path: Path
) -> None:
    flags = ("--scheme", scheme, "--data", str(tiny_digits), "--storage", str(tmp_path), "--name", "old", *more)
    values = {"scheme": scheme, "data": str(tiny_digits), "storage": str(tmp_path), "name": "old"}
    values |= {"scheme_settings": more[1]} if "--scheme-settings" in more else {}
    values |= {"lr": 1e-3} if "--lr" in more else {}
    begun = recipe(VOC).override({"weights": "imagenet"} | values)  # the recipe of then, and the flags over it
    begin_as_before(tmp_path / "old", begun, tiny_digits)
    config = as_begun(tmp_path / "old", parsed(VOC, *flags))
    check_same_run(tmp_path / "old", config, open_folder(tiny_digits))
    assert config == begun.override(EARLIER)
    assert config.data.global_batch_size == 16
    assert parsed("--name", "old", "--storage", str(tmp_path)) == stored_config(tmp_path / "old")


def test_a_new_run_goes_on_with_the_same_command_and_is_refused_with_another_scheme(
    tiny_digits: Path, tmp_path: Path
) -> None:
    data = open_folder(tiny_digits)
    places = ("--data", str(tiny_digits), "--storage", str(tmp_path), "--name", "new")
    flags = ("cub_single", "--scheme", "em_apl", "--scheme-settings", "weight=0.3", *places)
    claim(tmp_path / "new", parsed(*flags), data)
    assert parsed(*flags) == parsed("cub_single", *places) == stored_config(tmp_path / "new")
    with pytest.raises(ValueError, match=r"started with .*scheme=em_apl \(asked: ll_r\)"):
        check_same_run(tmp_path / "new", parsed("cub_single", "--scheme", "ll_r", *places), data)


def test_a_file_keeps_its_values_unless_another_scheme_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "best.json"
    found = resolve(recipe(VOC), {"scheme": "ll_ct", "delta_rel": 0.33, "lr": 1e-3})
    path.write_text(json.dumps({"config": found.to_dict()}))
    assert (
        parsed("--config", str(path)).loss.delta_rel
        == parsed("--config", str(path), "--scheme", "ll_ct").loss.delta_rel
    )
    assert parsed("--config", str(path)).loss.delta_rel == 0.33
    other = parsed("--config", str(path), "--scheme", "ll_cp")
    assert (other.loss.delta_rel, other.optim.lr) == (0.1, 1e-3)


def test_what_a_file_has_from_an_earlier_version_is_said_with_what_is_usual_today(
    tiny_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin_as_before(tmp_path / "old", recipe(VOC).override({"weights": "imagenet"}), tiny_digits)
    path = str(tmp_path / "old" / "config.json")
    begun = parsed("--config", path)
    said = capsys.readouterr().err
    assert (begun.loss.rejection_rounding, begun.loss.scheme_defaults) == ("half_up", "earlier")
    assert said.startswith(f"{path}: written by an earlier version and used as then, with cudnn_benchmark=False")
    assert "rejection_rounding=half_up, scheme_defaults=earlier" in said
    remedy = said.partition("today's values: ")[2].split()
    assert {"--test-features", "--rejection-rounding", "--scheme-defaults", "--head-init"} <= set(remedy)
    today = parsed("--config", path, *remedy)
    assert all("has no effect" in line for line in capsys.readouterr().err.splitlines())
    assert today == recipe(VOC).override({"weights": "imagenet"})
    path = str(tmp_path / "new.json")
    Path(path).write_text(json.dumps({"config": today.to_dict()}))
    parsed("--config", path)
    assert capsys.readouterr().err == ""


# --- Searches ---------------------------------------------------------------------------------------------------------


def planned(data: Path, storage: Path, *flags: str) -> SearchPlan:
    places = ("--data", str(data), "--storage", str(storage), "--epochs", "9")
    _, asked = tune.parse([*flags, *places, "--search", "scheme=ll_r|ll_ct|em_apl,lr=0.001|0.01"])
    return plan_search(asked.settings, asked.base, open_folder(data))


def trial_values(search: SearchPlan, scheme: str) -> tuple[float, int, int, float]:
    config = search.config(Trial((("scheme", scheme), ("lr", 0.01)), 0))
    return config.loss.delta_rel, config.data.global_batch_size, config.optim.epochs, config.optim.lr


def test_trials_of_other_schemes_have_what_is_published_for_them(tiny_digits: Path, tmp_path: Path) -> None:
    search = planned(tiny_digits, tmp_path, VOC)
    assert trial_values(search, "ll_r") == (0.5, 16, 9, 0.01)
    assert trial_values(search, "ll_ct") == (0.2, 16, 9, 0.01)
    assert trial_values(search, "em_apl")[1:] == (8, 9, 0.01)
    assert search.longest_warmup == 5
    given = planned(tiny_digits, tmp_path, VOC, "--delta-rel", "0.4", "--global-batch-size", "32")
    assert trial_values(given, "ll_ct") == (0.4, 32, 9, 0.01)
    assert trial_values(given, "em_apl")[1] == 32


def test_the_large_loss_schemes_of_digits_share_their_warm_up() -> None:
    keys = {warmup_key(resolve(recipe("digits"), {"scheme": name})) for name in ("an", "ll_r", "ll_cp", "ll_r_abs")}
    assert len(keys) == 1


@pytest.mark.parametrize("flags", [(), ("--scheme", "ll_ct"), ("--scheme", "ll_ct", "--name", "s")])
def test_a_search_that_an_earlier_version_began_keeps_its_trials(
    flags: tuple[str, ...], tiny_digits: Path, tmp_path: Path
) -> None:
    new = planned(tiny_digits, tmp_path, VOC, *flags)
    values = {"weights": "imagenet", "head_init": "normal", "workers": 1, "epochs": 9}
    values |= {"data": str(tiny_digits), "storage": str(tmp_path)}
    values |= {"scheme": "ll_ct"} if "ll_ct" in flags else {}
    values |= {"name": "s"} if "s" in flags else {}
    old = SearchPlan(base=recipe(VOC).override(values), spaces=new.spaces, given=None)
    open_search(old, 6)
    path = old.folder / "search.json"
    stored = json.loads(path.read_text())
    stored["question"] = {k: v for k, v in stored["question"].items() if k not in EARLIER}
    path.write_text(json.dumps(stored))
    again = planned(tiny_digits, tmp_path, VOC, *flags)
    assert again.folder == old.folder
    assert open_search(again, 6) == 6
    assert trial_values(again, "ll_r")[:2] == trial_values(again, "em_apl")[:2] == (0.5, 16)
    assert again.base.loss.rejection_rounding == "half_up"


def test_a_search_goes_on_with_the_same_command(tiny_digits: Path, tmp_path: Path) -> None:
    first = planned(tiny_digits, tmp_path, VOC, "--scheme", "ll_ct", "--delta-rel", "0.4")
    open_search(first, 6)
    again = planned(tiny_digits, tmp_path, VOC, "--scheme", "ll_ct", "--delta-rel", "0.4")
    assert open_search(again, 6) == 6
    assert trial_values(again, "ll_r")[0] == 0.4


def test_table_of_schemes_gives_the_interval_over_seeds() -> None:
    """Student's t with two degrees of freedom: 4.303 x 2 / sqrt(3)."""
    runs: list[dict[str, Any]] = [{"mean_ap": ap, "groups": dict.fromkeys(GROUP_NAMES, ap)} for ap in (0.6, 0.62, 0.64)]
    assert compare_schemes.table([("an", 5.0)], [runs]).splitlines()[2].split("|")[8].strip() == "62.0 ± 5.0"
    for run in runs:
        run["chosen_alpha"] = {"mean_ap": 0.7}
    cells = [cell.strip() for cell in compare_schemes.table([("an", 5.0)], [runs]).splitlines()[2].split("|")]
    assert cells[8:11] == ["62.0 ± 5.0", "70.0 ± 0.0", "60.0, 62.0, 64.0"]

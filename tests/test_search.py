"""Search spaces, the plan of trials, and the suggestion from data: all of it without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypaml.config import TrainConfig
from raypaml.data.data_folder import open_folder
from raypaml.data.digits import digits_folder
from raypaml.files import share
from raypaml.labels import POSITIVE, UNOBSERVED
from raypaml.recipes import recipe
from raypaml.search.spaces import Space, check_spaces, make_space, parse_search, read_spaces
from raypaml.search.suggestion import suggest
from raypaml.search.trials import grid_trials, own_trial, proposed, random_trials
from raypaml.tune import parse

BASE = recipe("digits")


def known() -> dict[str, Space]:
    return read_spaces(sorted(share("tune").glob("*.yaml")), BASE)


def spaces(text: str, config: TrainConfig = BASE) -> list[Space]:
    return parse_search(text, config, known(), None)


def refused(text: str, config: TrainConfig = BASE) -> str:
    with pytest.raises(ValueError) as caught:
        check_spaces(parse_search(text, config, known(), None), config.override)
    return str(caught.value)


# --- Spaces ---------------------------------------------------------------------------------------------------------


def test_the_spaces_that_come_with_raypaml_say_where_their_bounds_are_from() -> None:
    wanted = {"alpha", "delta_rel", "scheme", "lr", "head_lr_mult", "warmup_epochs", "schedule"}
    assert wanted <= set(known())
    for path in share("tune").glob("*.yaml"):
        assert "Published" in path.read_text()


def test_inline_spaces_are_read_with_the_type_of_their_field() -> None:
    alpha, delta, scheme, warmup = spaces("alpha=1:10, delta_rel=log:0.005:0.5,scheme=an|ll_r,warmup_epochs=1:8")
    assert (alpha.distribution, alpha.low, alpha.high) == ("uniform", 1, 10)
    assert (delta.distribution, delta.at(0.5), delta.unit) == ("log", 0.05, "percent of all entries per epoch")
    assert scheme.values == ("an", "ll_r")
    assert warmup.whole
    assert {warmup.at(u) for u in np.linspace(0, 0.999, 50)} == set(range(1, 9))
    assert spaces(",".join(s.text for s in (alpha, delta, scheme, warmup))) == [alpha, delta, scheme, warmup]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("alhpa", "no such space; did you mean 'alpha'? Known: alpha, delta_rel"),
        ("aplha=1:10", "field 'aplha': no such field; did you mean 'alpha'?"),
        ("alpha=10:1", "alpha: bounds 10:1, the first must be below the second"),
        ("delta_rel=log:0:1", "a logarithmic range must start above 0"),
        ("delta_rel=1:2:3", "expected LOW:HIGH, log:LOW:HIGH or A|B|C"),
        ("scheme=ll_r|ll_x", "scheme: value 'll_x', expected full|an|ignore|ll_r|ll_ct|ll_cp|"),
        ("backbone=1:2", "backbone is not a number; give its values as A|B"),
        ("seed=0|1", "field 'seed': not searched, repeated with --seeds"),
        ("workers=1|2", "field 'workers': not searched"),
        ("alpha,alpha=1:3", "a field is given twice"),
        ("alpha=suggested", "only delta_rel is suggested by the data"),
        ("alpha=0.5:3", "search alpha=0.5:3 allows alpha=0.5: alpha=0.5: must be at least 1"),
        ("delta_rel=1:20", "allows delta_rel=20: delta_rel=20.0 %/epoch over 18 epochs"),
        ("delta_rel=1:7,warmup_epochs=2:8", "allows delta_rel=7,warmup_epochs=2"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused_before_the_start(text: str, said: str) -> None:
    assert said in refused(text)


def test_a_file_of_spaces_may_say_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("- {name: lr, field: lr, distribution: log, low: 1e-4, high: 1e-2, unit: per step}\n")
    assert read_spaces([path], BASE)["lr"].at(0.5) == 1e-3
    path.write_text("name: lr\nfield: lr\ndistribution: log\nlow: 1\nhigh: 2\nstep: 3\n")
    with pytest.raises(ValueError, match=r"mine\.yaml: a space has the keys distribution, field, high"):
        read_spaces([path], BASE)
    path.write_text("!!python/object/apply:os.getcwd []\n")
    with pytest.raises(ValueError, match=r"mine\.yaml: not a readable YAML file"):
        read_spaces([path], BASE)


@settings(deadline=None)
@given(st.floats(0, 0.999), st.sampled_from(["alpha=1:10", "delta_rel=log:0.005:0.5", "scheme=an|ll_r|ll_cp"]))
def test_every_value_lies_within_and_goes_back_to_its_quantile(u: float, text: str) -> None:
    (space,) = spaces(text)
    value = space.at(u)
    assert space.holds(value)
    assert abs(space.quantile(value) - u) < (0.2 if space.values else 0.01)


# --- Plan -----------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(0, 20), st.integers(1, 6), st.integers(0, 5))
def test_a_longer_plan_begins_with_the_shorter_one(count: int, more: int, share: int, seed: int) -> None:
    chosen = spaces("alpha,delta_rel")
    plan = random_trials(BASE, chosen, count, share=share, seed=seed)
    assert len(set(plan)) == len(plan) == count
    assert random_trials(BASE, chosen, count + more, share=share, seed=seed)[:count] == plan
    assert plan[0] == own_trial(BASE, chosen)


def test_what_acts_before_the_first_rejection_changes_every_few_trials_only() -> None:
    plan = random_trials(BASE, spaces("alpha,delta_rel"), 8, share=4, seed=0)
    alphas = [dict(trial.values)["alpha"] for trial in plan]
    assert len(set(alphas[:4])) == len(set(alphas[4:])) == 1
    assert alphas[0] == 5 != alphas[4]
    assert len({dict(trial.values)["delta_rel"] for trial in plan}) == 8
    alone = random_trials(BASE, spaces("alpha"), 5, share=4, seed=0)
    assert len(set(alone)) == 5


def test_random_points_keep_their_distance() -> None:
    (space,) = spaces("alpha=1:10")
    plan = random_trials(BASE, [space], 8, share=4, seed=3)
    places = np.sort([space.quantile(value) for trial in plan for _, value in trial.values])
    assert np.diff(places, append=places[0] + 1).min() > 0.02


def test_spaces_that_hold_few_trials_end_the_plan() -> None:
    plan = random_trials(BASE, spaces("schedule,scheme=an|ll_r"), 50, share=4, seed=0)
    assert len(plan) == 4


def test_a_grid_has_every_combination_and_the_base() -> None:
    plan = grid_trials(BASE, spaces("alpha=1:9,scheme=an|ll_r"), 3)
    assert [trial.name for trial in plan] == [
        "alpha=5,scheme=ll_r",
        *("alpha=1,scheme=an", "alpha=1,scheme=ll_r", "alpha=5,scheme=an", "alpha=9,scheme=an", "alpha=9,scheme=ll_r"),
    ]


def test_a_trial_is_what_its_name_says() -> None:
    trial = proposed(BASE, spaces("alpha,delta_rel"), {"alpha": 3.14159, "delta_rel": 0.123456})
    assert trial.name == "alpha=3.14,delta_rel=0.123"
    config = BASE.override(trial.fields)
    assert (config.model.alpha, config.loss.delta_rel, config.run.name) == (3.14, 0.123, trial.name)


# --- The command line -----------------------------------------------------------------------------------------------


def test_flags_of_the_recipe_set_the_starting_point() -> None:
    config, asked = parse(["digits", "--delta-rel", "0.5", "--trials", "3"])
    assert (config.loss.delta_rel, config.run.workers, asked.settings.trials) == (0.5, 1, 3)
    assert parse(["--workers", "2"])[0].run.workers == 2
    with pytest.raises(ValueError, match="trials=0: must be at least 1"):
        parse(["--trials", "0"])


# --- delta_rel from data --------------------------------------------------------------------------------------------


def true_share(folder: Path) -> tuple[float, float]:
    """Missed positives as a share of the unobserved and of all training entries, counted one by one."""
    index = open_folder(folder).splits["train"]
    rows = np.arange(len(index))
    labels, truth = index.labels(rows), index.truth(rows)
    missed = (labels == UNOBSERVED) & (truth == POSITIVE)
    return float(missed.sum() / (labels == UNOBSERVED).sum()), float(missed.mean())


@pytest.mark.parametrize("hiding", ["single_positive", "verified"])
def test_the_suggestion_meets_the_true_share_of_missed_positives(hiding: str) -> None:
    folder = digits_folder(hiding, num_scenes={"train": 600, "validation": 600, "test": 1})
    data = open_folder(folder)
    found = suggest(data.splits["train"], data.splits["validation"], BASE)
    of_unobserved, of_all = true_share(folder)
    assert abs(found.missed_of_unobserved - of_unobserved) < found.margin + 0.001
    assert abs(found.missed_of_unobserved / of_unobserved - 1) < 0.1
    assert abs(found.delta_rel * 6 / 100 / of_all - 1) < 0.1  # reached halfway: 18 epochs, 6 of warm-up
    assert found.low < found.delta_rel < found.high
    assert "100.00% of its entries observed" in found.text


def test_nothing_is_suggested_where_validation_is_labelled_no_better_than_train(tiny_digits: Path) -> None:
    train = open_folder(tiny_digits).splits["train"]
    with pytest.raises(ValueError, match=r"validation shows 1\.000 positives per image, train 1\.000"):
        suggest(train, train, BASE)
    validation = open_folder(tiny_digits).splits["validation"]
    with pytest.raises(ValueError, match="warmup_epochs=18 of epochs=18 leave none that rejects"):
        suggest(train, validation, BASE.override({"warmup_epochs": 18}))


def test_a_suggested_range_is_tried_at_its_start_too() -> None:
    suggested = make_space(BASE, name="delta_rel", field="delta_rel", distribution="log", low=0.1, high=1)
    values: dict[str, Any] = {**suggested.__dict__, "start": 0.33}
    (space,) = parse_search("delta_rel=suggested", BASE, known(), Space(**values))
    plan = random_trials(BASE, [space], 3, share=4, seed=0)
    assert [trial.name for trial in plan[:2]] == ["delta_rel=0.25", "delta_rel=0.33"]

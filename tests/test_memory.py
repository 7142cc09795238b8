"""What schemes remember: the same on any number of workers and after an interruption, and what it should be."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from raypaml.config import TrainConfig
from raypaml.data.data_folder import open_folder
from raypaml.labels import NEGATIVE, POSITIVE, UNOBSERVED
from raypaml.losses.formulas import estimates_step
from raypaml.runs.checkpoint import MEMORY, valid_checkpoints
from raypaml.runs.ranks import Ranks
from raypaml.runs.run_folder import claim
from raypaml.training.class_scores import ClassScores
from raypaml.training.label_estimates import LabelEstimates
from raypaml.training.scheme_state import ClassMeans
from raypaml.training.state_builders import scheme_state_of
from tests.conftest import run_distributed
from tests.test_loop import config, history, train_here, weights
from tests.test_pseudo_labels import noisy_truth

ALONE = Ranks(0, 1, torch.device("cpu"), None)
PSEUDO = "pseudo.parquet"
"""The pseudo labels of `gpr`, beside the run whose priors `csl` takes."""
REMEMBERING = ("ignore", "csl", "epr", "role", "em_apl", "splc", "ll_cp_abs", "gpr")


def settings_of(scheme: str, priors: Path) -> TrainConfig:
    more: dict[str, Any] = {"csl": {"priors": str(priors), "scheme_settings": "prior=0.49,likely=3"}}
    more |= {"splc": {"scheme_settings": "tau=0.4"}, "ll_cp_abs": {"scheme_settings": "threshold=0.75"}}
    more |= {"gpr": {"pseudo_labels": str(priors / PSEUDO), "scheme_settings": "top=20"}}
    return config(scheme=scheme, checkpoint_steps=1, **more.get(scheme, {}))


def train_all(rank: int, world_size: int, data: Path, where: Path, priors: Path, stop_at: int | None) -> list[bool]:
    run = [(settings_of(scheme, priors), where / scheme) for scheme in REMEMBERING]
    return [train_here(rank, world_size, how, data, folder, stop_at) for how, folder in run]


def remembered(run: Path) -> dict[str, torch.Tensor]:
    path = valid_checkpoints(run / "checkpoints")[0][-1] / MEMORY
    return load_file(path) if path.is_file() else {}


@pytest.fixture(scope="module")
def priors(tiny_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("ignored")
    settings = config(scheme="ignore")
    claim(run, settings, open_folder(tiny_digits))
    assert train_here(0, 1, settings, tiny_digits, run, None)
    noisy_truth(open_folder(tiny_digits), run / PSEUDO, 0.1)
    return run


def test_schemes_that_remember_do_so_over_workers_and_interruptions(
    tiny_digits: Path, tmp_path: Path, priors: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert all(train_all(0, 1, tiny_digits, one, priors, None))
    assert not any(run_distributed(train_all, 2, tiny_digits, two, priors, 5)[0])
    assert all(train_all(0, 1, tiny_digits, two, priors, None))
    for scheme in REMEMBERING:
        assert weights(one / scheme) == weights(two / scheme), scheme
        for name, value in remembered(one / scheme).items():
            assert torch.equal(value, remembered(two / scheme)[name]), (scheme, name)
        for alone, together in zip(history(one / scheme), history(two / scheme), strict=True):
            assert together["loss"] == pytest.approx(alone["loss"], rel=1e-4), scheme
            assert together["rejected"] == alone["rejected"], scheme
    last = history(one / "gpr")[-1]
    assert last["rejected_missed"] / last["rejected"] > 0.7  # a tenth of the scores are those of another image
    for scheme in ("csl", "splc", "ll_cp_abs", "gpr"):
        assert sum(record["rejected"] for record in history(one / scheme)) > 0, scheme
    assert len({weights(one / scheme) for scheme in REMEMBERING}) == len(REMEMBERING)


@pytest.mark.parametrize("last_epoch", [True, False])
def test_means_are_those_of_the_scores_of_all_epochs_or_the_last(last_epoch: bool) -> None:
    """As the published code adds them up; and a checkpoint between the epochs, or within one, changes nothing."""
    logits = torch.randn(3, 10, 4)
    state = ClassMeans(4, last_epoch=last_epoch)
    for epoch in range(3):
        for part in (slice(0, 3), slice(3, 10)):
            state.note(np.arange(10)[part], torch.zeros(0), logits[epoch, part], ALONE, 10)
            state.exchange(ALONE)
            state, before = ClassMeans(4, last_epoch=last_epoch), state
            state.restore(before.tensors())
        state.close(epoch)
        seen = logits[epoch if last_epoch else 0 : epoch + 1].flatten(0, 1)
        torch.testing.assert_close(state.means, torch.sigmoid(seen.double()).mean(0))


@given(seed=st.integers(0, 1000), epoch=st.integers(0, 9), warmup=st.integers(1, 10))
@settings(deadline=None, max_examples=50)
def test_pseudo_negatives_are_the_lowest_share_of_a_class(seed: int, epoch: int, warmup: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn((400, 3), generator=rng)
    labels = torch.randint(-2, 2, (400, 3), generator=rng).clamp(min=UNOBSERVED).to(torch.int8)
    state = ClassScores(3, config(epochs=10, warmup_epochs=warmup).loss, 10, 0.9)
    state.note(np.arange(400), labels, logits, ALONE, 400)
    state.exchange(ALONE)
    state.close(epoch)
    found = state.known(np.arange(400), labels)
    whole = Fraction(9, 10)  # exact: 0.9 x 200 are 180 entries, and not 179 by a float's last digit
    share = Fraction(0) if warmup == 10 else min(whole, max(Fraction(0), whole * (epoch + 2 - warmup) / (10 - warmup)))
    for k in range(3):
        unobserved = logits[labels[:, k] == UNOBSERVED, k].double()
        chosen = unobserved[unobserved < found["threshold"][k]]
        wanted = int(share * len(unobserved))
        assert len(chosen) <= wanted
        next_bin = unobserved < found["threshold"][k] + ClassScores.WIDTH
        assert next_bin.sum() > wanted - 1 or share == 0
        if len(chosen):
            assert found["soft"][k] == pytest.approx(torch.sigmoid(chosen).mean().item(), abs=0.01)


def test_estimates_of_few_classes_are_the_whole_matrix(tiny_digits: Path) -> None:
    index = open_folder(tiny_digits).splits["train"]
    state = LabelEstimates(index, 2.0, {"expected": 0.0, "step": 0.7, "epsilon": 1e-5})
    theta = torch.zeros(len(index), 50)
    theta[torch.from_numpy(index.labels(np.arange(len(index))) == POSITIVE)] = state.OBSERVED
    theta[torch.from_numpy(index.labels(np.arange(len(index))) == NEGATIVE)] = -state.OBSERVED
    for epoch in range(3):
        for rows in np.random.default_rng(epoch).permutation(len(index)).reshape(4, -1):
            labels, logits = torch.from_numpy(index.labels(rows)), torch.randn(len(rows), 50)
            torch.testing.assert_close(state.known(rows, labels)["estimates"], theta[rows])
            state.note(rows, labels, logits, ALONE, len(rows))
            count = torch.sigmoid(theta[rows].double()).sum(1).mean().item()
            learning = {"step": 0.7, "expected": 2.0, "count": count, "epsilon": 1e-5}
            theta[rows] = estimates_step(theta[rows], logits, labels, **learning)
        state.exchange(ALONE)


def test_estimates_of_many_classes_keep_the_highest(tiny_digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LabelEstimates, "KEPT", 5)
    index = open_folder(tiny_digits).splits["train"]
    state = LabelEstimates(index, 2.0, {"expected": 0.0, "step": 1.0, "epsilon": 1e-5})
    rows = np.arange(8)
    labels, logits = torch.from_numpy(index.labels(rows)), torch.randn(8, 50)
    before = torch.as_tensor(state.known(rows, labels)["estimates"]).double()
    state.note(rows, labels, logits, ALONE, 8)
    state.exchange(ALONE)
    count = torch.sigmoid(before).sum(1).mean().item()
    whole = estimates_step(before, logits, labels, step=1.0, expected=2.0, count=count, epsilon=1e-5).float()
    found = torch.as_tensor(state.known(rows, labels)["estimates"])
    best = whole.topk(5).indices
    torch.testing.assert_close(found.gather(1, best), whole.gather(1, best))
    torch.testing.assert_close(found.sum(1), whole.sum(1))
    assert (found.sort().values[:, :45].std(1) < 1e-6).all()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"scheme": "csl"}, "scheme=csl needs class priors: train with --scheme ignore first, then give --priors RUN"),
        ({"scheme": "csl", "priors": "nowhere"}, "priors=nowhere: no such run"),
        (
            {"scheme": "hill", "scheme_settings": "lambda=2"},
            "lambda: scheme hill has no such setting; did you mean lamb",
        ),
        ({"scheme": "ll_r_abs", "epochs": 40}, r"threshold=1.5 - 39 x delta_abs=0.1 is -2.4: at 0 every"),
    ],
)
def test_what_a_scheme_cannot_work_with_is_refused(values: dict[str, Any], said: str, tiny_digits: Path) -> None:
    with pytest.raises(ValueError, match=said):
        scheme_state_of(config(**values), open_folder(tiny_digits))


def test_priors_of_another_scheme_are_refused(tiny_digits: Path, tmp_path: Path) -> None:
    data = open_folder(tiny_digits)
    claim(tmp_path, config(scheme="an"), data)
    assert train_here(0, 1, config(scheme="an"), tiny_digits, tmp_path, None)
    with pytest.raises(ValueError, match="holds no mean scores; give a run of --scheme ignore"):
        scheme_state_of(config(scheme="csl", priors=str(tmp_path)), data)

"""What `--reproducible` rests on, and how other runs go on: threads, layers that draw, streams of random numbers."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from raypaml import train as command
from raypaml.config import TrainConfig
from raypaml.model import backbones
from raypaml.model.backbones import Backbone, small
from raypaml.runs.checkpoint import read_memory, valid_checkpoints
from raypaml.runs.random_streams import begin_stream, continue_stream
from raypaml.runs.ranks import Ranks
from raypaml.training.gradients import check_draws_nothing
from raypaml.training.job import prepare_job
from raypaml.training.worker import build_worker
from tests.conftest import newest_files, run_distributed
from tests.test_loop import config, train_here

CPU = torch.device("cpu")

# --- Threads ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("threads", "expected"), [(1, 1), (3, 3), (0, 2)])
def test_a_worker_computes_with_as_many_threads_as_it_says(threads: int, expected: int, tiny_digits: Path) -> None:
    settings = config(threads=threads)
    build_worker(settings, tiny_digits, Path("nowhere"), CPU, lambda _: False)
    assert torch.get_num_threads() == expected
    assert settings.to_dict()["optim"]["threads"] == threads


def test_a_run_begun_before_there_were_threads_goes_on_with_its_shells() -> None:
    assert config().optim.threads == 1
    stored = config().to_dict()
    del stored["optim"]["threads"]
    assert TrainConfig.from_dict(stored).optim.threads == 0
    assert TrainConfig.from_dict(config(threads=3).to_dict()).optim.threads == 3


def test_a_number_of_threads_that_is_not_used_is_said(
    tiny_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = list[str]()
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    settings = config(data=str(tiny_digits), storage=str(tmp_path))
    prepare_job(settings, said.append)
    assert "OMP_NUM_THREADS=7 is not used: each worker computes with --threads 1" in said
    prepare_job(settings.override({"threads": 0}), said.append)
    assert "threads=0, as earlier versions had it: last bits depend on OMP_NUM_THREADS, which is 7" in said
    with pytest.raises(ValueError, match=r"threads=0: reproducible gradients depend on the number.*use --threads 1"):
        command.parse(["digits", "--threads", "0"])
    assert command.parse(["digits", "--threads", "0", "--no-reproducible"])[0].optim.threads == 0


# --- Layers that draw -------------------------------------------------------------------------------------------------


class Functional(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return F.dropout(images.float(), 0.1, self.training)


class Attention(nn.Module):
    def __init__(self, dropout: float):
        super().__init__()
        self.attention = nn.MultiheadAttention(3, 1, dropout=dropout, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        cells = images.float().flatten(2).mT
        return self.attention(cells, cells, cells, need_weights=False)[0]


class Float(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float()


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (nn.Sequential(Float(), nn.Dropout(0.5)), r"1 \(Dropout\)"),
        (nn.Sequential(Float(), nn.Sequential(StochasticDepth(0.2, "row"))), r"1\.0 \(StochasticDepth\)"),
        (nn.Sequential(Functional()), r"0 \(Functional\)"),
        (nn.Sequential(Float(), nn.RReLU()), r"1 \(RReLU\)"),
        (Attention(0.1), r"attention \(MultiheadAttention\)"),
    ],
)
def test_a_layer_that_draws_is_named(layer: nn.Module, name: str) -> None:
    stream = torch.get_rng_state()
    with pytest.raises(ValueError, match=rf"reproducible: {name} draws random numbers.*use --no-reproducible"):
        check_draws_nothing(layer, 8, 8)
    assert torch.equal(torch.get_rng_state(), stream)


@pytest.mark.parametrize("layer", [nn.Sequential(Float(), nn.Dropout(0), StochasticDepth(0, "row")), Attention(0)])
def test_a_layer_that_could_draw_and_does_not_is_taken(layer: nn.Module) -> None:
    check_draws_nothing(layer.eval(), 8, 8)
    assert not layer.training


def test_a_backbone_that_draws_is_refused(tiny_digits: Path, tmp_path: Path) -> None:
    said = r"reproducible: backbone\.net\..*\.1\.stochastic_depth \(StochasticDepth\) draws random numbers"
    with pytest.raises(ValueError, match=said):
        build_worker(config(backbone="swin_t"), tiny_digits, tmp_path, CPU, lambda _: False)


# --- Streams ----------------------------------------------------------------------------------------------------------


def dropping() -> Backbone:
    """`small`, with dropout."""
    plain = small()
    stages = OrderedDict[str, nn.Module]([*plain.named_children(), ("dropout", nn.Dropout(0.3))])
    return Backbone(stages, plain.num_channels, plain.stride)


@pytest.fixture
def dropout(monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    monkeypatch.setitem(backbones.OWN_BACKBONES, "dropping", dropping)
    return config(backbone="dropping", reproducible=False, checkpoint_steps=1, epochs=2)


def test_dropout_is_refused_unless_it_never_learns(dropout: TrainConfig, tiny_digits: Path, tmp_path: Path) -> None:
    exact = dropout.override({"reproducible": True})
    with pytest.raises(ValueError, match=r"backbone\.dropout \(Dropout\) draws.*--freeze-backbone for all epochs"):
        build_worker(exact, tiny_digits, tmp_path, CPU, lambda _: False)
    build_worker(exact.override({"freeze_backbone": 2}), tiny_digits, tmp_path, CPU, lambda _: False)


def test_a_stopped_run_draws_on_where_it_stood(dropout: TrainConfig, tiny_digits: Path, tmp_path: Path) -> None:
    assert train_here(0, 1, dropout, tiny_digits, tmp_path / "whole", None)
    assert not train_here(0, 1, dropout, tiny_digits, tmp_path / "stopped", 2)
    assert train_here(0, 1, dropout, tiny_digits, tmp_path / "stopped", None)
    assert newest_files(tmp_path / "stopped") == newest_files(tmp_path / "whole")


def stop_and_go_on(rank: int, world_size: int, settings: TrainConfig, data: Path, runs: Path) -> list[float]:
    """What the rank would draw next after a whole run, and after one that was stopped and went on."""
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(backbones.OWN_BACKBONES, "dropping", dropping)
        for name, stop in (("whole", None), ("stopped", 2), ("stopped", None)):
            train_here(rank, world_size, settings, data, runs / name, stop)
            drawn.append(torch.rand(1).item())
    return [drawn[0], drawn[2]]


def test_every_rank_draws_from_its_own_stream_and_goes_on_in_it(
    dropout: TrainConfig, tiny_digits: Path, tmp_path: Path
) -> None:
    (one, one_stopped), (other, other_stopped) = run_distributed(stop_and_go_on, 2, dropout, tiny_digits, tmp_path)
    assert one != other
    assert (one_stopped, other_stopped) == (one, other)
    assert newest_files(tmp_path / "stopped") == newest_files(tmp_path / "whole")


def test_another_number_of_workers_begins_new_streams(dropout: TrainConfig, tiny_digits: Path, tmp_path: Path) -> None:
    assert not train_here(0, 1, dropout, tiny_digits, tmp_path, 2)
    newest = valid_checkpoints(tmp_path / "checkpoints")[0][-1]
    kept = read_memory(newest)["random.cpu"]
    assert kept.shape == (1, len(torch.get_rng_state()))
    before = torch.get_rng_state()
    assert not continue_stream({"random.cpu": kept}, Ranks(0, 2, CPU, None))
    assert not continue_stream({}, Ranks(0, 1, CPU, None))
    assert torch.equal(torch.get_rng_state(), before)
    drawn = []
    for where in ((0, 1, 2), (1, 1, 2), (1, 1, 3), (1, 1, 2)):
        begin_stream(0, *where)
        drawn.append(torch.rand(1).item())
    assert len(set(drawn)) == 3
    assert drawn[1] == drawn[3]


def test_what_draws_nothing_keeps_no_stream(tiny_digits: Path, tmp_path: Path) -> None:
    assert not train_here(0, 1, config(checkpoint_steps=1), tiny_digits, tmp_path, 1)
    assert read_memory(valid_checkpoints(tmp_path / "checkpoints")[0][-1]) == {}
    assert json.loads(next(tmp_path.glob("checkpoints/*/state.json")).read_text())["step"] == 1

"""What one worker holds from its first step to its last."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raypaml.config import TrainConfig
from raypaml.data.folder import DataFolder, open_folder
from raypaml.data.plan import Plan, default_lanes
from raypaml.model.cam import CamClassifier
from raypaml.training.checkpoint import State
from raypaml.training.corrections import Corrections
from raypaml.training.distributed import Team
from raypaml.training.drift import Probe, make_probe
from raypaml.training.finite import Doubt
from raypaml.training.gradients import check_reproducible
from raypaml.training.memory import Memory, memory_of
from raypaml.training.models import build_model
from raypaml.training.skips import Skip

TALLY = ("loss", "samples", "rejected", "rejected_missed", "missed")

Report = Callable[[dict[str, Any]], bool]
"""Takes progress; answers whether training should stop at the next opportunity."""


@dataclass
class Worker:
    """What one worker holds."""

    config: TrainConfig
    run_folder: Path
    team: Team
    data: DataFolder
    plan: Plan
    model: CamClassifier
    wrapped: nn.Module
    """The model as training calls it: compiled, its gradients averaged over ranks, or just as it is."""
    average: CamClassifier | None
    """The weights' average over steps, if there is one."""
    optimizer: torch.optim.Optimizer
    state: State
    corrections: Corrections
    memory: Memory
    """The scheme's, besides corrections."""
    report: Report
    tally: Tensor
    """Float64 sums named by TALLY, of this rank, since the last agreement."""
    skipped: list[Skip] = field(default_factory=list)
    """Broken samples of this rank since the last agreement."""
    probe: Probe | None = None
    """On rank 0, if the run has a reference."""
    doubt: Doubt | None = None
    """Of the last step's logits."""

    @property
    def evaluated(self) -> CamClassifier:
        """The model to evaluate and keep."""
        return self.average or self.model

    @property
    def place(self) -> str:
        """Where training is, for messages."""
        return f"epoch {self.state.epoch}, step {self.state.step}"


def prepare(
    config: TrainConfig, data_folder: Path | str, run_folder: Path, device: torch.device, report: Report
) -> Worker:
    """Build a new worker: data, plan, model from the seed, optimizer."""
    team = Team.here(device)
    data = open_folder(data_folder, **config.data.opening)
    index = data.splits["train"]
    size = config.data.global_batch_size
    plan = Plan(
        num_samples=len(index),
        global_batch_size=size,
        lanes=config.data.lanes or default_lanes(size),
        seed=config.run.seed,
        window=config.data.shuffle_window,
        shard_sizes=index.shard_sizes,
    )
    torch.manual_seed(config.run.seed)
    model = build_model(config.model, len(data.vocabulary))
    if config.model.sync_batchnorm:
        model = _synchronised(model, team)
    model = model.to(device)
    if device.type == "cuda":
        model = model.to(memory_format=torch.channels_last)
    if config.optim.reproducible:
        check_reproducible(model, config.optim.micro_batch_size, plan.global_batch_size // plan.lanes)
        torch.backends.cudnn.deterministic = True
    wrapped = model if config.optim.reproducible else team.wrap(model)
    groups = [{"params": model.backbone.parameters()}, {"params": model.head.parameters()}]
    return Worker(
        config=config,
        run_folder=run_folder,
        team=team,
        data=data,
        plan=plan,
        model=model,
        wrapped=torch.compile(wrapped) if config.optim.compile else wrapped,  # type: ignore[arg-type]
        average=copy.deepcopy(model).requires_grad_(False) if config.optim.ema else None,
        optimizer=torch.optim.Adam(groups, lr=config.optim.lr, fused=True),
        state=State(vocabulary=data.vocabulary.digest),
        corrections=Corrections(len(data.vocabulary)),
        memory=memory_of(config, data),
        report=report,
        tally=torch.zeros(len(TALLY), dtype=torch.float64, device=device),
        probe=make_probe(config, data, device) if team.rank == 0 else None,
    )


def _synchronised(model: CamClassifier, team: Team) -> CamClassifier:
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        raise ValueError("sync_batchnorm: this backbone has no BatchNorm; use --no-sync-batchnorm")
    if team.group is not None and team.device.type != "cuda":
        raise ValueError("sync_batchnorm: torch synchronises BatchNorm on GPUs only; use one worker or GPUs")
    whole: CamClassifier = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return whole

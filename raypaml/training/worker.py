"""The worker: everything that one rank holds during training, how it is built, and how it enters an epoch."""

from __future__ import annotations

import copy
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from raypaml.config import TrainConfig, lr_warmup_steps
from raypaml.counting import place_text
from raypaml.data.batches import Reader
from raypaml.data.data_folder import DataFolder, open_folder
from raypaml.data.plan import Plan, default_lanes
from raypaml.explanations.drift import DriftProbe, make_probe
from raypaml.losses.schemes import scheme_of
from raypaml.model.cam import CamClassifier, FeatureClassifier
from raypaml.runs.checkpoint import State
from raypaml.runs.corrections import Corrections
from raypaml.runs.events import Activity, LoopSignal, Message, Report
from raypaml.runs.kept_features import RUN_FOLDER, Features, keeps_features, open_features
from raypaml.runs.mirror import Mirror
from raypaml.runs.models import build_model, placed, prepare_device
from raypaml.runs.random_streams import begin_stream
from raypaml.runs.ranks import Ranks
from raypaml.runs.skips import Skip
from raypaml.runs.worker_time import HeldTime
from raypaml.training.callbacks import CallbackHandler
from raypaml.training.class_counts import ClassCounts
from raypaml.training.gradients import check_draws_nothing, check_reproducible
from raypaml.training.nonfinite import FiniteCheck, PendingStep
from raypaml.training.optimizers import build_optimizer
from raypaml.training.rejections import Rejections
from raypaml.training.saving import Saving
from raypaml.training.scheme_state import SchemeState
from raypaml.training.state_builders import scheme_state_of

READING = "reading"
COMPILING = "compiling"
_NAMED = 3
"""Most shards that a message names."""
TALLY = ("loss", "samples", "rejected", "rejected_missed", "missed")
"""Names of the counts that are summed over the steps of an epoch and over ranks; `loss` is weighted by samples."""
TIMES = ("rank_seconds", "data_seconds", "collective_seconds")
"""Names of the times that are summed like TALLY and follow it in checkpoints: all training, waiting for data, and in
collectives. NaN in an epoch begun by an earlier version, which did not measure them."""


@dataclass
class Worker:
    """Everything that one rank holds during training."""

    config: TrainConfig
    run_folder: Path
    ranks: Ranks
    data: DataFolder
    plan: Plan
    model: CamClassifier
    wrapped: nn.Module
    """The model as training calls it: compiled and wrapped to average gradients over ranks, where that is asked for."""
    average: CamClassifier | None
    """The moving average of the weights, if the run has one."""
    optimizer: torch.optim.Optimizer
    state: State
    corrections: Corrections
    scheme_state: SchemeState
    """The state that the scheme keeps from step to step, besides corrections."""
    rejections: Rejections
    report: Report
    store: Mirror | None
    """The copy of the run folder in an object store, if the storage is one."""
    tally: Tensor
    """Float64 sums named by TALLY, of this rank since ranks last agreed on their progress."""
    class_counts: ClassCounts
    """Rejections by class, of this rank since the last agreement."""
    skipped: list[Skip] = field(default_factory=list)
    """Samples that this rank has skipped since the last agreement."""
    data_seconds: float = 0.0
    """Seconds that this rank has waited for batches since the last agreement."""
    saving: Saving = field(default_factory=Saving)
    held: HeldTime | None = None
    """The record of the run's workers, on rank 0."""
    probe: DriftProbe | None = None
    """Comparison with the reference, on rank 0, if the run has one."""
    features: dict[str, Features] = field(default_factory=dict)
    """Kept features of `train` and `validation`, while the backbone is frozen."""
    finite_check: FiniteCheck | PendingStep | None = None
    """Whether the last step was finite; with nonfinite=skip or rollback it is also completed then."""
    compiled: bool = False
    """Whether a whole batch has gone through the compiled network."""
    notice: bool = False
    """Whether a preemption was announced whose checkpoint is not reported yet."""
    report_steps: int = 1
    """Steps between two agreements; the same on all ranks."""
    calls: CallbackHandler = field(default_factory=CallbackHandler)
    """The program's callbacks, called on rank 0."""
    rolled_back: frozenset[str] = frozenset()
    """Steps that were not finite and from which training has rolled back, as epoch and step in messages."""
    doing: str = "starting"
    """What the worker does now, for the watchdog."""
    moves: int = 0
    """How often `doing` was set: of several stuck workers, the others wait for the one with the fewest."""

    def now(self, doing: str) -> None:
        """Note what this worker does from now on."""
        self.doing = doing
        self.moves += 1
        if self.held:
            self.held.note()

    @property
    def evaluated(self) -> CamClassifier:
        """The model that is evaluated and kept: the average, if there is one."""
        return self.average or self.model

    def say(self, text: str) -> None:
        """Report a line for the user."""
        self.now(text)
        self.report(Message(text))

    @property
    def steps_done(self) -> int:
        """Steps since training began, without the current one."""
        return self.state.epoch * self.plan.steps + self.state.step

    @property
    def place(self) -> str:
        """The current epoch and step, for messages."""
        return place_text(self.state.epoch, self.state.step)

    def whereabouts(self, *, stuck: bool) -> str:
        """Place and activity and, where reading is stuck, the shards read; may be called from another thread."""
        state, text = self.state, f"{self.place}, {self.doing}"
        if not (stuck and self.doing == READING and state.step < self.plan.steps):
            return text
        index = self.data.splits["train"]
        part = self.plan.epoch(state.epoch, self.ranks.rank, self.ranks.world_size)[state.step]  # not the reader's own
        shards = [index.shards[number] for number in sorted(set(index.shard[part.rows].tolist()))]
        return f"{text} {', '.join(shards[:_NAMED])}{' ...' if len(shards) > _NAMED else ''}"


def build_worker(
    config: TrainConfig, data_folder: Path | str, run_folder: Path, device: torch.device, report: Report
) -> Worker:
    """Build a new worker: its data, its plan, a model initialised from the seed, and its optimizer."""
    began, ranks = time.time(), Ranks.here(device)
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
    lr_warmup_steps(config.optim, plan.steps)  # raises where it is longer than the run
    if config.optim.threads:
        torch.set_num_threads(config.optim.threads)
    torch.manual_seed(config.run.seed)
    model = build_model(config.model, len(data.vocabulary))
    if config.model.sync_batchnorm:
        model = _synchronised(model, ranks)
    if scheme_of(config.loss.scheme).rejects_by == "rate":
        model.rejection_alpha = config.loss.rejection_alpha or None
    model = placed(model, device)
    prepare_device(config.optim, device)
    if config.optim.reproducible:
        always_frozen = config.optim.freeze_backbone >= config.optim.epochs
        lane = plan.global_batch_size // plan.lanes
        check_reproducible(model, config.optim.micro_batch_size, lane, always_frozen=always_frozen)
        if not always_frozen:
            height, width, _ = Reader(data.shards, index, (), skip_broken=True).shape
            check_draws_nothing(model, height, width)
        torch.backends.cudnn.deterministic = True
    if ranks.rank > 0:  # ranks draw different dropout masks; the weights above are the same on all
        begin_stream(config.run.seed, ranks.rank, 0, 0)
    scheme_state = scheme_state_of(config, data)
    scheme_state.live_on(device)
    return Worker(
        config=config,
        run_folder=run_folder,
        ranks=ranks,
        data=data,
        plan=plan,
        model=model,
        wrapped=_wrapped(model, config, ranks),
        average=copy.deepcopy(model).requires_grad_(False) if config.optim.ema else None,
        optimizer=build_optimizer(model, config.optim),
        state=State(vocabulary=data.vocabulary.digest),
        corrections=Corrections(len(data.vocabulary)),
        scheme_state=scheme_state,
        rejections=Rejections(run_folder, index, ranks.rank),
        report=report,
        store=Mirror.of(config.run.storage, run_folder),
        tally=torch.zeros(len(TALLY), dtype=torch.float64, device=device),
        class_counts=ClassCounts(len(data.vocabulary), device),
        held=HeldTime(run_folder, ranks.world_size, device.type, began) if ranks.rank == 0 else None,
        probe=make_probe(config, data, device) if ranks.rank == 0 else None,
    )


def _wrapped(module: nn.Module, config: TrainConfig, ranks: Ranks) -> nn.Module:
    """Compile a model, then wrap it to average gradients over ranks, where that is asked for.

    In the other order, the forward pass of the wrapper would break the graph. torch still cuts the graph at the buckets
    of gradients, so that these are reduced while the others are computed.
    """
    if config.optim.compile:
        torch.compiler.reset()  # forget the graphs of earlier models, for torch keeps only so many
        module = torch.compile(module, dynamic=False)  # type: ignore[assignment]
    return module if config.optim.reproducible else ranks.wrap(module)


def enter_epoch(worker: Worker) -> bool:
    """Freeze the backbone or let it learn, as the epoch requires; compute, open or remove kept features.

    Returns:
        False where the worker was asked to stop before all features were computed.
    """
    config, model = worker.config, worker.model
    frozen = worker.state.epoch < config.optim.freeze_backbone
    if frozen == model.frozen:
        return True
    model.freeze(frozen)
    worker.features = {}
    if frozen and config.augmentation.changes_images and config.optim.feature_cache != "off":
        worker.say(
            f"augment={config.data.augment}: frozen epochs compute the backbone's features again, for images change in "
            "every epoch; with --augment none --no-flip they are computed once"
        )
    if frozen and keeps_features(config):
        for split in ("train", "validation"):
            features = kept_features(worker, split)
            if features is None:
                return False
            worker.features[split] = features
    module = FeatureClassifier(model) if worker.features else model
    worker.wrapped, worker.compiled = _wrapped(module, config, worker.ranks), False
    if not frozen:
        drop_features(worker)
    return True


def kept_features(worker: Worker, split: str) -> Features | None:
    """Open the kept features of a split, after computing those that are missing; None where asked to stop."""
    return open_features(
        worker.model, worker.data, split, worker.ranks, worker.config, worker.run_folder, _FeatureListener(worker)
    )


class _FeatureListener:
    """Reports the progress of computing features, and notes whether the answer is to stop."""

    def __init__(self, worker: Worker):
        self._worker, self._asked = worker, False

    def say(self, text: str) -> None:
        self._tell(Message(text))

    def moved(self, text: str) -> None:
        self._tell(Activity(text))

    def _tell(self, event: Message | Activity) -> None:
        self._worker.now(event.text)
        self._asked |= self._worker.report(event) == LoopSignal.STOP

    def stops(self) -> bool:
        return bool(self._worker.ranks.sum(torch.tensor([float(self._asked)])).item())


def drop_features(worker: Worker) -> None:
    """Close kept features, and remove those in the run's own folder."""
    worker.features = {}
    worker.ranks.barrier()  # no rank reads them any more
    if worker.ranks.rank == 0:
        shutil.rmtree(worker.run_folder / RUN_FOLDER, ignore_errors=True)


def _synchronised(model: CamClassifier, ranks: Ranks) -> CamClassifier:
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        raise ValueError("sync_batchnorm: this backbone has no BatchNorm; use --no-sync-batchnorm")
    if ranks.group is not None and ranks.device.type != "cuda":
        raise ValueError("sync_batchnorm: torch synchronises BatchNorm on GPUs only; use one worker or GPUs")
    whole: CamClassifier = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return whole

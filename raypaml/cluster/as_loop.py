"""Training within a user's own Ray program: as the function of a TorchTrainer's workers, or of a Tuner's trials."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar, cast

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray import tune

from raypaml.cluster.session import is_train_worker
from raypaml.cluster.tasks import own_device
from raypaml.config import TrainConfig
from raypaml.data.storage import Location
from raypaml.evaluation.result_records import RunResult
from raypaml.extensions import import_modules
from raypaml.recipes import recipe, resolve
from raypaml.run_report.conclude import conclude_run
from raypaml.runs.checkpoint import valid_checkpoints
from raypaml.runs.events import EpochReport, Event, LoopSignal, Report
from raypaml.runs.ranks import Ranks
from raypaml.runs.run_folder import claim, log_into
from raypaml.runs.run_settings import typed_settings
from raypaml.runs.sole_writer import RESTART_SECONDS, sole_writer
from raypaml.settings import SettingValues
from raypaml.training.job import prepare_job
from raypaml.training.loop import train

_Result = TypeVar("_Result")


def train_in_worker(run: TrainConfig | str, *, checkpoints: bool = False, **settings: Any) -> RunResult:
    """Train with the processes that Ray has started; call it in the function of a TorchTrainer, on all workers, or of a
    Tuner. It starts neither Ray nor processes, installs no signal handlers, and uses all workers that there are.

    After every epoch its record, as in `metrics.jsonl`, is reported by `ray.train.report` in a worker, and by
    `ray.tune.report` in a trial, where a scheduler may stop it. Called again with the same name, as Ray does after the
    loss of a worker, it continues from the newest checkpoint.

    Args:
        run: the name of a recipe, or a configuration.
        checkpoints: whether to report the newest checkpoint with every record, so that Ray copies it to its storage.
        settings: settings by the names of the flags of `raypaml train`, with `_` for `-`. `storage` must be an absolute
            path or a store, because Ray gives its workers folders of their own. `name` is that of the experiment or of
            the trial unless it is given.

    Returns:
        The content of `result.json`, the figures of the test split, on every worker.

    Raises:
        ValueError: something is wrong; every worker raises the same error.
    """
    wanted = settings.get("device", "auto")
    ranks = Ranks.here(ray.train.torch.get_device() if is_train_worker() else torch.device(own_device(wanted)))
    config = _configuration(run, settings, ranks)
    with ExitStack() as held:
        config, address, folder = _on_rank_0(ranks, lambda: _claimed(config, held))
        with log_into(folder / "logs" / f"worker-{ranks.rank}.log"):
            finished = train(
                config, address, folder, ranks.device, _reporter(ranks, folder, checkpoints), commit_first=checkpoints
            )
        assert finished, "nobody asks it to stop"
        return _on_rank_0(ranks, lambda: conclude_run(prepare_job(config, logging.info)))


def _configuration(run: TrainConfig | str, settings: SettingValues, ranks: Ranks) -> TrainConfig:
    if imports := settings.get("imports", ""):
        import_modules(imports)
    given = {"workers": ranks.world_size, "device": ranks.device.type} | typed_settings(settings)
    if given["workers"] != ranks.world_size:
        raise ValueError(f"workers={given['workers']}: Ray has started {ranks.world_size}; leave it out")
    config = resolve(recipe(run) if isinstance(run, str) else run, given)
    where = Location(config.run.storage)
    if ray.is_initialized() and where.is_local and not Path(config.run.storage).is_absolute():
        raise ValueError(
            f"storage={config.run.storage}: Ray gives its workers working directories of their own; give an absolute "
            f"path that all workers see, or s3://..."
        )
    return config.override({"name": config.run.name or _name_of_ray()})


def _name_of_ray() -> str:
    """The name of Ray's experiment or trial, the same when Ray starts it again; empty where there is neither."""
    if is_train_worker():
        return str(ray.train.get_context().get_experiment_name())
    return str(tune.get_context().get_trial_id()) if _is_trial() else ""


def _is_trial() -> bool:
    from ray.tune.trainable.trainable_fn_utils import _in_tune_session

    return bool(_in_tune_session())


def _claimed(config: TrainConfig, held: ExitStack) -> tuple[TrainConfig, str, Path]:
    """The run's configuration, data and folder, which this process alone writes until `held` is closed."""
    job = prepare_job(config, logging.info)
    held.enter_context(sole_writer(job.folder, "raypaml.train_in_worker", logging.warning, RESTART_SECONDS))
    claim(job.folder, job.config, job.data)
    return job.config, job.data.address, job.folder


def _on_rank_0(ranks: Ranks, function: Callable[[], _Result]) -> _Result:
    """Call a function on rank 0 alone; all ranks return its result, or raise its error."""
    outcome: list[_Result | Exception | None] = [None]
    if ranks.rank == 0:
        try:
            outcome[0] = function()
        except Exception as error:
            outcome[0] = error
    if ranks.group is not None:
        dist.broadcast_object_list(outcome, group=ranks.group, device=ranks.device)
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return cast("_Result", outcome[0])


def _reporter(ranks: Ranks, folder: Path, checkpoints: bool) -> Report:
    """A function for the loop to report to; on all ranks it passes epoch records on to Ray, if there is one."""
    if is_train_worker():
        tell, made = ray.train.report, ray.train.Checkpoint
    elif _is_trial():
        tell, made = tune.report, tune.Checkpoint
    else:
        return lambda _: LoopSignal.NOTHING

    def report(event: Event) -> LoopSignal:
        if isinstance(event, EpochReport):
            newest = None
            if checkpoints and ranks.rank == 0:
                newest = made.from_directory(str(valid_checkpoints(folder / "checkpoints")[0][-1]))
            tell(event.record, checkpoint=newest)
        return LoopSignal.NOTHING

    return report

"""A run made ready to start: everything that can be checked before a worker starts is checked here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from raypaml.augmentation.augmentations import AS_PUBLISHED
from raypaml.config import EXECUTION_FIELDS, TrainConfig, lr_warmup_steps
from raypaml.data.data_folder import DataFolder, open_folder, resolve_data
from raypaml.data.plan import check_world_size, default_lanes
from raypaml.explanations.drift import make_probe
from raypaml.losses.schemes import scheme_of
from raypaml.model.backbones import check_backbone
from raypaml.recipes import otherwise_than_own
from raypaml.runs.models import check_model
from raypaml.runs.pseudo_labels import with_pseudo_labels
from raypaml.runs.run_folder import as_begun, changed_data, check_same_run, new_name, open_run, stored_config
from raypaml.runs.run_length import LENGTH_FIELDS
from raypaml.runs.weights_of_run import full_address, with_weights_of_run
from raypaml.training.estimate import describe_estimate, estimate
from raypaml.training.going_on import going_on
from raypaml.training.planned_cost import cost_lines
from raypaml.training.rejection_counts import nothing_rejected, plan_of
from raypaml.training.state_builders import scheme_state_of
from raypaml.writable import check_writable


@dataclass(frozen=True)
class Job:
    """A run that is checked and ready to start."""

    config: TrainConfig
    data: DataFolder
    folder: Path


def prepare_job(config: TrainConfig, say: Callable[[str], None]) -> Job:
    """Check a configuration, its data, its model with weights, and the run's folder.

    Args:
        config: the configuration that is asked for.
        say: is called with each line that the user should read.

    Returns:
        The run, with everything filled in that the configuration left open.

    Raises:
        ValueError: something is wrong; the message names the setting to change.
    """
    data = checked_data(config, say)
    lr_warmup_steps(config.optim, plan_of(config, data.splits["train"]).steps)  # raises where longer than the run
    config = with_pseudo_labels(config, data, say)
    scheme_state_of(config, data)
    make_probe(config, data, "cpu")
    check_model(config, data, say)
    if config.optim.feature_cache not in ("run", "off"):  # the same folder for workers in other directories
        config = config.override({"feature_cache": str(Path(config.optim.feature_cache).absolute())})
    config = config.override({"name": config.run.name or new_name(config)})
    folder = open_run(config.run.storage, config.run.name)
    check_writable(folder)
    config, asked = as_begun(folder, config), config.flat()
    if changed := [f"{name}={value}" for name, value in config.flat().items() if value != asked[name]]:
        say(f"{folder}: begun by an earlier version, the run goes on as it began, with {', '.join(changed)}")
    config = _with_weights(folder, config, data, say)
    check_same_run(folder, config, data, (*EXECUTION_FIELDS, *LENGTH_FIELDS))
    other_length = going_on(folder, config, plan_of(config, data.splits["train"]).steps)
    _say_threads(config, say)
    for line in (
        changed_data(folder, data, data.splits) if stored_config(folder) else "",
        other_length,
        nothing_rejected(config, data.splits["train"]),
        *_without_effect(config, data),
        *otherwise_than_own(config),
    ):
        if line:
            say(line)
    return Job(config, data, folder)


def plan_job(config: TrainConfig, say: Callable[[str], None]) -> str:
    """Describe what a run would need; nothing is started, and no weights are loaded."""
    data = checked_data(config, say)
    config = with_weights_of_run(with_pseudo_labels(config, data, say), data, say)
    needs = estimate(config, data)
    return "\n".join([describe_estimate(config, needs), *cost_lines(config, needs.images)])


def _with_weights(folder: Path, config: TrainConfig, data: DataFolder, say: Callable[[str], None]) -> TrainConfig:
    """Call `with_weights_of_run`, except for a run begun from these weights, which continues without the other run."""
    before, asked = stored_config(folder), config.model
    if before and asked.from_run:
        weights = full_address(asked.from_run), asked.from_sha256
        if weights == (before.model.from_run, before.model.from_sha256):
            return config.override({"from_run": before.model.from_run})
    return with_weights_of_run(config, data, say)


def _without_effect(config: TrainConfig, data: DataFolder) -> Iterator[str]:
    """What to say of settings, such as a recipe's, that do not suit the scheme, and of splits that judge nothing."""
    loss, augmentation = config.loss, config.augmentation
    if loss.rejection_alpha and scheme_of(loss.scheme).rejects_by != "rate":
        yield f"rejection_alpha={loss.rejection_alpha:g} has no effect: {loss.scheme} does not reject by delta_rel"
    if config.data.augment == AS_PUBLISHED and config.data.flip and not augmentation.mirrors:
        yield f"images are mirrored too, which {loss.scheme}'s published augmentation does not: --no-flip leaves it out"
    if not data.splits["validation"].num_labels:
        yield "no label of the validation split is observed: no epoch has a validation mAP, and the last one is tested"
    if not data.splits["test"].num_labels:
        yield "no label of the test split is observed: the model is trained, and its test has no mAP"


def _say_threads(config: TrainConfig, say: Callable[[str], None]) -> None:
    """Say where the shell's number of threads is not used, and where a run of an earlier version depends on it."""
    asked, threads = os.environ.get("OMP_NUM_THREADS"), config.optim.threads
    if threads and asked not in (None, str(threads)):
        say(f"OMP_NUM_THREADS={asked} is not used: each worker computes with --threads {threads}")
    if config.optim.reproducible and not threads:
        said = f"is {asked}" if asked else "is not set"
        say(f"threads=0, as earlier versions had it: last bits depend on OMP_NUM_THREADS, which {said}")


def checked_data(config: TrainConfig, say: Callable[[str], None]) -> DataFolder:
    """Open the data of a configuration, after checking its settings; ValueError where something is wrong."""
    config.check()
    # the backbone before the data, which may have to be drawn or fetched
    check_backbone(config.model.backbone, config.model.weights)
    check_world_size(config.run.workers, config.data.lanes or default_lanes(config.data.global_batch_size))
    return open_folder(resolve_data(config.data.data, say), **config.data.opening)

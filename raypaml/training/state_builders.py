"""Building the state with which a run's scheme starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from raypaml.config import TrainConfig, rejecting_epochs
from raypaml.data.data_folder import DataFolder
from raypaml.extensions import named_function
from raypaml.losses.scheme_losses import check_schedule
from raypaml.losses.schemes import all_settings, scheme_of
from raypaml.runs.pseudo_labels import open_pseudo_labels
from raypaml.training.class_scores import ClassScores
from raypaml.training.label_estimates import LabelEstimates
from raypaml.training.priors import mean_positives, read_priors
from raypaml.training.scheme_state import ClassMeans, ClassPriors, ExpectedPositives, PseudoScores, SchemeState


@dataclass(frozen=True, kw_only=True)
class StateSources:
    """What the initial state of a scheme is built from."""

    config: TrainConfig
    data: DataFolder
    settings: Mapping[str, float]
    """All settings of the scheme, given or default."""


STATE_BUILDERS: dict[str, Callable[[StateSources], SchemeState]] = {
    "": lambda _: SchemeState(),
    "class_means": lambda start: ClassMeans(len(start.data.vocabulary), last_epoch=bool(start.settings["last_epoch"])),
    "class_priors": lambda start: ClassPriors(read_priors(start.config.loss.priors, start.data)),
    "expected_positives": lambda start: ExpectedPositives(mean_positives(start.data)),
    "class_scores": lambda start: ClassScores(
        len(start.data.vocabulary), start.config.loss, start.config.optim.epochs, start.settings["share"]
    ),
    "pseudo_scores": lambda start: PseudoScores(
        open_pseudo_labels(start.config, start.data), mean_positives(start.data)
    ),
    "label_estimates": lambda start: LabelEstimates(
        start.data.splits["train"], mean_positives(start.data), start.settings
    ),
}
"""Functions that build the initial state, by the name that a scheme's record declares as its `state`."""


def scheme_state_of(config: TrainConfig, data: DataFolder) -> SchemeState:
    """Build the initial state of a run's scheme.

    Raises:
        ValueError: settings, schedule, priors or labels are not as the scheme needs them.
    """
    loss = config.loss
    scheme = scheme_of(loss.scheme)
    if scheme.needs_truth and not data.splits["train"].has_truth:
        raise ValueError(f"scheme={scheme.name}: {data.path} has no full labels; choose a scheme for partial labels")
    settings = all_settings(scheme.name, loss.scheme_settings, loss.scheme_defaults)
    last = rejecting_epochs(config.optim.epochs, loss.warmup_epochs) + (loss.schedule == "samples")
    check_schedule(scheme.name, settings, last)
    builder = named_function(scheme.state) if ":" in scheme.state else STATE_BUILDERS[scheme.state]
    state: SchemeState = builder(StateSources(config=config, data=data, settings=settings))
    return state

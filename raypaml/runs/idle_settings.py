"""Settings that somebody gives, and that have no effect beside the others: they are said, each with the reason."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from raypaml.config import TrainConfig
from raypaml.losses.schemes import scheme_of


def idle_settings(config: TrainConfig, given: Collection[str]) -> Iterator[str]:
    """A line for each given setting that has no effect in this configuration.

    Args:
        config: the configuration.
        given: names of the settings that were given; those of a recipe may suit another scheme, and are not spoken of.
    """
    for name, why in _reasons(config).items():
        if why and name in given:
            yield f"{name}={config.flat()[name]} has no effect: {why}"


def _reasons(config: TrainConfig) -> dict[str, str]:
    """Why a setting has no effect, by its name; "" where it has one."""
    scheme, optim = scheme_of(config.loss.scheme), config.optim
    no_rate = "" if scheme.rejects_by == "rate" else f"{scheme.name} does not reject by a rate"
    no_rejection = "" if scheme.rejects_by else f"{scheme.name} rejects nothing"
    local = "the data lie on this machine, not in a store" if "://" not in config.data.data else ""
    kept = optim.freeze_backbone and optim.feature_cache not in ("run", "off")
    return {
        "cache": "" if config.loss.pseudo_labels else local,
        "cache_gb": local,
        "decay_biases": "" if optim.weight_decay else "there is no weight decay; give --weight-decay",
        "delta_rel": no_rate,
        "feature_cache": "" if optim.freeze_backbone else "the backbone learns from the start; give --freeze-backbone",
        "head_init": "the head starts from the weights of the file" if config.model.head_weights else "",
        "history": no_rejection,
        "priors": "" if scheme.state == "class_priors" else f"{scheme.name} uses no class priors",
        "probe_images": ""
        if config.run.reference
        else "maps are compared with those of --reference, which is not given",
        "rejection_rounding": no_rate,
        "rejection_scope": no_rate,
        "test_features": ""
        if kept
        else "features are kept in a folder alone, of a frozen backbone: --feature-cache DIR",
    }

"""The configuration that a program asks for in Python: a recipe or a configuration, with changed settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_origin

import numpy as np

from raypaml.cli import known_names
from raypaml.config import TrainConfig
from raypaml.extensions import import_modules
from raypaml.fields import field_types
from raypaml.files import Place
from raypaml.runs.run_flags import AskedConfig, asked_config, base_config
from raypaml.settings import SettingValues


def configured(
    config_or_recipe: TrainConfig | Place,
    settings: Mapping[str, object],
    usual: SettingValues | None = None,
) -> AskedConfig:
    """The configuration of a recipe, a file or another configuration, with changed settings.

    Args:
        config_or_recipe: a configuration; the name of a recipe; or a file such as the config.json of a run or the
            best.json of a search. Where `name` and `storage` are those of an existing run, its configuration is used.
        settings: the changed settings by name; names are those of the flags, with `_` for `-`.
        usual: settings with another default than the recipe's.

    Raises:
        ValueError: a setting that is not known, or of another type.
    """
    given = typed_settings(settings)
    if given.get("imports"):
        import_modules(given["imports"])
    from_file = not isinstance(config_or_recipe, TrainConfig) and str(config_or_recipe).endswith(".json")
    if isinstance(config_or_recipe, TrainConfig):
        base = config_or_recipe
    elif from_file:
        base = base_config({"config": os.fspath(config_or_recipe), "recipe": None, **given})
    else:
        base = base_config({"config": None, "recipe": str(config_or_recipe), **given})
    base = base.override(dict(usual or {}))
    return asked_config(base, given, stored=from_file or isinstance(config_or_recipe, TrainConfig))


def typed_settings(settings: Mapping[str, object]) -> SettingValues:
    """Convert settings to their fields' types: whole numbers to floats, numpy's values to Python's, paths to text.

    Raises:
        ValueError: a setting that is not known, or of another type.
    """
    kinds = {name: kind for _, group in TrainConfig().groups() for name, kind in field_types(type(group)).items()}
    if unknown := [name for name in settings if name not in kinds]:
        raise ValueError(f"{unknown[0]}={settings[unknown[0]]!r}: no such setting{known_names(unknown[0], kinds)}")
    return {name: _typed(name, value, kinds[name]) for name, value in settings.items()}


def _typed(name: str, value: object, kind: type) -> object:
    if isinstance(value, os.PathLike) and kind is str:
        value = str(Path(value))
    if isinstance(value, np.generic):  # such as a value of a table
        value = value.item()
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if get_origin(kind) is Literal:
        kind = str  # config.check names the choices
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{name}={value!r}: must be {kind.__name__}, not {type(value).__name__}")
    return value

"""What a page of a run says beside its figures: settings other than the recipe's, where labels come from, commands."""

from __future__ import annotations

import shlex
from pathlib import Path

from raypaml.cli import command
from raypaml.config import TrainConfig
from raypaml.data.data_folder import DataFolder
from raypaml.preparation.record import read_record
from raypaml.recipes import RECIPES, recipe, resolve

OF_THIS_RUN = ("name", "storage", "data", "from_sha256")
"""Settings that say which run and which files are meant, and that no recipe can know."""
PROPOSED = (
    "The verified labels of Open Images were proposed by machines before people confirmed or rejected them. A class of "
    "an image has a label only where it was proposed: a negative is a proposal that people rejected, and what no "
    "machine proposed counts nowhere. Average precision is measured among these labels, the machines' mistakes and "
    "finds; it is not the precision over all images. The tables of classes give the labels that each figure rests on."
)


def changed_settings(config: TrainConfig) -> list[tuple[str, object, object]] | None:
    """Name, the recipe's value for this scheme, and the run's, of each setting that differs; None without a recipe."""
    if config.recipe not in RECIPES:
        return None
    usual, has = resolve(recipe(config.recipe), {"scheme": config.loss.scheme}).flat(), config.flat()
    return [
        (name, usual[name], value) for name, value in has.items() if name not in OF_THIS_RUN and value != usual[name]
    ]


def label_origin(data: DataFolder, config: TrainConfig) -> str:
    """What to say of where the labels of the test split come from; empty where there is nothing to say.

    Data in a store has no record here; its origin is then told from the recipe.
    """
    record = read_record(data.path) if isinstance(data.path, Path) else None
    source = record["parameters"].get("source") if record else config.recipe.partition("_")[0]
    return PROPOSED if source == "openimages" else ""


def next_commands(folder: Path, config: TrainConfig) -> list[tuple[str, str]]:
    """What can be done next with a run, each with its command."""
    run, epochs = shlex.quote(str(folder)), 2 * config.optim.epochs
    parts = f" --import {shlex.quote(config.run.imports)}" if config.run.imports else ""
    again = f"--name {shlex.quote(folder.name)} --storage {shlex.quote(config.run.storage)}"
    return [
        (
            "Choose alpha and thresholds of use on the validation split",
            f"{command('evaluate')} {run} --choose-alpha{parts}",
        ),
        ("Classify pictures", f"{command('predict')} {run} PICTURES --out predictions.csv{parts}"),
        (
            "Every convention, and a CSV of all classes",
            f"{command('aggregate')} {run} --csv classes.csv{parts}",
        ),
        ("See the maps of the worst false positives", f"{command('explain')} {run} --show errors{parts}"),
        ("List training labels that are likely missing", f"{command('audit')} {run}{parts}"),
        ("Write the model for use elsewhere", f"{command('export')} {run}{parts}"),
        ("Train on, for more epochs", f"{command('train')} {again} --epochs {epochs}{parts}"),
    ]

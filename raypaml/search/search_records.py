"""The JSON files in the folder of a search, and those that a search writes into the folders of its trials."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, get_type_hints

from raypaml.config import EARLIER, EXECUTION_FIELDS, ConfigRecord, TrainConfig
from raypaml.json_types import Figure, check_fields
from raypaml.search.spaces import Space, Value
from raypaml.stored_json import read_if_there, read_stored, refused_as

SEARCH_FILE = "search.json"
BEST_FILE = "best.json"
_LATER = ("given", "whole", "start")
"""Parts of the question that those of earlier versions lack."""

Searcher = Literal["random", "grid", "tpe"]
"""How trials are chosen."""


class SearchRecord(TypedDict):
    """The content of `search.json`."""

    question: dict[str, Any]
    """How trials are chosen, as `SearchPlan.question` says, and the settings of the base by their names."""
    trials: int
    """The number of trials that the search was last asked for."""


class BestTrial(TypedDict):
    """What `best.json` says of the best trial."""

    trial: str
    validation_mean_ap: Figure
    verdict: str
    folder: str
    """The folder of the search."""


class Best(TypedDict):
    """The content of `best.json`."""

    found: BestTrial
    config: ConfigRecord


class Proposed(TypedDict):
    """The content of `proposed.json`."""

    trials: list[dict[str, Value]]
    """The values of the searched fields, of every trial that was proposed."""


class SharedWarmup(TypedDict):
    """The content of a trial's `shared.json`."""

    epochs: int
    """Epochs that it took from a shared warm-up."""


class FailedTrial(TypedDict):
    """The content of a trial's `error.json`."""

    error: str
    may_go_better: NotRequired[bool]
    """Whether another try may succeed, as after too many losses; earlier versions did not say."""


def _question_type() -> type:
    """A dataclass with the fields of a question."""
    own: dict[str, Any] = {"recipe": str, "spaces": list[Space], "searcher": Searcher, "share": int, "points": int}
    own |= {"early": bool, "given": dict[str, Value]}
    for _, group in TrainConfig().groups():
        own |= get_type_hints(type(group))
    return dataclasses.make_dataclass("Question", own.items())


_QUESTION = _question_type()


def search_record(folder: Path) -> SearchRecord:
    """Read the record of a search; ValueError where the folder has none, or a damaged one."""
    path = folder / SEARCH_FILE
    if not path.is_file():
        raise ValueError(f"{folder}: not the folder of a search; it has no {SEARCH_FILE}")
    with refused_as(path, "the record of a search", "give the search another --name"):
        record = read_stored(path, SearchRecord)
        check_fields(record["question"], _QUESTION, {*EARLIER, *EXECUTION_FIELDS, *_LATER}, "question")
        return record


def read_search_record(folder: Path) -> SearchRecord | None:
    """Read the record of a search; None where there is none, ValueError where it is damaged."""
    return search_record(folder) if (folder / SEARCH_FILE).is_file() else None


def read_best(folder: Path) -> Best | None:
    """Read what a search found; None before there is a verdict."""
    return read_if_there(folder / BEST_FILE, Best, "the best trial of a search", "the same search writes it again")


def read_alpha_curve(trial_folder: Path) -> dict[float, float]:
    """Read the validation mAP of a trial by alpha at evaluation; empty where it was not computed."""
    path = trial_folder / "alpha_curve.json"
    curve = read_if_there(path, dict[str, Figure], "the mAP of a trial by alpha") or {}
    with refused_as(path, "the mAP of a trial by alpha"):
        return {float(alpha): mean_ap for alpha, mean_ap in curve.items()}

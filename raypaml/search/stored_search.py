"""Reads a search from its folder: its question, and every trial that is planned or was run."""

from __future__ import annotations

from pathlib import Path

from raypaml.config import EARLIER, TrainConfig
from raypaml.runs.run_folder import read_config
from raypaml.search.search_flags import plan_trials
from raypaml.search.search_folder import SearchPlan
from raypaml.search.search_records import search_record
from raypaml.search.spaces import Space, Value
from raypaml.search.trials import Trial


def read_search(folder: Path) -> SearchPlan:
    """Read the question of a search; settings that do not decide its trials have their default values.

    Raises:
        ValueError: not the folder of a search, or a damaged one.
    """
    question = search_record(folder)["question"]
    spaces = tuple(Space(**entry | {"values": tuple(entry["values"])}) for entry in question["spaces"])
    names = ("searcher", "share", "points", "early")
    return SearchPlan(
        base=_base(folder, question["recipe"], question),
        spaces=spaces,
        given=question.get("given"),
        **{name: question[name] for name in names},
    )


def _base(folder: Path, recipe: str, question: dict[str, Value]) -> TrainConfig:
    blank = TrainConfig(recipe=recipe)
    values = {name: value for name, value in question.items() if name in blank.flat()}
    begun = next((folder / "trials").glob("*/config.json"), None)
    workers = read_config(begun).run.workers if begun else 1  # workers of a trial, from which the cost follows
    places = {"name": folder.name, "storage": str(folder.parent), "workers": workers}
    return blank.override(EARLIER | values | places)


def read_trials(search: SearchPlan) -> list[Trial]:
    """The trials of a search: those of the plan, then the finalists with other seeds, in the order of these."""
    plan = plan_trials(search, search_record(search.folder)["trials"])
    names = {trial.run_name for trial in plan}
    repeats = [
        Trial(trial.values, int(path.name.rpartition("=")[2]), repeats=True)
        for trial in plan
        for path in (search.folder / "trials").glob("*")
        if path.name not in names and path.name.rpartition(",seed=")[0] == trial.run_name
    ]
    return [*plan, *sorted(repeats, key=lambda trial: trial.seed)]

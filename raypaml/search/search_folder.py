"""The folder of a search: what was asked, and the state of every trial, read from the trials' own run folders.

<storage>/<search>/search.json       the question; only the same one may continue here
                   trials/NAME/      a run folder each, with error.json or stopped.json where it did not finish
                   warmups/KEY/after-EPOCH/    what trials with the same warm-up start from
                   proposed.json     the trials of a searcher that learns from results
                   best.json  trials.csv  report.html
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

from raypaml.config import EARLIER, EXECUTION_FIELDS, TrainConfig
from raypaml.counting import epoch_number
from raypaml.files import write_json
from raypaml.losses.schemes import settings_it_has
from raypaml.recipes import recipe, resolve
from raypaml.runs.history import (
    METRICS_FILE,
    VALIDATION_MEAN_AP,
    EpochRecord,
    History,
    read_history,
    validation_scores,
)
from raypaml.runs.run_folder import had_before
from raypaml.search.spaces import Space
from raypaml.search.trials import Trial
from raypaml.search.warmup import warmup_key

Searcher = Literal["random", "grid", "tpe"]
"""How trials are chosen."""
TrialState = Literal["planned", "running", "stopped", "failed", "finished"]


class TrialProgress(TypedDict):
    """What is told of an epoch of a trial."""

    epoch: int
    """From 1."""
    beyond: int
    """Epochs since the end of the search's longest warm-up, from which on ASHA compares trials."""
    validation_mean_ap: float
    """0..1."""
    rejected: int
    """Entries rejected in the epoch."""
    rejection_precision: float | None
    """Share of them that were missed positives; None where the truth is not known."""


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """A question: what is varied around which configuration, and how."""

    base: TrainConfig
    spaces: tuple[Space, ...]
    searcher: Searcher = "random"
    share: int = 3
    points: int = 4
    early: bool = True
    """Stop trials that fall behind."""
    given: Mapping[str, Any] | None = field(default_factory=dict)
    """Fields given by flags: trials of another scheme than the base's have what the recipe has for that scheme, but
    for these. None: they have the base's values, as in searches that an earlier version began."""

    @property
    def fields(self) -> list[str]:
        """The searched fields."""
        return [space.field for space in self.spaces]

    @property
    def longest_warmup(self) -> int:
        """The longest warm-up of any trial, in epochs."""
        bounds = [int(max(map(float, space.bounds))) for space in self.spaces if space.field == "warmup_epochs"]
        schemes = [scheme for space in self.spaces if space.field == "scheme" for scheme in space.values]
        own = [self.with_values({"scheme": scheme}).loss.warmup_epochs for scheme in schemes]
        return max([self.base.loss.warmup_epochs, *own, *bounds])

    @property
    def folder(self) -> Path:
        """The folder of the search."""
        return (Path(self.base.run.storage) / (self.base.run.name or self.default_name)).absolute()

    @property
    def question(self) -> dict[str, Any]:
        """What decides the trials and their results."""
        config = {k: v for k, v in self.base.flat().items() if k not in EXECUTION_FIELDS}
        rest: dict[str, Any] = {
            "searcher": self.searcher,
            "share": self.share,
            "points": self.points,
            "early": self.early,
        }
        if self.given is not None:
            rest["given"] = dict(self.given) if "scheme" in self.fields else {}
        return {"recipe": self.base.recipe, "spaces": [dataclasses.asdict(s) for s in self.spaces], **rest} | config

    @property
    def default_name(self) -> str:
        """Made from the question alone: the same command finds it again, also what an earlier version began."""
        usual = TrainConfig().flat()
        known = {k: v for k, v in self.question.items() if k != "given"}
        said = {k: v for k, v in known.items() if k not in EARLIER or v != usual[k]}
        digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:6]
        return f"search-{self.base.recipe}-{'-'.join(self.fields)}-{digest}"

    def progress(self, record: EpochRecord) -> TrialProgress:
        """What Tune, its scheduler and the display are told of an epoch of a trial."""
        epoch = epoch_number(record["epoch"])
        return {
            "epoch": epoch,
            "beyond": epoch - self.longest_warmup,
            VALIDATION_MEAN_AP: record[VALIDATION_MEAN_AP],
            "rejected": record["rejected"],
            "rejection_precision": record["rejection_precision"],
        }

    def with_values(self, values: Mapping[str, Any]) -> TrainConfig:
        """The base with values of the searched fields. All trials have the base's epochs, for ASHA compares them.

        Given settings and pseudo labels are passed over by schemes that have no use for them.
        """
        if self.given is None:
            return self.base.override(dict(values))
        given = {**self.given, "epochs": self.base.optim.epochs}
        if "scheme_settings" in given:
            own = settings_it_has(values.get("scheme", self.base.loss.scheme), given["scheme_settings"])
            given["scheme_settings"] = own
        return resolve(self.base, {**given, **values})

    def config(self, trial: Trial) -> TrainConfig:
        """The run of a trial, in the search's folder."""
        return self.with_values(trial.fields).override({"storage": str(self.folder / "trials")})

    def run_folder(self, trial: Trial) -> Path:
        """The folder of the run of a trial."""
        return self.folder / "trials" / trial.name

    def warmups(self, trial: Trial) -> Path:
        """Where trials with the same warm-up leave it for each other."""
        return self.folder / "warmups" / warmup_key(self.config(trial))


def search_as_begun(search: SearchPlan, plain: TrainConfig) -> SearchPlan:
    """The search as the version of raypaml that began it understood it; the search itself where it is new.

    Args:
        search: what is asked for.
        plain: its base without what the recipe has for another scheme, as earlier versions made it of the same flags.
    """
    for asked in (search, dataclasses.replace(search, base=plain, given=None)):
        question = _note(asked.folder / "search.json").get("question")
        if question is not None and ("given" in question) == (asked.given is not None):
            had = had_before(asked.base, question)
            return dataclasses.replace(asked, base=asked.base.override({"name": asked.folder.name, **had}))
    return search


def open_search(search: SearchPlan, trials: int) -> int:
    """Claim or find the search's folder; returns how many trials it was last asked for, `trials` if it is new.

    Raises:
        ValueError: the folder is of another question.
    """
    path = search.folder / "search.json"
    question = json.loads(json.dumps(search.question))
    if not path.is_file():
        if search.folder.is_dir() and any(search.folder.iterdir()):
            raise ValueError(f"{search.folder}: not empty and not of a search; give another --name")
        search.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {"question": question, "trials": trials})
        return trials
    stored = json.loads(path.read_text())
    before = EARLIER | stored["question"]  # it had these before they were settings
    changed = [k for k in question if before.get(k) != question[k]]
    if changed:
        first = changed[0]
        raise ValueError(
            f"{search.folder}: started with {first}={before.get(first)} (asked: {question[first]}); "
            "give this search another --name"
        )
    return int(stored["trials"])


def extend(search: SearchPlan, trials: int) -> None:
    """Record how many trials are wanted."""
    path = search.folder / "search.json"
    write_json(path, json.loads(path.read_text()) | {"trials": trials})


def note(search: SearchPlan, trial: Trial, ending: Literal["error", "stopped"], content: dict[str, Any]) -> None:
    """Write into a trial's folder how it ended, where that was not with a result."""
    folder = search.run_folder(trial)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{ending}.json", content)


def is_stopped(run_folder: Path) -> bool:
    """Whether the search wants no more of this run."""
    return (run_folder / "stopped.json").is_file()


def add_proposed(search: SearchPlan, trial: Trial) -> None:
    """Record a trial that a searcher proposed, before it is run."""
    known = [dict(trial.values) for trial in read_proposed(search)]
    write_json(search.folder / "proposed.json", {"trials": [*known, dict(trial.values)]})


def read_proposed(search: SearchPlan) -> list[Trial]:
    """The trials proposed so far, in their order."""
    values = _note(search.folder / "proposed.json").get("trials", [])
    return [Trial(tuple(entry.items()), search.base.run.seed) for entry in values]


@dataclass(kw_only=True)
class Outcome:
    """What a trial left."""

    trial: Trial
    state: TrialState
    history: History = field(default_factory=list)
    """One record an epoch, the shared ones included."""
    shared: int = 0
    """Epochs taken from a shared warm-up."""
    result: dict[str, Any] = field(default_factory=dict)
    """What a finished trial came to, its result.json."""
    curve: dict[float, float] = field(default_factory=dict)
    """Validation mAP of a finished trial by alpha at evaluation."""
    error: str = ""

    @property
    def score(self) -> float:
        """Best validation mAP so far; -1 before the first epoch."""
        return max(validation_scores(self.history), default=-1.0)

    @property
    def seconds(self) -> float:
        """Seconds spent on this trial alone, without its shared epochs."""
        return float(self.history[-1]["seconds"]) - self._before if self.history else 0.0

    @property
    def _before(self) -> float:
        return float(self.history[self.shared - 1]["seconds"]) if self.shared else 0.0


def outcome(search: SearchPlan, trial: Trial) -> Outcome:
    """Read a trial's state from its run folder."""
    folder = search.run_folder(trial)
    found = Outcome(trial=trial, state="planned")
    if (folder / METRICS_FILE).is_file():
        found.state, found.history = "running", read_history(folder)
    note = _note(folder / "shared.json")
    found.shared = min(int(note.get("epochs", 0)), len(found.history))
    if (folder / "error.json").is_file():
        found.state, found.error = "failed", str(_note(folder / "error.json")["error"]).strip().split("\n")[0]
    if is_stopped(folder):
        found.state, found.error = "stopped", ""  # Ray Train, cut off, calls it an error
    if (folder / "result.json").is_file():
        found.state, found.result, found.error = "finished", _note(folder / "result.json"), ""
        found.curve = {float(alpha): ap for alpha, ap in _note(folder / "alpha_curve.json").items()}
    return found


def _note(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def ranked(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Finished trials of the plan, best validation mAP first."""
    finished = [found for found in outcomes if found.state == "finished" and not found.trial.repeats]
    return sorted(finished, key=lambda found: -found.score)


def write_best(search: SearchPlan, best: Outcome, verdict: str) -> None:
    """Write `best.json`: the best trial's configuration, for `python -m raypaml.train --config`."""
    own = recipe(search.base.recipe).run
    values = {"name": "", "storage": own.storage, "address": "", "workers": own.workers}
    found = {
        "trial": best.trial.name,
        VALIDATION_MEAN_AP: best.score,
        "verdict": verdict,
        "folder": str(search.folder),
    }
    config = search.config(best.trial).override(values).to_dict()
    write_json(search.folder / "best.json", {"found": found, "config": config})

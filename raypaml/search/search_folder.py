"""The folder of a search: its question, and the state of every trial, which is read from the folder of its run.

<storage>/<search>/search.json       the question; only a search with the same one may continue here
                   trials/NAME/      the run folder of a trial, with error.json or stopped.json where it did not finish,
                                      and faults.json where faults ended its workers
                   warmups/KEY/after-EPOCH/    the checkpoint from which trials with the same warm-up start
                   proposed.json     the trials that a searcher proposed from the results of earlier ones
                   best.json  trials.csv  report.html
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from raypaml.config import EARLIER, EXECUTION_FIELDS, TrainConfig
from raypaml.counting import epoch_number
from raypaml.evaluation.result_records import read_result
from raypaml.files import write_json
from raypaml.losses.schemes import settings_it_has
from raypaml.recipes import resolve
from raypaml.runs.history import (
    VALIDATION_MEAN_AP,
    EpochRecord,
    History,
    read_history,
    validation_scores,
)
from raypaml.runs.run_files import METRICS_FILE
from raypaml.runs.run_folder import had_before
from raypaml.runs.sole_writer import LOCK_FILE
from raypaml.search.faults import Fault, read_faults
from raypaml.search.search_records import (
    SEARCH_FILE,
    FailedTrial,
    Proposed,
    Searcher,
    SharedWarmup,
    read_alpha_curve,
    read_search_record,
    search_record,
)
from raypaml.search.spaces import Space, Value
from raypaml.search.trials import Trial, TrialProgress
from raypaml.search.warmup import warmup_key
from raypaml.stored_json import read_if_there

TrialState = Literal["planned", "running", "stopped", "failed", "finished"]
"""What has become of a trial; a stopped one fell behind and was ended by the search."""


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """The question of a search: the configuration that it starts from, what is varied, and how trials are chosen."""

    base: TrainConfig
    """The configuration that the search starts from, which is its first trial."""
    spaces: tuple[Space, ...]
    """The values that each searched field may take."""
    searcher: Searcher = "random"
    share: int = 3
    """Random trials that share one warm-up; 1 for no sharing."""
    points: int = 4
    """Values of each range in a grid."""
    early: bool = True
    """Whether trials that fall behind are stopped (ASHA)."""
    given: Mapping[str, Value] | None = field(default_factory=dict)
    """Settings that flags gave. A trial of another scheme than the base's has the values of the recipe for that scheme,
    except for these. None: it has the base's values, as in searches that an earlier version began."""

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
    def question(self) -> dict[str, object]:
        """Everything that decides the trials and their results, as search.json has it."""
        config = {k: v for k, v in self.base.flat().items() if k not in EXECUTION_FIELDS}
        rest: dict[str, object] = {
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
        """A name made from the question alone, so that the same command finds its search again, also an earlier
        version's.
        """
        usual = TrainConfig().flat()
        known = {k: v for k, v in self.question.items() if k != "given"}
        said = {k: v for k, v in known.items() if k not in EARLIER or v != usual[k]}
        digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:6]
        return f"search-{self.base.recipe}-{'-'.join(self.fields)}-{digest}"

    def progress(self, record: EpochRecord) -> TrialProgress:
        """The report of a trial on an epoch with this record."""
        epoch = epoch_number(record["epoch"])
        return TrialProgress(
            epoch=epoch,
            beyond=epoch - self.longest_warmup,
            validation_mean_ap=record[VALIDATION_MEAN_AP],
            rejected=record["rejected"],
            rejection_precision=record["rejection_precision"],
        )

    def with_values(self, values: Mapping[str, Value]) -> TrainConfig:
        """The base with values for the searched fields. All trials have the base's epochs, because ASHA compares them.

        A scheme that has no use for given settings or pseudo labels ignores them.
        """
        if self.given is None:
            return self.base.override(dict(values))
        given = {**self.given, "epochs": self.base.optim.epochs}
        if "scheme_settings" in given:
            scheme = str(values.get("scheme", self.base.loss.scheme))
            own = settings_it_has(scheme, str(given["scheme_settings"]))
            given["scheme_settings"] = own
        return resolve(self.base, {**given, **values})

    def config(self, trial: Trial) -> TrainConfig:
        """The run of a trial, in the search's folder."""
        return self.with_values(trial.fields).override({"storage": str(self.folder / "trials")})

    def run_folder(self, trial: Trial) -> Path:
        """The folder of the run of a trial."""
        return self.folder / "trials" / trial.run_name

    def warmups(self, trial: Trial) -> Path:
        """The folder in which trials with the same warm-up leave it for each other."""
        return self.folder / "warmups" / warmup_key(self.config(trial))


def search_as_begun(search: SearchPlan, plain: TrainConfig) -> SearchPlan:
    """Returns the search with the settings that the version of raypaml had which began it; a new one unchanged.

    Args:
        search: the search that the flags ask for.
        plain: the base that earlier versions made of the same flags: without the values that a recipe has for a scheme.
    """
    for asked in (search, dataclasses.replace(search, base=plain, given=None)):
        stored = read_search_record(asked.folder)
        question = stored["question"] if stored else None
        if question is not None and ("given" in question) == (asked.given is not None):
            had = had_before(asked.base, question)
            return dataclasses.replace(asked, base=asked.base.override({"name": asked.folder.name, **had}))
    return search


def open_search(search: SearchPlan, trials: int) -> int:
    """Create the folder of a search, or check that an existing one belongs to it.

    Returns:
        The number of trials that the search was last asked for; `trials` if it is new.

    Raises:
        ValueError: the folder belongs to a search with another question, or to something else.
    """
    question, stored = json.loads(json.dumps(search.question)), read_search_record(search.folder)
    if stored is None:
        if search.folder.is_dir() and any(path.name != LOCK_FILE for path in search.folder.iterdir()):
            raise ValueError(f"{search.folder}: not empty and not of a search; give another --name")
        search.folder.mkdir(parents=True, exist_ok=True)
        write_json(search.folder / SEARCH_FILE, {"question": question, "trials": trials})
        return trials
    before = EARLIER | stored["question"]  # values that some settings had before they existed
    changed = [k for k in question if before.get(k) != question[k]]
    if changed:
        first = changed[0]
        raise ValueError(
            f"{search.folder}: started with {first}={before.get(first)} (asked: {question[first]}); "
            "give this search another --name"
        )
    return stored["trials"]


def extend(search: SearchPlan, trials: int) -> None:
    """Record the number of trials that are wanted."""
    write_json(search.folder / SEARCH_FILE, {"question": search_record(search.folder)["question"], "trials": trials})


def note(search: SearchPlan, trial: Trial, ending: Literal["error", "stopped"], content: Mapping[str, object]) -> None:
    """Write into the folder of a trial how it ended without a result."""
    folder = search.run_folder(trial)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{ending}.json", content)


def is_stopped(run_folder: Path) -> bool:
    """Whether the search has stopped the trial with this run folder."""
    return (run_folder / "stopped.json").is_file()


def add_proposed(search: SearchPlan, trial: Trial) -> None:
    """Record a trial that the searcher proposed, before it is run."""
    known = [dict(trial.values) for trial in read_proposed(search)]
    write_json(search.folder / "proposed.json", {"trials": [*known, dict(trial.values)]})


def read_proposed(search: SearchPlan) -> list[Trial]:
    """The trials proposed so far, in their order."""
    stored = read_if_there(search.folder / "proposed.json", Proposed, "the proposed trials of a search")
    return [Trial(tuple(entry.items()), search.base.run.seed) for entry in (stored["trials"] if stored else [])]


@dataclass(kw_only=True)
class Outcome:
    """The state of a trial and its figures so far."""

    trial: Trial
    state: TrialState
    history: History = field(default_factory=list)
    """The records of its epochs, including those of a shared warm-up."""
    shared: int = 0
    """Epochs taken from a shared warm-up."""
    test_mean_ap: float | None = None
    """Test mAP, 0..1, of a finished trial."""
    best_epoch: int | None = None
    """The epoch, from 0, of best validation mAP, of a finished trial."""
    stopped_early: str = ""
    """Why the training of a finished trial ended before its last epoch; "" where it did not."""
    curve: dict[float, float] = field(default_factory=dict)
    """Validation mAP of a finished trial by alpha at evaluation."""
    error: str = ""
    """The first line of the error of a failed trial."""
    may_go_better: bool = False
    """Whether a failed trial may succeed in another try, as after too many losses."""
    faults: list[Fault] = field(default_factory=list)
    """The faults that ended its workers."""

    @property
    def score(self) -> float:
        """Best validation mAP so far; -1 before the first epoch."""
        return max(validation_scores(self.history), default=-1.0)

    @property
    def seconds(self) -> float:
        """Seconds spent on this trial alone, without its shared epochs."""
        if not self.history:
            return 0.0
        before = float(self.history[self.shared - 1]["seconds"]) if self.shared else 0.0
        return float(self.history[-1]["seconds"]) - before


def outcome(search: SearchPlan, trial: Trial) -> Outcome:
    """Read a trial's state from its run folder."""
    folder = search.run_folder(trial)
    now = Outcome(trial=trial, state="planned", faults=read_faults(folder))
    if (folder / METRICS_FILE).is_file():
        now.state, now.history = "running", read_history(folder)
    if shared := read_if_there(folder / "shared.json", SharedWarmup, "the length of a shared warm-up"):
        now.shared = min(shared["epochs"], len(now.history))
    if failed := read_if_there(folder / "error.json", FailedTrial, "the error of a trial"):
        now.state, now.error = "failed", failed["error"].strip().split("\n")[0]
        now.may_go_better = failed.get("may_go_better", False)
    if is_stopped(folder):
        now.state, now.error, now.may_go_better = "stopped", "", False  # earlier versions noted an error too
    if result := read_result(folder):
        now.state, now.error, now.may_go_better = "finished", "", False
        now.test_mean_ap, now.best_epoch = result["mean_ap"], result["best_epoch"]
        now.stopped_early = result.get("stopped_early") or ""
        now.curve = read_alpha_curve(folder)
    return now


def ranked(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Finished trials of the plan, best validation mAP first."""
    finished = [one for one in outcomes if one.state == "finished" and not one.trial.repeats]
    return sorted(finished, key=lambda one: -one.score)

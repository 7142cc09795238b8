"""The flags of a search, and the search and trials that they ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from raypaml.bounds import check_bounds
from raypaml.cli import Parser
from raypaml.config import EXECUTION_FIELDS
from raypaml.data.data_folder import DataFolder
from raypaml.files import share
from raypaml.losses.schemes import passed_over
from raypaml.runs.run_flags import AskedConfig
from raypaml.search.proposals import Proposals
from raypaml.search.queue import Queue
from raypaml.search.search_folder import (
    SearchPlan,
    extend,
    open_search,
    outcome,
    read_proposed,
    search_as_begun,
)
from raypaml.search.search_records import Searcher
from raypaml.search.spaces import SUGGESTED, check_spaces, parse_search, read_spaces
from raypaml.search.suggestion import suggest
from raypaml.search.trials import Trial, grid_trials, own_trial, random_trials

SEARCHERS = get_args(Searcher)
POINTS = 4
"""Values of each range in a grid, where --points does not say."""
MOST_TRIALS = 10_000
"""The most trials, points of a range, and seeds."""
USUAL = {"workers": 1}
"""Defaults of a search in the place of the recipe's: a trial has one worker."""
NOT_OF_TRIALS = ("tracker",)
"""Settings of a run that have no effect in a search."""
OF_EACH_TRIAL = {
    "workers": "Training processes of each trial, each with a GPU of its own where there are GPUs; 2:8 stands for "
    "--min-workers 2 --workers 8.",
    "max_failures": "How many times a trial's lost workers are started again from its last checkpoint; preempted nodes "
    "do not count. After one more the trial fails, the others go on, and the exit code is 1.",
    "hang_seconds": "Seconds without progress of any worker of a trial after which these are ended, the one that holds "
    "the others up is named, and they are started again; six times as long while a network is compiled.",
}
"""What --help says of settings that mean something for each trial, in the place of what they are for a run."""
_OF_THE_BASE = (*EXECUTION_FIELDS, "data", "pseudo_labels_sha256")
"""Fields whose value every trial takes from the starting point, whatever its scheme."""


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """What a search varies, and how; the fields are the flags of `raypaml tune` that do not describe a run.

    Raises:
        ValueError: a count is out of range, or there is no such searcher.
    """

    search: str
    """The searched spaces, as `search.spaces.parse_search` reads them."""
    space: Sequence[str]
    """YAML files of further spaces."""
    searcher: Searcher
    trials: int
    """Number of trials of the searchers random and tpe."""
    add: int
    """Trials by which a finished search is extended."""
    points: int
    """Values of each range in a grid."""
    share: int
    """Random trials that share one warm-up; 1 for no sharing."""
    seeds: int
    """Seeds with which the best trial and the starting point are trained."""
    early_stop: bool
    """Whether trials that fall behind are stopped (ASHA)."""

    def __post_init__(self) -> None:
        if self.searcher not in SEARCHERS:
            raise ValueError(f"searcher={self.searcher!r}: must be one of {', '.join(SEARCHERS)}")
        for name, least in (("trials", 1), ("share", 1), ("points", 2), ("seeds", 1), ("add", 0)):
            if not isinstance(value := getattr(self, name), int):
                raise ValueError(f"{name}={value!r}: must be int, not {type(value).__name__}")
            check_bounds(name, value, least, MOST_TRIALS)
        if self.points != POINTS and self.searcher != "grid":
            raise ValueError(f"points={self.points}: has no effect with searcher={self.searcher}; use --searcher grid")


def add_search_flags(parser: Parser) -> None:
    """Add the flags of `raypaml tune` that do not describe a run."""
    group = parser.add_argument_group("Search")
    group.add_argument(
        "--search",
        default="alpha,delta_rel=suggested",
        metavar="SPACES",
        help="settings to search, with commas between: names of spaces in tune/*.yaml, or FIELD=LOW:HIGH, "
        "FIELD=log:LOW:HIGH, FIELD=A|B|C, or delta_rel=suggested (a range from the labels) [%(default)s]",
    )
    about = "YAML file of further spaces for --search; may be repeated"
    group.add_argument("--space", action="append", default=[], metavar="FILE", help=about)
    about = "how trials are chosen: at random, as a grid, or by Optuna's TPE from the results so far [random]"
    group.add_argument("--searcher", choices=SEARCHERS, default="random", help=about)
    about = "number of trials, the recipe's own settings among them; a grid has its own number [6]"
    group.add_argument("--trials", type=int, default=6, metavar="N", help=about)
    group.add_argument("--add", type=int, default=0, metavar="N", help="extend a finished search by N trials")
    about = "number of values of each range with --searcher grid [4]"
    group.add_argument("--points", type=int, default=POINTS, metavar="N", help=about)
    group.add_argument(
        "--share",
        type=int,
        default=3,
        metavar="N",
        help="let N random trials share a warm-up: settings that act before the first rejection, such as alpha, change "
        "only every N trials; 1: no sharing [3]",
    )
    about = "number of seeds with which the best trial and the recipe's own settings are trained [1]"
    group.add_argument("--seeds", type=int, default=1, metavar="N", help=about)
    about = "train every trial to its end; by default those that fall behind are stopped (ASHA)"
    group.add_argument("--no-early-stop", dest="early_stop", action="store_false", help=about)
    about = "print the delta_rel that the labels suggest, and search nothing"
    group.add_argument("--suggest", action="store_true", help=about)


def plan_search(asked: SearchSettings, base: AskedConfig, data: DataFolder) -> SearchPlan:
    """The search that is asked for.

    Args:
        asked: what is varied, and how.
        base: the configuration that the search starts from.
        data: the data set, from whose labels a range of delta_rel may be taken.

    Raises:
        ValueError: validation has no labels, a space is not known, holds no valid configuration, or would reject every
            entry.
    """
    config = base.config
    if not data.splits["validation"].num_labels:
        raise ValueError(
            f"data={config.data.data}: no label of the validation split is observed, so that no trial has a validation "
            "mAP and none is better than another; add validation labels"
        )
    known = read_spaces([*sorted(share("tune").glob("*.yaml")), *map(Path, asked.space)], config)
    suggested = None
    if f"={SUGGESTED}" in asked.search:
        unit = known["delta_rel"].unit if "delta_rel" in known else ""
        suggested = suggest(data.splits["train"], data.splits["validation"], config).space(unit)
    spaces = parse_search(asked.search, config, known, suggested)
    search = SearchPlan(
        base=config,
        spaces=tuple(spaces),
        searcher=asked.searcher,
        share=asked.share,
        points=asked.points,
        early=asked.early_stop,
        given={name: value for name, value in base.given.items() if name not in _OF_THE_BASE},
    )
    search = search_as_begun(search, base.plain)
    check_spaces(spaces, search.with_values)
    return search


def passed_over_by_trials(search: SearchPlan) -> list[str]:
    """Sentences on settings that were given and are not used by the trials of some schemes; ValueError if none does."""
    schemes = [str(value) for space in search.spaces if space.field == "scheme" for value in space.values]
    given = str((search.given or {}).get("scheme_settings", ""))
    return list(passed_over(schemes, search.base.loss.pseudo_labels, given)) if schemes else []


def plan_trials(search: SearchPlan, count: int) -> list[Trial]:
    """The trials that are known before any is run; the starting point is the first."""
    if search.searcher == "grid":
        return grid_trials(search.base, search.spaces, search.points)
    if search.searcher == "tpe":
        return list(dict.fromkeys([own_trial(search.base, search.spaces), *read_proposed(search)]))
    seed = search.base.run.seed
    return random_trials(search.base, search.spaces, count, share=search.share, seed=seed)


def open_queue(search: SearchPlan, asked: SearchSettings, say: Callable[[str], None]) -> tuple[Queue, Proposals | None]:
    """Create the folder of a search or go on in it; returns its queue, and the proposals of the searcher tpe."""
    if asked.add and search.searcher == "grid":
        raise ValueError(f"add={asked.add}: a grid has a fixed number of trials; give --points")
    count = max(open_search(search, asked.trials), asked.trials)
    trials = plan_trials(search, count)
    left = [trial for trial in trials if outcome(search, trial).state in ("planned", "running")]
    if asked.add and (left or len(trials) < count):
        say(f"--add {asked.add}: this search is not finished yet; it goes on, then give --add again")
    elif asked.add:
        count += asked.add
        trials = plan_trials(search, count)
    extend(search, count)
    queue = Queue(search, trials, asked.seeds)
    return queue, Proposals(search, queue, count) if search.searcher == "tpe" else None

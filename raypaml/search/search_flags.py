"""The flags of a search, and the search and trials that they ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from raypaml.cli import Parser
from raypaml.config import EXECUTION_FIELDS
from raypaml.data.data_folder import DataFolder
from raypaml.files import share
from raypaml.losses.schemes import passed_over
from raypaml.runs.run_flags import AskedConfig
from raypaml.search.proposals import Proposals
from raypaml.search.queue import Queue
from raypaml.search.search_folder import (
    Searcher,
    SearchPlan,
    extend,
    open_search,
    outcome,
    read_proposed,
    search_as_begun,
)
from raypaml.search.spaces import SUGGESTED, check_spaces, parse_search, read_spaces
from raypaml.search.suggestion import suggest
from raypaml.search.trials import Trial, grid_trials, own_trial, random_trials

SEARCHERS = get_args(Searcher)
USUAL = {"workers": 1}
"""What a search has where nothing else is asked for, whatever the recipe's: a trial has one worker."""
NOT_OF_TRIALS = ("max_failures", "hang_seconds", "tracker")
"""Settings of a run that trials have no use for: a trial is neither watched, nor started again, nor tracked."""
_OF_THE_BASE = (*EXECUTION_FIELDS, "data", "pseudo_labels_sha256")
"""Fields that trials have from the base, whatever their scheme."""


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """What a search varies, and how; its fields are the flags of `raypaml tune` that are not of a run.

    Raises:
        ValueError: a count is too small, or a searcher is none.
    """

    search: str
    space: Sequence[str]
    searcher: Searcher
    trials: int
    add: int
    points: int
    share: int
    seeds: int
    early_stop: bool

    def __post_init__(self) -> None:
        if self.searcher not in SEARCHERS:
            raise ValueError(f"searcher={self.searcher!r}: must be one of {', '.join(SEARCHERS)}")
        for name, least in (("trials", 1), ("share", 1), ("points", 2), ("seeds", 1), ("add", 0)):
            if not isinstance(value := getattr(self, name), int):
                raise ValueError(f"{name}={value!r}: must be int, not {type(value).__name__}")
            if value < least:
                raise ValueError(f"{name}={value}: must be at least {least}")


def add_search_flags(parser: Parser) -> None:
    """Add the flags that are not of the configuration."""
    group = parser.add_argument_group("Search")
    group.add_argument(
        "--search",
        default="alpha,delta_rel=suggested",
        metavar="SPACES",
        help="names of tune/*.yaml, or FIELD=LOW:HIGH, FIELD=log:LOW:HIGH, FIELD=A|B|C, delta_rel=suggested "
        "(range from the data) [%(default)s]",
    )
    group.add_argument("--space", action="append", default=[], metavar="FILE", help="YAML file of further spaces")
    group.add_argument("--searcher", choices=SEARCHERS, default="random", help="tpe needs Optuna [random]")
    group.add_argument(
        "--trials", type=int, default=6, metavar="N", help="of random and tpe, the recipe's own among them [6]"
    )
    group.add_argument("--add", type=int, default=0, metavar="N", help="extend a finished search by so many trials")
    group.add_argument("--points", type=int, default=4, metavar="N", help="of a range in a grid [4]")
    group.add_argument(
        "--share",
        type=int,
        default=3,
        metavar="N",
        help="random trials per warm-up: fields that act before the first rejection, such as alpha, change only every "
        "N trials; 1: no sharing at all [3]",
    )
    group.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="train the best trial and the recipe's own with N seeds [1]"
    )
    group.add_argument(
        "--no-early-stop", dest="early_stop", action="store_false", help="train every trial to the end (default: ASHA)"
    )
    group.add_argument("--suggest", action="store_true", help="only say what the labels suggest for delta_rel")


def plan_search(asked: SearchSettings, base: AskedConfig, data: DataFolder) -> SearchPlan:
    """The search that is asked for.

    Args:
        asked: what is varied, and how.
        base: that the search starts from.
        data: its data.

    Raises:
        ValueError: spaces that are not known, hold no valid configuration, or would reject everything.
    """
    config = base.config
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
    """What is given and not used by the trials of some schemes, in sentences; ValueError where none uses it."""
    schemes = [str(value) for space in search.spaces if space.field == "scheme" for value in space.values]
    given = str((search.given or {}).get("scheme_settings", ""))
    return list(passed_over(schemes, search.base.loss.pseudo_labels, given)) if schemes else []


def plan_trials(search: SearchPlan, count: int) -> list[Trial]:
    """The trials known before any is run, the configuration the search starts from first."""
    if search.searcher == "grid":
        return grid_trials(search.base, search.spaces, search.points)
    if search.searcher == "tpe":
        return list(dict.fromkeys([own_trial(search.base, search.spaces), *read_proposed(search)]))
    seed = search.base.run.seed
    return random_trials(search.base, search.spaces, count, share=search.share, seed=seed)


def open_queue(search: SearchPlan, asked: SearchSettings, say: Callable[[str], None]) -> tuple[Queue, Proposals | None]:
    """Claim the search's folder, or go on in it: what is left to run, and for a searcher that learns, who proposes."""
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

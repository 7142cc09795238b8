"""Measures rankings of likely missing labels on runs whose hidden labels are known, and prints a Markdown table.

    python tools/papers/audit_ranking.py "digits, single positive"=RUN,RUN,RUN "photos"=RUN,RUN,RUN

Each named set of runs, such as three seeds, gives rows of means over its runs: the ranking that `raypaml audit` had
first (by rejections, then by score; for runs with --history), the score alone at the alpha of training and of use, and
the chance that validation suggests, without a limit by class and with several. Columns: percent of really missing
labels among the first entries; of 100 looks at the first 500, how many find a missing label of a class of group G1 to
G5; the classes found, and the largest share of one class. The same code ranks as in the command.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from raypaml.cli import Parser, run_command, say
from raypaml.labels import GROUP_NAMES, NUM_GROUPS, POSITIVE, UNOBSERVED, FloatArray, IntArray
from raypaml.reports.tables import figure, markdown

if TYPE_CHECKING:  # with torch, which --help does without
    from raypaml.auditing.ranking import ChanceEstimate, Scored
    from raypaml.config import TrainConfig
    from raypaml.data.data_folder import DataFolder
    from raypaml.evaluation.predicting import Predictions

PROG = "python tools/papers/audit_ranking.py"
LENGTHS = (100, 500, 1000, 2000, 5000)
LOOKS = 500
"""Length of the list of which groups and classes are counted."""
SHARES = (0.25, 0.1)
"""Largest shares of a class that are tried besides none."""


@dataclass(frozen=True)
class Audited:
    """A run, the entries of its training split that are unobserved, and those of validation that are observed."""

    folder: Path
    config: TrainConfig
    data: DataFolder
    free: Scored
    validation: Predictions

    @classmethod
    def open(cls, folder: Path) -> Audited:
        """Opens a run and scores both splits."""
        from raypaml.auditing.ranking import Scored
        from raypaml.data.data_folder import open_folder
        from raypaml.runs.run_folder import read_config

        config = read_config(folder / "config.json")
        data = open_folder(config.data.data)
        train, validation = (_predicted(folder, config, data, split) for split in ("train", "validation"))
        free = train.label == UNOBSERVED
        entries = train.row[free] * len(data.vocabulary) + train.class_index[free]
        return cls(folder, config, data, Scored(entries, train.P[free], train.N[free]), validation)

    def found(self, entries: IntArray) -> FloatArray:
        """Returns whether each of these entries is a missed positive, [n] of 0 and 1."""
        index = self.data.splits["train"]
        positive, _ = index.truth_cells(np.arange(len(index)))
        return np.isin(entries, positive).astype(np.float64)


class _Told:
    def say(self, text: str) -> None:
        say(text)

    def moved(self, text: str) -> None:
        pass

    def stops(self) -> bool:
        return False


def _predicted(folder: Path, config: TrainConfig, data: DataFolder, split: str) -> Predictions:
    """Predicts all entries of a split with the tested checkpoint, from kept features where the run's tests use them."""
    import torch

    from raypaml.evaluation.predicting import predict_steps
    from raypaml.evaluation.prediction_plan import evaluation_plan
    from raypaml.runs.checkpoint import read_state
    from raypaml.runs.kept_features import keeps_test_features, open_features
    from raypaml.runs.models import checkpoint_model, tested_checkpoint
    from raypaml.runs.ranks import Ranks

    torch.set_num_threads(1)
    checkpoint, ranks = tested_checkpoint(folder), Ranks.here(torch.device("cpu"))
    model = checkpoint_model(checkpoint, config.model, len(data.vocabulary))
    kept = keeps_test_features(config, read_state(checkpoint).epoch)
    features = open_features(model, data, split, ranks, config, folder, _Told()) if kept else None
    steps = evaluation_plan(config, len(data.splits[split])).epoch(0, 0, 1)
    return predict_steps(
        model,
        data,
        split,
        steps,
        ranks.device,
        optim=config.optim,
        loader_workers=0,
        unobserved=split == "train",
        features=features,
    )


def rankings(run: Audited) -> Iterator[tuple[str, dict[int, IntArray]]]:
    """Yields the name of each ranking, and the entries of its list by the length of the list."""
    from raypaml.auditing.ranking import ChanceEstimate, EntryRanking, ObservedScores, fit_estimate
    from raypaml.runs.alpha_of_use import used_alpha
    from raypaml.runs.models import tested_checkpoint

    num_classes, seen, training = len(run.data.vocabulary), run.validation, run.config.model.alpha
    used = used_alpha(run.folder, tested_checkpoint(run.folder), training).alpha

    def lists(estimate: ChanceEstimate, share: float = 1.0) -> dict[int, IntArray]:
        quota = {most: math.ceil(share * most) for most in LENGTHS}
        return {most: EntryRanking(estimate, most, quota[most]).first(run.free).entries for most in LENGTHS}

    alone = ChanceEstimate.score_alone(training, num_classes)
    if (by_rejections := _by_rejections(run, alone)) is not None:
        yield "rejections, then score (before)", {most: by_rejections[:most] for most in LENGTHS}
    yield "score alone, alpha of training", lists(alone)
    yield "score alone, alpha of use", lists(ChanceEstimate.score_alone(used, num_classes))
    observed = ObservedScores(seen.class_index, seen.P, seen.N, seen.label == POSITIVE, np.ones(len(seen.P)))
    estimate, why_not = fit_estimate(observed, num_classes)
    if estimate is None:
        raise ValueError(f"{run.folder}: {why_not}")
    yield "chance", lists(estimate)
    for share in SHARES:
        yield f"chance, of one class at most {100 * share:g} %", lists(estimate, share)


def _by_rejections(run: Audited, alone: ChanceEstimate) -> IntArray | None:
    """Returns the entries that were rejected, the most often rejected first; None without a history."""
    from raypaml.training.rejections import read_epochs

    epochs = [entries for _, entries in read_epochs(run.folder, run.data.splits["train"])]
    if not epochs:
        return None
    rejected, times = np.unique(np.concatenate(epochs), return_counts=True)
    scored = run.free.take(np.isin(run.free.entries, rejected))
    scored = scored.take(np.argsort(scored.entries))
    score = alone.log_odds(scored.entries % len(run.data.vocabulary), scored.P, scored.N)
    return scored.entries[np.lexsort((scored.entries, -score, -times))]


def measures(run: Audited, lists: dict[int, IntArray]) -> list[float]:
    """Returns the figures of one row: percent found at each length, by group, classes found, the largest share.

    A list that is shorter than a length, as that of what was rejected may be, has NaN there.
    """
    first = lists[LOOKS]
    classes, hits = first % len(run.data.vocabulary), run.found(first) == 1
    groups = run.data.vocabulary.class_group[classes[hits]]
    by_group = np.bincount(groups, minlength=NUM_GROUPS + 1)[1:] * 100 / LOOKS
    largest = np.bincount(classes).max() * 100 / LOOKS
    at_length = [
        100 * float(run.found(lists[most]).mean()) if len(lists[most]) == most else math.nan for most in LENGTHS
    ]
    return [*at_length, *by_group.tolist(), float(len(np.unique(classes[hits]))), float(largest)]


def rows(name: str, runs: list[Path]) -> list[list[str]]:
    """Returns the rows of one set of runs, each a mean over the runs."""
    figures: dict[str, list[list[float]]] = {}
    for folder in runs:
        say(f"{name}: {folder}")
        run = Audited.open(folder)
        for ranking, lists in rankings(run):
            figures.setdefault(ranking, []).append(measures(run, lists))
    means = {ranking: np.mean(some, 0) for ranking, some in figures.items()}
    return [[name, ranking, *(figure(value, ".1f") for value in mean.tolist())] for ranking, mean in means.items()]


def main() -> None:
    """Prints the table."""
    parser = Parser(prog=PROG, description=__doc__.split("\n")[0])
    parser.add_argument("sets", nargs="+", metavar="NAME=RUN,RUN", help="a name, and the folders of runs to average")
    asked = parser.parse()
    lines: list[list[str]] = []
    for one in asked.sets:
        name, _, folders = one.partition("=")
        lines += rows(name, [Path(folder) for folder in folders.split(",") if folder])
    head = ["runs", "ranking", *(f"{most:,}" for most in LENGTHS), *GROUP_NAMES, "classes", "largest"]
    print(markdown(head, lines, left=2))


if __name__ == "__main__":
    run_command(main, PROG)

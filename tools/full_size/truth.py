"""Judges a rehearsal by its truth, and prints the page "Truth at that size" as Markdown.

    python -m tools.full_size.truth DIR

DIR is a folder that tools/rehearsal.py has made. With all labels known: how many of the entries that each run rejected
or corrected are missed positives, which groups of classes gain, whether `raypaml tune --suggest` is right, and how many
of an audit's entries are really missing. What a run has not made is a dash, and is named below the table.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from raypaml.cli import Parser, run_command, say, show
from raypaml.data.data_folder import DataFolder, open_folder
from raypaml.evaluation.aggregation import comparison
from raypaml.evaluation.measures import GROUPS, Evaluation
from raypaml.labels import GROUP_NAMES, FloatArray, IntArray
from raypaml.losses.schemes import scheme_of
from raypaml.metrics.conventions import Convention
from raypaml.reports.tables import figure, markdown, percent
from raypaml.runs.history import read_history, validation_scores
from raypaml.search.suggestion import REACHED, Suggestion, suggest
from tools.full_size.judged import AuditList, JudgedRun, audits_of, evaluated, rejections_of, runs_of
from tools.full_size.true_labels import SplitTruth, read_truth, shares

PROG = "python -m tools.full_size.truth"
LENGTHS = (100, 500, 1000, 2000, 5000)
"""Lengths of an audit's list at which it is judged."""
NOTHING = ["–"] * len(GROUPS)
KINDS: tuple[tuple[str, Convention], ...] = (("verified", "paper"), ("verified", "two-sided"), ("true", "positives"))
"""Labels of the test split, and the convention by which classes count."""


def page(out: Path) -> str:
    """Returns the page of one rehearsal; ValueError where the folder has no data set, no truth or no run."""
    data, release = open_folder(out / "data"), out / "release"
    runs, said = runs_of(out, data.vocabulary)
    truths = {}
    for split, index in data.splits.items():
        say(f"{out}: reading the truth of {split}")
        truths[split] = read_truth(release, split, index, data.vocabulary)
    train = truths["train"]
    sections = [
        f"# Truth at that size: {out}",
        f"{len(train.index):,} training images of {len(data.vocabulary):,} classes; {train.positives[-1]:,} positives "
        f"are verified, and {len(train.missed):,} are missed. G1 (rarest) to G5: groups of classes as everywhere.",
        *_listed(said),
        rejected(runs, train),
        gains(runs, truths["test"]),
        suggested(runs, data, truths),
        audits(runs, data, train),
    ]
    return "\n\n".join(sections)


def _table(head: list[str], rows: list[list[str]], notes: list[str], left: int = 1) -> str:
    return "\n\n".join([markdown(head, rows, left), *_listed(notes)])


def _listed(notes: list[str]) -> list[str]:
    return ["\n".join(f"- {note}" for note in notes)] if notes else []


def _percents(values: FloatArray, form: str = ".2f") -> list[str]:
    return [percent(value, form) for value in values.tolist()]


def _counts(values: IntArray) -> list[str]:
    return [f"{value:,}" for value in values.tolist()]


def rejected(runs: list[JudgedRun], truth: SplitTruth) -> str:
    """Returns how many of the rejected entries are missed positives, and which share of all missed positives."""
    missed = truth.by_group(truth.missed)
    counts = [["missed positives", "", *_counts(missed)], ["unobserved entries", "", *_counts(truth.unobserved)]]
    right = [["missed of the unobserved: chance", "", *_percents(truth.chance, ".3f")]]
    found, notes = list[list[str]](), []
    for run in runs:
        if why := run.no_rejections:
            notes.append(f"{run.name}: {why}")
            for rows in (counts, right, found):
                rows.append([run.name, "–", *NOTHING])
            continue
        say(f"{run.name}: reading what it rejected")
        for one in rejections_of(run.folder, truth):
            counts.append([run.name, one.epochs, *_counts(one.count)])
            right.append([run.name, one.epochs, *_percents(one.precision)])
            found.append([run.name, one.epochs, *_percents(one.recall)])
    head = ["run", "epoch", *GROUPS]
    parts = [
        "## What was rejected or corrected",
        "Entries, by epoch from 1; `all`: in any epoch, each once. Epochs that are not listed rejected nothing.",
        markdown(head, counts, left=1),
        "Percent of them that are missed positives (precision):",
        markdown(head, right, left=1),
        "Percent of all missed positives that are among them (recall):",
        _table(head, found, notes),
    ]
    return "\n\n".join(parts)


def gains(runs: list[JudgedRun], truth: SplitTruth) -> str:
    """Returns the mAP of every run by group, with verified and with all true labels, and what it gains over `an`."""
    evaluations: dict[str, dict[str, Evaluation | None]] = {}
    for run in runs:
        say(f"{run.name}: evaluating its predictions of the test")
        evaluations[run.name] = dict(zip(("verified", "true"), evaluated(run, truth), strict=True))
    notes = [
        f"{name}: no predictions of {'the test' if kind == 'verified' else 'all entries of the test (--unobserved)'}"
        for name, own in evaluations.items()
        for kind, evaluation in own.items()
        if evaluation is None
    ]
    plain = next((run.name for run in runs if run.config.loss.scheme == "an"), "")
    if not plain:
        notes.append("no run of scheme an, from which to tell a gain")
    trained = {run.name: len(read_history(run.folder)) for run in runs}
    notes += [
        f"{name}: {epochs} epochs, and {plain} {trained[plain]}, so that the gain is not that of its rejections alone"
        for name, epochs in trained.items()
        if plain and epochs != trained[plain]
    ]
    rows = [_gain_row(run.name, kind, convention, evaluations, plain) for kind, convention in KINDS for run in runs]
    head = ["labels, convention", "run", *GROUPS, *(f"{group} gain" for group in GROUPS)]
    counted = _classes_counted(evaluations)
    parts = [
        "## Which groups gain",
        f"mAP on the test split in percent, alpha of training; gain: points above {plain or 'an'}. `paper` counts a "
        "class without a positive as 0, `positives` leaves it out, `two-sided` also one without a negative, whose AP "
        "is 1 whatever its scores. true: all labels, for which every entry was scored.",
        _table(head, rows, notes, left=2),
        "Classes that count:",
        markdown(["labels, convention", *GROUPS], counted, left=1),
    ]
    return "\n\n".join(parts)


def _gain_row(
    name: str, kind: str, convention: Convention, evaluations: dict[str, dict[str, Evaluation | None]], plain: str
) -> list[str]:
    own, base = evaluations[name][kind], evaluations[plain][kind] if plain else None
    means = own.means(convention) if own else None
    shown = [percent(means[group]) for group in GROUPS] if means else NOTHING
    gain = NOTHING
    if own and base and name != plain:
        difference = comparison(base, own)[convention]["difference"]
        gain = [percent(difference[group], "+.2f") for group in GROUPS]
    return [f"{kind}, {convention}", name, *shown, *gain]


def _classes_counted(evaluations: dict[str, dict[str, Evaluation | None]]) -> list[list[str]]:
    rows = []
    for kind, convention in KINDS:
        first = next((own[kind] for own in evaluations.values() if own[kind]), None)
        counts = NOTHING
        if first is not None and (ap := first.class_ap(convention)) is not None:
            groups = np.bincount(first.vocabulary.class_group[~np.isnan(ap)], minlength=len(GROUPS))[1:]
            counts = _counts(np.r_[groups, groups.sum()])
        rows.append([f"{kind}, {convention}", *counts])
    return rows


def suggested(runs: list[JudgedRun], data: DataFolder, truths: dict[str, SplitTruth]) -> str:
    """Returns what `raypaml tune --suggest` says of the labels, beside what is true."""
    title = "## Whether --suggest is right"
    run = next((run for run in runs if scheme_of(run.config.loss.scheme).rejects_by == "rate"), None)
    if run is None:
        return f"{title}\n\n- no run rejects by a rate, so that there is no delta_rel to suggest"
    train, validation = truths["train"], truths["validation"]
    images = {split: len(truth.index) for split, truth in truths.items()}
    seen, more = train.positives / images["train"], validation.positives / images["validation"]
    missed = train.by_group(train.missed) / images["train"]
    there = validation.by_group(validation.missed) / images["validation"] + more
    rows = {
        "observed positives, validation": more,
        "observed positives, train": seen,
        "their difference: missed positives as it estimates them": more - seen,
        "missed positives of train in truth": missed,
        "estimated over true": shares(more - seen, missed),
        "there in truth, validation": there,
        "there in truth, train": seen + missed,
    }
    table = [[name, *(figure(value, ".3f") for value in values.tolist())] for name, values in rows.items()]
    text = "It suggests a delta_rel and no entries. Per image, by group:"
    try:
        said = suggest(data.splits["train"], data.splits["validation"], run.config)
        notes = _delta_rels(said, runs, float(missed[-1]) / len(data.vocabulary))
    except ValueError as error:
        notes = [f"it refuses: {error}"]
    return "\n\n".join([title, text, _table(["per image", *GROUPS], table, notes)])


def _delta_rels(said: Suggestion, runs: list[JudgedRun], missed: float) -> list[str]:
    """Sentences on the delta_rel that is suggested, the one that the truth gives, and the one that was best.

    Args:
        said: the suggestion.
        runs: all runs.
        missed: share of missed positives among all entries of the training split.
    """
    true = 100 * missed / (said.epochs * REACHED)
    lines = [
        f"delta_rel: it suggests {said.delta_rel:g} and a search of {said.low:g} to {said.high:g}; the same rule on "
        f"what was really missed gives {true:.2g}"
    ]
    scored = [
        (max(validation_scores(read_history(run.folder)), default=float("nan")), run)
        for run in runs
        if scheme_of(run.config.loss.scheme).rejects_by == "rate"
    ]
    lines.append(
        "highest validation mAP of an epoch, by run: "
        + "; ".join(f"{run.name} (delta_rel {run.config.loss.delta_rel:g}) {percent(score)}" for score, run in scored)
    )
    return lines


def audits(runs: list[JudgedRun], data: DataFolder, truth: SplitTruth) -> str:
    """Returns how many of the entries of each audit's list are really missing, by length of the list and group."""
    head = ["run", "first", "right, %", "chance, %", "by score, %", *GROUPS[:-1]]
    rows, notes = [["chance", "", "", percent(truth.chance[-1], ".3f"), "", *_percents(truth.chance[:-1], ".3f")]], []
    for run in runs:
        lists = audits_of(run.folder, truth.index, data.vocabulary)
        if not any(lists.values()):
            notes.append(f"{run.name}: no audit")
            continue
        for group, listed in lists.items():
            name = run.name if group == "All" else f"{run.name}, {group}"
            notes.append(f"{name}: its list has {len(listed.entries):,} entries" if listed else f"{name}: no audit")
            rows += _audit_rows(name, group, listed, truth) if listed else []
    text = (
        "Of the first entries of the list, percent that are missed positives, what chance finds among the unobserved "
        "entries of the same classes, and by group how many of how many; G1 to G4 beside the name of a run: the list "
        "of this group alone; by score: the same list in the order of the model's score alone, as the audit keeps no "
        "other list."
    )
    return "\n\n".join(["## Whether the audit's ranking holds", text, _table(head, rows, notes)])


def _audit_rows(name: str, group: str, listed: AuditList, truth: SplitTruth) -> list[list[str]]:
    """Returns a row for each length; where the list is shorter, one of dashes for all classes and none for a group."""
    rows, chance = list[list[str]](), percent(truth.chance[GROUPS.index(group)], ".3f")
    for length in LENGTHS:
        first, by_score = listed.entries[:length], listed.by_score[:length]
        if len(first) < length:
            rows += [] if group in GROUP_NAMES else [[name, f"{length:,}", *["–"] * 3, *NOTHING[:-1]]]
            continue
        count, hits = truth.by_group(first), truth.by_group(first[truth.is_missed(first)])
        alone = truth.is_missed(by_score).mean()
        cells = [f"{hit:,} of {of:,}" for hit, of in zip(hits[:-1].tolist(), count[:-1].tolist(), strict=True)]
        right = _percents(shares(hits, count)[-1:])
        rows.append([name, f"{length:,}", *right, chance, percent(alone), *cells])
    return rows


def main() -> None:
    """Prints the page of each folder."""
    parser = Parser(prog=PROG, description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="folder of a rehearsal")
    for folder in parser.parse().folders:
        show(page(folder))


if __name__ == "__main__":
    run_command(main, PROG)

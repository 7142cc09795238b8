"""Random faults over runs on digits: all finish with the weights of the undisturbed run, and nothing is lost."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from itertools import chain
from pathlib import Path

import pytest

from raypaml.runs.checkpoint import valid_checkpoints
from tests.chaos import Fault, draw, survive
from tests.fault_table import Row, note
from tests.test_ledger import STEPS, Ledger, ledger, sharded, undisturbed, windowed  # noqa: F401
from tests.test_loop import history, weights

FAULTS = 4
"""Of each run."""
RUNS = int(os.environ.get("RAYPAML_CHAOS_RUNS", "25"))


def lives(run: Path) -> list[dict[int, list[str]]]:
    """Of each life, the keys by step that all of its workers trained on."""
    by_life: dict[int, dict[int, dict[int, list[str]]]] = defaultdict(lambda: defaultdict(dict))
    teams: dict[int, int] = {}
    for path in sorted(run.glob("ledger-*.jsonl")):
        _, life, rank, _, ranks = path.stem.split("-")
        teams[int(life)] = int(ranks)
        for line in path.read_text().splitlines():
            number, keys = json.loads(line)
            by_life[int(life)][number][int(rank)] = keys  # twice where a step was not finite, and was done again
    return [
        {n: sorted(chain(*parts.values())) for n, parts in steps.items() if len(parts) == teams[life]}
        for life, steps in sorted(by_life.items())
    ]


def check(run: Path, undisturbed: Path, ledgers: Path | None = None) -> None:  # noqa: F811
    wanted = {3 * epoch + step: keys for (epoch, step), keys in ledger(undisturbed).items()}
    seen: set[int] = set()
    for life in lives(ledgers or run):
        assert {number: wanted[number] for number in life} == life
        # a life starts at the last checkpoint, or, where that was damaged, at the one before or the best
        assert not life or min(life) <= max(seen, default=-1) + 1, "steps left out"
        seen |= set(life)
    assert seen == set(range(STEPS))
    assert weights(run) == weights(undisturbed)
    assert [r["samples"] for r in history(run)] == [96] * 3
    assert len(valid_checkpoints(run / "checkpoints")[0]) <= 2
    assert not list((run / "checkpoints").glob(".unfinished*"))


def test_one_of_many_kinds_of_faults_after_the_other(tmp_path: Path, sharded: Path, undisturbed: Path) -> None:  # noqa: F811
    kinds = ("killed", "not finite", "killed saving", "checkpoint cut", "connection", "disk full")
    faults = [Fault(kind, 1, 1 + number, 2 - number % 2) for number, kind in enumerate(kinds)]
    survive(windowed(nonfinite="rollback"), sharded, tmp_path / "run", faults)
    check(tmp_path / "run", undisturbed)


@pytest.mark.cluster
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(RUNS))
def test_random_faults_change_nothing(seed: int, tmp_path: Path, sharded: Path, undisturbed: Path) -> None:  # noqa: F811
    faults = draw(seed, FAULTS, STEPS)
    recovered = survive(windowed(nonfinite="rollback"), sharded, tmp_path / "run", faults)
    equal = weights(tmp_path / "run") == weights(undisturbed)
    for fault, seconds in recovered:
        note(Row(f"{fault.kind}, of plain processes", seconds, "equal" if equal else "NOT EQUAL"))
    check(tmp_path / "run", undisturbed)

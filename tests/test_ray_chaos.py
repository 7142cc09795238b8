"""Random faults under Ray: every run ends with the weights of the undisturbed one; a command that ends before says why.

`make nightly` disturbs 17 runs by 102 faults, `make test-cluster` one other run, in about a minute.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from tests.chaos import draw
from tests.fault_table import Row, note
from tests.ray_chaos.runs import KINDS, place_of, short_folder, survive
from tests.test_chaos import check
from tests.test_ledger import STEPS, sharded, undisturbed  # noqa: F401
from tests.test_loop import weights
from tests.test_mirror import CREDENTIALS

RUNS = int(os.environ.get("RAYPAML_RAY_CHAOS_RUNS", "0"))
SAMPLE = (17435,)
"""Seeds without that variable: of 20,000, the one with a lost head, a second Ctrl-C and else faults of workers."""
FAULTS = 6
"""The number of faults of each run."""
PLACES = ("private", "private", "nodes", "private", "store")
"""Of the runs, in turn."""
PORT = 26400


@pytest.mark.cluster
@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(RUNS) if RUNS else SAMPLE)
def test_random_faults_under_ray_change_nothing(
    seed: int,
    sharded: Path,  # noqa: F811
    undisturbed: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    where = PLACES[seed % len(PLACES)]
    faults = draw(seed, FAULTS, STEPS, KINDS[where])
    print(f"seed {seed}, {where}: {faults}")
    with short_folder() as folder, place_of(where, folder, PORT + seed) as place:
        met = survive(place, folder, sharded, faults)
        equal = weights(place.run) == weights(undisturbed)
        for one in met:
            seconds = 0.0 if math.isnan(one.seconds) else one.seconds
            note(Row(f"{one.fault.kind}, random, under Ray ({where})", seconds, "equal" if equal else "NOT EQUAL"))
        check(place.run, undisturbed, folder)

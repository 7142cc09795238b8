"""Gauges for Prometheus are the curves of the trackers."""

from __future__ import annotations

from typing import Any

import pytest

from raypaml.cluster import gauges
from raypaml.reports.tracking import tracked_values
from tests.test_tracking import EVENTS


def test_every_curve_is_a_gauge_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    told = dict[str, tuple[float, dict[str, str]]]()

    class Recorded:
        def __init__(self, name: str, _about: str, tag_keys: tuple[str, ...]):
            assert (name not in told, tag_keys) == (True, ("run",))
            self._name = name

        def set(self, value: float, tags: dict[str, str]) -> None:
            told[self._name] = (value, tags)

    monkeypatch.setattr(gauges, "Gauge", Recorded)
    both = gauges.RunGauges("mine")
    for event in [*EVENTS, *EVENTS]:
        both.update(event)
    curves: dict[str, Any] = {}
    for event in EVENTS:
        curves |= (tracked_values(event) or ({}, 0))[0]
    assert told == {f"raypaml_{name.replace('/', '_')}": (value, {"run": "mine"}) for name, value in curves.items()}

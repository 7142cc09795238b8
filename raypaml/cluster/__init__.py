"""Ray around the rest: sessions, tasks, Ray Train, Ray Tune. No other folder imports ray.

Ray reads the variables below when it is imported or started, so they are set here, before any module of this folder
imports it. In a program that has imported ray already they are set only while something of ours runs on it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",  # a cold disk can need minutes to import torch
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "180",  # Ray's 600 are long for a lone worker that was stopped
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # our run folders say it all
    "RAY_AIR_NEW_OUTPUT": "0",  # with verbose=0: nothing on stdout
    "RAY_worker_niceness": "0",  # of a private cluster, on a machine that is ours to use; Ray's own is 15
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean in a trial what they mean in a run
}

if "ray" not in sys.modules:
    for _name, _value in _DEFAULTS.items():
        os.environ.setdefault(_name, _value)


@contextmanager
def ray_variables(**values: str | None) -> Iterator[None]:
    """Within, the environment has our defaults for what is not set, and `values`; None takes a variable away."""
    wanted = {name: value for name, value in _DEFAULTS.items() if name not in os.environ} | values
    before = {name: os.environ.get(name) for name in wanted}
    _set(wanted)
    try:
        yield
    finally:
        _set(before)


def _set(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value

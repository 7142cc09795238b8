"""Everything that uses Ray: sessions, tasks, Ray Train and Ray Tune. No other folder imports ray.

Ray reads the environment variables below when it is imported or started; so they are set here, before any module of
this folder imports it. In a program that has already imported ray they are set only while raypaml runs something on it.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",  # Tune imports mlflow wherever it is installed
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",  # a cold disk can need minutes to import torch
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "180",  # Ray's 600 are long where a single worker is suspended
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # run folders have the same and more
    "RAY_AIR_NEW_OUTPUT": "0",  # with verbose=0: nothing on stdout
    "RAY_worker_niceness": "0",  # Ray's 15 would leave the machine to other programs
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths are the same in trials and in runs
}

if "ray" not in sys.modules:
    for _name, _value in _DEFAULTS.items():
        os.environ.setdefault(_name, _value)


_LOCK = threading.Lock()
_VALUES: dict[str, list[tuple[object, str | None]]] = {}
"""For each variable that is set at present the value before, then those of the blocks in force, the newest last. Blocks
of several threads may overlap."""


@contextmanager
def ray_variables(**values: str | None) -> Iterator[None]:
    """In the block the environment has raypaml's defaults for unset variables, and `values`; None unsets a variable."""
    block = object()
    with _LOCK:
        own = dict(os.environ) | {name: blocks[0][1] for name, blocks in _VALUES.items()}  # without those of blocks
        wanted = {name: value for name, value in _DEFAULTS.items() if own.get(name) is None} | values
        for name, value in wanted.items():
            _VALUES.setdefault(name, [(None, os.environ.get(name))]).append((block, value))
            _set(name, value)
    try:
        yield
    finally:
        with _LOCK:
            for name in wanted:
                left = [entry for entry in _VALUES.pop(name) if entry[0] is not block]
                _set(name, left[-1][1])
                if len(left) > 1:
                    _VALUES[name] = left


def _set(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value

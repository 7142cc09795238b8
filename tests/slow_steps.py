"""What workers import (`--import`) whose steps are slow until a file says that it is enough.

So runs and trials last as long as a test needs them, on a fast machine too, and end soon after that.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from raypaml.training import loop
from raypaml.training.step import train_step

ENOUGH = "RAYPAML_SLOW_STEPS_END"
"""Environment variable that names the file."""
SLOW = "--import=tests.slow_steps"
SECONDS = "RAYPAML_SLOW_STEPS_SECONDS"
"""Environment variable of what a step takes longer."""
USUAL = 1.0
"""Seconds where it is not set."""


def until(enough: Path, seconds: float = USUAL) -> dict[str, str]:
    """The environment of processes whose steps are slow until this file is there."""
    return {ENOUGH: str(enough), SECONDS: str(seconds), "PYTHONPATH": str(Path(__file__).parents[1])}


def _slow_step(worker: Any, batch: Any) -> None:
    if not Path(os.environ[ENOUGH]).exists():
        time.sleep(float(os.environ.get(SECONDS, USUAL)))
    train_step(worker, batch)


if ENOUGH in os.environ:
    loop.train_step = _slow_step

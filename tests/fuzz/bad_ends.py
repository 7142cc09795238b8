"""Ways in which a process ends that the fuzzer must see; not in its test, whose import takes longer."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.fuzz.running import Case, Outcome


def die(_case: Case, _folder: Path) -> Outcome:
    """As native code does that reads where nothing is."""
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError


def wait(_case: Case, _folder: Path) -> Outcome:
    """For what never comes."""
    signal.pause()
    raise AssertionError

"""The entries that `python -m tools.gpu` runs; those that others depend on come first."""

from __future__ import annotations

from collections.abc import Iterable

from tools.gpu.gpu_checks import check_device, check_group, check_map, check_resume, check_tests
from tools.gpu.gpu_profile import measure_profile
from tools.gpu.gpu_rows import Entry
from tools.gpu.gpu_speed import (
    measure_compiled,
    measure_compiled_small,
    measure_head,
    measure_steps,
    measure_tars,
    measure_ways,
)

ENTRIES = {
    "check": (
        Entry("device", check_device, 60),
        Entry("pytest -m gpu", check_tests, 240),
        Entry("digits stopped and continued", check_resume, 150),
        Entry("training and mAP on GPU and CPU", check_map, 120),
        Entry("process group of one rank", check_group, 60),
    ),
    "bench": (
        Entry("device", check_device, 60),
        Entry("steps without data", measure_steps, 200),
        Entry("head and loss", measure_head, 60),
        Entry("ways to compute a step", measure_ways, 90),
        Entry("profile", measure_profile, 120),
        Entry("end to end from tars", measure_tars, 150),
        Entry("compiled step", measure_compiled, 150),
        Entry("compiled small step", measure_compiled_small, 150),
    ),
}


def chosen_entries(sets: Iterable[str], only: str) -> list[Entry]:
    """Returns the entries of these sets, each once.

    Args:
        sets: some keys of ENTRIES.
        only: beginnings of names, separated by commas, to choose entries by; empty for all.

    Raises:
        ValueError: there is no entry whose name begins like that.
    """
    entries = list(dict.fromkeys(entry for name in sets for entry in ENTRIES[name]))
    wanted = [name for name in only.split(",") if name]
    for name in wanted:
        if not any(entry.name.startswith(name) for entry in entries):
            known = ", ".join(entry.name for entry in entries)
            raise ValueError(f"only={name}: no entry of this name in {' and '.join(sets)}; known: {known}")
    return [entry for entry in entries if not wanted or entry.name.startswith(tuple(wanted))]

"""Imports packages that this machine lacks from the wheels in the folder `wheels/`, which `make gpu-wheels` fills."""

from __future__ import annotations

import importlib.metadata
import sys
import zipfile
from pathlib import Path

WHEELS = Path(__file__).parents[2] / "wheels"


def use_wheels(into: Path, wheels: Path = WHEELS) -> list[str]:
    """Unpacks the wheels of packages that are not installed, and adds them to the path; returns their names.

    A wheel is a zip file of modules that can be imported, so neither pip nor a network is needed.
    """
    missing = [wheel for wheel in sorted(wheels.glob("*.whl")) if not _is_installed(wheel.name.split("-")[0])]
    for wheel in missing:
        with zipfile.ZipFile(wheel) as content:
            content.extractall(into)
    if missing:
        sys.path.append(str(into))
        importlib.invalidate_caches()
    return [wheel.name.split("-")[0] for wheel in missing]


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True

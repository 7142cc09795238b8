"""What this machine lacks comes from wheels beside the checkout: `make gpu-wheels` fills the folder `wheels/`."""

from __future__ import annotations

import importlib.metadata
import sys
import zipfile
from pathlib import Path

WHEELS = Path(__file__).parents[2] / "wheels"


def use_wheels(into: Path, wheels: Path = WHEELS) -> list[str]:
    """Unpack the wheels of distributions that are not installed here, and import them from there; their names.

    A wheel is a zip file of what belongs on the path, so no pip and no network is needed.
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

"""clusters/Dockerfile and .dockerignore: what it copies is let through and enough, and its versions are ours."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "clusters" / "Dockerfile").read_text()
LINES = TEXT.replace("\\\n", " ").splitlines()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def passes(name: str) -> bool:
    """Whether .dockerignore lets this path of the checkout into the image; the last pattern that fits decides."""
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    passed = True
    for pattern in patterns:
        kept = pattern.removeprefix("!")
        if (
            fnmatch(name, kept)
            or name.startswith(f"{kept}/")
            or (kept.startswith("**/") and kept[3:] in name.split("/"))
        ):
            passed = pattern[0] == "!"
    return passed


def test_what_is_installed_goes_into_the_image_and_nothing_else() -> None:
    target = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    for name in (*target["packages"], *target["force-include"], "pyproject.toml", PROJECT["project"]["readme"]):
        assert passes(name), name
    copied = [name for line in LINES if line.startswith("COPY ") for name in line.split()[1:-1] if name != "."]
    assert copied == ["pyproject.toml", "constraints.txt", "README.md"]
    assert all(passes(name) and (ROOT / name).is_file() for name in copied)
    assert passes("raypaml/train.py")
    for name in (
        ".git/config",
        "runs/mine/config.json",
        "tests/conftest.py",
        ".venv/ready",
        "raypaml/__pycache__/x.pyc",
    ):
        assert not passes(name), name


def test_the_base_has_our_ray_and_the_extras_exist() -> None:
    bases = re.findall(r"rayproject/ray:(\S+?)-py311-(gpu|cpu)", TEXT)
    assert {version for version, _ in bases} == {importlib.metadata.version("ray")}
    assert {kind for _, kind in bases} == {"gpu", "cpu"}
    assert f"ARG BASE=rayproject/ray:{bases[0][0]}-py311-gpu" in LINES
    assert "FROM ${BASE}" in LINES
    (extras,) = re.findall(r"'/tmp/needs\[(.*?)\]'", TEXT)
    assert set(extras.split(",")) <= set(PROJECT["project"]["optional-dependencies"])

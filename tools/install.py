"""Installs this checkout into an environment, with the versions of constraints.txt; `make` calls it.

    python3 tools/install.py .venv        what raypaml needs
    python3 tools/install.py .venv dev    also what its tests need; several extras with commas

It uses uv if the environment variable UV has its path, else pip. After an installation that was interrupted, the next
one starts again with an empty environment, and uses the downloads so far. Only the standard library is imported.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
CONSTRAINTS = "constraints.txt"
PYTHON = sys._base_executable  # type: ignore[attr-defined]
"""The Python outside any environment, because an activated `.venv` may have to be removed; `venv` uses it too."""
PEAK_BYTES = 9.9e9
"""What a first installation by pip, with the extra dev, takes at most: downloads are kept until all is installed."""


def commands(uv: str, venv: Path, what: str) -> tuple[list[str], list[str]]:
    """Returns the command that makes the environment, and the one that installs into it."""
    python = str(venv / "bin" / "python")
    if uv:  # --seed also installs pip, with which users may add packages
        make = [uv, "venv", "--quiet", "--seed", "--allow-existing", "--python", PYTHON, str(venv)]
        pinned = ["--constraints", CONSTRAINTS, "--build-constraints", CONSTRAINTS]
        return make, [uv, "pip", "install", "--python", python, *pinned, "--editable", what]
    return [PYTHON, "-m", "venv", str(venv)], [
        *(python, "-m", "pip", "install", "--disable-pip-version-check", "--editable", what)
    ]


@contextmanager
def unbroken(venv: Path) -> Iterator[int]:
    """Marks the environment as unfinished until all is installed; removes it first if an earlier mark is left.

    Yields a file descriptor; other installations are refused while this process, or one that inherits it, has it open.

    Raises:
        SystemExit: another installation into this environment is running.
    """
    mark = venv.with_name(f"{venv.name}.unfinished")
    broken = mark.exists()
    with mark.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"{venv}: another installation into it is running; wait until it ends")
        if broken:
            print(f"An earlier installation into {venv} was not finished: it starts again.", flush=True)
            shutil.rmtree(venv, ignore_errors=True)
        yield held.fileno()
        mark.unlink()


def size_of(folder: Path) -> int:
    """Returns the bytes of all files below a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def main(argv: Sequence[str]) -> None:
    """Installs; prints what is installed where, and how long it took."""
    parser = argparse.ArgumentParser(description="Install this checkout into a virtual environment of its own.")
    parser.add_argument("venv", type=Path, help="folder of the virtual environment")
    parser.add_argument("extras", nargs="?", default="", help="optional dependencies, with commas between [none]")
    asked = parser.parse_args(argv)
    uv, venv, what = os.environ.get("UV", ""), asked.venv, f".[{asked.extras}]" if asked.extras else "."
    free, begun = shutil.disk_usage(venv.parent).free, time.monotonic()
    print(f"Installing {what} of {ROOT} into {venv}, by {'uv' if uv else 'pip'}; {free / 1e9:.1f} GB are free.")
    if not (venv / "ready").exists():
        print("PyTorch for CUDA is most of it, also where there is no GPU: 3 GB to download, 7 GB once installed.")
        if free < PEAK_BYTES:
            print(
                f"{free / 1e9:.1f} GB may be too few: with its downloads it takes up to {PEAK_BYTES / 1e9:.1f} GB. "
                "Make room, or choose another disk: `make demo VENV=FOLDER`, and TMPDIR=FOLDER for pip's downloads."
            )
    sys.stdout.flush()
    with unbroken(venv) as lock:
        for command in commands(uv, venv, what):  # it inherits the lock, because it may outlive this process
            subprocess.run(command, env=os.environ | {"PIP_CONSTRAINT": CONSTRAINTS}, pass_fds=(lock,), check=True)
    print(f"Installed in {time.monotonic() - begun:.0f} s; {venv} takes {size_of(venv) / 1e9:.1f} GB of disk.")


if __name__ == "__main__":
    os.chdir(ROOT)
    try:
        main(sys.argv[1:])
    except subprocess.CalledProcessError as error:
        sys.exit(f"{' '.join(error.cmd)}: failed, as said above; make starts the installation again")
    except OSError as error:  # such as a UV=PATH that is not there
        sys.exit(f"{error.filename or 'installation'}: {error.strerror}; make starts the installation again")
    except KeyboardInterrupt:
        sys.exit(130)

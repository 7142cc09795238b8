"""tools/install.py: pip or uv, what it says, and that an interrupted installation begins anew."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from raypaml.cli import extra

TOOL = Path(__file__).parent.parent / "tools" / "install.py"
PIP = """#!/bin/sh
echo "$PIP_CONSTRAINT $@" >> ../pip.log
"""
"""Stands for the Python of the environment, which only installs."""
PYTHON = """#!/bin/sh
test -n "$BREAK" && mkdir -p .venv && touch .venv/half && kill -9 $PPID
mkdir -p .venv/bin && cp ../pip .venv/bin/python
"""
UV = """#!/bin/sh
echo "$@" >> ../uv.log
mkdir -p .venv/bin
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with the tool alone; beside it a uv, a Python and its pip that only note how they are called."""
    for name, text in (("pip", PIP), ("python", PYTHON), ("uv", UV)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    tools = tmp_path / "checkout" / "tools"
    tools.mkdir(parents=True)
    tool = TOOL.read_text().replace("sys._base_executable", repr(str(tmp_path / "python")))
    (tools / "install.py").write_text(tool)
    return tools.parent


def install(checkout: Path, *extras: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-S", str(checkout / "tools" / "install.py"), ".venv", *extras]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


def test_pip_installs_with_the_versions_of_constraints(checkout: Path) -> None:
    done = install(checkout)
    assert done.returncode == 0, done.stderr
    first, *_, last = done.stdout.splitlines()
    assert first.startswith(f"Installing . of {checkout} into .venv, by pip; ")
    assert last.startswith("Installed in 0 s; .venv takes 0.0 GB")
    assert (checkout.parent / "pip.log").read_text().split() == [
        *("constraints.txt", "-m", "pip", "install", "--disable-pip-version-check", "--editable", ".")
    ]


@pytest.mark.parametrize(("peak", "warned"), [("1e30", True), ("1", False)])
def test_where_the_disk_may_be_too_small_it_is_said_before(checkout: Path, peak: str, warned: bool) -> None:
    tool = checkout / "tools" / "install.py"
    tool.write_text(tool.read_text().replace("PEAK_BYTES = 9.9e9", f"PEAK_BYTES = {peak}"))
    done = install(checkout)
    assert done.returncode == 0, done.stderr
    assert ("GB may be too few" in done.stdout) == warned


def test_uv_installs_where_it_is_there(checkout: Path) -> None:
    assert install(checkout, "dev,cluster", UV="../uv").returncode == 0
    made, installed = (checkout.parent / "uv.log").read_text().splitlines()
    assert made == f"venv --quiet --seed --allow-existing --python {checkout.parent / 'python'} .venv"
    assert installed.startswith("pip install --python .venv/bin/python --constraints constraints.txt ")
    assert installed.endswith("--editable .[dev,cluster]")


def test_an_interrupted_installation_begins_anew(checkout: Path) -> None:
    assert install(checkout, BREAK="1").returncode < 0
    half = checkout / ".venv" / "half"
    assert half.exists()
    done = install(checkout)
    assert "An earlier installation into .venv was not finished: it starts again." in done.stdout
    assert not half.exists()
    half.touch()
    assert "starts again" not in install(checkout).stdout
    assert half.exists()


def test_two_installations_do_not_disturb_each_other(checkout: Path) -> None:
    with (checkout / ".venv.unfinished").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = install(checkout)
    assert done.returncode == 1
    assert ".venv: another installation into it is running; wait until it ends" in done.stderr
    assert not (checkout / ".venv").exists()


def test_a_failure_is_one_line_and_the_next_installation_begins_anew(checkout: Path) -> None:
    (checkout.parent / "pip").write_text("#!/bin/sh\nexit 3\n")
    done = install(checkout)
    assert done.returncode == 1
    assert "--editable .: failed, as said above; make starts the installation again" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert (checkout / ".venv.unfinished").exists()


def test_a_uv_that_is_not_there_is_one_line(checkout: Path) -> None:
    done = install(checkout, UV="../no/uv")
    said = "../no/uv: No such file or directory; make starts the installation again\n"
    assert (done.returncode, done.stderr) == (1, said)


def test_what_is_lacking_is_installed_by_uv_where_there_is_no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    assert extra("onnx").startswith(f"{sys.executable} -m pip install '")

    def without_pip(name: str) -> None:
        if name == "pip":
            raise PackageNotFoundError

    monkeypatch.setattr("importlib.metadata.distribution", without_pip)
    assert extra("onnx").startswith(f"uv pip install --python {sys.executable} '")

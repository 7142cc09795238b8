"""The help of every command, of every kind of `raypaml shard` and of every tool fits 80 columns."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from raypaml import __main__, shard

ROOT = Path(__file__).parents[1]
TOOLS = sorted(path for path in ROOT.glob("tools/**/*.py") if 'if __name__ == "__main__":' in path.read_text())
COMMANDS = ["", *__main__.COMMANDS, *(f"shard {kind}" for kind in shard.KINDS)]


def _told(capsys: pytest.CaptureFixture[str]) -> str:
    """The help on standard output, in which the only lines of any length are those that name a folder."""
    told = capsys.readouterr()
    assert told.err == ""
    return "\n".join(line for line in told.out.split("\n") if str(ROOT) not in line)


def _check(text: str) -> None:
    assert [line for line in text.split("\n") if len(line) > 80] == []
    assert text.startswith("usage: ")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", ["/usr/bin/raypaml/__main__.py"])  # `python -m raypaml`, the longest name
    with pytest.raises(SystemExit, match="0"):
        sys.exit(__main__.main([*command.split(), "--help"]))
    _check(_told(capsys))


@pytest.mark.parametrize("tool", TOOLS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_help_of_a_tool(tool: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", [str(tool), "--help"])
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(tool), run_name="__main__")
    _check(_told(capsys))

"""Every flag of every command that scripts may use still parses: `fixtures/flags.json`, as of commit d064269.

Written by `python -m tests.test_flags_stay FILE.json`.
"""

from __future__ import annotations

import argparse
import json
import runpy
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

MODULES = ("train", "tune", "evaluate", "explain", "predict", "export", "audit", "doctor")
TOOLS = ("shard_openimages", "shard_dataset", "index_shards", "verify_shards", "compare_data", "aggregate_map")
COMMANDS = (*(f"python -m raypaml.{name}" for name in MODULES), *(f"python tools/{name}.py" for name in TOOLS))
KEPT = Path(__file__).parent / "fixtures" / "flags.json"

Flags = dict[str, Any]


def flags_of(command: str, patch: pytest.MonkeyPatch) -> Flags:
    """The positional arguments and the options of a command's parser, taken where it would print its help."""
    parsers = list[argparse.ArgumentParser]()
    patch.setattr(argparse.ArgumentParser, "print_help", lambda parser, _file=None: parsers.append(parser))
    patch.setattr(sys, "argv", [command, "--help"])
    with pytest.raises(SystemExit) as stopped:
        _run(command.split()[-1])
    assert stopped.value.code == 0
    (parser,) = parsers
    actions = [action for action in parser._actions if action.dest != "help"]
    return {
        "positional": [_described(action) for action in actions if not action.option_strings],
        "options": {name: _described(action) for action in actions for name in action.option_strings},
    }


def _run(what: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of runpy, about a module that another test has imported
        if what.endswith(".py"):
            runpy.run_path(str(Path(__file__).parents[1] / what), run_name="__main__")
        else:
            runpy.run_module(what, run_name="__main__")


def _described(action: argparse.Action) -> dict[str, Any]:
    found: dict[str, Any] = {} if action.option_strings else {"name": action.metavar or action.dest}
    found |= {"nargs": action.nargs, "takes_value": action.nargs != 0}
    return found | ({"choices": list(action.choices)} if action.choices is not None else {})


def changes(before: Flags, now: Flags) -> list[str]:
    """What a command line for the old flags could not say any more; what is new does not matter."""
    old, new = before["positional"], now["positional"]
    found = [f"{one['name']}: missing" for one in old[len(new) :]]
    found += [change for one, other in zip(old, new, strict=False) for change in _changes(one["name"], one, other)]
    found += [f"{one['name']}: new, and not optional" for one in new[len(old) :] if one["nargs"] not in ("?", "*")]
    for name, option in before["options"].items():
        found += _changes(name, option, now["options"][name]) if name in now["options"] else [f"{name}: missing"]
    return found


def _changes(name: str, old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    found = [f"{name}: {key} was {old[key]}, is {new[key]}" for key in ("nargs", "takes_value") if old[key] != new[key]]
    lost = set(old.get("choices", new.get("choices", ()))) - set(new.get("choices", old.get("choices", ())))
    closed = "choices" in new and "choices" not in old
    return found + [f"{name}: no longer {choice}" for choice in sorted(lost)] + [f"{name}: now has choices"] * closed


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_stays(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert changes(json.loads(KEPT.read_text())[command], flags_of(command, monkeypatch)) == []


def test_lost_and_changed_flags_are_named() -> None:
    old: Flags = {"positional": [{"name": "RUN", "nargs": None, "takes_value": True}], "options": {}}
    value, switch = {"nargs": None, "takes_value": True}, {"nargs": 0, "takes_value": False}
    old["options"] = {"--a": value, "--b": value | {"choices": ["x", "y"]}, "--c": switch}
    new: Flags = {"positional": [], "options": {"--b": value | {"choices": ["x", "z"]}, "--c": value}}
    assert changes(old, old) == []
    said = ["RUN: missing", "--a: missing", "--b: no longer y"]
    assert changes(old, new) == [*said, "--c: nargs was 0, is None", "--c: takes_value was False, is True"]


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as here:
        written = {command: flags_of(command, here) for command in COMMANDS}
    Path(sys.argv[1]).write_text(json.dumps(written, indent=1) + "\n")

"""SIGKILL at any moment, then the same command: the same bytes as without, and nothing half-written has a name."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.openimages_release import Release
from tests.processes import die_before, finish, kill, named, note_states, start
from tests.shard_tool import ROOT, flags, hashes, shard

KILLS = 20
CHANGES = 20


@dataclass(frozen=True)
class Clean:
    """An uninterrupted run, watched."""

    flags: list[str]
    """Without --out."""
    hashes: dict[str, str]
    """Of every file at its end."""
    states: set[tuple[str, str]]
    """Every (name, SHA-256) that was ever there, before any change."""
    changed: list[tuple[str, str]]
    """Event and path of every change."""
    seconds: float
    """Of an unwatched run."""


@pytest.fixture(scope="module")
def clean(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Clean:
    folder = tmp_path_factory.mktemp("clean")
    argv = flags(release, folder / "out", "--limit", 40, "--shard-samples", 15)
    assert finish(start(argv, folder / "said", note_states, folder / "out", folder / "notes")) == 0
    shutil.move(folder / "out", folder / "watched")
    began = time.monotonic()
    assert finish(start(argv, folder / "said")) == 0
    seconds = time.monotonic() - began
    notes = [json.loads(line) for line in (folder / "notes").read_text().splitlines()]
    states = {item for *_, found in notes for item in found.items()} | set(named(folder / "out").items())
    assert hashes(folder / "out") == hashes(folder / "watched")
    return Clean(
        flags=[flag for flag in argv if flag not in ("--out", str(folder / "out"))],
        hashes=hashes(folder / "out"),
        states=states,
        changed=[(event, path) for event, path, _ in notes],
        seconds=seconds,
    )


def test_nothing_is_opened_for_writing_under_its_final_name(clean: Clean) -> None:
    opened = {Path(path).name for event, path in clean.changed if event == "open"}
    assert len(opened) > 10
    assert {name for name in opened if not name.endswith(".unfinished")} == {"lock"}


def test_a_marker_waits_until_what_it_vouches_for_is_on_the_disk(
    release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, seen = tmp_path / "out", []

    def note() -> None:
        shards = [path.name for path in out.rglob("*.tar")]
        is_finished = "finished" in json.loads((out / "preparation.json").read_text())["splits"]["validation"]
        seen.append((shards, bool(list(out.rglob("complete"))), is_finished))

    monkeypatch.setattr(os, "sync", note)
    shard(release, out, "--split", "validation", "--limit", 2)
    assert seen == [(["000000.tar"], False, False), (["validation-000000.tar"], True, False)]


def goes_on(clean: Clean, out: Path) -> None:
    """After a kill: what has a name is whole, and the same command ends as if nothing had happened."""
    assert set(named(out).items()) <= clean.states
    assert finish(start([*clean.flags, "--out", str(out)], out.with_suffix(".said"))) == 0
    assert hashes(out) == clean.hashes
    shutil.rmtree(out)


def test_killed_at_twenty_random_moments(clean: Clean, tmp_path: Path) -> None:
    """Four times in each folder, so that what a kill leaves is gone on with, and killed again."""
    moments, kills, at_work, seconds = random.Random(7), 0, 0, clean.seconds
    while kills < KILLS:
        out = tmp_path / f"out{kills}"
        for _ in range(4):
            process = start([*clean.flags, "--out", str(out)], tmp_path / "said")
            process.join(moments.uniform(0, seconds))
            was_killed = kill(process)
            kills += was_killed
            seconds *= 1 if was_killed else 0.8  # measured while the machine was busier
            at_work += out.is_dir()
            assert set(named(out).items()) <= clean.states
        goes_on(clean, out)
    assert at_work > KILLS // 2, "most kills came after the command had begun to write"


def test_killed_before_a_change_of_any_kind(clean: Clean, tmp_path: Path) -> None:
    """Moments spread evenly over all renames, removals and openings, the last ones of each split among them."""
    total = len(clean.changed)
    random_offset = random.Random(11).random()
    moments = {int((k + random_offset) * total / CHANGES) for k in range(CHANGES)} | {total - 1}
    for number in sorted(moments):
        out = tmp_path / f"out{number}"
        process = start([*clean.flags, "--out", str(out)], tmp_path / "said", die_before, out, number)
        assert finish(process) == -9, (number, clean.changed[number])
        goes_on(clean, out)


def test_the_command_itself(clean: Clean, tmp_path: Path) -> None:
    """As a user starts it: killed when its first shard is there, then given again."""
    out = tmp_path / "out"
    tool = [sys.executable, str(ROOT / "tools" / "shard_openimages.py"), *clean.flags, "--out", str(out)]
    for _ in range(5):  # it may end before the kill, where this process had to wait for a core
        shutil.rmtree(out, ignore_errors=True)
        process = subprocess.Popen(tool, cwd=ROOT, stderr=subprocess.DEVNULL)
        while not list(out.rglob("000000.arrow")) and process.poll() is None:
            time.sleep(0.001)
        process.kill()
        if process.wait(30) == -9:
            break
    assert process.returncode == -9, "each time it was quicker than the kill"
    assert set(named(out).items()) <= clean.states
    subprocess.run(tool, cwd=ROOT, check=True, timeout=60, stderr=subprocess.DEVNULL)
    assert hashes(out) == clean.hashes

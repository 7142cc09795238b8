"""Files and folders are there whole or not at all, whatever happens to whoever writes them."""

from __future__ import annotations

import errno
import json
import math
import multiprocessing
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raypaml.data.digits import digits_folder
from raypaml.files import finite_json, kept_in, sweep, user_cache, whole, whole_folder, write_json, write_whole
from raypaml.runs.mirror import local_folder

KINDS = pytest.mark.parametrize("shared", [False, True], ids=["alone", "shared"])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file [1].txt"
    path.write_text("old")
    return path


def fail(unfinished: Path, error: BaseException) -> None:
    """Write a half, then fail."""
    target = unfinished / "file" if unfinished.is_dir() else unfinished
    target.write_text("half")
    raise error


@pytest.fixture(params=[0o022, 0o077, 0o002], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


# --- Files ------------------------------------------------------------------------------------------------------------


@KINDS
def test_the_old_file_stays_until_the_block_ends(shared: bool, path: Path) -> None:
    with whole(path, shared=shared) as unfinished:
        unfinished.write_text("new")
        assert path.read_text() == "old"
        assert unfinished.parent == path.parent
        assert unfinished.name.startswith(f".{path.name}.")
        assert unfinished.name.endswith(".unfinished")
    assert path.read_text() == "new"
    assert names(path.parent) == [path.name]


@KINDS
@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt, SystemExit])
def test_a_block_that_fails_changes_nothing(shared: bool, error: type[BaseException], path: Path) -> None:
    with pytest.raises(error, match="in the middle"), whole(path, shared=shared) as unfinished:
        fail(unfinished, error("in the middle"))
    with pytest.raises(error, match="at the start"), whole(path, shared=shared):
        raise error("at the start")
    assert path.read_text() == "old"
    assert names(path.parent) == [path.name]


def test_a_failure_to_clean_up_does_not_hide_the_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("read-only by now")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(ValueError, match="the real one"), whole(path) as unfinished:
        fail(unfinished, ValueError("the real one"))
    assert path.read_text() == "old"


@KINDS
@pytest.mark.parametrize("place", ["write_bytes", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_half_of_the_new(
    shared: bool, place: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def full(file: Path, *_: object) -> None:
        write(file, b"hal")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, place, full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "half of it", shared=shared)
    assert path.read_text() == "old"
    assert names(path.parent) == [path.name]


def test_what_was_killed_is_taken_over(path: Path) -> None:
    path.with_name(f".{path.name}.unfinished").write_text("half of a longer text")
    write_whole(path, "new")
    assert path.read_text() == "new"
    assert names(path.parent) == [path.name]


def test_a_file_is_readable_as_the_umask_says(umask: int, path: Path, tmp_path: Path) -> None:
    path.chmod(0o400)
    write_whole(path, b"new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    with whole_folder(tmp_path / "folder"):
        pass
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~umask


def test_json_is_utf_8_with_a_line_end(path: Path) -> None:
    write_json(path, {"name": "Käse", "counts": [1]})
    assert path.read_bytes() == b'{\n  "name": "K\\u00e4se",\n  "counts": [\n    1\n  ]\n}\n'
    write_json(path, {"name": "Käse"}, indent=1, ensure_ascii=False)
    assert path.read_bytes() == '{\n "name": "Käse"\n}\n'.encode()
    with pytest.raises(TypeError):
        write_json(path, {"name": object()})
    assert json.loads(path.read_text()) == {"name": "Käse"}


# --- Several at once --------------------------------------------------------------------------------------------------


def _write_often(path: Path, letter: str, barrier: Any) -> None:
    barrier.wait(60)
    for _ in range(200):
        with whole(path, shared=True) as unfinished, unfinished.open("w") as file:
            for _ in range(50):
                file.write(letter * 100)
                file.flush()


def test_two_processes_may_write_the_same_file_at_once(tmp_path: Path) -> None:
    path, context = tmp_path / "file", multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    writers = [context.Process(target=_write_often, args=(path, letter, barrier)) for letter in "ab"]
    for writer in writers:
        writer.start()
    barrier.wait(60)
    seen = set()
    while any(writer.is_alive() for writer in writers):
        if path.is_file():
            seen.add(path.read_text())
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert seen | {path.read_text()} <= {"a" * 5000, "b" * 5000}
    assert names(tmp_path) == ["file"]


def _make_folder(path: Path, barrier: Any) -> None:
    barrier.wait(60)
    with whole_folder(path, shared=True) as unfinished:
        for number in range(20):
            (unfinished / str(number)).write_text("same")
        barrier.wait(60)


def test_two_processes_may_make_the_same_folder_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    makers = [context.Process(target=_make_folder, args=(tmp_path / "folder", barrier)) for _ in range(2)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join(60)
    assert [maker.exitcode for maker in makers] == [0, 0]
    assert names(tmp_path) == ["folder"]
    assert len(names(tmp_path / "folder")) == 20


# --- Folders ----------------------------------------------------------------------------------------------------------


@KINDS
def test_a_folder_appears_when_it_is_full(shared: bool, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with whole_folder(folder, shared=shared) as unfinished:
        (unfinished / "file").write_text("x")
        assert not folder.exists()
    assert (folder / "file").read_text() == "x"
    assert names(folder.parent) == ["b"]


@KINDS
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_folder_whose_block_fails_is_not_there(shared: bool, error: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(error, match="in the middle"), whole_folder(tmp_path / "folder", shared=shared) as unfinished:
        fail(unfinished, error("in the middle"))
    assert not names(tmp_path)


def test_a_folder_takes_over_what_was_killed(tmp_path: Path) -> None:
    (tmp_path / ".folder.unfinished").mkdir()
    (tmp_path / ".folder.unfinished" / "old").write_text("x")
    with whole_folder(tmp_path / "folder") as unfinished:
        (unfinished / "new").write_text("x")
    assert names(tmp_path / "folder") == ["new"]


def test_a_folder_that_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "first").write_text("x")
    with pytest.raises(OSError, match="folder"), whole_folder(tmp_path / "folder") as unfinished:
        (unfinished / "second").write_text("x")
    with whole_folder(tmp_path / "folder", shared=True) as unfinished:
        (unfinished / "second").write_text("x")
    assert names(tmp_path / "folder") == ["first"]
    assert names(tmp_path) == ["folder"]


# --- What killed processes left ---------------------------------------------------------------------------------------


def test_sweep_removes_what_is_unfinished_and_nothing_else(tmp_path: Path) -> None:
    for name in (".a.unfinished", ".a.01234567.unfinished", ".b.unfinished", "c.unfinished", ".d", "e"):
        (tmp_path / name).write_text("x")
    (tmp_path / ".a-folder.unfinished").mkdir()
    (tmp_path / ".a-folder.unfinished" / "file").write_text("x")
    sweep(tmp_path, "a*")
    assert names(tmp_path) == [".b.unfinished", ".d", "c.unfinished", "e"]
    sweep(tmp_path)
    assert names(tmp_path) == [".d", "c.unfinished", "e"]
    sweep(tmp_path / "none")


def test_sweep_leaves_what_others_may_be_writing(tmp_path: Path) -> None:
    for name, age in ((".a.01234567.unfinished", 7200), (".b.01234567.unfinished", 60)):
        (tmp_path / name).write_text("x")
        os.utime(tmp_path / name, (0, time.time() - age))
    sweep(tmp_path, shared=True)
    assert names(tmp_path) == [".b.01234567.unfinished"]


@pytest.mark.parametrize("cache", ["/elsewhere", "", None])
def test_the_cache_of_the_user(cache: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty XDG_CACHE_HOME counts as unset, as the XDG specification has it: nothing is written where one stands."""
    monkeypatch.setenv("HOME", "/home/somebody")
    if cache is None:
        monkeypatch.delenv("XDG_CACHE_HOME")
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", cache)
    home = Path(cache or "/home/somebody/.cache")
    assert user_cache() == home / "raypaml"
    assert str(local_folder("s3://bucket/runs", "NAME")).startswith(f"{home}/raypaml/runs/")


def test_a_user_without_a_home_folder_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.getuid", lambda: 4_000_000_000)  # in no /etc/passwd
    with pytest.raises(ValueError, match=r"user with id 4000000000 has no home folder .* set XDG_CACHE_HOME to"):
        user_cache()


def test_json_has_null_for_numbers_that_it_lacks(path: Path) -> None:
    write_json(
        path, finite_json({"a": (1.5, math.nan), "b": [[-math.inf], {"c": np.float64(np.nan)}], "d": 1, "e": "x"})
    )
    assert json.loads(path.read_text()) == {"a": [1.5, None], "b": [[None], {"c": None}], "d": 1, "e": "x"}


def test_a_folder_that_cannot_be_kept_in_names_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kept_in(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    said = r"file/cache: cannot be written to \(Not a directory\); set XDG_CACHE_HOME to a folder that can$"
    with pytest.raises(ValueError, match=said):
        kept_in(tmp_path / "file" / "cache")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ValueError, match=r"\(Permission denied\); set --cache to a folder that can$"):
        kept_in(tmp_path, "set --cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"cache/raypaml: cannot be written to .*; set XDG_CACHE_HOME"):
        digits_folder(num_scenes={"train": 1, "validation": 1, "test": 1})

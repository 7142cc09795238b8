"""Files are as readable as the umask says, and a file that may not be read is said to be that, not damaged."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import raypaml
from raypaml.data.cache import CachedShards
from raypaml.data.index import open_index
from raypaml.data.storage import Location
from raypaml.evaluation.parts import open_set
from raypaml.files import check_readable
from raypaml.inference.model_card import Card
from raypaml.runs import models
from raypaml.runs.checkpoint import valid_checkpoints
from tests.nobody import as_nobody


@pytest.fixture
def public(trained: tuple[Path, str], evaluated_digits: Path) -> Iterator[Path]:
    """A run, its export and an index at a place that everybody may enter."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        run = Path(shutil.copytree(trained[0], Path(folder) / "run"))
        shutil.copy(evaluated_digits / "test.arrow", run)
        before = os.umask(0o022)
        raypaml.Run.open(run, progress=False).export(formats=["safetensors"])
        os.umask(before)
        yield run


def test_runs_and_exports_are_readable_as_the_umask_says(public: Path, tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        raypaml.Run.open(public, progress=False).export(tmp_path / "export", formats=["safetensors"])
    finally:
        os.umask(before)
    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "export").iterdir()}
    assert found == dict.fromkeys(("card.json", "model.safetensors", "model_card.md"), 0o664)
    kept = {stat.S_IMODE(path.stat().st_mode) for path in public.rglob("*") if path.is_file()}
    assert kept == {0o666 & ~before}


@pytest.mark.parametrize(
    ("closed", "read"),
    [
        ("checkpoints/*/model.safetensors", models.tested_checkpoint),
        ("checkpoints/*/COMMITTED", models.tested_checkpoint),
        ("checkpoints", lambda run: valid_checkpoints(run / "checkpoints")),
        ("predictions/test/*.parquet", lambda run: open_set(run / "predictions" / "test")),
        ("predictions/test", lambda run: open_set(run / "predictions" / "test")),
        ("export/card.json", lambda run: Card.read(run / "export")),
        ("test.arrow", lambda run: open_index(run / "test.arrow")),
    ],
)
def test_what_may_not_be_read_is_not_called_damaged(closed: str, read: Callable[[Path], object], public: Path) -> None:
    for path in public.glob(closed):
        path.chmod(0)
    with as_nobody(), pytest.raises(PermissionError) as refused:
        read(public)
    assert str(next(public.glob(closed.partition("/")[0]))) in str(refused.value)
    assert "nobody may not read it: it belongs to" in str(refused.value)
    assert "has mode 0000; " in str(refused.value)
    assert f"chmod -R a+rX {public}" in str(refused.value)


def test_the_folder_that_is_closed_is_named(public: Path) -> None:
    (public / "checkpoints").chmod(0o700)
    path = next(public.glob("checkpoints/*/state.json"))
    with as_nobody(), pytest.raises(PermissionError, match=f"^{path}: is there, .*: {public}/checkpoints belongs to"):
        check_readable(path)
    check_readable(path)
    check_readable(public / "missing")


def test_shards_that_another_user_has_cached_are_read(public: Path, evaluated_digits: Path) -> None:
    """The time of a file of somebody else cannot be set, and its locks can be had for reading alone."""
    cache = public / "cache"
    name = "test-000000.tar"
    size = (evaluated_digits / name).stat().st_size
    before = os.umask(0o022)
    mine = CachedShards(Location(evaluated_digits.as_uri()), cache, "x", 1 << 30)
    mine.fetch(name, size)
    os.umask(before)
    assert stat.S_IMODE((cache / f"x-{name}").stat().st_mode) == 0o644
    os.utime(cache / f"x-{name}", (1, 1))
    content = (evaluated_digits / name).read_bytes()
    with as_nobody():
        theirs = CachedShards(Location(evaluated_digits.as_uri()), cache, "x", 1 << 30)
        assert theirs.read(name, size, 0, size) == content
        theirs.used_up(name)
        assert theirs.fetch(name, size)

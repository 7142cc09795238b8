"""What goes wrong outside: one clear message, exit code 2, and what was finished stays valid."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import webdataset  # noqa: F401  # before privileges are dropped
from PIL import Image

from raypaml.data.index import open_index
from tests.nobody import as_nobody
from tests.odd_images import encoded
from tests.openimages_release import Release
from tests.processes import finish, start
from tests.shard_tool import ROOT, fates, flags, hashes, ledger, run_tool, shard

PROG = "python tools/shard_openimages.py"
VALIDATION = ("--split", "validation", "--shard-samples", 40)


# --- Wrong places and settings ----------------------------------------------------------------------------------------


def test_the_command_answers_in_one_line_with_exit_code_2(release: Release, tmp_path: Path) -> None:
    metadata = Path(shutil.copytree(release.metadata, tmp_path / "metadata"))
    labels = metadata / "2017_11" / "train" / "annotations-human.csv"
    labels.write_text(labels.read_text() + "0123,verification\n")
    lines = labels.read_text().count("\n")
    tool = [sys.executable, str(ROOT / "tools" / "shard_openimages.py"), *flags(release, tmp_path / "out")]
    done = subprocess.run(
        [*tool, "--metadata", str(metadata)], capture_output=True, text=True, cwd=ROOT, check=False, timeout=60
    )
    assert done.returncode == 2
    *_, last = done.stderr.splitlines()
    assert (
        last == f"python tools/shard_openimages.py: {labels}: line {lines}: 2 columns instead of 4: '0123,verification'"
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--metadata", "/nowhere"], "metadata=/nowhere: no such folder; put the 2017_11 files or archives into one"),
        (["--images", "/nowhere"], r"images=/nowhere: no such folder; give the folder of the images, or of train\*\."),
        (["--images", __file__], r"a file, not a folder"),
        (
            ["--images", str(ROOT / "tests")],
            r"none of the first 64 labelled images of split 'train' is there; give",
        ),
        (["--images", "pipe:cat"], "cannot read pipe: addresses"),
        (["--out", __file__], r"Not a directory: '.*\.py'"),
        (["--out", str(ROOT / "tests")], r"out=.*: holds other files \(.*\); give a new or empty folder"),
        (["--resize", "tall"], "resize='tall': give pixels up to 8192"),
        (["--shard-bytes", "12XB"], "shard_bytes='12XB': give a size such as 256MB"),
        (["--limit", "-1"], "limit=-1: must be at least 0"),
        (["--workers", "0"], "workers=0: must be at least 1"),
        (["--shard-samples", "0"], "shard_samples=0: must be at least 1"),
        (["--concurrency", "0"], "concurrency=0: must be at least 1"),
        (["--machine-labels", "7"], r"machine_labels=7\.0: give a confidence, 0\.\.1"),
        (["--verify"], "no prepared data set here"),
    ],
)
def test_wrong_settings(more: list[str], message: str, release: Release, tmp_path: Path) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        run_tool([*flags(release, tmp_path / "out"), *more])
    assert not list(tmp_path.rglob("*.tar"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--resize", "32"], r"size=64 \(asked: 32\)"),
        (["--resize", "none"], r"resize=squash \(asked: none\), size=64 \(asked: None\)"),
        (["--quality", "80"], r"quality=90 \(asked: 80\)"),
        (["--seed", "5"], r"seed=0 \(asked: 5\)"),
        (["--limit", "5"], r"limit=0 \(asked: 5\)"),
        (["--conflicts", "drop"], r"conflicts=source \(asked: drop\)"),
        (["--machine-labels", "0.5"], r"machine_labels=None \(asked: 0\.5\)"),
        (["--shard-samples", "9"], r"shard_samples=300 \(asked: 9\)"),
        (["--shard-bytes", "1MB"], r"shard_samples=300 \(asked: None\), shard_bytes=None \(asked: 1000000\)"),
    ],
)
def test_other_settings_in_the_same_folder(more: list[str], message: str, release: Release, prepared: Path) -> None:
    before = hashes(prepared)
    with pytest.raises(ValueError, match=f"holds another data set, made with {message}; give another --out"):
        run_tool([*flags(release, prepared), *more])
    assert hashes(prepared) == before


def test_other_classes_in_the_same_folder(release: Release, prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("/m/01g317\n")
    with pytest.raises(ValueError, match=r"made with vocabulary=\w+ \(asked: \w+\)"):
        shard(release, prepared, "--classes", tmp_path / "mine.txt")


def test_a_record_that_is_none(release: Release, tmp_path: Path) -> None:
    (tmp_path / "preparation.json").write_text('{"parameters": 3}')
    with pytest.raises(ValueError, match=r"preparation\.json: not the record of a preparation"):
        shard(release, tmp_path)


# --- No permission ----------------------------------------------------------------------------------------------------


@pytest.fixture
def public(release: Release) -> Iterator[Release]:
    """A copy that everybody may read, at a place that everybody may enter."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        metadata = Path(shutil.copytree(release.metadata, Path(folder) / "metadata"))
        images = Path(shutil.copytree(release.images / "validation", Path(folder) / "images"))
        (Path(folder) / "out").mkdir()
        (Path(folder) / "out").chmod(0o777)
        yield Release(metadata, images, release.splits)


def test_a_folder_that_may_not_be_written(public: Release) -> None:
    out = public.metadata / "out"
    with (
        as_nobody(),
        pytest.raises(PermissionError, match=r"Permission denied: '\S+/out'"),
    ):
        shard(public, out, *VALIDATION)


def test_labels_that_may_not_be_read(public: Release) -> None:
    path = public.metadata / "2017_11" / "validation" / "annotations-human.csv"
    path.chmod(0)
    with as_nobody(), pytest.raises(ValueError, match=rf"{path}: cannot be read: Permission denied"):
        shard(public, public.metadata.parent / "out" / "set", *VALIDATION)


def test_an_image_that_may_not_be_read_is_in_the_ledger(public: Release) -> None:
    out = public.metadata.parent / "out" / "set"
    key = next(key for key in public.splits["validation"].labels if key not in public.splits["validation"].fates)
    (public.images / f"{key}.jpg").chmod(0)
    with as_nobody():
        shard(public, out, *VALIDATION)
    assert fates(out, "validation")[key] == "denied"
    assert "Permission denied" in next(row["detail"] for row in ledger(out) if row["fate"] == "denied")


def test_no_image_may_be_read(public: Release) -> None:
    for path in public.images.iterdir():
        path.chmod(0)
    with (
        as_nobody(),
        pytest.raises(ValueError, match=r"\d+ of the first 64 labelled images .* may not be read, such as"),
    ):
        shard(public, public.metadata.parent / "out" / "set", *VALIDATION)


# --- Disk full, two at once -------------------------------------------------------------------------------------------


def limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_disk_full_in_mid_shard(release: Release, tmp_path: Path) -> None:
    clean = shard(release, tmp_path / "clean", *VALIDATION, "--resize", "none")
    index = open_index(clean / "validation.arrow")
    images = Path(shutil.copytree(release.images / "validation", tmp_path / "images"))
    noise = np.random.default_rng(0).integers(0, 256, (500, 500, 3), np.uint8)
    (images / f"{index.keys(index.rows_of_shard(2))[5]}.jpg").write_bytes(encoded(Image.fromarray(noise), quality=95))
    assert max(path.stat().st_size for path in clean.iterdir()) < 250_000

    out, said = tmp_path / "out", tmp_path / "said"
    argv = flags(release, out, *VALIDATION, "--resize", "none", images=images)
    assert finish(start(argv, said, limit_files, 250_000)) == 2
    *_, last = said.read_text().splitlines()
    assert "000002.tar: cannot be written: File too large; finished shards stay: make room, then run the same" in last
    assert "Traceback" not in said.read_text()
    finished = {path.name for path in out.rglob("*.arrow")}
    assert finished == {"000000.arrow", "000001.arrow"}
    assert not list(out.rglob("*.unfinished"))

    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("00000[01].tar")}
    assert finish(start(argv, said)) == 0
    assert [path.stat().st_mtime_ns for path in sorted(out.glob("*.tar"))[:2]] == [stamps[p] for p in sorted(stamps)]
    assert hashes(out) == hashes(shard(release, tmp_path / "again", *VALIDATION, "--resize", "none", images=images))


@pytest.mark.parametrize("size", [400, 600, 3000])
def test_a_disk_too_small_to_begin_is_one_line(size: int, release: Release, tmp_path: Path) -> None:
    """For the record, for what the record adds when a split begins, for the first shard."""
    argv, said = flags(release, tmp_path / "out", *VALIDATION, "--limit", 2), tmp_path / "said"
    assert finish(start(argv, tmp_path / "none", limit_files, size)) == 2
    assert not list((tmp_path / "out").rglob("*.tar"))
    assert finish(start(argv, said)) == 0


@pytest.mark.parametrize("name", ["finish.write_parquet_parts", "finish.write_index", "record.write_json"])
def test_a_disk_full_at_the_end_is_one_line(
    name: str, release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    out, asked = tmp_path / "out", (*VALIDATION, "--limit", 2)
    with monkeypatch.context() as patch:
        patch.setattr(f"raypaml.preparation.{name}", full)
        with pytest.raises(
            ValueError, match=r"out=\S+: cannot be written: No space left on device; finished shards stay"
        ):
            shard(release, out, *asked)
    assert hashes(shard(release, out, *asked)) == hashes(shard(release, tmp_path / "clean", *asked))


def test_two_at_once_are_refused_and_the_first_goes_on(release: Release, prepared: Path, tmp_path: Path) -> None:
    out, said = tmp_path / "out", tmp_path / "said"
    first = start(flags(release, out), said)
    while not list(out.rglob("000000.arrow")):
        assert first.is_alive(), said.read_text()
        time.sleep(0.002)
    os.kill(first.pid or 0, signal.SIGSTOP)
    try:
        with pytest.raises(ValueError, match=r"out=\S+: another process is preparing into it; wait for it or end it"):
            shard(release, out)
    finally:
        os.kill(first.pid or 0, signal.SIGCONT)
    assert finish(first) == 0
    assert hashes(out) == hashes(prepared)


def test_a_lock_of_a_dead_process_does_not_matter(release: Release, tmp_path: Path) -> None:
    (tmp_path / "out" / ".preparation").mkdir(parents=True)
    with (tmp_path / "out" / ".preparation" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
    shard(release, tmp_path / "out", *VALIDATION)

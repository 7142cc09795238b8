"""The images behind a real S3 protocol, moto's on loopback, with 503s: every image accounted for, the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from raypaml.data import storage
from raypaml.preparation import image_store
from tests.openimages_release import Release
from tests.shard_tool import ROOT, fates, hashes, shard
from tests.test_sharding_sources import files, write_archive

VALIDATION = ("--split", "validation", "--shard-samples", 40, "--concurrency", 16)


class Store:
    """A running store."""

    def __init__(self, port: int):
        self.port = port

    def address(self, place: str, user: str = "anonymous@") -> str:
        options = f"endpoint_override=127.0.0.1:{self.port}&scheme=http&region=us-east-1"
        return f"s3://{user}{place}?{options}"

    def ask(self, path: str) -> dict[str, int]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{path}", timeout=10) as answer:
            found: dict[str, int] = json.load(answer)
        return found


@contextmanager
def running(folder: Path, share: float) -> Iterator[Store]:
    command = [sys.executable, "-m", "tests.s3_store", str(folder), str(share)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        try:
            yield Store(int(process.stdout.readline()))
        finally:
            process.kill()


@pytest.fixture(scope="module")
def folder(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Validation as single files, and as an archive in `archives`."""
    folder = tmp_path_factory.mktemp("bucket")
    (folder / "validation").mkdir()
    for path in files(release.images / "validation"):
        (folder / "validation" / path.name).hardlink_to(path)
    write_archive(folder / "archives" / "validation.tar.gz", files(release.images / "validation"), stray=True)
    return folder


@pytest.fixture(scope="module")
def store(folder: Path) -> Iterator[Store]:
    """One request in seven fails."""
    with running(folder, 0.15) as store:
        yield store


@pytest.fixture
def clean(release: Release, folder: Path, tmp_path: Path) -> dict[str, str]:
    return hashes(shard(release, tmp_path / "clean", *VALIDATION, images=folder))


@pytest.mark.parametrize("place", ["images", "images/validation"])
def test_a_store_that_fails_now_and_then_gives_the_same_bytes(
    place: str, store: Store, release: Release, clean: dict[str, str], tmp_path: Path
) -> None:
    before = store.ask("_counts").get("503", 0)
    out = shard(release, tmp_path / "out", *VALIDATION, images=store.address(place))
    assert hashes(out) == clean
    planted = release.splits["validation"]
    every = [*planted.labels, *planted.outside, *planted.unlabelled]
    assert fates(out, "validation") == {key: planted.fate(key) for key in every}
    assert store.ask("_counts")["503"] - before > 10


def test_archives_in_a_store(store: Store, release: Release, folder: Path, tmp_path: Path) -> None:
    out = shard(release, tmp_path / "out", *VALIDATION, images=store.address("images/archives"))
    assert hashes(out) == hashes(shard(release, tmp_path / "clean", *VALIDATION, images=folder / "archives"))


@pytest.mark.parametrize("place", ["private", "private/validation"])
def test_a_bucket_that_refuses_is_one_clear_message(place: str, store: Store, release: Release, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"s3://anonymous@{place}\S*: cannot be reached: .*ACCESS_DENIED"):
        shard(release, tmp_path / "out", *VALIDATION, images=store.address(place))
    assert not list(tmp_path.rglob("*.tar"))


def test_a_bucket_that_is_not_there(store: Store, release: Release, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"images=s3://anonymous@nothing\S*: no such folder; give the folder of the im"
    ):
        shard(release, tmp_path / "out", *VALIDATION, images=store.address("nothing"))


def test_nobody_listens(release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "with_retries", partial(storage.with_retries, patience=0.3))
    with pytest.raises(ValueError, match=r"s3://\S+: cannot be reached: .*given up after \d+ attempts"):
        shard(release, tmp_path / "out", *VALIDATION, images=Store(9).address("images"))


def test_a_store_that_stays_down_ends_the_work_and_not_what_is_finished(
    folder: Path, release: Release, clean: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_store, "_PATIENCE", 0.3)
    out = tmp_path / "out"
    with running(folder, 0.0) as store:
        images = store.address("images")
        store.ask("_down/420")  # the look at the folder, the probe, and about two shards
        with pytest.raises(
            ValueError, match=r"\.jpg\S*: given up after \d+ attempts: .*; finished shards stay, run the"
        ):
            shard(release, out, *VALIDATION, images=images)
        finished = {path.name: path.stat().st_mtime_ns for path in out.rglob("*.tar")}
        assert 1 <= len(finished) <= 3
        store.ask(f"_down/{10**9}")
        shard(release, out, *VALIDATION, images=images)
    assert hashes(out) == clean
    now = {path.name.removeprefix("validation-"): path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert finished.items() <= now.items(), "not written again"

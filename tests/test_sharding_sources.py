"""Images from flat folders and from archives: the same images and labels, and faults of archives named."""

from __future__ import annotations

import gzip
import io
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from raypaml.data.index import open_index
from tests.openimages_release import Release
from tests.shard_tool import contents, fates, flags, hashes, labels_of, run_tool, shard

VALIDATION = ("--split", "validation", "--shard-samples", 40)


def files(folder: Path, seed: int = 0) -> list[Path]:
    """In no particular order."""
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    return [paths[k] for k in np.random.default_rng(seed).permutation(len(paths))]


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def write_archive(path: Path, images: list[Path], *, stray: bool = False) -> Path:
    """As CVDF's: `train_0/KEY.jpg`; with what may lie in between."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        folder = tarfile.TarInfo(path.name.partition(".")[0])
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for number, image in enumerate(images):
            add(tar, f"{folder.name}/{image.name}", image.read_bytes())
            if stray and number % 10 == 0:
                add(tar, f"{folder.name}/README-{number}.txt", b"not an image")
                add(tar, f"{folder.name}/{image.name}", b"a second image of the same key")
                add(tar, "../../etc/passwd", b"nobody is extracted")
                add(tar, f"{folder.name}/{number:016x}.jpg", image.read_bytes())  # of no image that is asked for
    return path


def sharded_archive(folder: Path, split: str, images: Path) -> Path:
    """`{split}_0.tar.gz` to `{split}_f.tar.gz`, by the first digit of the keys."""
    for digit in "0123456789abcdef":
        write_archive(folder / f"{split}_{digit}.tar.gz", [path for path in files(images) if path.name[0] == digit])
    return folder


@pytest.fixture(scope="module")
def archive(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with validation.tar.gz, with stray members; do not write into it."""
    folder = tmp_path_factory.mktemp("archive")
    write_archive(folder / "validation.tar.gz", files(release.images / "validation"), stray=True)
    return folder


@pytest.fixture(scope="module")
def from_archive(archive: Path, release: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shard(release, tmp_path_factory.mktemp("from-archive") / "out", *VALIDATION, images=archive)


def same_data(out: Path, other: Path, split: str) -> None:
    """The same images with the same labels and fates, in any order."""
    assert contents(out, split) == contents(other, split)
    assert labels_of(out, split) == labels_of(other, split)
    assert fates(out, split) == fates(other, split)


def test_a_flat_folder_is_the_same_to_the_byte(release: Release, prepared: Path, tmp_path: Path) -> None:
    out = shard(release, tmp_path / "out", "--split", "test", images=release.images / "test")
    for name in ("test-000000.tar", "test.arrow", "vocabulary.csv"):
        assert hashes(out)[name] == hashes(prepared)[name]


def test_archives_by_digit_hold_the_same_images(release: Release, prepared: Path, tmp_path: Path) -> None:
    archives = sharded_archive(tmp_path / "archives", "train", release.images / "train")
    out = shard(release, tmp_path / "out", "--split", "train", images=archives)
    same_data(out, prepared, "train")
    keys = open_index(out / "train.arrow").key_column.to_pylist()
    for shard_keys in (set(keys[start : start + 80]) for start in range(0, 1600, 80)):
        assert len({key[0] for key in shard_keys}) <= 3, "an archive is read once: its images stay together"
    first = [key for key in keys if key[0] == "7"]
    assert first != sorted(first)


def test_strays_and_second_images_change_nothing(release: Release, prepared: Path, from_archive: Path) -> None:
    same_data(from_archive, prepared, "validation")
    sizes = [path.stat().st_size for path in sorted(from_archive.glob("*.tar"))]
    assert len(sizes) == 4


def test_an_archive_read_again_is_the_same_to_the_byte(
    release: Release, archive: Path, from_archive: Path, tmp_path: Path
) -> None:
    assert hashes(shard(release, tmp_path / "out", *VALIDATION, images=archive)) == hashes(from_archive)


@pytest.mark.parametrize("damage", ["cut in half", "cut at the end", "flipped", "empty"])
def test_a_damaged_archive_is_named_and_what_is_finished_stays(
    damage: str, release: Release, archive: Path, from_archive: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "archives" / "validation.tar.gz"
    mine.parent.mkdir()
    good = (archive / "validation.tar.gz").read_bytes()
    middle = len(good) * 6 // 10
    bad = {
        "cut in half": good[:middle],
        "cut at the end": good[:-5],
        "flipped": good[:middle] + bytes(200) + good[middle + 200 :],
        "empty": b"",
    }
    mine.write_bytes(bad[damage])
    with pytest.raises(ValueError, match=r"validation\.tar\.gz: damaged or truncated archive \(.+\); download"):
        shard(release, tmp_path / "out", *VALIDATION, images=mine.parent)
    assert not list((tmp_path / "out").glob("*.tar")), "nothing has its final name before all is there"
    finished = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("00-*.arrow")}
    assert (damage == "empty") == (not finished)
    mine.write_bytes(good)
    with watched(tmp_path / "out") as written:
        shard(release, tmp_path / "out", *VALIDATION, images=mine.parent)
    assert not finished.keys() & set(written), "finished shards are not written again"
    assert hashes(tmp_path / "out") == hashes(from_archive)


class watched:  # noqa: N801
    """The receipts written meanwhile."""

    def __init__(self, out: Path):
        self.out = out

    def __enter__(self) -> list[str]:
        from raypaml.preparation import shard_tasks

        self._module, self._before, self.names = shard_tasks, shard_tasks.write_receipt, list[str]()

        def noted(job, name, *rest):  # type: ignore[no-untyped-def]
            self.names.append(f"{name}.arrow")
            self._before(job, name, *rest)

        shard_tasks.write_receipt = noted
        return self.names

    def __exit__(self, *_: object) -> None:
        self._module.write_receipt = self._before


def test_a_damaged_header_is_not_the_end_of_the_archive(release: Release, tmp_path: Path) -> None:
    """CPython's tarfile takes it for the end (cpython #120740): nine of ten images would be lost in silence."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        places = []
        for path in files(release.images / "validation"):
            places.append(tar.offset)
            add(tar, path.name, path.read_bytes())
    content = bytearray(plain.getvalue())
    content[places[100] + 150] ^= 255
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives" / "validation.tar.gz").write_bytes(gzip.compress(content, 1))
    with pytest.raises(ValueError, match=r"damaged or truncated archive \(no proper end at byte \d+\)"):
        shard(release, tmp_path / "out", *VALIDATION, images=tmp_path / "archives")


def test_a_missing_archive_is_images_not_found(release: Release, tmp_path: Path) -> None:
    archives = sharded_archive(tmp_path / "archives", "train", release.images / "train")
    (archives / "train_7.tar.gz").unlink()
    out = shard(release, tmp_path / "out", "--split", "train", images=archives)
    lost = {key for key, fate in fates(out, "train").items() if fate == "not_found" and key[0] == "7"}
    planted = release.splits["train"]
    assert lost == {key for key in planted.labels if key[0] == "7"}


def test_files_may_not_become_archives_in_mid_work(
    release: Release, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = interrupted(release, tmp_path / "out")
    with pytest.raises(ValueError, match=r"was begun with from=files \(now: archives\); give the same files"):
        shard(release, out, *VALIDATION, images=archive)


def interrupted(release: Release, out: Path) -> Path:
    """A preparation that stopped before its second shard."""
    from raypaml.preparation import shard_tasks

    whole = shard_tasks.write_shard

    def once(path: Path, samples: Iterator[object], **options: bool) -> object:
        if path.name == "000001.tar":
            raise KeyboardInterrupt
        return whole(path, samples, **options)  # type: ignore[arg-type]

    shard_tasks.write_shard = once  # type: ignore[assignment]
    try:
        with pytest.raises(KeyboardInterrupt):
            shard(release, out, *VALIDATION)
    finally:
        shard_tasks.write_shard = whole
    return out


def test_other_labels_in_mid_work_are_refused(release: Release, tmp_path: Path) -> None:
    out = interrupted(release, tmp_path / "out")
    metadata = Path(shutil.copytree(release.metadata, tmp_path / "metadata"))
    labels = metadata / "2017_11" / "validation" / "annotations-human.csv"
    key = next(key for key in release.splits["validation"].labels if key > "8")
    labels.write_text(labels.read_text() + f"{key},verification,/m/0130qm,1\n{key},verification,/m/0a9x_9,1\n")
    with pytest.raises(ValueError, match=r"validation was begun with labels=\w+ \(now: \w+\); give the same files, or"):
        run_tool([*flags(release, out, *VALIDATION), "--metadata", str(metadata)])
    assert hashes(shard(release, out, *VALIDATION)) == hashes(shard(release, tmp_path / "clean", *VALIDATION))

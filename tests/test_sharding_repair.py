"""`--verify` names every kind of damage; `--repair` writes the same bytes again, or says why it cannot."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from raypaml.data.index import Index, open_index
from tests.odd_images import RESIZED, encoded, picture
from tests.openimages_release import Release
from tests.shard_tool import flags, hashes, run_tool, shard
from tests.test_sharding_sources import VALIDATION, files, write_archive

SHARD = "train-000001.tar"


@pytest.fixture
def out(prepared: Path, tmp_path: Path) -> Path:
    """A good data set to damage."""
    return Path(shutil.copytree(prepared, tmp_path / "data"))


def place(index: Index) -> tuple[int, int]:
    """Offset and size of the sixth image of the damaged shard."""
    row = int(index.rows_of_shard(1)[5])
    return int(index.offset[row]), int(index.size[row])


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def cut(path: Path, offset: int, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(offset + 7)


def swap(path: Path, offset: int, size: int) -> None:
    other = path.with_name("train-000002.tar")
    path.rename(path.with_name("x"))
    other.rename(path)
    path.with_name("x").rename(other)


DAMAGE: dict[str, tuple[Callable[[Path, int, int], object], str]] = {
    "missing": (lambda path, *_: path.unlink(), r"train-000001\.tar: missing, the index says [\d,]+ bytes"),
    "empty": (lambda path, *_: path.write_bytes(b""), r"train-000001\.tar: 0 bytes, the index says"),
    "html": (lambda path, *_: path.write_text("<html>404</html>"), r"train-000001\.tar: 16 bytes, the index says"),
    "cut": (cut, r"image '\w+' at byte \d+: cut short, 7 of"),
    "longer": (lambda path, *_: overwrite(path, path.stat().st_size, b"x"), r"bytes, the index says"),
    "image": (lambda path, o, _: overwrite(path, o + 200, b"\0\1\2\3"), r"at byte \d+: does not match its CRC-32"),
    "header": (lambda path, o, _: overwrite(path, o - 512, b"another"), r"damaged or truncated at byte \d+"),
    "labels": (
        lambda path, o, size: overwrite(path, o + -(-size // 512) * 512 + 512, b'{"posi7ive"'),
        r"\.json at byte \d+: expected an object with the lists 'positive' and 'negative'",
    ),
    "swapped": (swap, r"the index has no such key in this shard"),
}


def test_whole_data_has_no_faults(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = hashes(prepared)
    assert run_tool(["--out", str(prepared), "--verify", "--workers", "1"]) == 0
    assert capsys.readouterr().err == "8 shards read, 0 with faults\n"
    assert hashes(prepared) == before


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_repaired(
    damage: str, out: Path, prepared: Path, release: Release, capsys: pytest.CaptureFixture[str]
) -> None:
    break_it, message = DAMAGE[damage]
    offset, size = place(open_index(out / "train.arrow"))
    break_it(out / SHARD, offset, size)
    assert run_tool(["--out", str(out), "--verify", "--workers", "1"]) == 1
    said = capsys.readouterr().err
    assert re.search(message, said)
    assert f"8 shards read, {2 if damage == 'swapped' else 1} with faults" in said
    assert run_tool([*flags(release, out), "--repair"]) == 0
    assert f"{out}: train shard 1 was written again" in capsys.readouterr().err
    assert hashes(out) == hashes(prepared)
    assert run_tool(["--out", str(out), "--verify", "--workers", "1"]) == 0


def test_it_is_not_repaired_from_other_images(
    out: Path, release: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = Path(shutil.copytree(release.images, tmp_path / "images"))
    index = open_index(out / "train.arrow")
    first, second, third = index.keys(index.rows_of_shard(1)[3:6])
    other = encoded(picture(np.random.default_rng(9), (RESIZED, RESIZED)))
    (images / "train" / f"{first}.jpg").write_bytes(other)
    (images / "train" / f"{second}.jpg").unlink()
    (images / "train" / f"{third}.jpg").write_bytes(b"<html>")
    overwrite(out / SHARD, int(index.offset[index.rows_of_shard(1)[0]]) + 99, b"\0\1\2")
    before = hashes(out)
    assert run_tool([*flags(release, out, images=images), "--repair"]) == 1
    said = capsys.readouterr().err
    assert f"{out / SHARD}: cannot be written again as it was: at {images} 2 of its images are missing" in said
    assert f"and 1 differ ['{first}']" in said
    assert str(sorted([second, third])) in said or str([second, third]) in said
    assert hashes(out) == before


def test_repair_from_an_archive(release: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = write_archive(
        tmp_path / "archives" / "validation.tar.gz", files(release.images / "validation"), stray=True
    )
    out = shard(release, tmp_path / "out", *VALIDATION, images=archive.parent)
    before = hashes(out)
    (out / "validation-000002.tar").unlink()
    argv = [*flags(release, out, images=archive.parent), "--split", "validation", "--repair"]
    assert run_tool(argv) == 0
    assert hashes(out) == before


@pytest.mark.parametrize("name", ["train.arrow", "validation.arrow", "vocabulary.csv"])
def test_a_damaged_index_or_vocabulary_is_not_judged_by(name: str, out: Path) -> None:
    overwrite(out / name, (out / name).stat().st_size // 2, b"7\n,7")
    with pytest.raises(ValueError, match=r"an index or vocabulary\.csv is not the one that data_card\.json knows"):
        run_tool(["--out", str(out), "--verify", "--workers", "1"])


def test_only_what_was_finished_can_be_verified(release: Release, tmp_path: Path) -> None:
    out = shard(release, tmp_path / "out", *VALIDATION)
    assert run_tool(["--out", str(out), "--verify", "--workers", "1", "--split", "validation"]) == 0
    with pytest.raises(ValueError, match=r"train, test not finished; run the preparation to its end first"):
        run_tool(["--out", str(out), "--verify", "--workers", "1"])


def test_repair_wants_images(out: Path) -> None:
    with pytest.raises(ValueError, match="--repair: give --images, to fetch the images of broken shards again"):
        run_tool(["--out", str(out), "--repair", "--workers", "1"])


def test_another_encoder_is_said(out: Path, release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    (out / SHARD).unlink()
    monkeypatch.setattr("raypaml.preparation.repair.codec_versions", lambda: "pillow 99")
    with pytest.raises(ValueError, match=r"written with pillow \S+, .*, this is pillow 99; install that version"):
        run_tool([*flags(release, out), "--repair"])


def test_the_unfinished_work_of_another_split_stays(out: Path, release: Release) -> None:
    record = json.loads((out / "preparation.json").read_text())
    del record["splits"]["validation"]["finished"]
    (out / "preparation.json").write_text(json.dumps(record))
    begun = out / ".preparation" / "validation" / "000000.tar"
    begun.parent.mkdir(parents=True)
    begun.touch()
    overwrite(out / SHARD, place(open_index(out / "train.arrow"))[0], b"\0\1\2\3")
    assert run_tool([*flags(release, out), "--split", "train", "--repair"]) == 0
    assert begun.is_file()
    assert not list((out / ".preparation").glob("repair*"))

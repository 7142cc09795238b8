"""Tars of others: labels through a small mapping, refusals by name, and verification."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_expander

from raypaml.data.data_folder import DataFolder, open_folder
from raypaml.data.hidden_files import PassedOver
from raypaml.data.label_forms import LabelForm
from raypaml.data.shards import index_dataset
from raypaml.data.tars import scan
from raypaml.labels import NEGATIVE, POSITIVE, UNOBSERVED
from tests.conftest import verify_split

TOOLS = Path(__file__).parent.parent / "tools"
Members = Sequence[tuple[str, bytes | None]]


def _jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 10, 10)).save(buffer, "JPEG")
    return buffer.getvalue()


JPEG = _jpeg()


def _tar(path: Path, members: Members) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type = tarfile.DIRTYPE
            else:
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content or b""))
    return path


def _indexed(folder: Path, members: Members, labels: str, class_ids: Sequence[str] = ()) -> DataFolder:
    shards = {split: [_tar(folder / f"{split}.tar", members)] for split in ("train", "validation", "test")}
    index_dataset(folder, shards, class_ids, class_ids, labels)
    return open_folder(folder)


def _labels(data: DataFolder) -> dict[str, list[int]]:
    index = data.splits["train"]
    rows = np.arange(len(index))
    return dict(zip(index.keys(rows), index.labels(rows).tolist(), strict=True))


def _tool(name: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOLS / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# --- Labels -------------------------------------------------------------------------------------------------------


def test_json_fields_of_any_name_and_depth(tmp_path: Path) -> None:
    sample = {"caption": "x", "notes": {"seen": ["cat", "dog"], "gone": "eel"}}
    other = {"caption": "y", "notes": {"seen": "eel", "gone": []}}
    members = [("a.json", json.dumps(sample).encode()), ("a.jpg", JPEG), ("a.txt", b"a caption"), ("b.jpeg", JPEG)]
    members += [("b.json", json.dumps(other).encode())]
    data = _indexed(tmp_path, members, "json:positive=notes.seen,negative=notes.gone")
    assert data.vocabulary.class_ids == ("cat", "dog", "eel")
    assert _labels(data) == {"a": [POSITIVE, POSITIVE, NEGATIVE], "b": [UNOBSERVED, UNOBSERVED, POSITIVE]}
    assert data.splits["train"].tar_form == {"label_form": "json:positive=notes.seen,negative=notes.gone"}
    assert verify_split(tmp_path, data.splits["train"]) == []


def test_a_class_that_is_listed_twice_counts_once(tmp_path: Path) -> None:
    label = b'{"positive": ["cat", "cat"], "negative": ["dog", "dog"], "truth": ["cat", "cat"]}'
    for form in ("json", "json:positive=positive,negative=negative,truth=truth"):
        (tmp_path / form[:5]).mkdir()
        data = _indexed(tmp_path / form[:5], [("a.jpg", JPEG), ("a.json", label)], form)
        index = data.splits["train"]
        assert [list(index.classes(name, 0)) for name in ("positives", "negatives", "truth")] == [[0], [1], [0]]
        assert data.vocabulary.train_positives.tolist() == [1, 0]


def test_own_labels_are_texts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.json: \['cat'\] is no class; expected ids as texts"):
        _indexed(tmp_path, [("a.jpg", JPEG), ("a.json", b'{"positive": [["cat"]], "negative": []}')], "json")


def test_truth_may_be_a_field_too(tmp_path: Path) -> None:
    members = [("a.jpg", JPEG), ("a.json", b'{"p": ["x"], "all": ["x", "y"]}')]
    data = _indexed(tmp_path, members, "json:positive=p,truth=all")
    assert data.splits["train"].truth(np.array([0])).tolist() == [[POSITIVE, POSITIVE]]


def test_cls_is_a_place_in_the_class_list(tmp_path: Path) -> None:
    members = [("a.jpg", JPEG), ("a.cls", b"2"), ("b.jpg", JPEG), ("b.cls", b"0 1\n")]
    data = _indexed(tmp_path, members, "cls", ("cat", "dog", "eel"))
    assert _labels(data) == {"a": [UNOBSERVED, UNOBSERVED, POSITIVE], "b": [POSITIVE, POSITIVE, UNOBSERVED]}
    assert verify_split(tmp_path, data.splits["train"]) == []


def test_cls_without_a_class_list_names_its_classes_itself(tmp_path: Path) -> None:
    data = _indexed(tmp_path, [("a.jpg", JPEG), ("a.cls", b"7"), ("b.jpg", JPEG), ("b.cls", b"12")], "cls")
    assert data.vocabulary.class_ids == ("12", "7")
    assert verify_split(tmp_path, data.splits["train"]) == []


def test_txt_is_a_class_a_line(tmp_path: Path) -> None:
    data = _indexed(tmp_path, [("a.jpg", JPEG), ("a.txt", b"brown bear\n\n cat \n")], "txt")
    assert data.vocabulary.class_ids == ("brown bear", "cat")


def test_directories_become_part_of_the_key(tmp_path: Path) -> None:
    members = [("./n01/a.jpg", JPEG), ("./n01/a.cls", b"0"), ("n02/x/a.jpg", JPEG), ("n02/x/a.cls", b"0")]
    assert list(_labels(_indexed(tmp_path, members, "cls"))) == ["n01__a", "n02__x__a"]


BAD_LABELS = {
    "json:positive=p": (b'{"q": 1}', r"t\.tar: a\.json at byte \d+: no field 'p'"),
    "json:positive=p.q": (b'{"p": [1]}', r"no field 'p\.q'"),
    "json:negative=n,positive=p": (b'{"p": [true], "n": []}', r"True is no class; expected ids or numbers"),
    "json:positive=n": (b"[1]", r"expected an object"),
    "json:positive=x": (b"{", r"not JSON"),
    "cls": (b"9", r"class '9' is not among the 2 of the class list"),
    "txt": (b"\xff", r"not text"),
}


@pytest.mark.parametrize("form", BAD_LABELS)
def test_labels_that_do_not_fit_are_refused_with_file_key_and_byte(tmp_path: Path, form: str) -> None:
    content, said = BAD_LABELS[form]
    suffix = form.partition(":")[0]
    shard = _tar(tmp_path / "t.tar", [("a.jpg", JPEG), (f"a.{suffix}", content)])
    with pytest.raises(ValueError, match=said):
        list(scan(shard, LabelForm(form, ("cat", "dog"))))


@pytest.mark.parametrize(
    "form", ["json:", "json:negative=a", "json:positive=", "json:positive=a,b=c", "npy", "", "cls:a"]
)
def test_unknown_forms_are_refused(form: str) -> None:
    with pytest.raises(ValueError, match=r"expected json, json:positive=FIELD\[,negative=FIELD\], cls or txt"):
        LabelForm(form)


# --- Tars as others make them -------------------------------------------------------------------------------------


def _image(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (10, 200, 10)).save(buffer, kind)
    return buffer.getvalue()


FOLDER = ("train/", None)
IMAGES = ("jpg", "png", "webp")
NAMES: dict[str, tuple[list[tuple[str, bytes | None]], list[str], dict[str, list[str]]]] = {
    "folders": (
        [FOLDER, ("train/a.jpg", JPEG), ("train/a.cls", b"0")],
        ["train__a"],
        {"folder": ["t.tar: train"]},
    ),
    "dot and slash": ([("./", None), ("./a.jpg", JPEG), ("./a.cls", b"0")], ["a"], {"folder": ["t.tar: ."]}),
    "hidden": (
        [
            *(("._a.jpg", b"x"), (".DS_Store", b"x"), ("a.jpg", JPEG), ("a.cls", b"0"), ("__MACOSX/._a.jpg", b"x")),
            *(("x/._b.jpg", b"x"), (".ipynb_checkpoints/a-checkpoint.cls", b"0"), ("@eaDir/a.jpg", b"x")),
            ("Thumbs.db", b"x"),
        ],
        ["a"],
        {
            "hidden": [
                *("t.tar: ._a.jpg", "t.tar: .DS_Store", "t.tar: __MACOSX/._a.jpg", "t.tar: x/._b.jpg"),
                *("t.tar: .ipynb_checkpoints/a-checkpoint.cls", "t.tar: @eaDir/a.jpg", "t.tar: Thumbs.db"),
            ]
        },
    ),
    "of webdataset": (
        [("__index__", b"{}"), ("__meta__/x.json", b"{}"), ("a.jpg", JPEG), ("a.cls", b"0")],
        ["a"],
        {"of WebDataset itself": ["t.tar: __index__", "t.tar: __meta__/x.json"]},
    ),
    "without an extension": (
        [("README", b"x"), ("a.jpg", JPEG), ("a.cls", b"0")],
        ["a"],
        {"without an extension": ["t.tar: README"]},
    ),
    "blanks, unicode, dots in folders": (
        [("v1.0/my \u732b.jpg", JPEG), ("v1.0/my \u732b.cls", b"0"), ("\u00fc.JPG", JPEG), ("\u00fc.CLS", b"1")],
        ["v1.0__my \u732b", "\u00fc"],
        {},
    ),
    "png and webp": (
        [("a.png", _image("PNG")), ("a.cls", b"0"), ("b.webp", _image("WEBP")), ("b.cls", b"1")],
        ["a", "b"],
        {},
    ),
    "a mask beside": ([("a.jpg", JPEG), ("a.png", _image("PNG")), ("a.cls", b"0")], ["a"], {}),
}


@pytest.mark.parametrize("case", NAMES)
def test_tars_as_others_make_them(case: str, tmp_path: Path) -> None:
    members, keys, passed = NAMES[case]
    passed_over = PassedOver(list)
    shard = _tar(tmp_path / "t.tar", members)
    assert [row["key"] for row, _ in scan(shard, LabelForm("cls"), passed_over)] == keys
    assert dict(passed_over) == passed
    data = _indexed(tmp_path, members, "cls")
    assert verify_split(tmp_path, data.splits["train"]) == []


@pytest.mark.parametrize("case", NAMES)
def test_webdataset_has_the_same_images(case: str, tmp_path: Path) -> None:
    members, keys, _ = NAMES[case]
    shard = _tar(tmp_path / "t.tar", members)
    with shard.open("rb") as file:
        theirs = list(group_by_keys(tar_file_expander([{"url": "", "stream": file}])))
    content = shard.read_bytes()
    places = [row for row, _ in scan(shard, LabelForm("cls"))]
    ours = {row["key"]: content[row["offset"] : row["offset"] + row["size"]] for row in places}
    images = {
        sample["__key__"].removeprefix("./").replace("/", "__"): next(filter(None, map(sample.get, IMAGES)), None)
        for sample in theirs
    }
    assert {key: images[key] for key in keys} == ours
    assert case == "hidden" or set(images) == set(keys), "WebDataset takes some hidden members for samples"


def test_extensions_are_said_by_flags(tmp_path: Path) -> None:
    members: Members = [("a.input.jpg", JPEG), ("a.mask.jpg", b"x"), ("a.output.json", b'{"p": ["cat"]}')]
    shards = {split: [_tar(tmp_path / f"{split}.tar", members)] for split in ("train", "validation", "test")}
    with pytest.raises(ValueError, match=r"found a\.input\.jpg, a\.mask\.jpg, a\.output\.json; .*--image-ext EXT"):
        index_dataset(tmp_path, shards, labels="json:positive=p")
    index_dataset(tmp_path, shards, labels="output.json:positive=p", image_suffix="input.jpg")
    data = open_folder(tmp_path)
    assert _labels(data) == {"a": [POSITIVE]}
    assert data.splits["train"].size.tolist() == [len(JPEG)]
    assert verify_split(tmp_path, data.splits["train"]) == []


@pytest.mark.parametrize("suffix", ["jpg", "input.jpg"])
def test_keys_with_dots_are_said_by_a_flag(suffix: str, tmp_path: Path) -> None:
    names = ("IMG.001", "IMG.002")
    members = [m for name in names for m in ((f"{name}.{suffix}", JPEG), (f"{name}.cls", b"0"))]
    shards = {split: [_tar(tmp_path / f"{split}.tar", members)] for split in ("train", "validation", "test")}
    with pytest.raises(ValueError, match=rf"found IMG\.001\.{suffix}, .*; .*--dotted-keys"):
        index_dataset(tmp_path, shards, labels="cls")
    said = "" if suffix == "jpg" else suffix
    index_dataset(tmp_path, shards, labels="cls", image_suffix=said, dotted_keys=True)
    data = open_folder(tmp_path)
    assert list(_labels(data)) == list(names)
    assert verify_split(tmp_path, data.splits["train"]) == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (gzip.compress(bytes(10240), mtime=0), "a gzip archive; shards are read by offset: decompress it first"),
        (bz2.compress(bytes(10240), 1), "a bzip2 archive; shards are read by offset: decompress it first"),
        (lzma.compress(bytes(10240)), "an xz archive; shards are read by offset: decompress it first"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a Git LFS pointer: run git lfs pull"),
        (b"<!DOCTYPE html>", "a web page; copy or write the shard again"),
        (b"", "0 bytes; copy or write the shard again"),
    ],
)
def test_what_came_instead_of_a_tar_is_called_what_it_is(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "t.tar").write_bytes(content)
    for form in (LabelForm("cls"), None):
        with pytest.raises(ValueError, match=rf"t\.tar: no tar but {reason}"):
            list(scan(tmp_path / "t.tar", form))


def test_a_damaged_tar_is_no_archive_of_another_kind(tmp_path: Path) -> None:
    shard = _tar(tmp_path / "t.tar", [("BZh9.jpg", JPEG), ("BZh9.cls", b"0")])
    shard.write_bytes(shard.read_bytes()[:700])
    with pytest.raises(ValueError, match=r"t\.tar: damaged or truncated at byte"):
        list(scan(shard, LabelForm("cls")))


def test_raypamls_own_form_stays_strict(tmp_path: Path) -> None:
    shard = _tar(tmp_path / "t.tar", [FOLDER, ("train/a.jpg", JPEG), ("train/a.json", b"{}")])
    with pytest.raises(ValueError, match=r"member 'train' is not a file .*--labels json:positive=positive,negative="):
        list(scan(shard))


# --- Refusals -----------------------------------------------------------------------------------------------------

OBJECTS = io.BytesIO()
np.save(OBJECTS, np.array([{}], object), allow_pickle=True)
NUMBERS = io.BytesIO()
np.save(NUMBERS, np.arange(3))


@pytest.mark.parametrize("name", ["a.pyd", "a.pickle", "a.pkl", "a.weights.pth", "a.pt", "a.PYD", "a.npy"])
def test_pickled_members_are_refused(tmp_path: Path, name: str) -> None:
    content = OBJECTS.getvalue() if name == "a.npy" else pickle.dumps(print)
    shard = _tar(tmp_path / "t.tar", [("a.jpg", JPEG), ("a.cls", b"0"), (name, content)])
    with pytest.raises(ValueError, match=rf"t\.tar: member '{name}' is pickled, which could run anything; remove it"):
        list(scan(shard, LabelForm("cls")))


def test_arrays_of_numbers_are_not(tmp_path: Path) -> None:
    shard = _tar(tmp_path / "t.tar", [("a.jpg", JPEG), ("a.cls", b"0"), ("a.npy", NUMBERS.getvalue())])
    assert [row["key"] for row, _ in scan(shard, LabelForm("cls"))] == ["a"]


@pytest.mark.parametrize("name", ["../a", "x/../a", "/etc/a", "a\nb", "a\x1b[31m", "a\udcff"])
def test_names_outside_the_grammar_are_refused(tmp_path: Path, name: str) -> None:
    shard = _tar(tmp_path / "t.tar", [(f"{name}.jpg", JPEG), (f"{name}.cls", b"0")])
    with pytest.raises(ValueError, match=r"t\.tar: member .* is not a file named by a key"):
        list(scan(shard, LabelForm("cls")))


UNPAIRED = {
    "no labels": [("a.jpg", JPEG), ("b.jpg", JPEG), ("b.cls", b"0")],
    "no image": [("a.cls", b"0")],
    "two images": [("a.jpg", JPEG), ("a.jpeg", JPEG), ("a.cls", b"0")],
    "apart": [("a.jpg", JPEG), ("b.jpg", JPEG), ("a.cls", b"0"), ("b.cls", b"0")],
}


@pytest.mark.parametrize("case", UNPAIRED)
def test_samples_that_are_not_whole_are_refused(tmp_path: Path, case: str) -> None:
    with pytest.raises(ValueError, match=r"t\.tar: found a\..*; expected one a\.jpg and one a\.cls"):
        list(scan(_tar(tmp_path / "t.tar", UNPAIRED[case]), LabelForm("cls")))


# --- The tools ----------------------------------------------------------------------------------------------------


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder as others write it: their own names, classes by number."""
    for number in range(3):
        samples = [(f"{number}{n}", n % 2) for n in range(4)]
        members = [m for key, label in samples for m in ((f"{key}.jpg", JPEG), (f"{key}.cls", str(label).encode()))]
        _tar(tmp_path / f"part{number}.tar", members)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    return tmp_path


def _index(folder: Path) -> subprocess.CompletedProcess[str]:
    globs = ("--train", "part[01].tar", "--validation", "part2.tar", "--test", "part2.tar")
    return _tool("index_shards.py", folder, "--labels", "cls", "--classes", folder / "classes.txt", *globs)


def test_a_foreign_folder_is_indexed_verified_and_damage_found(foreign: Path) -> None:
    done = _index(foreign)
    assert done.returncode == 0, done.stderr
    assert "train: 8 samples in 2 shards" in done.stdout
    assert open_folder(foreign).vocabulary.class_ids == ("cat", "dog")
    verified = _tool("verify_shards.py", foreign)
    assert (verified.returncode, verified.stdout) == (0, "")
    assert "4 shards, 16 samples: no fault" in verified.stderr
    assert "verifying: 4 of 4 shards, " in verified.stderr
    content = bytearray((foreign / "part1.tar").read_bytes())
    content[600] ^= 1
    (foreign / "part1.tar").write_bytes(content)
    broken = _tool("verify_shards.py", foreign, "--split", "train")
    assert broken.returncode == 1
    assert broken.stdout == f"{foreign}/part1.tar: image '10' at byte 512: does not match its CRC-32\n"
    assert "2 shards, 8 samples: 1 fault\n" in broken.stderr


def test_a_changed_label_is_found(foreign: Path) -> None:
    assert _index(foreign).returncode == 0
    content = (foreign / "part0.tar").read_bytes()
    start = content.index(b"01.cls") + 512
    (foreign / "part0.tar").write_bytes(content[:start] + b"0" + content[start + 1 :])
    (fault,) = _tool("verify_shards.py", foreign, "--split", "train").stdout.splitlines()
    where = f"{foreign}/part0.tar: 01.cls at byte {start}"
    assert fault == f"{where}: positives differ from the index in 2 classes, such as ['cat', 'dog']"


@pytest.mark.parametrize("address", ["pipe:cat shards.tar", "s3://bucket/shards"])
def test_addresses_are_refused_in_one_line(address: str) -> None:
    done = _tool("index_shards.py", address)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert address in done.stderr

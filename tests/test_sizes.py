"""Files whose sizes lie: what a header claims costs nothing, and one line says what is wrong."""

from __future__ import annotations

import csv
import gzip
import io
import json
import struct
import tarfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raypaml import bounded
from raypaml.bounded import open_npy, read_rows
from raypaml.config import TrainConfig
from raypaml.data.data_folder import open_folder
from raypaml.data.label_forms import LabelForm
from raypaml.data.storage import Location, read_file
from raypaml.data.tar_members import HEADER_BYTES
from raypaml.data.tars import scan
from raypaml.evaluation.foreign import open_others
from raypaml.inference.pictures import find_pictures
from raypaml.labels import Vocabulary
from raypaml.model.weights import read_weights
from raypaml.preparation.formats.table_file import load_table
from raypaml.preparation.hierarchy import read_hierarchy
from raypaml.preparation.image_store import archive_members
from raypaml.runs.pseudo_label_file import read_pseudo_labels
from raypaml.search.plain_yaml import read_yaml
from raypaml.search.spaces import read_spaces

MOST_MEMORY = 32 << 20
"""Bytes that a refusal may take, of which an archive's buffers are half; a claim of 2^60 was a MemoryError."""
LABELS = json.dumps({"positive": ["a"], "negative": []}).encode()
CLASSES = Vocabulary(
    class_ids=("a", "b"), names=("a", "b"), train_positives=np.ones(2, int), train_negatives=np.ones(2, int)
)
TAR_READERS: dict[str, Callable[[Path], object]] = {
    "shard": lambda path: list(scan(path)),
    "other": lambda path: list(scan(path, LabelForm("json:positive=positive,negative=negative"))),
    "pictures": lambda path: list(find_pictures([str(path)])),
    "archive": lambda path: [content() for _, content in archive_members(Location(str(packed(path))))],
}


@pytest.fixture(autouse=True, scope="module")
def _traced() -> Iterator[None]:
    """Memory is traced from the first test to the last.

    In Python 3.11, `tracemalloc.stop` ends the process if a thread, as Arrow's after a refusal, allocates meanwhile
    (gh-128679).
    """
    tracemalloc.start()
    yield
    time.sleep(0.5)  # so that none of them is at work any more
    tracemalloc.stop()


def refused(read: Callable[[], object], said: str) -> None:
    """Reading raises a ValueError of one line with this text, and takes little memory."""
    before, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    with pytest.raises(ValueError, match=said) as found:
        read()
    _, peak = tracemalloc.get_traced_memory()
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 600
    assert peak - before < MOST_MEMORY


def packed(path: Path) -> Path:
    """The tar compressed."""
    out = path.with_suffix(".tar.gz")
    out.write_bytes(gzip.compress(path.read_bytes(), 1))
    return out


# --- Tars -------------------------------------------------------------------------------------------------------------


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE, **fields: Any) -> bytes:
    """The 512 bytes before a member, which claim a size; of 2^33 and above, or below 0, in the form of GNU."""
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    octal = b"%011o\0" % size if 0 <= size < 1 << 33 else (size % (1 << 96)).to_bytes(12, "big")
    block[124:136] = octal if 0 <= size < 1 << 33 else bytes([0x80 if size > 0 else 0xFF]) + octal[1:]
    for place, value in fields.get("at", {}).items():
        block[place : place + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(name: str, content: bytes) -> bytes:
    return header(name, len(content)) + content + bytes(-len(content) % 512)


def pax(**records: str) -> bytes:
    """A pax header with these records."""
    content = b""
    for name, value in records.items():
        record = f" {name.replace('__', '.')}={value}\n".encode()
        length = len(record) + 1
        while len(str(length)) + len(record) != length:
            length += 1
        content += str(length).encode() + record
    return header("pax", len(content), tarfile.XHDTYPE) + content + bytes(-len(content) % 512)


SAMPLE = member("a.jpg", b"\xff\xd8") + member("a.json", LABELS)
END = bytes(1024)
BAD_TARS = {
    "a claim of 2^60": (SAMPLE + header("b.jpg", 1 << 60) + bytes(512) + END, "'b.jpg' claims 1,152,921,504,606,846"),
    "a claim of 1 GB": (SAMPLE + header("b.jpg", 1 << 30) + bytes(512) + END, "unexpected end of data"),
    "a negative size": (SAMPLE + header("b.jpg", -512) + END, "'b.jpg' claims -512 bytes"),
    "a pax size of 2^60": (SAMPLE + pax(size=str(1 << 60)) + header("b.jpg", 0) + END, "'b.jpg' claims 1,152,921,504"),
    "a negative pax size": (SAMPLE + pax(size="-1024") + header("b.jpg", 0) + END, "'b.jpg' claims -1,024 bytes"),
    "a pax header of 2^40": (SAMPLE + header("p", 1 << 40, tarfile.XHDTYPE) + END, "at most 16,384"),
    "a negative pax header": (SAMPLE + header("p", -1, tarfile.XHDTYPE) + END, "at most 16,384"),
    "a long name of 2^40": (SAMPLE + header("n", 1 << 40, tarfile.GNUTYPE_LONGNAME) + END, "at most 16,384"),
    "pax headers without end": (SAMPLE + 1100 * pax(comment="x") + member("b.jpg", b"x") + END, "RecursionError"),
    "a pax number of text": (SAMPLE + pax(GNU__sparse__map="x,y") + member("b.jpg", b"x") + END, "no readable header"),
    "a sparse member": (SAMPLE + header("b.jpg", 512, tarfile.GNUTYPE_SPARSE) + bytes(512) + END, "a sparse one"),
    "a sparse claim of 2^60": (
        SAMPLE + pax(GNU__sparse__map=f"0,{1 << 60}", GNU__sparse__size=str(1 << 60)) + member("b.jpg", b"x") + END,
        "'b.jpg' claims 1,152,921,504",
    ),
    "a sparse map of any length": (
        SAMPLE
        + pax(GNU__sparse__major="1", GNU__sparse__minor="0")
        + member("b.jpg", b"9999999\n" + 500_000 * b"1\n")
        + END,
        "a sparse one",
    ),
}


@pytest.mark.parametrize("reader", TAR_READERS)
@pytest.mark.parametrize("fault", BAD_TARS)
def test_the_headers_of_a_tar_are_not_believed(fault: str, reader: str, tmp_path: Path) -> None:
    content, said = BAD_TARS[fault]
    (tmp_path / "x.tar").write_bytes(content)
    refused(lambda: TAR_READERS[reader](tmp_path / "x.tar"), said)


def test_a_member_with_a_long_name_is_read(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for suffix, content in (("jpg", b"\xff\xd8"), ("json", LABELS)):
            info = tarfile.TarInfo(f"{'k' * 300}.{suffix}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    assert HEADER_BYTES > 2 * 4096
    assert [place["key"] for place, _ in TAR_READERS["shard"](tmp_path / "x.tar")] == ["k" * 300]  # type: ignore[attr-defined]


def test_zeros_after_the_end_of_a_tar_are_not_read_without_end(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(SAMPLE + END)
    with (tmp_path / "x.tar").open("ab") as file:
        file.truncate(1 << 40)  # 1 TB, of which the disk holds nothing
    refused(lambda: TAR_READERS["shard"](tmp_path / "x.tar"), "more than 16,777,216 bytes follow its end")
    with (tmp_path / "x.tar").open("ab") as file:
        file.truncate(len(SAMPLE) + (1 << 20))  # as tar fills its records
    assert len(TAR_READERS["shard"](tmp_path / "x.tar")) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"positive": ' + b"7" * 10_000 + b"}", "more than 4,300 digits"),
        (b'{"positive": ["a"], "positive": []}', "'positive' is there twice"),
        (b'{"positive": "a", "negative": []}', "expected an object with the lists"),
        (b'{"positive": [NaN], "negative": []}', "is no class"),
        (b"\xff\xfe{}", "no text in UTF-8"),
    ],
)
def test_labels_in_a_tar_are_what_they_must_be(labels: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(member("a.jpg", b"x") + member("a.json", labels) + END)
    refused(lambda: TAR_READERS["shard"](tmp_path / "x.tar"), said)


# --- Tables -----------------------------------------------------------------------------------------------------------


def test_a_table_of_a_terabyte_is_refused_at_once(tmp_path: Path) -> None:
    for name in ("x.csv", "x.json", "vocabulary.csv"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(1 << 40)
    refused(lambda: load_table(tmp_path / "x.json", ["image"]), r"x\.json: 1,099,511,627,776 bytes, at most 2,147,483")
    refused(lambda: Vocabulary.read(tmp_path / "vocabulary.csv"), "at most 268,435,456 are read")
    refused(lambda: load_table(tmp_path / "x.csv", ["image"]), r"x\.csv: 1,099,511,627,776 bytes, at most 2,147,483")


def test_a_compressed_table_is_bounded_by_what_comes_out_of_it(
    tmp_path: Path, tiny_digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raypaml.preparation.formats.table_file.TABLE_BYTES", 1 << 20)
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(b"image,labels\n" + b"0" * (24 << 20)))
    refused(lambda: load_table(tmp_path / "x.csv.gz", ["image"]), "more than 1,048,576 bytes")
    scores, data = tmp_path / "scores.csv.gz", open_folder(tiny_digits)
    scores.write_bytes(gzip.compress(b"key,class,score\n" + b"a,red_0,0\n" * 400_000))
    refused(lambda: read_pseudo_labels(scores, str(scores), data), "more than 200 times its size")
    rows = "".join(f"{row:06d}.jpg,cat\n" for row in range(9999))
    (tmp_path / "y.csv.gz").write_bytes(gzip.compress(f"image,labels\n{rows}".encode()))
    assert len(load_table(tmp_path / "y.csv.gz", ["image"])) == 9999


def test_a_quote_that_is_not_closed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.csv").write_text('image,labels\na.jpg,"cat\n' + "b.jpg,dog\n" * 10)
    refused(lambda: load_table(tmp_path / "x.csv", ["image"]), r"x\.csv: line 12: unexpected end of data; its quotes")
    assert csv.field_size_limit(1 << 17) == 1 << 24
    (tmp_path / "x.csv").write_text('image,labels\na.jpg,"cat\n' + "b.jpg,dog\n" * 14_000)
    with pytest.raises(ValueError, match=r"a cell of more than 131,072 characters; is a quote not closed\?"):
        load_table(tmp_path / "x.csv", ["image"])
    csv.field_size_limit(1 << 24)
    columns = "class_id,name,train_positives,train_negatives\n"
    (tmp_path / "v.csv").write_text(columns + 'a,"b,1,1\n' + "c,c,1,1\n" * 3)
    with pytest.raises(ValueError, match=r"v\.csv:5: "):
        Vocabulary.read(tmp_path / "v.csv")
    monkeypatch.setattr(bounded, "SMALL_BYTES", 100)
    (tmp_path / "v.csv").write_text("a" * 101)
    refused(lambda: list(read_rows(tmp_path / "v.csv", ["a"])), "101 bytes, at most 100 are read")


def test_a_row_with_more_cells_than_columns_is_named(tmp_path: Path) -> None:
    (tmp_path / "h.csv").write_text("child,parent\na,b\nc,d,e\n")
    refused(lambda: read_hierarchy(tmp_path / "h.csv"), r"h\.csv:3: 3 cells for 2 columns")


def test_a_parquet_file_does_not_have_the_rows_that_it_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "ROWS_PER_BYTE", 10)
    path = tmp_path / "x.parquet"
    columns = {"key": pa.nulls(300_000, pa.string()), "class": pa.nulls(300_000, pa.string())}
    pq.write_table(pa.table(columns | {"label": pa.nulls(300_000, pa.int64()), "score": columns["key"]}), path)
    refused(lambda: open_others(path, CLASSES, scores="logits"), "claims 300,000 rows in")
    refused(lambda: load_table(path, ["key"]), "claims 300,000 rows in")


# --- Arrays, weights, YAML --------------------------------------------------------------------------------------------


def npy(shape: str, kind: str = "<f4") -> bytes:
    """A .npy file of which the header has this shape, and 16 bytes follow."""
    text = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text) + 1) + text + b"\n" + bytes(16)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (npy(f"({1 << 60},)"), "4,611,686,018,427,387,904 bytes, and 16 are there"),
        (npy("(4294967296, 4294967296)"), "and 16 are there"),
        (npy("(-1, 4)"), "and 16 are there"),
        (npy("(4,)", "|O"), "nothing is read that runs code"),
        (npy("(4,)", "|V0"), "not numbers"),
        (npy("((" * 200 + "4" + "))" * 200), "not a readable npy file"),
        (b"PK\3\4" + bytes(100), "not a readable npy file"),
        (b"\x93NUMPY\x09\0", "not a readable npy file"),
        (b"", "not a readable npy file"),
    ],
)
def test_the_header_of_an_array_is_not_believed(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(content)
    refused(lambda: open_npy(tmp_path / "x.npy"), said)


def test_arrays_that_are_whole_are_mapped(tmp_path: Path) -> None:
    for array in (np.arange(6.0).reshape(2, 3), np.zeros((0, 3), np.int8), np.asfortranarray(np.eye(3, dtype="f2"))):
        np.save(tmp_path / "x.npy", array)
        assert np.array_equal(open_npy(tmp_path / "x.npy"), array)


SHARED = "a: &a [x, x]\nb: &b [*a, *a]\n"
BAD_YAML = {
    SHARED: "line 2: an alias",
    "a: !!python/object/apply:os.system [id]": "could not determine a constructor",
    "[" * 100: "nested more than 32 levels deep",
    "a: " + "7" * 10_000: "Exceeds the limit",
    "a: 1\na: 2": "line 1: 'a' is there twice",
    "a: [1": "line 1: expected",
    "a: \xff": "x.yaml",
}


@pytest.mark.parametrize("text", BAD_YAML)
def test_yaml_has_no_aliases_no_tags_and_no_depth(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(text.encode("latin-1"))
    refused(lambda: read_yaml(tmp_path / "x.yaml"), BAD_YAML[text])
    refused(lambda: read_spaces([tmp_path / "x.yaml"], TrainConfig()), BAD_YAML[text])


def stored(header: dict[str, Any], data: bytes = bytes(16), claim: int | None = None) -> bytes:
    """A safetensors file with this header."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if claim is None else claim) + text + data


TENSOR = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
BAD_WEIGHTS = {
    "a header of 2^60": stored({"a": TENSOR}, claim=1 << 60),
    "a header of 2^64": stored({"a": TENSOR}, claim=(1 << 64) - 1),
    "offsets beyond": stored({"a": TENSOR | {"shape": [1 << 40], "data_offsets": [0, 1 << 42]}}),
    "an overlap": stored({"a": TENSOR, "b": TENSOR}),
    "an order turned": stored({"a": TENSOR | {"data_offsets": [16, 0]}}),
    "another shape": stored({"a": TENSOR | {"shape": [5]}}),
    "a shape of 2^62": stored({"a": TENSOR | {"shape": [1 << 62, 4]}}),
    "bytes left": stored({"a": TENSOR}, bytes(32)),
}


@pytest.mark.parametrize("fault", BAD_WEIGHTS)
def test_the_header_of_weights_is_not_believed(fault: str, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(BAD_WEIGHTS[fault])
    refused(lambda: read_weights(tmp_path / "x.safetensors"), "not a readable weight file")


def test_a_compressed_state_dict_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"a": torch.zeros(1 << 20)}, path)
    assert set(read_weights(path)[0]) == {"a"}
    with ZipFile(path) as whole, ZipFile(tmp_path / "y.pth", "w", ZIP_DEFLATED) as packed:
        for member in whole.infolist():
            packed.writestr(member.filename, whole.read(member))
    refused(lambda: read_weights(tmp_path / "y.pth"), "is compressed")


def test_a_size_that_a_store_claims_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Claiming(pa.BufferReader):
        def size(self) -> int:
            return 1 << 60

    store = SimpleNamespace(open_input_file=lambda _: Claiming(b"x"))
    monkeypatch.setattr(Location, "open", lambda location: (store, location.address))
    refused(lambda: read_file(Location("s3://bucket/x")), "1,152,921,504,606,846,976 bytes, as its store says")

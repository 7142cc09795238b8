"""`tools/shard_openimages.py` run in this process, and what it leaves behind."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow.parquet as pq

from raypaml.data.index import Index, open_index
from tests.odd_images import RESIZED
from tests.openimages_release import TRAINABLE, Release
from tools import shard_openimages

ROOT = Path(__file__).parent.parent


def flags(release: Release, out: Path, *more: object, images: object = "") -> list[str]:
    """What a user types behind the command; one worker unless `more` says otherwise."""
    given = ["--metadata", release.metadata, "--images", images or release.images, "--out", out, "--resize", RESIZED]
    return [str(flag) for flag in (*given, "--workers", 1, "--shard-samples", 300, *more)]


def run_tool(argv: list[str]) -> int:
    """The tool's main; ValueError where the user would read one line."""
    with mock.patch.object(sys, "argv", ["shard_openimages.py", *argv]):
        return shard_openimages.main()


def shard(release: Release, out: Path, *more: object, images: object = "") -> Path:
    """Prepare into `out`, which is returned."""
    assert run_tool(flags(release, out, *more, images=images)) == 0
    return out


def hashes(out: Path) -> dict[str, str]:
    """SHA-256 of every file, hidden ones too."""
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def card(out: Path) -> Any:
    return json.loads((out / "data_card.json").read_text())


def ledger(out: Path) -> list[dict[str, Any]]:
    return list(pq.read_table(out / "ledger.parquet").to_pylist())


def fates(out: Path, split: str) -> dict[str, str]:
    """Image -> fate; every image once."""
    rows = [row for row in ledger(out) if row["split"] == split]
    found = {row["key"]: row["fate"] for row in rows}
    assert len(found) == len(rows)
    return found


def indexed(index: Index) -> dict[str, dict[str, bool]]:
    """Image -> class -> positive, from an index."""
    keys = index.key_column.to_pylist()
    return {
        key: {
            TRAINABLE[k]: name == "positives" for name in ("positives", "negatives") for k in index.classes(name, row)
        }
        for row, key in enumerate(keys)
    }


def labels_of(out: Path, split: str) -> dict[str, dict[str, bool]]:
    """Image -> class -> positive, from a data set's index."""
    return indexed(open_index(out / f"{split}.arrow"))


def contents(out: Path, split: str) -> dict[str, bytes]:
    """Image -> its JPEG, by the offsets of the index."""
    index = open_index(out / f"{split}.arrow")
    shards = [(out / name).read_bytes() for name in index.shards]
    places = zip(index.key_column.to_pylist(), index.shard, index.offset, index.size, strict=True)
    return {key: shards[shard][offset : offset + size] for key, shard, offset, size in places}

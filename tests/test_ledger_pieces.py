"""The ledger in pieces of any length is the same, and so is what was lost."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypaml.preparation import finish
from raypaml.preparation.findings import Findings
from raypaml.preparation.finish import LEDGER_SCHEMA
from raypaml.preparation.record import table_digest
from raypaml.preparation.requests import SplitLabels, as_requests


@pytest.fixture(params=[1, 2, 1000])
def piece(request, monkeypatch):
    monkeypatch.setattr(finish, "_PIECE", request.param)
    monkeypatch.setattr(finish, "_LOOKED_UP", request.param)
    finish._piece.cache_clear()
    yield request.param
    finish._piece.cache_clear()


def test_every_image_is_listed_once_with_its_fate(tmp_path, piece):
    """Of an archive that lacks images there are no receipts at all."""
    requested = pa.chunked_array([["a", "b"], [], ["c"]], pa.string())
    others = {"no_label": pa.array(["d", "e", "f"])}
    labels = SplitLabels(
        as_requests(pa.table({"key": requested})), {}, Findings(), others, {"not_an_image": ["x.txt", "y.txt"]}
    )
    job = finish.ShardJob(tmp_path, (), None, 0, 10, False)  # type: ignore[arg-type]
    finished = finish.collect_shards(job, tmp_path, "test", requested, labels)
    rows = pa.concat_tables(finished.ledger)
    assert rows.schema == LEDGER_SCHEMA
    assert [(row["key"], row["file"], row["fate"]) for row in rows.to_pylist()] == [
        *((key, None, "not_found") for key in "abc"),
        *((key, None, "no_label") for key in "def"),
        *((None, f"{name}.txt", "not_an_image") for name in "xy"),
    ]
    assert {(row["split"], row["shard"], row["detail"]) for row in rows.to_pylist()} == {("test", None, None)}


@settings(max_examples=50, deadline=None)
@given(st.sets(st.integers(0, 30)), st.sets(st.integers(0, 30)), st.integers(1, 8))
def test_what_was_asked_for_and_has_no_receipt_is_lost(requested, asked, piece):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finish, "_LOOKED_UP", piece)
        given_keys, seen = (pa.chunked_array([[f"{n:x}" for n in keys]], pa.string()) for keys in (requested, asked))
        lost = [key for part in finish._absent(given_keys, seen) for key in part.to_pylist()]
    assert lost == [f"{n:x}" for n in requested if n not in asked]


def test_the_digest_of_requests_is_that_of_their_stream():
    """So that a folder that an earlier version began goes on."""
    keys = pa.chunked_array([[f"{n:x}" for n in range(5000)], ["z"]])
    table = pa.table({"key": keys, "classes": pa.array([np.arange(n % 3) for n in range(5001)])})
    assert table_digest(table) == "b0b9396bcbb0c96b7df7e28850c299ebcf6f2a2967dd0d48fead526114d85886"


def test_a_process_that_starts_tasks_does_without_torch():
    """It takes 300 MB, in the process that holds the labels of all images."""
    code = "import sys, raypaml.cluster.worker_errors; sys.exit('torch' in sys.modules)"
    assert not subprocess.run([sys.executable, "-c", code], check=False).returncode

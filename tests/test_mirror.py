"""A run in an object store: moto's S3 on loopback, refusals and kills included; the bytes of a run on a disk."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from raypaml.data.data_folder import open_folder
from raypaml.data.storage import Location
from raypaml.runs import mirror
from raypaml.runs.checkpoint import State, valid_checkpoints
from raypaml.runs.events import Event, StepReport
from raypaml.runs.mirror import MARKER, Mirror, local_folder
from raypaml.runs.run_files import METRICS_FILE
from raypaml.runs.run_folder import claim, open_run, stored_config
from raypaml.runs.run_length import is_finished, lengths
from raypaml.runs.weights_of_run import with_weights_of_run
from raypaml.training.loop import train
from tests.conftest import run_distributed
from tests.reported import text_of
from tests.test_loop import config, undisturbed, weights  # noqa: F401

CPU = torch.device("cpu")
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "of-this-test", "AWS_SECRET_ACCESS_KEY": "of-this-test"}
"""Never in an address."""


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The address of an empty bucket."""
    monkeypatch = pytest.MonkeyPatch()
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/runs", method="PUT")).close()
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    yield f"s3://runs/all?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    monkeypatch.undo()
    server.stop()


@pytest.fixture
def store(bucket: str, tmp_path: Path, request: pytest.FixtureRequest) -> Mirror:
    found = Mirror.of(bucket, tmp_path / "here" / request.node.name.replace("[", "-").rstrip("]"))
    assert found
    return found


def there(store: Mirror) -> list[str]:
    return sorted(store.there([""]))


def checkpoint(folder: Path, name: str, content: str = "x") -> Path:
    path = folder / "checkpoints" / name
    path.mkdir(parents=True)
    (path / "model.safetensors").write_text(content)
    (path / MARKER).write_text(f"digest of {content}")
    return path


def test_a_folder_has_no_mirror(tmp_path: Path) -> None:
    assert Mirror.of(str(tmp_path), tmp_path / "a") is None
    assert local_folder(str(tmp_path), "a") == tmp_path / "a"


def test_checkpoints_come_and_go_and_another_of_the_same_name_replaces_it(store: Mirror, tmp_path: Path) -> None:
    first = checkpoint(store.local, "0001-000000")
    (store.local / "checkpoints" / ".unfinished-0002-000000").mkdir()
    store.push_checkpoints()
    shutil.rmtree(first)
    checkpoint(store.local, "0002-000000", "new")
    store.push_checkpoints()
    assert there(store) == ["checkpoints/0002-000000/COMMITTED", "checkpoints/0002-000000/model.safetensors"]
    other = Mirror(tmp_path / "other", store.store)
    checkpoint(other.local, "0002-000000", "old")
    checkpoint(other.local, "0003-000000", "not agreed upon")
    other.pull_checkpoints()
    assert [path.name for path in (other.local / "checkpoints").iterdir()] == ["0002-000000"]
    assert (other.local / "checkpoints" / "0002-000000" / "model.safetensors").read_text() == "new"


class Kill(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("number", range(8))
def test_a_kill_at_any_request_leaves_whole_checkpoints_only(
    number: int, store: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint(store.local, "0001-000000", "old")
    store.push_checkpoints()
    shutil.rmtree(store.local / "checkpoints")
    checkpoint(store.local, "0001-000000", "trained again")
    checkpoint(store.local, "0002-000000", "new")
    left = [number]

    def dying(call: Any, *args: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise Kill
        return call(*args)

    with monkeypatch.context() as patch:
        for name in ("write", "delete"):
            call = getattr(Mirror, name)
            patch.setattr(Mirror, name, lambda *args, _call=call: dying(_call, *args))
        try:
            store.push_checkpoints()
        except Kill:
            assert number < 4
        else:
            assert number >= 4
    other = Mirror(tmp_path / "other", store.store)
    other.pull_checkpoints()
    for path in (other.local / "checkpoints").glob("*"):
        digest = (path / MARKER).read_text().removeprefix("digest of ")
        content = (path / "model.safetensors").read_text()
        assert content == digest or (digest == "old" and content == "trained again")  # which digests refuse
    store.push_checkpoints()  # the next process goes on
    assert len(there(store)) == 4


def test_a_run_in_a_store_is_stopped_and_goes_on_elsewhere(
    bucket: str,
    tiny_digits: Path,
    tmp_path: Path,
    undisturbed: Path,  # noqa: F811
) -> None:
    settings = config(storage=bucket, name="r", checkpoint_steps=1)
    one, two = tmp_path / "node 1" / "r", tmp_path / "node 2" / "r"

    def stop(event: Event) -> bool:
        return isinstance(event, StepReport) and event.epoch == 1

    assert not train(settings, tiny_digits, one, CPU, stop)
    shutil.rmtree(one)  # the machine is gone
    assert train(settings, tiny_digits, two, CPU, lambda _: False)
    assert weights(two) == weights(undisturbed)
    assert any(path.startswith("predictions/test/part") for path in there(Mirror(two, Location(bucket) / "r")))


def test_records_that_a_kill_kept_from_the_store_are_there_when_the_run_goes_on(
    bucket: str, tiny_digits: Path, tmp_path: Path
) -> None:
    settings, store = config(storage=bucket, name="late", epochs=1), Location(bucket) / "late"
    assert train(settings, tiny_digits, tmp_path / "one" / "late", CPU, lambda _: False)
    other = Mirror(tmp_path / "two" / "late", store)
    whole = other.read(METRICS_FILE)
    assert whole
    other.write(METRICS_FILE, b"")  # killed between the checkpoint and the records
    assert train(settings, tiny_digits, other.local, CPU, lambda _: False)
    assert other.read(METRICS_FILE) == whole


def test_a_finished_run_in_a_store_goes_on_from_another_machine_and_gives_its_weights_to_a_third(
    bucket: str, tiny_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, data = config(storage=bucket, name="longer"), open_folder(tiny_digits)
    longer = settings.override({"epochs": settings.optim.epochs + 1})

    def machine(name: str) -> Path:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        return open_run(bucket, "longer")

    first = machine("one")
    claim(first, settings, data)
    digest = hashlib.sha256(b"x").hexdigest()
    whole = checkpoint(first, "0002-000000")
    (whole / MARKER).write_text(json.dumps({"model.safetensors": digest}))
    (whole / "state.json").write_text(json.dumps(asdict(State())))
    for name in ("result.json", "report.html"):
        (first / name).write_text("{}")
    kept = Mirror.of(bucket, first)
    assert kept
    kept.push("result.json", "report.html")
    kept.push_checkpoints()
    assert is_finished(machine("two"), settings)
    claim(machine("two"), longer, data)
    files = {name for name in there(kept) if "/" not in name}
    assert files == {"config.json", "vocabulary.csv", "report-1.html", "result-1.json", "worker_time.json"}
    assert stored_config(machine("one")) == longer
    assert not is_finished(first, longer)  # though its own result.json was there
    assert [(one["epoch"], one["result"]) for one in lengths(first)] == [(0, "result-1.json"), (2, "")]
    address = str(Location(bucket) / "longer")
    ahead = checkpoint(machine("one"), "0003-000000")  # which the store has not got yet
    for place in ("one", "three"):
        machine(place)
        began = with_weights_of_run(settings.override({"from_run": address}), data, print).model
        assert (began.from_run, began.from_sha256) == (address, digest)
    assert ahead.is_dir()
    with pytest.raises(ValueError, match=r"from=s3://.*nothing.*: neither the folder"):
        with_weights_of_run(settings.override({"from_run": str(Location(bucket) / "nothing")}), data, print)


def test_two_nodes_without_a_common_disk(
    bucket: str,
    tiny_digits: Path,
    tmp_path: Path,
    undisturbed: Path,  # noqa: F811
) -> None:
    assert run_distributed(_on_its_own_disk, 2, bucket, tiny_digits, tmp_path, True) == [False, False]
    shutil.rmtree(tmp_path / "0")
    assert run_distributed(_on_its_own_disk, 2, bucket, tiny_digits, tmp_path, False) == [True, True]
    assert weights(tmp_path / "0" / "two") == weights(undisturbed)


def _on_its_own_disk(rank: int, _: int, bucket: str, data: Path, folder: Path, stop: bool) -> bool:
    torch.set_num_threads(1)
    os.environ.update(CREDENTIALS)  # what the test sets does not reach ranks
    settings = config(storage=bucket, name="two", checkpoint_steps=1)
    return train(
        settings,
        data,
        folder / str(rank) / "two",
        CPU,
        lambda event: stop and isinstance(event, StepReport) and event.epoch == 1,
    )


def test_a_store_out_of_order_does_not_stop_the_run_and_gets_all_later(
    bucket: str, tiny_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    write, refused = Mirror.write, [3]

    def refusing(self: Mirror, path: str, content: bytes) -> None:
        if "checkpoints" in path and refused[0]:
            refused[0] -= 1
            raise OSError("SlowDown: HTTP status 503")
        write(self, path, content)

    monkeypatch.setattr(Mirror, "write", refusing)
    settings = config(storage=bucket, name="s", checkpoint_steps=1)
    report = lambda event: said.append(text_of(event))  # noqa: E731
    assert train(settings, tiny_digits, tmp_path / "s", CPU, report)  # type: ignore[arg-type]
    assert sum("not in the store yet, training goes on: SlowDown" in line for line in said) == 3
    newest = valid_checkpoints(tmp_path / "s" / "checkpoints")[0][-1]
    assert f"checkpoints/{newest.name}/{MARKER}" in there(Mirror(tmp_path / "s", Location(bucket) / "s"))


def test_a_store_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "_PATIENCE", 0.2)
    with pytest.raises(ValueError, match=r"storage=s3://runs.*config.json.*: given up after \d+ attempts"):
        open_run("s3://runs?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1", "r")

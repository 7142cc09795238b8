"""Shared by all tests: a tiny digits data set, and functions run on real gloo processes."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from raypaml.cli import check_flag_fields
from raypaml.config import TrainConfig
from raypaml.data.digits import digits_folder
from raypaml.data.index import Index
from raypaml.data.verify_shard import verify_shard
from raypaml.runs.checkpoint import valid_checkpoints
from raypaml.runs.events import Report
from raypaml.training.callbacks import Callback
from raypaml.training.job import Job
from tests.late_group import late_group
from tests.openimages_release import Release, make_release
from tests.processes import CONTEXT

for _, _group in TrainConfig().groups():
    check_flag_fields(type(_group))  # a field that cannot be a flag stops the suite here, with its name

MEASURED = {"seconds", "epoch_seconds", "images_per_second", "data_wait_share", "collective_share"}
MEASURED |= {"peak_memory_bytes", "model_flop_utilisation", "workers"}
MEASURED |= {"trained_worker_seconds", "held_worker_seconds", "lost_worker_seconds"}
"""What an epoch's record says of the machine, and no second run repeats."""
TINY = {"train": 96, "validation": 40, "test": 40}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the tests of real Ray first, for they take longest. (pytest-xdist 3.8 forms no groups under pytest 9.2.)"""
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the tests' data sets out of the user's cache, also in the processes that tests start."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny_digits(_private_cache: None) -> Path:
    """A small single-positive data set; do not write into it."""
    return digits_folder(num_scenes=TINY)


def run_distributed(function: Callable[..., Any], world_size: int, *args: Any, late: bool = False) -> list[Any]:
    """Run `function(rank, world_size, *args)` on real gloo processes; returns their results by rank.

    `function` must be a module-level function, and what it returns must be picklable. With `late`, collectives return
    before they are done, see `late_group`.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = CONTEXT.SimpleQueue()
    spawned = [
        CONTEXT.Process(target=_rank, args=(function, rank, world_size, port, late, results, args), daemon=True)
        for rank in range(world_size)
    ]
    for process in spawned:
        process.start()
    try:
        found = dict(_expect(results, spawned) for _ in spawned)
    finally:
        for process in spawned:
            process.join(30)
            if process.is_alive():
                process.kill()
    return [found[rank] for rank in range(world_size)]


def _expect(results: Any, spawned: list[Any]) -> tuple[int, Any]:
    rank, value, error = results.get()
    if error:
        for process in spawned:
            process.kill()
        raise AssertionError(f"rank {rank} failed:\n{error}")
    return rank, value


def _rank(
    function: Callable[..., Any], rank: int, world_size: int, port: int, late: bool, results: Any, args: Any
) -> None:
    torch.set_num_threads(1)
    group = late_group if late else _gloo_group
    try:
        with group(f"tcp://127.0.0.1:{port}", rank, world_size):
            found = function(rank, world_size, *args)
        results.put((rank, found, None))
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
        raise


@contextmanager
def _gloo_group(address: str, rank: int, world_size: int) -> Iterator[None]:
    dist.init_process_group("gloo", address, rank=rank, world_size=world_size)
    yield
    dist.destroy_process_group()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in the processes of run_distributed: the number of threads may move a float's last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def evaluated_digits(_private_cache: None) -> Path:
    """As `tiny_digits`, with a test split of two prediction parts; do not write into it."""
    return digits_folder(num_scenes=TINY | {"test": 600})


@pytest.fixture(scope="session")
def trained(evaluated_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run trained for two epochs by training.loop, without Ray, and the table that its command prints."""
    from raypaml.evaluation.summary import table
    from raypaml.recipes import recipe
    from raypaml.run_report.conclude import conclude_run

    values = {"epochs": 2, "warmup_epochs": 1, "delta_rel": 2.0, "name": "run", "workers": 1}
    values |= {"data": str(evaluated_digits), "storage": str(tmp_path_factory.mktemp("trained"))}
    job = train_here(recipe("digits").override(values))
    return job.folder, table(conclude_run(job))


def train_here(config: TrainConfig, *callbacks: Callback, report: Report = lambda _: False) -> Job:
    """A whole run by training.loop in this process, on one thread, without Ray; not yet concluded.

    `report` may stop it before.
    """
    from raypaml.runs.run_folder import claim
    from raypaml.training.job import prepare_job
    from raypaml.training.loop import train

    job = prepare_job(config, lambda _: None)
    claim(job.folder, job.config, job.data)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    train(job.config, job.data.address, job.folder, torch.device("cpu"), report, callbacks=callbacks)
    torch.set_num_threads(before)
    return job


def newest_files(run: Path) -> dict[str, bytes]:
    """The tensors of a run's newest checkpoint, by their file."""
    newest = valid_checkpoints(run / "checkpoints")[0][-1]
    return {path.name: path.read_bytes() for path in newest.glob("*.safetensors")}


def verify_split(folder: Path, index: Index) -> list[str]:
    """The faults of all shards, one after the other."""
    return [fault for shard in range(len(index.shards)) for fault in verify_shard(folder, index, shard)]


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A small Open Images release with every oddity planted; do not write into it."""
    return make_release(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="session")
def prepared(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That release, sharded at 64 x 64 px; do not write into it."""
    from tests.shard_tool import shard

    return shard(release, tmp_path_factory.mktemp("prepared") / "data")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of faults, where any was put to the test, and the counts of the fuzzer."""
    from tests.fault_table import FILE, ROWS, table

    for report in (one for of in terminalreporter.stats.values() for one in of if getattr(one, "when", "") == "call"):
        if counts := dict(report.user_properties).get("fuzz"):
            terminalreporter.write_line(f"\n{counts}")
    if ROWS and FILE not in os.environ:
        terminalreporter.write_line(f"\n{table(ROWS)}")

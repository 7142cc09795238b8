"""Runs that are disturbed until they are finished: on a private Ray, with a store, or on a cluster of two nodes."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from raypaml.data.storage import Location
from raypaml.runs.mirror import Mirror
from tests.chaos import DAMAGE, Fault, damage
from tests.ray_chaos.commands import Command, asked
from tests.ray_chaos.worker import FOLDER, OF_WORKERS, write_faults
from tests.test_sharding_s3 import running as running_store
from tests.two_nodes import TwoNodes, drain, two_nodes, worker_node

OF_COMMANDS = ("command killed", "command killed twice", "asked to stop", "stopped at once")
KINDS = {
    "private": (*OF_WORKERS, *OF_COMMANDS, *DAMAGE, "head killed", "raylet killed"),
    "store": (*OF_WORKERS[:-1], *OF_COMMANDS, "store refuses"),
    "nodes": (*OF_WORKERS[:-1], *OF_COMMANDS, "node killed", "node announced", "head killed"),
}
"""By the place of the run, what it may meet."""
LIMIT = 560.0
"""Seconds for a whole run."""
AGENTS_SECONDS = 120.0
"""Seconds within which all is gone: Ray's agents tell their head first, and wait a minute for it where it is gone."""
OUTAGE = 4.0
"""Seconds for which the store refuses everything."""
SHORT_LIVED = {"RAY_gcs_rpc_server_reconnect_timeout_s": "10", "RAY_health_check_period_ms": "1000"}
"""Makes Ray's processes end sooner after their head, and a lost node be noticed sooner."""

Act = Callable[[Command, Fault], None]


@dataclass(frozen=True)
class Met:
    """A fault that came, and what became of it."""

    fault: Fault
    seconds: float
    """Until the next first step of workers; NaN where none had to start."""


@dataclass
class Place:
    """Where a run is, and what can be done to it there."""

    flags: list[str]
    storage: str
    run: Path
    """The run's folder; of a run in a store, a copy that is filled at the end."""
    acts: dict[str, Act]
    finish: Callable[[], None] = field(default=lambda: None)
    stays: bool = False


def survive(place: Place, folder: Path, data: Path, faults: list[Fault]) -> list[Met]:
    """Begin the run of a place in a folder, disturb it, give the command again after each end; what became of it."""
    write_faults(folder, faults)
    command = Command(asked(data, place.storage, *place.flags), folder, stays=place.stays)
    try:
        _disturb(command, place, folder, faults)
    finally:
        if command.process.poll() is None:
            command.process.kill()
            command.process.wait()
    left = [str(path) for folder in command.temporary.glob("raypaml-*") for path in (folder, *folder.rglob("*"))]
    assert not left, f"a folder of Ray stays behind: {left}"
    command.check_processes(AGENTS_SECONDS, agents=True)
    place.finish()
    return [Met(fault, _seconds_until_a_life(folder, index)) for index, fault in enumerate(faults)]


def _disturb(command: Command, place: Place, folder: Path, faults: list[Fault]) -> None:
    waiting, deadline = dict(enumerate(faults)), time.monotonic() + LIMIT
    fault = faults[0]
    while True:
        assert time.monotonic() < deadline, (fault, command.ends, command.said.read_text())
        for index in [index for index in waiting if (folder / f"met-{index}").exists()]:
            fault, command.taken = waiting.pop(index), folder / f"taken-{index}"
            place.acts.get(fault.kind, _nothing)(command, fault)
        if end := command.ended():
            if end.code == 0:
                break
            assert (fault.kind, end.code) == ("disk full", 2), (fault, end)
            assert "No space left on device" in end.said, end
            command.begin()
        time.sleep(0.02)
    assert not waiting, f"not met: {waiting}"


def _nothing(command: Command, fault: Fault) -> None:
    """The worker does it all."""


def _seconds_until_a_life(folder: Path, index: int) -> float:
    came = float((folder / f"met-{index}").read_text())
    return min((life - came for life in _lives(folder) if life > came), default=float("nan"))


def _lives(folder: Path) -> set[float]:
    """When the groups of workers made their first steps."""
    return {int(path.name.split("-")[1]) / 1000 for path in folder.glob("ledger-*")}


# --- What is done to the command --------------------------------------------------------------------------------------


def _killed(command: Command, _fault: Fault) -> None:
    assert command.end_and_begin(signal.SIGKILL).code == -signal.SIGKILL


def _killed_twice(command: Command, fault: Fault) -> None:
    """The second time while it, or Ray, or its workers start."""
    _killed(command, fault)
    time.sleep(1 + 3 * fault.victim)
    _killed(command, fault)


def _asked_to_stop(command: Command, _fault: Fault) -> None:
    if _trains(command):
        end = command.end_and_begin(signal.SIGTERM)
        assert end.code == 128 + signal.SIGTERM, end
        assert "stopped; continue with: " in end.said, end


def _stopped_at_once(command: Command, _fault: Fault) -> None:
    """Or in its own time; the second signal may meet Python while it ends, which a shell shows as 130 too."""
    if _trains(command):
        end = command.end_and_begin(signal.SIGINT, twice=True)
        assert end.code in (128 + signal.SIGINT, -signal.SIGINT), end
        assert "continue with: " in end.said, end


def _trains(command: Command) -> bool:
    """Wait until the command trains; false where nothing is left for it to train.

    Workers of the command before meet faults until Ray has ended them, when this one may just have begun.
    """
    deadline = time.monotonic() + 120
    while not any(life > command.began for life in _lives(command.folder)):
        if command.process.poll() is not None:
            return False
        assert time.monotonic() < deadline, command.said.read_text()
        time.sleep(0.05)
    return True


def _damaged(run: Path) -> Act:
    def act(command: Command, fault: Fault) -> None:
        command.sent(signal.SIGKILL)
        command.wait_for_workers()
        damage(run, fault)
        command.begin()

    return act


def _process_killed(name: str) -> Act:
    def act(command: Command, _fault: Fault) -> None:
        command.kill(name)
        _ends_in_a_line(command)
        command.begin()

    return act


def _ends_in_a_line(command: Command) -> None:
    end = command.ended(120)
    assert end, "does not end"
    assert end.code == 2, end
    assert "Ray" in end.said, end


OF_THE_COMMAND: dict[str, Act] = {
    "command killed": _killed,
    "command killed twice": _killed_twice,
    "asked to stop": _asked_to_stop,
    "stopped at once": _stopped_at_once,
}


# --- Places -----------------------------------------------------------------------------------------------------------


@contextmanager
def place_of(name: str, folder: Path, port: int) -> Iterator[Place]:
    """The place of that name, in a folder, up for the block; its ports are from `port` on."""
    with ExitStack() as held:
        if name == "store":
            yield _store(folder, held)
        elif name == "nodes":
            yield _nodes(folder, port, held)
        else:
            yield _private(folder)


def _private(folder: Path) -> Place:
    run = folder / "runs" / "run"
    killed = {"head killed": _process_killed("gcs_server"), "raylet killed": _process_killed("raylet/raylet")}
    acts = OF_THE_COMMAND | killed | dict.fromkeys(DAMAGE, _damaged(run))
    return Place(["--workers", "2"], str(run.parent), run, acts)


def _store(folder: Path, held: ExitStack) -> Place:
    """CREDENTIALS of `tests.test_mirror` are in the environment."""
    store = held.enter_context(running_store(folder, 0.02))
    address = store.address("images/runs", "")
    mirror = Mirror(folder / "pulled", Location(address) / "run")

    def refuse(command: Command, _fault: Fault) -> None:
        command.take()
        store.ask("_down/0")
        time.sleep(OUTAGE)
        store.ask(f"_down/{sys.maxsize}")

    def pull() -> None:
        mirror.pull_checkpoints()
        mirror.pull("metrics.jsonl")

    return Place(["--workers", "2"], address, mirror.local, OF_THE_COMMAND | {"store refuses": refuse}, pull)


def _nodes(folder: Path, port: int, held: ExitStack) -> Place:
    run = folder / "runs" / "run"
    environment = SHORT_LIVED | {FOLDER: str(folder), "PYTHONPATH": str(Path(__file__).parents[2])}
    cluster = held.enter_context(two_nodes(port, folder, **environment))

    def lose(command: Command, _fault: Fault) -> None:
        command.take()
        cluster.kill(1)
        cluster.add()

    def announce(command: Command, fault: Fault) -> None:
        lost = worker_node(cluster.address)
        command.take()
        drain(cluster.address, lost, 30)
        _wait_for_notice(run, command)
        lose(command, fault)

    def behead(command: Command, _fault: Fault) -> None:
        command.kill("gcs_server")
        _ends_in_a_line(command)
        _anew(cluster)
        command.begin()

    acts = OF_THE_COMMAND | {"node killed": lose, "node announced": announce, "head killed": behead}
    flags = ["--workers", "1:2", "--address", cluster.address]
    return Place(flags, str(run.parent), run, acts, stays=True)


def _wait_for_notice(run: Path, command: Command) -> None:
    deadline = time.monotonic() + 25
    while not any("machine is about to be taken" in path.read_text() for path in run.glob("logs/worker-0.log")):
        if time.monotonic() > deadline or command.process.poll() is not None:
            return
        time.sleep(0.1)


def _anew(cluster: TwoNodes) -> None:
    cluster.stop()
    cluster.start()


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder whose path is short enough for Ray's sockets."""
    folder = Path(tempfile.mkdtemp(prefix="rc-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)

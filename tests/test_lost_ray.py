"""Ray's head or this node's process is lost: said in one line, before Ray ends the program without one."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext, suppress
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import ray

from raypaml.cluster import lost_ray, session
from raypaml.cluster.end_of_ray import RayThread, shut_down
from raypaml.cluster.lost_ray import LostRayError, _Place, check_ray, told_if_lost
from raypaml.errors import StoppedAtOnce

LINE = "the head of Ray does not answer any more, and what it ran is lost: give the command again; a run then goes on"


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture
def head(listening: socket.socket, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    """The head, which may be away for no time; closed, it has ended."""
    port = listening.getsockname()[1]
    monkeypatch.setattr(lost_ray, "_places", lambda patience: [_Place("the head of Ray", "127.0.0.1", port, patience)])
    monkeypatch.setattr(lost_ray, "_LOOK_SECONDS", 0.01)
    return listening


def wait_for_loss(received: int = 0) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        check_ray(received)
        time.sleep(0.01)


def lose_and_wait(head: socket.socket) -> None:
    check_ray(0)
    head.close()
    wait_for_loss()


def lose_and_fail(head: socket.socket) -> None:
    head.close()
    raise RuntimeError("Broken pipe")


@pytest.mark.parametrize("happens", [lose_and_wait, lose_and_fail])
def test_who_asks_and_who_meets_an_error_of_ray_hears_that_it_is_lost(
    happens: Callable[[socket.socket], None], head: socket.socket
) -> None:
    leave = MagicMock()
    with pytest.raises(LostRayError, match=LINE), told_if_lost(leave):
        happens(head)
    leave.assert_called_once_with()
    check_ray(0)  # nothing is watched any more


def lose_after_a_signal(head: socket.socket) -> None:
    head.close()
    wait_for_loss(signal.SIGTERM)


def test_a_cluster_that_is_lost_is_left_once_and_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    over = threading.Event()

    def shutdown() -> None:
        calls.append("shutdown")
        over.wait(20)  # as Ray waits for its head

    monkeypatch.setattr("ray.shutdown", shutdown)
    monkeypatch.setattr(lost_ray, "LOST_SECONDS", 0.1)
    with ExitStack() as ending:
        ending.callback(shutdown)
        lost_ray.leave_lost_ray(ending)
    over.set()
    assert calls == ["shutdown"]


@pytest.mark.parametrize("goes", [True, False])
def test_a_node_that_is_lost_while_all_are_asked_is_left_out(goes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    here = "a" * 56
    both, one = {here: "first", "b" * 56: "second"}, {here: "first"}
    live = iter([both, one, one] if goes else [both, both])
    asked = []

    def answers(_calls: list[object], hosts: list[str]) -> list[str]:
        asked.append(hosts)
        if len(hosts) == 2:
            raise ray.exceptions.TaskUnschedulableError("the node does not exist any more")
        return ["there"]

    monkeypatch.setattr(session, "_live_hosts", lambda: next(live))
    monkeypatch.setattr(session, "quick_answers", answers)
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: here))
    monkeypatch.setattr("ray.remote", MagicMock())
    with nullcontext() if goes else pytest.raises(ray.exceptions.TaskUnschedulableError):
        assert session.on_every_node(print) == ["there"]
    assert asked == [["first", "second"], ["first"]][: 1 + goes]


def test_a_thread_that_waits_for_a_result_leaves_ray_before_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray crashed where it ended meanwhile; and what the thread asked then started another Ray."""
    errors: list[BaseException] = []

    def get(refs: object, timeout: float | None = None) -> object:
        assert timeout, "waits in Ray without a limit"
        time.sleep(0.01)
        raise ray.exceptions.GetTimeoutError

    def work() -> None:
        for ask in (ray.get, ray.put):
            try:
                ask("a result")
            except BaseException as error:
                errors.append(error)

    monkeypatch.setattr("ray.get", get)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", MagicMock(side_effect=RuntimeError("another Ray")))
    thread = RayThread(work, known=True)
    thread.start()
    time.sleep(0.05)
    assert thread.is_alive()
    with pytest.raises(RuntimeError, match="another Ray"):
        ray.put(1)  # in any other thread as ever
    thread.leave()
    assert not thread.is_alive()
    assert [type(error) for error in errors] == [ray.exceptions.GetTimeoutError, ray.exceptions.RaySystemError]
    assert ray.get is get


def test_of_two_runs_in_one_program_each_leaves_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that began first ends first, which must not take from the other what is its own, nor leave it behind."""

    def get(_refs: object, timeout: float | None = None) -> None:
        time.sleep(0.01)
        raise ray.exceptions.GetTimeoutError(str(timeout))

    def work() -> None:
        with suppress(ray.exceptions.GetTimeoutError):
            ray.get("a result")

    monkeypatch.setattr("ray.get", get)
    first, second = RayThread(work, known=True), RayThread(work, known=True)
    for thread in (first, second):
        thread.start()
        time.sleep(0.05)
    first.leave()
    assert [first.is_alive(), second.is_alive()] == [False, True]
    second.leave()
    assert not second.is_alive()
    assert ray.get is get


def test_what_is_dropped_while_ray_ends_does_not_call_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would end the process with code 1 (`ObjectRef.__dealloc__` in a thread that waited for a result)."""
    from ray._private.worker import global_worker

    core_worker = MagicMock()
    monkeypatch.setattr(global_worker, "core_worker", core_worker, raising=False)

    def shutdown() -> None:
        assert global_worker.core_worker.get_job_config() is core_worker.get_job_config()  # as Ray asks until it ends
        global_worker.core_worker.shutdown_driver()
        core_worker.shutdown_driver.assert_called_once_with()
        with pytest.raises(AttributeError, match="Ray has ended"):
            global_worker.core_worker.remove_object_ref_reference("a result")

    called = MagicMock(side_effect=shutdown)
    monkeypatch.setattr("ray.shutdown", called)
    shut_down(known=True)
    called.assert_called_once_with()
    core_worker.remove_object_ref_reference.assert_not_called()


def test_a_signal_that_ended_ray_too_has_stopped_the_run(head: socket.socket) -> None:
    """`timeout` and systemd send it to all processes; the exit code is the signal's."""
    leave = MagicMock()
    with pytest.raises(StoppedAtOnce) as stopped, told_if_lost(leave):
        lose_after_a_signal(head)
    assert stopped.value.signal == signal.SIGTERM
    leave.assert_called_once_with()


def test_other_errors_stay_what_they_are(head: socket.socket) -> None:
    with pytest.raises(RuntimeError, match="of the run"), told_if_lost(MagicMock()):
        raise RuntimeError("of the run")


def test_a_head_that_is_started_again_in_time_is_not_lost(head: socket.socket) -> None:
    port = head.getsockname()[1]
    with told_if_lost(MagicMock(), patience=30):
        head.close()
        time.sleep(0.1)
        with socket.create_server(("127.0.0.1", port)):
            time.sleep(0.1)
            check_ray(0)


@pytest.mark.parametrize(("patience", "seconds", "lost"), [(60.0, 59.0, False), (60.0, 61.0, True), (0.0, 0.1, True)])
def test_how_long_a_process_may_be_away(
    patience: float, seconds: float, lost: bool, listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = _Place("head", *listening.getsockname(), patience)
    assert not place.is_lost()
    listening.close()
    later = place.answered + seconds
    monkeypatch.setattr(lost_ray, "time", SimpleNamespace(monotonic=lambda: later))
    assert place.is_lost() == lost


@pytest.mark.parametrize(
    ("error", "patience", "away"),
    [
        (TimeoutError("timed out"), 60.0, True),
        (OSError(errno.EHOSTUNREACH, "No route to host"), 60.0, True),
        (TimeoutError("timed out"), 0.0, False),  # a machine that is busy
        (OSError(errno.EMFILE, "Too many open files"), 60.0, False),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), 0.0, True),
    ],
)
def test_a_busy_machine_raises_no_false_alarm(
    error: OSError, patience: float, away: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "create_connection", MagicMock(side_effect=error))
    assert _Place("head", "10.0.0.1", 1, patience).is_away() == away


def test_what_does_not_answer_from_the_beginning_is_not_watched(
    listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a raylet behind a firewall; and through a Ray Client nothing is."""
    host, port = listening.getsockname()
    here = SimpleNamespace(gcs_address=f"{host}:{port}", get_node_id=lambda: "a")
    monkeypatch.setattr("ray.get_runtime_context", lambda: here)
    monkeypatch.setattr("ray.nodes", lambda: [{"NodeID": "a", "NodeManagerAddress": host, "NodeManagerPort": 1}])
    assert [place.what for place in lost_ray._places(0.0)] == [f"the head of Ray at {host}:{port}"]
    monkeypatch.setattr("ray.util.client.ray.is_connected", lambda: True)
    assert lost_ray._places(0.0) == []


DEAF = """
import time
from raypaml.cluster import lost_ray
lost_ray._places = lambda _: [lost_ray._Place("the head of Ray", "127.0.0.1", 1, 0.0)]
lost_ray._LEAVE_SECONDS = 0.1
with lost_ray.told_if_lost(print):
    time.sleep(60)
"""


def test_a_program_that_hears_nothing_is_ended_with_the_line() -> None:
    done = subprocess.run([sys.executable, "-c", DEAF], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(LINE)


def test_ray_itself_waits_longer_than_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would end the process before the line is said."""
    monkeypatch.delenv(lost_ray.HEAD_SECONDS, raising=False)
    assert lost_ray.head_patience() == 60
    assert float(lost_ray.patient_ray()[lost_ray.HEAD_SECONDS]) > 60 + lost_ray._LEAVE_SECONDS
    monkeypatch.setenv(lost_ray.HEAD_SECONDS, "300")
    assert lost_ray.head_patience() == 300
    assert lost_ray.patient_ray() == {lost_ray.HEAD_SECONDS: "360"}
    assert os.environ[lost_ray.HEAD_SECONDS] == "300"


def test_rays_own_words_on_it_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import worker

    shown: list[list[str]] = []
    monkeypatch.setattr(worker, "print_worker_logs", lambda data, *_: shown.append(data["lines"]))
    with lost_ray.without_raylets_log(known=True):
        for lines in (["(raylet) Raylet is terminated. Last 20 lines of the Raylet logs:"], ["out of memory"]):
            worker.print_worker_logs({"lines": lines}, sys.stderr)
    assert shown == [["out of memory"]]

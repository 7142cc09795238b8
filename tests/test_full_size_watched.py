"""What the rehearsal sees of threads and of connections."""

from __future__ import annotations

import json
import os
import socket
import threading
import time

import pytest

from tools.full_size import watched
from tools.full_size.growth import faults
from tools.full_size.phases import PHASES, Phase, Place, rehearse
from tools.full_size.watched import WORKER, Sockets, Stretch, connections, thread_seconds

LISTED = """\
ESTAB 0      0          127.0.0.1:50000       127.0.0.1:6379  users:(("python",pid=11,fd=3))
\t cubic bytes_sent:3000000 bytes_acked:3000001 bytes_received:7
ESTAB 0      0          127.0.0.1:6379        127.0.0.1:50000 users:(("gcs_server",pid=12,fd=9),("sh",pid=13,fd=9))
\t cubic bytes_acked:1 bytes_received:3000000
ESTAB 0      0          127.0.0.1:22          10.0.0.1:400
\t cubic bytes_sent:5
ESTAB 0      0             [::1]:4000            [::1]:4001   users:(("ray::RayTrainWo",pid=14,fd=3))
\t cubic bytes_sent:90000000
ESTAB 0      0             [::1]:4001            [::1]:4000   users:(("ray::RayTrainWo",pid=15,fd=3))
\t cubic bytes_sent:80000000
"""
KINDS = {11: "command", 12: "gcs_server", 14: WORKER, 15: f"{WORKER}.poll_status"}


def test_the_longest_time_in_which_one_thread_alone_works(monkeypatch):
    seconds = {"a": 0.0, "b": 0.0}
    monkeypatch.setattr(watched, "thread_seconds", lambda _: dict(seconds))
    now = [100.0]
    stretch = Stretch(lambda: now[0])
    for a, b in [(1, 1), (1, 0), (1, 0.4), (1, 0), (0, 0), (0, 1), (0.9, 0), (1, 1), (0, 1)]:
        now[0] += 1
        seconds["a"] += a
        seconds["b"] += b
        stretch.sample([])
    assert (stretch.longest, stretch.began) == (3, 1)  # though b had worked a little


def test_threads_are_counted_one_by_one():
    worked, over = threading.Event(), threading.Event()

    def work() -> None:
        while time.thread_time() < 0.3:
            pass
        worked.set()
        over.wait(30)

    thread = threading.Thread(target=work)
    thread.start()
    worked.wait(30)
    used = thread_seconds([os.getpid()])[f"/proc/{os.getpid()}/task/{thread.native_id}"]
    over.set()
    thread.join()
    assert used == pytest.approx(0.3, abs=0.05)
    assert thread_seconds([2**22 + 1]) == {}  # a process that is gone


def test_bytes_between_processes_of_ray_are_counted_and_those_between_workers_are_not(monkeypatch):
    assert connections(LISTED)[:2] == [
        ("127.0.0.1:50000", "127.0.0.1:6379", 3_000_000, 11),
        ("127.0.0.1:6379", "127.0.0.1:50000", 0, 12),
    ]
    monkeypatch.setattr(watched, "_listed", lambda _: LISTED)
    sockets = Sockets("ss")
    sockets.sample(KINDS, KINDS.__getitem__)
    sockets.sample(KINDS, KINDS.__getitem__)  # the same connections
    assert sockets.megabytes == 3.0
    assert Sockets(None).megabytes is None


@pytest.mark.skipif(Sockets().megabytes is None, reason="ss (iproute2) is not installed")
def test_a_real_connection_is_seen():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as mine:
        theirs, _ = server.accept()
        mine.sendall(bytes(20_000))
        assert len(theirs.recv(20_000, socket.MSG_WAITALL)) == 20_000
        sockets = Sockets()
        sockets.sample([os.getpid()], lambda _: "python")  # which may have other connections
        ends = ["{}:{}".format(*end) for end in (mine.getsockname(), server.getsockname())]
        theirs.close()
    assert sockets._sent[ends[0], ends[1]] == 20_000


def test_a_phase_is_asked_to_end(tmp_path):
    script = tmp_path / "phase.py"
    ready = tmp_path / "ready"
    lines = ("import pathlib, signal, sys, time", "signal.signal(15, lambda *_: sys.exit(143))")
    script.write_text("\n".join([*lines, f"pathlib.Path({str(ready)!r}).touch()", "time.sleep(60)"]))
    phase = Phase("train-resumed", lambda _: [script], stopped=lambda _: ready.exists(), codes=(143,))
    assert rehearse(Place(tmp_path / "out", 1.0), [phase], "abc", lambda _: None) == 0
    (line,) = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    assert json.loads(line)["exit_code"] == 143


def test_a_run_at_full_size_ends_after_a_thousand_steps(tmp_path):
    (resumed,) = [phase for phase in PHASES if phase.name == "train-resumed"]
    place = Place(tmp_path, 1.0)
    saved = place.run("ll_r") / "checkpoints"
    for name, over in (("0000-000500", False), ("0000-001000", True)):
        (saved / name).mkdir(parents=True)
        assert resumed.stopped(place) is over
    assert not resumed.stopped(Place(tmp_path, 0.1))


def test_more_than_ten_seconds_of_one_thread_alone_are_a_fault():
    record = {"phase": "shard", "largest": 1.0, "marks": {}, "bytes": 0, "right": True, "alone": 10.5}
    assert faults(record) == ["one thread alone for more than 10 s"]
    assert faults(record | {"phase": "export"}) == []  # is one process

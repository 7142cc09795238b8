"""Waiting for processes of Ray that are slow to start, or never do: what is said, and how it ends."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, call

import pytest
import ray
from ray.exceptions import ActorUnschedulableError
from ray.remote_function import RemoteFunction

from raypaml.cluster import lost_ray, private_ray, waiting
from raypaml.cluster.channel import Channel, Lost, Started
from raypaml.cluster.on_worker import RunReporter
from raypaml.cluster.ray_train import _show
from raypaml.cluster.waiting import FirstEvent, NoProcessError, quick_answers
from raypaml.training.watch import process_name

NEVER = "has not started within 5:00; the machine may be too busy or short of memory: give the command again later"


@pytest.mark.parametrize(
    ("ready", "said"),
    [
        ([["a", "b"]], ""),
        ([["a"], ["a", "b"]], "waiting for a process of Ray to start on there\n"),
        ([[], ["a", "b"]], "waiting for a process of Ray to start on here, there\n"),
    ],
)
def test_a_slow_process_is_named(
    ready: list[list[str]], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = list[float]()

    def wait(calls: list[str], *, num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        seconds.append(timeout)
        now = ready[len(seconds) - 1]
        return now, [call for call in calls if call not in now]

    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "get", lambda calls: [call.upper() for call in calls])
    assert quick_answers(["a", "b"], ["here", "there"]) == ["A", "B"]
    assert capsys.readouterr().err == said
    assert seconds == [waiting.WORDS_SECONDS, waiting.LIMIT_SECONDS - waiting.WORDS_SECONDS][: len(ready)]


def test_a_process_that_never_starts_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "wait", lambda calls, **_: ([], calls))
    with pytest.raises(NoProcessError, match=f"^a process of Ray on there {NEVER}"):
        quick_answers(["a"], ["there"])


def test_what_is_asked_of_a_process_is_something_that_ray_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a function of C: Ray refuses those, and a mock of ray.remote would not."""
    asked = list[Any]()
    monkeypatch.setattr(RemoteFunction, "_remote", lambda *_, **options: asked.append(options))
    monkeypatch.setattr(waiting, "quick_answers", lambda *given: asked.append(given[1]))
    waiting.first_process()
    assert [options.get("num_cpus") for options in asked[:1]] == [0]
    assert asked[1:] == [["this machine"]]


def test_the_first_event_is_waited_for_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    now, said = [0.0], list[str]()
    monkeypatch.setattr(waiting, "time", SimpleNamespace(monotonic=lambda: now[0]))
    limited, free, heard = (
        FirstEvent(said.append, "the first worker", limited=limited) for limited in (True, False, True)
    )
    heard.came(1)
    for now[0] in (1.0, 21.0, 299.0):
        for one in (limited, free, heard):
            one.came(0)
    assert said == ["waiting for the first worker to start"] * 2
    now[0] = 301.0
    free.came(0)
    heard.came(0)
    with pytest.raises(NoProcessError, match=f"^the first worker {NEVER}"):
        limited.came(0)


def test_what_is_lacking_is_said_at_once_and_again_when_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    now, said, lacks = [0.0], list[str](), ["2 CPUs wanted"]
    monkeypatch.setattr(waiting, "time", SimpleNamespace(monotonic=lambda: now[0]))
    first = FirstEvent(said.append, "the first worker", limited=False, lack=lambda: lacks[0])
    assert said == ["waiting for the first worker to start: 2 CPUs wanted"]
    for now[0], lacks[0] in ((1.0, "1 CPU wanted"), (21.0, "1 CPU wanted"), (42.0, "1 CPU wanted"), (63.0, "")):
        first.came(0)
    assert said[1:] == [f"waiting for the first worker to start{more}" for more in (": 1 CPU wanted", "")]
    first.came(1)
    lacks[0] = "2 CPUs wanted"
    first.came(0)
    assert len(said) == 3, "a run that trains waits for nothing"


def test_a_run_that_lost_its_workers_says_who_took_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    said = list[str]()
    first = FirstEvent(said.append, "the first worker", limited=True, lack=lambda: "run other holds 2")
    first.came(1)
    said.clear()
    lost = MagicMock(take=lambda: [Started(), Lost("lost: rank 0", "rank 0", preempted=False)])
    _show(lost, MagicMock(), first)
    assert said == ["waiting for the first worker to start: run other holds 2"]
    monkeypatch.setattr(waiting, "time", SimpleNamespace(monotonic=lambda: 1e9))
    _show(MagicMock(take=lambda: [Started()]), MagicMock(), first)
    _show(MagicMock(take=list), MagicMock(), first)
    assert len(said) == 1


def test_a_mailbox_that_starts_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    actor, here = MagicMock(), SimpleNamespace(get_node_id=lambda: "00" * 28)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: here)
    monkeypatch.setattr(ray, "remote", lambda _: actor)
    mailbox = actor.options().remote()
    ready: list[Any] = [[], ["asked"]]
    monkeypatch.setattr(ray, "wait", lambda *_, **__: (ready.pop(0), []))
    monkeypatch.setattr(ray, "get", lambda _: ["event"])
    channel = Channel(MagicMock())
    assert channel.take() == []
    assert channel.take() == ["event"]
    assert mailbox.ask.remote.call_count == 1, "asked again, so that an answer would be lost"


def test_a_worker_that_has_started_may_take_long_before_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, display, first, here = list[Any](), MagicMock(), MagicMock(), SimpleNamespace(current_actor="actor")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: here)
    worker = MagicMock(failure=lambda: None, put=sent.append)
    RunReporter(worker, private=True).on_worker(0, tmp_path)
    assert sent == [Started(process_name(), here.current_actor)]
    _show(MagicMock(take=lambda: sent), display, first)
    assert first.method_calls == [call.came(1)], "FirstEvent would end the run after LIMIT_SECONDS"
    display.update.assert_not_called()


def test_a_mailbox_that_cannot_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "00" * 28))
    monkeypatch.setattr(ray, "remote", MagicMock())
    monkeypatch.setattr(ray, "wait", lambda *_, **__: (["asked"], []))
    monkeypatch.setattr(ray, "get", MagicMock(side_effect=ActorUnschedulableError("startup failed 5 times.\nSee logs")))
    with pytest.raises(ValueError, match=r"^a process of Ray does not start: .*startup failed 5 times\.$"):
        Channel(MagicMock()).take()


def test_the_last_error_of_a_private_ray_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("ray.init", lambda **_: None)
    monkeypatch.setattr(lost_ray, "_places", lambda _: [])
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setattr(private_ray, "_said_last", lambda _: " (raylet.out: E no worker)")
    with pytest.raises(ValueError, match=r"--workers \(raylet.out: E no worker\)$"), private_ray.private_ray(2):
        raise NoProcessError("a worker")

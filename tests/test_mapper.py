"""Calls mapped over processes: when Ray is started for them, and what is said of those that fail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import MagicMock

import pytest
import ray
from ray.exceptions import RayTaskError, WorkerCrashedError

from raypaml.cluster import tasks
from raypaml.mapper import Mapper, in_this_process


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """What `mapper` starts, each with its workers and its address."""
    started = list[tuple[int, str]]()

    @contextmanager
    def start(processes: tasks.Processes) -> Iterator[tuple[Mapper, str]]:
        started.append((processes.workers, processes.address))
        yield in_this_process, processes.device

    monkeypatch.setattr(tasks, "device_mapper", start)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return started


def test_a_private_ray_starts_with_the_first_several_calls(starts: list[tuple[int, str]]) -> None:
    with tasks.mapper(4) as run:
        assert list(run(abs, [])) == []
        assert list(run(abs, [(-1,)])) == [1]
        assert starts == []
        for _ in range(2):
            assert list(run(abs, iter([(-1,), (-2,), (-3,)]))) == [1, 2, 3]
    assert starts == [(4, "")]


def test_a_cluster_is_joined_at_once(starts: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    with tasks.mapper(4, "host:1"), pytest.raises(ValueError, match="workers=0: must be at least 1"), tasks.mapper(0):
        pass
    monkeypatch.setenv("RAY_ADDRESS", "host:2")
    with tasks.mapper(3):
        pass
    assert starts == [(4, "host:1"), (3, "")]


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (
            RayTaskError("f", "a trace", OSError(28, "No space left on device")),
            ValueError,
            r"^No space left on device; make room on the disk",
        ),
        (RayTaskError("f", "a trace", KeyError("x")), RuntimeError, "^'x'$"),
        (WorkerCrashedError(), ValueError, r"^a process of Ray failed: The worker died .*; give the command again, "),
    ],
)
def test_what_a_task_or_ray_raises_is_one_line(
    error: Exception, kind: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "remote", MagicMock())
    monkeypatch.setattr(ray, "wait", lambda running: (running[:1], running[1:]))
    monkeypatch.setattr(ray, "get", MagicMock(side_effect=error))
    with pytest.raises(kind, match=said) as raised:
        list(tasks.map_tasks(abs, [(1,)], at_once=2, gpu=False))
    assert "\n" not in str(raised.value)

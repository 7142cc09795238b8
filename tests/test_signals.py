"""Ctrl-C at the driver: once it asks the workers to stop, twice it ends at once, and says both."""

from __future__ import annotations

import io
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from rich.console import Console

from raypaml.cluster import ray_train
from raypaml.cluster.signals import Signals
from raypaml.errors import StoppedAtOnce
from raypaml.recipes import recipe
from raypaml.reports.progress import Display
from raypaml.training.job import Job


class Mailbox:
    """Stands for the channel to workers that do not end; each look for news is one more Ctrl-C."""

    def __init__(self, times: int) -> None:
        self.left, self.stops = times, 0

    def take(self) -> list[dict[str, Any]]:
        if self.left:
            self.left -= 1
            signal.raise_signal(signal.SIGINT)
        return []

    def stop(self) -> None:
        self.stops += 1


def test_a_second_ctrl_c_ends_at_once_and_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    mailbox, left = Mailbox(2), MagicMock()
    alive = SimpleNamespace(start=lambda: None, is_alive=lambda: True, join=lambda _: None, leave=left)
    monkeypatch.setattr(ray_train.session, "join", lambda *_, **__: nullcontext(True))  # a private one
    monkeypatch.setattr(ray_train.holders, "asking", lambda *_: nullcontext(lambda: ""))
    monkeypatch.setattr(ray_train, "gpu_wanted", lambda *_: False)
    monkeypatch.setattr(ray_train, "claim", lambda *_: None)
    monkeypatch.setattr(ray_train, "Channel", lambda _: mailbox)
    monkeypatch.setattr(ray_train, "RayThread", lambda *_, **__: alive)
    said = io.StringIO()
    job: Any = Job(recipe("digits").override({"name": "r", "storage": "s"}), None, Path("s/r"))  # type: ignore[arg-type]
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(StoppedAtOnce) as ended, Display(Console(file=said, width=200)) as display:
        ray_train.fit_on_ray(job, "raypaml train digits", display)
    assert ended.value.signal == signal.SIGINT
    assert mailbox.stops == 1
    left.assert_called_once_with()
    lines = [line.split("  ", 1)[1] for line in said.getvalue().splitlines() if "stop" in line]  # without the time
    assert lines == [
        "stopping after this step, with a checkpoint, or after this part of features; once more to stop at once",
        "stopped at once; what came after the last checkpoint is lost; continue with: raypaml train digits --name r "
        "--storage s",
    ]
    assert signal.getsignal(signal.SIGINT) == before


def test_handlers_are_those_of_the_main_thread_only_and_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def handlers() -> list[Any]:
        with Signals():
            return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    with ThreadPoolExecutor(1) as elsewhere:
        assert elsewhere.submit(handlers).result() == before
    assert all(now != then for now, then in zip(handlers(), before, strict=True))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before

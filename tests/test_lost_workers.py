"""Workers lost while they start, which end Ray Train's controller: they are started again as others are."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from ray.exceptions import RayActorError, RayTaskError
from ray.train.v2.api.exceptions import ControllerError

from raypaml.cluster import ray_train
from raypaml.cluster.channel import Lost
from raypaml.recipes import recipe


def of_task(error: Exception) -> RayTaskError:
    return RayTaskError("join", "trace", error)


@pytest.fixture
def fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs a job whose controller ends with these errors, one a try; what was reported, and the result."""

    def run(*errors: Exception, max_failures: int = 2) -> tuple[list[Lost], bool]:
        left, told = list(errors), list[Lost]()

        def fit() -> SimpleNamespace:
            if left:
                raise ControllerError(left.pop(0))
            return SimpleNamespace(return_value=True)

        config = recipe("digits").override({"max_failures": max_failures, "workers": 2, "storage": str(tmp_path)})
        channel = MagicMock(losses=lambda: len(told), put=told.append, failure=lambda: None)
        monkeypatch.setattr(ray_train, "trainer_class", lambda _: lambda *_args, **_options: MagicMock(fit=fit))
        monkeypatch.setattr(ray_train, "torch_config", lambda: None)
        job: Any = SimpleNamespace(config=config, data=SimpleNamespace(address="data"), folder=tmp_path)
        return told, ray_train.run_workers(job, MagicMock(), channel, use_gpu=False)

    return run


def test_workers_that_are_lost_while_they_start_are_started_again(fit: Any) -> None:
    """Ray Train ended the run with an error of its controller."""
    told, finished = fit(RayActorError(), of_task(RuntimeError("Connection closed by peer")))
    assert finished
    assert [event.cause for event in told] == [str(RayActorError()).splitlines()[0], "Connection closed by peer"]
    assert told[0].text.endswith("all start again from the last checkpoint")


def test_they_count_as_losses(fit: Any) -> None:
    with pytest.raises(RuntimeError, match="there are more losses than --max-failures 1 allows"):
        fit(RayActorError(), RayActorError(), max_failures=1)


@pytest.mark.parametrize(
    "error", [of_task(ValueError("no such backend")), of_task(OSError(errno.ENOSPC, "full")), RuntimeError("of Ray")]
)
def test_what_another_try_would_meet_too_ends_the_run(error: Exception, fit: Any) -> None:
    with pytest.raises(RuntimeError, match="Ray Train failed"):
        fit(error)

"""When memory runs out, a run goes on with half as many images at once, once, and says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from raypaml.cluster.worker_errors import as_user_error
from raypaml.errors import HalvedError
from raypaml.runs.events import Event
from raypaml.training import loop, out_of_memory
from raypaml.training.out_of_memory import read_halving
from tests.reported import text_of
from tests.test_loop import config, history

CPU = torch.device("cpu")


def exhausted(tensor_bytes: int = 2**60) -> None:
    torch.empty(tensor_bytes, dtype=torch.uint8)


def train_with_room(settings: Any, data: Path, run: Path, room: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Train where more than `room` images at once are more than there is memory for; what was said."""
    from raypaml.training import step

    forward, events = step._forward, list[str]()

    def limited(worker: Any, images: Any) -> Any:
        if len(images) > room and worker.state.epoch == 1:
            exhausted()
        return forward(worker, images)

    def report(event: Event) -> bool:
        events.append(text_of(event))
        return False

    with monkeypatch.context() as patch:
        patch.setattr(step, "_forward", limited)
        assert loop.train(settings, data, run, CPU, report)
    return [event for event in events if event]


def test_a_run_goes_on_with_half_from_its_checkpoint_and_keeps_it(
    tiny_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(reproducible=False, epochs=2, scheme="an")
    with pytest.raises(HalvedError, match=r"rank 0, epoch 2, step 1, computing: memory ran out; .* 16 .* of 32") as out:
        train_with_room(settings, tiny_digits, tmp_path, 16, monkeypatch)
    last_try = as_user_error({0: RuntimeError("Connection closed"), 1: out.value})
    assert isinstance(last_try, ValueError)
    assert "give the command again" in str(last_try)
    halving = read_halving(tmp_path)
    assert halving is not None
    assert (halving.micro_batch_size, halving.before) == (16, 32)
    assert "can't allocate memory" in halving.error
    said = train_with_room(settings, tiny_digits, tmp_path, 16, monkeypatch)
    assert said[:2] == [str(halving), "continues from epoch 2, step 1 with 1 worker"]
    assert [record["micro_batch_size"] for record in history(tmp_path)] == [0, 16]
    assert sum(record["samples"] for record in history(tmp_path)) == 2 * 96


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    ],
)
def test_memory_errors_of_the_driver_and_of_libraries_are_known(text: str) -> None:
    assert out_of_memory._ran_out(RuntimeError(text)) == ("EXECUTION" not in text)


@pytest.mark.parametrize(
    ("values", "before", "said"),
    [
        (
            {},
            {"micro_batch_size": 8, "before": 16, "where": "", "error": ""},
            "half as many as at first: start another",
        ),
        ({"micro_batch_size": 1}, None, "memory ran out, 1 of the batch at once, and cannot take fewer"),
        (
            {"reproducible": True},
            None,
            "lanes of 8, which stay as they are: .* --micro-batch-size 8, which takes them singly",
        ),
    ],
)
def test_what_half_would_not_help_is_refused_in_one_line(
    values: dict[str, Any],
    before: dict[str, Any] | None,
    said: str,
    tiny_digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if before:
        (tmp_path / "memory.json").write_text(json.dumps(before))
    monkeypatch.setattr(loop, "_train_epoch", lambda *_: exhausted())
    with pytest.raises(ValueError, match=said) as out:
        loop.train(config(reproducible=False).override(values), tiny_digits, tmp_path, CPU, lambda _: False)
    assert "\n" not in str(out.value)
    assert (read_halving(tmp_path) is not None) == bool(before)


def test_an_error_of_another_kind_stays_what_it_is(
    tiny_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> bool:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(loop, "_train_epoch", fails)
    with pytest.raises(RuntimeError, match=r"^Connection closed by peer$"):
        loop.train(config(reproducible=False), tiny_digits, tmp_path, CPU, lambda _: False)
    assert read_halving(tmp_path) is None

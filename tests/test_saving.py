"""Saving beside training: what is written is what was, it is whole or not there, and nobody goes on without it."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from raypaml.counting import place_text
from raypaml.runs import checkpoint, checkpoint_writer
from raypaml.runs.checkpoint import read_state, valid_checkpoints
from raypaml.runs.events import EpochReport, Event, LoopSignal, Message, StepReport
from raypaml.training import loop, resume
from tests.conftest import run_distributed
from tests.processes import CONTEXT
from tests.reported import place_of, text_of
from tests.test_loop import config, history, undisturbed, weights  # noqa: F401

CPU = torch.device("cpu")
WRITE = checkpoint_writer.write_tensors


def names(run: Path) -> list[str]:
    return [path.name for path in valid_checkpoints(run / "checkpoints")[0]]


def at_write(number: int, act: Callable[[], None]) -> Callable[..., None]:
    """The writer of tensors, which does something before a write, counted from 1; a checkpoint has two."""
    calls = [0]

    def write(*args: Any) -> None:
        calls[0] += 1
        if calls[0] == number:
            act()
        WRITE(*args)

    return write


# --- The files --------------------------------------------------------------------------------------------------------


def test_tensors_are_written_as_safetensors_writes_them(tmp_path: Path) -> None:
    kinds = [getattr(torch, name) for name in ("float64", "float32", "float16", "bfloat16", "int64", "uint8", "bool")]
    tensors = {f"{kind}": torch.arange(6).view(2, 3).to(kind) for kind in kinds}
    tensors |= {"nothing": torch.zeros(0, 3), "one": torch.tensor(7), "turned": torch.arange(6.0).view(2, 3).T}
    tensors["channels last"] = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    with (tmp_path / "x.safetensors").open("wb") as file:
        checkpoint_writer.write_tensors(tensors, file)
    content = (tmp_path / "x.safetensors").read_bytes()
    wanted = {name: value.contiguous() for name, value in tensors.items()}
    assert len(content) == len(save(wanted))
    found = load(content)
    assert found.keys() == wanted.keys()
    assert all(found[name].dtype == value.dtype and torch.equal(found[name], value) for name, value in wanted.items())


def test_the_host_keeps_its_memory_and_the_layout_of_tensors() -> None:
    host = checkpoint_writer.HostCopies()
    source = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    first = host.take("f", {"a": source})["a"]
    assert first.stride() == source.stride()
    place = first.data_ptr()
    source += 1
    assert not torch.equal(first, source)
    again = host.take("f", {"a": source})["a"]
    assert again.data_ptr() == place
    assert torch.equal(again, source)
    assert host.take("f", {"a": torch.zeros(5)})["a"].shape == (5,)


# --- Beside training --------------------------------------------------------------------------------------------------


def test_steps_go_on_while_a_checkpoint_is_written_as_it_was(
    tiny_digits: Path,
    tmp_path: Path,
    undisturbed: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The writer waits until two more steps are done: a copy that shared memory with the model would show them."""
    monkeypatch.setattr(loop, "REPORT_SECONDS", 0.0)  # agree at every step
    further = threading.Event()

    def report(event: Event) -> bool:
        at = place_of(event)
        if at == (1, 2):
            assert names(tmp_path) == []
            further.set()
        return at == (1, 2)

    monkeypatch.setattr(checkpoint_writer, "write_tensors", at_write(1, lambda: _expect(further)))
    assert not loop.train(config(), tiny_digits, tmp_path, CPU, report)
    monkeypatch.undo()
    stop = lambda event: isinstance(event, EpochReport)  # noqa: E731
    assert not loop.train(config(), tiny_digits, tmp_path / "early", CPU, stop)
    assert names(tmp_path) == ["0001-000000", "0001-000002"]
    path = Path("checkpoints", "0001-000000", "model.safetensors")
    assert (tmp_path / path).read_bytes() == (tmp_path / "early" / path).read_bytes()
    assert loop.train(config(), tiny_digits, tmp_path, CPU, lambda _: False)
    assert weights(tmp_path) == weights(undisturbed)


def _expect(event: threading.Event) -> None:
    assert event.wait(30)


def test_what_is_there_is_hashed_on_opening_and_once_before_the_test(
    tiny_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    digest = checkpoint.file_digest
    monkeypatch.setattr(checkpoint, "file_digest", lambda path: (hashed.append(path.name), digest(path))[1])
    stops = {"record": 2}

    def report(event: Event) -> bool:
        return isinstance(event, EpochReport) and event.record["epoch"] + 1 == stops["record"]

    assert not loop.train(config(), tiny_digits, tmp_path, CPU, report)
    assert hashed == []
    stops["record"] = 3
    before = len(names(tmp_path))
    hashed.clear()
    assert not loop.train(config(epochs=4), tiny_digits, tmp_path, CPU, report)
    assert hashed.count("model.safetensors") == before  # on opening, and not again with the first save
    stops["record"], before = 0, len(names(tmp_path))
    hashed.clear()
    assert loop.train(config(epochs=3), tiny_digits, tmp_path, CPU, report, splits=("validation", "test"))
    assert hashed.count("model.safetensors") == 2 * before  # on opening, and before the test, for all splits


def test_metrics_and_store_come_after_the_checkpoint(
    tiny_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that ends between the two has a checkpoint without its line, and never a line without its checkpoint."""
    monkeypatch.setattr(resume, "write_whole", _raise(OSError(errno.EIO, "the disk is lost")))
    with pytest.raises(OSError, match="the disk is lost"):
        loop.train(config(), tiny_digits, tmp_path, CPU, lambda event: isinstance(event, EpochReport))
    assert names(tmp_path) == ["0001-000000"]
    monkeypatch.undo()
    assert loop.train(config(), tiny_digits, tmp_path, CPU, lambda _: False)
    assert [record["epoch"] for record in history(tmp_path)] == [0, 1, 2]


def _raise(error: Exception) -> Callable[..., Any]:
    def call(*_: Any) -> Any:
        raise error

    return call


# --- Who waits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signal_", "last", "saved"),
    [(LoopSignal.STOP, False, (0, 1)), (LoopSignal.SAVE, False, (0, 1)), (LoopSignal.SAVE, True, (1, 0))],
)
def test_stop_and_notice_wait_until_the_checkpoint_is_there(
    signal_: LoopSignal,
    last: bool,
    saved: tuple[int, int],
    tiny_digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "REPORT_SECONDS", 0.0)
    monkeypatch.setattr(checkpoint_writer, "write_tensors", at_write(1, lambda: time.sleep(0.3)))
    said: list[tuple[str, list[str]]] = []

    def report(event: Event) -> LoopSignal:
        if isinstance(event, Message):
            said.append((event.text, names(tmp_path)))
        asked = isinstance(event, StepReport) and place_of(event) == (0, event.steps if last else 1)
        return signal_ if asked else LoopSignal.STOP if isinstance(event, EpochReport) else LoopSignal.NOTHING

    assert not loop.train(config(), tiny_digits, tmp_path, CPU, report)
    epoch, step = saved
    name = f"{epoch:04d}-{step:06d}"
    if signal_ == LoopSignal.STOP:
        assert names(tmp_path) == [name]
    else:
        assert said == [(f"{place_text(epoch, step)}: saved, for a machine is about to be taken away", [name])]


def test_a_record_that_is_copied_with_its_checkpoint_comes_after_it(
    tiny_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_writer, "write_tensors", at_write(1, lambda: time.sleep(0.2)))
    there: list[list[str]] = []

    def report(event: Event) -> bool:
        if isinstance(event, EpochReport):
            there.append(names(tmp_path))
            assert len(history(tmp_path)) == 1
        return isinstance(event, EpochReport)

    loop.train(config(), tiny_digits, tmp_path, CPU, report, commit_first=True)
    assert there == [["0001-000000"]]


@pytest.mark.cluster
def test_no_rank_goes_on_to_the_test_before_the_last_checkpoint_is_there(tiny_digits: Path, tmp_path: Path) -> None:
    assert run_distributed(_slow, 2, tiny_digits, tmp_path) == [True, True]
    assert len(list((tmp_path / "predictions" / "test").glob("part-*"))) >= 1


def _slow(rank: int, _: int, data: Path, run: Path) -> bool:
    checkpoint_writer.write_tensors = at_write(1, lambda: time.sleep(0.5))
    return loop.train(config(epochs=1), data, run, CPU, lambda _: False)


# --- Faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "kept"), [(4, ["0001-000000"]), (6, ["0002-000000"])])
def test_a_full_disk_leaves_the_last_checkpoint_and_says_what_to_do(
    number: int,
    kept: list[str],
    tiny_digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The optimizer's file, in the thread: that of the second checkpoint, or of the last, after which none is saved."""
    full = _raise(OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr(checkpoint_writer, "write_tensors", at_write(number, full))
    settings = config()
    with pytest.raises(ValueError, match=r"000-?.*: cannot be written \(.*\); [\d,]+ MB are free there.* --name"):
        loop.train(settings, tiny_digits, tmp_path, CPU, lambda _: False)
    assert kept[0] in [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert names(tmp_path)[-1] == kept[0]
    assert not list((tmp_path / "checkpoints").glob(".unfinished*"))
    assert len(history(tmp_path)) == read_state(tmp_path / "checkpoints" / kept[0]).epoch
    assert not (tmp_path / "predictions").exists()


def test_two_errors_are_both_said(tiny_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = _raise(OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr(checkpoint_writer, "write_tensors", at_write(1, lambda: (time.sleep(0.1), full())[0]))
    said: list[str] = []

    def report(event: Event) -> bool:
        said.append(text_of(event))
        if isinstance(event, EpochReport):
            raise RuntimeError("the first")
        return False

    with pytest.raises(RuntimeError, match="the first"):
        loop.train(config(), tiny_digits, tmp_path, CPU, report)
    assert "0001-000000: cannot be written" in said[-1]


def test_killed_while_a_checkpoint_is_written(
    tiny_digits: Path,
    tmp_path: Path,
    undisturbed: Path,  # noqa: F811
) -> None:
    """In the optimizer's file of the second one: half of it is on the disk."""
    process = CONTEXT.Process(target=_train_and_die, args=(4, tiny_digits, tmp_path), daemon=True)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert list((tmp_path / "checkpoints").glob(".unfinished*"))
    assert names(tmp_path) == ["0001-000000"]
    assert loop.train(config(), tiny_digits, tmp_path, CPU, lambda _: False)
    assert weights(tmp_path) == weights(undisturbed)
    assert [record["epoch"] for record in history(tmp_path)] == [0, 1, 2]


def _train_and_die(number: int, data: Path, run: Path) -> None:
    torch.set_num_threads(1)

    def write(tensors: Any, file: Any) -> None:
        WRITE(tensors, file)
        left[0] -= 1
        if not left[0]:
            file.flush()
            os.truncate(file.name, Path(file.name).stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    left = [number]
    checkpoint_writer.write_tensors = write
    loop.train(config(), data, run, CPU, lambda _: False)

"""What the loop does about faults: says where it is, agrees on what is not finite, saves when it must."""

from __future__ import annotations

import dataclasses
import json
import re
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from raypaml import train as command
from raypaml.config import TrainConfig
from raypaml.recipes import recipe
from raypaml.runs.checkpoint import valid_checkpoints
from raypaml.runs.events import Event, LoopSignal
from raypaml.training import loop, resume, step
from raypaml.training.watch import Beat, Watch
from raypaml.training.watchdog import beating, leave_traces
from tests.conftest import run_distributed
from tests.reported import place_of, text_of
from tests.test_loop import config, history, undisturbed, weights  # noqa: F401

CPU = torch.device("cpu")


# --- Watch ------------------------------------------------------------------------------------------------------------


def beat(rank: int, moves: int, place: str = "", *, process: str = "", world_size: int = 3) -> Beat:
    return Beat(rank=rank, world_size=world_size, process=process or f"h:{rank}", moves=moves, place=place)


def watch(*beats: tuple[float, Beat], limit: float = 10.0) -> Watch:
    found = Watch(limit)
    for at, one in beats:
        assert not found.hear(one, at)
    return found


def test_nobody_hangs_while_anybody_moves() -> None:
    found = watch((0, beat(0, 5)), (0, beat(1, 5)), (9, beat(1, 6)), (12, beat(0, 5)))
    assert found.hung(18.9) == []
    assert Watch(10).hung(1e9) == []


def test_a_process_that_was_stopped_and_goes_on_does_not_hang() -> None:
    """As after Ctrl-Z and fg, in the middle of a step; afterwards it has the whole limit again."""
    found = watch((0, beat(0, 5)), (60, beat(0, 5)), (64, beat(0, 5)))
    assert found.hung(60) == found.hung(69.9) == []
    found.hear(beat(0, 5), 69)
    assert [line[:20] for line in found.hung(70)] == ["rank 0 (h:0) hangs, "]


def test_compiling_takes_longer_than_anything_else_may() -> None:
    compiling = dataclasses.replace(beat(1, 5), compiling=True)
    found = watch((0, beat(0, 5)), (0, compiling))
    for at in range(5, 60, 5):
        assert found.hear(compiling, at) or found.hear(beat(0, 5), at) or found.hung(at + 4.9) == []
    assert found.hung(60) != []
    lost = watch((0, beat(0, 5)), (0, compiling))
    lost.hear(beat(0, 5), 10)
    assert [line[:6] for line in lost.hung(11)] == ["rank 1"]  # it says no longer that it compiles


def test_the_furthest_behind_is_blamed_the_others_wait_for_it() -> None:
    slow = "epoch 1, step 8, reading train-000003.tar"
    found = watch((0, beat(0, 8)), (0, beat(1, 7, slow)), (0, beat(2, 8)))
    for rank, moves in enumerate((8, 7, 8)):
        found.hear(beat(rank, moves, slow if rank == 1 else ""), 9.0)
    assert found.hung(11) == [
        f"rank 1 (h:1) hangs, no progress for 11 s: {slow}; its stacks are in logs/worker-1-stacks.txt"
    ]
    assert found.hung(12) == []  # said once
    assert all(found.hear(beat(rank, 8), 12) for rank in range(3))  # all are to end


def test_one_that_says_nothing_is_blamed_before_those_that_wait() -> None:
    found = watch((0, beat(1, 9, "epoch 2, step 1, computing")), (0, beat(0, 8)), (9, beat(0, 8)))
    assert found.hung(11) == ["rank 1 (h:1) hangs, no heartbeat for 11 s: epoch 2, step 1, computing"]


def test_a_new_life_is_not_blamed_for_the_old_one() -> None:
    found = watch((0, beat(0, 8)), (0, beat(1, 8)))
    assert len(found.hung(11)) == 2
    assert not found.hear(beat(0, 1, process="h:70", world_size=1), 12)  # alone now
    assert found.hung(21) == []
    assert found.hung(22)[0].startswith("rank 0 (h:70) hangs")


def test_a_worker_stuck_in_reading_says_which_shard(
    tiny_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, said = threading.Event(), list[Beat]()
    read = loop.Reader.batch

    def slow(reader: Any, number: int, **options: Any) -> Any:
        assert number != 2 or stuck.wait(20)
        return read(reader, number, **options)

    def hear(one: Beat) -> bool:
        said.append(one)
        if "train-000000.tar" in one.place:
            stuck.set()
        return False

    monkeypatch.setattr(loop.Reader, "batch", slow)
    loop.train(config(epochs=1, hang_seconds=0.5), tiny_digits, tmp_path, CPU, lambda _: False, beats=hear)
    named = [one for one in said if ".tar" in one.place]
    assert named[0].place == "epoch 1, step 3, reading train-000000.tar"
    assert (named[0].rank, named[0].world_size) == (0, 1)


def test_a_worker_that_is_to_end_leaves_its_stacks_and_its_collectives(tmp_path: Path) -> None:
    def stuck_here() -> None:
        started.set()
        release.wait(20)

    started, release = threading.Event(), threading.Event()
    thread = threading.Thread(target=stuck_here)
    thread.start()
    started.wait()
    worker: Any = type("Worker", (), {"run_folder": tmp_path, "store": None})
    leave_traces(worker, beat(1, 9, "epoch 1, step 8, computing"))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    dist.all_reduce(torch.ones(3))
    leave_traces(worker, beat(1, 9, "epoch 1, step 9, computing"))
    dist.destroy_process_group()
    release.set()
    thread.join()
    stacks = (tmp_path / "logs" / "worker-1-stacks.txt").read_text()
    assert re.findall(r"h:1 hangs: (.*)", stacks) == [f"epoch 1, step {step}, computing" for step in (8, 9)]
    assert "in stuck_here" in stacks
    collectives = json.loads((tmp_path / "logs" / "worker-1-collectives.json").read_text())
    assert collectives["entries"][-1]["input_sizes"] == [[3]]


# --- Not finite -------------------------------------------------------------------------------------------------------


def train_poisoned(
    rank: int, world_size: int, settings: TrainConfig, data: Path, run: Path, times: int, where: str
) -> list[str]:
    """As `train_here`; before step 1 of epoch 1 the last rank's logits, or all gradients, are NaN, so many times."""
    torch.set_num_threads(1)
    events: list[str] = []
    left = [times]
    forward, add = step._forward, step.add_exactly

    def poisons(state: Any) -> bool:
        hit = left[0] > 0 and (state.epoch, state.step) == (1, 1)
        left[0] -= hit
        return hit

    def logits(worker: Any, images: Any) -> Any:
        bad = where == "logits" and rank == world_size - 1 and poisons(worker.state)
        return forward(worker, images) * (torch.nan if bad else 1.0)

    def gradients(model: Any, lanes: Any, ranks: Any) -> None:
        add(model, lanes, ranks)
        if where == "gradients" and poisons(current[0].state):
            model.head.weight.grad[0] = torch.inf

    def noting(worker: Any, batch: Any) -> None:
        current[:] = [worker]
        before(worker, batch)

    def report(event: Event) -> bool:
        events.append(text_of(event))
        return False

    current: list[Any] = []
    before, loop.train_step = loop.train_step, noting
    step._forward, step.add_exactly = logits, gradients
    try:
        assert loop.train(settings, data, run, CPU, report)
    finally:
        loop.train_step, step._forward, step.add_exactly = before, forward, add
    return [event for event in events if event]


@pytest.mark.parametrize("where", ["logits", "gradients"])
def test_skip_leaves_out_the_same_step_on_any_number_of_workers(where: str, tiny_digits: Path, tmp_path: Path) -> None:
    settings = config(nonfinite="skip", skip_budget=0.4)
    one, two = tmp_path / "one", tmp_path / "two"
    alone = train_poisoned(0, 1, settings, tiny_digits, one, 1, where)
    both = run_distributed(train_poisoned, 2, settings, tiny_digits, two, 1, where)
    said = {"logits": "rank 0, epoch 2, step 2: logits are not finite for 8 samples", "gradients": "gradients are not"}
    assert said[where] in alone[0]
    assert alone[0].endswith("its 32 samples are skipped")
    if where == "logits":
        assert both[0][0].startswith("rank 0, epoch 2, step 2: logits of another rank are not finite")
    assert weights(one) == weights(two)
    for run in (one, two):
        assert [(r["samples"], r["skipped"], r["expected"]) for r in history(run)][1] == (64, 32, 96)
        lines = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
        assert {(line["epoch"], line["reason"]) for line in lines} == {(1, "was in a step that was not finite")}
        assert len({line["key"] for line in lines}) == 32


def test_skipping_more_than_the_budget_stops(tiny_digits: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"32 broken samples found, skip_budget=0.1 of 96 allows 9"):
        train_poisoned(0, 1, config(nonfinite="skip", skip_budget=0.1), tiny_digits, tmp_path, 1, "logits")


def test_rollback_goes_back_once_and_ends_as_undisturbed(
    tiny_digits: Path,
    tmp_path: Path,
    undisturbed: Path,  # noqa: F811
) -> None:
    settings = config(nonfinite="rollback")
    said = run_distributed(train_poisoned, 2, settings, tiny_digits, tmp_path, 1, "logits")
    assert "going back to the last checkpoint" in said[0][0]
    assert said[0][1] == "continues from epoch 2, step 1 with 2 workers"
    assert weights(tmp_path) == weights(undisturbed)


def test_rollback_a_second_time_at_the_same_step_stops(tiny_digits: Path, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"epoch 2, step 2: logits .*; again, after going back"):
        train_poisoned(0, 1, config(nonfinite="rollback"), tiny_digits, tmp_path, 5, "logits")


# --- Saving -----------------------------------------------------------------------------------------------------------


def test_a_notice_makes_a_checkpoint_at_once_and_training_goes_on(
    tiny_digits: Path,
    tmp_path: Path,
    undisturbed: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "REPORT_SECONDS", 0.0)  # agree at every step
    saved: list[str] = []
    save = resume.write_checkpoint

    def write(*args: Any) -> Path:
        path = save(*args)
        saved.append(path.name)
        return path

    monkeypatch.setattr(resume, "write_checkpoint", write)

    def report(event: Event) -> LoopSignal:
        return LoopSignal.SAVE if place_of(event) == (1, 2) else LoopSignal.NOTHING

    assert loop.train(config(), tiny_digits, tmp_path, CPU, report)
    assert saved == ["0001-000000", "0001-000002", "0002-000000", "0003-000000"]
    assert weights(tmp_path) == weights(undisturbed)


def test_a_wish_to_stop_is_stronger_than_one_to_save(tiny_digits: Path, tmp_path: Path) -> None:
    assert run_distributed(_wishing, 2, tiny_digits, tmp_path) == [False, False]
    assert [path.name for path in valid_checkpoints(tmp_path / "checkpoints")[0]] == ["0000-000001"]


def _wishing(rank: int, _: int, data: Path, run: Path) -> bool:
    torch.set_num_threads(1)
    return loop.train(config(), data, run, CPU, lambda _: (LoopSignal.SAVE, LoopSignal.STOP)[rank])


# --- What is asked ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [["--workers", "2:8"], ["--workers=2:8"]])
def test_a_range_of_workers(flags: list[str]) -> None:
    run = command.parse(["openimages_v3", *flags])[0].run
    assert (run.min_workers, run.workers) == (2, 8)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"min_workers": 3, "workers": 2}, "min_workers=3: must be at most workers=2"),
        ({"nonfinite": "skip"}, "count against skip_budget, which is 0; raise it"),
        ({"hang_seconds": 0.0}, "hang_seconds=0.0: must be above 0"),
        ({"data": "s3://AKIAIOSFODNN7EXAMPLE:abc@bucket/x"}, "data: holds what looks like a credential"),
        ({"data": "s3://user:abc@bucket/x"}, "data: holds what looks like a credential"),
        ({"storage": "s3://b/x?secret_key=abc"}, "storage: holds what looks like a credential"),
        ({"weights": "hf_abcdefghijklmnopqrstuvwxyz"}, "weights: holds what looks like a credential"),
    ],
)
def test_what_does_not_go_together_is_refused_without_repeating_secrets(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("(", r"\(")) as error:
        recipe("digits").override(values).check()
    assert "abc" not in str(error.value)


@pytest.mark.parametrize("data", ["s3://anonymous@bucket/x", "s3://bucket/tokens/x?endpoint_override=http://h:1"])
def test_addresses_without_credentials_pass(data: str) -> None:
    recipe("digits").override({"data": data}).check()


def test_no_thread_holds_the_worker_once_training_is_over() -> None:
    """It would free the last tensors while Python ends, and torch then aborts the process: code -6 instead of 143."""
    heard = threading.Event()

    def hear(_: Beat) -> bool:
        heard.set()
        time.sleep(0.3)
        return False

    run = SimpleNamespace(hang_seconds=600.0)
    ranks, config = SimpleNamespace(rank=0, world_size=1), SimpleNamespace(run=run)
    worker = SimpleNamespace(moves=1, ranks=ranks, doing="", config=config, whereabouts=lambda **_: "")
    threads = set(threading.enumerate())
    with beating(lambda: worker, hear):  # type: ignore[arg-type]
        assert heard.wait(10)
    assert set(threading.enumerate()) <= threads

"""Callbacks of a program: what they hear, what they may answer, and that they change nothing of what is trained."""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

import raypaml
from raypaml.cluster.sent_callbacks import modules_of, packed, unpacked
from raypaml.recipes import recipe
from raypaml.runs.checkpoint import read_state, valid_checkpoints
from raypaml.training import loop
from raypaml.training.callbacks import CallbackHandler, as_callbacks
from tests.conftest import newest_files, train_here
from tests.reported import place_of


class Diary(raypaml.Callback):
    """Writes down what it hears, draws random numbers, and spoils what it is given."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def on_epoch(self, record: dict[str, Any]) -> None:
        self.heard.append(("epoch", record["epoch"], record["loss"]))
        record.clear()
        torch.rand(3)

    def on_step(self, values: raypaml.StepValues) -> None:
        self.heard.append(("step", values.epoch, values.step, values.loss, values.samples, values.rejected))
        torch.rand(1)

    def on_checkpoint(self, folder: Path) -> None:
        assert (folder / "COMMITTED").is_file()
        self.heard.append(("checkpoint", folder.name))

    def on_end(self, ending: str) -> None:
        self.heard.append(("end", ending))


class Answers(raypaml.Callback):
    """Answers an epoch as told, and counts the epochs in its state."""

    def __init__(self, answers: dict[int, Any]) -> None:
        self.answers, self.count = answers, 0

    def on_epoch(self, record: dict[str, Any]) -> Any:
        self.count += 1
        answer = self.answers.get(record["epoch"])
        if isinstance(answer, Exception):
            raise answer
        return signal.raise_signal(answer) if isinstance(answer, signal.Signals) else answer

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


def train(data: Path, storage: Path, *callbacks: raypaml.Callback, epochs: int = 3, **values: Any) -> raypaml.Run:
    values = {"name": "a", "workers": 1, "warmup_epochs": 1, "delta_rel": 2.0, **values}
    return raypaml.Run.train(
        "digits", callbacks=callbacks, progress=False, epochs=epochs, data=data, storage=storage, **values
    )


def test_callbacks_hear_everything_and_change_nothing(tiny_digits: Path, tmp_path: Path) -> None:
    diary = Diary()
    values = {"data": str(tiny_digits), "storage": str(tmp_path), "epochs": 2, "warmup_epochs": 1, "delta_rel": 2.0}
    base = recipe("digits").override(values)
    heard = raypaml.Run.open(train_here(base.override({"name": "heard"}), diary).folder)
    alone = raypaml.Run.open(train_here(base.override({"name": "alone"})).folder)
    assert newest_files(heard.folder) == newest_files(alone.folder)
    for name in ("loss", "validation_mean_ap", "rejected"):
        assert heard.records[name].to_pylist() == alone.records[name].to_pylist()
    steps = [one for one in diary.heard if one[0] == "step"]
    assert [one[1:3] for one in steps] == [(epoch, step) for epoch in range(2) for step in range(3)]
    for epoch, record in enumerate(heard.records.to_pylist()):
        mine = [one for one in steps if one[1] == epoch]
        assert sum(one[3] * one[4] for one in mine) / sum(one[4] for one in mine) == pytest.approx(record["loss"])
        assert sum(one[5] for one in mine) == record["rejected"]
        assert diary.heard.index(mine[-1]) < diary.heard.index(("epoch", epoch, record["loss"]))
    assert [one[1] for one in diary.heard if one[0] == "checkpoint"] == ["0001-000000", "0002-000000"]
    assert diary.heard[-1] == ("end", "finished")


def test_the_state_in_a_checkpoint_knows_every_step_before_it(
    tiny_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Steps(raypaml.Callback):
        def __init__(self) -> None:
            self.heard: list[list[int]] = []

        def on_step(self, values: raypaml.StepValues) -> None:
            self.heard.append([values.epoch, values.step])

        def state_dict(self) -> dict[str, Any]:
            return {"heard": self.heard}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.heard = state["heard"]

    monkeypatch.setattr(loop, "REPORT_SECONDS", 0.0)
    places = {"data": str(tiny_digits), "storage": str(tmp_path), "name": "a", "workers": 1}
    asked = recipe("digits").override(places | {"epochs": 1})
    stopped, going_on = Steps(), Steps()
    train_here(asked, stopped, report=lambda event: place_of(event) == (0, 2))
    assert stopped.heard == [[0, 0], [0, 1]]
    train_here(asked, going_on)
    assert going_on.heard == [[0, 0], [0, 1], [0, 2]]


def test_a_method_of_the_object_is_heard_and_leaves_torch_as_it_was() -> None:
    heard: list[int] = []
    one = raypaml.Callback()
    one.on_step = lambda values: heard.append(values.samples)  # type: ignore[method-assign]
    one.on_epoch = lambda record: raypaml.Stop(record["epoch"])  # type: ignore[method-assign]
    two = raypaml.Callback()
    two.on_step = lambda values: torch.set_grad_enabled(False)  # type: ignore[assignment, method-assign]  # noqa: ARG005
    calls = CallbackHandler([one, two])
    calls.note_step(0, 0, torch.tensor(1.0), 4, torch.zeros(4, 2, dtype=torch.bool))
    assert calls.on_epoch({"epoch": 0}) == ("callback Callback", False)
    assert calls.on_epoch({"epoch": 7}) == ("callback Callback: 7", False)
    assert heard == [4]
    assert torch.is_grad_enabled()


def test_one_callback_or_an_iterator_of_several_is_taken() -> None:
    diary, answers = Diary(), Answers({})
    assert as_callbacks(diary) == (diary,)
    assert as_callbacks(one for one in (diary, answers)) == (diary, answers)
    for wrong in (None, Diary, [Diary], "abc", print):
        with pytest.raises(ValueError, match=r"callbacks: .* is none; derive it from raypaml.Callback, and give an ob"):
            as_callbacks(wrong)


def test_a_worker_without_the_module_of_a_callback_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_callback.py").write_text("import raypaml\nclass Own(raypaml.Callback):\n    pass\n")
    with monkeypatch.context() as path:
        path.syspath_prepend(tmp_path)
        own = importlib.import_module("own_callback").Own()
        sent = packed([own, own])
        assert modules_of([own, Diary()]) == ("own_callback", "tests")
        first, second = unpacked(sent)
        assert first is second
        ray.cloudpickle.register_pickle_by_value(sys.modules["own_callback"])
        assert modules_of([own, Diary()]) == ("tests",)  # it is sent, so that nodes may lack it
        by_value = packed([own])
        ray.cloudpickle.unregister_pickle_by_value(sys.modules["own_callback"])
    del sys.modules["own_callback"]
    importlib.invalidate_caches()
    with pytest.raises(ValueError, match=r"No module named 'own_callback'.*register_pickle_by_value\(own_callback\)"):
        unpacked(sent)
    assert type(unpacked(by_value)[0]).__qualname__ == "Own"
    (tmp_path / "own_callback.py").write_text("undefined\n")
    with monkeypatch.context() as path:
        path.syspath_prepend(tmp_path)
        with pytest.raises(ValueError, match=r"NameError: name 'undefined' .*register_pickle_by_value\(MODULE\)"):
            unpacked(sent)


def test_all_hear_of_the_end_though_one_fails() -> None:
    class Fails(raypaml.Callback):
        def on_end(self, ending: str) -> None:
            raise OSError(f"no disk when {ending}")

    diary = Diary()
    with pytest.raises(
        raypaml.CallbackError, match=r"Fails.on_end failed at the start: OSError: no disk when finished"
    ):
        CallbackHandler([Fails(), diary]).end("finished")
    assert diary.heard == [("end", "finished")]


@pytest.mark.cluster
def test_a_stop_finishes_the_run_and_more_epochs_lift_it(tiny_digits: Path, tmp_path: Path) -> None:
    run = train(tiny_digits, tmp_path, Answers({0: raypaml.Stop("enough")}))
    said = "stopped after epoch 1 of 3: callback Answers: enough"
    assert run.result is not None
    assert (run.is_finished, run.records.num_rows, run.result["stopped_early"]) == (True, 1, said)
    (run.folder / "result.json").unlink()  # as if killed before the test was written
    assert train(tiny_digits, tmp_path).records.num_rows == 1
    more = train(tiny_digits, tmp_path, epochs=4)
    assert more.result is not None
    assert (more.records.num_rows, more.result["stopped_early"]) == (4, None)


def test_a_saved_epoch_is_kept_and_the_state_goes_on(tiny_digits: Path, tmp_path: Path) -> None:
    first, second = Answers({0: raypaml.Save(), 1: signal.SIGTERM}), Answers({})
    stopped = train(tiny_digits, tmp_path, first, epochs=4)
    assert (stopped.stopped, stopped.is_finished, first.count) == (signal.SIGTERM, False, 2)
    assert "stopped by SIGTERM" in repr(stopped)
    finished = train(tiny_digits, tmp_path, second, epochs=4)
    assert (finished.is_finished, second.count) == (True, 4)
    checkpoints, _ = valid_checkpoints(finished.folder / "checkpoints")
    assert checkpoints[0].name == "0001-000000"
    assert read_state(checkpoints[-1]).callbacks == {"Answers": {"count": 4}}


@pytest.mark.parametrize("answer", [ZeroDivisionError("no"), "stop"])
def test_the_failure_of_a_callback_names_it(answer: Any, tiny_digits: Path, tmp_path: Path) -> None:
    diary = Diary()
    said = (
        r"callback Answers.on_epoch failed at epoch 1: (ZeroDivisionError: no \(.*:\d+\)|TypeError: it answered 'stop')"
    )
    with pytest.raises(raypaml.CallbackError, match=said) as failed:
        train(tiny_digits, tmp_path, Answers({0: answer}), diary)
    assert "Traceback" in failed.value.__notes__[0]
    assert diary.heard[-1] == ("end", "failed")
    with pytest.raises(raypaml.UserError, match=r"derive it from raypaml\.Callback"):
        train(tiny_digits, tmp_path, Diary)  # type: ignore[arg-type]


def test_what_cannot_travel_is_refused_before_anything_starts(tiny_digits: Path, tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        answers = Answers({0: file})
        with pytest.raises(raypaml.UserError, match="callback Answers: cannot be sent to the workers"):
            train(tiny_digits, tmp_path, answers, workers=2)
    assert not (tmp_path / "a" / "config.json").exists()


PROGRAM = """
import json, os, sys
import ray
import raypaml

class Counts(raypaml.Callback):
    def __init__(self, answers):
        self.count, self.answers, self.heard = 0, answers, []

    def on_epoch(self, record):
        self.count += 1
        self.heard.append(record["epoch"])
        answer = self.answers.get(record["epoch"])
        return 1 / 0 if answer == "fail" else answer

    def on_step(self, values):
        self.heard.append(values.samples)

    def on_checkpoint(self, folder):
        self.heard.append(folder.name)

    def on_end(self, ending):
        with open("heard", "a") as file:
            file.write(json.dumps([os.getpid(), ending, self.count, self.heard]) + chr(10))

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]

ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
settings = json.loads(sys.argv[1])
try:
    raypaml.Run.train("digits", callbacks=[Counts({1: "fail"})], progress=False, **settings)
except raypaml.CallbackError as error:
    print(error)
callbacks = [Counts({1: raypaml.Save(), 3: raypaml.Stop("enough")})]
run = raypaml.Run.train("digits", callbacks=callbacks, progress=False, **settings)
print(os.getpid(), callbacks[0].count, run.result["stopped_early"], sep=chr(10))
"""
"""As in a notebook: a class that is in no file, beside a Ray of one's own; what is heard goes into a file."""


@pytest.mark.cluster
def test_callbacks_of_a_notebook_are_called_in_the_first_of_two_workers(tiny_digits: Path, tmp_path: Path) -> None:
    settings = {"data": str(tiny_digits), "storage": str(tmp_path / "runs"), "name": "a", "workers": 2, "epochs": 6}
    settings |= {"warmup_epochs": 1, "delta_rel": 2.0}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(settings)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    failed, process, count, stopped = done.stdout.splitlines()
    assert failed == "callback Counts.on_epoch failed at epoch 2: ZeroDivisionError: division by zero (<string>:14)"
    assert (int(count), stopped) == (0, "stopped after epoch 4 of 6: callback Counts: enough")
    first, second = (json.loads(line) for line in (tmp_path / "heard").read_text().splitlines())
    assert len({int(process), first[0], second[0]}) == 3
    assert first[1:3] == ["failed", 2]
    assert second[1:3] == ["finished", 4]  # of which one was counted before, and came with the checkpoint
    assert [one for one in second[3] if isinstance(one, int)] == [16, 16, 16, 1, 16, 16, 16, 2, 16, 16, 16, 3]
    assert "0002-000000" in second[3]
    checkpoints, _ = valid_checkpoints(tmp_path / "runs" / "a" / "checkpoints")
    assert "0002-000000" in [path.name for path in checkpoints]

"""What a search makes of its trials' faults, without Ray: lines, records, room, exit code."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import ray
from ray.core.generated import gcs_pb2
from ray.tune.integration.ray_train import TuneReportCallback

from raypaml import tune
from raypaml.cluster import ray_tune
from raypaml.cluster.channel import Failure, Lost, Started, _Mailbox
from raypaml.cluster.epochs_in_order import EpochsInOrder
from raypaml.cluster.lost_workers import LostWorkers, told_of_limit
from raypaml.cluster.on_worker import RunReporter
from raypaml.cluster.trial import HOME_SECONDS, TrialReporter
from raypaml.cluster.trial_news import TrialNews
from raypaml.cluster.worker_errors import as_user_error
from raypaml.files import write_json
from raypaml.recipes import recipe
from raypaml.runs.events import EpochReport, LoopSignal, Message, Resumed, StepReport
from raypaml.search.faults import read_faults
from raypaml.search.queue import Queue
from raypaml.search.search_folder import SearchPlan, note, outcome
from raypaml.search.search_page import write_search_page
from raypaml.search.search_result import Verdict, trial_table
from raypaml.search.spaces import parse_search
from raypaml.search.trial_rows import write_csv
from raypaml.search.trials import Trial
from raypaml.training.watch import Beat, Watch
from tests.whole_records import EPOCH_RECORD

DIED = RuntimeError("The actor died unexpectedly.\nclass_name: W")
TAKEN = SimpleNamespace(cause=SimpleNamespace(preempted=True))


def step(done: int) -> StepReport:
    figures: dict[str, Any] = {"loss": 1.0, "rejected": 0, "rejection_rate": 0.0, "learning_rate": 0.1}
    figures |= {"samples_left": 1, "images_per_second": 1.0, "epochs": 9, "steps": 4}
    figures |= {"data_wait_share": 0.0, "memory_bytes": 1}
    return StepReport(epoch=done // 4, step=done % 4, **figures)


class Told:
    """A search of one trial, whose workers have said these events."""

    def __init__(self, storage: Path, received: int = 0) -> None:
        base = recipe("digits").override({"name": "s", "storage": str(storage)})
        self.search = SearchPlan(base=base, spaces=tuple(parse_search("lr=0.1|0.2", base, {}, None)))
        self.trial, self.lines, self.events = Trial((("lr", 0.1),), 0), list[str](), list[Any]()
        self.channel, display, self.signals = (
            MagicMock(),
            MagicMock(say=self.lines.append),
            MagicMock(received=received),
        )
        self.channel.of().take = lambda: [self.events.pop(0) for _ in list(self.events)]
        self.channel.of().put = self.events.append
        self.news = TrialNews(self.search, self.channel, display, self.signals)
        self.news.start(self.trial)

    def hear(self, *events: Any) -> list[str]:
        self.events += events
        self.lines.clear()
        self.news._polled = 0.0
        self.news.poll()
        return list(self.lines)

    @property
    def faults(self) -> list[tuple[str, bool, int | None]]:
        found = read_faults(self.search.run_folder(self.trial))
        return [(fault["cause"], fault["preempted"], fault["steps"]) for fault in found]


def test_a_loss_is_one_line_and_what_is_trained_again_is_known_when_it_goes_on(tmp_path: Path) -> None:
    told = Told(tmp_path)
    assert told.hear(Started(), step(3), step(11), Lost("lost: rank 0 (x)", "rank 0 (x)", False)) == [
        "lr=0.1: lost: rank 0 (x)"
    ]
    assert told.faults == []
    said = told.hear(Started(), Resumed("continues from epoch 2, step 3", 1, 2))
    assert said == ["lr=0.1: continues from epoch 2, step 3; at least 5 steps to train again"]
    assert told.faults == [("rank 0 (x)", False, 5)]
    assert told.hear(Resumed("continues", 1, 2), Message("m")) == ["lr=0.1: continues", "lr=0.1: m"]
    assert len(told.faults) == 1


def test_workers_that_ended_in_time_were_taken_away(tmp_path: Path) -> None:
    told = Told(tmp_path)
    told.hear(Started(), Started(), step(9))  # two workers
    told.hear(Started(), Started(), Resumed("continues from epoch 3, step 1", 2, 0))
    assert told.faults == [("its node was taken away", True, 1)]


def test_lost_before_the_first_checkpoint_lost_twice_and_lost_for_good(tmp_path: Path) -> None:
    told = Told(tmp_path)
    told.hear(Started(), step(2), Lost("lost: a", "a", False), Lost("lost: b", "b", True), Started())
    assert told.faults == [("a", False, 0)]
    assert told.hear(step(1)) == ["lr=0.1: starts from its beginning; at least 2 steps to train again"]
    told.events.append(Lost("lost: c", "c", False))
    told.news.end(told.trial)
    assert told.faults == [("a", False, 0), ("b", True, 2), ("c", False, None)]
    one = outcome(told.search, told.trial)
    table = trial_table(told.search, [one])
    assert "lost: lr=0.1: a; hardly a step trained again\n" in table
    assert table.endswith("lost: lr=0.1: c; did not go on")
    write_csv(told.search, [one])
    (row,) = csv.DictReader((told.search.folder / "trials.csv").read_text().splitlines())
    assert row["faults"] == "3"
    write_search_page(told.search, [one], Verdict(best=None, own=None, text="none"))
    page = (told.search.folder / "report.html").read_text()
    assert re.search(r"<li>lr=0\.1, 20\S+: b; at least 2 steps trained again</li>", page)


def test_a_lost_process_of_a_trial_is_put_where_losses_are_counted(tmp_path: Path) -> None:
    told = Told(tmp_path)
    told.channel.of().losses = lambda: 8
    told.news.process_lost(told.trial, "The actor died unexpectedly.", preempted=True, recovers=True)
    told.news.process_lost(told.trial, "it", preempted=False, recovers=True)
    loss, last = told.events
    assert last.text == "lost: its process (it); there are more losses than --max-failures 8 allows"
    assert loss.text == ("lost: its process (The actor died unexpectedly.); all start again from the last checkpoint")
    assert (loss.preempted, last.preempted) == (True, False)


def test_what_the_workers_of_a_lost_process_held_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, other, actor, nil = b"\1\0\0\0", b"\2\0\0\0", 16 * b"a", ray.ActorID.nil().binary()
    rows = [(here, actor, True), (here, actor, False), (here, nil, True), (other, actor, True)]
    groups = [
        gcs_pb2.PlacementGroupTableData(
            placement_group_id=18 * bytes([number]), creator_job_id=job, creator_actor_id=maker, creator_actor_dead=dead
        ).SerializeToString()
        for number, (job, maker, dead) in enumerate(rows)
    ]
    removed: list[Any] = []
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_job_id=here.hex))
    accessor = MagicMock(get_placement_group_table=lambda: groups)
    monkeypatch.setattr("ray._private.state.state", MagicMock(_connect_and_get_accessor=lambda: accessor))
    monkeypatch.setattr("raypaml.cluster.orphans.remove_placement_group", removed.append)
    told = Told(tmp_path)
    told.hear(Started())
    assert removed == [], "nothing was lost"
    told.channel.of().losses = lambda: 0
    told.news.process_lost(told.trial, "it", preempted=False, recovers=True)
    told.hear()
    assert [group.id.binary() for group in removed] == [18 * b"\0"]


def test_a_signal_stops_what_is_at_work_and_does_not_wait_for_what_waits(tmp_path: Path) -> None:
    told = Told(tmp_path)
    told.hear(Started())
    assert not told.news.is_over
    told.signals.received = 15
    assert told.hear() == ["stopping all trials after a step, with a checkpoint; once more to stop at once"]
    assert told.hear() == []
    told.channel.of().stop.assert_called_once_with()
    assert not told.news.is_over
    told.hear(Lost("lost: a", "a", False))
    assert told.news.is_over


def test_the_controller_reports_a_loss_once_and_not_one_that_is_no_chance() -> None:
    channel = MagicMock(failure=lambda: None)
    workers = LostWorkers(channel, 1, 3)
    for error in (DIED, DIED, RuntimeError("another actor died"), TAKEN):
        workers.after_exception(None, {0: error})
    sent = [call.args[0] for call in channel.put.call_args_list]
    assert [one.preempted for one in sent] == [False, False, True]
    goes_on = "all start again from the last checkpoint"
    limit = "there are more losses than --max-failures 3 allows"
    assert [one.text.rpartition("; ")[2] for one in sent] == [goes_on, limit, limit]
    channel.failure = lambda: ValueError("its settings")
    with pytest.raises(ValueError, match="its settings"):
        workers.after_exception(None, {0: DIED})
    assert str(told_of_limit(RuntimeError("x"), 3)) == f"x; {limit}; give the command again, with this --name"
    assert str(told_of_limit(ValueError("x"), 3)) == "x"
    died: Any = RuntimeError("A worker health check failed.\nWorker info: Worker(\n  actor=...")
    died.health_check_failure = DIED
    said = str(told_of_limit(as_user_error({0: died}), 3))
    assert said == f"rank 0: The actor died unexpectedly; {limit}; give the command again, with this --name"


@pytest.mark.parametrize(
    ("error", "is_lasting"),
    [(ray.exceptions.RayActorError(), False), (ConnectionResetError(), False), (ValueError("its settings"), True)],
)
def test_what_ray_raises_where_workers_are_ended_is_no_reason_to_give_up(error: Exception, is_lasting: bool) -> None:
    channel = MagicMock()
    RunReporter(channel, private=False).failed(0, error)
    assert channel.put.called == is_lasting


def test_a_mailbox_counts_losses_and_ends_workers_that_are_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[Any] = []
    monkeypatch.setattr(ray, "kill", killed.append)
    watch = Watch(10)
    mailbox = _Mailbox(watch)

    def beat(rank: int, ago: float) -> None:
        one = Beat(rank=rank, world_size=2, process=f"h:{rank}", moves=1, place="here")
        watch.hear(one, time.monotonic() - ago)

    for rank in (0, 1):
        mailbox.put(Started(f"h:{rank}", f"actor {rank}"))  # type: ignore[arg-type]
        beat(rank, 20)
    for ago in (15, 10, 5, 1):  # rank 0 waits for rank 1, which is silent
        beat(0, ago)
    (line,) = [event.text for event in mailbox.take() if isinstance(event, Message)]
    assert re.match(r"rank 1 \(h:1\) hangs, no heartbeat for 2\d s", line), line  # 20, and what the test took
    assert killed == ["actor 1"]
    mailbox.put(Lost("lost", "rank 1", False))
    mailbox.put(Lost("lost", "rank 1", True))
    assert not mailbox.beat(Beat(rank=0, world_size=2, process="h:0", moves=1, place="here"))
    assert (mailbox.losses(), watch.known, mailbox.failure()) == (1, {}, None), (
        "rank 0 would be missed while others wait"
    )
    mailbox.put(Failure(ValueError("x")))
    assert str(mailbox.failure()) == "x"


def test_the_process_of_the_mailboxes_is_a_small_one() -> None:
    code = "import sys, raypaml.cluster.channel; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_a_lost_worker_sends_before_it_is_ended_is_not_taken_for_its_successor(tmp_path: Path) -> None:
    told, mailbox = Told(tmp_path), _Mailbox(Watch(10))
    for event, sender in [
        (Started("h:1", "actor"), "h:1"),  # type: ignore[arg-type]
        (step(9), "h:1"),
        (Lost("lost: its process", "its process", False), "h:0"),
        (step(10), "h:1"),
        (Started("h:2", "actor"), "h:2"),  # type: ignore[arg-type]
        (Resumed("continues", 2, 0), "h:2"),
        (step(9), "h:2"),
    ]:
        mailbox.put(event, sender)
    assert told.hear(*mailbox.take())[1:] == ["lr=0.1: continues; at least 1 step to train again"]
    assert told.faults == [("its process", False, 1)]


def test_epochs_whose_reports_were_lost_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[int] = []
    monkeypatch.setattr(TuneReportCallback, "__init__", lambda _: None)
    monkeypatch.setattr(
        TuneReportCallback, "after_report", lambda _, __, metrics, ___: passed.append(metrics[0]["epoch"])
    )
    history = [EPOCH_RECORD | {"epoch": number} for number in range(4)]
    monkeypatch.setattr("raypaml.cluster.epochs_in_order.read_history", lambda _: history)
    epochs = EpochsInOrder(tmp_path, lambda record: {"epoch": record["epoch"] + 1}, 1)  # type: ignore[typeddict-item]
    for epoch in (2, 2, 1, 5):
        epochs.after_report(None, [{"epoch": epoch}], None)
    assert passed == [2, 3, 4, 5]


def test_a_trial_saves_where_the_node_of_its_own_process_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told, reported, now, drained = Told(tmp_path), list[Any](), [100.0], dict[str, int]()
    folder = told.search.run_folder(told.trial)
    folder.mkdir(parents=True)
    monkeypatch.setattr("raypaml.cluster.trial.time.monotonic", lambda: now[0])
    monkeypatch.setattr("ray.get_runtime_context", MagicMock(return_value=SimpleNamespace(get_node_id=lambda: "w")))
    monkeypatch.setattr("ray.train.report", reported.append)
    monkeypatch.setattr("ray._private.state.state", MagicMock(get_draining_nodes=lambda: drained))
    run = MagicMock(on_worker=lambda *_: lambda _: LoopSignal.NOTHING)
    report = TrialReporter(told.search, tmp_path, [], run, "home").on_worker(0, folder)
    assert report is not None
    assert report(step(1)) == LoopSignal.NOTHING
    drained["home"] = 0
    answers = []
    for seconds in (1.0, HOME_SECONDS, HOME_SECONDS):
        now[0] += seconds
        answers.append(report(step(2)))
    assert answers == [LoopSignal.NOTHING, LoopSignal.SAVE, LoopSignal.NOTHING]
    report(EpochReport(EPOCH_RECORD, 9))
    assert [one["epoch"] for one in reported] == [EPOCH_RECORD["epoch"] + 1]
    note(told.search, told.trial, "stopped", {"epochs": 1})
    assert report(step(3)) == LoopSignal.STOP
    run.on_worker = lambda *_: None
    assert TrialReporter(told.search, tmp_path, [], run, "").on_worker(0, folder) is None


def test_there_is_room_for_as_many_as_the_cluster_holds_now(monkeypatch: pytest.MonkeyPatch) -> None:
    cpus, said = [4], list[str]()
    monkeypatch.setattr(ray_tune.session, "cpus", lambda: cpus[0])
    run = recipe("digits").override({"workers": 2}).run
    room = ray_tune.Room(run, False, said.append)
    assert [room.trials(), room.trials()] == [2, 2]
    cpus[0] = 9
    assert room.trials() == 4
    cpus[0] = 1
    assert room.trials() == 1, "a trial waits, for a node may come back"
    assert said == [f"{count} at once, each with 2 CPUs" for count in (2, 4, 0)]
    monkeypatch.setenv("RAYPAML_MAY_GROW", "1")
    cpus[0] = 6
    assert room.trials() == 6, "three run, and three show the cluster that it is to grow"


def test_no_more_trials_are_suggested_than_there_is_room_for(tmp_path: Path) -> None:
    told = Told(tmp_path)
    queue = Queue(told.search, [Trial((("lr", rate),), 0) for rate in (0.1, 0.2, 0.3)])
    room = MagicMock()
    room.trials.side_effect = [1, 1, 2]
    conductor = ray_tune._Conductor(queue, None, room, told.news)
    found = [conductor.suggest("") for _ in range(3)]
    assert [one and one["values"] for one in found] == [{"lr": 0.1}, None, {"lr": 0.2}]  # type: ignore[index]
    told.signals.received = 2
    assert conductor.suggest("") == "FINISHED"


@pytest.mark.parametrize(("error", "code"), [("lost", 1), ("its settings", 0), ("", 0)])
def test_a_trial_that_may_go_better_makes_the_exit_code_1(
    error: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = Told(tmp_path)
    if error:
        note(told.search, told.trial, "error", {"error": error, "may_go_better": error == "lost"})
    one = outcome(told.search, told.trial)
    search = MagicMock(stopped=0, plan=told.search, outcomes=[one], verdict="v", folder=tmp_path)
    monkeypatch.setattr("raypaml.api.search.Search", MagicMock(run_asked=lambda *_: search))
    assert tune.main(["digits", "--search", "lr=0.1|0.2", "--max-failures", "3", "--hang-seconds", "60"]) == code
    said = capsys.readouterr()
    assert ("1 trial failed and may succeed in another try" in said.err) == bool(code)
    assert (f"failed: lr=0.1: {error}" in said.out) == bool(error)
    assert "no effect" not in said.err


def test_an_error_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    told = Told(tmp_path)
    folder = told.search.run_folder(told.trial)
    folder.mkdir(parents=True)
    write_json(folder / "error.json", {"error": "its process died (x)"})
    one = outcome(told.search, told.trial)
    assert (one.state, one.may_go_better, one.faults) == ("failed", False, [])

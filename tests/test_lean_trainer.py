"""Ray Train on a private Ray: what it leaves out of what Ray Train starts, and that Ray has what it leaves out."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from ray._private import ray_constants
from ray._private.node import Node
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal import constants
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import create_scaling_policy
from ray.train.v2._internal.execution.worker_group import state, worker_group

from raypaml.cluster import _DEFAULTS, lean_trainer, lost_ray, on_worker, private_ray, ray_train, session, trainers
from raypaml.cluster.cluster_trainer import ClusterTrainer
from raypaml.cluster.lean_trainer import LeanTrainer
from raypaml.runs.events import LoopSignal, Message
from tests.test_tracking import STEP


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")  # of its own defaults
def test_no_actor_looks_after_datasets_and_placement_groups() -> None:
    names = []
    for made in (TorchTrainer, lean_trainer.LeanTrainer):
        trainer = made(print, scaling_config=ScalingConfig(num_workers=2))
        names.append({type(one).__name__ for one in trainer._create_default_callbacks()})
    assert names[0] - names[1] == {"DatasetsCallback", "PlacementGroupCleanerCallback"}
    assert names[1] - names[0] == {"_NoDatasets"}


@pytest.mark.parametrize(("workers", "left_out"), [(2, True), ((1, 2), False)])
def test_an_autoscaler_is_asked_only_by_a_run_that_may_grow(
    workers: int | tuple[int, int], left_out: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = MagicMock()
    monkeypatch.setattr(lean_trainer, "ray", ray)
    scaling = ScalingConfig(num_workers=workers)
    trainer = lean_trainer.LeanTrainer(print, scaling_config=scaling)
    trainer._initialize_and_run_controller(scaling_policy=create_scaling_policy(scaling))
    ray.remote.assert_called_once_with(num_cpus=0)  # no variables of its own: a process that is ready can be taken
    policy = ray.remote.return_value.return_value.remote.call_args.kwargs["scaling_policy"]
    assert isinstance(policy, lean_trainer._FixedAlone) == left_out
    if left_out:
        policy.after_controller_start(None)
        assert policy.make_decision_for_non_running_worker_group().num_workers == 2  # which asserts a client elsewhere


def test_workers_are_given_no_variables_which_they_inherit(monkeypatch: pytest.MonkeyPatch) -> None:
    names, found = set(constants.ENV_VARS_TO_PROPAGATE), []
    monkeypatch.setattr(constants, "ENV_VARS_TO_PROPAGATE", names)
    monkeypatch.setattr(TrainController, "__init__", lambda _self, **_: found.append(names.copy()))
    for module, name in ((state, "_shutdown_workers"), (state, "_shutdown_sync_actor")):
        monkeypatch.setattr(module, name, None)  # as before, afterwards
    monkeypatch.setattr(worker_group, "SynchronizationActor", None)
    lean_trainer._Controller()
    assert found == [set()]


def test_workers_start_without_an_actor_for_reports_and_end_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ray's own classes use what stands in their place; a hung worker was asked to end, for five seconds."""
    test_workers_are_given_no_variables_which_they_inherit(monkeypatch)
    killed: list[str] = []
    monkeypatch.setattr("ray.kill", killed.append)
    builder = state.WorkerGroupStateBuilder().with_workers([SimpleNamespace(actor=name) for name in "ab"])
    builder.with_sync_actor(worker_group.SynchronizationActor.options(label_selector={}).remote(timeout_s=None))
    builder.with_placement_group_handle(MagicMock())
    started = builder.build()
    assert isinstance(pickle.loads(pickle.dumps(started.sync_actor)), lean_trainer._NoActor)
    started.shutdown()
    assert killed == ["a", "b"]
    started.placement_group_handle.shutdown.assert_called_once_with()


def test_neither_a_dashboard_nor_a_log_monitor_is_started() -> None:
    before = Node.start_api_server, Node.start_log_monitor
    node: Any = object()  # of which Ray's own methods would ask something
    with private_ray._without_dashboard():
        assert Node.start_api_server(node, include_dashboard=False, raise_on_failure=False) is None
        assert Node.start_log_monitor(node) is None
    assert (Node.start_api_server, Node.start_log_monitor) == before


def test_what_a_worker_of_a_private_ray_starts_joins_a_cluster_with_its_own_variables(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It inherits those of the private Ray: the token, and that nobody foresees preemptions."""
    monkeypatch.delenv(private_ray.PRIVATE, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "theirs")
    before, seen = dict(os.environ), []
    monkeypatch.setattr(session, "_join_cluster", lambda *_: seen.append(dict(os.environ)))
    monkeypatch.setattr(lost_ray, "_places", lambda _: [])
    monkeypatch.setattr("ray.shutdown", lambda: None)
    for folder in (tmp_path / "private", tmp_path / "private" / "within"):
        folder.mkdir()
        for name, value in private_ray._variables(folder).items():
            monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
        assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(folder / "token")
        assert os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] == "0"
        assert "RAY_AUTH_TOKEN" not in os.environ
        inherited = dict(os.environ)
        with session.join("127.0.0.1:1") as private:
            assert not private
        assert seen.pop() == before | {name: os.environ[name] for name in _DEFAULTS} | lost_ray.patient_ray()
        assert dict(os.environ) == inherited


@pytest.mark.parametrize("private", [True, False])
def test_preemptions_are_asked_for_elsewhere_than_on_a_private_ray(
    private: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    notice = SimpleNamespace(preempted_node_ids=["a"])
    monkeypatch.setattr("ray.train.get_preemption_info", lambda: notice)
    monkeypatch.setattr("ray.get_runtime_context", MagicMock())
    channel = MagicMock(failure=lambda: None, put=lambda _: False)
    report = on_worker.RunReporter(channel, private).on_worker(1, tmp_path)
    assert report is not None
    assert report(STEP) == (LoopSignal.NOTHING if private else LoopSignal.SAVE)
    assert trainers.trainer_class(private) is (LeanTrainer if private else ClusterTrainer)


def test_a_ray_that_is_not_known_is_started_and_used_as_it_documents(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing of its insides is touched, and what that means is said in one line."""
    monkeypatch.setattr("ray.__version__", "2.61.0")
    monkeypatch.delenv(private_ray.PRIVATE, raising=False)
    before = Node.start_api_server, ray_constants.ENABLE_RAY_CLUSTER
    auth, found = set(os.environ), list[Any]()

    def init(**options: Any) -> None:
        found.append((options["address"], Node.start_api_server, ray_constants.ENABLE_RAY_CLUSTER))
        found.append((trainers.torch_config(), trainers.trainer_class(False)))
        found.append({name for name in os.environ if name.startswith("RAY_AUTH")} - auth)

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr(lost_ray, "_places", lambda _: [])
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with session.join() as private:
        assert found == [("local", *before), (None, TorchTrainer), set()]
        assert not private
    assert "Ray 2.61.0 listens on its default addresses" in capsys.readouterr().err


def test_what_the_end_needs_is_imported_once_while_workers_train(monkeypatch: pytest.MonkeyPatch) -> None:
    threading = MagicMock()
    monkeypatch.setattr(ray_train, "threading", threading)
    ray_train._import_conclusion.cache_clear()
    channel = MagicMock()
    for events, count in (([Message("rank 0 starts")], 0), ([STEP, STEP], 2), ([STEP], 2)):
        channel.take.return_value = events
        ray_train._show(channel, MagicMock(), MagicMock())
        assert threading.Thread.call_count == count
    names = [call.kwargs["args"][0] for call in threading.Thread.call_args_list]
    assert names == ["raypaml.run_report.conclude", "scipy.ndimage"]

"""Ray Train on a cluster: how many workers start is decided by the nodes of now."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, Mock

import pytest
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import _AutoscalingCoordinatorActor
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, create_scaling_policy
from ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client import (
    TrainAutoscalingCoordinatorClient,
)

from raypaml.cluster import cluster_trainer

NODES = [{"NodeID": name, "Alive": True, "Resources": {"CPU": 1.0}} for name in ("a", "b")]


def given_policy(scaling: ScalingConfig, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The policy that the controller gets."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(TorchTrainer, "_initialize_and_run_controller", lambda _self, **asked: given.update(asked))
    trainer = cluster_trainer.ClusterTrainer(print, scaling_config=scaling)
    trainer._initialize_and_run_controller(scaling_policy=create_scaling_policy(scaling))
    return given["scaling_policy"]


class _Coordinator:
    """Ray's actor, which still counts a node that is lost, until it looks."""

    def __init__(self) -> None:
        self.nodes: dict[str, dict[str, float]] = {"head": {"CPU": 1.0}, "lost": {"CPU": 1.0}}
        self.get_reserved_resources = MagicMock()
        self.get_reserved_resources.remote = self._answer

    def _answer(self, _requester: str, recompute: bool = False) -> dict[str, dict[str, float]]:
        if recompute:
            self.nodes = {"head": {"CPU": 1.0}}
        return self.nodes


def test_a_node_that_is_lost_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own policy asked for its CPU until the actor looked, up to 20 seconds later."""
    policy = given_policy(ScalingConfig(num_workers=(1, 2)), monkeypatch)
    monkeypatch.setattr("ray.get", lambda answer, **_: answer)
    monkeypatch.setattr("ray.wait", lambda answers, **_: (answers, []))
    for one, workers in ((ElasticScalingPolicy(policy.scaling_config), 2), (policy, 1)):
        one._requester_id = "run"
        one._coordinator_client = MagicMock(_autoscaling_coordinator=_Coordinator())
        assert one.make_decision_for_non_running_worker_group().num_workers == workers


@pytest.mark.parametrize("workers", [(1, 2), 2])
def test_a_command_given_again_takes_over_what_its_killed_one_asked_for(
    workers: int | tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Ray's own policies it waited three minutes for that request to expire, or had nodes added for both."""
    sent: list[Any] = []
    coordinator = _AutoscalingCoordinatorActor(lambda: 0.0, sent.append, lambda: NODES)
    ask = SimpleNamespace(remote=coordinator.request_resources)
    monkeypatch.setattr(TrainAutoscalingCoordinatorClient, "_autoscaling_coordinator", Mock(request_resources=ask))
    monkeypatch.setattr("ray.get", lambda answer, **_: answer)
    for name in ("run-1", "other", "run-1"):  # the first one was killed
        scaling = ScalingConfig(num_workers=workers)
        given_policy(scaling, monkeypatch).after_controller_start(context(scaling, name))
    assert [len(bundles) for bundles in sent] == [2, 4]
    assert sum(node["CPU"] for node in coordinator.get_reserved_resources("train-run-1").values()) == 2


def context(scaling: ScalingConfig, name: str) -> TrainRunContext:
    return TrainRunContext(
        run_config=RunConfig(name=name),
        train_loop_config=None,
        scaling_config=scaling,
        backend_config=None,
        dataset_config=None,
    )

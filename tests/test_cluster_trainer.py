"""Ray Train on a cluster: how many workers start is decided by the nodes of now."""

from __future__ import annotations

from typing import Any
from unittest.mock import MagicMock

import pytest
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, create_scaling_policy

from raypaml.cluster import cluster_trainer


@pytest.fixture
def policy(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The policy that the controller gets for `--workers 1:2`."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(TorchTrainer, "_initialize_and_run_controller", lambda _self, **asked: given.update(asked))
    scaling = ScalingConfig(num_workers=(1, 2))
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


def test_a_node_that_is_lost_is_not_asked_for(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own policy asked for its CPU until the actor looked, up to 20 seconds later."""
    monkeypatch.setattr("ray.get", lambda answer, **_: answer)
    monkeypatch.setattr("ray.wait", lambda answers, **_: (answers, []))
    for one, workers in ((ElasticScalingPolicy(policy.scaling_config), 2), (policy, 1)):
        one._requester_id = "run"
        one._coordinator_client = MagicMock(_autoscaling_coordinator=_Coordinator())
        assert one.make_decision_for_non_running_worker_group().num_workers == workers


def test_a_fixed_number_of_workers_keeps_rays_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(TorchTrainer, "_initialize_and_run_controller", lambda _self, **asked: given.update(asked))
    scaling = ScalingConfig(num_workers=2)
    policy = create_scaling_policy(scaling)
    cluster_trainer.ClusterTrainer(print, scaling_config=scaling)._initialize_and_run_controller(scaling_policy=policy)
    assert given["scaling_policy"] is policy

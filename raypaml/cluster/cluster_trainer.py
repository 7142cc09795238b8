"""Ray Train on a cluster: a run that may shrink looks, before it starts workers, at the nodes that there are now.

Ray's elastic policy asks an actor that looks at the nodes every 20 seconds. In between it asks for the CPUs of a node
that Ray already knows to be lost, in vain. (Ray 2.60, `_AutoscalingCoordinatorActor.TICK_INTERVAL_S`.)

That actor also keeps what a command has asked for until three minutes after it was killed. A run asks by its own name,
so that the command given again replaces the request; otherwise an elastic run would wait for it to expire, and nodes
would be added for both. (`AUTOSCALING_REQUESTS_EXPIRE_TIME_S`.)
"""

from __future__ import annotations

import time
from types import SimpleNamespace

import ray
from ray.train import Result
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    FixedScalingPolicy,
    ScalingDecision,
    ScalingPolicy,
)
from ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client import (
    AUTOSCALING_REQUESTS_GET_TIMEOUT_S,
)


class ClusterTrainer(TorchTrainer):  # type: ignore[misc]
    """TorchTrainer whose runs ask by their names, and count the workers that can start by the nodes of now."""

    def _initialize_and_run_controller(self, **arguments: object) -> Result:
        policy: ScalingPolicy = arguments["scaling_policy"]
        if type(policy) is ElasticScalingPolicy:
            arguments["scaling_policy"] = _ElasticOfNow(policy.scaling_config)
        elif type(policy) is FixedScalingPolicy:
            arguments["scaling_policy"] = _FixedByName(policy.scaling_config)
        return super()._initialize_and_run_controller(**arguments)


class _ByName(ScalingPolicy):  # type: ignore[misc]
    """A policy that asks for resources by the name of the run (`place_of_ray`), which its next try will have too."""

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:
        super().after_controller_start(SimpleNamespace(run_id=train_run_context.run_config.name))


class _FixedByName(_ByName, FixedScalingPolicy):  # type: ignore[misc]
    pass


class _ElasticOfNow(_ByName, ElasticScalingPolicy):  # type: ignore[misc]
    """ElasticScalingPolicy that has the nodes looked at before each decision on how many workers start."""

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        since = time.monotonic() - self._latest_reserved_resources_query_time
        if since >= self.GET_RESERVED_RESOURCES_INTERVAL_S:
            look = self._autoscaling_coordinator.get_reserved_resources.remote(self._requester_id, recompute=True)
            # what goes wrong here meets the question of the policy itself too, which logs it and asks again
            ray.wait([look], timeout=AUTOSCALING_REQUESTS_GET_TIMEOUT_S)
        return super().make_decision_for_non_running_worker_group()

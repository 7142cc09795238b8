"""Ray Train on a private Ray: the workers, their controller, and nothing else that would have to start first.

Elsewhere Ray Train also starts actors that look after a cluster, and each imports Ray for a second or two before
training starts. A private Ray has one node that nobody drains, no autoscaler, and it ends with its driver, so that
there is no preemption to foresee and no placement group to free after a lost controller. Trials of a search, which
others outlive, keep Ray's own TorchTrainer. (Ray 2.60.)
"""

from __future__ import annotations

from typing import Any

import ray
from ray.train.torch import TorchTrainer
from ray.train.v2._internal import constants
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy


class LeanTrainer(TorchTrainer):  # type: ignore[misc]
    """TorchTrainer that starts the controller, the workers, and the actor by which they synchronise, and no other.

    None of these is given environment variables of its own, which all processes of a private Ray inherit: so each can
    be one of the processes that Ray keeps ready.
    """

    def _create_default_callbacks(self) -> list[Any]:
        unwanted = (DatasetsCallback, PlacementGroupCleanerCallback)
        wanted = [one for one in super()._create_default_callbacks() if not isinstance(one, unwanted)]
        return [*wanted, _NoDatasets()]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        if type(policy := arguments["scaling_policy"]) is FixedScalingPolicy:
            arguments["scaling_policy"] = _FixedAlone(policy.scaling_config)
        controller = ray.remote(num_cpus=0)(_Controller).remote(**arguments)
        ray.get(controller.run.remote())
        return ray.get(controller.get_result.remote())


class _Controller(TrainController):  # type: ignore[misc]
    """Ray Train's controller, which gives its workers no variables that they have already."""

    def __init__(self, **arguments: Any) -> None:
        constants.ENV_VARS_TO_PROPAGATE.clear()
        super().__init__(**arguments)


class _NoDatasets(WorkerGroupCallback):  # type: ignore[misc]
    """In the place of DatasetsCallback, which starts an actor also where there is no dataset of Ray."""

    def before_init_train_context(self, workers: list[Any]) -> dict[str, list[None]]:
        return {"dataset_shard_provider": [None] * len(workers)}


class _FixedAlone(FixedScalingPolicy):  # type: ignore[misc]
    """FixedScalingPolicy that asks no autoscaler for what is there, for which an actor would be started and awaited."""

    def after_controller_start(self, train_run_context: Any) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass

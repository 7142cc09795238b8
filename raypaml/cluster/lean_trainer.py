"""Ray Train on a private Ray: it starts only the workers and their controller.

Otherwise Ray Train also starts actors that watch over a cluster, each of which imports Ray for a second or two before
training starts. A private Ray does not need them: it has a single node, no autoscaler, and ends with its driver, so
that no preemption is announced, and no placement group outlives its controller. Nor does it need the actor by which
workers synchronise when they report to Ray, for ours report to the driver; it would start anew with lost workers.
Trials of a search, whose Ray outlives them, keep the trainer of clusters. (Ray 2.60.)
"""

from __future__ import annotations

import ray
from ray.train import Result
from ray.train.torch import TorchTrainer
from ray.train.v2._internal import constants
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import RayTrainCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy, ScalingPolicy
from ray.train.v2._internal.execution.worker_group import Worker, state, worker_group


class LeanTrainer(TorchTrainer):  # type: ignore[misc]
    """TorchTrainer that starts only the controller and the workers.

    They get no environment variables of their own, since all processes of a private Ray inherit the same ones; so Ray
    can use processes that it has started in advance.
    """

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        unwanted = (DatasetsCallback, PlacementGroupCleanerCallback)
        wanted = [one for one in super()._create_default_callbacks() if not isinstance(one, unwanted)]
        return [*wanted, _NoDatasets()]

    def _initialize_and_run_controller(self, **arguments: object) -> Result:
        policy: ScalingPolicy = arguments["scaling_policy"]
        if type(policy) is FixedScalingPolicy:
            arguments["scaling_policy"] = _FixedAlone(policy.scaling_config)
        controller = ray.remote(num_cpus=0)(_Controller).remote(**arguments)
        ray.get(controller.run.remote())
        return ray.get(controller.get_result.remote())


class _Controller(TrainController):  # type: ignore[misc]
    """Ray Train's controller, alone in its process, where it starts and ends workers in leaner ways.

    It does not pass its environment variables on to workers, which inherit them.
    """

    def __init__(self, **arguments: object) -> None:
        constants.ENV_VARS_TO_PROPAGATE.clear()
        worker_group.SynchronizationActor = _NoActor
        state._shutdown_sync_actor = _leave
        state._shutdown_workers = _kill
        super().__init__(**arguments)


class _NoActor:
    """In the place of SynchronizationActor, and of a handle to one, which nobody calls."""

    @classmethod
    def options(cls, **_options: object) -> type[_NoActor]:
        """Itself, whatever is asked for."""
        return cls

    @classmethod
    def remote(cls, **_options: object) -> _NoActor:
        """What stands for the handle."""
        return cls()


def _leave(_actor: _NoActor) -> None:
    """End the actor that there is not."""


def _kill(workers: list[Worker]) -> None:
    """Kill workers, without asking them first to end, for which Ray waits five seconds where one hangs."""
    for worker in workers:
        ray.kill(worker.actor)


class _NoDatasets(WorkerGroupCallback):  # type: ignore[misc]
    """Replaces DatasetsCallback, which starts an actor even where Ray has no dataset."""

    def before_init_train_context(self, workers: list[Worker]) -> dict[str, list[None]]:
        return {"dataset_shard_provider": [None] * len(workers)}


class _FixedAlone(FixedScalingPolicy):  # type: ignore[misc]
    """FixedScalingPolicy without requests to an autoscaler, for which an actor would be started and awaited."""

    def after_controller_start(self, train_run_context: object) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass

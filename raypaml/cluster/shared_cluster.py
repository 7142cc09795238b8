"""What of Ray's own would be the same for all runs and searches of a cluster, and may not be."""

from __future__ import annotations

import hashlib

import ray

from raypaml.cluster.private_ray import is_known
from raypaml.data.storage import Location


def place_of_ray(folder: Location) -> dict[str, str]:
    """Name and storage path of a RunConfig of Ray: the folder `ray` in that of a run or of a search.

    The name is unique, because by it Ray names the working directory of the workers on every node, and a folder in
    which the driver gathers the files of a search.
    """
    name = folder.address.partition("?")[0].rstrip("/").rpartition("/")[2]
    digest = hashlib.sha256(folder.address.encode()).hexdigest()[:8]
    return {"name": f"{name}-{digest}", "storage_path": str(folder / "ray")}


def coordinator_on_head() -> None:
    """Start the actor that shares out a cluster's resources between elastic runs on the head node, unless it is there.

    The first run starts it for all, on the node of its controller, and it may be on no other (Ray 2.60,
    `get_or_create_autoscaling_coordinator`): with a search that is the node of a trial, which may be taken away.
    """
    if not is_known():
        return
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import _AutoscalingCoordinatorActor

    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_AutoscalingCoordinatorActor)
    actor.options(
        name="AutoscalingCoordinator",
        namespace="AutoscalingCoordinator",
        get_if_exists=True,
        lifetime="detached",
        resources={"node:__internal_head__": 0.001},
    ).remote()

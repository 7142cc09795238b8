"""Placement groups that outlive the process that made them, with the CPUs and GPUs that they hold.

Ray keeps the group that an actor has made until the whole job ends. Ray Train makes one for the workers of each trial,
and removes it after the loss of the trial's process only where Ray has an API server, which a private Ray has not.
(Ray 2.60.)
"""

from __future__ import annotations

from collections.abc import Iterator

import ray
from ray.util.client import ray as client
from ray.util.placement_group import PlacementGroup, remove_placement_group

from raypaml.cluster.private_ray import is_known


def remove_orphans() -> None:
    """Remove the placement groups of this program that were made by actors which have died."""
    for group in _orphans() if is_known() and not client.is_connected() else ():
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(group)))


def _orphans() -> Iterator[bytes]:
    from ray._private.state import state
    from ray.core.generated import gcs_pb2

    here, no_actor = ray.get_runtime_context().get_job_id(), ray.ActorID.nil().binary()
    stored = state._connect_and_get_accessor().get_placement_group_table()
    for group in map(gcs_pb2.PlacementGroupTableData.FromString, stored):
        made_by_actor = group.creator_actor_id not in (b"", no_actor)  # the program's own count as without an actor
        is_left = group.state != gcs_pb2.PlacementGroupTableData.REMOVED and group.creator_actor_dead
        if made_by_actor and is_left and group.creator_job_id.hex() == here:
            yield group.placement_group_id

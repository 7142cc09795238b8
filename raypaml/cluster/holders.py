"""Who holds the CPUs and GPUs of a cluster: what a run that waits for some says, instead of only that it waits.

A command that joins a cluster gives its job a title, such as "run first", which Ray's control store keeps as metadata
of the job, and marks as dead when its process ends, in whatever way. What a job holds are its placement groups: Ray
Train makes one for the workers of a run or of a trial. Other programs are named by their command.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import ray
from ray.job_config import JobConfig
from ray.util.client import ray as client

from raypaml.cluster.private_ray import is_known
from raypaml.counting import number_of

_TITLE = "raypaml"
"""The key of the metadata."""
_HERE = "this program"
_LONGEST = 60
"""Most letters of another program's command that are shown."""
_asked = Counter[str]()
"""How much the runs of this program want together, by resource."""


@dataclass(frozen=True, kw_only=True)
class ResourceUse:
    """How much of a resource a cluster has, and who holds or awaits it."""

    resource: str
    """CPU or GPU."""
    total: int
    free: int
    held: dict[str, int]
    """How much each program holds, by its title; what it holds without a placement group, as tasks do, is not in it."""
    waiting: tuple[str, ...]
    """Titles of other programs that wait for their workers."""

    def __str__(self) -> str:
        """For example "1 of 4 CPUs is free: run first holds 2, others hold 1; run second waits, too"."""
        others = self.total - self.free - sum(self.held.values())
        holders = [f"{title} holds {count:,}" for title, count in self.held.items()]
        holders += [f"others hold {others:,}"] if others > 0 else []
        verb = "is" if self.free == 1 else "are"
        named = f": {', '.join(holders)}" if holders else ""
        queued = "".join(f"; {title} waits, too" for title in self.waiting)
        return f"{self.free:,} of {number_of(self.total, self.resource)} {verb} free{named}{queued}"


def titled(title: str) -> JobConfig | None:
    """The configuration of a job of this title, for ray.init; None where it has none."""
    return JobConfig(metadata={_TITLE: title}) if title else None


def usage(resource: str) -> ResourceUse:
    """How much of "CPU" or "GPU" the cluster has, how much is free, and who holds the rest.

    Nobody is named of a Ray of an unknown version, whose control store may answer otherwise, nor through a Ray Client.
    """
    held, waiting = Counter[str](), list[str]()
    here = ray.get_runtime_context().get_job_id()
    for title, job, count, is_there in _groups(resource) if is_known() and not client.is_connected() else ():
        if is_there:
            held[title if job != here else _HERE] += count
        elif count and job != here:
            waiting.append(title)
    return ResourceUse(
        resource=resource,
        total=int(ray.cluster_resources().get(resource, 0)),
        free=int(ray.available_resources().get(resource, 0)),
        held={title: count for title, count in held.most_common() if count},
        waiting=tuple(dict.fromkeys(waiting)),
    )


def lack(resource: str, wanted: int, in_all: int = 0) -> str:
    """What keeps workers from starting, for messages; empty where there is room for them.

    Args:
        resource: "CPU" or "GPU".
        wanted: how many the workers want.
        in_all: how many this program wants, where it also has other workers; by default those of `asking`.
    """
    try:
        now = usage(resource)
    except Exception:  # of whatever kind: words alone are lacking, and the head may be lost
        return ""
    in_all = in_all or max(wanted, _asked[resource])
    # groups are made as a whole: where this program holds all that it wants, its workers' processes are just starting
    if now.free + now.held.get(_HERE, 0) >= in_all:
        return ""
    return f"{number_of(wanted, resource)} wanted, {now}"


@contextmanager
def asking(resource: str, wanted: int) -> Iterator[Callable[[], str]]:
    """In the block this program wants so many for a run, perhaps beside other runs; yields `lack` for this run."""
    _asked[resource] += wanted
    try:
        yield partial(lack, resource, wanted)
    finally:
        _asked[resource] -= wanted


def _groups(resource: str) -> Iterator[tuple[str, str, int, bool]]:
    """Every placement group: title and id of its job, how much it has or wants, and whether it has it."""
    from ray._private.state import state
    from ray.core.generated import gcs_pb2

    accessor = state._connect_and_get_accessor()
    stored = accessor.get_job_table(skip_submission_job_info_field=True, skip_is_running_tasks_field=True)
    jobs = {job.job_id: _title(job) for job in map(gcs_pb2.JobTableData.FromString, stored) if not job.is_dead}
    for group in map(gcs_pb2.PlacementGroupTableData.FromString, accessor.get_placement_group_table()):
        if group.state == gcs_pb2.PlacementGroupTableData.REMOVED:
            continue
        count = int(sum(bundle.unit_resources.get(resource, 0) for bundle in group.bundles))
        title = jobs.get(group.creator_job_id, "a program that has ended")
        is_there = group.state == gcs_pb2.PlacementGroupTableData.CREATED
        yield title, group.creator_job_id.hex(), count, is_there


def _title(job: object) -> str:
    """The title of a job; for a program that gave none, its command."""
    title: str = job.config.metadata.get(_TITLE, "")  # type: ignore[attr-defined]
    command = " ".join(job.entrypoint.split())  # type: ignore[attr-defined]  # of `python -c` it has many lines
    if title or not command:
        return title or "another program"
    return f"`{command[:_LONGEST]}{'...' if len(command) > _LONGEST else ''}`"

"""Using the program's own Ray, joining a cluster, or starting a private Ray on this machine; and what it has."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TypeVar

import ray

from raypaml import cli
from raypaml.cluster import holders, ray_variables
from raypaml.cluster.end_of_ray import shut_down
from raypaml.cluster.lost_ray import head_patience, leave_lost_ray, patient_ray, told_if_lost, without_raylets_log
from raypaml.cluster.private_ray import QUIET, is_known, outside_private, private_ray, token_read_anew
from raypaml.cluster.shipping import Missing, runtime_env, what_is_missing
from raypaml.cluster.signals import ending_on_sigterm, sigterm_kept
from raypaml.cluster.sole_use import is_used_elsewhere, sole_use
from raypaml.cluster.waiting import quick_answers

_Answer = TypeVar("_Answer")


@contextmanager
def join(
    address: str = "",
    workers: int = 1,
    say: Callable[[str], None] = cli.say,
    *,
    title: str = "",
    needs: Sequence[str] = (),
) -> Iterator[bool]:
    """Provide Ray during the block: the one that the program has initialised, which is not changed; else the cluster at
    `address` (or RAY_ADDRESS); else a private one.

    Args:
        address: of a cluster; `local` for a private Ray.
        workers: the number of CPUs that a private Ray has at least.
        say: takes lines for the user.
        title: names this program to others that wait for its CPUs (`holders`), such as "run first"; empty for its
            command.
        needs: modules of the program that nodes must have, besides those of `--import`. Nodes of a cluster that lack
            these, or raypaml, are sent them with the job.

    Yields:
        Whether it is a private Ray of a known version (`private_ray.is_known`).

    Raises:
        ValueError: no cluster answers at the address, its nodes lack what cannot be sent, another Ray is initialised
            than the one asked for, a private one does not start, or another thread of this process has one.
    """
    if ray.is_initialized() and not is_used_elsewhere():  # the program's, and no private one of another thread
        _check_own(address, needs)
        with ray_variables(**({} if is_task() else outside_private())):
            yield False
        return
    address = address or os.environ.get("RAY_ADDRESS", "")
    if not address or address == "local":
        with sole_use(), private_ray(max(os.cpu_count() or 1, workers)):
            yield is_known()
        return
    patience = head_patience()
    variables = ray_variables(**outside_private() | patient_ray())
    silence = without_raylets_log(known=is_known())
    with sole_use(), variables, token_read_anew(), ending_on_sigterm(), silence, ExitStack() as ending:
        ending.callback(shut_down, known=is_known())
        _join_cluster(address, say, title, needs)
        with told_if_lost(partial(leave_lost_ray, ending), patience):
            yield False


def _check_own(address: str, needs: Sequence[str]) -> None:
    """Raise ValueError where the Ray that the program has initialised cannot be used."""
    here = ray.get_runtime_context().gcs_address
    if address and address not in ("auto", "local", here):
        raise ValueError(
            f"address={address}: this program has initialised Ray at {here}; leave the address out to use that one, "
            f"or call ray.shutdown() first"
        )
    if is_train_worker():
        raise ValueError(
            "this is a worker of Ray Train, which cannot start workers of its own: call "
            "raypaml.train_in_worker(...), which trains with the workers that are there"
        )
    if missing := what_is_missing(on_every_node, needs):
        raise ValueError(
            f"{_listed(missing)}: install it there, or send it with the job: "
            f"ray.init(..., runtime_env={{'py_modules': {runtime_env(missing)['py_modules']}}})"
        )


def is_task() -> bool:
    """Whether Ray has started this process, for a task, an actor or a trial."""
    return bool(ray.get_runtime_context().worker.mode == ray.WORKER_MODE)


def is_train_worker() -> bool:
    """Whether this is called in the function of a worker of Ray Train."""
    import ray.train  # takes half a second, and most sessions need it anyway

    try:
        ray.train.get_context().get_world_rank()
    except Exception:  # Ray raises several kinds of errors where there is no context
        return False
    return True


def _join_cluster(address: str, say: Callable[[str], None], title: str, needs: Sequence[str]) -> None:
    """Join a cluster; where its nodes lack raypaml, join again and send it with the job."""
    _connect(address, job_config=holders.titled(title))
    missing = what_is_missing(on_every_node, needs)
    if not missing:
        return
    sent = runtime_env(missing)
    say(f"{_listed(missing)}: raypaml is sent to the nodes with this job")
    ray.shutdown()
    _connect(address, job_config=holders.titled(title), runtime_env=sent)
    if still := what_is_missing(on_every_node, needs):
        raise ValueError(f"{_listed(still)}, though it was sent there with the job: install it on every node")


def _listed(missing: list[Missing]) -> str:
    return "; ".join(dict.fromkeys(map(str, missing)))


def _connect(address: str, **options: object) -> None:
    host, _, port = address.rpartition(":")
    try:
        if port.isdigit() and "/" not in host:  # where nothing listens, Ray would try for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        with sigterm_kept():
            ray.init(address=address, **QUIET, **options)
    except Exception as error:
        reason = (str(error).strip() or repr(error)).split("\n")[0]
        raise ValueError(f"address={address}: no Ray cluster answers there ({reason})") from None


def gpus() -> int:
    """Number of GPUs of the cluster, without those that the calling task or actor holds."""
    return _total("GPU")


def cpus() -> int:
    """Number of CPUs of the cluster, without those that the calling task or actor holds."""
    return _total("CPU")


def _total(resource: str) -> int:
    total = ray.cluster_resources().get(resource, 0)
    if is_task():
        total -= ray.get_runtime_context().get_assigned_resources().get(resource, 0)
    return int(total)


def may_grow() -> bool:
    """Whether nodes may be added to the cluster, and are waited for; cluster files say so by this variable."""
    return bool(os.environ.get("RAYPAML_MAY_GROW"))


def on_every_node(function: Callable[..., _Answer], *args: object) -> list[_Answer]:
    """Call a function once on every live node, the driver's first; the calls occupy no CPUs.

    Where a node is lost meanwhile, those that are left, and new ones, are called again.

    Raises:
        ValueError: the function raised it on a node; the message is the function's, without Ray's traceback. Or a node
            starts no process for it.
    """
    mine = ray.get_runtime_context().get_node_id()
    hosts = _live_hosts()
    nodes = sorted(hosts, key=lambda node: (node != mine, node))
    there = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    task = ray.remote(function)
    calls = [task.options(num_cpus=0, scheduling_strategy=there(node, soft=False)).remote(*args) for node in nodes]
    try:
        return quick_answers(calls, [hosts[node] for node in nodes])
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ValueError):
            raise error.cause from None
        raise
    except (ray.exceptions.TaskUnschedulableError, ray.exceptions.NodeDiedError, ray.exceptions.WorkerCrashedError):
        if hosts.keys() <= _live_hosts().keys():
            raise
    return on_every_node(function, *args)


def _live_hosts() -> dict[str, str]:
    """The host names of the live nodes, by the nodes' ids."""
    return {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}

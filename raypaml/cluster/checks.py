"""The findings of `raypaml doctor`: what would go wrong with a run, on a laptop or a cluster, and the remedies."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from raypaml.cluster.doors import DASHBOARD, NO_METRICS, Door, Reply, doors_of_cluster, knock_at_all
from raypaml.cluster.nodes import Node, leave, look, remove
from raypaml.config import TrainConfig
from raypaml.counting import number_of
from raypaml.data.data_folder import DataFolder, open_folder, resolve_data
from raypaml.recipes import otherwise_than_own
from raypaml.runs.pseudo_labels import with_pseudo_labels
from raypaml.runs.run_folder import versions
from raypaml.runs.weights_of_run import with_weights_of_run
from raypaml.training.estimate import FLOAT32, RATES, Estimate, estimate
from raypaml.training.optimizers import moments

FINE, WARNING, FATAL = "fine", "warning", "fatal"
_TOKEN = "`ray get-auth-token --generate`, and RAY_AUTH_MODE=token on all nodes and here"
KEPT = 3
"""Most checkpoints on the disk at the same time: the best, the newest, and the one being written."""


@dataclass(frozen=True)
class Finding:
    """What a check has found, and what to do about it."""

    level: str
    """FINE, WARNING or FATAL."""
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.level:<8} {self.what}" + (f"\n         -> {self.remedy}" if self.remedy else "")


# --- Nodes ------------------------------------------------------------------------------------------------------------


def same_versions(nodes: Sequence[Node]) -> Finding:
    """Whether all nodes have the same versions of every package and of Python."""
    differ = {
        name: sorted({f"{node.versions[name]} on {node.host}" for node in nodes})
        for name in nodes[0].versions
        if len({node.versions[name] for node in nodes}) > 1
    }
    if differ:
        shown = "; ".join(f"{name}: {', '.join(versions)}" for name, versions in differ.items())
        return Finding(FATAL, f"versions differ: {shown}", "install the same constraints.txt on every node")
    listed = ", ".join(f"{name} {version}" for name, version in nodes[0].versions.items())
    return Finding(FINE, f"{number_of(len(nodes), 'node')}, all with {listed}")


def gpus_seen(nodes: Sequence[Node], by_ray: int, config: TrainConfig) -> Finding:
    """Whether the GPUs that torch sees are those that Ray counts, and enough for the run."""
    run = config.run
    by_torch = sum(len(node.gpu_memory) for node in nodes)
    least = run.min_workers or run.workers
    if run.device == "cuda" and max(by_torch, by_ray) < least:
        remedy = f"--workers {by_torch}" if by_torch else "--device cpu, or a machine with a GPU and its driver"
        return Finding(FATAL, f"device=cuda: {least} workers need a GPU each, {by_torch} are there", remedy)
    if by_torch < by_ray:
        what = f"Ray counts {number_of(by_ray, 'GPU')}, torch sees {by_torch}"
        return Finding(WARNING, what, "fine while nodes are to be added; else check driver and CUDA build of torch")
    idle = by_torch and run.device == "auto" and by_torch < least
    remedy = f"--workers {by_torch} would use them; now all train on the CPU" if idle else ""
    return Finding(WARNING if idle else FINE, number_of(by_torch, "GPU"), remedy)


def storage(nodes: Sequence[Node], config: TrainConfig) -> Finding:
    """Whether all nodes can write to the storage, its renames are atomic, and all see the same files."""
    where = config.run.storage
    for node in nodes:
        if node.storage_fault:
            remedy = "--storage DIR that this user may write, or s3://..., with a role for the bucket"
            return Finding(FATAL, f"storage={where} on {node.host}: {node.storage_fault}", remedy)
        if not node.seen:
            what = f"storage={where}: {node.host} does not see what {nodes[0].host} wrote there"
            return Finding(FATAL, what, "--storage with a folder that all nodes share (NFS), or s3://...")
    rate = min(node.write_rate for node in nodes)
    return Finding(FINE, f"storage={where}: writable on all nodes, renames are atomic, {rate / 1e6:,.0f} MB/s")


def disks(nodes: Sequence[Node], config: TrainConfig, need: int, shards: int) -> Iterator[Finding]:
    """Whether disks have room for checkpoints, and for shards that come from a store."""
    free = min(node.storage_free for node in nodes)
    if free and free < need:
        what = f"storage={config.run.storage}: {_gb(free)} free, the run's checkpoints take {_gb(need)}"
        yield Finding(FATAL, what, "make room, or another --storage")
    for node in nodes:
        wanted = min(shards, int(config.data.cache_gb * 1e9))
        if node.cache_free < wanted:
            remedy = f"--cache on a larger disk, or --cache-gb {node.cache_free // 10**9}"
            yield Finding(WARNING, f"{node.host}: {_gb(node.cache_free)} free for {_gb(wanted)} of shards", remedy)


def memory(nodes: Sequence[Node], config: TrainConfig, needs: Estimate) -> Finding:
    """Whether a node has the memory that `--plan` estimates."""
    need = sum(needs.memory.values())
    gpus = [size for node in nodes for size in node.gpu_memory]
    per_node = max(1, math.ceil(config.run.workers / len(nodes)))
    have = min(gpus) if needs.device == "cuda" and gpus else min(node.memory for node in nodes) // per_node
    where = "GPU" if needs.device == "cuda" else "worker"
    if need > have:
        what = f"memory: {_gb(need)} estimated, a {where} has {_gb(have)}"
        return Finding(FATAL, what, f"--micro-batch-size {max(1, needs.at_once // 2)} keeps batch and rejection")
    return Finding(FINE, f"memory: {_gb(need)} of {_gb(have)} a {where}, estimated")


# --- Security ---------------------------------------------------------------------------------------------------------


def doors(nodes: Sequence[Node], replies: Mapping[Door, Reply]) -> Iterator[Finding]:
    """What somebody without the token gets at the ports of Ray on addresses other than loopback."""
    by_reply = {reply: [door for door in replies if replies[door] == reply] for reply in Reply}
    for door in by_reply[Reply.ANSWERS]:
        if door.port == DASHBOARD:
            what = f"anybody may submit jobs on {door.address}:{door.port}: the dashboard answers without a token"
            yield Finding(FATAL, what, "RAY_AUTH_MODE=token on all nodes, ray start --dashboard-host=127.0.0.1")
    for door in by_reply[Reply.ASKS]:
        if door.port == DASHBOARD:
            what = f"the dashboard answers on {door.address}:{door.port}, to those with the token"
            yield Finding(WARNING, what, "ray start --dashboard-host=127.0.0.1, and reach it by `ray dashboard`")
    if open_doors := [str(door) for door in by_reply[Reply.ANSWERS] if door.port != DASHBOARD]:
        what = f"no token is asked for on {', '.join(open_doors)}: whoever reaches these ports runs code there"
        yield Finding(WARNING, what, _TOKEN)
    elif open_nodes := [node.host for node in nodes if not node.token]:
        what = f"no token is asked for on {', '.join(open_nodes)}: whoever reaches Ray's ports runs code there"
        yield Finding(WARNING, what, _TOKEN)
    if silent := [str(door) for door in by_reply[Reply.SILENT]]:
        what = f"whether a token is asked for on {', '.join(silent)} is not known: they say nothing"
        yield Finding(
            WARNING, what, "pip install grpcio, if it is missing here; else see what listens there (ss -ltnp)"
        )
    if metrics := [str(door) for door in by_reply[Reply.METRICS]]:
        what = f"figures and names of runs are read without a token on {', '.join(metrics)}"
        yield Finding(
            WARNING, what, f"let the nodes alone reach each other's ports, or {' '.join(NO_METRICS)} ray start"
        )
    if closed := by_reply[Reply.ASKS]:
        yield Finding(FINE, f"{number_of(len(closed), 'port')} of Ray asked for a token when we knocked without one")


# --- The run ----------------------------------------------------------------------------------------------------------


def enough_shards(config: TrainConfig, data: DataFolder) -> Finding:
    """Whether there are enough shards for the workers."""
    shards, workers = len(data.splits["train"].shards), config.run.workers
    where = f"{config.data.data}: {number_of(shards, 'training shard')}"
    if config.data.shuffle_window and shards < workers:
        return Finding(WARNING, f"{where} for {workers} workers: they read the same ones", "smaller shards")
    return Finding(FINE, f"{where}, all there, for {number_of(workers, 'worker')}")


def checkpoint_interval(
    needs: Estimate, config: TrainConfig, checkpoint_bytes: int, write_rate: float, tflops: float, mtbf_hours: float
) -> Finding:
    """The hours of the run, and how often to save: sqrt(2 x cost of saving x mean time between failures).

    (Young, CACM 1974; Daly, FGCS 2006.)

    Args:
        needs, config: the estimate and its configuration.
        checkpoint_bytes: the size of a checkpoint.
        write_rate: bytes per second into the storage.
        tflops: TFLOP/s that a worker sustains.
        mtbf_hours: mean time between failures of the whole run, that of a node divided by the number of nodes.
    """
    rate = tflops * 1e12 / needs.flops * config.run.workers
    hours = needs.images * config.optim.epochs / rate / 3600
    cost = checkpoint_bytes / write_rate
    every = math.sqrt(2 * cost * mtbf_hours * 3600)
    steps = max(1, round(every * rate / config.data.global_batch_size))
    lost = every / 2 / (mtbf_hours * 3600) + cost / every
    what = (
        f"{hours:,.1f} h at {rate:,.0f} images/s, if a worker sustains {tflops:g} TFLOP/s; a checkpoint of "
        f"{_gb(checkpoint_bytes)} takes {cost:.1f} s; lost to saving and a failure every {mtbf_hours:g} h: {lost:.1%}"
    )
    set_to = config.run.checkpoint_steps
    near = set_to and steps / 3 < set_to < steps * 3
    advice = f"--checkpoint-steps {steps} saves every {every / 60:,.0f} minutes (Young-Daly)"
    return Finding(FINE, what, "" if near or steps >= needs.steps else advice)


def _gb(size: float) -> str:
    return f"{size / 1e9:,.1f} GB"


# --- Together ---------------------------------------------------------------------------------------------------------


def examine(config: TrainConfig, tflops: float, mtbf_hours: float) -> Iterator[Finding]:
    """Yield all findings as they are made.

    Ray is started or joined as by the run itself; one worker without an address needs none.
    """
    run = config.run
    address = run.address or os.environ.get("RAY_ADDRESS", "")
    nodes = list[Node]()
    try:
        left = leave(run.storage)
    except OSError as error:
        yield Finding(FATAL, f"storage={run.storage}: cannot be written: {error}", "another --storage")
        return
    try:
        asked = (run.storage, config.data.cache, left)
        if address or run.workers > 1:
            yield from _examine_cluster(config, address, asked, nodes)
        if not nodes:
            nodes.append(look(*asked))
            yield gpus_seen(nodes, 0, config)
    finally:
        remove(run.storage, left)
    yield same_versions(nodes)
    yield storage(nodes, config)
    yield from _examine_run(config, nodes, tflops, mtbf_hours)


def _examine_cluster(config: TrainConfig, address: str, asked: tuple[str, ...], nodes: list[Node]) -> Iterator[Finding]:
    """Join the cluster, or start a private Ray, and add the facts of its nodes to `nodes`."""
    from raypaml.cluster import session  # ray takes seconds to import, and one worker needs none

    said = list[str]()
    began = time.monotonic()
    try:
        with session.join(address, config.run.workers, said.append):
            seconds = time.monotonic() - began
            for line in said:
                yield Finding(WARNING, line, f"pip install raypaml=={versions()['raypaml']} on every node")
            nodes += session.on_every_node(look, *asked)
            yield Finding(FINE, f"Ray {'joined' if address else 'started on loopback'} in {seconds:.1f} s")
            yield gpus_seen(nodes, session.gpus(), config)
            if address:
                yield room(config)
                yield from doors(nodes, knock_at_all(doors_of_cluster()))
    except ValueError as error:
        yield Finding(FATAL, str(error), "" if address else "--workers 1 trains without other processes")


def room(config: TrainConfig) -> Finding:
    """Whether others leave the CPUs or GPUs that the run needs to begin."""
    from raypaml.cluster import holders

    resource = "GPU" if config.run.device == "cuda" else "CPU"
    if lacking := holders.lack(resource, config.run.min_workers or config.run.workers):
        return Finding(WARNING, f"the run would wait for its workers: {lacking}", "wait too, or fewer --workers")
    return Finding(FINE, f"{holders.usage(resource)}")


def _examine_run(config: TrainConfig, nodes: Sequence[Node], tflops: float, mtbf_hours: float) -> Iterator[Finding]:
    try:
        config.check()
        data = open_folder(resolve_data(config.data.data), **config.data.opening)
        said = list[str]()
        with_weights_of_run(config, data, said.append)
        needs = estimate(with_pseudo_labels(config, data, said.append), data)
    except ValueError as error:
        yield Finding(FATAL, str(error))
        return
    yield from (Finding(FINE, what) for what in said)
    yield enough_shards(config, data)
    if needs.nothing_rejected:
        yield Finding(WARNING, needs.nothing_rejected, "--delta-rel, --warmup-epochs; or --scheme an, if it is meant")
    yield from (Finding(FINE, what) for what in otherwise_than_own(config))
    parameters = needs.shape.backbone_parameters + needs.shape.head_parameters
    size = parameters * FLOAT32 * (1 + moments(config.optim) + (config.optim.ema > 0))
    stored = sum(data.splits["train"].shard_bytes) if "://" in data.address else 0
    yield from disks(nodes, config, KEPT * size, stored)
    yield memory(nodes, config, needs)
    rate = tflops or RATES[needs.device][1]
    if slowest := min(node.write_rate for node in nodes):  # else nothing can be written, which is a finding already
        yield checkpoint_interval(needs, config, size, slowest, rate, mtbf_hours / len(nodes))

"""Facts of a node, collected on the node itself: versions, GPUs, memory, disks, and how the storage behaves."""

from __future__ import annotations

import os
import platform
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import torch

from raypaml.data.storage import Location, brief
from raypaml.files import user_cache
from raypaml.runs.mirror import Mirror
from raypaml.runs.run_folder import versions

MEGABYTES = 32
"""Size of the file that is written to the storage to measure its speed."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """Facts of one node; sizes in bytes."""

    host: str
    versions: dict[str, str]
    cpus: int
    gpu_memory: tuple[int, ...]
    """Bytes of memory of each GPU that torch sees."""
    memory: int
    cache_free: int
    """Free space where shards are cached."""
    storage_free: int
    """Free space of the storage; 0 for a store."""
    storage_fault: str
    """What the storage lacks that a run needs; empty where it lacks nothing."""
    seen: bool
    """Whether the node sees the file that the driver left in the storage."""
    write_rate: float
    """Bytes per second into the storage, with fsync."""
    token: bool
    """Whether Ray asks for a token there."""


def look(storage: str, cache: str, left: str) -> Node:
    """Collect the facts of this node; `left` is the name of the driver's file in the storage."""
    where = Location(storage)
    try:
        fault, rate = _try_disk(Path(storage)) if where.is_local else _try_store(_mirror(storage))
    except OSError as error:
        fault, rate = f"cannot be written: {brief(error)}", 0.0
    return Node(
        host=platform.node(),
        versions=versions(),
        cpus=os.cpu_count() or 1,
        gpu_memory=tuple(torch.cuda.get_device_properties(n).total_memory for n in range(torch.cuda.device_count())),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        cache_free=_free(Path(cache or user_cache())),
        storage_free=_free(Path(storage)) if where.is_local else 0,
        storage_fault=fault,
        seen=not fault and is_there(storage, left),
        write_rate=rate,
        token=os.environ.get("RAY_AUTH_MODE") == "token",
    )


def _free(folder: Path) -> int:
    """Free bytes of the disk that a folder, which need not exist yet, is on."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    return shutil.disk_usage(there).free


def leave(storage: str) -> str:
    """Write a file into the storage that other nodes should see; returns its name. OSError where that fails."""
    name = f".doctor-{uuid.uuid4().hex}"
    if Location(storage).is_local:
        Path(storage).mkdir(parents=True, exist_ok=True)
        (Path(storage) / name).touch()
    else:
        _mirror(storage).write(name, b"here")
    return name


def is_there(storage: str, name: str) -> bool:
    """Whether the storage has a file of this name."""
    if Location(storage).is_local:
        return (Path(storage) / name).is_file()
    return _mirror(storage).read(name) is not None


def remove(storage: str, name: str) -> None:
    """Remove the file that `leave` has written."""
    if Location(storage).is_local:
        (Path(storage) / name).unlink()
    else:
        _mirror(storage).delete(name)


def _mirror(storage: str) -> Mirror:
    return Mirror(Path(), Location(storage))


def _try_disk(storage: Path) -> tuple[str, float]:
    """What the storage lacks that a run needs ("" for nothing), and how many bytes per second it takes.

    A run renames files and folders atomically.
    """
    folder = storage / f".doctor-{uuid.uuid4().hex}"
    folder.mkdir(parents=True)
    try:
        rate = _write_rate(folder / "large")
        (folder / "name").write_text("old")
        (folder / "other").write_text("new")
        (folder / "other").replace(folder / "name")
        (folder / "unfinished").mkdir()
        (folder / "unfinished" / "file").touch()
        (folder / "unfinished").replace(folder / "final")
        whole = (folder / "name").read_text() == "new" and not (folder / "other").exists()
        moved = (folder / "final" / "file").is_file() and not (folder / "unfinished").exists()
        return "" if whole and moved else "renames are not atomic there", rate
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_rate(path: Path) -> float:
    began = time.monotonic()
    with path.open("wb") as file:
        for _ in range(MEGABYTES):
            file.write(os.urandom(10**6))
        file.flush()
        os.fsync(file.fileno())
    return MEGABYTES * 1e6 / (time.monotonic() - began)


def _try_store(store: Mirror) -> tuple[str, float]:
    """Whether requests see what the ones before have written, listed and deleted, and the speed; as `_try_disk`."""
    name = f".doctor-{uuid.uuid4().hex}"
    store.write(f"{name}/marker", b"old")
    store.write(f"{name}/marker", b"new")
    faults = [] if store.read(f"{name}/marker") == b"new" else ["an overwritten object is read as it was before"]
    faults += [] if f"{name}/marker" in store.there([name]) else ["a new object is not listed"]
    began = time.monotonic()
    store.write(f"{name}/large", os.urandom(MEGABYTES * 10**6))
    rate = MEGABYTES * 1e6 / (time.monotonic() - began)
    for path in (f"{name}/marker", f"{name}/large"):
        store.delete(path)
    faults += [] if store.read(f"{name}/marker") is None else ["a deleted object is still there"]
    return "; ".join(faults), rate

"""Writing checkpoints while training goes on: they are copied to the host first, and hashed while they are written.

Training waits for `take_snapshot` alone, and on a GPU not even for its copies, which are queued between two steps, into
pinned memory. `write_checkpoint` may then run in another thread.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

from raypaml.data.index import Index
from raypaml.files import sync
from raypaml.runs.checkpoint import CORRECTIONS, MEMORY, OPTIMIZER, TRAINED, State
from raypaml.runs.corrections import Corrections
from raypaml.runs.mirror import MARKER
from raypaml.runs.run_files import MODEL, STATE

_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The names of types in safetensors files."""


class HostCopies:
    """Host memory for the tensors of a checkpoint, reused for the next one: allocating pages costs more than copying.

    It is as large as a checkpoint. A snapshot may be taken only after the one before is written.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], Tensor] = {}

    def take(self, file: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copy the tensors of a file to the host, in their own memory layout; on a GPU the copies are only queued."""
        copies = {}
        for name, value in tensors.items():
            kept, pinned = self._kept.get((file, name)), value.device.type == "cuda"
            if kept is None or (kept.shape, kept.dtype, kept.stride()) != (value.shape, value.dtype, value.stride()):
                kept = torch.empty_like(value, device="cpu", pin_memory=pinned, requires_grad=False)
            copies[name] = self._kept[file, name] = kept.copy_(value, non_blocking=True)
        return copies


@dataclass(frozen=True)
class Snapshot:
    """The content of a checkpoint at one moment, which training no longer changes."""

    name: str
    tensors: dict[str, dict[str, Tensor]]
    """Tensors on the host, by file and name."""
    copied: torch.cuda.Event | None
    """Recorded after a GPU's copies; None where there is nothing to wait for."""
    state: str
    """Content of state.json."""
    corrections: Corrections
    index: Index

    def files(self) -> Iterator[tuple[str, Callable[[BinaryIO], None]]]:
        """Yield the name of each file of the checkpoint, and a function that writes it."""
        for name, tensors in self.tensors.items():
            yield name, partial(write_tensors, tensors)
        if len(self.corrections.entries):
            yield CORRECTIONS, partial(self.corrections.write, index=self.index)
        yield STATE, partial(_write_text, self.state)


def take_snapshot(
    state: State,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    corrections: Corrections,
    index: Index,
    average: nn.Module | None = None,
    memory: Mapping[str, Tensor] | None = None,
    host: HostCopies | None = None,
) -> Snapshot:
    """Copy what a checkpoint holds.

    Args:
        state, model, optimizer, corrections: what is trained.
        index: the index of the training split.
        average: the moving average of the weights, if the run has one.
        memory: the tensors of the scheme's state and of the random-number generators.
        host: the memory of the snapshot before, to be reused.
    """
    slots_of = optimizer.state_dict()["state"]
    sources: dict[str, Mapping[str, Tensor]] = {
        MODEL: (model if average is None else average).state_dict(),
        OPTIMIZER: {f"{n}.{name}": value for n, slots in slots_of.items() for name, value in slots.items()},
    }
    if average is not None:
        sources[TRAINED] = model.state_dict()
    if memory:
        sources[MEMORY] = memory
    host = host or HostCopies()
    copies = {file: host.take(file, tensors) for file, tensors in sources.items()}
    copied = None
    if any(value.is_cuda for value in model.state_dict().values()):
        copied = torch.cuda.Event()
        copied.record()
    return Snapshot(
        name=state.name,
        tensors=copies,
        copied=copied,
        state=json.dumps(asdict(state), indent=1),
        corrections=copy.copy(corrections),  # its arrays are replaced, never changed in place
        index=index,
    )


def write_checkpoint(folder: Path, snapshot: Snapshot) -> Path:
    """Write a checkpoint under its final name, atomically, and return its folder.

    Raises:
        ValueError: there is no room for it.
    """
    final = folder / snapshot.name
    unfinished = folder / f".unfinished-{snapshot.name}"
    try:
        _write(unfinished, snapshot)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)  # it may fill the disk
        free = shutil.disk_usage(folder).free if folder.is_dir() else 0
        raise ValueError(
            f"{final}: cannot be written ({error}); {free / 1e6:,.0f} MB are free there. The last checkpoint is whole: "
            "make room and give the command again, with this --name"
        ) from None
    shutil.rmtree(final, ignore_errors=True)
    unfinished.replace(final)
    sync(folder)
    return final


def _write(unfinished: Path, snapshot: Snapshot) -> None:
    """Write all files of a checkpoint, the marker last, and sync them to the disk."""
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    if snapshot.copied is not None:
        snapshot.copied.synchronize()
    digests = {}
    for name, write in snapshot.files():
        with _HashedFile(unfinished / name) as file:
            write(file)
        digests[name] = file.hash.hexdigest()
    (unfinished / MARKER).write_text(json.dumps(digests, indent=1))
    for path in unfinished.iterdir():
        sync(path)


class _HashedFile(io.BufferedWriter):
    """A file that computes the SHA-256 of what is written to it."""

    def __init__(self, path: Path):
        super().__init__(io.FileIO(path, "w"))
        self.hash = hashlib.sha256()

    def write(self, content: bytes | memoryview, /) -> int:  # type: ignore[override]
        """Write and hash all of the content."""
        self.hash.update(content)
        return super().write(content)


def write_tensors(tensors: Mapping[str, Tensor], file: BinaryIO) -> None:
    """Write a safetensors file tensor by tensor; the library's own writer holds the GIL and copies everything twice."""
    # largest items first, so that all are aligned
    ordered = dict(sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])))
    about, end = dict[str, object](), 0
    for name, value in ordered.items():
        begin, end = end, end + value.nbytes
        about[name] = {"dtype": _TYPES[value.dtype], "shape": list(value.shape), "data_offsets": [begin, end]}
    header = json.dumps(about, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    file.write(len(header).to_bytes(8, "little") + header)
    for value in ordered.values():
        file.write(value.contiguous().view(-1).view(torch.uint8).numpy().data)


def _write_text(text: str, file: BinaryIO) -> None:
    file.write(text.encode())

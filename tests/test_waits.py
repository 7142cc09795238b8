"""No step waits for the GPU: shown without one, on tensors that have a device and a shape and no values.

Such a tensor (torch's FakeTensor) of device `cuda` refuses whatever needs a value on the host. Beside it every copy
between host and device is looked at: it must be non-blocking, and what leaves the host must lie in pinned memory.
The engine of autograd has no queue for a device that is not there, so the graph is walked here, node by node.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from raypaml.augmentation.augmentations import augmentation_names
from raypaml.augmentation.augmenting import augment
from raypaml.augmentation.draws import Draws
from raypaml.augmentation.operations import OPERATIONS, Steps, take_steps
from raypaml.data.batches import Batch, Reader
from raypaml.data.score_table import ScoreTable
from raypaml.losses import selection
from raypaml.losses.schemes import scheme_names
from raypaml.losses.selection import select
from raypaml.model.cam import FeatureClassifier
from raypaml.runs import transfer
from raypaml.runs.corrections import Corrections
from raypaml.runs.transfer import HostCopy
from raypaml.training import scheme_state, state_builders, step
from raypaml.training.class_counts import ClassCounts
from raypaml.training.nonfinite import DivergedError, FiniteCheck
from raypaml.training.rejections import Rejections
from raypaml.training.step import settle, train_step
from raypaml.training.worker import Worker, build_worker
from tests.test_step import config

CUDA = torch.device("cuda", 0)
VALUES_ON_THE_HOST = {
    *("_local_scalar_dense", "nonzero", "masked_select", "bincount"),
    *("equal", "is_nonzero", "_unique2", "repeat_interleave"),
}
"""Operations for which the host waits, whatever the arguments, besides copies."""


class Waiting(TorchDispatchMode):
    """Notes every operation for which the host would wait for the GPU."""

    def __init__(self, pinned: Callable[[Tensor], bool]):
        super().__init__()
        self.pinned, self.found = pinned, list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        first = next((value for value in args if isinstance(value, Tensor)), None)
        if name == "_to_copy":
            self._copy(first, torch.device(kwargs.get("device") or first.device), kwargs.get("non_blocking", False))
        elif name == "copy_":
            self._copy(args[1], args[0].device, kwargs.get("non_blocking", len(args) > 2 and args[2]))
        elif first is not None and first.device.type == "cuda" and name in VALUES_ON_THE_HOST:
            self.found.append(str(func))
        return func(*args, **kwargs)

    def _copy(self, source: Tensor, target: torch.device, non_blocking: bool) -> None:
        ways = source.device.type, target.type
        if ways == ("cuda", "cpu") and not non_blocking:
            self.found.append(f"copy to the host of {list(source.shape)}")
        if ways == ("cpu", "cuda") and not (non_blocking and self.pinned(source)):
            self.found.append(f"copy to the device of {list(source.shape)}")


def gradients(outputs: Sequence[Tensor], by_outputs: Sequence[Tensor]) -> dict[int, Tensor]:
    """The gradients of all leaves, by id: what autograd's engine does, in the order of its graph."""
    order: list[Any] = []
    seen: set[Any] = set()

    def visit(node: Any) -> None:
        if node is not None and node not in seen:
            seen.add(node)
            for following, _ in node.next_functions:
                visit(following)
            order.append(node)

    by_node: dict[Any, dict[int, Tensor]] = defaultdict(dict)
    for output, by_output in zip(outputs, by_outputs, strict=True):
        visit(output.grad_fn)
        by_node[output.grad_fn][output.output_nr] = by_output
    leaves: dict[int, Tensor] = {}
    for node in reversed(order):
        given = by_node[node]
        if hasattr(node, "variable"):
            leaves[id(node.variable)] = given[0]
            continue
        arguments = [given.get(number) for number in range(len(node._input_metadata))]
        results = node.apply(*arguments) if hasattr(node, "saved_tensors") else node(*arguments)
        results = results if isinstance(results, tuple) else (results,)
        for (following, number), result in zip(node.next_functions, results, strict=False):
            if following is not None and result is not None:
                before = by_node[following].get(number)
                by_node[following][number] = result if before is None else before + result
    return leaves


def _grad(outputs: Tensor, inputs: Any, grad_outputs: Tensor | None = None) -> tuple[Tensor, ...]:
    leaves = gradients([outputs], [torch.ones_like(outputs) if grad_outputs is None else grad_outputs])
    return tuple(leaves[id(one)] for one in ([inputs] if isinstance(inputs, Tensor) else inputs))


def _backward(self: Tensor, gradient: Tensor) -> None:
    for node in _leaves(self.grad_fn):
        node.variable.grad = torch.zeros_like(node.variable)
    gradients([self], [gradient])


def _leaves(node: Any) -> Iterator[Any]:
    if hasattr(node, "variable"):
        yield node
    for following, _ in node.next_functions if node is not None else ():
        yield from _leaves(following)


class Machine:
    """A GPU that is not there: what is pinned, and which step each copy to the host began in."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.step, self._pinned, self._began = 0, list[Tensor](), dict[int, int]()
        self.diverged = False
        patch.setattr(Tensor, "is_pinned", lambda tensor: self.pinned(tensor))
        patch.setattr(Tensor, "pin_memory", lambda tensor: self.pin(tensor.clone()))
        patch.setattr(torch.cuda, "Event", lambda: SimpleNamespace(record=lambda: None))
        patch.setattr(transfer, "_beside", _beside)
        patch.setattr(torch.autograd, "grad", _grad)
        patch.setattr(Tensor, "backward", _backward)
        patch.setattr(step, "check_labels", _on_the_host)
        patch.setattr(FiniteCheck, "message", lambda check: check.finite.wait() and "")
        begin = HostCopy.of
        patch.setattr(HostCopy, "of", lambda tensor: self._begun(begin(tensor)))
        patch.setattr(HostCopy, "wait", lambda copy: self._wait(copy))

    def pinned(self, tensor: Tensor) -> bool:
        return any(tensor is one for one in self._pinned)

    def pin(self, tensor: Tensor) -> Tensor:
        self._pinned.append(tensor)
        return tensor

    def _begun(self, copy: HostCopy) -> HostCopy:
        self.pin(copy._values)  # and so kept: no other gets its id
        self._began[id(copy._values)] = self.step
        return copy

    def _wait(self, copy: HostCopy) -> Any:
        assert self._began[id(copy._values)] < self.step, "waited for in the step that began it"
        return SimpleNamespace(numpy=lambda: np.ones(copy._values.shape, bool), tolist=lambda: [self.diverged, False])


@contextmanager
def _beside(device: torch.device) -> Iterator[list[Tensor]]:
    assert device == CUDA
    yield []


def _on_the_host(labels: Tensor, scheme: str) -> None:
    assert labels.device.type == "cpu"


@dataclass
class Training:
    """A worker of whose tensors only the GPU's shapes are there, the mode that they live in, and real batches."""

    mode: FakeTensorMode
    worker: Worker
    batches: list[Batch]


@pytest.fixture(scope="module")
def training(tiny_digits: Path) -> Training:
    values = {"reproducible": False, "history": True, "flip": True, "ema": 0.9, "clip_gradient": 1.0}
    worker = build_worker(config(**values), tiny_digits, Path("nowhere"), torch.device("cpu"), lambda _: False)
    reader = Reader(worker.data.path, worker.data.splits["train"], worker.plan.epoch(0, 0, 1), with_truth=True)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        for module in (one for model in (worker.model, worker.average) for one in model.modules()):
            for kept in (module._parameters, module._buffers):
                for name in [name for name, value in kept.items() if value is not None]:
                    value = kept[name]
                    there = torch.empty_like(value, device=CUDA)
                    kept[name] = nn.Parameter(there, value.requires_grad) if kept is module._parameters else there
        worker.tally = worker.tally.to(CUDA)
        worker.class_counts = ClassCounts(50, CUDA)
    worker.ranks = dataclasses.replace(worker.ranks, device=CUDA)
    worker.state.epoch = 2
    groups = [{"lr_mult": 1.0}, {"lr_mult": 10.0}]
    # torch's own fused kernel looks at no value
    worker.optimizer = SimpleNamespace(param_groups=groups, zero_grad=lambda **_: None, step=lambda: None)
    return Training(mode, worker, [reader[0], reader[1]])


def waits(training: Training, patch: pytest.MonkeyPatch, *, diverged: bool = False, **values: Any) -> list[str]:
    """What the host would wait for in two steps with these settings."""
    machine, worker, data = Machine(patch), training.worker, training.worker.data
    machine.diverged = diverged
    settings = worker.config.override(values)
    worker = dataclasses.replace(
        worker,
        config=settings,
        scheme_state=state_builders.scheme_state_of(settings, data),
        corrections=Corrections(len(data.vocabulary), np.arange(500)),
        rejections=Rejections(Path("nowhere"), data.splits["train"], 0),
        skipped=[],
        finite_check=None,
    )
    with training.mode:
        worker.scheme_state.live_on(CUDA)
        with Waiting(machine.pinned) as waiting:
            for batch in training.batches:
                machine.step += 1
                for tensor in (batch.images, batch.labels, batch.truth, batch.flip):  # as the loader does for a GPU
                    machine.pin(tensor)
                train_step(worker, batch)
            machine.step += 1
            settle(worker)
    assert len(worker.skipped) == diverged * sum(len(batch.rows) for batch in training.batches)
    return waiting.found


@pytest.fixture(autouse=True)
def _priors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Class priors and pseudo labels, without the run and the file that they would come from."""
    tenth = scheme_state.ClassPriors(torch.full((50,), 0.1))
    monkeypatch.setitem(state_builders.STATE_BUILDERS, "class_priors", lambda _: tenth)
    table = SimpleNamespace(scores=lambda rows: np.full((len(rows), 50), 0.4, np.float32))
    pseudo = scheme_state.PseudoScores(cast("ScoreTable", table), 2.0)
    monkeypatch.setitem(state_builders.STATE_BUILDERS, "pseudo_scores", lambda _: pseudo)


@pytest.mark.parametrize("scheme", scheme_names())
def test_no_scheme_waits(scheme: str, training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    assert waits(training, monkeypatch, scheme=scheme) == []


@pytest.mark.parametrize("scheme", ["ll_cp", "ignore", "em_apl", "role"])  # with corrections, and each state
@pytest.mark.parametrize("values", [{"nonfinite": "skip"}, {"nonfinite": "skip", "diverged": True}], ids=str)
def test_skipping_does_not_wait(
    scheme: str, values: dict[str, Any], training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert waits(training, monkeypatch, scheme=scheme, skip_budget=0.5, **values) == []


def test_rolling_back_does_not_wait(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    assert waits(training, monkeypatch, scheme="ll_cp", nonfinite="rollback") == []
    with pytest.raises(DivergedError, match="rank 0, epoch 3, step 1: logits of another rank are not finite"):
        waits(training, monkeypatch, nonfinite="rollback", diverged=True)


def test_micro_batches_do_not_wait(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    assert waits(training, monkeypatch, scheme="ll_cp", micro_batch_size=20) == []


@pytest.mark.parametrize("most", [0, selection.MOST_GATHERED])
def test_the_selection_over_all_ranks_does_not_wait(
    most: int, training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(monkeypatch)
    monkeypatch.setattr(selection, "MOST_GATHERED", most)
    monkeypatch.setattr(selection, "all_reduce", lambda *_: None)
    monkeypatch.setattr(selection, "all_gather", lambda *_: None)
    monkeypatch.setattr(dist, "get_world_size", lambda _: 2)
    with training.mode, Waiting(machine.pinned) as waiting:
        logits, labels = torch.empty((4, 50), device=CUDA), torch.empty((4, 50), dtype=torch.int8, device=CUDA)
        assert select(logits, labels, 9, group=cast("dist.ProcessGroup", "all")).device == CUDA
    assert waiting.found == []


@pytest.mark.parametrize("name", augmentation_names())
def test_no_augmentation_waits(name: str, training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    machine, record = Machine(monkeypatch), training.worker.config.override({"augment": name}).augmentation
    with training.mode, Waiting(machine.pinned) as waiting:
        images = torch.empty((2, 3, 32, 32), dtype=torch.uint8, device=CUDA)
        changed = augment(images, record, record.numbers(""), Draws(0, 0, np.arange(2)))
        assert changed.device == CUDA
    assert waiting.found == []


def test_no_operation_on_images_waits(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    machine, count = Machine(monkeypatch), len(OPERATIONS)
    steps = Steps([*OPERATIONS], np.arange(count)[:, None], np.ones((count, 1, 3)))
    with training.mode, Waiting(machine.pinned) as waiting:
        take_steps(torch.empty((count, 3, 32, 32), dtype=torch.uint8, device=CUDA), steps)
    assert waiting.found == []
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)  # what is not pinned would be waited for
    with training.mode, Waiting(machine.pinned) as waiting:
        take_steps(torch.empty((count, 3, 32, 32), dtype=torch.uint8, device=CUDA), steps)
    assert len(waiting.found) == 2


def test_the_head_on_kept_features_does_not_wait(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    model = training.worker.model
    kept = [torch.zeros(len(batch.rows), model.head.in_channels, 7, 7).half() for batch in training.batches]
    batches = [dataclasses.replace(batch, images=images) for batch, images in zip(training.batches, kept, strict=True)]
    worker = dataclasses.replace(training.worker, wrapped=FeatureClassifier(model))
    frozen = dataclasses.replace(training, worker=worker, batches=batches)
    assert waits(frozen, monkeypatch, scheme="ll_cp", flip=False) == []


def test_a_step_that_waits_is_seen(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    def looking(*_: Any) -> None:
        torch.zeros(3, device=CUDA).cpu()
        torch.ones(2).to(CUDA, non_blocking=True)  # from memory that is not pinned
        torch.zeros(4, device=CUDA).new_tensor(5)

    monkeypatch.setattr(step, "_update", looking)
    expected = ["copy to the host of [3]", "copy to the device of [2]", "copy to the device of []"]
    assert waits(training, monkeypatch) == 2 * expected

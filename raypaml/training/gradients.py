"""Gradients that do not depend on the number of workers, to the last bit.

Float addition depends on its order, and training amplifies the last bit: without this, one and two workers part
within an epoch. Each lane's gradient is therefore computed by itself, in a batch of the same shape wherever it
runs, and lanes are added as integers, which is exact in any order.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from raypaml.collectives import all_reduce
from raypaml.model.layout import laid_out_as
from raypaml.runs.ranks import Ranks

BITS = 52
"""Of a gradient relative to the largest of its tensor; 64 lanes of these fit into an int64, float32 has 24."""


def check_reproducible(model: nn.Module, micro_batch_size: int, lane: int, *, always_frozen: bool = False) -> None:
    """Raise ValueError for a model whose state depends on which images a worker sees, or lanes that would be cut.

    A BatchNorm in a backbone that never learns uses fixed statistics.
    """
    if 0 < micro_batch_size < lane:
        raise ValueError(
            f"micro_batch_size={micro_batch_size}: reproducible computes whole lanes, here of {lane} images; "
            f"use at least {lane}, or more lanes"
        )
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not always_frozen:
            raise ValueError(
                f"reproducible: {name} is a BatchNorm, its running statistics depend on the number of workers; "
                "use --no-reproducible, a backbone without BatchNorm (small), or --freeze-backbone for all epochs"
            )


def check_draws_nothing(model: nn.Module, height: int, width: int) -> None:
    """Raise ValueError, with its name, for a layer that draws random numbers when the model trains on images [H, W].

    Dropout and its kin are known by what they do, whoever wrote them: torch's generator has moved after their forward.
    """
    trial, before = copy.deepcopy(model).cpu().train(), dict[str, Tensor]()
    for name, module in trial.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: before.update({name: torch.get_rng_state()}))
        module.register_forward_hook(functools.partial(_refuse_draws, name, before))  # inner ones are asked first
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        trial(torch.zeros((2, 3, height, width), dtype=torch.uint8))


def _refuse_draws(name: str, before: dict[str, Tensor], module: nn.Module, *_: object) -> None:
    if not torch.equal(before[name], torch.get_rng_state()):
        raise ValueError(
            f"reproducible: {name} ({type(module).__name__}) draws random numbers, other ones on other workers; "
            "use --no-reproducible, a backbone that draws none (small), or --freeze-backbone for all epochs"
        )


def add_exactly(model: nn.Module, lanes: Iterable[tuple[Tensor, Tensor]], ranks: Ranks) -> None:
    """Set every parameter's gradient to the exactly rounded sum over all lanes of all ranks; NaN if one is not finite.

    Args:
        model: its parameters that learn gave the logits.
        lanes: of each lane of this rank the logits [b, K] and the loss's gradient by them; none in an empty part.
        ranks: the ranks to add over.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    sizes = [parameter.numel() for parameter in parameters]
    found = [torch.autograd.grad(logits, parameters, gradient) for logits, gradient in lanes]
    largest = torch.zeros(len(parameters), dtype=torch.float64, device=ranks.device)
    for lane in found:
        largest = largest.maximum(torch.stack([gradient.abs().amax() for gradient in lane]).double())
    largest = largest.nan_to_num(torch.inf, posinf=torch.inf)  # a maximum over ranks may lose NaN
    if ranks.group is not None:
        all_reduce(largest, ranks.group, dist.ReduceOp.MAX)
    _, exponent = torch.frexp(largest)
    unit = torch.ldexp(torch.ones_like(largest), exponent - BITS)
    unit = torch.where(largest.isfinite(), unit, torch.nan)
    unit = unit.repeat_interleave(torch.tensor(sizes, device=ranks.device))
    total = torch.zeros(sum(sizes), dtype=torch.int64, device=ranks.device)
    for lane in found:
        total += (torch.cat([gradient.flatten() for gradient in lane]).double() / unit).round().long()
    total = ranks.sum(total)
    summed = torch.split(total.double() * unit, sizes)
    for parameter, gradient in zip(parameters, summed, strict=True):
        parameter.grad = laid_out_as(parameter, gradient.view_as(parameter))


def lay_out_gradients(model: nn.Module) -> None:
    """Give every gradient the strides of its parameter, where autograd may differ: in dimensions of size 1."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad = laid_out_as(parameter, parameter.grad)

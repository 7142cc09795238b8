"""Gradients that do not depend on the number of workers, to the last bit.

Float addition depends on its order, and training amplifies differences in the last bit: without this module, runs on
one and on two workers diverge within an epoch. Each lane's gradient is therefore computed by itself, in a batch of the
same shape wherever it runs, and the lanes are added as integers, which is exact in any order.
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
"""Bits of a gradient's integer, relative to the largest of its tensor: the sum of 64 lanes then fits into an int64, and
float32 has only 24."""


def check_reproducible(model: nn.Module, micro_batch_size: int, lane: int, *, always_frozen: bool = False) -> None:
    """Raise ValueError where a model's state depends on which images a worker sees, or micro batches would cut lanes.

    Args:
        model: the model.
        micro_batch_size: images taken through the network at once; 0: all.
        lane: the number of images of a lane.
        always_frozen: whether the backbone never learns, so that a BatchNorm in it uses fixed statistics.
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
    """Raise ValueError, naming the layer, where one draws random numbers when the model trains on images [H, W].

    Such layers, dropout for instance, are recognised by what they do: they change the state of torch's generator.
    """
    trial, before = copy.deepcopy(model).cpu().train(), dict[str, Tensor]()
    for name, module in trial.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: before.update({name: torch.get_rng_state()}))
        module.register_forward_hook(functools.partial(_refuse_draws, name, before))  # inner layers come first
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
        model: the model, whose learning parameters gave the logits.
        lanes: for each lane of this rank its logits [b, K] and the gradient of the loss with respect to them; none
            where this rank's part of the batch is empty.
        ranks: the ranks whose lanes are added.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    sizes = [parameter.numel() for parameter in parameters]
    by_lane = [torch.autograd.grad(logits, parameters, gradient) for logits, gradient in lanes]
    largest = torch.zeros(len(parameters), dtype=torch.float64, device=ranks.device)
    for lane in by_lane:
        largest = largest.maximum(torch.stack([gradient.abs().amax() for gradient in lane]).double())
    largest = largest.nan_to_num(torch.inf, posinf=torch.inf)  # a maximum over ranks may lose NaN
    if ranks.group is not None:
        all_reduce(largest, ranks.group, dist.ReduceOp.MAX)
    _, exponent = torch.frexp(largest)
    unit = torch.ldexp(torch.ones_like(largest), exponent - BITS)
    unit = torch.where(largest.isfinite(), unit, torch.nan)
    unit = unit.repeat_interleave(torch.tensor(sizes, device=ranks.device))
    total = torch.zeros(sum(sizes), dtype=torch.int64, device=ranks.device)
    for lane in by_lane:
        total += (torch.cat([gradient.flatten() for gradient in lane]).double() / unit).round().long()
    total = ranks.sum(total)
    summed = torch.split(total.double() * unit, sizes)
    for parameter, gradient in zip(parameters, summed, strict=True):
        parameter.grad = laid_out_as(parameter, gradient.view_as(parameter))


def lay_out_gradients(model: nn.Module) -> None:
    """Give every gradient the strides of its parameter, from which autograd's may differ in dimensions of size 1."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad = laid_out_as(parameter, parameter.grad)

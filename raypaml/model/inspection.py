"""Where the spatial feature map of a classifier lies, found by looking at what it computes, not by a list of models.

The forward pass is traced down to modules that are not plain sequences. From the classifier, the last linear layer or
convolution, one walks back over what belongs to it (pooling to a fixed size, flattening, norms, activations, dropout,
linear layers) to the first feature map. What lies before it is the backbone, made of the modules of the origin.
Shapes come from torch's meta device, which computes no values.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import activation
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd

SIZES = (448, 224)
"""Images that an unknown network is tried with, square, in pixels."""

Shape = tuple[int, ...]

_RESIZED = (_AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd)
_OF_A_HEAD = (*_RESIZED, _AvgPoolNd, _DropoutNd, _NormBase, nn.LayerNorm, nn.GroupNorm, nn.Linear, nn.Flatten)
_CALLS_OF_A_HEAD = ("adaptive_avg_pool2d", "flatten", "mean", "relu", "dropout", "reshape", "view", "squeeze")


@dataclass(frozen=True)
class FeatureMap:
    """A network that ends with a map [B, D, h, w]."""

    net: nn.Module
    origin: nn.Module
    """The part of it whose weights have the origin's names; itself, unless something was put around it."""
    num_channels: int
    """D."""
    stride: int
    """Pixels between neighbouring places of the map."""
    size: int
    """Side of the smallest square images that it was tried with and takes, in pixels."""


class _Tracer(fx.Tracer):
    """Traces plain sequences; every other module stays whole, with what it does in training and in evaluation."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        return not isinstance(m, nn.Sequential)


class _Shapes(fx.Interpreter):
    """Notes the shape of every value for this image size."""

    size: int

    def run_node(self, n: fx.Node) -> Any:
        found = super().run_node(n)
        if isinstance(found, Tensor):
            n.meta.setdefault("shapes", {})[self.size] = tuple(found.shape[1:])
        return found


def cut_classifier(whole: nn.Module) -> FeatureMap:
    """The part of a classifier that gives its last feature map; its modules and their names are those of the origin.

    Raises:
        ValueError: no map that is only pooled and classified; says what the nearest one goes through.
    """
    traced = fx.GraphModule(whole, _Tracer().trace(whole), type(whole).__name__)
    traced.graph.eliminate_dead_code()  # auxiliary classifiers
    _note_shapes(traced)
    (output,) = traced.graph.find_nodes(op="output")
    node, behind = _before_classifier(traced, output), list[fx.Node]()
    while not _is_map(traced, node):
        behind.append(node)
        if not node.all_input_nodes:
            raise ValueError("nothing in it gives a map [D, h, w]")
        node = max(reversed(node.all_input_nodes), key=lambda one: len(_shape(one)))
    strange = [_name(traced, other) for other in reversed(behind) if not _of_a_head(traced, other)]
    if strange:
        raise ValueError(
            f"its last map, {list(_shape(node))} of {_name(traced, node)}, goes on through {', '.join(strange)}; a "
            "class activation map needs one that is only pooled and classified"
        )
    output.args = (node,)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    traced.delete_all_unused_submodules()
    shapes = node.meta["shapes"]
    return FeatureMap(traced, traced, _shape(node)[0], _stride(shapes), min(shapes))


def as_feature_map(net: nn.Module, num_channels: int | None = None, sizes: tuple[int, ...] = SIZES) -> FeatureMap:
    """A network that was asked to end with its map, as [B, D, h, w].

    Args:
        num_channels: D, by which [h, w, D] is known; without it channels come first.
        sizes: of the square images that it is tried with, in pixels.

    Raises:
        ValueError: it does not, or takes none of these sizes.
    """
    traced = fx.GraphModule({"net": net}, _call_of_net())
    _note_shapes(traced, sizes)
    (output,) = traced.graph.find_nodes(op="output")
    shapes = output.args[0].meta["shapes"]
    shape = next(iter(shapes.values()))
    if len(shape) != 3 or num_channels not in (None, shape[0], shape[2]):
        raise ValueError(f"it gives {list(shape)} for an image, which is no map [D, h, w]")
    first = num_channels in (None, shape[0])
    ordered = net if first else nn.Sequential(net, _ChannelsFirst())
    return FeatureMap(ordered, net, shape[0] if first else shape[2], _stride(shapes), min(shapes))


class _ChannelsFirst(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return features.permute(0, 3, 1, 2)


def _call_of_net() -> fx.Graph:
    graph = fx.Graph()
    graph.output(graph.call_module("net", (graph.placeholder("images"),)))
    return graph


def _note_shapes(traced: fx.GraphModule, sizes: tuple[int, ...] = SIZES) -> None:
    """Note the shapes for all sizes that the network takes; ValueError if it takes none."""
    empty = copy.deepcopy(traced).to("meta").eval()
    shapes, taken, reason = _Shapes(empty), list[int](), ""
    for shapes.size in dict.fromkeys(sizes):
        try:
            with torch.no_grad():
                shapes.run(torch.empty((2, 3, shapes.size, shapes.size), device="meta"))
            taken.append(shapes.size)
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = str(error).split("\n")[0]
    if not taken:
        raise ValueError(f"it takes no images of {' or '.join(f'{size} x {size}' for size in sizes)} ({reason})")
    for node, noted in zip(traced.graph.nodes, empty.graph.nodes, strict=True):
        found = noted.meta.get("shapes", {})
        node.meta["shapes"] = {size: found[size] for size in taken if size in found}


def _shape(node: fx.Node) -> Shape:
    return next(iter(node.meta["shapes"].values()), ())


def _stride(shapes: dict[int, Shape]) -> int:
    """From two sizes, for a border may cost a place; from one where the network takes no other."""
    (large, (_, grid, _)), (size, (_, smaller, _)) = (*shapes.items(), *shapes.items())[:2]
    return round((large - size) / (grid - smaller) if grid > smaller else large / grid)


def _module(traced: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return traced.get_submodule(str(node.target)) if node.op == "call_module" else None


def _name(traced: fx.GraphModule, node: fx.Node) -> str:
    module = _module(traced, node)
    called = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.name)
    return str(called) if module is None else f"{called} ({type(module).__name__})"


def _before_classifier(traced: fx.GraphModule, output: fx.Node) -> fx.Node:
    """What feeds the last linear layer or convolution."""
    node = output.all_input_nodes[0]
    while not isinstance(_module(traced, node), nn.Linear | nn.Conv2d):
        if not _of_a_head(traced, node):
            raise ValueError(f"it ends with {_name(traced, node)}, not with a linear classifier")
        node = node.all_input_nodes[0]
    return node.all_input_nodes[0]


def _of_a_head(traced: fx.GraphModule, node: fx.Node) -> bool:
    module = _module(traced, node)
    if module is None:
        return _name(traced, node) in _CALLS_OF_A_HEAD
    return isinstance(module, _OF_A_HEAD) or type(module).__module__ == activation.__name__


def _is_map(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether this is a map: not one place, nor pooled to a fixed size, nor the same map with some of it dropped."""
    shape = _shape(node)
    return (
        len(shape) == 3 and shape[1] * shape[2] > 1 and not isinstance(_module(traced, node), (*_RESIZED, _DropoutNd))
    )

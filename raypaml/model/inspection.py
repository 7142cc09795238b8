"""Finds the last feature map of any classifier from its computation graph, without a list of known models.

`torch.fx` traces the forward pass into every `nn.Sequential` and keeps other modules whole. From the classifier, which
is the last linear layer or convolution, the search goes back over the layers of a head (pooling to a fixed size,
flattening, norms, activations, dropout, linear layers) to the first feature map. The modules before it are the
backbone, under their own names. Shapes come from torch's meta device, which computes no values.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import activation
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd

SIZES = (448, 224)
"""Sides of the square images that an unknown network is tried with, in pixels."""

Shape = tuple[int, ...]

_RESIZED = (_AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd)
_HEAD_LAYERS = (*_RESIZED, _AvgPoolNd, _DropoutNd, _NormBase, nn.LayerNorm, nn.GroupNorm, nn.Linear, nn.Flatten)
_HEAD_CALLS = ("adaptive_avg_pool2d", "flatten", "mean", "relu", "dropout", "reshape", "view", "squeeze")


@dataclass(frozen=True)
class FeatureMap:
    """A network that ends with a map [B, D, h, w]."""

    net: nn.Module
    origin: nn.Module
    """The submodule whose weights have the names of the original model; `net` itself, unless it wraps that model."""
    num_channels: int
    """D."""
    stride: int
    """Pixels between neighbouring places of the map."""
    size: int
    """Side, in pixels, of the smallest square images among those tried that it takes."""


class _Tracer(fx.Tracer):
    """Traces into `nn.Sequential` only; other modules stay whole and so keep their training and evaluation modes."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        return not isinstance(m, nn.Sequential)


class _Shapes(fx.Interpreter):
    """Notes the shape of every node's value, without the batch dimension, for images of one size."""

    size: int

    def run_node(self, n: fx.Node) -> object:
        value: object = super().run_node(n)
        if isinstance(value, Tensor):
            n.meta.setdefault("shapes", {})[self.size] = tuple(value.shape[1:])
        return value


def cut_classifier(whole: nn.Module) -> FeatureMap:
    """The part of a classifier that ends with its last feature map; modules and names are those of the classifier.

    Raises:
        ValueError: it has no map that is only pooled and classified; the message names the layers in between.
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
    others = [_name(traced, other) for other in reversed(behind) if not _of_a_head(traced, other)]
    if others:
        raise ValueError(
            f"its last map, {list(_shape(node))} of {_name(traced, node)}, goes on through {', '.join(others)}; a "
            "class activation map needs one that is only pooled and classified"
        )
    output.args = (node,)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    traced.delete_all_unused_submodules()
    shapes = node.meta["shapes"]
    return FeatureMap(traced, traced, _shape(node)[0], _stride(shapes), min(shapes))


def as_feature_map(net: nn.Module, num_channels: int | None = None, sizes: tuple[int, ...] = SIZES) -> FeatureMap:
    """A network that ends with a map, as one that gives [B, D, h, w].

    Args:
        num_channels: D, which tells a map [h, w, D] from one [D, h, w]; None: channels come first.
        sizes: sides of the square images that it is tried with, in pixels.

    Raises:
        ValueError: it does not end with a map, or takes none of these sizes.
    """
    graph = fx.Graph()
    graph.output(graph.call_module("net", (graph.placeholder("images"),)))
    traced = fx.GraphModule({"net": net}, graph)
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


def _note_shapes(traced: fx.GraphModule, sizes: tuple[int, ...] = SIZES) -> None:
    """Note the shapes for all sizes that the network takes. Raises ValueError if it takes none of them."""
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
        shapes_by_size = noted.meta.get("shapes", {})
        node.meta["shapes"] = {size: shapes_by_size[size] for size in taken if size in shapes_by_size}


def _shape(node: fx.Node) -> Shape:
    return next(iter(node.meta["shapes"].values()), ())


def _stride(shapes: dict[int, Shape]) -> int:
    """Pixels between places of the map, from two image sizes where possible, because a border may cost a place."""
    (large, (_, grid, _)), (size, (_, smaller, _)) = (*shapes.items(), *shapes.items())[:2]
    return round((large - size) / (grid - smaller) if grid > smaller else large / grid)


def _module(traced: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return traced.get_submodule(str(node.target)) if node.op == "call_module" else None


def _name(traced: fx.GraphModule, node: fx.Node) -> str:
    module = _module(traced, node)
    called = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.name)
    return str(called) if module is None else f"{called} ({type(module).__name__})"


def _before_classifier(traced: fx.GraphModule, output: fx.Node) -> fx.Node:
    """The node whose value the last linear layer or convolution takes."""
    node = output.all_input_nodes[0]
    while not isinstance(_module(traced, node), nn.Linear | nn.Conv2d):
        if not _of_a_head(traced, node):
            raise ValueError(f"it ends with {_name(traced, node)}, not with a linear classifier")
        node = node.all_input_nodes[0]
    return node.all_input_nodes[0]


def _of_a_head(traced: fx.GraphModule, node: fx.Node) -> bool:
    module = _module(traced, node)
    if module is None:
        return _name(traced, node) in _HEAD_CALLS
    return isinstance(module, _HEAD_LAYERS) or type(module).__module__ == activation.__name__


def _is_map(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node gives a map of several places that is neither pooled to a fixed size nor the result of dropout."""
    shape = _shape(node)
    return (
        len(shape) == 3 and shape[1] * shape[2] > 1 and not isinstance(_module(traced, node), (*_RESIZED, _DropoutNd))
    )

"""The classifier: backbone, 1x1 convolution that gives the class activation map, BoostLU, spatial mean.

Dimensions: B images, K classes, D channels, h w CAM grid, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from raypaml.model.backbones import IMAGENET_MEAN, IMAGENET_STD
from raypaml.model.pooling import pooled_map
from raypaml.model.weights import common_prefix, read_weights


def check_alpha(alpha: float) -> None:
    """Raise ValueError unless alpha >= 1."""
    if not 1 <= alpha < float("inf"):
        raise ValueError(
            f"alpha={alpha}: BoostLU needs alpha >= 1 (1 switches it off); below 1, max(x, alpha x) would leave "
            "positive attributions alone and shrink the negative ones"
        )


def boostlu(cam: Tensor, alpha: float | Iterable[float]) -> Tensor:
    """BoostLU(x) = max(x, alpha x): multiplies positive attributions by alpha and leaves the others unchanged.

    Args:
        cam: class activation map [..., h, w].
        alpha: factor >= 1, published as 5; or one factor for each class of a map [..., K, h, w].

    Returns:
        The boosted map, of the same shape. Its derivative at exactly 0 is alpha. (BoostLU, CVPR 2023, section 4.)
    """
    if isinstance(alpha, Iterable):
        factors = _class_alphas(alpha, cam.shape[-3]).to(cam)
        return torch.where(cam >= 0, factors[:, None, None] * cam, cam)
    check_alpha(alpha)
    return torch.where(cam >= 0, alpha * cam, cam)


def _class_alphas(given: Iterable[float], num_classes: int) -> Tensor:
    """The factors as float32 [K]. Raises ValueError unless there are K of them, each >= 1."""
    alphas = [float(alpha) for alpha in given]
    if len(alphas) != num_classes:
        raise ValueError(f"alpha: {len(alphas)} values for {num_classes} classes; give one for each, or one for all")
    for alpha in alphas:
        check_alpha(alpha)
    return torch.tensor(alphas, dtype=torch.float32)


def pool_parts(cam: Tensor) -> tuple[Tensor, Tensor]:
    """P = mean(max(cam, 0)) and N = mean(min(cam, 0)) over the grid, in float32.

    `alpha * P + N` is the spatial mean of the boosted map for every alpha, so that no boosted map has to be built. This
    is the reference implementation; the classifier uses `pooling.pooled_map`, which never builds the whole map.

    Args:
        cam: [B, K, h, w].

    Returns:
        P [B, K] >= 0 and N [B, K] <= 0.
    """
    cam = cam if cam.dtype == torch.float64 else cam.float()
    positive = torch.where(cam >= 0, cam, 0.0)  # two clamps would give P and N a gradient at 0
    return positive.mean((-2, -1)), (cam - positive).mean((-2, -1))


class CamClassifier(nn.Module):
    """Backbone, 1x1 convolution giving the CAM (bias included), BoostLU, spatial mean.

    Args:
        backbone: normalised images [B, 3, H, W] -> features [B, D, h, w], with an attribute `num_channels` = D, and
            `mean` and `std` of pixel values 0..1 for each channel where they are not ImageNet's.
        num_classes: K.
        alpha: BoostLU's factor, >= 1, used in training and in evaluation; or, after training, one for each class.
    """

    mean: Tensor
    std: Tensor
    alpha: float | Tensor
    """BoostLU's factor: one for all classes, or a tensor [K]."""

    def __init__(self, backbone: nn.Module, num_classes: int, alpha: float | Iterable[float] = 5.0):
        super().__init__()
        if isinstance(alpha, Iterable):  # not in the state dict, for it is chosen after training
            self.register_buffer("alpha", _class_alphas(alpha, num_classes), persistent=False)
        else:
            check_alpha(alpha)
            self.alpha = alpha
        self.rejection_alpha: float | None = None
        """The alpha of the logits that rank entries for rejection; None: those of the loss rank them."""
        self.frozen = False
        """Whether the backbone's weights and its BatchNorm statistics stay as they are."""
        self.backbone = backbone
        self.head = nn.Conv2d(int(backbone.num_channels), num_classes, kernel_size=1)  # type: ignore[arg-type]
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]
        for name, usual in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            values = torch.tensor(getattr(backbone, name, usual)).view(3, 1, 1)
            self.register_buffer(name, 255 * values, persistent=False)

    def alpha_of(self, k: int) -> float:
        """BoostLU's factor for one class."""
        return float(self.alpha[k]) if isinstance(self.alpha, Tensor) else self.alpha

    def freeze(self, frozen: bool) -> None:
        """Freeze the backbone, whose BatchNorm then stays in evaluation mode; or let it learn again."""
        self.frozen = frozen
        self.backbone.requires_grad_(not frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def features(self, images: Tensor) -> Tensor:
        """Features [B, D, h, w] of uint8 images [B, 3, H, W]."""
        return self.backbone((images.to(self.mean.dtype) - self.mean) / self.std)  # type: ignore[no-any-return]

    def cam(self, images: Tensor) -> Tensor:
        """The whole raw map [B, K, h, w] of uint8 images [B, 3, H, W]."""
        return self.head(self.features(images))  # type: ignore[no-any-return]

    def pooled(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """P and N [B, K] of uint8 images [B, 3, H, W], without a whole map; logits at any alpha are `alpha P + N`."""
        return self.pooled_features(self.features(images))

    def pooled_features(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """P and N [B, K] of features [B, D, h, w], which may be kept ones in float16."""
        return pooled_map(features, self.head.weight, self.head.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """Float32 logits [B, K] of uint8 images [B, 3, H, W]; [B, 2 K] where `rejection_alpha` is set."""
        return with_ranking(*self.pooled(images), self.alpha, self.rejection_alpha)


class FeatureClassifier(nn.Module):
    """The head of a classifier: features [B, D, h, w] -> logits; it shares the classifier's weights."""

    def __init__(self, model: CamClassifier):
        super().__init__()
        self.alpha, self.rejection_alpha, self.head = model.alpha, model.rejection_alpha, model.head

    def forward(self, features: Tensor) -> Tensor:
        """The classifier's logits, in float32 also for features that were kept in half precision."""
        positive, negative = pooled_map(features, self.head.weight, self.head.bias)  # type: ignore[arg-type]
        return with_ranking(positive, negative, self.alpha, self.rejection_alpha)


def with_ranking(positive: Tensor, negative: Tensor, alpha: float | Tensor, rejection_alpha: float | None) -> Tensor:
    """Logits [B, K] from P and N [B, K]; with a `rejection_alpha`, [B, 2 K].

    The second half then holds the logits at `rejection_alpha`, which rank entries for rejection and take no gradient.
    """
    logits = alpha * positive + negative
    if rejection_alpha is None:
        return logits
    return torch.cat([logits, (rejection_alpha * positive + negative).detach()], 1)


def load_classifier(model: CamClassifier, path: Path, layer: str = "fc") -> None:
    """Load a linear classifier over pooled features (GAP + FC) into the CAM head, weight for weight.

    At alpha 1 the logits are then that classifier's: a linear layer of mean features is the mean of the linear layer.

    Args:
        model: its head takes the weights.
        path: a weight file that `read_weights` can read, with the layer's weight [K, D] and bias [K].
        layer: the name of the layer; in the file it may have the prefix that the backbone's names have.

    Raises:
        ValueError: the file has no such tensors, or they have another shape.
    """
    weights, _ = read_weights(path)
    names = [f"{layer}.{name}" for name, _ in model.head.named_parameters()]
    prefix = common_prefix(
        weights, {*names, *(name.removeprefix(str(model.backbone.prefix)) for name in model.backbone.state_dict())}
    )
    for name, parameter in zip(names, model.head.parameters(), strict=True):
        wanted = list(parameter.shape[:2])
        value = weights.get(prefix + name)
        if value is None:
            raise ValueError(f"head_weights: {path} has no {prefix}{name}; leave --head-weights out, or name it so")
        if list(value.squeeze((-2, -1)).shape if value.ndim == 4 else value.shape) != wanted:
            raise ValueError(
                f"head_weights: {prefix}{name} of {path} is {list(value.shape)}, this head needs {wanted}: the "
                "vocabulary and the backbone must be those it was trained with; leave --head-weights out"
            )
        parameter.data.copy_(value.view_as(parameter))

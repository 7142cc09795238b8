"""A trained model that is ready for pictures: `raypaml.load(path)`, then `model.predict(picture)`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeGuard, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from raypaml.cli import did_you_mean
from raypaml.errors import told_as_user_errors
from raypaml.files import Place, check_readable
from raypaml.inference.model_card import Card, ModelFiles
from raypaml.inference.pictures import Picture, fit_to_size, read_picture
from raypaml.labels import RealArray
from raypaml.metrics.thresholds import sigmoid
from raypaml.model.backbones import build_backbone
from raypaml.model.cam import CamClassifier, pool_parts
from raypaml.runs.alpha_of_use import alpha_text
from raypaml.runs.models import evaluating, placed, prepare_device

Given = Image.Image | Path | str | NDArray[np.uint8] | Tensor
"""A picture: a PIL image, the path of a file, a uint8 array [H, W], [H, W, 3] or [H, W, 4], or a uint8 tensor
[3, H, W]."""
_WANTED = (
    "give a PIL image, the path of a picture, a uint8 array [H, W], [H, W, 3] or [H, W, 4], a uint8 tensor [3, H, W], "
    "or a list of these"
)
_BATCH = 32


@dataclass(frozen=True)
class ScoredClass:
    """A class that the model gives a picture, with its score."""

    class_id: str
    name: str
    score: float
    """Probability, 0..1."""


class Classifier:
    """A trained model, its card, and its device."""

    def __init__(self, model: CamClassifier, card: Card, device: torch.device | str = "cpu"):
        try:  # whether torch knows the device, and can use it on this machine
            self.device = torch.empty(0, device=device).device
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device={device}: {str(error).splitlines()[0]}") from None
        self.card = card
        self.model = placed(model, self.device).eval()
        prepare_device(card.optim, self.device)

    @property
    def alpha(self) -> float | list[float]:
        """BoostLU's factor, one for all classes or [K]; `card.alpha_origin` says where it comes from."""
        return self.card.alpha

    @contextmanager
    def _serving(self) -> Iterator[None]:
        with torch.inference_mode(), evaluating(self.card.optim, self.device):
            yield

    def __repr__(self) -> str:
        card = self.card
        return (
            f"<Classifier {card.backbone}, {len(card.class_ids):,} classes, images of {card.height} x {card.width}, "
            f"alpha {alpha_text(self.alpha)} ({card.alpha_origin}), on {self.device}>"
        )

    @overload
    def predict(  # type: ignore[overload-overlap]  # a text is a sequence of texts to mypy
        self, picture: Given, *, top: int = 5, threshold: float = 0.0
    ) -> list[ScoredClass]: ...

    @overload
    def predict(self, picture: Iterable[Given], *, top: int = 5, threshold: float = 0.0) -> list[list[ScoredClass]]: ...

    @told_as_user_errors()
    def predict(
        self, picture: Given | Iterable[Given], *, top: int = 5, threshold: float = 0.0
    ) -> list[ScoredClass] | list[list[ScoredClass]]:
        """The `top` classes of a picture whose probability is at least `threshold`, best first.

        Args:
            picture: a picture of any size and mode, or the path of a file; it is turned upright, made RGB, and resized
                as `card.json` says. For several pictures, such as a list or an array [B, H, W, 3], the result is a list
                with the answer for each.
            top: the most classes that are returned.
            threshold: probability, 0..1, below which no class is returned.

        Raises:
            UserError: something that is no picture, or a file that does not exist or cannot be read; `top` below 1, or
                a `threshold` that is no probability.
        """
        if top < 1:
            raise ValueError(f"top={top}: must be at least 1")
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold={threshold:g}: a probability, must be between 0 and 1")
        if _is_one(picture):
            return self._best(self.logits([self._pixels(picture)])[0], top, threshold)
        if not isinstance(picture, Iterable):
            raise ValueError(f"predict: {_WANTED}, not {type(picture).__name__}")
        answers, left = [], iter(picture)
        while batch := [self._pixels(one) for one in islice(left, _BATCH)]:
            answers += [self._best(row, top, threshold) for row in self.logits(batch)]
        return answers

    def _best(self, logits: RealArray, top: int, threshold: float) -> list[ScoredClass]:
        card, scores = self.card, sigmoid(logits)
        best = np.argsort(-scores, kind="stable")[:top]
        return [ScoredClass(card.class_ids[k], card.names[k], float(scores[k])) for k in best if scores[k] >= threshold]

    def _pixels(self, picture: Given) -> NDArray[np.uint8]:
        if isinstance(picture, np.ndarray | Tensor):
            picture = _image_of(picture)
        if isinstance(picture, Image.Image):
            return fit_to_size(picture, self.card.height, self.card.width)
        if not isinstance(picture, str | Path):
            raise ValueError(f"predict: {_WANTED}, not {type(picture).__name__}")
        if Path(picture).is_dir():
            raise ValueError(f"{picture}: a folder; {_WANTED}; raypaml predict takes folders")
        try:
            return read_picture(Picture(str(picture), str(picture)), self.card.height, self.card.width)
        except ValueError as error:
            raise ValueError(f"{picture}: {error}") from None

    @told_as_user_errors()
    def map(self, picture: Given, of: str = "") -> RealArray:
        """The raw class activation map [K, h, w] of a picture, or [h, w] for one class, before BoostLU.

        Args:
            picture: one picture, as `predict` takes it.
            of: the id or the name of a class; "" for all classes.

        Raises:
            UserError: something that is no picture, or no such class.
        """
        column = self._column(of) if of else slice(None)
        images = self._images([self._pixels(picture)])
        with self._serving():
            return self.model.cam(images)[0, column].float().cpu().numpy()

    def _column(self, name: str) -> int:
        """The column of the class with this id, or else of the only one with this name; ValueError for any other."""
        ids, names = self.card.class_ids, self.card.names
        columns = [ids.index(name)] if name in ids else [k for k, known in enumerate(names) if known == name]
        if len(columns) != 1:
            several = f"the name of {', '.join(ids[k] for k in columns)}; give one of these ids"
            said = several if columns else f"no such class{did_you_mean(name, [*names, *ids])}"
            raise ValueError(f"{name!r}: {said}")
        return columns[0]

    def logits(self, pixels: Sequence[NDArray[np.uint8]]) -> RealArray:
        """The logits [B, K] of images [H, W, 3] that have the card's size."""
        with self._serving():
            return self.model(self._images(pixels)).cpu().numpy()  # type: ignore[no-any-return]

    def logits_and_map(self, pixels: Sequence[NDArray[np.uint8]]) -> tuple[RealArray, RealArray]:
        """The logits [B, K] and the raw maps [B, K, h, w] of images [H, W, 3] that have the card's size."""
        with self._serving():
            cam = self.model.cam(self._images(pixels))
            above, below = pool_parts(cam)
            return (self.model.alpha * above + below).cpu().numpy(), cam.float().cpu().numpy()

    def _images(self, pixels: Sequence[NDArray[np.uint8]]) -> Tensor:
        return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).to(self.device)


def _is_one(picture: Given | Iterable[Given]) -> TypeGuard[Given]:
    """Whether the argument of `predict` is one picture rather than several."""
    if isinstance(picture, np.ndarray | Tensor):
        return picture.ndim < 4
    return isinstance(picture, Image.Image | str | Path)


def _image_of(array: NDArray[np.generic] | Tensor) -> Image.Image:
    """The picture in an array or a tensor; ValueError for another shape or type."""
    kind, shape = array.dtype, tuple(array.shape)
    if isinstance(array, Tensor):
        array = array.permute(1, 2, 0).cpu().numpy() if array.ndim == 3 and shape[0] == 3 else np.empty(0)
    if kind not in (np.uint8, torch.uint8) or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise ValueError(f"predict: {_WANTED}, not {kind} {list(shape)}")
    if not array.size:
        raise ValueError(f"predict: a picture of {list(shape)} has no pixels")
    return Image.fromarray(np.ascontiguousarray(array))


@told_as_user_errors()
def load(path: Place, device: torch.device | str = "cpu", alpha: float | str = "") -> Classifier:
    """Load a model for use; nothing is ever unpickled.

    Args:
        path: folder of a run (its best checkpoint), of a checkpoint, or of an export; or a `Run`.
        device: where the model computes.
        alpha: BoostLU's factor, a number from 1, `training` or `chosen`, the one chosen on validation; "" takes the one
            that was chosen, or where none was that of training.

    Raises:
        UserError: another folder, a damaged file, another vocabulary than the run's, or no such device.
    """
    return of_files(ModelFiles.find(Path(path), str(alpha)), device)


def of_files(files: ModelFiles, device: torch.device | str) -> Classifier:
    """Load the model in these files for use."""
    return Classifier(read_model(files.card, files.weights), files.card, device)


def read_model(card: Card, weights: Path) -> CamClassifier:
    """Build the model that a card describes, with the weights in a file, on the CPU."""
    model = CamClassifier(build_backbone(card.backbone), len(card.class_ids), card.alpha)
    try:
        model.load_state_dict(load_file(weights))
    except (SafetensorError, OSError) as error:
        check_readable(weights)
        raise ValueError(f"{weights}: not a safetensors file ({error}); nothing else is read") from None
    except RuntimeError as error:
        raise ValueError(f"{weights}: does not fit {card.backbone} of {len(card.class_ids)} classes: {error}") from None
    return model

"""A model for other programs: safetensors with a card, ONNX, and torch.export; each gives logits and the map.

All take images uint8 [B, 3, H, W], B free, of the card's size, and give logits [B, K] and the raw class activation map
[B, K, h, w], float32.
"""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raypaml.cli import extra
from raypaml.inference.classifier import Classifier
from raypaml.inference.export_facts import export_facts, write_safetensors
from raypaml.inference.model_card import WEIGHTS, Card, digest
from raypaml.model.cam import CamClassifier, pool_parts
from raypaml.model.tokens import TokenMap

ONNX = "model.onnx"
PROGRAM = "model.pt2"
EXAMPLE = "predict_onnx.py"
"""Runs `model.onnx` without PyTorch, and stands beside it."""
TOLERANCE = 1e-4
"""Largest difference allowed between a file's logits and PyTorch's, in float32."""
CHECKED_SIZES = (1, 3)
"""Sizes of the batches whose logits are compared."""
_EXAMPLES = 2
"""Images traced with; 1 would fix the size of a batch."""


class LogitsAndMap(nn.Module):
    """A classifier as it is exported."""

    def __init__(self, model: CamClassifier):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, K] and the raw map [B, K, h, w] of uint8 images [B, 3, H, W]."""
        cam = self.model.cam(images)
        positive, negative = pool_parts(cam)
        return self.model.alpha * positive + negative, cam


def save_weights(model: Classifier, folder: Path) -> Path:
    """`model.safetensors` and `card.json`, which `raypaml.load` takes."""
    path = folder / WEIGHTS
    weights = {name: value.contiguous() for name, value in model.model.state_dict().items()}
    write_safetensors(weights, export_facts(model), path)
    Card(**{**vars(model.card), "weights": digest(path)}).write(folder)
    return path


def save_program(model: Classifier, folder: Path) -> Path:
    """`model.pt2`, for `torch.export.load`."""
    path = folder / PROGRAM
    torch.export.save(_program(model), path, extra_files=export_facts(model))
    return path


def save_onnx(model: Classifier, folder: Path) -> Path:
    """`model.onnx`, one file, and an example beside it that runs it; ValueError without the extra packages."""
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise ValueError(f"onnx: not installed; {extra('onnx')}, or leave onnx out of --formats") from None
    path = folder / ONNX
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        program = _as_onnx(model)
        program.model.metadata_props.update(export_facts(model))
        program.save(path, external_data=False)
    shutil.copyfile(Path(__file__).with_name(EXAMPLE), folder / EXAMPLE)
    return path


def _as_onnx(model: Classifier) -> torch.onnx.ONNXProgram:
    """The model as ONNX; ValueError where PyTorch's exporter cannot convert it."""
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits", "map"]}
    names["dynamic_shapes"] = {"images": {0: "batch"}}  # which _program left free
    try:
        program = torch.onnx.export(_program(model), (), **names, dynamo=True, verbose=False)
    except torch.onnx.OnnxExporterError as error:
        cause = str(error.__cause__ or error).strip().split("\n")[0]
        raise ValueError(
            f"onnx: PyTorch's exporter cannot convert {model.card.backbone} ({cause}); leave onnx out of --formats"
        ) from None
    assert program is not None  # as dynamo=True says
    return program


def _program(model: Classifier) -> torch.export.ExportedProgram:
    """The model for batches of any size; of the source that it was traced from it names no paths of this machine."""
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    with torch.no_grad():
        program = torch.export.export(
            LogitsAndMap(_of_one_size(model)).eval(),
            (_examples(model, _EXAMPLES),),
            dynamic_shapes={"images": {0: batch}},
        )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def _of_one_size(model: Classifier) -> CamClassifier:
    """The model for images of the card's size alone: ONNX's bicubic resampling gives other values than PyTorch's."""
    fitted = copy.deepcopy(model.model)
    for module in fitted.modules():
        if isinstance(module, TokenMap):
            module.fit(model.card.height, model.card.width)
    return fitted


def _examples(model: Classifier, count: int) -> Tensor:
    rng = np.random.default_rng(count)
    size = (count, 3, model.card.height, model.card.width)
    return torch.from_numpy(rng.integers(0, 256, size, np.uint8))


def program_runner(path: Path) -> Callable[[Tensor], Tensor]:
    """Images -> logits, by the exported program."""
    program = torch.export.load(path).module()
    return lambda images: program(images)[0]


def onnx_runner(path: Path) -> Callable[[Tensor], Tensor]:
    """Images -> logits, by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def check_parity(model: Classifier, run: Callable[[Tensor], Tensor], what: str) -> float:
    """The largest difference of logits from PyTorch's, over batches of CHECKED_SIZES; ValueError above TOLERANCE."""
    worst = 0.0
    for count in CHECKED_SIZES:
        images = _examples(model, count)
        with torch.inference_mode():
            expected = model.model(images)
        worst = float(np.maximum(worst, (run(images).detach() - expected).abs().max().item()))  # nan stays nan
    if not worst < TOLERANCE:
        raise ValueError(f"{what}: logits differ by {worst:.2g} from PyTorch's, allowed: {TOLERANCE:g}")
    return worst

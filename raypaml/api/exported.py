"""A model written for other programs, each format compared with PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raypaml.counting import Count
from raypaml.files import write_whole
from raypaml.inference import exporting
from raypaml.inference.card_page import FORMAT_FILES, PAGE, card_page
from raypaml.inference.classifier import load
from raypaml.outputs import output_folder
from raypaml.runs.alpha_of_use import alpha_text

_WAYS: dict[str, tuple[Callable[..., Path], Callable[[Path], Any]]] = {
    "safetensors": (exporting.save_weights, lambda path: load(path.parent).model),
    "onnx": (exporting.save_onnx, exporting.onnx_runner),
    "program": (exporting.save_program, exporting.program_runner),
}


@dataclass(frozen=True)
class Exported:
    """A file of an export."""

    path: Path
    difference: float
    """The largest difference between one of its logits and PyTorch's."""


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What `raypaml export` is asked for; the fields are its flags.

    Raises:
        ValueError: there is no such format.
    """

    out: str = ""
    """Folder to write to; "" for `export` in the folder of the model."""
    formats: Sequence[str] = ()
    """Some of safetensors, onnx and program; empty for all."""
    alpha: str = ""
    """The alpha that the model is used with, as `raypaml.load` takes it."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.formats if name not in _WAYS]:
            known = ", ".join(_WAYS)
            raise ValueError(f"formats={','.join(self.formats)}: {unknown[0]!r} is not a format; known: {known}")


def export_model(model: Path, request: ExportRequest, say: Callable[[str], None]) -> Iterator[Exported]:
    """Write a model in some formats, one after the other, and then its model card.

    Args:
        model: folder of a run, a checkpoint or an export.
        request: the formats, the folder and the alpha.
        say: prints a line of progress.

    Raises:
        ValueError: a package is missing, or logits that differ from PyTorch's.
    """
    formats = request.formats or list(_WAYS)
    classifier = load(model, alpha=request.alpha)
    say(f"alpha {alpha_text(classifier.alpha)}: {classifier.card.alpha_origin}")
    folder = Path(request.out) if request.out else model / "export"
    with output_folder(folder):
        for name in Count("exporting", len(formats), say, unit="formats").each(formats):
            save, runner = _WAYS[name]
            path = save(classifier, folder)
            yield Exported(path, exporting.check_parity(classifier, runner(path), str(path)))
        for path in (folder / next(iter(FORMAT_FILES[name])) for name in _WAYS if name not in formats):
            if path.is_file():
                say(f"{path}: of an earlier export, perhaps of another model; give its format too, or remove it")
        write_whole(folder / PAGE, card_page(classifier, folder, formats))

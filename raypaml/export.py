"""`python -m raypaml.export`: a model for use elsewhere, as safetensors with a card, ONNX and torch.export, checked."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from raypaml.cli import Parser, add_alpha_flag, command, run_command, say
from raypaml.extensions import add_import_flag

_FORMATS = ("safetensors", "onnx", "program")


def parse(argv: Sequence[str]) -> Any:
    """The flags."""
    parser = Parser(prog=command("export"), description="Write a trained model for use elsewhere.")
    parser.add_argument("model", metavar="RUN", help="folder of a run (its best checkpoint), a checkpoint or an export")
    parser.add_argument("--out", default="", metavar="DIR", help="folder of the export [export, in the run's]")
    parser.add_argument("--formats", default=",".join(_FORMATS), help=f"some of {', '.join(_FORMATS)} [all]")
    add_alpha_flag(parser)
    add_import_flag(parser)
    return parser.parse(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Export, compare, say how far apart."""
    asked = parse(sys.argv[1:] if argv is None else argv)
    from raypaml.counting import Count
    from raypaml.inference import exporting  # with torch
    from raypaml.inference.card_page import PAGE, card_page
    from raypaml.inference.classifier import load
    from raypaml.runs.alpha_of_use import alpha_text

    formats = asked.formats.split(",")
    unknown = [name for name in formats if name not in _FORMATS]
    if unknown:
        raise ValueError(f"formats={asked.formats}: {unknown[0]!r} is none; known: {', '.join(_FORMATS)}")
    model = load(asked.model, alpha=asked.alpha)
    say(f"alpha {alpha_text(model.alpha)}: {model.card.alpha_origin}")
    folder = Path(asked.out) if asked.out else Path(asked.model) / "export"
    folder.mkdir(parents=True, exist_ok=True)
    ways: dict[str, tuple[Callable[..., Path], Callable[[Path], Any]]] = {
        "safetensors": (exporting.save_weights, lambda path: load(path.parent).model),
        "onnx": (exporting.save_onnx, exporting.onnx_runner),
        "program": (exporting.save_program, exporting.program_runner),
    }
    for name in Count("exporting", len(formats), say, unit="formats").each(formats):
        save, runner = ways[name]
        path = save(model, folder)
        worst = exporting.check_parity(model, runner(path), str(path))
        print(f"{path}: logits within {worst:.1g} of PyTorch's")
    (folder / PAGE).write_text(card_page(model, folder, formats), encoding="utf-8")
    print(f"{folder / PAGE}: what the model is, for people; add what it is meant for")
    return 0


if __name__ == "__main__":
    run_command(main, command("export"))

"""`python -m raypaml.export`: writes a model as safetensors with a card, ONNX or a program of torch.export."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from raypaml.cli import Parser, add_alpha_flag, command, requested, run_command, say, show
from raypaml.extensions import add_import_flag

_FORMATS = ("safetensors", "onnx", "program")


def parse(argv: Sequence[str]) -> Namespace:
    """Read the flags."""
    about = "Write a trained model for other programs, and compare the logits of each file with PyTorch's."
    parser = Parser(prog=command("export"), description=about)
    about = "folder of a run (its best checkpoint is exported), of a checkpoint or of an export"
    parser.add_argument("model", metavar="RUN", help=about)
    parser.add_argument("--out", default="", metavar="DIR", help="folder to write to [export in the run's folder]")
    about = f"formats to write, with commas between: {', '.join(_FORMATS)} [all]"
    parser.add_argument("--formats", default=",".join(_FORMATS), help=about)
    add_alpha_flag(parser)
    add_import_flag(parser)
    return parser.parse(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Export in each format, and print how far its logits are from PyTorch's."""
    asked = parse(sys.argv[1:] if argv is None else argv)
    from raypaml.api.exported import ExportRequest, export_model  # with torch
    from raypaml.inference.card_page import PAGE

    asked.formats = asked.formats.split(",")
    for one in export_model(Path(asked.model), requested(ExportRequest, asked), say):
        show(f"{one.path}: logits within {one.difference:.1g} of PyTorch's")
    show(f"{one.path.parent / PAGE}: the model card; add to it what the model is meant for")
    return 0


if __name__ == "__main__":
    run_command(main, command("export"))

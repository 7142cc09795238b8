"""`python -m raypaml.export`: a model for use elsewhere, as safetensors with a card, ONNX and torch.export, checked."""

from __future__ import annotations

import sys
from collections.abc import Sequence
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
    from raypaml.api.exported import export_model  # with torch
    from raypaml.inference.card_page import PAGE

    for one in export_model(Path(asked.model), asked.out, asked.formats.split(","), asked.alpha, say):
        print(f"{one.path}: logits within {one.difference:.1g} of PyTorch's")
    print(f"{one.path.parent / PAGE}: what the model is, for people; add what it is meant for")
    return 0


if __name__ == "__main__":
    run_command(main, command("export"))

"""`raypaml COMMAND ...` or `python -m raypaml COMMAND ...`: lists the commands and runs them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from raypaml import __version__
from raypaml.cli import command, known_names, listed, run_command
from raypaml.files import share

COMMANDS = {
    "train": "Train a classifier from partial labels, on a laptop or a cluster.",
    "tune": "Search the rejection schedule and other fields of a recipe.",
    "evaluate": "Predict a split of a data set with a trained model.",
    "aggregate": "Compute mAP by class group, and other measures, of one or two prediction sets.",
    "report": "Write the result and the report of a finished run again.",
    "explain": "Look at a model's class activation maps, and compare them with another's.",
    "predict": "Say which classes pictures show.",
    "export": "Write a model for other programs: safetensors, ONNX, torch.export.",
    "audit": "List training labels that are likely missing, and apply people's answers.",
    "shard": "Turn images and labels into a data set: Open Images, tables, folders, VOC, COCO, ...",
    "doctor": "Look over a run, or a cluster, before anything starts.",
}


def main(argv: Sequence[str] | None = None) -> int:
    """List the commands, or run one with the arguments that follow it.

    Raises:
        ValueError: there is no such command.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(listed("raypaml COMMAND ...", "Train multi-label image classifiers from partial annotations.", COMMANDS))
        print("\nEach command says more with --help.")
        print(f"Cluster files: {share('clusters')}\nSearch spaces: {share('tune')}")
        return 0
    name, *rest = argv
    if name == "--version":
        print(__version__)
        return 0
    if name not in COMMANDS:
        raise ValueError(f"{name}: no such command{known_names(name, COMMANDS)}")
    return run_command(lambda: importlib.import_module(f"raypaml.{name}").main(rest), command(name))


def run() -> None:
    """The console script `raypaml`."""
    run_command(main, "raypaml")


if __name__ == "__main__":
    run_command(main, "python -m raypaml")

"""Evaluates predictions: mAP by class group and of all classes, under every published convention, and other measures.

python tools/aggregate_map.py runs/NAME                      # a run, or a folder of python -m raypaml.evaluate
python tools/aggregate_map.py runs/A runs/B --bootstrap 1000  # both, and their paired difference with its interval
python tools/aggregate_map.py scores.npy --labels labels.npy --scores logits --vocabulary vocabulary.csv

The same as `raypaml aggregate`.
"""

from __future__ import annotations

from collections.abc import Sequence

from raypaml import aggregate
from raypaml.cli import run_command

PROG = "python tools/aggregate_map.py"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `raypaml aggregate` with these arguments."""
    return aggregate.main(argv, PROG)


if __name__ == "__main__":
    run_command(main, PROG)

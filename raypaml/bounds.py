"""The limits of numbers that people give, in flags and in Python: a refusal names both limits."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def check_bounds(name: str, value: float, least: float, most: float) -> None:
    """Raise ValueError, naming the flag and the limits, unless a number lies between them; NaN never does."""
    if not least <= value <= most:
        raise ValueError(f"{name}={value}: must be at least {least:,} and at most {most:,}")


def between(kind: type[int | float], least: float, most: float) -> Callable[[str], float]:
    """The type of a flag whose number, of this kind, lies between two limits, both of them allowed."""

    def read(text: str) -> float:
        if not least <= (value := kind(text)) <= most:
            raise argparse.ArgumentTypeError(f"{text}: must be at least {least:,} and at most {most:,}")
        return value

    read.__name__ = kind.__name__  # argparse names it where the text is no number
    return read

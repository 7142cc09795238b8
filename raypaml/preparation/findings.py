"""What the label doctor found: counts, and a few examples of each, by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

EXAMPLES = 5
"""Kept of each finding."""


def some_of(names: Sequence[str], most: int = EXAMPLES) -> str:
    """The first names for a message, and dots where there are more."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


@dataclass
class Findings:
    """Counts by name, and the first few examples of what should not be there."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, name: str, count: int, examples: Iterable[object] = ()) -> None:
        """Count `count` more of `name`; a count of 0 is kept, to say that it was looked for."""
        self.counts[name] += int(count)
        if count:
            kept = self.examples.setdefault(name, [])
            kept += [str(example) for example in examples][: EXAMPLES - len(kept)]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: name -> count and examples, in the order found."""
        return {
            name: {"count": count} | ({"examples": self.examples[name]} if self.examples.get(name) else {})
            for name, count in self.counts.items()
        }

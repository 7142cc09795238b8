"""Oddities of a source's labels: how often each occurs, and a few examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NotRequired, TypedDict

EXAMPLES = 5
"""Examples that are kept of each finding."""


class Tally(TypedDict):
    """How often something was seen, and a few examples."""

    count: int
    examples: NotRequired[list[str]]


def some_of(names: Sequence[str], most: int = EXAMPLES) -> str:
    """Returns the first names for a message, and dots where there are more."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def tally(count: int, examples: Sequence[str]) -> Tally:
    """Returns a finding of this count, with its first examples if it has any."""
    return {"count": count, "examples": list(examples[:EXAMPLES])} if len(examples) else {"count": count}


@dataclass
class Findings:
    """Counts by name, and the first few examples of what should not be there."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, name: str, count: int, examples: Iterable[object] = ()) -> None:
        """Adds `count` to the finding `name`; a count of 0 is kept, to show that this was checked."""
        self.counts[name] += int(count)
        if count:
            kept = self.examples.setdefault(name, [])
            kept += [str(example) for example in examples][: EXAMPLES - len(kept)]

    def merge(self, later: Findings) -> None:
        """Adds what was found in a later part."""
        for name, count in later.counts.items():
            self.add(name, count, later.examples.get(name, ()))

    def to_dict(self) -> dict[str, Tally]:
        """Returns the findings by name, for JSON, in the order in which they were first seen."""
        return {name: tally(count, self.examples.get(name, ())) for name, count in self.counts.items()}

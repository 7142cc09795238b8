"""What tests read of the events that a worker reports."""

from __future__ import annotations

from raypaml.runs.events import Event, Message, StepReport


def text_of(event: Event) -> str:
    """The line of a message; empty for other events."""
    return event.text if isinstance(event, Message) else ""


def place_of(event: Event) -> tuple[int, int] | None:
    """The epoch, from 0, and its steps done so far; None unless steps are reported."""
    return (event.epoch, event.step) if isinstance(event, StepReport) else None

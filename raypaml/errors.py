"""The errors of raypaml's Python interface, which never raises SystemExit.

A request that cannot be carried out raises `UserError`, a failing callback `CallbackError`. What the operating system
refuses stays an OSError, and a failure that no request caused, such as a lost worker, is a RuntimeError. A run that a
signal stops raises nothing; a second signal ends it at once with `StoppedAtOnce`.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A request cannot be carried out; the message says what was asked, the limit, and the remedy."""


class CallbackError(UserError):
    """A callback raised an error; the message names the callback, its method, the epoch and step, and that error."""


class StoppedAtOnce(KeyboardInterrupt):
    """A second Ctrl-C or SIGTERM has ended a run at once; its progress since the last checkpoint is lost."""

    def __init__(self, number: int):
        super().__init__(f"stopped at once by {signal.Signals(number).name}")
        self.signal = number


@contextmanager
def told_as_user_errors() -> Iterator[None]:
    """Turn a ValueError of the block into a UserError with the same message; also usable as a decorator."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error

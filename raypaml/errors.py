"""The errors of raypaml's Python interface, which never raises SystemExit.

What cannot be done as it was asked is a `UserError`, the failure of a callback a `CallbackError`. What the operating
system refuses stays an OSError, and what goes wrong though nothing was asked wrongly, such as a lost worker, is a
RuntimeError. A run that a signal stops is no error; only at the second signal it ends at once, by `StoppedAtOnce`.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """It cannot be done as it was asked; the message has what was asked, the limit, and the remedy."""


class CallbackError(UserError):
    """A callback raised an error; the message names the callback, its method, the place, and that error."""


class StoppedAtOnce(KeyboardInterrupt):
    """A second Ctrl-C or SIGTERM has ended a run at once; what came after its last checkpoint is lost."""

    def __init__(self, number: int):
        super().__init__(f"stopped at once by {signal.Signals(number).name}")
        self.signal = number


@contextmanager
def told_as_user_errors() -> Iterator[None]:
    """What the block raises as a ValueError is a UserError, with the same message; may decorate a function."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error

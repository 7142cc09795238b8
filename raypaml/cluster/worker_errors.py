"""What is said of workers that failed, and whether another try may go better."""

from __future__ import annotations

import errno

from raypaml.errors import CallbackError
from raypaml.training.out_of_memory import HalvedError

CHANCE = (OSError, RuntimeError)
"""Errors that another try may not meet: a lost connection, a device. All others are the same every time."""


def as_user_error(failures: dict[int, Exception]) -> Exception:
    """The error of the first rank that failed, without Ray's wrapping; if memory ran out on some rank, that error.

    The others then failed because that rank was gone.
    """
    causes = {rank: getattr(error, "cause", None) or error for rank, error in failures.items()}
    rank = min(causes, key=lambda rank: (not isinstance(causes[rank], HalvedError), rank))
    return as_said(rank, causes[rank])


def as_said(rank: int, error: BaseException) -> Exception:
    """The error as its user is told it: ValueError where a line is enough; a callback's as it is."""
    if isinstance(error, CallbackError):
        return error
    kind = ValueError if isinstance(error, ValueError | FloatingPointError) or is_disk_full(error) else RuntimeError
    said = str(error) if isinstance(error, (*CHANCE, ValueError, FloatingPointError)) else repr(error)
    if isinstance(error, HalvedError):
        return ValueError(f"{said}; give the command again, with this --name")
    if is_disk_full(error):
        said += ". The last checkpoint is whole: make room and give the command again, with this --name"
    return kind(said if said.startswith(f"rank {rank}") else f"rank {rank}: {said}")


def is_disk_full(error: BaseException) -> bool:
    """Whether the error says that a disk is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def brief_cause(error: BaseException) -> str:
    """The first line of an error, without Ray's wrapping."""
    cause = getattr(error, "cause", None) or error
    return (str(cause).strip() or repr(cause)).splitlines()[0][:160]

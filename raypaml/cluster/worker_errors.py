"""What the user is told of failed workers, and whether another try may succeed."""

from __future__ import annotations

import errno

from raypaml.errors import CallbackError, HalvedError, RemediableError, is_lasting, told_refusal

CHANCE = (OSError, RuntimeError)
"""Errors that may not occur again on another try, such as a lost connection; all others would occur every time."""


def as_user_error(failures: dict[int, Exception]) -> Exception:
    """The error of the first rank that failed, without Ray's wrapping; or that of a rank whose memory ran out.

    In the latter case the other ranks failed because that one had ended.
    """
    causes = {rank: _cause(error) for rank, error in failures.items()}
    rank = min(causes, key=lambda rank: (not isinstance(causes[rank], HalvedError), rank))
    return as_said(rank, causes[rank])


def _cause(error: Exception) -> BaseException:
    """What a worker raised; of one that died, the reason in one line rather than all that Ray knows of it."""
    if hasattr(error, "health_check_failure"):
        return RuntimeError(brief_cause(error))
    raised: BaseException | None = getattr(error, "cause", None)
    return raised or error


def as_said(rank: int, error: BaseException) -> Exception:
    """The error to raise for the user: a ValueError where one line explains it; a callback's error as it is."""
    if isinstance(error, CallbackError):
        return error
    kind = ValueError if isinstance(error, ValueError | FloatingPointError) else RuntimeError
    kind = RemediableError if is_lasting(error) else kind
    message = str(error) if isinstance(error, (*CHANCE, ValueError, FloatingPointError)) else repr(error)
    if isinstance(error, OSError) and is_lasting(error):
        message = told_refusal(error)
    if isinstance(error, HalvedError):
        return RemediableError(f"{message}; give the command again, with this --name")
    if is_disk_full(error):
        message += ". The last checkpoint is whole: make room and give the command again, with this --name"
    return kind(message if message.startswith(f"rank {rank}") else f"rank {rank}: {message}")


def is_disk_full(error: BaseException) -> bool:
    """Whether the error says that a disk is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _unwrapped(error: BaseException) -> BaseException:
    """An error without Ray's wrapping."""
    inner: BaseException | None = getattr(error, "cause", None) or getattr(error, "health_check_failure", None)
    return inner or error


def is_preempted(error: BaseException) -> bool:
    """Whether a worker ended because its node was taken away with notice; Ray Train counts these apart."""
    return bool(getattr(_unwrapped(error), "preempted", False))


def brief_cause(error: BaseException) -> str:
    """The first line of an error, without Ray's wrapping."""
    cause = _unwrapped(error)
    return (str(cause).strip() or repr(cause)).splitlines()[0][:160]

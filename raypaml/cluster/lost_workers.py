"""What Ray Train's controller says of lost workers, and how many losses are too many."""

from __future__ import annotations

from ray.exceptions import RayActorError
from ray.train import UserCallback

from raypaml.cluster.channel import Channel, Lost
from raypaml.cluster.worker_errors import CHANCE, brief_cause, is_preempted
from raypaml.errors import is_lasting


class LostWorkers(UserCallback):  # type: ignore[misc]
    """A callback of Ray Train's controller that reports which workers were lost, and why.

    Args:
        channel: takes the reports.
        left: losses after which the workers are still started again.
        limit: the setting `max_failures`, for the message after the last of them.
    """

    def __init__(self, channel: Channel, left: int, limit: int) -> None:
        self._channel, self._left, self._limit = channel, left, limit
        self._told: dict[int, str] = {}

    def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        """Report a loss once, though it is seen until the workers of a node that is taken away have all ended.

        Raises:
            Exception: the error of a worker that every other try would meet, which ends Ray Train.
        """
        if failure := self._channel.failure():
            raise failure
        seen = {rank: str(error) for rank, error in worker_exceptions.items()}  # Ray names the actors in it
        if seen.items() <= self._told.items():
            return
        self._told |= seen
        preempted = any(map(is_preempted, worker_exceptions.values()))
        self._left -= not preempted
        cause = ", ".join(f"rank {rank} ({brief_cause(error)})" for rank, error in sorted(worker_exceptions.items()))
        self._channel.put(lost(cause, preempted=preempted, goes_on=self._left >= 0, limit=self._limit))


def lost(cause: str, *, preempted: bool, goes_on: bool, limit: int) -> Lost:
    """The report of a loss.

    Args:
        cause: who was lost, and why.
        preempted: whether a node was taken away with notice.
        goes_on: whether there is another try.
        limit: the setting `max_failures`.
    """
    more = "all start again from the last checkpoint" if goes_on else _too_many(limit)
    return Lost(f"lost: {cause}; {more}", cause, preempted)


def lost_at_start(error: Exception) -> Exception | None:
    """The loss that ended Ray Train's controller while it started workers; None for another error.

    Ray Train starts again without those that it loses while their processes start, but not without those that it loses
    while they join their process group or are given the training function (Ray 2.60, `WorkerGroup._start_impl`).
    """
    failure: Exception | None = getattr(error, "controller_failure", None)
    cause = getattr(failure, "cause", None)
    passing = isinstance(cause, CHANCE) and not is_lasting(cause)
    return failure if passing or isinstance(failure, RayActorError) else None


def told_of_limit(error: Exception, limit: int) -> Exception:
    """The error after which there is no other try, with the reason where another one might succeed."""
    if isinstance(error, RuntimeError):
        return RuntimeError(f"{str(error).rstrip('.')}; {_too_many(limit)}; give the command again, with this --name")
    return error


def _too_many(limit: int) -> str:
    return f"there are more losses than --max-failures {limit} allows"

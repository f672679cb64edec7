"""What to do after a failed attempt.

A failure's kind says which remedy applies; how many times is a number here; chance comes in as `jitter`. What concerns
the whole run (a refused key) is decided before, in `rules.stopping`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from batchkit.records import Failure, FailureKind

__all__ = [
    "DEFAULT_MAX_ATTEMPTS",
    "Decision",
    "GiveUp",
    "Remedy",
    "RetryAfter",
    "RetryPolicy",
    "StopRun",
    "is_fault",
    "never_reached",
    "never_sent",
    "remedy_of",
]

DEFAULT_MAX_ATTEMPTS = 6
_BASE_S = 0.5
_CAP_S = 60.0


class Remedy(Enum):
    """What a kind of failure calls for."""

    RATE = "again, and everyone slower"
    """Being told to wait is no fault of the request's: it does not count against its attempts."""
    AGAIN = "again, counting an attempt"
    FAIL = "for good"


@dataclass(frozen=True, slots=True)
class RetryAfter:
    """Try again in `seconds`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The request failed for good."""


@dataclass(frozen=True, slots=True)
class StopRun:
    """No further request can fare better: the run ends, the request stays unanswered and is asked again by the next run."""

    code: str
    message: str


Decision = RetryAfter | GiveUp | StopRun

_REMEDIES = {
    FailureKind.RATE_LIMITED: Remedy.RATE,
    FailureKind.OVERLOADED: Remedy.RATE,
    FailureKind.SERVER_ERROR: Remedy.AGAIN,
    FailureKind.TIMEOUT: Remedy.AGAIN,
    FailureKind.CONNECTION_ERROR: Remedy.AGAIN,
    FailureKind.NOT_AN_API: Remedy.AGAIN,
    FailureKind.INVALID_RESPONSE: Remedy.AGAIN,
    FailureKind.INVALID_REQUEST: Remedy.FAIL,
    FailureKind.CONTENT_FILTER: Remedy.FAIL,
    FailureKind.NOT_FOUND: Remedy.FAIL,
    FailureKind.BAD_LINE: Remedy.FAIL,
    # Those three stop a run nearly always; where `rules.stopping` lets one pass, it was a hiccup of the gateway's.
    FailureKind.KEY_REFUSED: Remedy.AGAIN,
    FailureKind.QUOTA_EXHAUSTED: Remedy.AGAIN,
    FailureKind.MISDIRECTED: Remedy.AGAIN,
}

_MOST_RETRIES = {FailureKind.INVALID_RESPONSE: 2, FailureKind.NOT_AN_API: 3}
"""Answers that came, and were paid for, but say nothing: asking more often bills more often."""

_SPENT_BY_GATEWAY = -1
_BEHIND_GATEWAY = 2
"""Attempts at what a gateway has tried as often as it was told to: each of ours is six of its own."""


def remedy_of(failure: Failure) -> Remedy:
    """The remedy for a failure; the server's own `x-should-retry` is believed over our table, except about rates."""
    remedy = _REMEDIES[failure.kind]
    if (
        remedy is not Remedy.RATE
        and failure.should_retry is not None
        and failure.kind is not FailureKind.BAD_LINE
    ):
        return Remedy.AGAIN if failure.should_retry else Remedy.FAIL
    return remedy


def never_reached(failure: Failure) -> bool:
    """Whether the attempt ended before there was a connection to send it over."""
    if failure.status is not None or failure.maybe_billed:
        return False
    return (
        failure.kind in (FailureKind.CONNECTION_ERROR, FailureKind.TIMEOUT) or failure.code == "host_unknown"
    )


def never_sent(failure: Failure) -> bool:
    """Whether the request cannot be sent as it is, which says nothing of the network nor of the server."""
    return failure.kind is FailureKind.INVALID_REQUEST and failure.status is None


def is_fault(failure: Failure) -> bool:
    """Whether a failed attempt counts against its request.

    Being told to wait does not, and neither does a network that is gone: the requests wait for it to come back.
    """
    return remedy_of(failure) is Remedy.AGAIN and not never_reached(failure)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and after what wait a request is tried again.

    `max_attempts` are those a request may spend on transient faults (`is_fault`). Waits are full jitter,
    random(0, min(60, 0.5·2ⁿ)) seconds (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/), and
    never less than the server asked for.
    """

    max_attempts: int = DEFAULT_MAX_ATTEMPTS

    def decide(self, failure: Failure, *, attempt: int, faults: int, same: int, jitter: float) -> Decision:
        """Decide after the `attempt`-th attempt (from 1) of a request.

        `faults` of the attempts counted as faults and `same` failed with this kind, both including this one; `jitter` is
        random in [0, 1).
        """
        remedy = remedy_of(failure)
        if remedy is Remedy.FAIL:
            return GiveUp()
        most = self.max_attempts
        if failure.gateway_retries == _SPENT_BY_GATEWAY:
            most = min(most, _BEHIND_GATEWAY)
        if remedy is Remedy.AGAIN and (faults >= most or same > _MOST_RETRIES.get(failure.kind, same)):
            return GiveUp()
        backoff = jitter * min(_CAP_S, _BASE_S * 2.0 ** min(attempt, 20))
        if not failure.retry_after:
            # Zero seconds are no advice: obeyed, they would spend all attempts in one breath.
            return RetryAfter(backoff)
        # A little later than asked, each at its own moment: all who were refused together must not return together.
        return RetryAfter(failure.retry_after + min(backoff, 0.1 * failure.retry_after))
